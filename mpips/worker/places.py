"""The places of ids among distinct keys: the ids of a mini-batch come in any order, and many times."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.data.numbering import distinct
from mpips.errors import UsageError
from mpips.jit.kernel import kernel
from mpips.keys import KEY128, KeyArray, check_unmasked, from_pairs, is_wide
from mpips.tasks.task import Task

DENSE = 64
"""Ids whose range is at most this many times their number are counted, not hashed."""
_TYPES = "f4", "f8", "i4", "i8"
"""Types of the rows that kernels take."""


@kernel("i8(u8[::1], u8, i4[::1], u8[::1], i4[::1])")
def _count(
    ids: NDArray[np.uint64],
    least: np.uint64,
    marks: NDArray[np.int32],
    keys: NDArray[np.uint64],
    places: NDArray[np.int32],
) -> int:
    """Find the distinct ids and the place of each among them; return their number. `marks`: zeros for all ids."""
    for i in range(len(ids)):
        marks[ids[i] - least] = 1
    found = 0
    for at in range(len(marks)):
        if marks[at]:
            keys[found], marks[at] = least + np.uint64(at), found
            found += 1
    for i in range(len(ids)):
        places[i] = marks[ids[i] - least]
    return found


@kernel(*(f"void({name}[:, ::1], i4[::1], {name}[:, ::1])" for name in _TYPES))
def _add(rows: NDArray[Any], places: NDArray[np.int32], out: NDArray[Any]) -> None:
    for i in range(len(places)):
        row, total = rows[i], out[np.uint64(places[i])]
        for j in range(len(row)):
            total[j] += row[j]


class Places(NamedTuple):
    """What `Vector.lookup` has looked up: the distinct keys, and where each id is among them.

    >>> where = places_of([7, 3, 7], 64, "w")
    >>> where.keys.tolist(), where.places.tolist()
    ([3, 7], [1, 0, 1])
    >>> where.rows(np.array([30.0, 70.0])).tolist()
    [70.0, 30.0, 70.0]
    >>> where.summed(np.array([1.0, 10.0, 100.0])).tolist()
    [10.0, 101.0]
    """

    keys: KeyArray
    """u8[m] or KEY128[m], ascending and each once."""
    places: NDArray[np.int32]
    """i4[n]: id i is `keys[places[i]]`."""

    def rows(self, found: NDArray[Any]) -> NDArray[Any]:
        """Return the row of each id, [n] or [n, width], by those of the keys, [m] or [m, width]."""
        spread: NDArray[Any] = found.take(self.places, axis=0)
        return spread

    def summed(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of the rows, [n] or [n, width], of each key, [m] or [m, width], in the order of the ids."""
        out = np.zeros((len(self.keys), *rows.shape[1:]), rows.dtype)
        if rows.dtype.isnative and rows.dtype.str[1:] in _TYPES and rows.flags.carray:
            _add(_matrix(rows), self.places, _matrix(out))
        else:
            np.add.at(out, self.places, rows)
        return out


class Lookup(NamedTuple):
    """A look-up that was begun: the places of its ids, and the pull of their keys."""

    where: Places
    pull: Task

    def result(self) -> tuple[NDArray[Any], Places]:
        """Wait for the row of each id, [n] or [n, width]; return them, and the places. Raises as `Task.result`."""
        return self.where.rows(self.pull.result()), self.where


def _matrix(rows: NDArray[Any]) -> NDArray[Any]:
    """Return a view of rows, [n] or [n, width], as [n, width]."""
    return rows if rows.ndim == 2 else rows.reshape(len(rows), 1)


def places_of(ids: ArrayLike, key_bits: int, name: str) -> Places:
    """Return the places of ids: integers of any type [n], or KEY128[n] or u8[n, 2] for keys of 128 bits.

    Raises:
        UsageError: they are no such ids, or negative; `name` is the vector's.
    """
    if type(ids) is not np.ndarray:
        check_unmasked(ids, f"vector {name}: ids")
    array = np.asarray(ids)
    if key_bits == 128 and array.dtype == np.uint64 and array.ndim == 2 and array.shape[1] == 2:
        array = from_pairs(array)
    if key_bits == 128 and array.dtype == KEY128 and array.ndim == 1:
        return Places(*distinct(np.ascontiguousarray(array)))
    if not array.size and array.ndim == 1:
        return Places(np.empty(0, KEY128 if key_bits == 128 else np.uint64), np.empty(0, np.int32))
    if key_bits == 128 or array.ndim != 1 or is_wide(array) or array.dtype.kind not in "iu":
        wanted = (
            "KEY128 of shape [n], or uint64 of shape [n, 2]" if key_bits == 128 else "integers of shape [n]"
        )
        raise UsageError(f"vector {name}: ids are {array.dtype} of shape {array.shape}; give {wanted}")
    least, most = int(array.min()), int(array.max())
    if least < 0:
        raise UsageError(f"vector {name}: an id is {least}; ids are integers from 0")
    listed, span = np.ascontiguousarray(array, np.uint64), most - least + 1
    if span > DENSE * len(listed):
        return Places(*distinct(listed))
    keys, places = np.empty(min(span, len(listed)), np.uint64), np.empty(len(listed), np.int32)
    # Kernels take writable arrays, although they do not write.
    given = listed if listed.flags.writeable else listed.copy()
    found = _count(given, np.uint64(least), np.zeros(span, np.int32), keys, places)
    return Places(keys[:found], places)
