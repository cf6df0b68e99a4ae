"""Which rows of a sparse segment are in memory, and at which position, when not all fit: those that are used most.

A row has a slot for good. Its place is a position in memory (0 or more), or a record on disk (`on_disk`), or NOWHERE:
it is as it began. Each row has a count of its uses, which it keeps while it is on disk; all counts are halved now and
then, so that what is not used any more gets few (TinyLFU: Einziger, Friedman, Manes, ACM Transactions on Storage 13(4),
2017). When a row needs a position, those with the lowest counts leave, among so many positions that a hand goes over:
exact would be among all. Rows of the present request stay, and those that were read ahead, until they are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.storage.growable_array import GrowableArray

NOWHERE = -1
I32 = NDArray[np.int32]
Uses = NDArray[np.uint8]
_MOST = 15
"""The highest count of uses."""
_PINNED, _AHEAD = 128, 64
"""Added to the count of a row of the present request, and of one that is read ahead and was not used yet."""
_WINDOW = 8
"""The hand goes over so many positions for each that is needed."""
_LEAST = 4096
"""Or over so many, if that is more."""
_AGE = 16
"""Counts are halved after so many uses for each row in memory."""


def on_disk(records: I32) -> I32:
    """Return the places of records, and the records at places: it is its own inverse.

    >>> on_disk(np.array([0, 7], np.int32)).tolist(), on_disk(np.array([-2, -9], np.int32)).tolist()
    ([-2, -9], [0, 7])
    """
    return np.int32(-2) - records


@kernel("i8(i4[::1], u1[::1], i4[::1], i4[::1], i4[::1])")
def _find(places: I32, uses: Uses, slots: I32, out: I32, absent: I32) -> int:
    """Pin rows and count their uses; write positions, -1 where there is none, and which slots those are.

    Returns how many these are, or -1 - their number if any of the others was read ahead.
    """
    count, ahead = 0, 0
    for i in range(len(slots)):
        out[i] = -1
        s = slots[i]
        if s >= 0:
            used = uses[s]
            ahead |= used & 64
            uses[s] = min((used & 15) + 1, 15) | 128
            at = places[s]
            if at >= 0:
                out[i] = at
            else:
                absent[count] = i
                count += 1
    return -1 - count if ahead else count


@kernel("void(u1[::1], i4[::1], u1)")
def _clear(uses: Uses, slots: I32, bit: int) -> None:
    for i in range(len(slots)):
        if slots[i] >= 0:
            uses[slots[i]] &= ~np.uint8(bit)


@kernel("i8(i4[::1], u1[::1], i8, i8, i8, i4[::1])")
def _least_used(owner: I32, uses: Uses, hand: int, positions: int, window: int, out: I32) -> int:
    """Find the positions with the lowest counts among `window` from `hand` on, to fill `out`; return how many."""
    histogram = np.zeros(16, np.int64)
    at = hand
    for _ in range(window):
        if owner[at] >= 0:
            used = uses[owner[at]]
            if used < 16:
                histogram[used] += 1
        at = at + 1 if at + 1 < positions else 0
    limit, below = 0, 0
    while limit < 15 and below + histogram[limit] < len(out):
        below += histogram[limit]
        limit += 1
    # Of those with the highest count of all, the first ones.
    last = len(out) - below
    count, at = 0, hand
    for _ in range(window):
        if owner[at] >= 0:
            used = uses[owner[at]]
            if used < limit or (used == limit and last > 0):
                last -= used == limit
                if count < len(out):
                    out[count] = at
                    count += 1
        at = at + 1 if at + 1 < positions else 0
    return count


class Placement:
    """The places of the rows of a segment; see the module."""

    def __init__(self) -> None:
        self._places = GrowableArray(np.int32, fill=NOWHERE, tight=True)
        self._uses = GrowableArray(np.uint8, tight=True)
        self._owner = GrowableArray(np.int32, fill=-1, tight=True)
        self._slots = self._hand = self._age = 0
        self.positions = 0
        """Positions that are taken, or were: the first ones."""
        self._vacant: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._places.nbytes + self._uses.nbytes + self._owner.nbytes

    @property
    def places(self) -> I32:
        """The place of each slot."""
        places: I32 = self._places.array[: self._slots]
        return places

    @property
    def owner(self) -> I32:
        """The slot of the row at each position, -1 if there is none."""
        owner: I32 = self._owner.array[: self.positions]
        return owner

    @property
    def straight(self) -> bool:
        """Whether the position of each row is its slot."""
        count = self._slots
        return self.positions == count and bool((self.owner == np.arange(count)).all())

    def add(self, count: int) -> None:
        """Have slots up to `count`, whose rows are nowhere."""
        for array in (self._places, self._uses):
            if len(array) < count:
                array.reserve(array.next_capacity(count))
        self._slots = count

    def find(self, slots: I32) -> tuple[I32, I32, bool]:
        """Return the positions of slots (-1: none), which have none, and whether any was read ahead; pin all.

        Slots of -1 are ignored.
        """
        out, absent = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
        count = _find(self._places.array, self._uses.array, slots, out, absent)
        self._age += len(slots)
        return out, absent[: count if count >= 0 else -1 - count], count < 0

    def unpin(self, slots: I32) -> None:
        """Let rows leave again."""
        _clear(self._uses.array, slots, _PINNED)
        if self._age > _AGE * max(self.positions, _LEAST):
            uses = self._uses.array[: self._slots]
            uses[:] = (uses & 192) | ((uses & _MOST) >> 1)
            self._age = 0

    def expect(self, slots: I32) -> None:
        """Let rows that are read ahead stay until they are used."""
        self._uses.array[slots] |= _AHEAD

    def give_up(self, slots: I32) -> None:
        """Let rows leave that were read ahead."""
        _clear(self._uses.array, slots, _AHEAD)

    def vacant(self, count: int, most: int) -> I32:
        """Return free positions of the first `most` ones, `count` at most; they are taken by `put`."""
        taken = [self._vacant.pop() for _ in range(min(count, len(self._vacant)))]
        more = max(min(count - len(taken), most - self.positions), 0)
        found = np.array([*taken, *range(self.positions, self.positions + more)], np.int32)
        if more:
            self.positions += more
            if len(self._owner) < self.positions:
                self._owner.reserve(self._owner.next_capacity(self.positions))
        return found

    def least_used(self, count: int) -> I32:
        """Return so many positions of rows that may leave."""
        out = np.empty(count, np.int32)
        positions, window = self.positions, min(max(_WINDOW * count, _LEAST), self.positions)
        while positions:
            self._hand %= positions
            found = _least_used(self._owner.array, self._uses.array, self._hand, positions, window, out)
            if found == count or window == positions:
                self._hand += window
                return out[:found]
            window = positions
        return out[:0]

    def put(self, slots: I32, places: I32) -> None:
        """Set the places of rows; what was at positions has left."""
        self._places.array[slots] = places
        here = places >= 0
        self._owner.array[places[here]] = slots[here]

    def cut(self, positions: int) -> None:
        """Have fewer positions; no row is behind them."""
        if positions < self.positions:
            self._owner.array[positions : self.positions] = -1
            self.positions = positions
            self._vacant = [each for each in self._vacant if each < positions]

    def keep(self, slots: I32) -> I32:
        """Drop all rows but those of slots, whose new slots are their places among these; return these by old slot."""
        places, uses = self.places[slots], self._uses.array[slots]
        numbers = np.full(self._slots, -1, np.int32)
        numbers[slots] = np.arange(len(slots), dtype=np.int32)
        owner = self.owner
        owner[:] = np.where(owner >= 0, numbers[owner], np.int32(-1))
        self._vacant = np.flatnonzero(owner < 0)[::-1].tolist()
        self._places.array[: self._slots] = NOWHERE
        self._uses.array[: self._slots] = 0
        self._slots = len(slots)
        self._places.array[: len(slots)], self._uses.array[: len(slots)] = places, uses
        return numbers
