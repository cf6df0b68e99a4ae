"""Compiled parts of reading tables: hashes of texts, and the sorted rows of keys and values.

A text b of a column is hashed as in `mpips.data.kernels`, from h = the key of the column's name
(`mpips.keys.text_keys`) instead of its position. Key 0 represents a missing value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.data.kernels import CROSS, LOWER, sort_unique, sort_unique_pairs
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix


@kernel("void(i8[::1], u1[::1], u8, u8[::1])")
def hash_texts(
    offsets: NDArray[np.int64], data: NDArray[np.uint8], seed: np.uint64, keys: NDArray[np.uint64]
) -> None:
    """Set keys[i] to the hash of the text data[offsets[i]:offsets[i+1]]; none is 0."""
    for i in range(keys.shape[0]):
        begin, end = offsets[i], offsets[i + 1]
        hashed, word, shift = seed, np.uint64(0), np.uint64(0)
        for at in range(begin, end):
            word |= np.uint64(data[at]) << shift
            shift += np.uint64(8)
            if shift == np.uint64(64):
                hashed = mix(hashed ^ word)
                word, shift = np.uint64(0), np.uint64(0)
        word |= np.uint64((end - begin) & 255) << np.uint64(56)
        keys[i] = max(mix(hashed ^ word), np.uint64(1))


@kernel("void(u8[::1], f8[::1])")
def fractions(numbers: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    """Hash numbers to fractions of 1, multiples of 2^-53."""
    for i in range(numbers.shape[0]):
        out[i] = np.float64(mix(numbers[i]) >> np.uint64(11)) * 2.0**-53


@kernel()
def sort_row(keys: NDArray[np.uint64], values: NDArray[np.float32], begin: int, end: int) -> int:
    """Sort keys[begin:end] with their values in place; of equal keys one is kept. Return the new end."""
    gap = 1
    while gap < (end - begin) // 9:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(begin + gap, end):
            key, value = keys[i], values[i]
            j = i
            while j >= begin + gap and keys[j - gap] > key:
                keys[j], values[j] = keys[j - gap], values[j - gap]
                j -= gap
            keys[j], values[j] = key, value
        gap //= 3
    kept = begin
    for i in range(begin, end):
        if i == begin or keys[i] != keys[kept - 1]:
            keys[kept], values[kept] = keys[i], values[i]
            kept += 1
    return kept


@kernel()
def sort_wide_row(
    keys: NDArray[np.uint64], lows: NDArray[np.uint64], values: NDArray[np.float32], begin: int, end: int
) -> int:
    """As `sort_row`, of keys whose lower halves are `lows`."""
    gap = 1
    while gap < (end - begin) // 9:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(begin + gap, end):
            key, low, value = keys[i], lows[i], values[i]
            j = i
            while j >= begin + gap and (
                keys[j - gap] > key or (keys[j - gap] == key and lows[j - gap] > low)
            ):
                keys[j], lows[j], values[j] = keys[j - gap], lows[j - gap], values[j - gap]
                j -= gap
            keys[j], lows[j], values[j] = key, low, value
        gap //= 3
    kept = begin
    for i in range(begin, end):
        if i == begin or keys[i] != keys[kept - 1] or lows[i] != lows[kept - 1]:
            keys[kept], lows[kept], values[kept] = keys[i], lows[i], values[i]
            kept += 1
    return kept


@kernel("i8(u8[:,::1], u8[:,::1], f4[:,::1], i8[::1], i8[::1], i8[::1], u8[::1], u8[::1], f4[::1])")
def join_columns(
    uppers: NDArray[np.uint64],
    lowers: NDArray[np.uint64],
    numbers: NDArray[np.float32],
    cross_ptr: NDArray[np.int64],
    cross_columns: NDArray[np.int64],
    indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    lows: NDArray[np.uint64],
    values: NDArray[np.float32],
) -> int:
    """Join columns to rows, which are sorted by key; return the number of non-zeros.

    Args:
        uppers: u8[columns, rows], the keys of each column; 0: missing.
        lowers: the lower halves of keys of 128 bits, empty for keys of 64.
        numbers: f4[scaled, rows], the values of the first columns, of which those of 0 are left out. All other values,
            and those of crosses, are 1. If all are, `values` is not set.
        cross_ptr: cross i joins the columns cross_columns[cross_ptr[i]:cross_ptr[i+1]].
        cross_columns: see `cross_ptr`.
        indptr: i8[rows + 1], is set.
        keys: is set, as `lows` and `values` are; they have space for all columns and crosses of all rows.
        lows: the lower halves of `keys`.
        values: f4, those of `keys`.
    """
    columns, rows = uppers.shape
    wide, scaled = lowers.shape[0] > 0, numbers.shape[0]
    nnz = 0
    indptr[0] = 0
    for row in range(rows):
        first = nnz
        for column in range(columns):
            key = uppers[column, row]
            if key != np.uint64(0):
                value = numbers[column, row] if column < scaled else np.float32(1)
                if value == np.float32(0):
                    continue
                keys[nnz] = key
                if scaled > 0:
                    values[nnz] = value
                if wide:
                    lows[nnz] = lowers[column, row]
                nnz += 1
        for cross in range(cross_ptr.shape[0] - 1):
            low, high = cross_ptr[cross], cross_ptr[cross + 1]
            hashed, other = mix(CROSS + np.uint64(high - low)), mix(LOWER + CROSS + np.uint64(high - low))
            complete = True
            for i in range(low, high):
                column = cross_columns[i]
                complete = complete and uppers[column, row] != np.uint64(0)
                hashed = mix(hashed ^ uppers[column, row])
                if wide:
                    other = mix(other ^ lowers[column, row])
            if complete:
                keys[nnz] = hashed
                if scaled > 0:
                    values[nnz] = np.float32(1)
                if wide:
                    lows[nnz] = other
                nnz += 1
        if wide:
            nnz = (
                sort_wide_row(keys, lows, values, first, nnz)
                if scaled
                else sort_unique_pairs(keys, lows, first, nnz)
            )
        else:
            nnz = sort_row(keys, values, first, nnz) if scaled else sort_unique(keys, first, nnz)
        indptr[row + 1] = nnz
    return nnz
