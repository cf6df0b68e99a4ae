"""A program whose worker pushes and pulls while it computes, and does each alone: see `overlap`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench.requests._pushpull import BOARD, DTYPE, MODES, Mode, Op, random_keys
from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.worker.key_list import Keys
from mpips.worker.worker import Context

CELLS = "cells.json"
"""A file in the run's folder: [{mode, op, keys, and seconds by KINDS}]."""
KINDS = ("sync", "alone", "alone_pieces", "async", "async_pieces")
"""The alternating measurements: a request alone, computation alone, both; the last two in one piece and in several."""
REPEATED: tuple[Mode, ...] = ("dense", "cached")
"""The modes whose requests can be repeated: a list is new only once, and a round is one of all workers."""
OWN = 4096
"""Size of the array that the worker computes on, which fits into its core's cache."""
LEAST = 2e-3
"""Minimum duration of the computation, s."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    keys: int = field(default=1_000_000, metadata={"at_least": 1})
    """Keys of a request."""
    repeats: int = field(default=40, metadata={"at_least": 2})
    """Repetitions of everything."""
    longer: float = field(default=4.0, metadata={"above": 0.0})
    """Duration of the computation relative to a request."""
    pieces: int = field(default=20, metadata={"at_least": 1})
    """Pieces of the computation, with a poll between two of them."""


@kernel("void(f8[::1], i8)")
def compute(own: NDArray[np.float64], passes: int) -> None:
    """Do plain arithmetic on a small array."""
    for _ in range(passes):
        for i in range(len(own)):
            own[i] = 0.999 * own[i] + 0.001


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Measure each mode and operation on the worker."""
    cluster.create_vector(VectorSpec(BOARD, DTYPE, extent=len(cluster.servers), dense=True))
    cells = []
    with cluster.phase("train"):
        for mode in REPEATED:
            dense = mode == "dense"
            spec = VectorSpec(mode, DTYPE, extent=settings.keys if dense else 2**64, dense=dense)
            cluster.create_vector(spec, settings.keys * len(cluster.workers))
            for op in MODES[mode]:
                how: dict[str, Any] = {"mode": mode, "op": op, "keys": settings.keys}
                how |= {name: getattr(settings, name) for name in ("repeats", "longer", "pieces")}
                for times in cluster.workers.call("measure", how):
                    cells.append({"mode": mode, "op": op, "keys": settings.keys, **times})
    (cluster.folder.path / CELLS).write_text(json.dumps(cells))
    return {"cells": len(cells)}


class Worker:
    """Measures."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._own = np.ones(OWN)

    def measure(
        self, mode: Mode, op: Op, keys: int, repeats: int, longer: float, pieces: int
    ) -> dict[str, list[float]]:
        """Measure one mode and operation; return the seconds of each repetition, by KINDS."""
        vector = self.context.vectors[mode]
        names: Keys = KeyRange(0, keys)
        if mode == "cached":
            names = vector.key_list(random_keys(np.random.default_rng(keys), keys))
        rows = np.ones(keys, DTYPE)
        self.node.wait(vector.push(names, rows))
        request = partial(vector.push, names, rows) if op == "push" else partial(vector.pull, names)
        passes = self._passes(request, longer, pieces)
        whole, parts = [pieces * passes], [passes] * pieces
        does: dict[str, Callable[[], None]] = {
            "sync": lambda: self._sync(request),
            "alone": lambda: self._compute(whole),
            "alone_pieces": lambda: self._compute(parts),
            "async": lambda: self._both(request, whole),
            "async_pieces": lambda: self._both(request, self.node.poll_between(parts)),
        }
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(repeats):
            for at in range(len(KINDS)):
                kind = KINDS[(at + number) % len(KINDS)]
                times[kind].append(self._timed(does[kind]))
        return times

    def _passes(self, request: Callable[[], Task], longer: float, pieces: int) -> int:
        """Find the passes of a piece such that all pieces take the given multiple of a request's time."""
        took = min(self._timed(lambda: self._sync(request)) for _ in range(10))
        a_pass = min(self._timed(lambda: self._compute([100])) for _ in range(10)) / 100
        return max(1, round(max(longer * took, LEAST) / pieces / a_pass))

    def _timed(self, do: Callable[[], None]) -> float:
        """Time a function while the server is awake: it has just answered."""
        board = self.context.vectors[BOARD]
        self.node.wait(board.pull(KeyRange(0, board.spec.extent)))
        begin = perf_counter()
        do()
        return perf_counter() - begin

    def _sync(self, request: Callable[[], Task]) -> None:
        self.node.wait(request())

    def _compute(self, parts: Iterable[int]) -> None:
        for passes in parts:
            compute(self._own, passes)

    def _both(self, request: Callable[[], Task], parts: Iterable[int]) -> None:
        task = request()
        self._compute(parts)
        self.node.wait(task)
