"""How long a run takes on nodes that fail: a discrete-event simulation.

    a node fails       the run goes on after its recovery; or else goes down, and is back with its last checkpoint
    a checkpoint       is due every so often, and counts once it is written
    the work is done   and so is the run

Nodes fail independently, each once in `mtbf` seconds on average, at any moment alike, and are replaced at once. What a
mean hides, how late a run may be, shows in the spread over many simulated ones.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np

TRIALS = 400
"""Runs that are simulated at most."""
EVENTS = 200_000
"""Events that are simulated in all, about, and at most in one run; one that has more is taken to get nowhere."""
LEAST = 20
"""Runs that are simulated at least, unless one gets nowhere."""


class Run(NamedTuple):
    """A run of so many `seconds` of work, and what happens to it.

    It survives a failure, at the cost of `recovery` seconds; or it goes down, is back after as many, and goes on from
    its last checkpoint, of which it writes one `every` so many seconds of work, taking `checkpoint` seconds.
    """

    seconds: float
    nodes: int
    mtbf: float
    survives: bool
    recovery: float
    checkpoint: float = 0.0
    every: float = math.inf


class Lifetime(NamedTuple):
    """What failures do to a run: how many there are, and the seconds that it takes, on average and of 19 in 20."""

    failures: float
    seconds: float
    most: float


def young(run: Run) -> float:
    """Give the seconds between checkpoints that cost least: sqrt(2 checkpoint mtbf / nodes) (Young 1974)."""
    return math.sqrt(2 * run.checkpoint * run.mtbf / run.nodes)


def lifetime(run: Run, seed: int = 0) -> Lifetime:
    """Simulate a run again and again."""
    rng = np.random.default_rng(seed)
    ends: list[tuple[int, float]] = []
    seen = 0
    while len(ends) < TRIALS and (seen < EVENTS or len(ends) < LEAST):
        failures, end, events = simulated(run, rng)
        if math.isinf(end):
            return Lifetime(math.inf, math.inf, math.inf)
        ends.append((failures, end))
        seen += events
    lost, seconds = np.array(ends).T
    return Lifetime(float(lost.mean()), float(seconds.mean()), float(np.quantile(seconds, 0.95)))


def simulated(run: Run, rng: np.random.Generator) -> tuple[int, float, int]:
    """Simulate a run once; give its failures, when it ends (inf: it gets nowhere), and how many events that took."""
    now, failures = 0.0, 0
    left = saved = run.seconds  # of work: now, and at the last checkpoint
    doing, since = "work", 0.0
    events: list[tuple[float, int, str]] = []  # (when, of which phase, what); a phase ends with the next one
    phase = 0

    def begin(what: str, takes: float) -> None:
        nonlocal doing, since, phase
        doing, since, phase = what, now, phase + 1
        heapq.heappush(events, (now + takes, phase, "over"))

    def work() -> None:
        begin("work", min(left, run.every))

    heapq.heappush(events, (rng.exponential(run.mtbf / run.nodes), 0, "failure"))
    work()
    for count in range(1, EVENTS + 1):
        now, of, what = heapq.heappop(events)
        if what == "failure":
            failures += 1
            heapq.heappush(events, (now + rng.exponential(run.mtbf / run.nodes), 0, "failure"))
            if doing == "work" and run.survives:
                left -= now - since
            elif not run.survives:
                left = saved
            begin("recovery", run.recovery)
        elif of == phase and doing == "work":
            left -= now - since
            if left <= 1e-12 * run.seconds:
                return failures, now, count
            begin("checkpoint", run.checkpoint)
        elif of == phase:
            if doing == "checkpoint":
                saved = left
            work()
    return failures, math.inf, EVENTS
