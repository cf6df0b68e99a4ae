"""Reports of long waits: the rank, what it waits for, the line that issued it, and the ranks that have not answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpips import Cluster, Context, VectorSpec
from mpips.errors import RemoteError
from mpips.rank.long_waits import LongWaits
from mpips.rank.simulation import Internals, simulate
from mpips.server.server import Server

KEYS = np.arange(10, dtype=np.uint64)
SAID: list[str] = []


def line(text: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return f"{__file__}:{next(number for number, each in enumerate(lines, 1) if text in each)}"


class Worker:
    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        LongWaits(self.node, SAID.append)

    def push(self, alone: bool) -> None:
        """Push in a round that the others do not take part in, for 35 s."""
        if self.context.index == 0 or not alone:
            self.context.vectors["sums"].push(KEYS, np.ones(10), round=0)

    def rest(self, seconds: float) -> None:
        until = self.node.van.now() + seconds
        self.node.wait_until(lambda: self.node.van.now() >= until)


def test_waiting_and_missing_workers_of_a_round_are_reported() -> None:
    SAID.clear()
    seen: list[list[str]] = []
    internals = Internals()

    def schedule(cluster: Cluster) -> None:
        node, waits = cluster.node, LongWaits(cluster.node, SAID.append)
        server = internals.nodes[cluster.servers.ranks[0]]
        (mine,) = [
            each.__self__ for each in server.on_tick if isinstance(getattr(each, "__self__", None), Server)
        ]
        LongWaits(server, SAID.append, mine.unfinished_rounds)
        cluster.create_vector(VectorSpec("sums", extent=10, aggregate=True))
        task = cluster.workers.start("push", {"alone": True})
        until = node.van.now() + 25.0
        node.wait_until(lambda: node.van.now() >= until)
        seen.append(waits.lines())
        cluster.workers.call("push", {"alone": False}, only=[1])
        node.wait(task)
        until = node.van.now() + 3.0
        node.wait_until(lambda: node.van.now() >= until)
        seen.append(waits.lines())

    simulate(schedule, Worker, workers=2, internals=internals, tick=0.05, horizon=90.0)
    asked = f"push of vector sums at {line('round=0)')}"
    assert f"rank 2 (worker 0) has waited 10 s for {asked}: no answer from rank 1 (server 0)" in SAID
    assert (
        "rank 1 (server 0) has waited 10 s for round 0 of vector sums: no push from rank 3 (worker 1)" in SAID
    )
    during, after = seen
    assert [each.split(" has ")[0] for each in during] == [
        "rank 1 (server 0)",
        "rank 2 (worker 0)",
    ]
    assert after == []


def test_a_run_of_long_calls_prints_few_messages() -> None:
    SAID.clear()

    def schedule(cluster: Cluster) -> None:
        LongWaits(cluster.node, SAID.append)
        for _ in range(5):
            cluster.workers.call("rest", {"seconds": 15.0})

    simulate(schedule, Worker, tick=0.05, horizon=200.0)
    (said,) = SAID
    assert said.startswith("rank 0 (scheduler 0) has waited 10 s for call of rest at ")
    assert said.endswith(": no answer from rank 2 (worker 0)") and line('call("rest"') in said


def test_the_first_wait_of_a_run_is_said_within_a_second_and_only_once() -> None:
    SAID.clear()
    seen: list[tuple[int, float]] = []

    def schedule(cluster: Cluster) -> None:
        LongWaits(
            cluster.node, lambda text: seen.append((SAID.append(text), cluster.node.van.now())), early=True
        )
        began = cluster.node.van.now()
        for _ in range(5):
            cluster.workers.call("rest", {"seconds": 3.0})
        seen.append((0, began))

    simulate(schedule, Worker, tick=0.05, horizon=60.0)
    (said,), ((_, at), (_, began)) = SAID, seen
    assert said.startswith("rank 0 (scheduler 0) waits for call of rest at ")
    assert said.endswith(": no answer from rank 2 (worker 0)") and at - began < 1.0


def test_finished_and_idle_ranks_report_no_wait() -> None:
    SAID.clear()

    def schedule(cluster: Cluster) -> list[str]:
        waits = LongWaits(cluster.node, SAID.append)
        until = cluster.node.van.now() + 30.0
        cluster.node.wait_until(lambda: cluster.node.van.now() >= until)
        with pytest.raises(RemoteError):
            cluster.workers.call("nothing of that name")
        return waits.lines()

    assert simulate(schedule, Worker, tick=0.05, horizon=60.0) == [] and not SAID
