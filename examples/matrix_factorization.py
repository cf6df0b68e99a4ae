"""Matrix factorization: a rating of item j by user i is mean + u_i . v_j; minimise the squared errors by mini-batches.

    mpips run examples/matrix_factorization.toml
    mpips run examples/matrix_factorization.toml --set data.train=ratings.tsv     lines USER<TAB>ITEM<TAB>RATING

Rows of users and items begin with random values, since at 0 all gradients are 0. The servers take a step along each
pushed gradient. With tau > 0 a worker computes with rows that lack the last tau mini-batches of steps: it looks up the
rows of half of them ahead, and does not wait for the steps of the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, Normal, Task, VectorSpec, kernel

Array = NDArray[Any]


@dataclass(frozen=True)
class Settings:
    """The table [matrix_factorization]. l2: the weight of (|u_i|^2 + |v_j|^2) / 2; ratings: how many are generated."""

    rank: int = 16
    rate: float = 0.02
    l2: float = 0.05
    batch: int = 10_000  # a row is sent once for all of its ratings in a mini-batch
    passes: int = 15
    ratings: int = 100_000


def generated(count: int, seed: int = 0) -> Array:
    """Draw ratings of 2,000 users and 1,000 items, f8[count, 3], by factors of rank 4 and noise of 0.3."""
    random = np.random.default_rng(seed)
    u, v = random.normal(0, 0.8, (2_000, 4)), random.normal(0, 0.8, (1_000, 4))
    user, item = random.integers(0, len(u), count), random.integers(0, len(v), count)
    return np.stack([user, item, 3.5 + (u[user] * v[item]).sum(1) + random.normal(0, 0.3, count)], axis=1)


@kernel("f8(f4[:, ::1], i4[::1], f4[:, ::1], i4[::1], f8[::1], f4, f4[:, ::1], f4[:, ::1])")
def gradients(u: Array, at: Array, v: Array, to: Array, y: Array, l2: float, du: Array, dv: Array) -> float:
    """Add the gradients of ratings y to du and dv, y_n of rows u[at[n]] and v[to[n]]; return the squared errors."""
    squares = 0.0
    for n in range(len(y)):
        i, j, error = at[n], to[n], y[n]
        for k in range(u.shape[1]):
            error -= u[i, k] * v[j, k]
        squares += error * error
        for k in range(u.shape[1]):
            du[i, k] += l2 * u[i, k] - np.float32(error) * v[j, k]
            dv[j, k] += l2 * v[j, k] - np.float32(error) * u[i, k]
    return squares


def specs(settings: Settings) -> list[VectorSpec]:
    """Return the vectors of users and items."""
    how: dict[str, Any] = {"width": settings.rank, "update": "sgd", "settings": {"rate": settings.rate}}
    names = enumerate(("users", "items"))
    return [VectorSpec(name, "float32", init=Normal(0.0, 0.1, seed=seed), **how) for seed, name in names]


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train; return the root of the mean squared error of each pass, while it learns."""
    for spec in specs(settings):
        cluster.create_vector(spec)
    curve: list[float] = []
    with cluster.phase("train"):
        for number in range(1, settings.passes + 1):
            found = cluster.workers.call("train", {"number": number})
            curve.append(sum(each["error"] for each in found) ** 0.5)
            cluster.say(f"pass {number}: rmse {curve[-1]:.5g}")
            cluster.event("pass", number=number, rmse=curve[-1], seconds=cluster.trained)
    return {"rmse": curve[-1], "curve": curve}


class Worker:
    """Holds its part of the ratings."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.job.settings
        files = context.job.data.train
        rows = np.loadtxt(str(context.base / files)) if files else generated(self.settings.ratings)
        self.count, own = len(rows), rows[context.index :: context.count]
        self.users, self.items = own[:, 0].astype(np.uint64), own[:, 1].astype(np.uint64)
        self.ratings = own[:, 2] - rows[:, 2].mean()

    def batches(self, number: int) -> Iterator[tuple[Array, Array, Array]]:
        """Yield the mini-batches of a pass, in random order: users, items and ratings less their mean."""
        order = np.random.default_rng([number, self.context.index]).permutation(len(self.ratings))
        users, items, ratings = self.users[order], self.items[order], self.ratings[order]
        for at in (slice(i, i + self.settings.batch) for i in range(0, len(order), self.settings.batch)):
            yield users[at], items[at], ratings[at]

    def train(self, number: int) -> dict[str, float]:
        """Learn from each rating once."""
        tau, pushes, squares = self.context.job.consistency.tau, deque[Task](), 0.0
        ahead, early = deque[tuple[Any, ...]](), (tau + 1) // 2
        users, items = self.context.vectors["users"], self.context.vectors["items"]
        for batch in chain(self.batches(number), [()] * early):
            while len(pushes) > 2 * (tau - early):
                pushes.popleft().result()
            if batch:
                ahead.append((users.start_lookup(batch[0]), items.start_lookup(batch[1]), batch[2]))
            if len(ahead) > early or (ahead and not batch):
                of_users, of_items, ratings = ahead.popleft()
                u, v, at, to = of_users.pull.result(), of_items.pull.result(), of_users.where, of_items.where
                du, dv = np.zeros_like(u), np.zeros_like(v)
                with self.context.working():
                    squares += gradients(u, at.places, v, to.places, ratings, self.settings.l2, du, dv)
                pushes += [users.push(at.keys, du), items.push(to.keys, dv)]
        self.context.wait_all(pushes)
        return {"error": squares / self.count}
