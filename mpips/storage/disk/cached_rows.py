"""Rows of a sparse segment with a store: those that are used much in arrays in memory, the others as records on disk.

A request has its rows brought in, many with one call of the system (`mpips.storage.disk.record_file`), and uses their
positions in the arrays as slots. Others leave for them (`mpips.storage.disk.placement`). New rows are nowhere until
they are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.storage.disk.direct_file import Bytes
from mpips.storage.disk.mapped_rows import Positions, Whole, part_of, pieces, size_of
from mpips.storage.disk.placement import NOWHERE, Placement, on_disk
from mpips.storage.disk.record_file import RecordFile
from mpips.storage.disk.sorted_copy import SortedCopy
from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray

Array = NDArray[Any]
I32 = NDArray[np.int32]
Arrays = Mapping[str, Array]
Begin = Callable[[I32, Arrays, Positions], None]
"""Sets the rows of new slots, in arrays by column, at some positions."""


@kernel("void(u1[::1], i8[::1], i8, u1[:,::1], i8[::1])")
def _spread(
    raw: Bytes, begins: NDArray[np.int64], offset: int, column: Bytes, rows: NDArray[np.int64]
) -> None:
    """Copy a column's part of records to rows."""
    for i in range(len(begins)):
        first, row = begins[i] + offset, rows[i]
        for j in range(column.shape[1]):
            column[row, j] = raw[first + j]


@kernel("void(u1[::1], i8[::1], i8, u1[:,::1], i8[::1])")
def _collect(
    raw: Bytes, begins: NDArray[np.int64], offset: int, column: Bytes, rows: NDArray[np.int64]
) -> None:
    """Copy rows to a column's part of records."""
    for i in range(len(begins)):
        first, row = begins[i] + offset, rows[i]
        for j in range(column.shape[1]):
            raw[first + j] = column[row, j]


