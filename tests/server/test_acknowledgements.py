"""Acknowledgements of pushes that were answered ahead: callers that wait get them, in any order of messages."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import refusing
from hypothesis import given
from hypothesis import strategies as st

from mpips import Cluster, Context, VectorSpec
from mpips.errors import RemoteError
from mpips.filters.chain import Chain, Step
from mpips.filters.filter import Coder
from mpips.rank.simulation import Internals, simulate
from mpips.server.acknowledgements import Acknowledgements, Push
from mpips.server.server import Server
from mpips.tasks.ahead import AHEAD
from mpips.transport.network_faults import Fault, random_delays

KEYS = np.arange(40, dtype=np.uint64)


class Recorded:
    """Acknowledgements, and what was sent by itself."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, tuple[Push, ...]]] = []
        self.of = Acknowledgements(lambda origin, pushes: self.sent.append((origin, pushes)))

    def drain(self) -> list[tuple[int, tuple[Push, ...]]]:
        sent, self.sent[:] = list(self.sent), []
        return sent


def test_acknowledgements_are_sent_with_the_next_answer_unless_requested() -> None:
    reported = Recorded()
    reported.of.expect(3, (0, 5))
    reported.of.add(3, (0, 5))
    reported.of.send_due()
    assert reported.sent == [] and reported.of.take(3) == ((0, 5),) and reported.of.take(3) == ()
    for time in (6, 7):
        reported.of.expect(3, (0, time))
    reported.of.ask(3, [(0, 7)])
    reported.of.add(3, (0, 6))
    reported.of.send_due()
    assert reported.sent == [], "all that was asked for goes in one message"
    reported.of.add(3, (0, 7))
    reported.of.send_due()
    assert reported.drain() == [(3, ((0, 6), (0, 7)))]


def test_a_late_request_for_acknowledgements_is_answered_at_once() -> None:
    reported = Recorded()
    reported.of.expect(3, (1, 5))
    reported.of.add(3, (1, 5))
    reported.of.ask(3, [(1, 5)])
    assert reported.drain() == [(3, ((1, 5),))]


def test_a_late_earlier_request_for_acknowledgements_changes_nothing() -> None:
    reported = Recorded()
    reported.of.expect(3, (1, 45))
    reported.of.add(3, (1, 45))
    reported.of.expect(3, (1, 53))
    reported.of.ask(3, [(1, 53)])
    reported.of.ask(3, [(1, 45)])
    reported.of.add(3, (1, 53))
    reported.of.send_due()
    assert reported.drain() == [(3, ((1, 45), (1, 53)))]


def test_a_request_for_acknowledgement_may_precede_the_repeated_push() -> None:
    reported = Recorded()
    reported.of.ask(3, [(1, 53)])
    reported.of.expect(3, (1, 53))
    reported.of.add(3, (1, 53))
    reported.of.send_due()
    assert reported.drain() == [(3, ((1, 53),))]


def test_acknowledgements_of_shards_that_moved_are_not_waited_for() -> None:
    reported = Recorded()
    for push in ((0, 5), (1, 6)):
        reported.of.expect(3, push)
        reported.of.expect(4, push)
    for origin in (3, 4):
        reported.of.ask(origin, [(0, 5), (1, 6)])
        reported.of.add(origin, (0, 5))
    reported.of.send_due()
    assert reported.sent == []
    reported.of.retain({0}, lambda origin: origin == 3)
    assert reported.drain() == [(3, ((0, 5),))], "and lost callers get nothing"
    assert reported.of.take(4) == ()


@given(st.integers(0, 2**32))
def test_requested_acknowledgements_arrive_for_all_pushes(seed: int) -> None:
    """Pushes, requests for acknowledgements, copies and answers come in any order; each push is acknowledged once."""
    rng, reported = random.Random(seed), Recorded()
    waiting: list[Push] = []
    heard: list[Push] = []
    asking: list[list[Push]] = []
    fresh: dict[int, int] = {}
    time = 0
    while time < 30 or waiting or asking or fresh:
        what = rng.choice(["push", "copy", "ask", "arrive", "answer"])
        if what == "push" and time < 30:
            push = (rng.randrange(3), time)
            time += 1
            reported.of.expect(7, push)
            waiting.append(push)
            fresh[push[0]] = push[1]
        elif what == "copy" and waiting:
            reported.of.add(7, waiting.pop(rng.randrange(len(waiting))))
            reported.of.send_due()
        elif what == "ask" and fresh:
            asking.append(list(fresh.items()))
            fresh.clear()
        elif what == "arrive" and asking:
            reported.of.ask(7, asking.pop(rng.randrange(len(asking))))
        elif what == "answer" and time < 30:
            heard += reported.of.take(7)
    heard += [push for _, pushes in reported.sent for push in pushes]
    assert sorted(each for _, each in heard) == list(range(30))


