"""Half-open ranges of keys (paper, section 3.2).

A key is an unsigned 64-bit integer, so the end of the key space, 2**64, is not a key: bounds are Python ints. A range
with begin >= end is empty; all functions treat empty ranges alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

END = 2**64


class KeyRange(NamedTuple):
    """The keys begin <= key < end (the paper's R, section 3.2); `begin`, `end` are ints in [0, 2**64].

    >>> keys = KeyRange(10, 20)
    >>> keys.span, keys.empty
    (10, False)
    """

    begin: int
    end: int

    @property
    def empty(self) -> bool:
        """Return whether no key lies in the range."""
        return self.begin >= self.end

    @property
    def span(self) -> int:
        """Count the keys of the range."""
        return max(0, self.end - self.begin)

    def intersection(self, other: KeyRange) -> KeyRange | None:
        """Return the keys common to both ranges, None when there are none."""
        return intersection(self, other)


ALL = KeyRange(0, END)
"""The whole key space."""


def intersection(a: KeyRange, b: KeyRange) -> KeyRange | None:
    """Return the keys common to `a` and `b`, None when there are none."""
    begin = a.begin if a.begin > b.begin else b.begin
    end = a.end if a.end < b.end else b.end
    return KeyRange(begin, end) if begin < end else None


def coalesce(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """Return the union of `ranges` as the fewest ranges: sorted, non-empty, neither overlapping nor adjacent."""
    union: list[KeyRange] = []
    for piece in sorted(piece for piece in ranges if not piece.empty):
        if union and piece.begin <= union[-1].end:
            union[-1] = KeyRange(union[-1].begin, max(union[-1].end, piece.end))
        else:
            union.append(piece)
    return union
