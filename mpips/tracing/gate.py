"""The gate: what a trace may cost, so many records in a second.

Each record costs one of a budget, which grows with time up to that of a burst. Once it is spent the gate is shut until
a whole burst has been saved. Meanwhile spans longer than `LONG` are still recorded each for itself; of brief ones only
the sums are.
"""

from __future__ import annotations

from mpips.tracing.trace_file import What

PER = 0.005
"""Seconds in which a rank may record `detail` spans."""
BURST = 10
"""Times `detail`: what may be recorded at once, once it has been saved; the gate opens for no less."""
LONG = 500e-6
"""Seconds from which on a span is recorded for itself in any case."""


class Gate:
    """Lets `detail` records pass in PER, on average; times are in seconds, of any clock."""

    __slots__ = ("_detail", "_ticked", "budget", "hidden", "open", "since")

    def __init__(self, detail: int, now: float) -> None:
        self.open = True
        """Whether brief spans are recorded each for itself at this moment."""
        self.budget = float(BURST * detail)
        """Records that may follow."""
        self.since = 0.0
        """Since when it is shut, or was last."""
        self.hidden = [0.0] * len(What)
        """Seconds by `What` of the spans that were only summed."""
        self._detail, self._ticked = detail, now

    def earn(self, now: float) -> bool:
        """Add what was saved since the last time; return whether it is enough for the gate to open."""
        burst = BURST * self._detail
        earned = self._detail * (now - self._ticked) / PER
        self.budget, self._ticked = min(max(self.budget, 0.0) + earned, burst), now
        # The factor sums up roundings.
        return 0 < burst <= self.budget * (1 + 1e-9)
