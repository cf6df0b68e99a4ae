"""The index of 128-bit keys: maps a key to its slot, as `mpips.storage.key_index` does for keys of 64 bits.

It is a hash table: open addressing with linear probing over i32 places, each a slot + 1 (0: free), and the keys in slot
order beside it. 128-bit keys are hashes, so that a request's keys are never neighbours, and an ordered index would save
nothing. The home of a key is taken from a mix of both halves, so that keys which share a half do not share a home.
A table is at most half full. Key order is needed for exports and checkpoints only, and is sorted then.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import KEY128, KeyArray, plain_pairs
from mpips.storage.growable_array import GrowableArray
from mpips.storage.key_index import MAX_KEYS, NO_ADDRESSES, Slots, full

_LEAST = 64
Pairs = NDArray[np.uint64]
Table = NDArray[np.int32]


@kernel("u8(u8, u8, u8)", inline=True)
def _home(high: np.uint64, low: np.uint64, mask: np.uint64) -> np.uint64:
    return (low ^ mix(high)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32) & mask


@kernel("void(i4[::1], u8[:,::1], u8[:,::1], i4[::1])")
def _find(table: Table, known: Pairs, keys: Pairs, out: Table) -> None:
    """Write the slots of keys, -1 for unknown ones."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(keys)):
        high, low = keys[i, 0], keys[i, 1]
        place = _home(high, low, mask)
        out[i] = -1
        while table[place] != 0:
            slot = table[place] - 1
            if known[slot, 1] == low and known[slot, 0] == high:
                out[i] = slot
                break
            place = (place + np.uint64(1)) & mask


@kernel("i8(i4[::1], u8[:,::1], i8, u8[:,::1], i4[::1])")
def _insert(table: Table, known: Pairs, count: int, keys: Pairs, out: Table) -> int:
    """Write the slots of keys; unknown ones get the next slots from `count` on. Return the new count."""
    mask = np.uint64(len(table) - 1)
    for i in range(len(keys)):
        high, low = keys[i, 0], keys[i, 1]
        place = _home(high, low, mask)
        slot = -1
        while table[place] != 0:
            slot = table[place] - 1
            if known[slot, 1] == low and known[slot, 0] == high:
                break
            slot = -1
            place = (place + np.uint64(1)) & mask
        if slot < 0:
            slot = count
            known[count, 0], known[count, 1] = high, low
            count += 1
            table[place] = count
        out[i] = slot
    return count


@kernel("void(i4[::1], u8[:,::1], i8)")
def _fill(table: Table, known: Pairs, count: int) -> None:
    """Enter all known keys into an empty table."""
    mask = np.uint64(len(table) - 1)
    for slot in range(count):
        place = _home(known[slot, 0], known[slot, 1], mask)
        while table[place] != 0:
            place = (place + np.uint64(1)) & mask
        table[place] = slot + 1


class PairIndex:
    """Map 128-bit keys to dense int32 slots, numbered from 0 in order of first appearance; as `KeyIndex`.

    Raises:
        LayoutError: more keys than MAX_KEYS are to fit.
    """

    addresses = NO_ADDRESSES
    """Compiled requests do not look up 128-bit keys; they use cached lists of them."""

    def __init__(self, capacity_hint: int = 0, tight: bool = False) -> None:
        if capacity_hint > MAX_KEYS:
            raise LayoutError(full(capacity_hint))
        self._known = GrowableArray(np.uint64, (2,), rows=capacity_hint, tight=tight)
        self._count = 0
        self._table = np.zeros(_size(capacity_hint), np.int32)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory held by the index, in bytes."""
        return self._known.nbytes + self._table.nbytes

    def keys(self) -> KeyArray:
        """View the known keys in slot order, KEY128[len]: read it only until the next insert."""
        view: KeyArray = self._known.array[: self._count].view(KEY128)[:, 0]
        view.flags.writeable = False
        return view

    def find(self, keys: KeyArray) -> NDArray[np.int32]:
        """Return the slots of keys KEY128[n], i32[n]: -1 for one never inserted."""
        pairs = plain_pairs(keys)
        out = np.empty(len(pairs), np.int32)
        _find(self._table, self._known.array, pairs, out)
        return out

    def insert(self, keys: KeyArray) -> Slots:
        """Return the slots of keys KEY128[n] as `find`; new keys get the next free slots in order of appearance.

        Raises LayoutError when a slot would no longer fit an int32.
        """
        pairs = plain_pairs(keys)
        most = self._count + len(pairs)
        if 2 * most > len(self._table):
            # All keys may be known.
            most = self._count + int(np.sum(self.find(keys) < 0))
            self._reserve(most)
        if most > len(self._known):
            self._known.reserve(min(self._known.next_capacity(most), MAX_KEYS))
        out = np.empty(len(pairs), np.int32)
        before = self._count
        self._count = _insert(self._table, self._known.array, before, pairs, out)
        new = self._count - before
        # As a run, for which updates are plain array arithmetic.
        if new and new == len(out) and out[0] == before:
            return slice(before, self._count)
        return out

    def select(self, begin: int = 0, last: int = 2**64 - 1, most: int = MAX_KEYS) -> tuple[KeyArray, Slots]:
        """Return the first `most` keys whose upper halves are `begin` to `last`, both included, in order, and slots."""
        known = self.keys()
        high = known["high"]
        slots = np.flatnonzero((high >= np.uint64(begin)) & (high <= np.uint64(last))).astype(np.int32)
        mine = known[slots]
        order = np.lexsort((mine["low"], mine["high"]))[:most]
        return mine[order], slots[order]

    def _reserve(self, most: int) -> None:
        """Make the table large enough for `most` keys."""
        if most > MAX_KEYS:
            raise LayoutError(full(most))
        if 2 * most > len(self._table):
            self._table = np.zeros(_size(most), np.int32)
            _fill(self._table, self._known.array, self._count)


def _size(keys: int) -> int:
    """Return the length of a table for `keys` keys: a power of two, so that half of it and more stays free."""
    return max(_LEAST, 1 << (2 * keys).bit_length())
