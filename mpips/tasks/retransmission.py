"""Retransmission: when to probe for unanswered requests, and how many to send again; modelled on RFC 6298.

MPI loses no messages, so timers run only where messages can be lost (injected faults). An expired timer sends a probe,
not data: the probe names the unanswered requests, and the receiver says which of them have not arrived. Only these are
sent again, within a budget. The timeout is measured on probes (smoothed round-trip time plus four deviations), since
they are answered at once, while the answer to a request may wait for its dependencies. It doubles with each probe
without progress, so that a slow receiver is probed less and less often, and is jittered, so that senders do not probe
at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MOST = 16.0
"""The largest timeout, in first timeouts."""
SPREAD = 0.25
"""The random part of a timeout."""
BURST = 64.0
"""Messages that may be sent again at once."""
SHARE = 0.1
"""Messages that may be sent again per message sent, in the long run."""


class Timer:
    """The timer of one direction; times are seconds on the caller's clock.

    Args:
        first: the timeout before a round trip was measured, and the smallest one.
        chance: returns a number in [0, 1), for the jitter.
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
        """Measure the round trip of an answered probe, unless another probe was sent meanwhile (Karn's rule)."""
        seconds, self._asked_at = now - self._asked_at, math.inf
        if seconds < 0 or self._tries != 1:
            return
        if self._mean is None:
            self._mean, self._deviation = seconds, seconds / 2
        else:
            self._deviation += (abs(seconds - self._mean) - self._deviation) / 4
            self._mean += (seconds - self._mean) / 8

    def heard(self, now: float) -> None:
        """Restart: the other side makes progress."""
        self._tries = 0
        self._due = now + self._timeout()

    def stop(self) -> None:
        """Stop the timer."""
        self._tries, self._due = 0, math.inf

    def expired(self, now: float) -> bool:
        """Return whether to probe now; a stopped timer starts."""
        if self._due == math.inf:
            self._due = now + self._timeout()
        if now < self._due:
            return False
        self._tries += 1
        self._asked_at = now
        self._due = now + self._timeout()
        return True


class Budget:
    """Bounds the retransmissions by the number of messages sent."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = BURST

    def earn(self, share: float = SHARE) -> None:
        """Count a sent message; or, with a share of 1, an expired timer, which may always send one message again."""
        self._left = min(self._left + share, BURST)

    def spend(self) -> bool:
        """Return whether one more message may be sent again, and count it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
