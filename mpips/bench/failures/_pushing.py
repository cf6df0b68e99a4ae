"""A program that pushes to every shard continuously, and records when each push was answered: see `_processes`.

Every worker pushes 1 to a key of its own in every shard, again as soon as the last push was answered. At the end the
value of each key must be the number of those pushes, which is known exactly. A worker that is lost leaves its counts in
a file that it maps into memory: what was answered must be there, and no more than was issued.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from mpips.bench._runs import process_messages
from mpips.errors import WorkerLost
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.worker.worker import Answer, Context

EXTENT = 1 << 40
VECTOR = "counts"
ANSWERS = "answers.npy"
ENOUGH = "enough"
"""A file in the run's folder that ends the pushes."""
BEGUN = 10
"""Calls after which the run's `metrics.jsonl` records the start of pushes."""
COUNTS = "counts-{}.npy"
"""A worker's file in the run's folder: i8[3, n], for each of its keys the key and its issued and answered pushes."""
CALLS = -1
"""The shard number of records of calls by the scheduler."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    seconds: float = field(default=10.0, metadata={"above": 0.0})
    """Maximum duration of pushes, s."""
    beat: float = field(default=0.02, metadata={"above": 0.0})
    """Duration of one call of the workers, s."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Push on all workers for the given time; compare the values on the servers with the workers' counts."""
    lost, again, step, enough = 0, False, 0, cluster.folder.path / ENOUGH
    until = cluster.decide(lambda: cluster.node.van.wall() + settings.seconds)
    while True:
        try:
            if (lost and again) or cluster.renewed():
                cluster.regroup()
            again = False
            if VECTOR not in cluster.vectors:
                cluster.create_vector(VectorSpec(VECTOR, dtype="int64", extent=EXTENT))
            cluster.workers.call("push", {"seconds": settings.beat, "folder": str(cluster.folder.path)})
            step += 1
            if step == BEGUN:
                cluster.event("begun")
            if cluster.decide(lambda: cluster.node.van.wall() >= until or enough.exists()):
                counts = cluster.workers.gather("end")
                _keep_answers(cluster)
                break
        except WorkerLost:
            lost, again = lost + 1, True
    vector = cluster.vectors[VECTOR]
    found: dict[int, int] = {}
    for keys, rows in cluster.export(vector):
        found.update(zip(keys.tolist(), rows[:, 0].tolist(), strict=True))
    return {"steps": step, "workers_lost": lost, **judge(found, counts, kept_counts(cluster.folder.path))}


def _keep_answers(cluster: Cluster) -> None:
    """Write the workers' records of answers to the run's folder."""
    parts = [rows for _, rows in cluster.workers.gather("records")]
    np.save(cluster.folder.path / ANSWERS, np.concatenate(parts))


def kept_counts(folder: Path) -> list[NDArray[np.int64]]:
    """Read the files of all workers; one that was lost while it created its file has pushed nothing."""
    found = []
    for path in folder.glob(COUNTS.format("*")):
        with suppress(OSError, ValueError, EOFError):
            found.append(np.load(path))
    return found


def judge(
    found: dict[int, int], counts: list[tuple[Any, Any]], kept: Iterable[NDArray[np.int64]] = ()
) -> dict[str, Any]:
    """Compare the servers' values with the counts of the workers at the end, and of lost ones, which `kept` them."""
    left, wrong = dict(found), {"lost": 0, "doubled": 0}
    updates = 0
    for keys, rows in counts:
        for key, pushed in zip(keys.tolist(), rows[:, 0].tolist(), strict=True):
            count = left.pop(key, 0)
            updates += pushed
            wrong["lost"] += max(0, pushed - count)
            wrong["doubled"] += max(0, count - pushed)
    present = {key for keys, _ in counts for key in keys.tolist()}
    for key, issued, answered in (row for array in kept for row in array.T.tolist()):
        if key not in present:
            count = left.pop(key, 0)
            updates += answered
            wrong["lost"] += max(0, answered - count)
            wrong["doubled"] += max(0, count - issued)
    return {"updates": updates, "others": sum(left.values()), **wrong}


class Worker:
    """Pushes until it is stopped, independently of the scheduler."""

    def __init__(self, context: Context) -> None:
        self.node, self.context = context.node, context
        self.shards: list[int] = []
        self._keys: NDArray[np.uint64] = np.empty(0, np.uint64)
        # As in `COUNTS`.
        self._kept: NDArray[np.int64] = np.empty((3, 0), np.int64)
        self._under_way: dict[int, float] = {}
        self._one = np.ones(1, np.int64)
        self._ends = False
        self.answers: list[tuple[int, int, float, float]] = []
        """(shard, its primary then, when a push was issued, when it was answered): wall, s."""

    def push(self, seconds: float, folder: str) -> None:
        """Start to push, for at least the given time; `folder`: the run's."""
        now = self.node.van.wall()
        self.answers.append((CALLS, self.node.view.leader, now, now))
        if not self.shards:
            ring = self.node.view.ring
            ranges = {shard: ring.range(shard, EXTENT) for shard in range(ring.shards)}
            self.shards = [shard for shard, range_ in ranges.items() if range_.span > self.node.rank]
            self._keys = np.array([ranges[each].begin + self.node.rank for each in self.shards], np.uint64)
            path = Path(folder, COUNTS.format(self.node.rank))
            self._kept = open_memmap(path, "w+", np.int64, (3, len(self.shards)))
            self._kept[0] = self._keys
            self.node.on_tick.append(self._tick)
        process_messages(self.node, seconds)

    def _tick(self) -> None:
        if not self._ends:
            for at in range(len(self.shards)):
                if at not in self._under_way:
                    self._push(at)

    def _push(self, at: int) -> None:
        vector = self.context.vectors[VECTOR]
        issued = self._under_way[at] = self.node.van.wall()
        self._kept[1, at] += 1
        shard = self.shards[at]

        def answered(task: Task) -> None:
            if task.error is None:
                self._kept[2, at] += 1
                primary = self.node.view.rank_of(~shard)
                self.answers.append((shard, primary, issued, self.node.van.wall()))
            del self._under_way[at]

        task = vector.push(self._keys[at : at + 1], self._one)
        # Else a call would end only when none of them is unanswered, which on a loaded machine never happens.
        task.handled = True
        task.then(answered)

    def end(self) -> Answer:
        """Stop; return the number of pushes of each key."""
        self._ends = True
        self.node.wait_until(lambda: not self._under_way)
        order = np.argsort(self._keys)
        return Answer(None, self._kept[2, order][:, None], self._keys[order])

    def records(self) -> Answer:
        """Return all answers, as f8[n, 4]."""
        return Answer(None, np.array(self.answers, np.float64).reshape(-1, 4))
