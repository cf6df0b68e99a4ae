"""A user's program: running averages by an update of its own, and a server function that counts them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from own_kernels import blend

from mpips import Answer, Column, VectorSpec, at_once, bounded, call, update

KEYS = np.arange(0, 100, 3, dtype=np.uint64)


@dataclass(frozen=True)
class Settings:
    """The table [own]."""

    rate: float = field(default=0.5, metadata={"above": 0.0, "at_most": 1.0})
    """How far an average moves."""
    steps: int = 12
    """How many pushes."""
    refuse: float = 1e9
    """A row above this is refused."""
    taus: tuple[int, ...] = ()
    """Delays, each set while the workers run."""
    model: str = "bounded"
    """"bounded", or "fives": the program's own consistency model."""


@update(
    "running average",
    columns=lambda spec: {"pushes": Column("int64")},
    defaults={"rate": 0.5, "refuse": 1e9},
)
def running_average(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Move towards the rows, and count."""
    if (rows > settings["refuse"]).any():
        raise ValueError(f"a row above {settings['refuse']:g}")
    state["pushes"][slots] += 1
    blend(values, slots, rows, float(settings["rate"]))


@call("pushes")
def pushes(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Count the keys that were pushed at least so often."""
    counts = segment.state["pushes"][: len(segment)]
    return {"keys": int((counts >= args["least"]).sum()), "total": int(counts.sum())}


def fives(time: int) -> range:
    """Let every fifth task wait for all earlier ones, and no other task for any."""
    return range(time if time % 5 == 0 else 0)


def schedule(cluster: Any, settings: Settings) -> dict[str, Any]:
    """Run the program."""
    settings_of = {"rate": settings.rate, "refuse": settings.refuse}
    w = cluster.create_vector(VectorSpec("w", extent=100, update="running average", settings=settings_of))
    with cluster.phase("train"):
        running = cluster.workers.start("average", {"steps": settings.steps})
        for tau in settings.taus:
            cluster.node.wait_until(_later(cluster.node, 0.05))
            cluster.workers.call("delay", {"tau": tau})
        done = running.result()
    counts = cluster.servers.call("pushes", {"least": 1}, vector=w)
    return {
        "keys": sum(each["keys"] for each in counts),
        "pushes": sum(each["total"] for each in counts),
        "ahead": [reply.meta["ahead"] for reply in done],
    }


def _later(node: Any, seconds: float) -> Any:
    end = node.van.now() + seconds
    return lambda: node.van.now() >= end


class Worker:
    """Pushes, as far ahead as its consistency model allows."""

    def __init__(self, context: Any) -> None:
        self.node, self.context, self.settings = context.node, context, context.job.settings
        self.model: Any = fives if self.settings.model == "fives" else bounded(0)

    @at_once
    def delay(self, tau: int) -> None:
        """Change the delay; in flight, since `average` moves messages while it waits."""
        self.model.tau = tau

    def average(self, steps: int) -> Answer:
        """Push ones; return how many pushes were in flight at each."""
        w = self.context.vectors["w"]
        tasks: list[Any] = []
        ahead: list[int] = []
        for time in range(steps):
            self.context.wait_all([tasks[earlier] for earlier in self.model(time)])
            ahead.append(sum(not task.done for task in tasks))
            tasks.append(w.push(KEYS, np.full(len(KEYS), 1.0 + self.context.index)))
        self.context.wait_all(tasks)
        return Answer({"ahead": ahead})