class CachedRows:
    """The rows; `columns` are their arrays by name, without a fill; `begin` makes new ones."""

    def __init__(self, store: Store, columns: Mapping[str, GrowableArray], begin: Begin) -> None:
        self.store, self._columns, self._begin = store, columns, begin
        self._row = sum(each.row for each in columns.values())
        self._placement = Placement()
        self._records: RecordFile | None = None
        # Rows that were read ahead, and may not have been used yet.
        self._ahead: deque[I32] = deque()
        self._offsets, at = dict[str, int](), 0
        for name, column in columns.items():
            self._offsets[name] = at
            at += column.row
        self._count = 0
        store.enter(self)

    @property
    def straight(self) -> bool:
        """Whether the position of each row is its slot."""
        return self._placement.straight

    # Memory.

    def hold(self, index: int, count: int) -> None:
        """Tell the store how many rows the segment has, and that it has an index of so many bytes in memory."""
        self._count = count
        self._placement.add(count)
        self.store.hold(self, index + self._overhead, count * self._row, self._row)

    @property
    def _overhead(self) -> int:
        records = 0 if self._records is None else self._records.nbytes
        return self._placement.nbytes + records

    @property
    def in_memory(self) -> int:
        """Bytes of rows in memory."""
        return self._placement.positions * self._row

    @property
    def on_disk(self) -> int:
        """Bytes on disk."""
        return 0 if self._records is None else self._records.on_disk

    @property
    def _most(self) -> int:
        """Rows that may be in memory, and have room in the arrays."""
        return min(self.store.rows_in_memory(self, self._row), min(map(len, self._columns.values())))

    def room(self, count: int) -> int:
        """Return how many rows the arrays must have room for, of so many slots."""
        return min(count, self.store.rows_in_memory(self, self._row))

    def shrink(self) -> None:
        """Let rows leave until no more are in memory than may be, since others have grown."""
        placement, most = self._placement, self.store.rows_in_memory(self, self._row)
        self._give_up(most // 4)
        if placement.positions <= most:
            return
        self.store.reads.finish()
        behind = most + np.flatnonzero(placement.owner[most:] >= 0).astype(np.int32)
        self._write(behind)
        placement.cut(most)
        for column in self._columns.values():
            column.release(most)

    # Requests.

    def place(self, before: int, count: int) -> None:
        """Give positions to new slots if nothing has left yet and they have room: they are their slots."""
        if self._records is None and self._placement.positions == before and count <= self._most:
            slots = np.arange(before, count, dtype=np.int32)
            self._placement.put(slots, self._placement.vacant(count - before, count))
            self._begin(slots, self._arrays(), slice(before, count))

    def parts(
        self, slots: Positions, names: Iterable[str] | None = None
    ) -> Iterator[tuple[slice, Positions]]:
        """Yield parts of slots as places among all, and positions, where their rows stay until the next part."""
        for at in pieces(size_of(slots), self._step(slots)):
            part = _listed(part_of(slots, at))
            try:
                yield at, self._bring_in(part)
            finally:
                self._placement.unpin(part)

    def _step(self, slots: Positions) -> int:
        """Return how many of the slots may have their rows in memory at once."""
        most = self._most
        return max(size_of(slots) if self._count <= most else most // 2, 1)

    @contextmanager
    def whole(self, slots: Positions) -> Iterator[Whole]:
        """Yield arrays, and positions of all rows of slots in them; these are copies if they are very many."""
        if size_of(slots) <= self._step(slots):
            for _, positions in self.parts(slots):
                yield self._arrays(), positions
            return
        copies = self.taken(slots, self._columns)
        yield dict(copies), np.arange(size_of(slots), dtype=np.int32)
        for at, positions in self.parts(slots):
            for name, column in self._columns.items():
                column.array[positions] = copies[name][at]

    def prefetch(self, slots: Positions) -> None:
        """Begin to read rows that will be used soon, as many as may be at once."""
        placement, records = self._placement, self._records
        if records is None:
            return
        listed, most = _listed(slots), self._most // 4
        listed = listed[listed >= 0]
        self.store.reads.finish()
        places = placement.places[listed]
        away = np.flatnonzero(places < NOWHERE)
        away = away[np.argsort(on_disk(places[away]))][: min(records.at_once(), most)]
        self._give_up(most - len(away))
        if len(away):
            self._ahead.append(listed[away])
            self._fetch(listed[away], start=True)

    def _give_up(self, rows: int = 0) -> None:
        """Let rows leave that were read ahead, but for the last ones, so many at most."""
        while sum(map(len, self._ahead)) > rows:
            self.store.reads.finish()
            self._placement.give_up(self._ahead.popleft())

    def _bring_in(self, slots: I32) -> I32:
        """Bring in rows, and pin them; return their positions."""
        placement = self._placement
        positions, absent, ahead = placement.find(slots)
        self.store.count(len(slots), len(absent))
        if ahead:
            self.store.reads.finish()
        if len(absent):
            positions[absent] = self._fetch(slots[absent])
        return positions

    def _fetch(self, slots: I32, start: bool = False) -> I32:
        """Give positions to rows that have none, and read them, or start to."""
        placement = self._placement
        positions = self._vacated(len(slots))
        # Others may have moved on disk since.
        places = placement.places[slots]
        placement.put(slots, positions)
        new = places == NOWHERE
        if new.any():
            self._begin(slots[new], self._arrays(), positions[new])
        if not new.all():
            assert self._records is not None
            file, records, targets = self._records, on_disk(places[~new]), positions[~new].astype(np.int64)
            self.store.reads_made += len(records)

            def spread(which: NDArray[np.int64], raw: Bytes, at: NDArray[np.int64]) -> None:
                # They may have moved since the read began.
                for name, column in self._arrays().items():
                    _spread(raw, at, self._offsets[name], _bytes(column), targets[which])
                file.free(records[which])

            if start:
                placement.expect(slots)
                self._records.start(records, spread)
            else:
                self._records.read(records, spread)
        return positions

    def _vacated(self, count: int) -> I32:
        """Return positions, from which the rows that are used least have left."""
        free = self._placement.vacant(count, self._most)
        if len(free) == count:
            return free
        leaving = self._placement.least_used(count - len(free))
        assert len(free) + len(leaving) == count
        self._write(leaving)
        return np.concatenate([free, leaving])

    def _write(self, positions: I32) -> None:
        """Write rows, and let them leave."""
        placement = self._placement
        if self._records is None:
            self._records = self.store.records(self._row)
            self._records.moved = lambda owners, records: placement.put(owners, on_disk(records))
        self._records.reserve(len(positions))
        # Those that are used alike lie together.
        owners = placement.owner[positions]
        arrays, wide = self._arrays(), positions.astype(np.int64)

        def fill(part: slice, raw: Bytes, at: NDArray[np.int64]) -> None:
            for name, column in arrays.items():
                _collect(raw, at, self._offsets[name], _bytes(column), wide[part])

        records = self._records.append(owners, fill)
        placement.put(owners, on_disk(records))
        self.store.writes_made += len(records)

    def _arrays(self) -> dict[str, Array]:
        return {name: column.array for name, column in self._columns.items()}

    # All rows.

    def taken(self, slots: Positions, names: Iterable[str]) -> dict[str, Array]:
        """Return copies of the rows of slots, by column, without bringing them in: for all rows, or most."""
        self.store.reads.finish()
        listed, names = _listed(slots), list(names)
        arrays = self._arrays()
        out = {name: np.empty((len(listed), arrays[name].shape[1]), arrays[name].dtype) for name in names}
        places = self._placement.places[listed]
        here, away, new = places >= 0, np.flatnonzero(places < NOWHERE), np.flatnonzero(places == NOWHERE)
        for name in names:
            out[name][here] = arrays[name][places[here]]
        if len(new):
            self._begin(listed[new], out, new.astype(np.int32))
        if len(away):
            assert self._records is not None

            def spread(which: NDArray[np.int64], raw: Bytes, at: NDArray[np.int64]) -> None:
                for name in names:
                    _spread(raw, at, self._offsets[name], _bytes(out[name]), away[which])

            self._records.read(on_disk(places[away]), spread)
        return out

    def everything(self) -> Iterator[tuple[Positions, dict[str, Array]]]:
        """Yield slots and their rows by column, in the order of the disk, until all rows were there."""
        self.store.reads.finish()
        step = self.store.rows_together(self._row)
        places = self._placement.places
        orders = [np.flatnonzero(places >= NOWHERE)]
        if self._records is not None:
            owner = self._records.owner
            orders.append(owner[owner >= 0].astype(np.int64))
        for order in orders:
            for part in pieces(len(order), step):
                slots = order[part].astype(np.int32)
                yield slots, self.taken(slots, self._columns)

    def sorted_copy(self, ranks: I32) -> SortedCopy:
        """Copy all rows; `ranks` i4[slots] says where each is in the copy."""
        return SortedCopy(self.store, self._columns, ranks, self.everything())

    def keep(self, slots: I32) -> None:
        """Drop all rows but those of slots, whose new slots are their places among these."""
        self.store.reads.finish()
        self._give_up()
        numbers = self._placement.keep(slots)
        if self._records is not None:
            self._records.renumber(numbers)


def _listed(slots: Positions) -> I32:
    return np.arange(slots.start, slots.stop, dtype=np.int32) if isinstance(slots, slice) else slots


def _bytes(column: Array) -> Bytes:
    return column.view(np.uint8).reshape(len(column), -1)
