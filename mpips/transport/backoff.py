"""How a rank waits for messages: it polls, then yields, then sleeps.

Polling occupies a core that other ranks may need; sleeping delays the receipt of a message. There are three stages, by
the duration of the wait so far:

polling    the rank polls without a pause, which has the lowest latency for answers that take microseconds. Where ranks
           outnumber cores, it calls sched_yield before each poll.
yielding   until `patience`, it calls sched_yield before each poll. If no other process is runnable, the call returns
           at once; to be woken from a sleep would take longer than most answers.
sleeping   after `patience`. With a wakeup (`mpips.transport.wakeup`), a sender ends the sleep, so the rank sleeps as
           long as it has waited so far, at most `deep`. Without one, a sleep is 1/16 of the wait so far, at most
           `cap`, so that a message is delayed by at most 1/16 of the time that it took.

`patience` is the same where ranks outnumber cores: a sleep and a wakeup cost sender and sleeper about 30 microseconds
of processor time each, a yield costs one or two.

MPI may need one poll to move a message and another one to report it (Open MPI 5: a probe first matches, then moves).
With one poll between two sleeps every message would wait for two sleeps, so a rank polls `POLLS` times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from typing import Protocol

POLLS = 3
"""Polls between two sleeps."""
BRIEF = 20e-6
"""Seconds of polling without a yield, where each rank has a core."""
# From linux/prctl.h.
_SET_TIMER_SLACK = 29


class Wakeup(Protocol):
    """Ends a sleep when a message arrives; see `mpips.transport.wakeup`."""

    def arm(self) -> None:
        """Tell senders that this rank is about to sleep and needs to be woken."""

    def disarm(self) -> None:
        """Tell senders that this rank polls and needs no wakeup."""

    def sleep(self, seconds: float) -> None:
        """Sleep until a sender wakes this rank, at most `seconds`; a wakeup disarms it."""


class Backoff:
    """Waits in stages; see the module. Times are seconds.

    `oversubscribed`: ranks outnumber the cores of this host. `waiting`: there was a `wait` since the last `reset`.
    `resting`: the rank sleeps between polls.
    """

    __slots__ = (
        "_asleep", "_brief", "_cap", "_clock", "_deep", "_patience", "_polls", "_since", "_sleep", "_wakeup",
        "_yield", "oversubscribed", "resting", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        patience: float = 1e-3,
        cap: float = 0.9e-3,
        sleep: Callable[[float], None] = time.sleep,
        *,
        deep: float = 5e-3,
        oversubscribed: bool = False,
        wakeup: Wakeup | None = None,
        clock: Callable[[], float] = time.perf_counter,
        yield_core: Callable[[], None] = os.sched_yield,
    ) -> None:
        self._patience, self._cap, self._deep = patience, cap, deep
        self.oversubscribed = oversubscribed
        self._brief = 0.0 if oversubscribed else BRIEF
        self._sleep, self._wakeup, self._clock, self._yield = sleep, wakeup, clock, yield_core
        self._since = 0.0
        # Whether senders must wake this rank.
        self._asleep = False
        # Polls before the next sleep.
        self._polls = 0
        self.waiting = self.resting = False

    def reset(self) -> None:
        """Start again with the first stage: there was progress."""
        self.waiting = self.resting = False
        if self._asleep:
            self._wake()

    def wait(self, moving: Callable[[], bool] = lambda: False) -> None:
        """Wait according to the current stage: there was no progress.

        While a transfer is in progress (`moving`), MPI must be called to complete it, so a wakeup is not waited for.
        It is called before a sleep only.
        """
        now = self._clock()
        if not self.waiting:
            self.waiting, self._since = True, now
            self._polls = POLLS
        waited = now - self._since
        if waited < self._brief:
            return
        if waited < self._patience:
            self._yield()
            return
        self.resting = True
        if self._wakeup is None or moving():
            self._pause(min(waited / 16, self._cap))
        else:
            self._sleep_until_woken(self._wakeup, min(waited, self._deep))

    def _pause(self, seconds: float) -> None:
        """Sleep, unless polls are due between two sleeps."""
        if self._asleep:
            self._wake()
        if self._polls > 1:
            self._polls -= 1
            return
        self._polls = POLLS
        self._sleep(seconds)

    def _sleep_until_woken(self, wakeup: Wakeup, seconds: float) -> None:
        """Sleep until a sender wakes this rank; after arming the wakeup, poll once more before the first sleep."""
        if not self._asleep:
            wakeup.arm()
            self._asleep, self._polls = True, POLLS
        if self._polls > 1:
            self._polls -= 1
            return
        self._polls = POLLS
        wakeup.sleep(seconds)

    def _wake(self) -> None:
        assert self._wakeup is not None
        self._asleep = False
        self._wakeup.disarm()


def minimise_timer_slack() -> None:
    """Set this process's timer slack to its minimum: by default Linux extends sleeps by 50 microseconds."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)
