"""A program whose workers push the same keys repeatedly, with or without aggregation: see `replication`."""

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
    """Pushes of all keys by every worker."""
    keys: int = field(default=50_000, metadata={"at_least": 1})
    """Number of keys."""
    summed: bool = True
    """Whether the servers aggregate a round's pushes, and update (and replicate) once."""
    pulled: bool = False
    """Whether a push also pulls the updated values."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Push the rounds on all workers."""
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
    """Pushes integers, whose sums do not depend on the order."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self, rounds: int, summed: bool, pulled: bool) -> None:
        """Push all keys repeatedly, each after the last push is finished."""
        vector, node = self.context.vectors[VECTOR], self.context.node
        rows = np.arange(vector.spec.extent, dtype=np.float64) + self.context.index
        push = vector.push_pull if pulled else vector.push
        for number in range(rounds):
            keys = KeyRange(0, vector.spec.extent)
            node.wait(push(keys, rows, round=number if summed else NO_ROUND))
