"""The key index: maps a key to its slot in a segment's arrays (paper, section 3.1: sparse, hashed keys).

Requests have sorted keys. So the index is ordered too, and a request traverses it like a merge of two sorted lists. It
is a tree of three levels, top, nodes and leaves (mpips/storage/index_layout.py), like a B+ tree, with these
differences:

- `known` has the keys in slot order, and the new keys of a request get consecutive slots: `known` consists of sorted
  runs. A leaf may be implicit, a part of a run, which needs no memory but its entry in a node. Keys inserted into an
  empty interval, such as the first request's, are only copied. A leaf becomes explicit, with its own list of keys
  and slots, when later keys fall between its keys.
- A request often repeats the keys of an earlier one. Where its keys equal consecutive keys in `known`, they are found
  by comparison, at memory bandwidth.
- Slots that are one run are returned as a slice, for which updates are plain array arithmetic.
- Where few keys fall into a leaf, lookups are bound by memory latency. Such keys are processed in small batches, which
  first find the leaves, estimate places by interpolation and prefetch them, and only then search.
- There is no rebuild: leaves and nodes split one by one, and arrays grow in place
  (mpips/storage/growable_array.py). So no request waits for the growth of the index.

Keys that are not sorted are handled correctly, but slower. Not supported: deletion (a server drops a range by building
a new segment). Slower than a hash table: short lists of keys spread over a large index, with five memory accesses per
key instead of two or three.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError
from mpips.storage import index_insert, index_layout, index_lookup
from mpips.storage.growable_array import GrowableArray

MAX_KEYS = 2**31 - 2
"""Slots are int32."""

NO_ADDRESSES = (0,) * 7
"""Stands for `KeyIndex.addresses` where kernels must not use the index."""
Keys = NDArray[np.uint64]
Slots = NDArray[np.int32] | slice
"""A list of slots (-1: a key without a slot), or one run of slots."""


class KeyIndex:
    """Map uint64 keys to dense int32 slots, numbered from 0 in order of first appearance.

    `capacity_hint` keys fit before the index first grows; their memory is mapped from the start. A `tight` one grows in
    small steps. The same calls always return the same slots.

    Raises:
        LayoutError: more keys than MAX_KEYS are to fit.
    """

    def __init__(self, capacity_hint: int = 0, tight: bool = False) -> None:
        if capacity_hint > MAX_KEYS:
            raise LayoutError(full(capacity_hint))
        self._head = np.zeros(5, np.int64)
        self._head[index_layout.FIRST] = index_layout.UNSET
        self._known = GrowableArray(np.uint64, rows=capacity_hint, touch=True, tight=tight)
        # If all leaves become explicit, they are two thirds full.
        pages = capacity_hint and capacity_hint * 3 // (2 * index_layout.LEAF) + index_insert.SPARE_PAGES + 2
        self._arena = GrowableArray(np.uint64, (index_layout.PAGE,), rows=pages, touch=True, tight=tight)
        # Nodes that split are half full, and each step of an insertion needs spare ones.
        tops = pages // (index_layout.FAN // 2) + 2 * index_insert.SPARE_TOPS
        self._top = np.empty(2 * tops, np.uint64)
        self._publish()

    def _publish(self) -> None:
        arena = self._arena.array.reshape(-1)
        self._arrays = (self._head, self._known.array[:MAX_KEYS], arena, self._top)
        head, *rooms = self._arrays
        places = [word for array in rooms for word in (array.ctypes.data, len(array))]
        self.addresses = (head.ctypes.data, *places)
        """For kernels: the address of `head`, and the address and length of `known`, `arena` and `top`."""

    def __len__(self) -> int:
        return int(self._head.item(index_layout.COUNT))

    @property
    def nbytes(self) -> int:
        """Memory held by the index, in bytes."""
        return self._head.nbytes + self._known.nbytes + self._arena.nbytes + self._top.nbytes

    def keys(self) -> Keys:
        """View the known keys in slot order, u64[len]: read it only until the next insert."""
        view: Keys = self._known.array[: len(self)]
        view.flags.writeable = False
        return view

    def find(self, keys: Keys) -> Slots:
        """Return the slots of keys u64[n]: a slice if they are one run, else i32[n], -1 for one never inserted."""
        keys = ready(keys)
        out = np.empty(len(keys), np.int32)
        first = index_lookup.find(*self._arrays, keys, out)
        return slice(first, first + len(keys)) if first >= 0 else out

    def insert(self, keys: Keys) -> Slots:
        """Return the slots of keys u64[n] as `find`; new keys get the next free slots in order of appearance.

        Raises LayoutError when a slot would no longer fit an int32.
        """
        keys = ready(keys)
        out = np.empty(len(keys), np.int32)
        first = index_insert.insert(*self._arrays, keys, out)
        while first == index_layout.ROOM:
            self._grow(len(keys))
            first = index_insert.insert(*self._arrays, keys, out)
        return slice(first, first + len(keys)) if first >= 0 else out

    def select(self, begin: int = 0, last: int = 2**64 - 1, most: int = MAX_KEYS) -> tuple[Keys, Slots]:
        """Return the first `most` keys from `begin` to `last`, both included, in order, and their slots as `find`."""
        head, known, arena, top = self._arrays
        low = index_lookup.rank_of(head, known, arena, top, np.uint64(begin))
        high = len(self)
        if last < 2**64 - 1:
            high = index_lookup.rank_of(head, known, arena, top, np.uint64(last + 1))
        count = max(min(high - low, most), 0)
        keys, slots = np.empty(count, np.uint64), np.empty(count, np.int32)
        first = index_lookup.take(head, known, arena, top, low, keys, slots)
        return keys, slice(first, first + len(keys)) if first >= 0 else slots

    def _grow(self, wanted: int) -> None:
        """Make room for the next steps of an insertion of `wanted` keys, part of which may be done."""
        head = self._head
        count, pages, tops, done = (
            int(head[at])
            for at in (index_layout.COUNT, index_layout.PAGES, index_layout.TOPS, index_layout.DONE)
        )
        # Views, which would prevent the arrays from growing in place.
        del self._arrays
        try:
            step = min(wanted - done, index_layout.RUN)
            if count + step > MAX_KEYS:
                raise LayoutError(full(count + step))
            if len(self._known) < count + step:
                self._known.reserve(
                    min(self._known.next_capacity(count + step if count else wanted), MAX_KEYS)
                )
            if len(self._arena) < pages + index_insert.SPARE_PAGES:
                self._arena.reserve(self._arena.next_capacity(pages + index_insert.SPARE_PAGES))
            if len(self._top) // 2 < tops + index_insert.SPARE_TOPS:
                top = np.empty(4 * (tops + index_insert.SPARE_TOPS), np.uint64)
                top[: len(self._top)] = self._top
                self._top = top
        except BaseException:
            head[index_layout.DONE], head[index_layout.FIRST] = 0, index_layout.UNSET
            raise
        finally:
            self._publish()


def one_by_one(slots: Slots) -> NDArray[np.int32]:
    """Return slots listed, i32[n]."""
    return np.arange(slots.start, slots.stop, dtype=np.int32) if isinstance(slots, slice) else slots


def ready(keys: Keys) -> Keys:
    """Return keys u64[n] as the kernels take them: a copy if they are a read-only or unaligned view of a message."""
    if keys.dtype == np.uint64 and keys.flags.carray:
        return keys
    return np.array(keys, np.uint64)


def full(keys: int) -> str:
    """Return the error message for more keys than fit."""
    return f"one server's index holds at most {MAX_KEYS:,} keys, this one needs {keys:,}: use more servers"
