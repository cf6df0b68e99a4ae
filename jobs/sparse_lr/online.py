"""The online learners: FTRL-proximal, AdaGrad and SGD on mini-batches, in the order of the data.

    scheduler                        worker r                                     server
    until every part is read:        for each mini-batch, at most tau ahead:      update w by the gradient
        so many mini-batches each        pull w of its keys
                                         g = gradient; push g

Under sequential consistency a step is one mini-batch of every worker together, and the servers sum the gradients in
worker order; otherwise every push is applied by itself as it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.consistency import ConsistencySpec, PushPull, unmet
from mpips.data import Examples, format_of, minibatches
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.evaluate import Data, Scorer, distinct
from mpips.jobs.sparse_lr.proximal import exact_total
from mpips.message import NO_ROUND
from mpips.progress import Column, bytes_si, seconds, shares, si, significant
from mpips.scheduler import Cluster
from mpips.task import Task
from mpips.update import VectorSpec

COLUMNS = (
    Column("pass", "pass", 5),
    Column("seconds", "seconds", 8, seconds),
    Column("examples", "examples", 10, si),
    Column("mean loss", "mean loss", 10, significant(5)),
    Column("nonzeros", "nonzeros", 9, si),
    Column("examples/s", "examples/s", 10, si),
    Column("waiting", "waiting", 11, shares),
    Column("sent", "sent", 9, bytes_si),
)
BATCHES = 16  # per call, so that progress shows and workers that have read their part can wait for the others
HASHED = 2**64


class Progress(NamedTuple):
    """How far the training is: what a checkpoint keeps beside the vectors."""

    number: int = 1
    """The pass at hand."""
    rounds: int = 0
    """Mini-batches of every worker so far."""
    read: int = 0
    """Of these, the ones of this pass."""
    seen: int = 0
    """Examples of this pass, and the sum of their losses as they came."""
    loss: float = 0.0


def train(cluster: Cluster, settings: Any, data: Data) -> dict[str, Any]:
    """Drive the passes of an online learner; the objective is that of the final model on the training data."""
    at = _start(cluster, settings, data)
    table, passes, stop = cluster.table(COLUMNS), settings.passes or 1, False
    while not stop:
        cluster.workers.call("begin_reading", {"skip": at.read})
        left = True
        while left and not cluster.stop:
            at, left = _learn(cluster, at)
            table.update(_shown(cluster, at) | cluster.lately())
        last, now = at, cluster.servers.call("norm", vector=cluster.vectors["w"])
        nonzeros, size = sum(each["nonzeros"] for each in now), float(exact_total(now)[0])
        if not left:
            facts = _shown(cluster, at) | {"nonzeros": nonzeros}
            table.row(facts | cluster.lately())
            del facts["examples/s"]
            cluster.event("pass", **facts, objective=at.loss + settings.l1 * size, active=nonzeros)
            at = Progress(at.number + 1, at.rounds)
        stop = at.number > passes
        if not stop and cluster.due(at.number - 1):
            cluster.workers.call("settle")
            cluster.checkpoint(at.rounds, at._asdict())
            stop = cluster.stopping()
    table.close()
    losses = sum(each["loss"] for each in cluster.workers.call("training_loss"))
    objective = losses + settings.l1 * size
    return {"objective": objective, "nonzeros": nonzeros, "passes": last.number, "examples": last.seen}


def _start(cluster: Cluster, settings: Any, data: Data) -> Progress:
    """Make the vector of weights, or take up a checkpoint."""
    aggregate = pace(cluster.job.consistency).aggregate
    numbers = {"l1": settings.l1, "l2": settings.l2}
    if settings.algorithm == "sgd":  # steps along the mean gradient, so the penalty is per example too
        numbers = {"rate": settings.alpha} | {name: each / data.examples for name, each in numbers.items()}
    else:
        numbers |= {"alpha": settings.alpha, "beta": settings.beta}
    cluster.facts |= {"step by step": aggregate, "batch": settings.batch, **numbers}
    state = cluster.restore()
    if state is None:
        spec = VectorSpec(
            "w", extent=data.extent, update=settings.algorithm, settings=numbers, aggregate=aggregate
        )
        cluster.create_vector(spec)
        return Progress()
    at = Progress(**{name: state[name] for name in Progress._fields})
    # Spread over other workers, the mini-batches are others too: a pass that was broken off is begun anew.
    return at if state["same_workers"] else Progress(at.number, at.rounds)


def _learn(cluster: Cluster, at: Progress) -> tuple[Progress, bool]:
    """Let every worker learn from some more mini-batches; give how far that is, and whether any are left."""
    done = cluster.workers.call("learn", {"count": BATCHES, "first_round": at.rounds})
    seen = at.seen + sum(each["examples"] for each in done)
    loss = at.loss + sum(each["loss"] for each in done)
    left = any(each["left"] for each in done)
    return Progress(at.number, at.rounds + BATCHES, at.read + BATCHES, seen, loss), left


def _shown(cluster: Cluster, at: Progress) -> dict[str, Any]:
    trained = cluster.trained
    return {
        "pass": at.number,
        "seconds": trained,
        "examples": at.seen,
        "mean loss": at.loss / max(at.seen, 1),
        "examples/s": at.seen * at.number / max(trained, 1e-9),
    }


class Step(NamedTuple):
    """A mini-batch on its way: its time, its examples, its keys, where each entry's key is, and the pull."""

    time: int
    batch: Examples
    keys: NDArray[np.uint64]
    positions: NDArray[np.int32]
    pull: Task


