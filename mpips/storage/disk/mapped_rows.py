"""Rows of a segment with a store in mapped files, each at its slot: of dense vectors, and for functions that see all.

Their pages are brought in before rows are used (`mpips.storage.disk.store`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.storage.disk.sorted_copy import SortedCopy
from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray

Array = NDArray[Any]
I32 = NDArray[np.int32]
Positions = I32 | slice
Whole = tuple[dict[str, Array], Positions]
"""Arrays of rows by column, and the positions of some rows in them."""


class MappedRows:
    """The rows; `columns` are their arrays by name."""

    straight = True
    """Whether the position of each row is its slot."""

    def __init__(self, store: Store, columns: Mapping[str, GrowableArray]) -> None:
        self.store, self._columns = store, columns
        self._row = sum(each.row for each in columns.values())
        self._count = 0

    def hold(self, index: int, count: int) -> None:
        """Tell the store how many rows the segment has, and that it has an index of so many bytes in memory."""
        self._count = count
        arrays = sum(each.nbytes for each in self._columns.values() if each.on_disk is None)
        self.store.hold(self, index + arrays, count * self._row)

    def room(self, count: int) -> int:
        """Return how many rows the arrays must have room for, of so many slots."""
        return count

    def parts(
        self, slots: Positions, names: Iterable[str] | None = None
    ) -> Iterator[tuple[slice, Positions]]:
        """Yield parts of slots as places among all, and positions whose rows are brought in.

        Only some columns are brought in if they are named.
        """
        columns = [each for name, each in self._columns.items() if names is None or name in names]
        step = self.store.rows_at_once(sum(each.row for each in columns))
        for at in pieces(size_of(slots), step):
            part = part_of(slots, at)
            self._bring_in(part, columns)
            yield at, part

    def whole(self, slots: Positions) -> AbstractContextManager[Whole]:
        """Return all arrays, and positions of all rows of slots, to be used in a `with` block."""
        self._bring_in(slots, self._columns.values())
        return nullcontext(({name: column.array for name, column in self._columns.items()}, slots))

    def prefetch(self, slots: Positions) -> None:
        """Begin to read rows that will be used soon, as many as may be at once."""
        next(self.parts(slots))

    def taken(self, slots: Positions, names: Iterable[str]) -> dict[str, Array]:
        """Return copies of the rows of slots, by column."""
        out = {}
        for name in names:
            column = self._columns[name]
            rows = out[name] = np.empty((size_of(slots), *column.array.shape[1:]), column.array.dtype)
            for at, part in self.parts(slots, [name]):
                rows[at] = column.array[part]
        return out

    def everything(self) -> Iterator[tuple[Positions, dict[str, Array]]]:
        """Yield slots and views of their rows by column, until all rows were there."""
        for part in pieces(self._count, self.store.rows_together(self._row)):
            self._bring_in(part, self._columns.values())
            yield part, {name: column.array[part] for name, column in self._columns.items()}

    def sorted_copy(self, ranks: I32) -> SortedCopy:
        """Copy all rows; `ranks` i4[slots] says where each is in the copy."""
        return SortedCopy(self.store, self._columns, ranks, self.everything())

    def write(self, name: str, rows: Iterable[Array]) -> None:
        """Set a column to rows that come in pieces, in the order of slots."""
        column, at = self._columns[name], 0
        for piece in rows:
            self._bring_in(slice(at, at + len(piece)), [column])
            column.array[at : at + len(piece)] = piece
            at += len(piece)

    def _bring_in(self, positions: Positions, columns: Iterable[GrowableArray]) -> None:
        for column in columns:
            if column.on_disk is not None:
                self.store.touch(column.on_disk, positions, column.row)


def size_of(slots: Positions) -> int:
    """Return the number of slots."""
    return slots.stop - slots.start if isinstance(slots, slice) else len(slots)


def part_of(slots: Positions, at: slice) -> Positions:
    """Return some of the slots."""
    return slice(slots.start + at.start, slots.start + at.stop) if isinstance(slots, slice) else slots[at]


def pieces(size: int, step: int) -> Iterator[slice]:
    """Cut what has so many rows into slices of `step`; one at least.

    >>> list(pieces(5, 3)), list(pieces(0, 3))
    ([slice(0, 3, None), slice(3, 5, None)], [slice(0, 0, None)])
    """
    for begin in range(0, max(size, 1), step):
        yield slice(begin, min(begin + step, size))
