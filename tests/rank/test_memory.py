"""Nothing that a cluster keeps grows with the number of its calls, views, moves, checkpoints or recoveries."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpips.bench._runs import process_messages
from mpips.cluster.view import View
from mpips.errors import WorkerLost
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import Message
from mpips.worker.worker import Context

# In a process of its own: other tests leave caches that grow here.
pytestmark = pytest.mark.long

CYCLES = 12
"""Cycles before the first measurement; then follow three times as many."""
SPAN = 8
"""Entries of the journal between two snapshots."""
GROWTH = 48_000
"""Bytes that may be added, of all ranks together: sets and caches that reach their bound, after 5 to 30 kB."""
OBJECTS = 60
"""Objects that may be added: entries of the journal. So a cycle of one kind adds less than two objects at all ranks."""
COUNTED = (View, Message, Task)
"""Objects that are counted."""


class Worker:
    """Pushes and pulls a few lists of keys again and again."""

    def __init__(self, context: Context) -> None:
        self.context = context
        rng = np.random.default_rng(context.node.rank)
        self._lists = [np.flatnonzero(rng.random(64) < 0.5).astype(np.uint64) for _ in range(3)]

    def go(self) -> None:
        vector, node = self.context.vectors["x"], self.context.node
        for keys in self._lists:
            node.wait(vector.push(keys, np.ones(len(keys), np.int64)))
            node.wait(vector.pull(keys))


class Grown:
    """Runs cycles of one kind on the scheduler, and measures what all ranks hold in between."""

    def __init__(self, cluster: Cluster, internals: Internals, cycle: Callable[[Grown], None]) -> None:
        self.cluster, self.internals, self.cycle, self.number = cluster, internals, cycle, 0

    def run(self) -> tuple[int, list[int], list[int]]:
        """Return the growth in bytes, and how many objects there were before and after it: of each kind, and all."""
        for _ in range(CYCLES):
            self._once()
        before, size = self._held()
        for _ in range(3 * CYCLES):
            self._once()
        after, now = self._held()
        return now - size, before, after

    def _once(self) -> None:
        self.number += 1
        cluster = self.cluster
        cluster.compact(lambda: {"number": self.number})
        self.cycle(self)
        self.settle()

    def _held(self) -> tuple[list[int], int]:
        """Return how many objects of each kind are held, and how many in all, and the bytes of all."""
        self.internals.published.clear()
        # This empties Python's lists of freed objects, too.
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        held = Counter(map(type, gc.get_objects()))
        return [*(held[kind] for kind in COUNTED), held.total()], size

    def settle(self) -> None:
        """Let what is under way arrive, and changes of chains end."""
        process_messages(self.cluster.node, 0.06)

    def work(self) -> None:
        """Let all workers push and pull."""
        while True:
            try:
                if self.cluster.renewed():
                    self.cluster.regroup()
                self.cluster.workers.call("go")
                return
            except WorkerLost:
                self.cluster.regroup()


def call(grown: Grown) -> None:
    grown.work()


def export(grown: Grown) -> None:
    for _ in grown.cluster.export(grown.cluster.vectors["x"]):
        pass


def checkpoint(grown: Grown) -> None:
    grown.cluster.checkpoint(grown.number, {})
    grown.settle()


def server(grown: Grown) -> None:
    membership = grown.cluster.membership
    rank = membership.join_server()
    grown.settle()
    membership.leave_server(rank)


def worker(grown: Grown) -> None:
    cluster = grown.cluster
    cluster.orders.joining += 1
    grown.work()
    grown.work()
    assert len(cluster.node.view.workers) == 3
    cluster.orders.leaving.add(cluster.node.view.workers[0])
    grown.work()
    grown.work()
    assert len(cluster.node.view.workers) == 2


@pytest.mark.parametrize("cycle", [call, export, checkpoint, server, worker])
def test_what_all_ranks_hold_does_not_grow_with(cycle: Callable[[Grown], None]) -> None:
    internals = Internals()

    def schedule(cluster: Cluster) -> tuple[int, list[int], list[int]]:
        cluster.checkpoints = cluster.folder.path / "checkpoints"
        cluster.create_vector(VectorSpec("x", dtype="int64", extent=1 << 20))
        return Grown(cluster, internals, cycle).run()

    tracemalloc.start()
    try:
        layout: dict[str, Any] = {
            "servers": 2,
            "workers": 2,
            "spares": 1,
            "replicas": 1,
            "virtual_servers": 1,
        }
        grown, before, after = simulate(
            schedule, Worker, **layout, internals=internals, compacted_every=SPAN, horizon=1e6, tick=5e-3
        )
    finally:
        tracemalloc.stop()
    views, messages, tasks, objects = (now - was for was, now in zip(before, after, strict=True))
    # Entries of the journal, at the leader and its two successors, are as many as since the last snapshot.
    assert views == tasks == 0 and messages <= 3 * SPAN
    assert grown < GROWTH and objects <= OBJECTS
