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
_SIMPLE = frozenset(np.dtype(name) for name in _TYPES)


@kernel("void(u8[::1], u8[::1])")
def _bound(ids: NDArray[np.uint64], bounds: NDArray[np.uint64]) -> None:
    """Find the least and the largest of ids, of which there is one at least."""
    least = most = ids[0]
    for i in range(len(ids)):
        least, most = min(least, ids[i]), max(most, ids[i])
    bounds[0], bounds[1] = least, most


@kernel("i8(u8[::1], u8, i4[::1], u8[::1], i4[::1])")
def _count(
    ids: NDArray[np.uint64],
    least: np.uint64,
    marks: NDArray[np.int32],
    keys: NDArray[np.uint64],
    places: NDArray[np.int32],
) -> int:
    """Find the distinct ids and the place of each among them; return their number.

    `marks`: zeros for all ids; `keys`: room for one more than there can be.
    """
    for i in range(len(ids)):
        marks[ids[i] - least] = 1
    found = 0
    # Without a branch, which no processor predicts.
    for at in range(len(marks)):
        keys[found] = least + np.uint64(at)
        found, marks[at] = found + marks[at], found
    for i in range(len(ids)):
        places[i] = marks[ids[i] - least]
    return found


@kernel(*(f"void({name}[:, ::1], i4[::1], {name}[:, ::1])" for name in _TYPES))
def _spread(found: NDArray[Any], places: NDArray[np.int32], out: NDArray[Any]) -> None:
    for i in range(len(places)):
        row, mine = found[np.uint64(places[i])], out[i]
        for j in range(len(mine)):
            mine[j] = row[j]


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
        if not _is_simple(found) or len(found) != len(self.keys):
            spread: NDArray[Any] = found.take(self.places, axis=0)
            return spread
        out = np.empty((len(self.places), *found.shape[1:]), found.dtype)
        _spread(_matrix(found), self.places, _matrix(out))
        return out

    def summed(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of the rows, [n] or [n, width], of each key, [m] or [m, width], in the order of the ids."""
        out = np.zeros((len(self.keys), *rows.shape[1:]), rows.dtype)
        if _is_simple(rows):
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


def _is_simple(rows: NDArray[Any]) -> bool:
    """Return whether rows are of a type and form that kernels take."""
    return rows.dtype in _SIMPLE and rows.flags.carray and rows.ndim in (1, 2)


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
    if array.dtype.kind == "i" and int(array.min()) < 0:
        raise UsageError(f"vector {name}: an id is {int(array.min())}; ids are integers from 0")
    listed, bounds = np.ascontiguousarray(array, np.uint64), np.empty(2, np.uint64)
    # Kernels take writable arrays, although they do not write.
    given = listed if listed.flags.writeable else listed.copy()
    _bound(given, bounds)
    least, most = bounds.tolist()
    span = most - least + 1
    if span > DENSE * len(given):
        return Places(*distinct(given))
    keys, places = np.empty(min(span, len(given)) + 1, np.uint64), np.empty(len(given), np.int32)
    found = _count(given, bounds[0], np.zeros(span, np.int32), keys, places)
    return Places(keys[:found], places)
