"""The places of ids among distinct keys: the ids of a mini-batch come in any order, and many times."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.data.numbering import distinct
from mpips.errors import UsageError
from mpips.keys import KEY128, KeyArray, check_unmasked, from_pairs, is_wide


class Places(NamedTuple):
    """What `Vector.lookup` has looked up: the distinct keys, and where each id is among them.

    >>> where = places_of([7, 3, 7], 64, "w")
    >>> where.keys.tolist(), where.places.tolist()
    ([3, 7], [1, 0, 1])
    >>> where.summed(np.array([1.0, 10.0, 100.0])).tolist()
    [10.0, 101.0]
    """

    keys: KeyArray
    """u8[m] or KEY128[m], ascending and each once."""
    places: NDArray[np.int32]
    """i4[n]: id i is `keys[places[i]]`."""

    def summed(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of the rows, [n] or [n, width], of each key, [m] or [m, width], in the order of the ids."""
        if len(self.keys) == len(self.places):
            out = np.empty_like(rows)
            out[self.places] = rows
            return out
        order = np.argsort(self.places, kind="stable")
        starts = np.flatnonzero(np.diff(self.places[order], prepend=-1))
        found: NDArray[Any] = np.add.reduceat(rows[order], starts, axis=0, dtype=rows.dtype)
        return found


def places_of(ids: ArrayLike, key_bits: int, name: str) -> Places:
    """Return the places of ids: integers of any type [n], or KEY128[n] or u8[n, 2] for keys of 128 bits.

    Raises:
        UsageError: they are no such ids, or negative; `name` is the vector's.
    """
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
    if array.dtype.kind == "i" and array.min() < 0:
        raise UsageError(f"vector {name}: an id is {array.min()}; ids are integers from 0")
    return Places(*distinct(np.ascontiguousarray(array, np.uint64)))
