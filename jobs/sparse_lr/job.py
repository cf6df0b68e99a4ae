"""Sparse logistic regression (paper, section 5.1): minimise sum_i log(1 + exp(-y_i x_i.w)) + l1 |w|_1.

`darlin` is the delayed block proximal gradient method of the paper's Algorithm 3; `ftrl`, `adagrad` and `sgd` learn
online, from mini-batches in the order of the data (`online`).

    scheduler                         worker r                                server
    for each pass:                    for each block, at most tau ahead:      sum g, u over the workers;
        cut keys into blocks              g, u = gradient, curvature bound    take the proximal step;
        issue them to all workers         push g, u; pull the step            drop what stays at 0
        search along the steps            move the margins by the step        (`proximal`)
        decide what is next (`control`)   (`blocks`)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpips.consistency import push_pull, unmet
from mpips.data import Tally, load_columns, resolve
from mpips.jobs.sparse_lr import darlin, evaluate, online
from mpips.jobs.sparse_lr.blocks import Blocks
from mpips.ranges import KeyRange
from mpips.scheduler import Cluster
from mpips.task import Task
from mpips.vector import Vector
from mpips.worker import Answer, Context

REBUILD = 2**62  # a round that no pass reaches


@dataclass(frozen=True)
class Settings:
    """The job file's table [sparse_lr]."""

    algorithm: Literal["darlin", "ftrl", "adagrad", "sgd"] = "darlin"
    """darlin: the paper's block proximal method, to the optimum; the others learn online."""
    l1: float = field(default=1.0, metadata={"at_least": 0.0})
    """The weight of |w|_1 in the objective."""
    epsilon: float = field(default=2e-4, metadata={"above": 0.0})
    """darlin: stop when the objective has settled to this share of itself."""
    passes: int = field(default=0, metadata={"at_least": 0})
    """At most so many passes over the data; 0: 1,000 for darlin, 1 online."""
    blocks: int = field(default=0, metadata={"at_least": 0})
    """darlin: blocks per pass; 0: as many as the active features need."""
    batch: int = field(default=10_000, metadata={"at_least": 1})
    """online: examples per mini-batch."""
    alpha: float = field(default=0.1, metadata={"above": 0.0})
    """online: the learning rate; for sgd the step itself."""
    beta: float = field(default=1.0, metadata={"at_least": 0.0})
    """ftrl, adagrad: keeps the first steps short."""
    l2: float = field(default=0.0, metadata={"at_least": 0.0})
    """online: the weight of |w|^2 / 2."""


# --- The scheduler ---------------------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Load the data, train, evaluate; give the run's metrics."""
    cluster.facts |= {"algorithm": settings.algorithm, "l1": settings.l1}
    with cluster.phase("load"):
        facts = cluster.workers.call("load", each=evaluate.assign(cluster))
        data = evaluate.check_shards(cluster, facts)
    train = darlin.train if settings.algorithm == "darlin" else online.train
    with cluster.phase("train"):
        metrics = train(cluster, settings, data)
    return metrics | evaluate.test(cluster) | evaluate.export_model(cluster)


# --- The worker ------------------------------------------------------------------------------------------------------


