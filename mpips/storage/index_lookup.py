"""Lookup in a key index: the slots of given keys, and the keys in order (mpips/storage/index_layout.py: the layout).

Keys far apart are looked up in batches of AHEAD, whose loads overlap. A run of keys that were inserted one after the
other is found by comparison with `known`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.jit.numba_pointers import address, count_below, halves, prefetch
from mpips.storage.index_layout import (
    BITS,
    BLOCKS,
    COUNT,
    COUNTS,
    FAN,
    I8,
    I32,
    I64,
    IMPLICIT,
    LEAF,
    LISTED,
    PAGE,
    RUN,
    TOPS,
    U8,
    U64,
    UNSET,
    keys_below,
    last_low,
    locate,
    mark,
    marked_below,
    node,
    node_of,
    upper,
)

AHEAD = 64
"""Keys of a batch."""
MANY = 16
"""Fewest keys that are worth a batch."""
LOWS, NEAR = 16, 24
"""Keys that are compared first, near an estimated place: lows of a node, and keys of a leaf, which are less even."""
FEW = 4
"""Fewest keys of a leaf for which it is marked."""
_TOP = float(2**64)


@kernel()
def end_below(keys: U64, i: int, limit: int, high: Any) -> int:
    """Find the end of the ascending keys from i on that are below `high` (the first one is): galloping search."""
    if keys[limit - 1] < high:
        return limit
    j, step = i + 1, 8
    while j + step <= limit and keys[j + step - 1] < high:
        j += step
        step *= 2
    while step > 0:
        if j + step <= limit and keys[j + step - 1] < high:
            j += step
        step >>= 1
    return j


@kernel()
def stretch(keys: U64, i: int, limit: int, high: Any, bounded: bool) -> int:
    """Find where the keys from i on stop ascending, or reach `high` if `bounded`, at most `limit`."""
    j = end_below(keys, i, limit, high) if bounded else limit
    falls = False
    for k in range(i + 1, j):
        falls |= keys[k] <= keys[k - 1]
    if falls:
        k = i + 1
        while keys[k] > keys[k - 1]:
            k += 1
        j = end_below(keys, i, k, high) if bounded else k
    return j


@kernel()
def agreeing(known: U64, count: int, slot: int, keys: U64, i: int, total: int) -> int:
    """Count how many keys from i on equal those of the slots from `slot` on."""
    size = min(total - i, count - slot)
    k = 0
    while k + 32 <= size:
        differ = U8(0)
        for x in range(32):
            differ |= known[slot + k + x] ^ keys[i + k + x]
        if differ != 0:
            break
        k += 32
    while k < size and known[slot + k] == keys[i + k]:
        k += 1
    return k


@kernel()
def listed(out: I32, first: int, i: int) -> int:
    """Write the slots of keys[:i], which were one run so far."""
    for k in range(i):
        out[k] = first + k
    return LISTED


@kernel()
def note_run(out: I32, first: int, i: int, j: int, slot: int) -> int:
    """Record that keys[i:j] have the slots from `slot` on; return the new `first`."""
    if first == UNSET:
        return slot
    if first >= 0:
        if slot == first + i:
            return first
        first = listed(out, first, i)
    for k in range(j - i):
        out[i + k] = slot + k
    return first


@kernel()
def note_listed(out: I32, first: int, i: int, j: int) -> int:
    """Record that out[i:j] was written; return the new `first`."""
    if first == LISTED:
        return LISTED
    if first == UNSET:
        first = I8(out[0])
        if first < 0:
            return LISTED
    breaks = False
    for k in range(i, j):
        breaks |= I8(out[k]) != first + k
    return listed(out, first, i) if breaks else first


@kernel()
def far_apart(head: I64, arena: U64, top: U64, t: int, p: int, keys: U64, i: int, total: int) -> Any:
    """Return whether the keys from i on are so many leaves apart that their loads should overlap."""
    if total - i < MANY:
        return False
    last = keys[min(i + AHEAD, total) - 1]
    at, size = node(top, t)
    if p + 24 < size:
        return last >= arena[at + p + 24]
    return t + 1 < head[TOPS] and last >= top[2 * t + 2]


@kernel()
def window(guess: int, count: int, size: int) -> int:
    """Return the start of a window of `size` of `count` keys around an estimated place `guess`."""
    return max(min(max(guess - (size - 8) // 2, 0) & -8, count - size), 0)


@kernel()
def near(array: U64, begin: int, count: int, guess: int, key: Any, size: int) -> int:
    """Count as `keys_below`, first near an estimated place, among `size` keys."""
    low = window(guess, count, size)
    if count >= size:
        for _ in range(2):
            found = 0
            for x in range(0, size, 8):
                found += count_below(array, begin + low + x, key)
            if found == 0 and low > 0:
                low = max(low - size + 1, 0)
            elif found == size and low + size < count:
                low = min(low + size - 1, count - size)
            else:
                return low + found
    return keys_below(array, begin, count, key)


@kernel()
def scale_of(low: Any, high: Any, bounded: bool, count: int) -> float:
    """Return the factor from a key's distance to `low` to its estimated place among `count` keys in [low, high)."""
    return float(count) / (float(high - low) if bounded else _TOP - float(low))


