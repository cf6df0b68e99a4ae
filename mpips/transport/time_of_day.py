"""The time of day of a run: it does not jump when a host's clock is set, and goes on while a machine is suspended.

A deadline such as the end of an allocation is a time of day. If it were compared with the host's clock, a run would end
an hour early, or be killed, after the clock was set by an hour. So each rank reads that clock once, at its start, and
adds the time that has passed since, by a clock that nobody sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def since_boot() -> float:
    """Return the seconds since the machine has booted, those in which it was suspended included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class TimeOfDay:
    """Returns the seconds since the epoch; see the module. `now` is the host's clock, `passed` one that nobody sets.

    >>> clock, stopwatch = 1000.0, 5.0
    >>> wall = TimeOfDay(lambda: clock, lambda: stopwatch)
    >>> clock, stopwatch = 4601.0, 6.0
    >>> wall()
    1001.0
    """

    def __init__(
        self, now: Callable[[], float] = time.time, passed: Callable[[], float] = since_boot
    ) -> None:
        self._passed = passed
        self._epoch = now() - passed()

    def __call__(self) -> float:
        """Return the seconds since the epoch."""
        return self._epoch + self._passed()
