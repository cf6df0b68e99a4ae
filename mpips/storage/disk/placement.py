"""Where the rows of a sparse segment are, when not all fit into memory: those that are used often lie together.

A row has a slot for good, and a position in the arrays, which changes. The first `hot` positions are in memory. A row
that is used and lies behind them moves to one of them; for it another row leaves, one that was not used for long (a
clock with several chances, as in `mpips.storage.disk.page_clock`), and goes to the next free position behind. These are
filled in order, again and again, as the blocks of a log-structured file system are (Rosenblum, Ousterhout, TOCS 10(1),
1992, "threaded log"): so rows that leave are written many to a page and page after page, and a disk is read at random
places, but not written there. Any placement is right: a row that cannot move is used where it is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.storage.growable_array import GrowableArray

MOST = 6
"""The most chances of a row."""
PINNED = 128
"""Added to the chances of the rows of the present request, which must not move."""
SPARE = 1024
"""The least number of free positions."""
I32 = NDArray[np.int32]


@kernel("i8(i4[::1], u1[::1], i4[::1], i8, i4[::1], i4[::1])")
def find(places: I32, heat: NDArray[np.uint8], slots: I32, hot: int, out: I32, cold: I32) -> int:
    """Write the positions of slots (-1: none), and which of them are not hot; pin the hot ones. Return their number."""
    count = 0
    for i in range(len(slots)):
        out[i] = -1
        if slots[i] >= 0:
            at = places[slots[i]]
            out[i] = at
            if at < hot:
                heat[at] = min((heat[at] & 127) + 1, MOST) | 128
            else:
                cold[count] = i
                count += 1
    return count


@kernel("void(u1[::1], i4[::1])")
def unpin(heat: NDArray[np.uint8], positions: I32) -> None:
    """Let the rows at some positions (-1: none) move again."""
    for i in range(len(positions)):
        if positions[i] >= 0:
            heat[positions[i]] &= 127


@kernel("i8(i4[::1], u1[::1], i8, i8, i8, i4[::1])")
def victims(owner: I32, heat: NDArray[np.uint8], hand: int, hot: int, steps: int, out: I32) -> int:
    """Find hot positions that are free, or whose rows have no chance left; return hand + hot * their number.

    The hand goes as many steps at most.
    """
    at, count = hand, 0
    for _ in range(steps):
        if count == len(out):
            break
        if heat[at] < 128:
            if owner[at] < 0 or heat[at] == 0:
                out[count] = at
                # It is not found twice.
                heat[at] = 128
                count += 1
            else:
                heat[at] -= 1
        at = at + 1 if at + 1 < hot else 0
    return at + hot * count


@kernel("i8(i4[::1], i8, i8, i8, i4[::1])")
def free_positions(owner: I32, tail: int, begin: int, end: int, out: I32) -> int:
    """Find the next free positions from `tail` on, round and round from `begin` to `end`; return how many."""
    at, count = tail, 0
    for _ in range(end - begin):
        if count == len(out):
            break
        if owner[at] < 0:
            out[count] = at
            count += 1
        at = at + 1 if at + 1 < end else begin
    return count


class Placement:
    """The positions of the rows of a segment; see the module. At first a row's position is its slot."""

    def __init__(self, expect: int = 0) -> None:
        self._places = GrowableArray(np.int32, rows=expect, fill=-1)
        self._owner = GrowableArray(np.int32, rows=expect, fill=-1)
        self._heat = GrowableArray(np.uint8, rows=expect)
        self._count = self._hand = self._tail = 0
        self.moved = False
        """Whether the position of any row is not its slot."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._places.nbytes + self._owner.nbytes + self._heat.nbytes

    @staticmethod
    def room(count: int, hot: int) -> int:
        """Return how many positions so many rows need, with free ones to move to."""
        return count + SPARE + max(count - hot, 0)

    @property
    def owner(self) -> I32:
        """The slot of the row at each position, -1 if it is free."""
        owner: I32 = self._owner.array
        return owner

    def at(self, slots: I32) -> I32:
        """Return the positions of slots (-1: none)."""
        return np.where(slots >= 0, self._places.array[slots], np.int32(-1))

    def add(self, count: int, hot: int, capacity: int) -> I32:
        """Give positions to the slots up to `count`, and return those of new ones; `capacity` is `room` or more."""
        before, self._count = self._count, count
        if len(self._places) < count:
            self._places.reserve(self._places.next_capacity(count))
        self._reserve(capacity)
        new = np.arange(before, count, dtype=np.int32)
        if not self.moved:
            positions = new
        else:
            positions = self._next_free(len(new), hot, capacity)
            if len(positions) < len(new):
                # The number of hot ones has grown.
                more = np.flatnonzero(self.owner[: min(hot, capacity)] < 0)[: len(new) - len(positions)]
                positions = np.concatenate([positions, more.astype(np.int32)])
        self._places.array[new] = positions
        self._owner.array[positions] = new
        self._heat.array[positions] = 0
        return positions

    def _reserve(self, capacity: int) -> None:
        for array in (self._owner, self._heat):
            if len(array) < capacity:
                array.reserve(array.next_capacity(capacity))

    def _next_free(self, wanted: int, hot: int, capacity: int) -> I32:
        begin = min(hot, capacity)
        tail = self._tail if begin <= self._tail < capacity else begin
        out = np.empty(wanted, np.int32)
        out = out[: free_positions(self._owner.array, tail, begin, capacity, out)]
        if len(out):
            self._tail = int(out[-1]) + 1
        return out

    def find(self, slots: I32, hot: int) -> tuple[I32, I32]:
        """Return the positions of slots (-1: none), and which of them are to move; pin the others."""
        out, cold = np.empty(len(slots), np.int32), np.empty(len(slots), np.int32)
        count = find(self._places.array, self._heat.array, slots, min(hot, len(self._heat)), out, cold)
        return out, cold[:count]

    def exchange(self, slots: I32, hot: int, capacity: int) -> tuple[I32, I32, I32, I32]:
        """Move rows that are not hot: return (leaving, where to, coming, where to), positions to copy in this order.

        The first ones of `slots` come, as many as there is room for, and are pinned.
        """
        # The arrays of rows have grown since, without new rows.
        self._reserve(capacity)
        places, owner, heat = self._places.array, self._owner.array, self._heat.array
        hot = min(hot, capacity)
        found = np.empty(len(slots), np.int32)
        if hot:
            moved = victims(owner, heat, self._hand % hot, hot, (MOST + 1) * hot, found)
            found, self._hand = found[: moved // hot], moved % hot
        else:
            found = found[:0]
        taken = owner[found] >= 0
        targets = self._next_free(int(taken.sum()), hot, capacity)
        if len(targets) < taken.sum():
            fits = ~taken | (np.cumsum(taken) <= len(targets))
            heat[found[~fits]] = 0
            found, taken = found[fits], taken[fits]
        leaving, coming = found[taken], slots[: len(found)]
        going = owner[leaving]
        places[going], owner[targets] = targets, going
        sources = places[coming]
        owner[sources] = -1
        places[coming], owner[found] = found, coming
        heat[found] = PINNED + 1
        self.moved = True
        return leaving, targets, sources, found

    def unpin(self, positions: I32) -> None:
        """Let rows at some positions move again."""
        unpin(self._heat.array, positions)