class Learner(Scorer):
    """The part of a worker that learns online."""

    settings: Any
    consistency: PushPull
    _batches: Iterator[Examples]
    _pushes: dict[int, Task]

    def look_over(self, batches: Iterable[Examples]) -> int:
        """Give the last key that there may be: hashed keys may be any; for others, read all and look."""
        hashed = all(format_of(path, self.data) == "tsv" for path in self.data.train)
        if hashed and self.settings.algorithm != "sgd":
            next(iter(batches), None)
            return HASHED - 1
        last = max((int(batch.keys.max()) for batch in batches if len(batch.keys)), default=0)
        return HASHED - 1 if hashed else last

    def begin_reading(self, skip: int) -> None:
        """Start a pass over this worker's part of the data, after its first `skip` mini-batches."""
        self._batches = islice(minibatches(self.examples("train"), self.settings.batch), skip, None)
        self._pushes = {}

    def settle(self) -> None:
        """Wait until all that was pushed has been applied."""
        self.node.wait_all(self._pushes.values())

    def learn(self, count: int, first_round: int) -> dict[str, Any]:
        """Learn from at most `count` mini-batches; say how many examples, their losses, and if any is left."""
        keep = pace(self.context.job.consistency)
        examples, loss, left = 0, 0.0, True
        ahead: deque[Step] = deque()
        for time in range(first_round, first_round + count):
            with self.node.working():
                batch = next(self._batches, NOTHING)
                keys, positions = distinct(batch.keys)
            left = batch is not NOTHING
            if not left and not keep.aggregate:
                break
            examples += len(batch)
            after = [self._pushes[earlier] for earlier in unmet(self.consistency.pull(time), self._pushes)]
            pull = self.context.vectors["w"].pull(keys, after=after)
            ahead.append(Step(time, batch, keys, positions, pull))
            if len(ahead) > keep.ahead:
                loss += self._push(ahead.popleft(), keep.aggregate)
        while ahead:
            loss += self._push(ahead.popleft(), keep.aggregate)
        if not left:
            self.node.wait_all(self._pushes.values())
        return {"examples": examples, "loss": loss, "left": left}

    def _push(self, step: Step, aggregate: bool) -> float:
        """Push the gradient of a mini-batch at the weights that were pulled; give its losses."""
        weights, batch = self.node.wait(step.pull), step.batch
        with self.node.working():
            gradient = np.empty(len(step.keys))
            values = np.empty(0, np.float32) if batch.values is None else batch.values
            loss = kernels.batch_gradient(
                batch.indptr, step.positions, values, batch.labels, weights, gradient
            )
            if self.settings.algorithm == "sgd" and len(batch):
                gradient /= len(batch)
        round_ = step.time if aggregate else NO_ROUND
        self._pushes = {time: task for time, task in self._pushes.items() if not task.done}
        after = [self._pushes[earlier] for earlier in unmet(self.consistency.push(step.time), self._pushes)]
        push = self.context.vectors["w"].push(step.keys, gradient, round=round_, after=after)
        self._pushes[step.time] = push
        return float(loss)


class Pace(NamedTuple):
    """How the workers keep step: `aggregate` each step over all of them, and pull so many steps `ahead`."""

    aggregate: bool
    ahead: int


def pace(spec: ConsistencySpec) -> Pace:
    """Give the pace that a consistency model allows."""
    if spec.is_sequential:
        return Pace(True, 0)
    tau = spec.tau if spec.pull_tau is None else spec.pull_tau
    return Pace(False, 2 if spec.model == "eventual" else min(tau, 2))


NOTHING = Examples(np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0, np.uint64))
