"""A program that pushes and pulls continuously while a server joins and another leaves: see `elastic`.

Every request has a few random keys, and the worker waits for it before the next one. A push adds 1 to each of its keys;
so the sums at the end are known, and a worker never pulls less than what it has pushed itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpips.bench._runs import process_messages
from mpips.cluster.hash_ring import moved
from mpips.cluster.view import NOBODY, View
from mpips.errors import MpipsError
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.worker.worker import Answer, Context, at_once

VECTOR = "counts"
NOTES = "requests.npy"
"""A file in the run's folder: f8[n, 4], (worker, PUSH or PULL, wall time of issue (s), latency (ns)) by request."""
PUSH, PULL = 0, 1
PIECE = 1 << 16
"""Keys of one push while the vector is initialized."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    keys: int = field(default=1_000_000, metadata={"at_least": 1})
    """Number of keys; each is pushed once before the measurement."""
    dtype: Literal["float32", "float64"] = "float64"
    """The type of their values."""
    batch: int = field(default=16, metadata={"at_least": 1})
    """Keys of one request."""
    pause: float = field(default=3.0, metadata={"above": 0.0})
    """Duration of requests before the join, after it, and after the leave, s."""


# --- The scheduler ---------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Make a server join and another leave while the workers continue; return times, and what each server held."""
    vector = cluster.create_vector(VectorSpec(VECTOR, settings.dtype, extent=settings.keys), settings.keys)
    cluster.workers.call("fill")
    work = cluster.workers.start("work", {"batch": settings.batch})
    first = cluster.decide(lambda: cluster.node.view.ring.servers[0])
    changes = [
        change(cluster, settings, cluster.membership.join_server, joins=True),
        change(cluster, settings, lambda: leave(cluster, first), joins=False),
    ]
    process_messages(cluster.node, settings.pause)
    end = cluster.decide(cluster.node.van.wall)
    cluster.workers.call("end")
    replies = cluster.node.wait(work)
    np.save(cluster.folder.path / NOTES, np.concatenate([reply.values for reply in replies]))
    failed = sum(reply.meta["failed"] for reply in replies)
    stale = sum(reply.meta["stale"] for reply in replies)
    errors = [error for reply in replies for error in reply.meta["errors"]]
    return {"changes": changes, "end": end, "failed": failed, "stale": stale, "errors": errors} | compare(
        cluster.export(vector), [rows[:, 0] for _, rows in cluster.workers.gather("counts")]
    )


def change(cluster: Cluster, settings: Settings, order: Callable[[], int], *, joins: bool) -> dict[str, Any]:
    """Order a server to join or leave, wait until all shards are at their owners; return the cost."""
    process_messages(cluster.node, settings.pause)
    node = cluster.node
    before, accounts = cluster.decide(lambda: list(node.view.ring.slots)), hosts(cluster)
    begin = cluster.decide(node.van.wall)
    rank = cluster.decide(order)
    node.wait_until(lambda: (rank in node.view.ring.servers) is joins and is_rebalanced(cluster))
    end = cluster.decide(node.van.wall)
    later = hosts(cluster)
    old = type(node.view.ring)(tuple(before), node.view.ring.virtual_servers)
    shards = cluster.decide(lambda: moved(old, node.view.ring))
    return {
        "joins": joins,
        "rank": rank,
        "begin": begin,
        "end": end,
        "keys_before": {str(each): account["keys"] for each, account in accounts.items()},
        "keys_after": {str(each): account["keys"] for each, account in later.items()},
        "shards": old.shards,
        "shards_moved": shards,
        "keys_of_shards_moved": sum(old.range(shard, settings.keys).span for shard in shards),
        "received": {
            str(each): account["received"] - accounts.get(each, {"received": 0})["received"]
            for each, account in later.items()
        },
    }


def leave(cluster: Cluster, rank: int) -> int:
    """Make a server leave; return its rank."""
    cluster.membership.leave_server(rank)
    return rank


def hosts(cluster: Cluster) -> dict[int, dict[str, Any]]:
    """Return what each server holds and has received, by rank."""
    group = cluster.hosts
    return dict(zip(group.addresses, group.call("account"), strict=True))


def is_rebalanced(cluster: Cluster) -> bool:
    """Return whether every shard is held by its owners in the ring, and no transfer is in progress."""
    return is_settled(cluster.node.view, cluster.membership.replicas)


def is_settled(view: View, replicas: int) -> bool:
    """Return whether all chains of a view are as in its ring."""
    return all(
        chain.learner == NOBODY and not chain.closing and chain.members == view.ring.holders(shard, replicas)
        for shard, chain in enumerate(view.chains)
    )


def compare(exported: Any, counts: list[NDArray[Any]]) -> dict[str, int]:
    """Compare the servers' sums with the workers' pushes: updates, and those that were lost or applied twice."""
    wanted = np.sum(counts, axis=0)
    found = np.zeros_like(wanted)
    for keys, rows in exported:
        found[keys.astype(np.int64)] = rows[:, 0]
    excess = found - wanted
    return {
        "updates": int(wanted.sum()),
        "lost": int(-excess[excess < 0].sum()),
        "doubled": int(excess[excess > 0].sum()),
    }


# --- The worker ------------------------------------------------------------------------------------------


class Worker:
    """Pushes and pulls, one request at a time, until `end` is called."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._ending = False
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._notes: list[tuple[int, int, float, int]] = []
        self._errors: list[str] = []

    def fill(self) -> None:
        """Push every key of this worker's part once."""
        vector = self.context.vectors[VECTOR]
        extent, index, count = vector.spec.extent, self.context.index, self.context.count
        self._counts = np.zeros(extent, np.int64)
        begin, end = extent * index // count, extent * (index + 1) // count
        for at in range(begin, end, PIECE):
            piece = KeyRange(at, min(at + PIECE, end))
            self.node.wait(vector.push(piece, np.ones(piece.span, vector.spec.dtype)))
        self._counts[begin:end] = 1

    def work(self, batch: int) -> Answer:
        """Send requests until `end` is called; return the time of issue and the latency of each."""
        vector = self.context.vectors[VECTOR]
        rng = np.random.default_rng(self.context.index)
        ones = np.ones(batch, vector.spec.dtype)
        stale = 0
        while not self._ending:
            keys = np.unique(rng.integers(0, vector.spec.extent, batch, dtype=np.uint64))
            if self._ask(PUSH, partial(vector.push, keys, ones[: len(keys)])) is not None:
                self._counts[keys] += 1
            pull = self._ask(PULL, partial(vector.pull, keys))
            if pull is not None:
                stale += int((pull.result() < self._counts[keys]).sum())
        notes = np.array(self._notes, np.float64).reshape(-1, 4)
        errors = self._errors
        return Answer({"failed": len(errors), "stale": stale, "errors": errors[:10]}, notes)

    def _ask(self, kind: int, issue: Callable[[], Task]) -> Task | None:
        """Issue a request, wait for it, and record its latency; None if it failed."""
        wall, begin = self.node.van.wall(), perf_counter_ns()
        try:
            task = issue()
            self.node.wait(task)
        except MpipsError as error:
            self._errors.append(str(error))
            return None
        self._notes.append((self.context.index, kind, wall, perf_counter_ns() - begin))
        return task

    @at_once
    def end(self) -> None:
        """End after the current request."""
        self._ending = True

    def counts(self) -> Answer:
        """Return the number of pushes of each key by this worker, i8[keys, 1]."""
        return Answer(None, self._counts[:, None])
