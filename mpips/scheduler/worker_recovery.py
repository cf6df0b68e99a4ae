"""Recovery from the loss of workers: how a program's schedule runs each step that calls workers.

A call to workers raises `WorkerLost` when one of them dies during it. The program then continues with the present
workers: spares in the places of the lost, or fewer workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mpips.errors import WorkerLost
from mpips.scheduler.scheduler import Cluster

T = TypeVar("T")


def retry_on_loss(cluster: Cluster, step: Callable[[], T], recover: Callable[[], object] | None = None) -> T:
    """Run a step that calls workers; if one is lost, call `recover` with the present workers, and repeat the step.

    >>> from mpips import simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         pass
    ...
    ...     def train(self):
    ...         return {"loss": 0.5}
    >>> def schedule(cluster):
    ...     train = lambda: cluster.workers.call("train")
    ...     return retry_on_loss(cluster, train, recover=lambda: cluster.say("load it again"))
    >>> simulate(schedule, Worker, workers=2)
    [{'loss': 0.5}, {'loss': 0.5}]
    """
    lost = False
    while True:
        try:
            if lost and recover is not None:
                recover()
            return step()
        except WorkerLost:
            regroup(cluster)
            lost = True


def regroup(cluster: Cluster) -> None:
    """Continue with the present workers. NoWorkerLeft if there is no worker and no spare.

    >>> from mpips import simulate
    >>> def schedule(cluster):
    ...     try:
    ...         return cluster.workers.call("train")
    ...     except WorkerLost:
    ...         regroup(cluster)
    ...         return cluster.workers.call("train")
    >>> class Worker:
    ...     def __init__(self, context):
    ...         pass
    ...
    ...     def train(self):
    ...         return {"loss": 0.5}
    >>> simulate(schedule, Worker)
    [{'loss': 0.5}]
    """
    first = cluster.workers.addresses
    cluster.regroup()
    now = cluster.workers.addresses
    gone, come = [each for each in first if each not in now], [each for each in now if each not in first]
    cluster.event("workers", gone=gone, come=come, workers=len(now))
    changes = [
        f"{', '.join(map(str, ranks))} {what}" for ranks, what in ((gone, "gone"), (come, "new")) if ranks
    ]
    cluster.say(f"workers: {len(now)} now ({'; '.join(changes) or 'as before'})")
