"""How a rank waits: at hand while an answer is about to come, and asleep when none is.

What a wait costs is somebody's: a rank that looks all the time takes a core that others may need, one that sleeps hears
late. Three stages, by how long it has waited so far:

at once    it only looks again. With a core of its own that is the shortest way to an answer that takes microseconds;
           where ranks outnumber cores, the core is offered to others before each look.
yielding   until `patience`, it offers its core before each look. Whoever has nothing else to run gives it back at
           once, and to be woken costs more than most answers take.
asleep     from then on. A sleep ends early for who has a wakeup (`mpips.transport.wakeup`): those who send to a
           sleeper ring, so it sleeps until something comes, as long again as it has waited, `deep` at most. Else a
           sleep is a sixteenth of the wait so far, `cap` at most: what came late is heard at most a sixteenth later.

Where ranks outnumber cores, `patience` is the same: to be put to sleep and be rung for costs sender and sleeper some 30
microseconds each of their processor time, a core that is offered and given back costs one or two.

MPI may take one look to move a message, and find it in the next only (Open MPI 5: a probe matches first, and moves
then). With one look between two sleeps every message waits for two of them, so a rank looks `LOOKS` times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from typing import Protocol

LOOKS = 3
"""Looks between two sleeps."""
BRIEF = 20e-6
"""Seconds of looking without offering the core, where there are cores for all."""
_SET_TIMER_SLACK = 29  # linux/prctl.h


class Wakeup(Protocol):
    """What ends a sleep when a message comes; see `mpips.transport.wakeup`."""

    def arm(self) -> None:
        """Let others know that this rank is about to sleep, and is to be rung for."""

    def disarm(self) -> None:
        """Let them know that it looks by itself."""

    def sleep(self, seconds: float) -> None:
        """Sleep until somebody rings, but no longer; not armed any more if somebody did."""


class Backoff:
    """How to wait without burning a core; see the module. Times are seconds.

    `crowded` says that ranks outnumber cores here. `waiting` is whether there was a `wait` since the last `reset`,
    `resting` whether it is asleep between looks by now.
    """

    __slots__ = (
        "_asleep", "_brief", "_cap", "_clock", "_deep", "_looks", "_patience", "_since", "_sleep", "_wakeup",
        "_yield", "crowded", "resting", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        patience: float = 1e-3,
        cap: float = 0.9e-3,
        sleep: Callable[[float], None] = time.sleep,
        *,
        deep: float = 5e-3,
        crowded: bool = False,
        wakeup: Wakeup | None = None,
        clock: Callable[[], float] = time.perf_counter,
        offer: Callable[[], None] = os.sched_yield,
    ) -> None:
        self._patience, self._cap, self._deep = patience, cap, deep
        self.crowded = crowded
        self._brief = 0.0 if crowded else BRIEF
        self._sleep, self._wakeup, self._clock, self._yield = sleep, wakeup, clock, offer
        self._since = 0.0
        self._asleep = False  # whether others are to ring
        self._looks = 0  # before the next sleep
        self.waiting = self.resting = False

    def reset(self) -> None:
        """There was progress."""
        self.waiting = self.resting = False
        if self._asleep:
            self._wake()

    def wait(self, moving: bool = False) -> None:
        """There was none. Where something is `moving` in or out, MPI must be called, and no wakeup says when."""
        now = self._clock()
        if not self.waiting:
            self.waiting, self._since = True, now
            self._looks = LOOKS
        waited = now - self._since
        if waited < self._brief:
            return
        if waited < self._patience:
            self._yield()
            return
        self.resting = True
        if self._wakeup is None or moving:
            self._doze(min(waited / 16, self._cap))
        else:
            self._rest(self._wakeup, min(waited, self._deep))

    def _doze(self, seconds: float) -> None:
        """Sleep, but for the looks between two sleeps."""
        if self._asleep:
            self._wake()
        if self._looks > 1:
            self._looks -= 1
            return
        self._looks = LOOKS
        self._sleep(seconds)

    def _rest(self, wakeup: Wakeup, seconds: float) -> None:
        """Sleep until somebody rings; whoever looked before the wakeup was armed looks again after that."""
        if not self._asleep:
            wakeup.arm()
            self._asleep, self._looks = True, LOOKS
        if self._looks > 1:
            self._looks -= 1
            return
        self._looks = LOOKS
        wakeup.sleep(seconds)

    def _wake(self) -> None:
        assert self._wakeup is not None
        self._asleep = False
        self._wakeup.disarm()


def sharpen_sleep() -> None:
    """Let this process's sleeps end when they should: Linux rounds them up by 50 microseconds unless told not to."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)
