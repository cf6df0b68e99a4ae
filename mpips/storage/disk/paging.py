"""The rows of a segment with a store: which positions of its arrays a request uses, brought in.

The arrays of a sparse segment are larger than its rows need, and where a row is in them changes with its use
(`mpips.storage.disk.placement`). Those of a dense one have each row at its slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.storage.disk.placement import Placement
from mpips.storage.disk.sorted_copy import SortedCopy
from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray

Array = NDArray[Any]
I32 = NDArray[np.int32]
Positions = I32 | slice


class Paging:
    """The positions of the rows of a segment; `columns` are its arrays by name. If `moves`, rows may move."""

    def __init__(self, store: Store, columns: Mapping[str, GrowableArray], moves: bool) -> None:
        self.store, self._columns = store, columns
        self._row = sum(each.row for each in columns.values())
        self._placement = Placement() if moves else None
        self._count, self._straightened = 0, False

    def hold(self, index: int) -> None:
        """Tell the store how much of the segment, with its index of so many bytes, cannot be on disk."""
        arrays = sum(each.nbytes for each in self._columns.values() if each.on_disk is None)
        placement = 0 if self._placement is None else self._placement.nbytes
        self.store.hold(self, index + arrays + placement, self._count * self._row)

    def room(self, count: int) -> int:
        """Return how many rows the arrays must have room for so that there is some for `count` slots."""
        return count if self._placement is None else Placement.room(count, self._hot)

    @property
    def _hot(self) -> int:
        return self.store.rows_in_memory(self, self._row)

    def add(self, count: int, capacity: int) -> tuple[Positions, bool]:
        """Give positions to the slots up to `count`; return those of new ones, and whether other rows were there."""
        before, self._count = self._count, count
        positions: Positions = slice(before, count)
        # Rows were behind those of the slots while they moved.
        used = self._straightened
        if self._placement is not None:
            positions, used = self._placement.add(count, self._hot, capacity), self._placement.moved
        if used:
            self._bring_in(positions, self._columns.values())
        return positions, used

    def parts(
        self, slots: Positions, names: Iterable[str] | None = None
    ) -> Iterator[tuple[slice, Positions]]:
        """Yield parts of slots as places among all, and positions whose rows are brought in; they are used often.

        Only some columns are brought in if they are named.
        """
        size = slots.stop - slots.start if isinstance(slots, slice) else len(slots)
        columns = [each for name, each in self._columns.items() if names is None or name in names]
        placement = self._placement
        if placement is None:
            step = self.store.rows_at_once(sum(each.row for each in columns))
        else:
            # Rows for which there is no room are used where they are; of a vector without rows, all.
            step = max(self._hot // 2, self.store.rows_at_once(self._row))
        for begin in range(0, max(size, 1), step):
            at = slice(begin, min(begin + step, size))
            part = _part(slots, at)
            if placement is None:
                self._bring_in(part, columns)
                yield at, part
            else:
                with _Pinned(placement, self._moved(_listed(part), placement)) as positions:
                    self._bring_in(positions, columns)
                    yield at, positions

    def whole(self, slots: Positions) -> _Pinned | _Plain:
        """Return positions of all rows of slots, to be used in a `with` block; as many as possible are brought in."""
        placement = self._placement
        if placement is None:
            self._bring_in(slots, self._columns.values())
            return _Plain(slots)
        positions = self._moved(_listed(slots), placement)
        self._bring_in(positions, self._columns.values())
        return _Pinned(placement, positions)

    def in_place(self, slots: Positions, name: str) -> Iterator[tuple[slice, Positions]]:
        """Yield parts as `parts` does, of one column, without moving rows: for all rows, or most."""
        size = slots.stop - slots.start if isinstance(slots, slice) else len(slots)
        column = self._columns[name]
        step = self.store.rows_at_once(column.row)
        for begin in range(0, max(size, 1), step):
            at = slice(begin, min(begin + step, size))
            part = _part(slots, at)
            positions = part if self._placement is None else self._placement.at(_listed(part))
            self._bring_in(positions, [column])
            yield at, positions

    def _moved(self, slots: I32, placement: Placement) -> I32:
        """Move rows to where they are in memory, as far as there is room; return the positions."""
        hot, columns = self._hot, self._columns.values()
        positions, cold = placement.find(slots, hot)
        capacity = min(len(each) for each in columns)
        step = self.store.rows_at_once(self._row)
        for begin in range(0, len(cold), step):
            which = cold[begin : begin + step]
            leaving, targets, sources, found = placement.exchange(slots[which], hot, capacity)
            try:
                self._bring_in(sources, columns)
                self._bring_in(targets, columns)
            finally:
                # Also after an error, since they are looked for there.
                for column in columns:
                    column.array[targets] = column.array[leaving]
                    column.array[found] = column.array[sources]
            positions[which[: len(found)]] = found
            if len(found) < len(which):
                break
        return positions

    def _bring_in(self, positions: Positions, columns: Iterable[GrowableArray]) -> None:
        for column in columns:
            if column.on_disk is not None:
                self.store.touch(column.on_disk, positions, column.row)

    def sorted_copy(self, ranks: I32) -> SortedCopy:
        """Copy all rows; `ranks` i4[slots] says where each is in the copy."""
        if self._placement is not None:
            owner = self._placement.owner[: min(len(each) for each in self._columns.values())]
            ranks = np.where(owner >= 0, ranks[owner], np.int32(-1)) if len(ranks) else ranks
        step = self.store.rows_together(self._row)
        parts = [slice(begin, min(begin + step, len(ranks))) for begin in range(0, len(ranks), step)]

        def brought_in() -> Iterator[slice]:
            for part in parts:
                self._bring_in(part, self._columns.values())
                yield part

        arrays = {name: column.array for name, column in self._columns.items()}
        return SortedCopy(self.store, arrays, ranks, brought_in())

    def straighten(self) -> None:
        """Bring each row to the position of its slot, and let none move again."""
        placement, count = self._placement, self._count
        if placement is not None and placement.moved:
            copy = self.sorted_copy(np.arange(count, dtype=np.int32))
            for name, column in self._columns.items():
                at = 0
                for piece in copy.column(name):
                    self._bring_in(slice(at, at + len(piece)), [column])
                    column.array[at : at + len(piece)] = piece
                    at += len(piece)
            self._placement, self._straightened = None, True


class _Pinned:
    """Positions of rows that do not move in a `with` block."""

    def __init__(self, placement: Placement, positions: I32) -> None:
        self._placement, self._positions = placement, positions

    def __enter__(self) -> I32:
        return self._positions

    def __exit__(self, *_: object) -> None:
        self._placement.unpin(self._positions)


class _Plain:
    """Positions that are slots."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions

    def __enter__(self) -> Positions:
        return self._positions

    def __exit__(self, *_: object) -> None:
        """Do nothing."""


def _part(slots: Positions, at: slice) -> Positions:
    return slice(slots.start + at.start, slots.start + at.stop) if isinstance(slots, slice) else slots[at]


def _listed(slots: Positions) -> I32:
    return np.arange(slots.start, slots.stop, dtype=np.int32) if isinstance(slots, slice) else slots
