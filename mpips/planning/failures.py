"""Time of a run on nodes that fail: a discrete-event simulation.

    a node fails       the run continues after its recovery; or else it ends, and restarts from its last checkpoint
    a checkpoint       is due at intervals of work, and counts once it is written
    the work is done   the run ends

Nodes fail independently, each once in `mtbf` seconds on average (exponential), and are replaced at once. The spread
over many simulated runs shows what the mean hides: how late a run may be.
"""

from __future__ import annotations

import heapq
import math
from typing import NamedTuple

import numpy as np

TRIALS = 400
"""Largest number of simulated runs."""
EVENTS = 200_000
"""Approximate bound on simulated events in all, and bound in one run; a run with more makes no progress."""
LEAST_TRIALS = 20
"""Least number of simulated runs, unless one makes no progress."""


class FailingRun(NamedTuple):
    """A run of `seconds` of work on failing nodes.

    It survives a failure, at the cost of `recovery` seconds; or it ends, restarts after as many, and resumes from its
    last checkpoint. It writes one after each `every` seconds of work, which takes `checkpoint` seconds.
    """

    seconds: float
    nodes: int
    mtbf: float
    survives: bool
    recovery: float
    checkpoint: float = 0.0
    every: float = math.inf


class Lifetime(NamedTuple):
    """The effect of failures on a run: their number, and the run time, on average and at the 95th percentile."""

    failures: float
    seconds: float
    most: float


def young_interval(run: FailingRun) -> float:
    """Return the optimal seconds between checkpoints: sqrt(2 checkpoint mtbf / nodes) (Young 1974)."""
    return math.sqrt(2 * run.checkpoint * run.mtbf / run.nodes)


def lifetime(run: FailingRun, seed: int = 0) -> Lifetime:
    """Simulate a run repeatedly."""
    rng = np.random.default_rng(seed)
    ends: list[tuple[int, float]] = []
    simulated_events = 0
    while len(ends) < TRIALS and (simulated_events < EVENTS or len(ends) < LEAST_TRIALS):
        failures, end, events = simulate_once(run, rng)
        if math.isinf(end):
            return Lifetime(math.inf, math.inf, math.inf)
        ends.append((failures, end))
        simulated_events += events
    lost, seconds = np.array(ends).T
    return Lifetime(float(lost.mean()), float(seconds.mean()), float(np.quantile(seconds, 0.95)))


def simulate_once(run: FailingRun, rng: np.random.Generator) -> tuple[int, float, int]:
    """Simulate a run once; return its failures, its end (inf: no progress), and the number of events."""
    now, failures = 0.0, 0
    # Remaining work: now, and at the last checkpoint.
    left = saved = run.seconds
    activity, since = "work", 0.0
    # (time, phase, kind); a phase ends with the next one.
    events: list[tuple[float, int, str]] = []
    phase = 0

    def begin(what: str, takes: float) -> None:
        nonlocal activity, since, phase
        activity, since, phase = what, now, phase + 1
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
            if activity == "work" and run.survives:
                left -= now - since
            elif not run.survives:
                left = saved
            begin("recovery", run.recovery)
        elif of == phase and activity == "work":
            left -= now - since
            if left <= 1e-12 * run.seconds:
                return failures, now, count
            begin("checkpoint", run.checkpoint)
        elif of == phase:
            if activity == "checkpoint":
                saved = left
            work()
    return failures, math.inf, EVENTS
