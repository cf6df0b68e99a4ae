"""Key caching: a list of keys is identified by a 128-bit hash, its signature (paper, section 4.2).

A worker that sends the same keys again sends only their signature. The server keeps the slots of the keys, so that a
repeated push needs no lookup. A server that does not know a signature asks for the keys.

A signature covers all keys of one request to one shard. The memory of the cache is bounded; entries that were not used
recently are evicted first (clock algorithm: one bit per list, which the compiled fast path sets too).
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.keys import KeyArray, is_wide
from mpips.transport.message import NO_SIGNATURE

Slots = NDArray[np.int32] | slice

U8 = np.uint64
_SEEDS = tuple(
    U8(seed) for seed in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93)
)
_SEED0, _SEED1, _SEED2, _SEED3 = _SEEDS
_P, _Q = U8(0xBF58476D1CE4E5B9), U8(0x94D049BB133111EB)
_S29, _S32 = U8(29), U8(32)

SIGNATURE_LOW, SIGNATURE_HIGH, SHARD, NAMESPACE, FIRST, COUNT, SLOTS, USED, FORWARDED = range(9)
"""Columns of the table for kernels: a run of COUNT slots from FIRST on, or COUNT slots at address SLOTS (0: a run);
whether the list was used since the last eviction, and was sent to the next member of the shard's chain."""
EMPTY = -1
ENTRY_BYTES = 512
"""Bytes of one entry without its slots."""


@kernel("UniTuple(u8, 2)(u8[::1])")
def _sign(keys: NDArray[np.uint64]) -> tuple[np.uint64, np.uint64]:
    """Hash a list with two hashes of four interleaved chains each, which hide the latency of multiplications."""
    a0, a1, a2, a3 = _SEED0, _SEED1, _SEED2, _SEED3
    b0, b1, b2, b3 = _SEED3, _SEED2, _SEED1, _SEED0
    whole = len(keys) & ~3
    for i in range(0, whole, 4):
        k0, k1, k2, k3 = keys[i], keys[i + 1], keys[i + 2], keys[i + 3]
        a0 = (a0 ^ k0) * _P
        a1 = (a1 ^ k1) * _P
        a2 = (a2 ^ k2) * _P
        a3 = (a3 ^ k3) * _P
        b0 = (b0 + k0) * _Q
        b1 = (b1 + k1) * _Q
        b2 = (b2 + k2) * _Q
        b3 = (b3 + k3) * _Q
        a0 ^= a0 >> _S29
        a1 ^= a1 >> _S29
        a2 ^= a2 >> _S29
        a3 ^= a3 >> _S29
        b0 ^= b0 >> _S32
        b1 ^= b1 >> _S32
        b2 ^= b2 >> _S32
        b3 ^= b3 >> _S32
    for i in range(whole, len(keys)):
        a0 = (a0 ^ keys[i]) * _P
        a0 ^= a0 >> _S29
        b0 = (b0 + keys[i]) * _Q
        b0 ^= b0 >> _S32
    a, b = U8(len(keys)), ~U8(len(keys))
    for chain in (a0, a1, a2, a3, b0):
        a = (a ^ chain) * _Q
        a ^= a >> _S29
    for chain in (b0, b1, b2, b3, a0):
        b = (b ^ chain) * _P
        b ^= b >> _S32
    return a, b


def sign(keys: KeyArray) -> bytes:
    """Return the signature of a contiguous list of keys: 16 bytes, never the value for "no signature"."""
    low, high = _sign(keys.view(np.uint64) if is_wide(keys) else keys)
    made = int(low).to_bytes(8, "little") + int(high).to_bytes(8, "little")
    return made if made != NO_SIGNATURE else bytes(15) + b"\1"


@kernel("i8(i8, i8, i8)")
def _home(low: int, shard: int, namespace: int) -> int:
    """Return the hash of a list's first place in the table, to be reduced by the table's size."""
    return low ^ (shard * 31) ^ (namespace * 1021)


@kernel("i8(i8[:,::1], i8, i8, i8, i8)")
def look_up(table: NDArray[np.int64], low: int, high: int, shard: int, namespace: int) -> int:
    """Return the row of a list in the table, -1 if it is not there. A caller that uses the row sets its USED."""
    mask = len(table) - 1
    row = _home(low, shard, namespace) & mask
    while table[row, COUNT] != EMPTY:
        if (
            table[row, SIGNATURE_LOW] == low
            and table[row, SIGNATURE_HIGH] == high
            and table[row, SHARD] == shard
            and table[row, NAMESPACE] == namespace
        ):
            return row
        row = (row + 1) & mask
    return -1


