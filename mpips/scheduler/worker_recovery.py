"""Going on when workers are lost: what a program's schedule does around each step that counts on them.

A call to workers raises `WorkerLost` when one of them dies under way. The program then goes on with those who are
there: spares in the places of the lost, or fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpips.errors import WorkerLost
from mpips.scheduler.scheduler import Cluster

T = TypeVar("T")


def surely(cluster: Cluster, step: Callable[[], T], mend: Callable[[], object] | None = None) -> T:
    """Do a step with the workers; if one is lost in it, `mend` with those who are there then, and do it again."""
    lost = False
    while True:
        try:
            if lost and mend is not None:
                mend()
            return step()
        except WorkerLost:
            regroup(cluster)
            lost = True


def regroup(cluster: Cluster) -> None:
    """Go on with the workers that are there now. NoWorkerLeft if there is none, nor any spare."""
    first = cluster.workers.addresses
    cluster.regroup()
    now = cluster.workers.addresses
    gone, come = [each for each in first if each not in now], [each for each in now if each not in first]
    cluster.event("workers", gone=gone, come=come, workers=len(now))
    changes = [
        f"{', '.join(map(str, ranks))} {what}" for ranks, what in ((gone, "gone"), (come, "new")) if ranks
    ]
    cluster.say(f"workers: {len(now)} now ({'; '.join(changes) or 'as before'})")
