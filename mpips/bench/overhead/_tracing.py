"""A program whose worker sends one request after another: see `trace`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.worker.worker import Context

CELLS = "cells.json"
"""A file in the run's folder: seconds of a request in each block, by kind of request."""
LOOPS = ("push 1 key", "pull 1,000 keys", "push_pull 1,000 keys, summed")
"""The first two use the fast path if there is one copy, the last one never."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    blocks: int = field(default=40, metadata={"at_least": 1})
    """Blocks of requests; each is timed."""
    requests: int = field(default=1000, metadata={"at_least": 1})
    """Requests of a block."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Measure each loop on the workers."""
    for name, summed in (("plain", False), ("summed", True)):
        spec = VectorSpec(name, "float32", extent=1000, dense=True, aggregate=summed)
        cluster.create_vector(spec)
    with cluster.phase("train"):
        how = {"blocks": settings.blocks, "requests": settings.requests}
        cells = {loop: cluster.workers.call("measure", {"loop": loop, **how})[0]["seconds"] for loop in LOOPS}
    (cluster.folder.path / CELLS).write_text(json.dumps(cells))
    return {"loops": len(cells)}


class Worker:
    """Measures."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._round = 0

    def measure(self, loop: str, blocks: int, requests: int) -> dict[str, list[float]]:
        """Return the seconds of a request in each block."""
        ask = self._asker(loop)
        found = []
        for _ in range(blocks + 1):
            begin = perf_counter()
            for _ in range(requests):
                self.node.wait(ask())
            found.append((perf_counter() - begin) / requests)
        return {"seconds": found[1:]}

    def _asker(self, loop: str) -> Callable[[], Task]:
        plain, summed = (self.context.vectors[name] for name in ("plain", "summed"))
        if loop == LOOPS[0]:
            return partial(plain.push, KeyRange(0, 1), np.ones(1, np.float32))
        if loop == LOOPS[1]:
            return partial(plain.pull, KeyRange(0, 1000))
        rows = np.ones(1000, np.float32)

        def ask() -> Task:
            self._round += 1
            return summed.push_pull(KeyRange(0, 1000), rows, round=self._round - 1)

        return ask
