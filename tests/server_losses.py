"""Losses of a server at any instant, as arguments of a simulation with two or more servers and replicas."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from mpips.transport.network_faults import Fault, random_arrivals, random_delays


def between_messages(
    act: str, rng: random.Random, count: int, most: int, replicas: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield `count` simulations of 1 + `replicas` servers, one of which is lost by `act` ("kill", "stop" or "pause").

    It is lost after 30 to `most` messages; undelivered messages of a killed one may be lost, and there may be a spare.
    """
    for number in range(count):
        fault = Fault(
            "kill" if act == "kill" else "stop",
            1 + number % (1 + replicas),
            after_messages=rng.randrange(30, most),
            lasting=None if act != "pause" else rng.choice((0.04, 0.3)),
        )
        arrives = random_arrivals(number, rng.choice((0.0, 0.5, 1.0)) if act == "kill" else 0.0)
        how = {"servers": 1 + replicas, "replicas": replicas, "spares": number % 3 % 2}
        yield {**how, "faults": [fault], "arrives": arrives}


def where_messages_overtake(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Yield `count` simulations of two or three servers, one of which is killed, with random delays of messages."""
    rng = random.Random(seed)
    for number in range(count):
        servers = 2 + number % 2
        faults = [Fault("kill", rng.randint(1, servers), after_messages=rng.randrange(60, 600))]
        delays, arrives = random_delays(seed, delay=0.003), random_arrivals(seed, 1.0)
        yield {"servers": servers, "replicas": 1, "faults": faults, "delays": delays, "arrives": arrives}