class Worker(online.Learner):
    """What the scheduler calls on a worker."""

    def __init__(self, context: Context) -> None:
        self.node, self.context, self.settings = context.node, context, context.job.settings
        self.data = resolve(context.job.data, str(context.base))
        self.blocks: Any = None
        self.consistency = push_pull(context.job.consistency)

    def load(self, parts: list[int], of: int) -> dict[str, Any]:
        """Read this worker's parts of the training data: into columns, or, online, only over them."""
        tally, self.parts, self.of = Tally(), parts, of
        batches = self.examples("train", tally)
        facts: dict[str, Any] = {"features": 0, "ones": False}
        if self.settings.algorithm == "darlin":
            columns = load_columns(batches)
            self.blocks = Blocks(columns)
            last = int(columns.keys[-1]) if len(columns.keys) else 0
            facts = {"features": len(columns.keys), "ones": columns.values is None}
            facts |= {
                "positive": int((columns.labels > 0.0).sum()), "fingerprint": self.blocks.fingerprint()
            }  # fmt: skip
        else:
            last = self.look_over(batches)
        facts |= {"examples": tally.examples, "skipped": tally.skipped, "first": tally.first_error}
        return facts | {"last": last}

    def start(self, round: int, ones: bool) -> Answer:
        """Push what the servers start from; take the radii of the features that are active."""
        radius = self.node.wait(self.w.push_pull(self.blocks.keys, self.blocks.sums(ones), round=round))
        self.blocks.start(radius)
        return self.sketch()

    def reset(self, round: int, full: bool) -> Answer:
        """Push the exact gradient; take the active set that the servers choose anew."""
        cols, gradient = self.blocks.full_gradient(full)
        self._take(cols, self.node.wait(self.w.push_pull(self.blocks.keys[cols], gradient, round=round)))
        return self.sketch()

    def _take(self, cols: NDArray[np.int64], radius: NDArray[np.float64]) -> None:
        """Take the radius of columns, and compute the margins anew from their weights."""
        self.blocks.radius[cols] = radius
        active = cols[radius > 0.0]
        self.blocks.set_weights(active, self.node.wait(self.w.pull(self.blocks.keys[active])))

    @property
    def w(self) -> Vector:
        """The weights."""
        return self.context.vectors["w"]

    def sketch(self) -> Answer:
        """Give the weights of the active features, from which blocks are cut, and how this worker fares."""
        keys, weights = self.blocks.sketch()
        return Answer(self.node.account(), weights, keys)

    def iterate(self, keys: NDArray[np.uint64], order: list[int], theta: float, round: int) -> Answer:
        """Visit the blocks that begin at `keys`, in `order`, as far ahead as the consistency model allows."""
        w, blocks, node = self.w, self.blocks, self.node
        ranges = [
            KeyRange(a, b) for a, b in zip(keys.tolist(), [*keys.tolist()[1:], w.spec.extent], strict=True)
        ]
        blocks.begin_pass(keys)
        flying: dict[int, Task] = {}
        for time, block in enumerate(order):
            node.wait_all(flying[earlier] for earlier in unmet(self.consistency.pull(time), flying))
            flying = {earlier: task for earlier, task in flying.items() if not task.done}
            node.step(round + time)
            with node.working():
                cols, block_keys, rows = blocks.gradient(block, theta)
            task = w.push_pull(block_keys, rows, within=ranges[block], round=round + time)
            flying[time] = task.then(partial(self._arrived, cols))
        node.wait_all(flying.values())
        with node.working():
            return Answer(values=blocks.model())

    def _arrived(self, cols: NDArray[np.int64], task: Task) -> None:
        if task.error is None and len(cols):
            with self.node.working():
                self.blocks.apply(cols, task.result)

    def losses(self, values: NDArray[np.float64]) -> Answer:
        """Give the losses of every mixture of the last passes."""
        return Answer(values=self.blocks.losses(values))

    def mix(self, mixture: list[float] | None, forget: bool, round: int) -> Answer:
        """Take a mixture of the last passes; features that it woke are active again."""
        self.blocks.mix(None if mixture is None else np.array(mixture), forget)
        if mixture is not None:
            cols = self.blocks.dropped()
            keys = self.blocks.keys[cols]
            self.blocks.wake(
                cols, self.node.wait(self.w.push_pull(keys, np.zeros((len(cols), 0)), round=round))
            )
        return self.sketch()

    def dual(self, shrink: float) -> dict[str, float]:
        """Give this worker's part of the dual objective, and its losses."""
        return {"dual": self.blocks.dual(shrink), "loss": self.blocks.loss()}

    # --- checkpoints

    def state(self) -> dict[str, NDArray[Any]]:
        """Give what a checkpoint keeps of this worker."""
        return self.blocks.arrays() if self.blocks is not None else {}

    def restore(self, **arrays: NDArray[Any]) -> None:
        """Take it back."""
        if self.blocks is not None:
            self.blocks.take(arrays)

    def rebuild(self) -> None:
        """Build it anew from the weights, when the examples are spread over another number of workers."""
        if self.blocks is not None:
            keys = self.blocks.keys
            radius = self.node.wait(self.w.push_pull(keys, np.zeros((len(keys), 0)), round=REBUILD))
            self._take(np.arange(len(keys)), radius)
