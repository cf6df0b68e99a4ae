"""When to ask again for what stays unanswered, and how much may be sent again: the model is RFC 6298.

MPI loses nothing, so timers run only where messages can be lost (injected faults). A timer that expires sends no data:
it sends a probe, which names what the sender waits for, and the receiver says which of that has never come. Only this
is sent again, within a budget. The timeout is measured on probes, which are answered at once (smoothed round trip plus
four deviations): the answer to a request may wait for whatever the request waits for. It doubles with each probe that
shows no progress, and is spread at random, so that many senders do not ask in step. A receiver that is slow is asked
less and less often, and costs nobody more than a small message now and then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MOST = 16.0
"""By how much a timeout may grow, in first timeouts."""
SPREAD = 0.25
"""The part of a timeout that is random."""
BURST = 64.0
"""How many messages may be sent again at once."""
SHARE = 0.1
"""How many messages may be sent again for each that was sent, in the long run."""


class Timer:
    """The timer of one direction; times are seconds on the caller's clock.

    Args:
        first: the timeout before a round trip was measured, and the least one.
        chance: gives a number from [0, 1), for the spread.
    """

    __slots__ = ("_asked_at", "_chance", "_deviation", "_due", "_first", "_mean", "_tries")

    def __init__(self, first: float, chance: Callable[[], float]) -> None:
        self._first, self._chance = first, chance
        self._mean: float | None = None
        self._deviation = 0.0
        self._tries = 0
        self._due = self._asked_at = math.inf

    @property
    def base(self) -> float:
        """The timeout of a first try."""
        measured = 0.0 if self._mean is None else self._mean + 4 * self._deviation
        return max(self._first, measured)

    def _timeout(self) -> float:
        grown = min(self.base * 2.0**self._tries, MOST * self._first)
        return grown * (1 + SPREAD * self._chance())

    def answered(self, now: float) -> None:
        """Take the answer to a probe: a round trip, unless it may be that of another one (Karn's rule)."""
        seconds, self._asked_at = now - self._asked_at, math.inf
        if seconds < 0 or self._tries != 1:
            return
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8

    def heard(self, now: float) -> None:
        """Start anew: the other side has given a sign of progress."""
        self._tries = 0
        self._due = now + self._timeout()

    def stop(self) -> None:
        """Wait for nothing."""
        self._tries, self._due = 0, math.inf

    def expired(self, now: float) -> bool:
        """Tell whether to probe now; a timer that did not run starts."""
        if self._due == math.inf:
            self._due = now + self._timeout()
        if now < self._due:
            return False
        self._tries += 1
        self._asked_at = now
        self._due = now + self._timeout()
        return True


class Budget:
    """Bounds what is sent again by what is sent."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = BURST

    def earn(self, share: float = SHARE) -> None:
        """Note that something was sent; or, with a share of 1, that a timer has expired, so that it always goes on."""
        self._left = min(self._left + share, BURST)

    def spend(self) -> bool:
        """Tell whether one more may be sent again, and count it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
