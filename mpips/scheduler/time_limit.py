"""The end of a run's time, and when to begin to stop so that the last checkpoint is there before it.

The leader looks at the clock between messages. When it is time, the run is asked to stop as by a signal: the program
hears of it at the end of a step (`Cluster.stop`), by way of the journal, so that a successor is told the same. What is
left by then must do for the step at hand, for the checkpoint, and for what the job file wants left besides:

    stop at = end - before_end - longest of the last steps - 2 * longest checkpoint

`before_end` counts for at most a quarter of the whole time, so that a short allocation is not all margin.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from mpips.errors import StopOverdue

if TYPE_CHECKING:
    from mpips.config.job_file import Job
    from mpips.scheduler.scheduler import Cluster

MOST = 0.25
"""The part of the whole time that `before_end` may be."""
CHECKPOINTS = 2
"""For how many checkpoints as long as the longest there is to be time: the last may wait for the one before it."""


LAST = 5.0
"""Seconds before the end of its allocation at which a run that has not stopped yet ends by itself."""


class Pace:
    """How long steps and checkpoints take, in seconds; steps are timed from the end of the first one on."""

    def __init__(self) -> None:
        self.checkpoint = 0.0
        """The longest checkpoint so far, until it was on the disk."""
        self._steps: deque[float] = deque(maxlen=8)
        self._last: float | None = None

    @property
    def step(self) -> float:
        """The longest of the last steps."""
        return max(self._steps, default=0.0)

    def stepped(self, now: float) -> None:
        """Note that a step has ended."""
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now

    def saved(self, seconds: float) -> None:
        """Note how long a checkpoint took."""
        self.checkpoint = max(self.checkpoint, seconds)


def end_of(job: Job, started: float, allocation: float | None) -> float | None:
    """Return when a run's time is over (wall, s): its allocation's end or its own limit, what comes first; or None."""
    ends = [] if allocation is None else [allocation]
    if job.time_limit > 0:
        ends.append(started + job.time_limit)
    return min(ends) if ends and job.checkpoint.before_end > 0 else None


def reserve(before_end: float, whole: float, pace: Pace) -> float:
    """Return the seconds that must be left, of a `whole` time, when the run is asked to stop."""
    return min(before_end, MOST * max(whole, 0.0)) + pace.step + CHECKPOINTS * pace.checkpoint


def enforce(cluster: Cluster, end: float | None) -> None:
    """End a run that does not stop in time though it was asked to; its allocation is over at `end` (wall, s), if ever.

    Its batch system would kill it without a word.
    """
    van, grace = cluster.node.van, cluster.job.checkpoint.grace
    asked_at: float | None = None
    over = False

    def look() -> None:
        nonlocal asked_at, over
        if cluster.asked is None or over:
            return
        asked_at = van.now() if asked_at is None else asked_at
        waited, left = van.now() - asked_at, math.inf if end is None else end - van.wall()
        over = 0 < grace <= waited or left <= LAST
        if over:
            raise StopOverdue(
                f"asked to stop by {cluster.asked} {waited:.0f} s ago, and the step at hand has not ended; "
                f"the scheduler waits for {cluster.node.waits_for() or 'nothing'}"
            )

    cluster.node.on_tick.append(look)


def watch(cluster: Cluster, started: float, end: float | None) -> None:
    """Ask the cluster to stop in time, unless it never ends; `started` and `end` are wall time."""
    if end is None:
        return
    wall, before_end = cluster.node.van.wall, cluster.job.checkpoint.before_end

    def look() -> None:
        left = end - wall()
        if cluster.asked is None and left <= reserve(before_end, end - started, cluster.pace):
            cluster.asked = f"the end of its time, {max(left, 0.0):.0f} s before it"

    cluster.node.on_tick.append(look)