@dataclass(slots=True)
class Known:
    """The slots of a list; while some keys have no slot (-1), also the keys."""

    slots: Slots
    keys: KeyArray | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the entry in bytes."""
        slots = 0 if isinstance(self.slots, slice) else self.slots.nbytes
        return ENTRY_BYTES + slots + (0 if self.keys is None else self.keys.nbytes)


Name = tuple[int, int, bytes]
"""Shard, namespace, signature."""


class KeyCache:
    """The cached key lists of a server, at most `bound` bytes of them (0: none)."""

    def __init__(self, bound: float) -> None:
        self.bound, self.nbytes = bound, 0
        self.hits = self.misses = self.evicted = 0
        self._entries: dict[Name, Known] = {}
        self.in_use: Callable[[], Collection[Name]] = tuple
        """Returns the lists that must not be evicted."""
        self.table = _empty(16)
        """i8[capacity, 9], open addressing: the lists whose keys all have slots; read by kernels."""
        self.place = np.zeros(2, np.int64)
        """For kernels: the address and the rows of `table`."""
        self._publish()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, shard: int, namespace: int, signature: bytes) -> Known | None:
        """Return the entry of a list; None if it is not cached."""
        found = self._entries.get((shard, namespace, signature))
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            if (row := self._row((shard, namespace, signature))) >= 0:
                self.table[row, USED] = 1
        return found

    def _row(self, name: Name) -> int:
        return int(look_up(self.table, *_words(name[2]), name[0], name[1]))

    def keep(self, shard: int, namespace: int, signature: bytes, known: Known) -> None:
        """Cache a list, and evict others if necessary."""
        name = (shard, namespace, signature)
        old = self._entries.get(name)
        if known.nbytes > self.bound or (old is not None and (old.keys is None or known.keys is not None)):
            # The same keys have the same slots.
            return
        self._entries[name] = known
        self.nbytes += known.nbytes - (0 if old is None else old.nbytes)
        if self.nbytes > self.bound:
            self._evict(name)
        elif 2 * len(self._entries) > len(self.table):
            self._rebuild()
        else:
            _put(self.table, name, known)

    def take(self, row: list[int]) -> None:
        """Cache a list whose slots kernels have found: the first columns of its row, of which the slots are copied."""
        low, high, shard, namespace, first, count, address = row
        slots: Slots = slice(first, first + count)
        if address:
            slots = np.frombuffer(bytearray((ctypes.c_int32 * count).from_address(address)), np.int32)
        self.keep(shard, namespace, struct.pack("<qq", low, high), Known(slots))

    def forget(self, shard: int) -> None:
        """Forget all lists of a shard, because its slots have changed."""
        gone = [name for name in self._entries if name[0] == shard]
        for name in gone:
            self.nbytes -= self._entries.pop(name).nbytes
        if gone:
            self._rebuild()

    def forget_forwarded(self, shard: int) -> None:
        """Record that the next member of a shard's chain may not know its lists."""
        self.table[self.table[:, SHARD] == shard, FORWARDED] = 0

    def _evict(self, newest: Name) -> None:
        """Evict lists until a quarter of the bound is free: first those not used since the last eviction, by age."""
        used = {name for name in self._entries if (row := self._row(name)) >= 0 and self.table[row, USED]}
        # A stable sort: among equals, the oldest first.
        order = sorted(self._entries, key=used.__contains__)
        kept = {newest, *self.in_use()}
        for name in order:
            if self.nbytes <= 0.75 * self.bound:
                break
            if name not in kept:
                self.nbytes -= self._entries.pop(name).nbytes
                self.evicted += 1
        self._rebuild()

    def _rebuild(self) -> None:
        capacity = 16
        while capacity < 4 * len(self._entries):
            capacity *= 2
        self.table = _empty(capacity)
        self._publish()
        for name, entry in self._entries.items():
            _put(self.table, name, entry)

    def _publish(self) -> None:
        self.place[:] = self.table.ctypes.data, len(self.table)


def _empty(capacity: int) -> NDArray[np.int64]:
    table = np.zeros((capacity, FORWARDED + 1), np.int64)
    table[:, COUNT] = EMPTY
    return table


def _words(signature: bytes) -> tuple[int, int]:
    low, high = struct.unpack("<qq", signature)
    return low, high


def _put(table: NDArray[np.int64], name: Name, known: Known) -> None:
    """Enter a list into the table if all of its keys have slots."""
    if known.keys is not None:
        return
    shard, namespace, signature = name
    low, high = _words(signature)
    mask = len(table) - 1
    row = _home(low, shard, namespace) & mask
    while table[row, COUNT] != EMPTY:
        row = (row + 1) & mask
    slots: Any = known.slots
    if isinstance(slots, slice):
        table[row] = (low, high, shard, namespace, slots.start, slots.stop - slots.start, 0, 0, 0)
    else:
        table[row] = (low, high, shard, namespace, 0, len(slots), slots.ctypes.data, 0, 0)
