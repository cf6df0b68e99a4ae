"""The index of a dense vector: every key that the server owns has a slot, which is its place among all of them.

So the slots of each range of keys are one run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError, ProtocolError
from mpips.jit.kernel import kernel
from mpips.keys import KeyArray
from mpips.ranges import ALL, KeyRange, intersection
from mpips.storage.key_index import MAX_KEYS, NO_ADDRESSES, ready


@kernel("void(u8[::1], u8[::1], i8[::1], u8[::1], i4[::1])")
def _find(
    begins: KeyArray, lasts: KeyArray, offsets: NDArray[np.int64], keys: KeyArray, out: NDArray[np.int32]
) -> None:
    """Find each key's offset in the concatenation of the ranges begins[i] .. lasts[i]; -1 outside them."""
    at = 0
    for i in range(len(keys)):
        key = keys[i]
        # Sorted keys mostly stay in the same range.
        if key < begins[at] or key > lasts[at]:
            at = max(np.searchsorted(begins, key, "right") - 1, 0)
        if begins[at] <= key <= lasts[at]:
            out[i] = offsets[at] + np.int64(key - begins[at])
        else:
            out[i] = -1


class DenseIndex:
    """Map the keys of sorted ranges to slots, as `KeyIndex`, but no key is added. `vector`: its name, for errors.

    Raises:
        LayoutError: there are more keys than MAX_KEYS.

    >>> index = DenseIndex([KeyRange(0, 2), KeyRange(10, 20)], "w")
    >>> len(index), index.run(KeyRange(1, 12)), index.find(np.array([1, 5, 11], np.uint64)).tolist()
    (12, slice(1, 4, None), [1, -1, 3])
    """

    addresses = NO_ADDRESSES
    """Compiled requests compute slots of dense keys by themselves."""
    nbytes = 0

    def __init__(self, ranges: Sequence[KeyRange], vector: str) -> None:
        self._ranges, self._vector = ranges, vector
        spans = [piece.span for piece in ranges]
        self._count = sum(spans)
        if self._count > MAX_KEYS:
            raise LayoutError(
                f"vector {vector!r}: {self._count:,} dense keys on one server: use more servers"
            )
        self._begins = np.array([piece.begin for piece in ranges] or [1], np.uint64)
        self._lasts = np.array([piece.end - 1 for piece in ranges] or [0], np.uint64)
        self._offsets = np.cumsum([0, *spans[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return self._count

    def keys(self) -> KeyArray:
        """Return all keys, in order, u64[len]."""
        return listed(self._ranges, ALL)

    def find(self, keys: KeyArray) -> NDArray[np.int32]:
        """Return the slots of keys u64[n], in any order, i32[n]: -1 for one that is not owned."""
        keys = ready(keys)
        slots = np.empty(len(keys), np.int32)
        _find(self._begins, self._lasts, self._offsets, keys, slots)
        return slots

    def insert(self, keys: KeyArray) -> NDArray[np.int32]:
        """Return the slots of keys u64[n] as `find`; ProtocolError if one is not owned."""
        slots = self.find(keys)
        if len(slots) and slots.min() < 0:
            stray = int(keys[slots.argmin()])
            raise ProtocolError(f"vector {self._vector!r}: key {stray} is not owned by this server")
        return slots

    def run(self, wanted: KeyRange) -> slice:
        """Return the slots of a range: the ranges are sorted, so they are one run."""
        first = sum(max(0, min(owned.end, wanted.begin) - owned.begin) for owned in self._ranges)
        size = sum(piece.span for owned in self._ranges if (piece := intersection(owned, wanted)))
        return slice(first, first + size)

    def select(self, begin: int = 0, last: int = 2**64 - 1, most: int = MAX_KEYS) -> tuple[KeyArray, slice]:
        """Return the first `most` keys from `begin` to `last`, both included, in order, and their slots."""
        wanted = KeyRange(begin, last + 1)
        run = self.run(wanted)
        keys = listed(self._ranges, wanted, most)
        return keys, slice(run.start, run.start + len(keys))


def listed(ranges: Sequence[KeyRange], wanted: KeyRange, most: int = MAX_KEYS) -> KeyArray:
    """Return the first `most` keys of a range that are in sorted `ranges`, in order."""
    parts = [np.empty(0, np.uint64)]
    for piece in (piece for owned in ranges if (piece := intersection(owned, wanted))):
        count = min(piece.span, most)
        parts.append(np.arange(count, dtype=np.uint64) + np.uint64(piece.begin))
        most -= count
    return np.concatenate(parts)
