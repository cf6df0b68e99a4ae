"""A program that idles, wakes idle ranks, or sends requests as fast as possible: see `idle`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np

from mpips.bench._runs import process_messages
from mpips.cluster.node import Node
from mpips.errors import InputError
from mpips.process.host import host_name
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.worker.worker import Answer, Context, at_once

VECTOR = "counts"
EXTENT = 1 << 20
WARM = 200
"""Requests before the measurement."""
SETTLE = 0.5
"""Seconds until all earlier work has ended, before the ranks count as idle."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    part: Literal["rest", "ask"] = "rest"
    """The measurement: idle ranks and their wake-up, or the throughput of requests."""
    seconds: float = field(default=5.0, metadata={"above": 0.0})
    """Duration of the idle time, s."""
    pauses: list[float] = field(default_factory=lambda: [0.005, 0.05, 0.5])
    """Pauses before a round trip, s."""
    wakes: float = field(default=6.0, metadata={"above": 0.0})
    """Duration of the round trips after each pause, s."""
    requests: int = field(default=40_000, metadata={"at_least": 1})
    """Pushes and pulls of all workers together."""
    batch: int = field(default=100, metadata={"at_least": 1, "at_most": EXTENT // 2})
    """Keys of each request. They are adjacent, so most requests go to one server."""


# --- The scheduler -------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Do one part; return seconds of processor time by rank and round trips in ns, or the seconds of all requests."""
    cluster.create_vector(VectorSpec(VECTOR, "float32", extent=EXTENT), EXTENT // 8)
    cluster.workers.call("ask", {"requests": WARM, "batch": settings.batch})
    if settings.part == "ask":
        count = len(cluster.workers)
        each = [{"requests": len(range(i, settings.requests, count))} for i in range(count)]
        ranks = ranks_of(cluster)
        before = [processor_seconds(rank["pid"]) for rank in ranks]
        with cluster.phase("train"):
            cluster.workers.call("ask", {"batch": settings.batch}, each=each)
        return {"processor": sum(processor_seconds(rank["pid"]) for rank in ranks) - sum(before)}
    return {"rest": watch(cluster, settings.seconds), "trips": trips(cluster, settings)}


def watch(cluster: Cluster, seconds: float) -> dict[str, Any]:
    """Idle for the given time; return the processor time of each rank meanwhile (s), by rank."""
    ranks = ranks_of(cluster)
    process_messages(cluster.node, SETTLE)
    begin, before = perf_counter_ns(), [processor_seconds(each["pid"]) for each in ranks]
    process_messages(cluster.node, seconds)
    after, end = [processor_seconds(each["pid"]) for each in ranks], perf_counter_ns()
    return {
        "seconds": (end - begin) * 1e-9,
        "processor": {
            str(each["rank"]): b - a for each, a, b in zip(ranks, before, after, strict=True)
        },
    }  # fmt: skip


def ranks_of(cluster: Cluster) -> list[dict[str, Any]]:
    """Return `ranks` of the run's run.json.

    Raises:
        InputError: a rank is on another host, where its processor time cannot be read.
    """
    ranks: list[dict[str, Any]] = json.loads((cluster.folder.path / "run.json").read_text())["ranks"]
    check_here(ranks, host_name())
    return ranks


def check_here(ranks: Sequence[Mapping[str, Any]], here: str) -> None:
    """Check that all ranks are on the host `here`.

    Raises:
        InputError: a rank is on another host.
    """
    away = sorted({each["host"] for each in ranks} - {here})
    if away:
        raise InputError(
            f"bench idle: all ranks must be on one host; some are on {', '.join(away)}, not on {here}"
        )


def processor_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Return the processor time of all threads of a process, in seconds.

    The resolution is nanoseconds if the kernel has schedstat, else ticks, usually of 10 ms.

    Raises:
        InputError: this system does not report it.
    """
    folder = proc / str(pid)
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        with suppress(OSError):
            files = list(folder.glob("task/*/schedstat"))
            if files:
                return sum(int(file.read_text().split()[0]) for file in files) * 1e-9
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{folder}: does not report the processor time: {error}") from None


def trips(cluster: Cluster, settings: Settings) -> list[dict[str, Any]]:
    """Wake servers by a push of the first worker, and workers by a call, after each pause and without a pause."""
    found = []
    workers = cluster.workers
    for pause in [0.0, *settings.pauses]:
        count = repeats(pause, settings.wakes)
        pushes = workers.gather("wake", {"pause": pause, "count": count}, only=[0])[0][1]
        heard: list[int] = []

        def call(heard: list[int] = heard) -> None:
            """Call one worker after the other; record the time until it received the call."""
            only = [len(heard) % len(workers)]
            heard.append(workers.call("hear", {"sent": perf_counter_ns()}, only=only)[0]["after"])

        calls = timed(cluster.node, pause, count, call)
        found += [
            {"what": what, "pause": pause, "ns": took}
            for what, took in (("push", pushes[:, 0].tolist()), ("call", calls), ("heard", heard))
        ]
    return found


def repeats(pause: float, seconds: float) -> int:
    """Return the number of round trips with pauses in a given time (s), within bounds."""
    return min(max(int(seconds / max(pause, 1e-3)), 10), 300)


def timed(node: Node, pause: float, count: int, trip: Callable[[], Any]) -> list[int]:
    """Repeat a round trip, each after a pause (s); return the durations in ns."""
    took = []
    for _ in range(count):
        if pause:
            process_messages(node, pause)
        begin = perf_counter_ns()
        trip()
        took.append(perf_counter_ns() - begin)
    return took


# --- The worker ----------------------------------------------------------------------------------------


class Worker:
    """Pushes and pulls when it is called."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._rng = np.random.default_rng(context.index)

    @at_once
    def hear(self, sent: int) -> dict[str, int]:
        """Return the time since `sent`, in ns: the processes of a host share a clock."""
        return {"after": perf_counter_ns() - sent}

    def wake(self, pause: float, count: int) -> Answer:
        """Push one key `count` times, each after a pause (s); return the durations, i8[count, 1] in ns."""
        vector, one = self.context.vectors[VECTOR], np.ones(1, np.float32)
        keys = iter(np.sort(self._rng.integers(0, EXTENT, (count, 1), np.uint64), axis=1))
        took = timed(self.node, pause, count, lambda: self.node.wait(vector.push(next(keys), one)))
        return Answer(None, np.array(took, np.int64)[:, None])

    def ask(self, requests: int, batch: int) -> None:
        """Push and pull adjacent keys, each request after the answer of the last one."""
        vector, node = self.context.vectors[VECTOR], self.node
        ones, keys = np.ones(batch, np.float32), np.arange(batch, dtype=np.uint64)
        for number in range(requests):
            some = keys + self._rng.integers(0, EXTENT - batch, dtype=np.uint64)
            node.wait(vector.pull(some) if number % 2 else vector.push(some, ones))
