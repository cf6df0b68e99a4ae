"""Half-open ranges of keys (paper, section 3.2), and sets of times kept as runs.

A key is an unsigned 64-bit integer, so the end of the key space, 2**64, is not a key: bounds are Python ints. A range
with begin >= end is empty; all functions treat empty ranges alike.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

END = 2**64


class KeyRange(NamedTuple):
    """The keys begin <= key < end (the paper's R, section 3.2); `begin`, `end` are ints in [0, 2**64]."""

    begin: int
    end: int

    @property
    def empty(self) -> bool:
        """Tell whether no key lies in the range."""
        return self.begin >= self.end

    @property
    def span(self) -> int:
        """Count the keys of the range."""
        return max(0, self.end - self.begin)

    def contains(self, other: int | KeyRange) -> bool:
        """Tell whether a key, or every key of a range, lies in this range."""
        if isinstance(other, KeyRange):
            return other.empty or (self.begin <= other.begin and other.end <= self.end)
        return self.begin <= other < self.end

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


def subtract(a: KeyRange, b: KeyRange) -> list[KeyRange]:
    """Return the keys of `a` that are not in `b`: none, one or two ranges in key order."""
    if a.empty:
        return []
    common = intersection(a, b)
    if common is None:
        return [a]
    pieces = (KeyRange(a.begin, common.begin), KeyRange(common.end, a.end))
    return [piece for piece in pieces if not piece.empty]


def split(whole: KeyRange, cuts: Iterable[int]) -> list[KeyRange]:
    """Split a range before each key of `cuts` (in any order; those outside have no effect) into non-empty ranges."""
    if whole.empty:
        return []
    inner = sorted({cut for cut in cuts if whole.begin < cut < whole.end})
    bounds = [whole.begin, *inner, whole.end]
    return [KeyRange(begin, end) for begin, end in pairwise(bounds)]


def coalesce(ranges: Iterable[KeyRange]) -> list[KeyRange]:
    """Return the union of `ranges` as the fewest ranges: sorted, non-empty, neither overlapping nor adjacent."""
    union: list[KeyRange] = []
    for piece in sorted(piece for piece in ranges if not piece.empty):
        if union and piece.begin <= union[-1].end:
            union[-1] = KeyRange(union[-1].begin, max(union[-1].end, piece.end))
        else:
            union.append(piece)
    return union


class Intervals:
    """A set of int64 times, kept as the fewest half-open runs.

    Times are mostly added in order (a peer numbers its tasks 0, 1, 2 ...), so the set is one run, plus one for each
    open gap, however many tasks there were. Queries cost O(log runs).
    """

    __slots__ = ("_begins", "_ends")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        union = coalesce(KeyRange(begin, end) for begin, end in runs)
        self._begins = [run.begin for run in union]
        self._ends = [run.end for run in union]

    def add(self, time: int) -> bool:
        """Add one time; return whether it is new."""
        begins, ends = self._begins, self._ends
        if ends and time == ends[-1]:
            ends[-1] = time + 1
            return True
        at = bisect_right(begins, time)  # the run that may hold `time` is at - 1
        if at and time < ends[at - 1]:
            return False
        after_left = at > 0 and ends[at - 1] == time
        before_right = at < len(begins) and begins[at] == time + 1
        if after_left and before_right:
            ends[at - 1] = ends.pop(at)
            begins.pop(at)
        elif after_left:
            ends[at - 1] = time + 1
        elif before_right:
            begins[at] = time
        else:
            begins.insert(at, time)
            ends.insert(at, time + 1)
        return True

    def __contains__(self, time: object) -> bool:
        if not isinstance(time, int):
            return False
        at = bisect_right(self._begins, time)
        return at > 0 and time < self._ends[at - 1]

    def covers(self, begin: int, end: int) -> bool:
        """Tell whether every time in begin <= time < end is in the set."""
        if begin >= end:
            return True
        at = bisect_right(self._begins, begin)
        return at > 0 and end <= self._ends[at - 1]

    def first_missing(self, start: int = 0) -> int:
        """Return the first time >= `start` that is not in the set."""
        at = bisect_right(self._begins, start)
        return self._ends[at - 1] if at and start < self._ends[at - 1] else start

    def runs(self) -> list[tuple[int, int]]:
        """Return the runs (begin, end) in order: what the constructor takes, for checkpoints."""
        return list(zip(self._begins, self._ends, strict=True))

    def __iter__(self) -> Iterator[int]:
        for begin, end in zip(self._begins, self._ends, strict=True):
            yield from range(begin, end)

    def __len__(self) -> int:
        return sum(self._ends) - sum(self._begins)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervals):
            return NotImplemented
        return self._begins == other._begins and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Intervals({self.runs()})"
