"""A program that pushes for hours, and checks all counts on the servers every few steps: see `soak`.

Every worker pushes ones to keys of its own. When a step is over, all its pushes are answered, so the value of each key
is known exactly: of a worker that is lost, it is at least the number of pushes that were answered, and at most that of
the issued ones, which it keeps in a file that it maps into memory. A checkpoint has these bounds as its state, so that
the next start of the run, a *leg*, compares them with what was restored.
"""

from __future__ import annotations

from collections import deque
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

VECTOR = "counts"
EXTENT = 1 << 40
KEYS = 16
"""Keys of a worker, evenly over the key space."""
LEG = 1 << 16
"""Keys of a leg: one for each rank."""
LISTS = 8
"""Different lists of keys that a worker pushes: ranks cache lists, up to a bound that hours would not reach."""
WINDOW = 8
"""Unanswered pushes of a worker."""
CHECKED_EVERY = 10
"""Steps between two checks."""
BEGUN = 3
"""Steps after which faults may begin."""
ENOUGH = "enough"
"""A file in the run's folder that ends the run."""
COUNTS = "counts-{}-{}.npy"
"""A worker's file in the run's folder, of a leg: i8[3, KEYS], for each key itself, its issued and answered pushes."""

Bounds = dict[int, tuple[int, int]]
"""The smallest and the largest value that a key may have."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    leg: int = field(default=0, metadata={"at_least": 0})
    """The number of this start."""
    beat: float = field(default=0.2, metadata={"above": 0.0})
    """Duration of a step, s."""
    pause: float = field(default=0.01, metadata={"at_least": 0.0})
    """Pause of a worker after each push, s."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Push until there is enough, or the run is stopped; return the outcome of all checks of this leg."""
    return _Soak(cluster, settings).run()


class _Soak:
    """The scheduler's part."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster, self._settings = cluster, settings
        self._step = 0
        # Whether a worker was lost, and not replaced yet.
        self._lost = False
        self._known: Bounds = {}
        """Of keys whose worker is not there any more, and of all at the last check."""
        self._found = {"checks": 0, "updates": 0, "lost": 0, "doubled": 0, "stale": 0}

    def run(self) -> dict[str, Any]:
        cluster, enough = self._cluster, self._cluster.folder.path / ENOUGH
        self._restore()
        while True:
            if (later := cluster.compact(self._state)) is not None:
                self._take(later)
            try:
                if self._lost or cluster.renewed():
                    cluster.regroup()
                    self._lost = False
                self._work()
                if cluster.due(self._step):
                    self._check()
                    cluster.checkpoint(self._step, self._state())
                if cluster.stopping() or cluster.decide(enough.exists):
                    self._check()
                    return self._found
            except WorkerLost:
                self._lost = True

    def _restore(self) -> None:
        state = self._cluster.restore()
        if state is None:
            self._cluster.create_vector(VectorSpec(VECTOR, dtype="int64", extent=EXTENT))
            return
        self._take(state)
        self._found = dict.fromkeys(self._found, 0)
        self._check()

    def _state(self) -> dict[str, Any]:
        known = [[key, *bounds] for key, bounds in self._known.items()]
        return {"step": self._step, "known": known, "found": dict(self._found), "lost": self._lost}

    def _take(self, state: dict[str, Any]) -> None:
        self._step, self._found, self._lost = state["step"], dict(state["found"]), state["lost"]
        self._known = {key: (low, high) for key, low, high in state["known"]}

    def _work(self) -> None:
        cluster, settings = self._cluster, self._settings
        args: dict[str, Any] = {"seconds": settings.beat, "pause": settings.pause, "leg": settings.leg}
        args["folder"] = str(cluster.folder.path)
        for answer in cluster.workers.call("push", args):
            self._found["stale"] += answer["stale"]
        self._step += 1
        if self._step % CHECKED_EVERY == 0:
            self._check()

    def _check(self) -> None:
        """Compare all values with the workers' counts. No push is unanswered, other than those of lost workers."""
        cluster, leg = self._cluster, self._settings.leg
        counts = cluster.workers.gather("counts")
        values: dict[int, int] = {}
        for keys, rows in cluster.export(cluster.vectors[VECTOR]):
            values.update(zip(keys.tolist(), rows[:, 0].tolist(), strict=True))

        def judged() -> dict[str, Any]:
            bounds = self._known | bounds_of(kept_counts(cluster.folder.path, leg))
            for keys, rows in counts:
                bounds |= {key: (n, n) for key, n in zip(keys.tolist(), rows[:, 0].tolist(), strict=True)}
            lost, doubled, known = judge(values, bounds)
            return {"lost": lost, "doubled": doubled, "known": known, "updates": sum(values.values())}

        # A successor that repeats this step exports later values: it takes what was found.
        found = cluster.decide(judged)
        self._known = {key: (low, high) for key, low, high in found["known"]}
        self._found["checks"] += 1
        self._found["updates"] = found["updates"]
        self._found["lost"] += found["lost"]
        self._found["doubled"] += found["doubled"]
        cluster.event("check", leg=leg, step=self._step, **self._found)


