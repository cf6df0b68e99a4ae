"""A table that grows and is evicted, saved after each step; `load_model` is its whole content."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpips import ALL, Model, VectorSpec, load_range

KEYS = np.sort(np.random.default_rng(5).integers(0, 2**64, 3000, np.uint64))
SPEC = VectorSpec("t", "float32", width=4, update="adagrad", settings={"alpha": 0.5})


@dataclass(frozen=True)
class Settings:
    """The number of steps, and a pause after each in seconds."""

    steps: int = 12
    pause: float = 0.0


def schedule(cluster: Any, settings: Settings) -> dict[str, Any]:
    """Push to fewer and fewer keys; report the digest of each step before it is saved."""
    state = cluster.restore() or {"step": 0}
    table = cluster.vector(SPEC)
    for step in range(state["step"], settings.steps):
        some = KEYS[step % 3 :: 1 + step]
        table.push(some, np.full((len(some), 4), 0.5 + step, np.float32)).result()
        if step % 4 == 3:
            cluster.evict(table, 2000, usage="n")
        cluster.event("pass", step=step + 1, sha=cluster.digest(table))
        if cluster.due(step + 1):
            cluster.checkpoint(step + 1, {"step": step + 1})
        cluster.coordinator.settle()
        time.sleep(settings.pause)
        if cluster.stopping():
            break
    return {"sha": cluster.digest(table)}


class Worker:
    """Does nothing: the scheduler pushes."""

    def __init__(self, context: Any) -> None:
        pass


class Table(Model):
    """The rows of the table."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def vectors(self) -> dict[str, Any]:
        """Return them."""
        return {"t": (self.rows.keys, self.rows.values)}


def load_model(source: Any, job: Any) -> Table:
    """Read a checkpoint."""
    return Table(load_range(source, "t", [ALL]))
