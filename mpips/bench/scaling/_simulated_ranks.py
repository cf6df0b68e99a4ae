"""Many workers on the in-memory twin, each of which pushes and pulls keys of few shards: see `scale`.

All ranks are greenlets of one process, so messages are counted by rank, but processor time and memory are not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np

from mpips.cluster.layout import Role
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.worker.worker import Context

WORKERS_PER_SERVER = 16
PLACES, RUN = 4, 16
"""Each worker's keys: the number and the length of its runs of keys, evenly distributed."""
ROUNDS = 4
"""Rounds of a pass."""
VECTOR, EXTENT = "wide", 1 << 20
TICK = 0.005
"""Steps of simulated time (s)."""


class Worker:
    """Pushes and pulls the same keys, which no other worker uses."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self, rounds: int) -> None:
        """Do a number of rounds, each after the last one is finished."""
        vector, node = self.context.vectors[VECTOR], self.context.node
        index, count = self.context.index, self.context.count
        begins = sorted(
            (index + count * place // PLACES) % count * (EXTENT // count) for place in range(PLACES)
        )
        keys = np.unique(np.concatenate([np.arange(begin, begin + RUN, dtype=np.uint64) for begin in begins]))
        for _ in range(rounds):
            node.wait(vector.push_pull(keys, np.ones(len(keys))))


def measured(workers: int, replicas: int) -> dict[str, Any]:
    """Run one pass for warm-up and one for measurement; return messages and bytes of a rank, by role."""
    servers, internals = max(2, workers // WORKERS_PER_SERVER), Internals()
    began = time.perf_counter()

    def schedule(cluster: Cluster) -> dict[str, Any]:
        cluster.create_vector(VectorSpec(VECTOR, extent=EXTENT, dense=True))
        cluster.workers.call("go", {"rounds": 1})
        before = sent(internals)
        cluster.workers.call("go", {"rounds": ROUNDS})
        return by_role(internals, before, sent(internals)) | {"sent_again": cluster.traffic()["sent_again"]}

    found = simulate(
        schedule, Worker, servers=servers, workers=workers, replicas=replicas, tick=TICK, internals=internals
    )
    return {
        "program": "twin",
        "ranks": 1 + servers + workers,
        "servers": servers,
        "workers": workers,
        "replicas": replicas,
        "seconds": time.perf_counter() - began,
        **found,
    }


def sent(internals: Internals) -> dict[int, tuple[int, int]]:
    """Return the messages and bytes that each rank has sent so far."""
    return {rank: (node.van.sent_messages, node.van.sent_bytes) for rank, node in internals.nodes.items()}


def by_role(
    internals: Internals, before: Mapping[int, tuple[int, int]], after: Mapping[int, tuple[int, int]]
) -> dict[str, float]:
    """Return the means of a role's ranks, and the maximum of a server."""
    found: dict[str, float] = {}
    for role in (Role.SCHEDULER, Role.SERVER, Role.WORKER):
        ranks = [rank for rank, node in internals.nodes.items() if node.place.role is role]
        for at, what in enumerate(("messages", "bytes")):
            each = [after[rank][at] - before[rank][at] for rank in ranks]
            found[f"{what}_{role.value}"] = fmean(each)
            if role is Role.SERVER and what == "messages":
                found["messages_server_most"] = max(each)
    return found
