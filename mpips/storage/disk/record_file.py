"""Rows on disk, each with its state as one record: written many at once and in order, read where they are.

The file is a log (Rosenblum, Ousterhout, TOCS 10(1), 1992): records that leave memory are appended to an open unit,
which is written as a whole when it is full. A record that is read back into memory is free. Of units without records
the next one to be opened is taken; where none is left, the one with the fewest records is read, and these are appended
anew, or the file grows, if too few are free. So a disk is read at random places, a record at each, but not written
there.

A record has a number: its unit, and its place in it. `shape` i8[4] says where that is: records of a unit, bytes of a
unit, records of a cell, bytes of a record. No record of less than a page lies on two, unless that wasted an eighth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.storage.disk.direct_file import Bytes, DirectFile, Reads, aligned
from mpips.storage.disk.disk_file import PAGE
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.growable_array import GrowableArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Spread = Callable[[NDArray[np.int64], Bytes, I64], None]
"""Takes places among the records asked for, bytes, and where in them each record begins."""
_TOGETHER = 1 << 17
"""The most bytes that are read at once."""
_FULL, _WORTH, _BRIM = 0.6, 0.75, 0.95
"""Units are freed while less than `_FULL` of the file is used, and of one unit `_WORTH`; or `_BRIM`, if the disk has no
room for more."""


@kernel(inline=True)
def _begin_of(record: int, shape: I64) -> Any:
    """Return where a record begins."""
    unit, at = record // shape[0], record % shape[0]
    return unit * shape[1] + at // shape[2] * PAGE + at % shape[2] * shape[3]


@kernel("i8(i4[::1], i8[::1], i8, i8, i8[::1], i8[:,::1])")
def _plan(records: I32, shape: I64, sector: int, room: int, at: I64, ops: I64) -> int:
    """Plan reads of ascending records into `room` bytes: return how many of the records, and `at[-1]`, of the reads.

    Those that touch are read together. `at` gets where each record is in the bytes.
    """
    count, used, end = 0, 0, 0
    for i in range(len(records)):
        begin = _begin_of(records[i], shape)
        first = begin // sector * sector
        last = (begin + shape[3] + sector - 1) // sector * sector
        if count > 0 and first <= end and last - ops[count - 1, 0] <= _TOGETHER:
            more = max(last - end, 0)
            if used + more > room:
                at[-1] = count
                return i
            ops[count - 1, 1] += more
            used += more
            end += more
        else:
            if used + last - first > room:
                at[-1] = count
                return i
            ops[count, 0], ops[count, 1], ops[count, 2] = first, last - first, used
            used += last - first
            end = last
            count += 1
        at[i] = ops[count - 1, 2] + begin - ops[count - 1, 0]
    at[-1] = count
    return len(records)


class RecordFile:
    """A file of records of `size` bytes; `unit` bytes at least are written at once. `reads` are shared with others."""

    def __init__(self, file: DirectFile, reads: Reads, size: int, unit: int) -> None:
        self._file, self._reads = file, reads
        self.record = -(-size // 8) * 8
        unit = max(unit, -(-self.record // PAGE) * PAGE)
        cell = max(PAGE // self.record, 1)
        if self.record > PAGE or cell * self.record < PAGE - PAGE // 8:
            cell = unit // self.record
            self._each = cell
        else:
            self._each = unit // PAGE * cell
        self._unit = unit
        self._shape = np.array([self._each, unit, cell, self.record], np.int64)
        self._owner = GrowableArray(np.int32, fill=-1, tight=True)
        # By unit: records in use. A unit with -1 is not in use.
        self._live: NDArray[np.int32] = np.zeros(0, np.int32)
        self._free: list[int] = []
        self._count = 0
        # The open unit, its records, and its bytes.
        self._open, self._filled = -1, 0
        self._bytes: Bytes = np.zeros(0, np.uint8)
        self.moved: Callable[[I32, I32], None] = lambda owners, records: None
        """Is told which owners have other records."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self._owner.nbytes + self._live.nbytes + len(self._bytes)

    @property
    def on_disk(self) -> int:
        """Bytes of the file."""
        return self._file.size

    @property
    def owner(self) -> I32:
        """The owner of each record, -1 if it is free."""
        owner: I32 = self._owner.array[: len(self._live) * self._each]
        return owner

    def _begins(self, records: I32) -> I64:
        wide = records.astype(np.int64)
        each, unit, cell, size = self._shape.tolist()
        at = wide % each
        found: I64 = wide // each * unit + at // cell * PAGE + at % cell * size
        return found

    # Out of memory.

    def reserve(self, count: int) -> None:
        """Make room for so many records; StoreFailed if the disk is full, and nothing has changed."""
        if len(self._bytes) == 0:
            self._bytes = aligned(self._unit)
        # One unit is kept for what is moved.
        while (
            len(self._free) * self._each + (self._each - self._filled) * (self._open >= 0)
            < count + self._each
        ):
            used, held = self._count + count, len(self._live) * self._each
            unit, live = self._emptiest()
            if used <= _FULL * held and live <= _WORTH * self._each:
                self._clean(unit)
                continue
            try:
                self._grow(used)
            except StoreFailed:
                if used > _BRIM * held or live >= self._each:
                    raise
                self._clean(unit)

    def _emptiest(self) -> tuple[int, int]:
        """Return the unit with the fewest records, and their number; there may be none, as if one were full."""
        of = np.where(self._live < 0, self._each, self._live)
        if self._open >= 0:
            of[self._open] = self._each
        unit = int(of.argmin()) if len(of) else -1
        return unit, int(of[unit]) if len(of) else self._each

    def _grow(self, used: int) -> None:
        before = len(self._live)
        units = max(before // 8, int(used / _FULL) // self._each - before, 0) + 2
        self._file.grow((before + units) * self._unit)
        if len(self._owner) < (before + units) * self._each:
            self._owner.reserve(self._owner.next_capacity((before + units) * self._each))
        self._live = np.concatenate([self._live, np.full(units, -1, np.int32)])
        self._free = [*range(before + units - 1, before - 1, -1), *self._free]

    def _clean(self, unit: int) -> None:
        """Free a unit: append its records anew."""
        # Some of them may be free then.
        self._reads.finish()
        begin = unit * self._each
        owner = self._owner.array
        records = (begin + np.flatnonzero(owner[begin : begin + self._each] >= 0)).astype(np.int32)
        owners = owner[records]
        rows = np.empty((len(records), self.record), np.uint8)

        def keep(which: NDArray[np.int64], raw: Bytes, at: I64) -> None:
            rows[which] = raw[at[:, None] + np.arange(self.record)]

        self.read(records, keep)
        self.free(records)

        def fill(part: slice, raw: Bytes, at: I64) -> None:
            raw[at[:, None] + np.arange(self.record)] = rows[part]

        self.moved(owners, self.append(owners, fill))

    def append(self, owners: I32, fill: Callable[[slice, Bytes, I64], None]) -> I32:
        """Append a record of each owner, for which there is room; return them. Those that are being read stay.

        `fill` is given which of them, bytes, and where in them each record begins.
        """
        out = np.empty(len(owners), np.int32)
        begin = 0
        while begin < len(owners):
            if self._open < 0:
                self._open, self._filled = self._free.pop(), 0
                self._live[self._open] = 0
            part = slice(begin, min(begin + self._each - self._filled, len(owners)))
            count = part.stop - part.start
            first = self._open * self._each + self._filled
            records = out[part] = np.arange(first, first + count, dtype=np.int32)
            fill(part, self._bytes, self._begins(records) - self._open * self._unit)
            self._owner.array[records] = owners[part]
            self._live[self._open] += count
            self._count += count
            self._filled += count
            begin = part.stop
            if self._filled == self._each:
                self._file.write(self._open * self._unit, self._bytes)
                full, self._open = self._open, -1
                if self._live[full] == 0:
                    self._drop(full)
        return out

    def free(self, records: I32) -> None:
        """Free records, none of them twice: their place is others' from now on."""
        self._owner.array[records] = -1
        self._count -= len(records)
        units, counts = np.unique(records // self._each, return_counts=True)
        self._live[units] -= counts.astype(np.int32)
        for unit in units[self._live[units] == 0].tolist():
            if unit != self._open:
                self._drop(unit)

    def _drop(self, unit: int) -> None:
        self._live[unit] = -1
        self._free.append(unit)

    def renumber(self, numbers: I32) -> None:
        """Give records new owners: `numbers` by owner, -1: the record is freed."""
        owner = self.owner
        used = np.flatnonzero(owner >= 0).astype(np.int32)
        found = numbers[owner[used]]
        owner[used[found >= 0]] = found[found >= 0]
        self.free(used[found < 0])

    # Into memory.

    def at_once(self) -> int:
        """Return how many records can be read at once, wherever they are."""
        sector = self._file.sector
        # Of records of whole sectors none begins within one.
        more = sector if self.record % sector else 0
        return max(len(self._reads.buffer) // (-(-self.record // sector) * sector + more), 1)

    def read(self, records: I32, spread: Spread) -> None:
        """Read records, which `spread` is given in parts; StoreFailed if they cannot be read."""
        self._reads.finish()
        which = self._written(records, spread)
        while len(which):
            which = which[self._begin(records, which, spread) :]
            self._reads.finish()

    def start(self, records: I32, spread: Spread) -> None:
        """Start to read records, `at_once` at most; `spread` is called when the reads are next waited for."""
        self._reads.finish()
        which = self._written(records, spread)
        if len(which):
            self._begin(records, which, spread)

    def _written(self, records: I32, spread: Spread) -> NDArray[np.int64]:
        """Spread the records that are in memory; return the others, in order."""
        which = np.argsort(records)
        if self._open < 0:
            return which
        first, last = np.searchsorted(
            records[which], [self._open * self._each, (self._open + 1) * self._each]
        ).tolist()
        if first == last:
            return which
        mine = which[first:last]
        spread(mine, self._bytes, self._begins(records[mine]) - self._open * self._unit)
        return np.concatenate([which[:first], which[last:]])

    def _begin(self, records: I32, which: NDArray[np.int64], spread: Spread) -> int:
        at, ops = np.empty(len(which) + 1, np.int64), np.empty((len(which), 3), np.int64)
        count = _plan(records[which], self._shape, self._file.sector, len(self._reads.buffer), at, ops)
        taken, places = which[:count], at[:count]
        self._reads.begin(self._file, ops[: at[-1]], lambda raw: spread(taken, raw, places))
        return count
