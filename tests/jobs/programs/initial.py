"""A program whose worker reads rows before and after they were pushed, by each kind of request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpips import Cluster, Context, KeyRange, Normal, Uniform, VectorSpec

WIDTH, KEYS = 4, 2000


@dataclass(frozen=True)
class Settings:
    """The program's table."""


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Let the worker count what it reads and should not."""
    made = [
        VectorSpec("dense", "float32", WIDTH, KEYS, dense=True, init=Normal(0.0, 1.0, 3)),
        VectorSpec("sparse", "float32", WIDTH, init=Uniform(-1.0, 1.0, 3)),
        VectorSpec("constant", "int64", WIDTH, init=7),
    ]
    vectors = [cluster.create_vector(spec) for spec in made]
    wrong = cluster.workers.call("read")[0]["wrong"]
    return {"wrong": wrong, "digests": [cluster.digest(vector) for vector in vectors]}


class Worker:
    """Reads and pushes."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def read(self) -> dict[str, Any]:
        """Push to ever more keys; count the pulls of all keys that are not the initial rows and what was pushed."""
        wrong: list[str] = []
        for name, vector in self.context.vectors.items():
            dense = vector.spec.dense
            keys = np.arange(KEYS, dtype=np.uint64) * np.uint64(1 if dense else 2**64 // KEYS)
            wanted = vector.spec.initial(keys)
            listed = vector.key_list(keys)
            for turn in range(6):
                # A list that is new each time is not cached at the servers.
                named: dict[str, Any] = {"list": (listed, wanted), "new list": (keys[turn:], wanted[turn:])}
                if dense:
                    named["range"] = (KeyRange(0, KEYS), wanted)
                for kind, (those, rows) in named.items():
                    for _ in range(3):
                        if not np.array_equal(vector.pull(those).result(), rows):
                            wrong.append(f"{name} {kind} {turn}")
                part = keys[turn::5].copy()
                ones = np.ones((len(part), WIDTH), vector.spec.dtype)
                vector.push(part, ones).result()
                wanted[turn::5] += ones
        return {"wrong": wrong}
