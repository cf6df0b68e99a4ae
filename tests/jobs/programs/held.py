"""Workers that push small changes through filters, including one of this program, and flush at the end."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpips import About, Cluster, Coder, Content, Context, State, VectorSpec, filter_

KEYS, PARTS = 2000, 6


@dataclass(frozen=True)
class Settings:
    steps: int = 4
    """How many there are in all."""
    flush: bool = True


@dataclass(frozen=True)
class Scaled:
    by: float = field(default=2.0, metadata={"above": 0.0})
    """What numbers are multiplied by on their way."""


def lacks() -> str:
    there = os.environ.get("HELD_LACKS") == os.environ.get(
        "OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")
    )
    return "something that is not here" if there else ""


@filter_("scaled", Scaled, lacks)
def scaled(settings: Scaled) -> Coder:
    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        return state, content._replace(values=content.values * settings.by, note=b"*")

    def decode(content: Content) -> Content:
        return content._replace(values=content.values / settings.by)

    return Coder(encode, decode)


def changes(part: int, step: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return what a part of the work pushes at a step: whole numbers, most of them small."""
    rng = np.random.default_rng([part, step])
    keys = np.flatnonzero(rng.random(KEYS) < 0.3).astype(np.uint64)
    return keys, np.where(rng.random(len(keys)) < 0.1, 64.0, rng.integers(-2, 3, len(keys)))


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    state = cluster.restore() or {"step": 0}
    if not state["step"]:
        cluster.create_vector(VectorSpec("w", extent=KEYS))
    w = cluster.vectors["w"]
    with cluster.phase("train"):
        for step in range(state["step"], settings.steps):
            cluster.workers.call("push", {"step": step})
            if cluster.due(step + 1):
                cluster.checkpoint(step + 1, {"step": step + 1})
    there = np.arange(KEYS, dtype=np.uint64)
    before = w.pull(there).result()
    if settings.flush:
        cluster.workers.call("flush")
    after = w.pull(there).result()
    due = np.zeros(KEYS)
    for keys, rows in (changes(part, step) for part in range(PARTS) for step in range(settings.steps)):
        due[keys.astype(np.int64)] += rows
    return {"held": int((before != due).sum()), "wrong": int((after != due).sum())}


class Worker:
    def __init__(self, context: Context) -> None:
        self.context, self.wait = context, context.wait

    def push(self, step: int) -> None:
        for part in range(self.context.index, PARTS, self.context.count):
            self.wait(self.context.vectors["w"].push(*changes(part, step)))

    def flush(self) -> None:
        self.wait(self.context.vectors["w"].flush())
