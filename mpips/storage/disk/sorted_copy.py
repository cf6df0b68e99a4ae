"""A copy of a segment's rows on disk, made at one instant in the order of their slots, and read in key order.

It is an external sort by distribution (Knuth, The Art of Computer Programming 3). The copy consists of
buckets that fit into memory, each for the rows of so many successive keys; each row is appended to its bucket, and a
bucket is ordered when it is read. So all rows are read and written once, in long runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.keys import KeyArray
from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Pieces:
    """Rows that are read piece by piece, in order: their dtype and shape, and what yields the pieces."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read: tuple[Callable[[], Iterator[Array]], ...]

    def __iter__(self) -> Iterator[Array]:
        """Yield the pieces."""
        for read in self.read:
            yield from read()


def joined(parts: list[Pieces]) -> Pieces:
    """Return the rows of some parts one after the other."""
    rows = sum(each.shape[0] for each in parts)
    return Pieces(
        parts[0].dtype, (rows, *parts[0].shape[1:]), tuple([read for each in parts for read in each.read])
    )


class PiecesOfRows(NamedTuple):
    """Rows of a segment on disk: keys in order, and the rest piece by piece."""

    keys: KeyArray
    values: Pieces
    state: dict[str, Pieces]


def pieces_of(column: Array | Pieces) -> Iterable[Array]:
    """Return a column, which may be an array, in pieces."""
    return (column,) if isinstance(column, np.ndarray) else column


def chosen(column: Pieces, which: NDArray[np.bool_]) -> Pieces:
    """Return some rows of a column."""

    def read() -> Iterator[Array]:
        at = 0
        for piece in column:
            yield piece[which[at : at + len(piece)]]
            at += len(piece)

    return Pieces(column.dtype, (int(np.count_nonzero(which)), *column.shape[1:]), (read,))


class SortedCopy:
    """The copy; `columns` are arrays by name; `parts` yields slots, and their rows by column, until all were there.

    `ranks` i4[slots] says where each row is in the copy (-1: not at all). Each `column` can be read once the copy
    is made, by another thread, too.
    """

    def __init__(
        self,
        store: Store,
        columns: Mapping[str, GrowableArray],
        ranks: NDArray[np.int32],
        parts: Iterator[tuple[NDArray[np.int32] | slice, Mapping[str, Array]]],
    ) -> None:
        self._store, count = store, int((ranks >= 0).sum())
        self._bucket = store.rows_together(sum(each.row for each in columns.values()))
        self._copies = {
            name: GrowableArray(each.array.dtype, each.array.shape[1:], count, file=store.file())
            for name, each in columns.items()
        }
        # The ranks of the rows in the order of the copy, and where each bucket is filled up to.
        self._order = np.empty(count, np.int32)
        ends = np.arange(0, count, self._bucket, dtype=np.int64)
        for slots, found in parts:
            of = ranks[slots]
            rows = np.flatnonzero(of >= 0)
            of = of[rows]
            buckets = of // self._bucket
            sizes = np.bincount(buckets, minlength=len(ends))
            ordered = np.argsort(buckets, kind="stable")
            within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            targets = np.empty(len(of), np.int32)
            targets[ordered] = ends[buckets[ordered]] + within
            ends += sizes
            self._order[targets] = of
            for name, copy in self._copies.items():
                if copy.on_disk is not None:
                    store.touch(copy.on_disk, targets, copy.row)
                copy.array[targets] = found[name][rows]

    def column(self, name: str) -> Pieces:
        """Return a column in key order."""
        copy = self._copies[name].array
        return Pieces(copy.dtype, (len(self._order), *copy.shape[1:]), (partial(self._read, name),))

    def _read(self, name: str) -> Iterator[Array]:
        copy, count = self._copies[name], len(self._order)
        for begin in range(0, count, self._bucket):
            bucket = slice(begin, min(begin + self._bucket, count))
            if copy.on_disk is not None:
                self._store.touch(copy.on_disk, bucket, copy.row)
            out = np.empty_like(copy.array[bucket])
            out[self._order[bucket] - begin] = copy.array[bucket]
            yield out
