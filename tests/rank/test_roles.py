"""A rank that changes its role removes the callbacks of the former role, and frees its data."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np

from mpips.calls import BuiltInCall
from mpips.cluster.layout import Role
from mpips.cluster.node import Node
from mpips.cluster.observer import Observers
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.worker.worker import Context, at_once

CHANGES = 4
KEYS = np.arange(8, dtype=np.uint64)
SHARE: list[ref[Any]] = []


class Worker:
    """A worker whose share of the data is watched."""

    def __init__(self, context: Context) -> None:
        self.context, self.share = context, np.ones(1000)
        SHARE.append(ref(self.share))

    def go(self) -> float:
        self.context.vectors["sums"].push(KEYS, np.ones(8)).result()
        return float(self.share.sum())

    def rest(self, seconds: float) -> None:
        node = self.context.node
        until = node.van.now() + seconds
        node.wait_until(lambda: node.van.now() >= until)

    def state(self) -> dict[str, Any]:
        return {"share": self.share}

    @at_once
    def ping(self) -> None:
        """Push, and be answered when the push is done."""
        self.context.vectors["sums"].push(KEYS, np.ones(8))


def registered(node: Node) -> dict[str, int]:
    """Count what is registered with a node, by kind."""
    counts = {f"observers.{each.name}": getattr(node.observers, each.name) for each in fields(Observers)}
    callbacks = {name: len(them) for name, them in counts.items() if isinstance(them, tuple)}
    kinds = {
        "handlers": node.handlers,
        "controls": node.controls,
        "ticks": node.on_tick,
        "views": node.on_view,
    }
    return callbacks | {name: len(them) for name, them in kinds.items()}


def change(cluster: Cluster, rank: int) -> None:
    """Let a worker leave, and then join again: it is the only spare."""
    cluster.orders.leaving.add(rank)
    cluster.regroup()
    assert rank not in cluster.workers.addresses and cluster.node.view.roles[rank] is Role.SPARE
    cluster.workers.call("go")
    cluster.orders.joining += 1
    assert cluster.regroup().joined == (rank,)
    cluster.workers.call("go")
    cluster.workers.call("ping")


def test_a_rank_that_changes_its_role_keeps_nothing_of_the_former_one() -> None:
    SHARE.clear()
    internals, rank = Internals(), 4
    seen: list[tuple[dict[str, int], dict[str, int]]] = []

    def both() -> Iterator[dict[str, int]]:
        yield registered(internals.nodes[rank])
        yield registered(internals.nodes[1])

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("sums", extent=8))
        for _ in range(CHANGES):
            change(cluster, rank)
            worker, server = both()
            seen.append((worker, server))
        gc.collect()
        assert sum(share() is not None for share in SHARE) == 3, "of the present workers only"

    simulate(schedule, Worker, workers=3, internals=internals)
    assert len(SHARE) == 3 + CHANGES
    assert seen == [seen[0]] * CHANGES


def test_a_rank_that_leaves_and_joins_again_within_one_call_continues_as_a_new_worker() -> None:
    SHARE.clear()

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("sums", extent=8))
        rank = cluster.workers.addresses[-1]
        resting = cluster.workers.start("rest", {"seconds": 1.0}, only=[2])
        cluster.orders.leaving.add(rank)
        cluster.regroup()
        cluster.orders.joining += 1
        # It executes the call to create vectors once it has ended the other one.
        assert cluster.regroup().joined == (rank,)
        cluster.workers.call("go")
        resting.result()

    simulate(schedule, Worker, workers=3)
    assert len(SHARE) == 4, "a new worker, since the former one has lost its state"


def test_a_rank_answers_for_its_snapshot_in_another_role(tmp_path: Path) -> None:
    def schedule(cluster: Cluster) -> tuple[Any, Any]:
        cluster.create_vector(VectorSpec("sums", extent=8))
        rank = cluster.workers.addresses[-1]
        (tmp_path / "snapshot").mkdir()
        cluster.workers.call(BuiltInCall.SNAPSHOT, {"folder": str(tmp_path / "snapshot")})
        cluster.orders.leaving.add(rank)
        cluster.regroup()
        assert cluster.node.view.roles[rank] is Role.SPARE
        return cluster.some([rank]).call(BuiltInCall.WRITTEN), cluster.workers.call(BuiltInCall.WRITTEN)

    (spare,), workers = simulate(schedule, Worker, workers=3)
    assert spare.keys() == workers[0].keys() and spare["bytes"] == workers[0]["bytes"]
