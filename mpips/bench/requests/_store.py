"""A program whose worker trains rows by mini-batches of skewed ids until there are many, then measures: see `store`."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.embedding import Embedding
from mpips.scheduler.scheduler import Cluster
from mpips.storage.initial import Uniform
from mpips.storage.updates import VectorSpec
from mpips.worker.worker import Context


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    rows: int = field(default=100_000, metadata={"at_least": 1})
    """Rows of the table when the measurement begins."""
    width: int = field(default=64, metadata={"at_least": 1})
    """Values per row."""
    ids: int = field(default=20_000, metadata={"at_least": 1})
    """Ids of a mini-batch."""
    skew: float = field(default=1.2, metadata={"above": 1.0})
    """The exponent of Zipf's law."""
    uniform: bool = False
    """Whether all ids are equally frequent; otherwise they follow Zipf's law."""
    batches: int = field(default=20, metadata={"at_least": 1})
    """Mini-batches that are measured."""
    announced: bool = False
    """Whether keys are announced one mini-batch ahead."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train until there are enough rows, then measure."""
    spec = VectorSpec("rows", "float32", settings.width, update="adagrad", init=Uniform(-0.1, 0.1, seed=1))
    table = cluster.create_vector(spec)
    number = 0

    def train(count: int) -> dict[str, Any]:
        nonlocal number
        (found,) = cluster.workers.call("train", {"first": number, "count": count})
        number += count
        return dict(found)

    held = 0
    while held < settings.rows:
        train(20)
        held = sum(each.get("keys", 0) for each in cluster.accounts())
    before = stores(cluster)
    with cluster.phase("train"):
        found = train(settings.batches)
    after = stores(cluster)
    work = {
        name: sum(each[name] for each in after) - sum(each[name] for each in before)
        for name in ("reads", "writes", "asked", "hits")
    }
    work["seconds"] = found["seconds"]
    return {**found, "keys": held, "stores": after, "work": work, "sha": cluster.digest(table)}


def stores(cluster: Cluster) -> list[dict[str, int]]:
    """Return the account of each server's store."""
    return [each["store"] for each in cluster.accounts() if "store" in each]


class Worker:
    """Trains."""

    def __init__(self, context: Context) -> None:
        self.vectors, self.settings = context.vectors, context.job.settings

    def _ids(self, number: int) -> NDArray[np.uint64]:
        """Draw the ids of a mini-batch: hashes of ranks that follow Zipf's law, or are uniform."""
        settings: Settings = self.settings
        rng, most = np.random.default_rng(number), 16 * settings.rows
        power = 1 - settings.skew
        if settings.uniform:
            # So many that the table is as large as wanted after some mini-batches.
            ranks = rng.random(settings.ids) * 1.05 * settings.rows
        else:
            ranks = (1 + rng.random(settings.ids) * (float(most) ** power - 1)) ** (1 / power)
        hashed = np.minimum(ranks.astype(np.uint64), np.uint64(most)) * np.uint64(0x9E3779B97F4A7C15)
        ids: NDArray[np.uint64] = (hashed ^ hashed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
        return ids

    def train(self, first: int, count: int) -> dict[str, Any]:
        """Train some mini-batches: pull, a gradient, push."""
        table = Embedding(self.vectors["rows"])
        batches = [self._ids(number) for number in range(first, first + count)]
        rows, begin = 0, perf_counter()
        for _, batch in table.ahead(batches, lambda ids: ids, depth=int(self.settings.announced)):
            rows += len(batch.keys)
            batch.push_of_ids(batch.rows_of_ids * np.float32(0.01)).result()
        seconds = perf_counter() - begin
        return {"ids": count * self.settings.ids, "rows": rows, "seconds": seconds}