def kept_counts(folder: Path, leg: int) -> list[NDArray[np.int64]]:
    """Read the files of all workers of a leg; one that was lost while it created its file has pushed nothing."""
    found = []
    for path in folder.glob(COUNTS.format(leg, "*")):
        with suppress(OSError, ValueError, EOFError):
            found.append(np.load(path))
    return found


def bounds_of(kept: Iterable[NDArray[np.int64]]) -> Bounds:
    """Return the bounds of the keys in workers' files."""
    return {key: (answered, issued) for array in kept for key, issued, answered in array.T.tolist()}


def judge(values: dict[int, int], bounds: Bounds) -> tuple[int, int, list[list[int]]]:
    """Compare values with their bounds; return how many updates were lost and doubled, and the bounds from now on.

    >>> judge({1: 5, 2: 7, 9: 1}, {1: (5, 5), 2: (3, 8), 3: (2, 2)})
    (2, 1, [[1, 5, 5], [2, 7, 8], [3, 2, 2]])
    """
    lost = sum(max(0, low - values.get(key, 0)) for key, (low, _) in bounds.items())
    doubled = sum(max(0, value - bounds.get(key, (0, 0))[1]) for key, value in values.items())
    known = [[key, max(low, min(values.get(key, 0), high)), high] for key, (low, high) in bounds.items()]
    return lost, doubled, known


class Worker:
    """Pushes ones to its keys."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._counts: NDArray[np.int64] | None = None
        self._rng = np.random.default_rng(context.node.rank)
        self._lists = [np.flatnonzero(self._rng.random(KEYS) < 0.5) for _ in range(LISTS)]

    def push(self, seconds: float, pause: float, leg: int, folder: str) -> dict[str, int]:
        """Push for some time; return by how much the values that it reads then differ from its counts."""
        counts = self._opened(folder, leg)
        vector, keys, ones = (
            self.context.vectors[VECTOR],
            counts[0].astype(np.uint64),
            np.ones(KEYS, np.int64),
        )
        flying: deque[tuple[Task, NDArray[np.int64]]] = deque()
        until = self.node.van.now() + seconds
        while self.node.van.now() < until:
            some = self._lists[self._rng.integers(LISTS)]
            counts[1, some] += 1
            flying.append((vector.push(keys[some], ones[: len(some)]), some))
            if len(flying) >= WINDOW:
                self._settle(*flying.popleft())
            process_messages(self.node, pause)
        while flying:
            self._settle(*flying.popleft())
        read = self.node.wait(vector.pull(keys)).reshape(-1)
        return {"stale": int(np.abs(read - counts[2]).sum())}

    def _settle(self, task: Task, some: NDArray[np.int64]) -> None:
        assert self._counts is not None
        self.node.wait(task)
        self._counts[2, some] += 1

    def _opened(self, folder: str, leg: int) -> NDArray[np.int64]:
        """Return the mapped file of this rank; a rank that is a worker again goes on with it."""
        if self._counts is None:
            path = Path(folder, COUNTS.format(leg, self.node.rank))
            if path.exists():
                self._counts = open_memmap(path, "r+")
            else:
                self._counts = open_memmap(path, "w+", np.int64, (3, KEYS))
                self._counts[0] = np.arange(KEYS) * (EXTENT // KEYS) + leg * LEG + self.node.rank
        return self._counts

    def counts(self) -> Answer:
        """Return the number of answered pushes of each key."""
        if self._counts is None:
            return Answer(None, np.zeros((0, 1), np.int64), np.zeros(0, np.uint64))
        return Answer(None, self._counts[2][:, None].copy(), self._counts[0].astype(np.uint64))