@kernel()
def look_ahead(
    head: I64, known: U64, arena: U64, top: U64, keys: U64, i: int, size: int, marks: I64, inserts: bool
) -> None:  # fmt: skip
    """Find the places of some keys in their leaves, and prefetch their slots, and what an insertion there shifts.

    marks[4 * q : 4 * q + 4] = node, leaf in it, reference, keys of the leaf below this one: each step is done for all
    keys before the next, so that their loads overlap.
    """
    t = 0
    for q in range(size):
        key = keys[i + q]
        t = node_of(head, top, t, key)
        at, leaves = node(top, t)
        bounded = t + 1 < head[TOPS]
        low = top[2 * t]
        scale = scale_of(low, top[2 * t + 2] if bounded else U8(0), bounded, leaves)
        guess = min(int(float(key - low) * scale), leaves - 1)
        look = window(guess, leaves, LOWS)
        prefetch(arena, at + look)
        prefetch(arena, at + look + LOWS - 1)
        prefetch(arena, at + FAN + guess)
        marks[4 * q] = t
        marks[4 * q + 3] = guess
    for q in range(size):
        key = keys[i + q]
        t = marks[4 * q]
        at, leaves = node(top, t)
        rank = near(arena, at, leaves, marks[4 * q + 3], key, LOWS)
        p = rank if rank < leaves and arena[at + rank] == key else rank - 1
        ref = I8(arena[at + FAN + p])
        high, bounded = upper(head, arena, top, t, p)
        where, count = ref >> BITS, ref & COUNTS
        low = arena[at + p]
        guess = min(int(float(key - low) * scale_of(low, high, bounded, count)), count - 1)
        look = window(guess, count, NEAR)
        if ref & IMPLICIT:
            for x in range(0, NEAR, 8):
                prefetch(known, where + look + x)
        else:
            for x in range(0, NEAR, 8):
                prefetch(arena, where * PAGE + look + x)
            prefetch(arena, where * PAGE + look + NEAR - 1)
        marks[4 * q + 1] = p
        marks[4 * q + 2] = ref
        marks[4 * q + 3] = guess
    for q in range(size):
        key = keys[i + q]
        ref, guess = marks[4 * q + 2], marks[4 * q + 3]
        where, count = ref >> BITS, ref & COUNTS
        if ref & IMPLICIT:
            marks[4 * q + 3] = near(known, where, count, guess, key, NEAR)
            continue
        begin = where * PAGE
        rank = near(arena, begin, count, guess, key, NEAR)
        prefetch(arena, begin + LEAF + (rank >> 1))
        if inserts and (rank == count or arena[begin + rank] != key):
            for x in range(rank + 8, count + 8, 8):
                prefetch(arena, begin + x)
            for x in range(rank + 16, count + 16, 16):
                prefetch(arena, begin + LEAF + (x >> 1))
        marks[4 * q + 3] = rank


@kernel()
def equal(array: U64, begin: int, keys: U64, i: int, j: int) -> Any:
    """Return whether keys[i:j] equal those from `begin` on."""
    differ = U8(0)
    for x in range(j - i):
        differ |= array[begin + x] ^ keys[i + x]
    return differ == 0


