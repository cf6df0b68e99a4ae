"""A program whose workers push the same keys again and again, summed or each by itself: see `replication`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.message import NO_ROUND
from mpips.worker.worker import Context

VECTOR = "sums"


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    rounds: int = field(default=50, metadata={"at_least": 1})
    """How often every worker pushes all keys."""
    keys: int = field(default=50_000, metadata={"at_least": 1})
    """How many keys there are."""
    summed: bool = True
    """Whether the servers sum a round's pushes, and update (and replicate) once."""
    pulled: bool = False
    """Whether a push also brings back what became of the keys."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Let the workers push their rounds."""
    cluster.create_vector(
        VectorSpec(VECTOR, extent=settings.keys, dense=True, aggregate=settings.summed), expect=settings.keys
    )
    with cluster.phase("train"):
        cluster.event("begun")
        how = {"rounds": settings.rounds, "summed": settings.summed, "pulled": settings.pulled}
        cluster.workers.call("push", how)
    pushes = settings.rounds * len(cluster.workers)
    return {"pushes": pushes, "rounds": settings.rounds, "keys": settings.keys}


class Worker:
    """Pushes whole numbers, whose sums are the same in any order."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self, rounds: int, summed: bool, pulled: bool) -> None:
        """Push all keys so many times, each when the last push is finished."""
        vector, node = self.context.vectors[VECTOR], self.context.node
        rows = np.arange(vector.spec.extent, dtype=np.float64) + self.context.index
        push = vector.push_pull if pulled else vector.push
        for number in range(rounds):
            keys = KeyRange(0, vector.spec.extent)
            node.wait(push(keys, rows, round=number if summed else NO_ROUND))
