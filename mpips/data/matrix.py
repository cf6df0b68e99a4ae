"""A worker's training data as a matrix in compressed sparse columns over the features that occur in it.

It is built in two passes over memory, and one over the files. While batches arrive, a growing hash index gives
each key a local number in order of first appearance, and only that number (4 bytes per non-zero) is kept.
Then the keys are sorted, the columns counted, and the numbers scattered in row order into their columns, chunk
by chunk; each chunk is freed after that. So rows ascend within a column, and the peak memory is below three
times the result.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpips.data.examples import Examples
from mpips.data.numbering import Numbering, PairNumbering, numbering_of
from mpips.errors import DataError
from mpips.jit.kernel import kernel
from mpips.keys import KeyArray
from mpips.keys import order as key_order


@dataclass(frozen=True)
class Columns:
    """Hold n examples of m features by columns: feature j is in the rows ``rows[colptr[j]:colptr[j+1]]``.

    >>> keys, labels = np.array([3, 8], np.uint64), np.array([1, -1], np.float32)
    >>> x = Columns(keys, np.array([0, 1, 3]), np.array([0, 0, 1], np.int32), None, labels)
    >>> [x.rows[x.colptr[j] : x.colptr[j + 1]].tolist() for j in range(2)], x.nbytes
    ([[0], [0, 1]], 60)
    """

    keys: KeyArray
    """u8[m], or KEY128[m], ascending: the features' keys."""
    colptr: NDArray[np.int64]
    """i8[m+1], from 0 to the number of non-zeros."""
    rows: NDArray[np.int32]
    """i4[nnz], ascending within a column."""
    values: NDArray[np.float32] | None
    """f4[nnz], or None: all ones."""
    labels: NDArray[np.float32]
    """f4[n], each -1 or +1."""

    @property
    def nbytes(self) -> int:
        """Bytes of all the arrays."""
        arrays = (self.keys, self.colptr, self.rows, self.values, self.labels)
        return sum(array.nbytes for array in arrays if array is not None)


@kernel("void(i4[::1], i8[::1])")
def count_slots(slots: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
    """Add the number of occurrences of each slot s to counts[s]."""
    for slot in slots:
        counts[slot] += 1


@kernel("void(i4[::1], i8[::1], i8, i8[::1], f4[::1], i4[::1], f4[::1])")
def scatter_rows(
    slots: NDArray[np.int32],
    indptr: NDArray[np.int64],
    first: int,
    places: NDArray[np.int64],
    values: NDArray[np.float32],
    rows: NDArray[np.int32],
    out_values: NDArray[np.float32],
) -> None:
    """Put a chunk of rows, numbered from `first`, at their columns' next `places`, and advance those.

    Empty `out_values`: without values; empty `values`: ones.
    """
    for row in range(indptr.shape[0] - 1):
        for i in range(indptr[row], indptr[row + 1]):
            place = places[slots[i]]
            places[slots[i]] = place + 1
            rows[place] = first + row
            if out_values.shape[0] > 0:
                out_values[place] = values[i] if values.shape[0] > 0 else np.float32(1)


def trim_heap() -> None:
    """Return freed memory to the system, if the C library (glibc) supports it: the batches were small blocks."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def load_columns(batches: Iterable[Examples]) -> Columns:
    """Gather a stream of batches into columns over their distinct keys, sorted.

    Peak memory is below three times that of the result, the reader's buffers aside. Raises `DataError`
    beyond 2**31 - 1 examples or distinct keys.

    >>> batch = Examples(np.array([1, -1], np.float32), np.array([0, 2, 3]), np.array([3, 8, 8], np.uint64))
    >>> columns = load_columns([batch])
    >>> columns.keys.tolist(), columns.colptr.tolist(), columns.rows.tolist()
    ([3, 8], [0, 1, 3], [0, 0, 1])
    """
    index: Numbering | PairNumbering | None = None
    chunks: deque[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float32] | None]] = deque()
    labels: list[NDArray[np.float32]] = []
    n = nnz = 0
    for batch in batches:
        if index is None:
            index = numbering_of(batch.keys)
        n, nnz = n + len(batch), nnz + len(batch.keys)
        if n >= 2**31:
            raise DataError("one worker cannot hold more than 2**31 - 1 examples; use more workers")
        chunks.append((index.insert(batch.keys), batch.indptr, batch.values))
        labels.append(batch.labels)
    known_keys = np.zeros(0, np.uint64) if index is None else index.keys()
    del index
    order = key_order(known_keys)
    keys = known_keys[order]
    del known_keys
    counts = np.zeros(len(keys), np.int64)
    for slots, _, _ in chunks:
        count_slots(slots, counts)
    colptr = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(counts[order], out=colptr[1:])
    places = counts
    places[order] = colptr[:-1]
    del order
    rows = np.empty(nnz, np.int32)
    none = np.zeros(0, np.float32)
    out_values = none if all(values is None for _, _, values in chunks) else np.empty(nnz, np.float32)
    first = 0
    while chunks:
        slots, indptr, values = chunks.popleft()
        scatter_rows(slots, indptr, first, places, none if values is None else values, rows, out_values)
        first += len(indptr) - 1
    all_labels = np.concatenate([none, *labels])
    trim_heap()
    return Columns(keys, colptr, rows, out_values if len(out_values) else None, all_labels)