@kernel()
def _find(
    head: I64, known: U64, arena: U64, arena32: I32, top: U64, keys: U64, total: int, out: I32, ahead: I64,
    marks: U64,
) -> int:  # fmt: skip
    count = head[COUNT]
    i, t, p, first, tries, rest = 0, 0, 0, UNSET, 1, 0
    while i < total:
        t, p = locate(head, arena, top, t, p, keys[i])
        if far_apart(head, arena, top, t, p, keys, i, total):
            size = min(AHEAD, total - i)
            look_ahead(head, known, arena, top, keys, i, size, ahead, False)
            for q in range(size):
                key = keys[i + q]
                ref, rank = ahead[4 * q + 2], ahead[4 * q + 3]
                where, held = ref >> BITS, ref & COUNTS
                slot = -1
                if rank < held:
                    if ref & IMPLICIT:
                        if known[where + rank] == key:
                            slot = where + rank
                    elif arena[where * PAGE + rank] == key:
                        slot = I8(arena32[2 * (where * PAGE + LEAF) + rank])
                out[i + q] = slot
            first = note_listed(out, first, i, i + size)
            i += size
            continue
        at, _ = node(top, t)
        ref = I8(arena[at + FAN + p])
        where, implicit, held = ref >> BITS, (ref & IMPLICIT) != 0, ref & COUNTS
        from_, begin = (known, where) if implicit else (arena, where * PAGE)
        theirs = 2 * (where * PAGE + LEAF)
        high, bounded = upper(head, arena, top, t, p)
        low = arena[at + p]
        scale = scale_of(low, high, bounded, held)
        rank = near(from_, begin, held, int(float(keys[i] - low) * scale), keys[i], NEAR)
        if rest > 0:
            rest -= 1
        # Keys are often those of an earlier list, or a long part of it: one run of slots.
        elif rank < held:
            slot = where + rank if implicit else I8(arena32[theirs + rank])
            same = agreeing(known, count, slot, keys, i, total)
            if same >= 16 or same == total - i:
                first = note_run(out, first, i, i + same, slot)
                i += same
                tries = 1
                continue
            tries = min(2 * tries, 64)
            rest = tries
        j = stretch(keys, i, min(i + RUN, total), high, bounded)
        if j - i == held - rank and equal(from_, begin + rank, keys, i, j):
            for x in range(j - i):
                out[i + x] = where + rank + x if implicit else arena32[theirs + rank + x]
        elif j - i < FEW or held < 8:
            for k in range(i, j):
                rank = near(from_, begin, held, int(float(keys[k] - low) * scale), keys[k], NEAR)
                hit = rank < held and from_[begin + rank] == keys[k]
                out[k] = -1
                if hit:
                    out[k] = where + rank if implicit else I8(arena32[theirs + rank])
        else:
            mark(from_, begin, held, marks)
            for k in range(i, j):
                rank = marked_below(from_, begin, held, marks, keys[k])
                least = min(rank, held - 1)
                hit = rank < held and from_[begin + least] == keys[k]
                slot = where + least if implicit else I8(arena32[theirs + least])
                out[k] = slot if hit else -1
        first = note_listed(out, first, i, j)
        i = j
    return first


@kernel("i8(i8[::1], u8[::1], u8[::1], u8[::1], u8[::1], i4[::1])")
def find(head: I64, known: U64, arena: U64, top: U64, keys: U64, out: I32) -> int:
    """Find the slots of keys: return the first if they are one run, else LISTED and out[:] (-1: unknown)."""
    if head[TOPS] == 0:
        for k in range(len(keys)):
            out[k] = -1
        return LISTED
    ahead = np.empty(4 * AHEAD if len(keys) >= MANY else 1, np.int64)
    marks = np.empty(BLOCKS, np.uint64)
    first = _find(
        address(head),
        address(known),
        address(arena),
        halves(address(arena)),
        address(top),
        address(keys),
        len(keys),
        address(out),
        address(ahead),
        address(marks),
    )
    # Keeps the arrays alive until the end.
    ahead[0], marks[0] = 0, U8(0)
    return first


# --- In order of keys -----------------------------------------------------------------------------------


@kernel("i8(i8[::1], u8[::1], u8[::1], u8[::1], u8)")
def rank_of(head_: I64, known_: U64, arena_: U64, top_: U64, key: Any) -> int:
    """Count the keys below a key."""
    head, known, arena, top = address(head_), address(known_), address(arena_), address(top_)
    if head[TOPS] == 0:
        return 0
    t = node_of(head, top, 0, key)
    at, size = node(top, t)
    p = last_low(arena, at, size, key)
    ref = I8(arena[at + FAN + p])
    where, held = ref >> BITS, ref & COUNTS
    below = (
        keys_below(known, where, held, key) if ref & IMPLICIT else keys_below(arena, where * PAGE, held, key)
    )
    for x in range(t + 1):
        at, size = node(top, x)
        for q in range(p if x == t else size):
            below += I8(arena[at + FAN + q] & U8(COUNTS))
    return below


@kernel("i8(i8[::1], u8[::1], u8[::1], u8[::1], i8, u8[::1], i4[::1])")
def take(head_: I64, known_: U64, arena_: U64, top_: U64, skip: int, keys_: U64, slots_: I32) -> int:
    """Write the keys and slots from rank `skip` on, in key order; return the first slot of one run, else LISTED."""
    head, known, arena, top = address(head_), address(known_), address(arena_), address(top_)
    arena32 = halves(arena)
    keys, slots, done, want = address(keys_), address(slots_), 0, len(keys_)
    for t in range(head[TOPS]):
        at, size = node(top, t)
        for p in range(size):
            ref = I8(arena[at + FAN + p])
            where, held = ref >> BITS, ref & COUNTS
            if skip >= held:
                skip -= held
                continue
            n = min(held - skip, want - done)
            if ref & IMPLICIT:
                for x in range(n):
                    keys[done + x] = known[where + skip + x]
                    slots[done + x] = where + skip + x
            else:
                begin = where * PAGE + skip
                theirs = 2 * (where * PAGE + LEAF) + skip
                for x in range(n):
                    keys[done + x] = arena[begin + x]
                    slots[done + x] = arena32[theirs + x]
            skip = 0
            done += n
            if done == want:
                break
        if done == want:
            break
    if want == 0:
        return LISTED
    return note_listed(slots, UNSET, 0, want)
