"""A program whose workers push and pull for a given time, and record when each round was answered: see `overload`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.worker.worker import Answer, Context

VECTOR, KEYS = "counts", 1000
OUTSTANDING = 1000
"""Unanswered pushes of a flooding worker: many times the limit of requests in flight."""
DONE = "done.npy"
"""A file in the run's folder: f8[n], the times of answers of all workers' rounds (wall, s)."""


@dataclass(frozen=True)
class Settings:
    """The program's table; times are seconds from the start."""

    seconds: float = field(default=30.0, metadata={"above": 0.0})
    """Duration."""
    flood_begin: float = field(default=20.0, metadata={"at_least": 0.0})
    """When the last worker starts to push without waiting."""
    flood_end: float = field(default=25.0, metadata={"at_least": 0.0})
    """When the last worker stops it."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Run the workers; return the number of pushes, and whether each was applied once."""
    vector = cluster.create_vector(VectorSpec(VECTOR, "float64", extent=KEYS, dense=True), KEYS)
    begun = cluster.decide(time.time)
    cluster.event("begun")
    with cluster.phase("train"):
        flood = [begun + settings.flood_begin, begun + settings.flood_end]
        work = cluster.workers.start("work", {"until": begun + settings.seconds, "flood": flood})
        replies = cluster.node.wait(work)
    done = [reply.values.reshape(-1) for reply in replies if reply.values is not None]
    np.save(cluster.folder.path / DONE, np.sort(np.concatenate(done)))
    pushes = sum(reply.meta["pushes"] for reply in replies)
    rows = cluster.node.wait(vector.pull(KeyRange(0, KEYS)))
    return {"begun": begun, "pushes": pushes, "lost": int(np.abs(rows - pushes).max())}


class Worker:
    """Adds 1 to all keys repeatedly."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def work(self, until: float, flood: list[float]) -> Answer:
        """Push and pull, each round after the answer of the last one; while it floods, the last worker rarely waits."""
        vector, node, keys = self.context.vectors[VECTOR], self.context.node, KeyRange(0, KEYS)
        ones, done, pushes = np.ones(KEYS), list[float](), 0
        flooding: deque[Task] = deque()
        floods = self.context.index == self.context.count - 1
        while (now := time.time()) < until:
            pushes += 1
            if floods and flood[0] <= now < flood[1]:
                flooding.append(vector.push(keys, ones))
                if len(flooding) > OUTSTANDING:
                    node.wait(flooding.popleft())
                continue
            node.wait_all(flooding)
            flooding.clear()
            node.wait(vector.push_pull(keys, ones))
            done.append(time.time())
        return Answer({"pushes": pushes}, np.array(done, np.float64)[:, None])
