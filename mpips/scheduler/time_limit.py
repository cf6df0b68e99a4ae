"""The end of a run's time, and the time to start stopping so that the last checkpoint is complete before it.

The leader checks the clock between messages. When it is time, the run is asked to stop as by a signal: the program sees
it at the end of a step (`Cluster.stop`), through the journal, so that a successor decides the same. The remaining time
must suffice for the present step, for the checkpoint, and for the reserve of the job file:

    stop at = end - before_end - longest of the last steps - 2 * longest checkpoint

Of a program whose steps overlap, as many steps count as are under way at a time.

`before_end` counts for at most a quarter of the whole time, so that a short allocation is not all reserve.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpips.config.job_file import Job

MOST = 0.25
"""The largest fraction of the whole time that `before_end` may take."""
CHECKPOINTS = 2
"""Checkpoints of the longest duration so far to reserve time for: the last may wait for the one before it."""


class Durations:
    """Durations of steps and checkpoints, in seconds; steps are timed from the end of the first one."""

    def __init__(self) -> None:
        self.checkpoint = 0.0
        """Duration of the longest checkpoint so far, until it was on disk."""
        self.under_way = 1
        """Steps that the program has begun at any time, and completes before it stops."""
        self._steps: deque[float] = deque(maxlen=8)
        self._last: float | None = None

    @property
    def step(self) -> float:
        """Duration of the longest of the last steps."""
        return max(self._steps, default=0.0)

    def stepped(self, now: float) -> None:
        """Record the end of a step."""
        if self._last is not None:
            self._steps.append(now - self._last)
        self._last = now

    def saved(self, seconds: float) -> None:
        """Record the duration of a checkpoint."""
        self.checkpoint = max(self.checkpoint, seconds)


def end_of(job: Job, started: float, allocation: float | None) -> float | None:
    """Return the end of a run's time (wall, s): of its allocation or its own limit, the earlier; None if none."""
    ends = [] if allocation is None else [allocation]
    if job.time_limit > 0:
        ends.append(started + job.time_limit)
    return min(ends) if ends and job.checkpoint.before_end > 0 else None


def reserve(before_end: float, whole: float, durations: Durations) -> float:
    """Return the seconds that must remain, of a `whole` time, when the run is asked to stop."""
    needed = durations.under_way * durations.step + CHECKPOINTS * durations.checkpoint
    return min(before_end, MOST * max(whole, 0.0)) + needed
