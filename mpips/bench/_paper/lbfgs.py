"""The paper's system A: L-BFGS for an l1 norm (OWL-QN: Andrew and Gao, ICML 2007), bulk-synchronous.

    worker r, for each iteration:
        direction from the last steps and gradient changes; every worker has all of them, and computes the same one
        for each trial step, halved until the objective decreases enough:
            push loss and gradient of all features; pull their sums          (a barrier of all workers)

The servers only add, and every trial sends every feature. The direction, which all workers compute, does not count as
`working`, so stragglers are not slow there, as if the computation were distributed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.data import load_columns, read, resolve
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.blocks import NO_VALUES
from mpips.jobs.sparse_lr.evaluate import log_losses
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.worker.worker import Answer, Context

F8 = NDArray[np.float64]
MEMORY = 10
"""The number of last steps that a direction is computed from."""
ENOUGH = 1e-4
"""A step must decrease the objective by this share of the decrease that its slope predicts."""
TRIALS = 30


@dataclass(frozen=True)
class Settings:
    """The job file's table [lbfgs]."""

    l1: float = field(default=1.0, metadata={"at_least": 0.0})
    """The weight of |w|_1 in the objective."""
    target: float = field(default=0.0, metadata={"at_least": 0.0})
    """Stop when the objective is not above this."""
    iterations: int = field(default=1000, metadata={"at_least": 1})
    """The maximum number of iterations."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Load the data, and iterate on all workers; return the run's metrics."""
    with cluster.phase("load"):
        loaded = cluster.workers.gather("load")
        keys: NDArray[np.uint64] = reduce(np.union1d, (each for each, _ in loaded if each is not None))
        spec = VectorSpec("sums", extent=len(keys) + 1, dense=True, update="assign", aggregate=True)
        cluster.create_vector(spec, expect=len(keys) + 1)
        cluster.workers.call("know", keys=keys)
    with cluster.phase("train"):
        for number in range(1, settings.iterations + 1):
            now = cluster.workers.call("iterate")[0]
            waiting = cluster.recent_usage()["waiting"]
            facts = {"pass": number, "seconds": cluster.trained, "waiting": sum(waiting) / len(waiting)}
            cluster.event("pass", **facts, **now)
            if now["objective"] <= settings.target or not now["moved"]:
                break
    return {"objective": now["objective"], "nonzeros": now["nonzeros"], "passes": number, "model": None}


class Worker:
    """The worker: its examples by columns, and all of w."""

    def __init__(self, context: Context) -> None:
        self.node, self.context, self.settings = context.node, context, context.job.settings
        self.steps: deque[tuple[F8, F8]] = deque(maxlen=MEMORY)
        self.round = 0

    def load(self) -> Answer:
        """Read a part of the examples; return its features."""
        data = resolve(self.context.job.data, str(self.context.base))
        part = read(data.train, data, self.context.index, self.context.count)
        columns = load_columns(self.node.poll_between(part))
        values = NO_VALUES if columns.values is None else columns.values
        self.keys, self.matrix = columns.keys, (columns.colptr, columns.rows, values)
        self.state = kernels.new_state(columns.labels)
        self.all = np.arange(len(self.keys))
        return Answer(keys=self.keys)

    def know(self, keys: NDArray[np.uint64]) -> None:
        """Set the features of all workers, and start at w = 0."""
        self.places = np.searchsorted(keys, self.keys)
        self.w = np.zeros(len(keys))
        self.loss, self.gradient = self.sums(self.w)

    def sums(self, w: F8) -> tuple[float, F8]:
        """Return the log-loss of all workers' examples, and its gradient, f8[features]."""
        own = np.zeros(len(w) + 1)
        with self.node.time_use.working():
            mine, gradient = w[self.places], np.empty(len(self.keys), np.float32)
            cols = np.flatnonzero(mine)
            kernels.set_margins(*self.matrix, cols, mine[cols], self.state)
            kernels.refresh_odds(self.state)
            kernels.full_gradient(*self.matrix, self.all, self.state, gradient)
            own[0] = log_losses(self.state[:, kernels.MARGIN]).sum()
            own[1 + self.places] = gradient
        self.round += 1
        vector = self.context.vectors["sums"]
        task = vector.push_pull(KeyRange(0, len(own)), own, round=self.round)
        total = self.node.wait(task)
        return float(total[0]), total[1:].copy()

    def iterate(self) -> dict[str, Any]:
        """Take one step; return the state after it."""
        w, l1 = self.w, self.settings.l1
        slope = pseudo_gradient(w, self.gradient, l1)
        way = direction(slope, self.steps)
        orthant = np.where(w != 0.0, np.sign(w), -np.sign(slope))
        before = self.loss + l1 * float(np.abs(w).sum())
        scale = 1.0 if self.steps else 1.0 / max(float(np.linalg.norm(slope)), 1e-300)
        for _ in range(TRIALS):
            trial = w + scale * way
            trial[trial * orthant < 0.0] = 0.0
            loss, gradient = self.sums(trial)
            after = loss + l1 * float(np.abs(trial).sum())
            if after <= before + ENOUGH * float(slope @ (trial - w)):
                break
            scale /= 2.0
        else:
            return self.position(before, moved=False)
        step, change = trial - w, gradient - self.gradient
        if float(step @ change) > 0.0:
            self.steps.append((step, change))
        self.w, self.loss, self.gradient = trial, loss, gradient
        return self.position(after, moved=True)

    def position(self, objective: float, moved: bool) -> dict[str, Any]:
        """Return the state of the iteration, which is the same on all workers."""
        return {"objective": objective, "nonzeros": int(np.count_nonzero(self.w)), "moved": moved}


def pseudo_gradient(w: F8, gradient: F8, l1: float) -> F8:
    """Return the objective's slope along each axis, with the l1 norm: 0 where it increases in both directions."""
    up, down = gradient + l1, gradient - l1
    at_zero = np.where(up < 0.0, up, np.where(down > 0.0, down, 0.0))
    return np.where(w > 0.0, up, np.where(w < 0.0, down, at_zero))


def direction(slope: F8, steps: deque[tuple[F8, F8]]) -> F8:
    """Return the direction of L-BFGS, without components that do not descend along their axis."""
    way = two_loops(slope, steps)
    way[way * slope >= 0.0] = 0.0
    return way


def two_loops(slope: F8, steps: deque[tuple[F8, F8]]) -> F8:
    """Return minus the slope, f8[n], times the inverse Hessian that (step, gradient change) of the last steps make."""
    way = -slope
    shares = []
    for step, change in reversed(steps):
        share = float(step @ way) / float(step @ change)
        shares.append(share)
        way = way - share * change
    if steps:
        step, change = steps[-1]
        way = way * (float(step @ change) / float(change @ change))
    for (step, change), share in zip(steps, reversed(shares), strict=True):
        way = way + (share - float(change @ way) / float(step @ change)) * step
    return way
