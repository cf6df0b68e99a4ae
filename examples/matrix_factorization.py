"""Matrix factorization: a rating of item j by user i is mean + u_i . v_j; minimise the squared errors by mini-batches.

    mpips run examples/matrix_factorization.toml
    mpips run examples/matrix_factorization.toml --set data.train=ratings.tsv     lines USER<TAB>ITEM<TAB>RATING

Rows of users and items begin with random values, since at 0 all gradients are 0. The servers take a step along each
pushed gradient. With tau > 0 a worker computes with rows that lack the last tau mini-batches of steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, Normal, Task, VectorSpec, progress

COLUMNS = (progress.Column("pass", "pass", 5), progress.Column("rmse", "rmse", 8, progress.significant(5)))
F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """The job file's table [matrix_factorization]."""

    rank: int = 16
    rate: float = 0.02
    l2: float = 0.05
    """The weight of (|u_i|^2 + |v_j|^2) / 2 in the loss of each rating."""
    batch: int = 1000
    passes: int = 15
    ratings: int = 100_000
    """How many are generated if [data] names no file."""


def generated(count: int, seed: int = 0) -> F8:
    """Draw ratings of 2,000 users and 1,000 items, f8[count, 3], by factors of rank 4 and noise of 0.3."""
    random = np.random.default_rng(seed)
    u, v = random.normal(0, 0.8, (2_000, 4)), random.normal(0, 0.8, (1_000, 4))
    user, item = random.integers(0, len(u), count), random.integers(0, len(v), count)
    return np.stack([user, item, 3.5 + (u[user] * v[item]).sum(1) + random.normal(0, 0.3, count)], axis=1)


def gradients(error: F8, u: NDArray[Any], v: NDArray[Any], l2: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the gradients of each rating's loss by its rows u and v, [n, rank]."""
    shortfall = error[:, None].astype(u.dtype)
    return l2 * u - shortfall * v, l2 * v - shortfall * u


def specs(settings: Settings) -> tuple[VectorSpec, VectorSpec]:
    """Return the vectors of users and items."""
    users, items = (
        VectorSpec(
            name, "float32", width=settings.rank, update="sgd", settings={"rate": settings.rate},
            init=Normal(0.0, 0.1, seed=seed),
        )
        for seed, name in enumerate(("users", "items"))
    )  # fmt: skip
    return users, items


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train; return the root of the mean squared error of each pass, while it learns."""
    for spec in specs(settings):
        cluster.create_vector(spec)
    table, curve = cluster.table(COLUMNS), []
    with cluster.phase("train"):
        for number in range(1, settings.passes + 1):
            found = cluster.workers.call("train", {"number": number})
            squares, count = (sum(each[name] for each in found) for name in ("squares", "count"))
            curve.append((squares / count) ** 0.5)
            table.row({"pass": number, "rmse": curve[-1]})
    table.close()
    return {"rmse": curve[-1], "curve": curve}


class Worker:
    """Holds its part of the ratings."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.job.settings
        files = context.job.data.train
        rows = np.loadtxt(str(context.base / files)) if files else generated(self.settings.ratings)
        self.mean = rows[:, 2].mean()
        self.rows = rows[context.index :: context.count]

    def batches(self, number: int) -> Iterator[F8]:
        """Yield the mini-batches of a pass, in random order."""
        order = np.random.default_rng([number, self.context.index]).permutation(len(self.rows))
        for begin in range(0, len(order), self.settings.batch):
            yield self.rows[order[begin : begin + self.settings.batch]]

    def train(self, number: int) -> dict[str, float]:
        """Learn from each rating once."""
        users, items = self.context.vectors["users"], self.context.vectors["items"]
        pushes: deque[Task] = deque()
        squares = 0.0
        for batch in self.batches(number):
            while len(pushes) > 2 * self.context.job.consistency.tau:
                self.context.wait(pushes.popleft())
            user, item = batch[:, 0].astype(np.uint64), batch[:, 1].astype(np.uint64)
            (u, of_users), (v, of_items) = users.lookup(user), items.lookup(item)
            with self.context.working():
                error = batch[:, 2] - self.mean - (u * v).sum(1)
                squares += float(error @ error)
                by_user, by_item = gradients(error, u, v, self.settings.l2)
            pushes += [users.push_grad(of_users, by_user), items.push_grad(of_items, by_item)]
        self.context.wait_all(pushes)
        return {"squares": squares, "count": len(self.rows)}