# Whole clusters: no rank may wait for ever.


class Worker:
    """Pushes in rounds, and waits for what each call has pushed."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self, first: int, rounds: int, value: float = 1.0) -> None:
        """Push, and let the end of the call wait for copies."""
        for round_ in range(first, first + rounds):
            self.context.vectors["v"].push(KEYS, np.full(len(KEYS), value), round=round_)

    def ask_early(self, first: int, rounds: int) -> None:
        """Push round by round, asking for acknowledgements after each."""
        node, vector = self.context.node, self.context.vectors["v"]
        for round_ in range(first, first + rounds):
            node.wait(vector.push(KEYS, np.ones(len(KEYS)), round=round_))
            node.request_acknowledgements()


@pytest.mark.parametrize("seed", range(5))
def test_no_worker_waits_forever_for_copies_of_its_pushes(seed: int) -> None:
    def schedule(cluster: Cluster) -> list[float]:
        vector = cluster.create_vector(VectorSpec("v", extent=len(KEYS), aggregate=True))
        for call in range(8):
            how = {"first": 6 * call, "rounds": 6}
            cluster.workers.call(("push", "ask_early")[call % 2], how)
        return list(cluster.node.wait(vector.pull(KEYS)).tolist())

    faults = [Fault("kill", 1 + seed % 3, after_messages=150 + 20 * seed)] if seed % 2 else []
    got = simulate(
        schedule, Worker, servers=3, workers=3, spares=1, replicas=1, delays=random_delays(seed, delay=0.004),
        seed=seed, faults=faults, horizon=20.0,
    )  # fmt: skip
    assert got == [3.0 * 48] * len(KEYS)


def servers_of(internals: Internals) -> list[Server]:
    ticking = [getattr(each, "__self__", None) for node in internals.nodes.values() for each in node.on_tick]
    return [each for each in ticking if isinstance(each, Server)]


def test_the_answer_to_a_repeated_push_of_a_round_that_failed_is_final() -> None:
    """The push is answered ahead, with held acknowledgements; the kept answer has neither."""
    internals = Internals()
    kept: list[Any] = []

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", extent=len(KEYS), aggregate=True, update=refusing.NAME))
        cluster.workers.call("push", {"first": 0, "rounds": 1})
        with pytest.raises(RemoteError, match="a negative row"):
            cluster.workers.call("push", {"first": 1, "rounds": 1, "value": -1.0})
        for server in servers_of(internals):
            for link in server.chains:
                assert link.shard is not None
                for _, _, replies in link.shard.inbox.callers().values():
                    kept.extend(
                        each for each in replies.values() if not callable(each) and "text" in each.meta
                    )

    simulate(schedule, Worker, servers=2, workers=2, replicas=1, internals=internals)
    assert kept and all(each.acked != AHEAD and not each.after for each in kept)


def test_an_answer_that_cannot_be_encoded_loses_no_acknowledgement() -> None:
    encoded: list[int] = []

    def encode(state: Any, content: Any, about: Any) -> Any:
        encoded.append(about.time)
        if len(encoded) % 3 == 0:
            raise ValueError("no more of these")
        return state, content

    class Pulling(Worker):
        """Wants rows back, which are not encoded now and then."""

        def run(self) -> int:
            vector, node, failed = self.context.vectors["v"], self.context.node, 0
            for round_ in range(12):
                try:
                    node.wait(vector.push_pull(KEYS, np.ones(len(KEYS)), round=round_))
                except RemoteError:
                    failed += 1
            return failed

    def schedule(cluster: Cluster) -> list[int]:
        cluster.create_vector(VectorSpec("v", extent=len(KEYS), aggregate=True))
        return list(cluster.workers.call("run"))

    failing = Step("failing", Coder(encode, lambda content: content))
    got = simulate(
        schedule, Pulling, servers=2, workers=1, replicas=1,
        filters=lambda: (Chain(), Chain([failing])), horizon=20.0,
    )  # fmt: skip
    assert got == [8]
