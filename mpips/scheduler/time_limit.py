"""The end of a run's time, and when to begin to stop so that the last checkpoint is there before it.

The leader looks at the clock between messages. When it is time, the run is asked to stop as by a signal: the program
hears of it at the end of a step (`Cluster.stop`), by way of the journal, so that a successor is told the same. What is
left by then must do for the step at hand, for the checkpoint, and for what the job file wants left besides:

    stop at = end - before_end - longest of the last steps - 2 * longest checkpoint

`before_end` counts for at most a quarter of the whole time, so that a short allocation is not all margin.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpips.config.job_file import Job

MOST = 0.25
"""The part of the whole time that `before_end` may be."""
CHECKPOINTS = 2
"""For how many checkpoints as long as the longest there is to be time: the last may wait for the one before it."""


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
