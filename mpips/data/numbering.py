"""Numbers the keys of training data, which occur in any order and with many repetitions.

A server's index (mpips/storage/key_index.py) is ordered, since requests are; the keys of examples are not, and most
of them are known. So this is a hash table: open addressing with linear probing over one array of 64-bit entries. An
entry packs the high half of the key's hash with slot + 1; 0 is an empty place, so that every 64-bit key is valid, 0
and 2**64 - 1 too. The keys themselves are stored once, in slot order, and are read only where the half hash agrees. It
grows without hashing again: a home position is the hash's high bits, which the entry holds, so a new table is filled
by one pass over the old one, in memory order in both.

Lookups of a large table wait for memory. The kernels therefore take the keys in small batches: they first
hash a batch and touch its homes, loads that the processor overlaps, and only then probe.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import KeyArray, is_wide, order
from mpips.storage.key_index import MAX_KEYS, one_by_one
from mpips.storage.pair_index import PairIndex

_BATCH = 64
_MIN_BITS = 4
_MAX_BITS = 32

U8 = np.uint64
_ONE = U8(1)
_LOW = U8(0xFFFFFFFF)
_HIGH = U8(0xFFFFFFFF00000000)


@kernel("void(u8[::1], u8[::1], u8, u8[::1], i4[::1])")
def _find(
    table: NDArray[np.uint64],
    known: NDArray[np.uint64],
    shift: np.uint64,
    keys: NDArray[np.uint64],
    out: NDArray[np.int32],
) -> None:
    mask = U8(len(table) - 1)
    hashes = np.empty(_BATCH, np.uint64)
    touched = np.empty(_BATCH, np.uint64)
    total = len(keys)
    for start in range(0, total, _BATCH):
        size = min(_BATCH, total - start)
        for i in range(size):
            h = mix(keys[U8(start + i)])
            hashes[i] = h
            touched[i] = table[h >> shift]
        # Most homes hold the key itself: load its entry among the keys as well.
        for i in range(size):
            entry = touched[i]
            if (entry ^ hashes[i]) & _HIGH == 0 and entry != 0:
                touched[i] = known[(entry & _LOW) - _ONE]
        for i in range(size):
            key = keys[U8(start + i)]
            h = hashes[i]
            place = h >> shift
            slot = -1
            entry = table[place]
            while entry != 0:
                if (entry ^ h) & _HIGH == 0 and known[(entry & _LOW) - _ONE] == key:
                    slot = int(entry & _LOW) - 1
                    break
                place = (place + _ONE) & mask
                entry = table[place]
            out[U8(start + i)] = slot


@kernel("UniTuple(i8, 2)(u8[::1], u8[::1], u8, i8, u8[::1], i8, i4[::1])")
def _insert(
    table: NDArray[np.uint64],
    known: NDArray[np.uint64],
    shift: np.uint64,
    count: int,
    keys: NDArray[np.uint64],
    first: int,
    out: NDArray[np.int32],
) -> tuple[int, int]:
    """Insert keys[first:] until done or until `known` is full; return (keys done, keys known)."""
    mask = U8(len(table) - 1)
    hashes = np.empty(_BATCH, np.uint64)
    touched = np.empty(_BATCH, np.uint64)
    total = len(keys)
    capacity = len(known)
    for start in range(first, total, _BATCH):
        size = min(_BATCH, total - start)
        for i in range(size):
            h = mix(keys[U8(start + i)])
            hashes[i] = h
            touched[i] = table[h >> shift]
        for i in range(size):
            key = keys[U8(start + i)]
            h = hashes[i]
            place = h >> shift
            slot = -1
            entry = table[place]
            while entry != 0:
                if (entry ^ h) & _HIGH == 0 and known[(entry & _LOW) - _ONE] == key:
                    slot = int(entry & _LOW) - 1
                    break
                place = (place + _ONE) & mask
                entry = table[place]
            if slot < 0:
                if count == capacity:
                    return start + i, count
                slot = count
                known[U8(count)] = key
                count += 1
                table[place] = (h & _HIGH) | U8(count)
            out[U8(start + i)] = slot
    return total, count


@kernel("void(u8[::1], u8[::1], u8)")
def _refill(old: NDArray[np.uint64], new: NDArray[np.uint64], shift: np.uint64) -> None:
    """Put every entry of `old` into the empty table `new`."""
    mask = U8(len(new) - 1)
    for i in range(len(old)):
        entry = old[U8(i)]
        if entry != 0:
            place = entry >> shift
            while new[place] != 0:
                place = (place + _ONE) & mask
            new[place] = entry


def _bits_for(keys: int) -> int:
    """Log2 of the smallest table that holds `keys` at a load of at most 3/4."""
    return max(_MIN_BITS, (keys * 4 // 3).bit_length())


class Numbering:
    """Map uint64 keys to dense int32 slots, numbered from 0 in order of first appearance.

    `capacity_hint` keys fit before the index first grows. The same calls always give the same slots.
    """

    def __init__(self, capacity_hint: int = 0) -> None:
        if capacity_hint > MAX_KEYS:
            raise LayoutError(_too_many_keys(capacity_hint))
        self._bits = min(_bits_for(capacity_hint), _MAX_BITS)
        self._table = np.zeros(1 << self._bits, np.uint64)
        self._known = np.empty(max(12, capacity_hint), np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def keys(self) -> NDArray[np.uint64]:
        """View the known keys in slot order, u64[len]: read it only until the next insert."""
        view = self._known[: self._count]
        view.flags.writeable = False
        return view

    def find(self, keys: NDArray[np.uint64], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Return the slots i32[n] of keys u64[n]; -1 for a key that was never inserted."""
        keys = _as_contiguous(keys)
        if out is None:
            out = np.empty(len(keys), np.int32)
        _check_out(keys, out)
        _find(self._table, self._known, U8(64 - self._bits), keys, out)
        return out

    def insert(self, keys: NDArray[np.uint64], out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
        """Return the slots i32[n] of keys u64[n]; new keys get the next free slots in order of appearance.

        Raises LayoutError when a slot would no longer fit an int32.
        """
        keys = _as_contiguous(keys)
        if out is None:
            out = np.empty(len(keys), np.int32)
        _check_out(keys, out)
        done, before = 0, self._count
        while True:
            shift = U8(64 - self._bits)
            done, self._count = _insert(self._table, self._known, shift, self._count, keys, done, out)
            if done == len(keys):
                return out
            share_new = (self._count - before) / max(done, 1)
            self._grow(self._count + int(share_new * (len(keys) - done)))

    @property
    def nbytes(self) -> int:
        """Memory held by the index, in bytes."""
        return self._table.nbytes + self._known.nbytes

    def _grow(self, expected: int) -> None:
        """Make room for more keys: half as many again; towards `expected`, up to four times, in one step."""
        if self._count >= MAX_KEYS:
            raise LayoutError(_too_many_keys(self._count + 1))
        capacity = min(max(self._count * 3 // 2, min(expected, self._count * 4)) + 12, MAX_KEYS)
        known = np.empty(capacity, np.uint64)
        known[: self._count] = self._known[: self._count]
        self._known = known
        bits = min(_bits_for(capacity), _MAX_BITS)
        if bits > self._bits:
            self._bits = bits
            table = np.zeros(1 << bits, np.uint64)
            _refill(self._table, table, U8(64 - bits))
            self._table = table


class PairNumbering:
    """Map 128-bit keys to dense int32 slots, as `Numbering` does for 64-bit ones."""

    def __init__(self) -> None:
        self._index = PairIndex()

    def keys(self) -> KeyArray:
        """View the known keys in slot order, KEY128[len]: read it only until the next insert."""
        return self._index.keys()

    def insert(self, keys: KeyArray) -> NDArray[np.int32]:
        """Return the slots i32[n] of keys KEY128[n]; new keys get the next free slots in order of appearance.

        Raises LayoutError when a slot would no longer fit an int32.
        """
        if len(self._index) + len(keys) > MAX_KEYS:
            raise LayoutError(_too_many_keys(len(self._index) + len(keys)))
        return one_by_one(self._index.insert(keys))


def numbering_of(keys: KeyArray) -> Numbering | PairNumbering:
    """Return a new numbering for keys of the size of `keys`."""
    return PairNumbering() if is_wide(keys) else Numbering()


def distinct(keys: KeyArray) -> tuple[KeyArray, NDArray[np.int32]]:
    """Return the distinct keys, sorted, and the position among them of each of `keys`: i4[n]."""
    index = numbering_of(keys)
    slots = index.insert(keys)
    found = index.keys()
    ordered = order(found, once=True)
    rank = np.empty(len(found), np.int32)
    rank[ordered] = np.arange(len(found), dtype=np.int32)
    return found[ordered], rank[slots]


def _as_contiguous(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return keys as the kernels take them: a copy if they are a read-only or unaligned view of a message."""
    if keys.dtype == np.uint64 and keys.flags.carray:
        return keys
    return np.array(keys, np.uint64)


def _check_out(keys: NDArray[np.uint64], out: NDArray[np.int32]) -> None:
    if keys.ndim != 1 or out.shape != keys.shape or out.dtype != np.int32 or not out.flags.c_contiguous:
        raise TypeError(f"out must be int32 of shape {keys.shape}, contiguous; got {out.dtype} {out.shape}")


def _too_many_keys(keys: int) -> str:
    return f"one worker can number at most {MAX_KEYS:,} keys, its data has {keys:,}: use more workers"
