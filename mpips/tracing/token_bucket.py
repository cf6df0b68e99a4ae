"""A token bucket bounds the number of records per second, and so the cost of a trace.

Each record takes a token; tokens accumulate over time, up to those of a burst. When there is none left, the bucket is
closed until a whole burst has accumulated. While it is closed, spans longer than `LONG` are still recorded
individually; brief ones are only summed.
"""

from __future__ import annotations

from mpips.tracing.trace_file import What

PER = 0.005
"""Seconds in which a rank may record `detail` spans on average."""
BURST = 10
"""Capacity of the bucket, in units of `detail`; it opens when it is full."""
LONG = 500e-6
"""Duration in seconds from which on a span is always recorded."""


class TokenBucket:
    """Allows `detail` records in PER, on average; times are in seconds, of any clock."""

    __slots__ = ("_detail", "_ticked", "hidden", "open", "since", "tokens")

    def __init__(self, detail: int, now: float) -> None:
        self.open = True
        """Whether brief spans are recorded individually now."""
        self.tokens = float(BURST * detail)
        """Number of tokens."""
        self.since = 0.0
        """The time at which it was last closed."""
        self.hidden = [0.0] * len(What)
        """Seconds by `What` of the spans that were only summed."""
        self._detail, self._ticked = detail, now

    def refill(self, now: float) -> bool:
        """Add the tokens since the last call; return whether the bucket is full."""
        burst = BURST * self._detail
        earned = self._detail * (now - self._ticked) / PER
        self.tokens, self._ticked = min(max(self.tokens, 0.0) + earned, burst), now
        # The factor allows for rounding.
        return 0 < burst <= self.tokens * (1 + 1e-9)
