"""The layout of a key index, and how its leaves are found: see mpips/storage/key_index.py for the design.

All memory of an index is four arrays. `known` u64[room] has the keys by slot. `arena` u64[pages * PAGE] is cut into
pages, which the kernels see as i32 as well, as `arena32`. A page is either

- an explicit leaf: LEAF keys in order, then their slots (i32, in the second part), or
- a node: FAN lows in order, then FAN references: one low (the least key that may be in it) and reference per leaf.

`top` u64[room, 2], flat, has two numbers for each node, in order: its low, and page << 8 | number of leaves. The first
low of all is 0. A key belongs to the last leaf whose low is at most the key. A reference is where << 10 | implicit << 9
| keys; an implicit leaf is the keys known[where : where + keys], whose slots are their places; an explicit one is in
page `where`.
`head` i64[5] has the counts, and the progress of a call that needs more room.

The kernels take arrays; their inner functions take pointers (mpips/jit/numba_pointers.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.jit.numba_pointers import count_below

U64 = Any
I32 = Any
I64 = Any
"""An array of these in kernels that Python calls, a pointer to them in all other kernels."""

LEAF = 128
"""The largest number of keys in a leaf."""
BLOCKS = LEAF // 8
"""The largest number of full blocks of eight keys in a leaf."""
_LAST = np.uint64(2**64 - 1)
FAN = 96
"""The largest number of leaves of a node."""
PAGE = 192
"""Words of a page."""
BITS, IMPLICIT, COUNTS = 10, 512, 511
"""The parts of a reference."""
COUNT, PAGES, TOPS, DONE, FIRST = range(5)
"""Places in `head`: keys, pages and nodes in use; keys done of a call, the slot of its first key."""
LISTED, UNSET, ROOM = -1, -2, -3
"""Results other than the first slot of one run: slots are listed in `out`; not known yet; more room is needed."""
RUN = 3000
"""Keys that one step of an insertion may add."""

U8: Any = np.uint64
I8: Any = np.int64


@kernel()
def keys_below(array: U64, begin: int, count: int, key: Any) -> int:
    """Count the keys below `key` among the `count` sorted ones from `begin` on.

    It counts the lower keys, first among every eighth key and then among eight neighbours: unlike in a binary search,
    no branch depends on a comparison.
    """
    found = 0
    if count < 8:
        for x in range(count):
            found += array[begin + x] < key
        return found
    for x in range(count >> 3):
        found += array[begin + 8 * x + 7] < key
    low = min(8 * found, count - 8)
    rank: int = low + count_below(array, begin + low, key)
    return rank


@kernel()
def mark(array: U64, begin: int, count: int, marks: U64) -> None:
    """Write every eighth of the `count` sorted keys of a leaf to marks[:BLOCKS], for `marked_below`."""
    full = count >> 3
    for x in range(full):
        marks[x] = array[begin + 8 * x + 7]
    for x in range(full, BLOCKS):
        marks[x] = _LAST


@kernel()
def marked_below(array: U64, begin: int, count: int, marks: U64, key: Any) -> int:
    """Count as `keys_below` in a leaf of at least eight keys that was marked: faster for many keys of one leaf."""
    low = min(8 * (count_below(marks, 0, key) + count_below(marks, 8, key)), count - 8)
    rank: int = low + count_below(array, begin + low, key)
    return rank


@kernel()
def last_low(array: U64, begin: int, count: int, key: Any) -> int:
    """Find the last of `count` sorted lows from `begin` on that is <= `key`; the first one is."""
    rank = keys_below(array, begin, count, key)
    return rank if rank < count and array[begin + rank] == key else rank - 1


@kernel()
def node_of(head: I64, top: U64, t: int, key: Any) -> int:
    """Find the node of a key; node t and some nodes after it are tried first."""
    tops = head[TOPS]
    if t < tops and top[2 * t] <= key:
        for _ in range(8):
            if t + 1 == tops or key < top[2 * t + 2]:
                return t
            t += 1
    low, high = 0, tops
    while high - low > 1:
        middle = (low + high) >> 1
        if top[2 * middle] <= key:
            low = middle
        else:
            high = middle
    return low


@kernel()
def node(top: U64, t: int) -> tuple[int, int]:
    """Return the first word of node t, and its number of leaves."""
    entry = I8(top[2 * t + 1])
    return (entry >> 8) * PAGE, entry & 255


@kernel()
def upper(head: I64, arena: U64, top: U64, t: int, p: int) -> tuple[Any, bool]:
    """Return the low of the leaf after leaf p of node t, and whether there is one."""
    at, size = node(top, t)
    if p + 1 < size:
        return arena[at + p + 1], True
    if t + 1 < head[TOPS]:
        return top[2 * t + 2], True
    return U8(0), False


@kernel()
def inside(head: I64, arena: U64, top: U64, t: int, p: int, key: Any) -> Any:
    """Return whether a key belongs to leaf p of node t, if that exists."""
    if t >= head[TOPS]:
        return False
    at, size = node(top, t)
    if p >= size or key < arena[at + p]:
        return False
    high, bounded = upper(head, arena, top, t, p)
    return not bounded or key < high


@kernel()
def locate(head: I64, arena: U64, top: U64, t: int, p: int, key: Any) -> tuple[int, int]:
    """Find the node and the leaf of a key: perhaps leaf p of node t, or the one after it."""
    if inside(head, arena, top, t, p, key):
        return t, p
    if inside(head, arena, top, t, p + 1, key):
        return t, p + 1
    t = node_of(head, top, t, key)
    at, size = node(top, t)
    return t, last_low(arena, at, size, key)
