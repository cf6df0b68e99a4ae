"""Insertion into a key index: new leaves between the old ones, and new keys in them (mpips/storage/index_layout.py:
the layout).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.jit.numba_pointers import address, halves, moved
from mpips.storage.index_layout import (
    BITS,
    BLOCKS,
    COUNT,
    COUNTS,
    DONE,
    FAN,
    FIRST,
    I8,
    I32,
    I64,
    IMPLICIT,
    LEAF,
    LISTED,
    PAGE,
    PAGES,
    ROOM,
    RUN,
    TOPS,
    U8,
    U64,
    UNSET,
    keys_below,
    locate,
    mark,
    marked_below,
    node,
    upper,
)
from mpips.storage.index_lookup import (
    AHEAD,
    FEW,
    NEAR,
    agreeing,
    far_apart,
    look_ahead,
    near,
    note_listed,
    note_run,
    stretch,
)

SPARE_PAGES, SPARE_TOPS = 8, 3
"""Memory that one step of an insertion may need."""
_MERGED = 512
_PIECE = LEAF // 2
_FILLED = LEAF * 7 // 8
_LENGTHS = np.array([LEAF // 2 + (i * 37) % 64 * LEAF // 128 for i in range(32)], np.int64)
"""Sizes of implicit leaves: different ones, so that the leaves do not all split at the same time."""


@kernel()
def _splice(head: I64, arena: U64, top: U64, t: int, p: int, k: int, lows: U64, refs: U64) -> None:
    """Replace leaf p of node t by k leaves, lows[:k] and refs[:k]; split the node when it is full."""
    at, size = node(top, t)
    total = size - 1 + k
    if total <= FAN:
        for x in range(size - 1, p, -1):
            arena[at + x + k - 1] = arena[at + x]
        for x in range(size - 1, p, -1):
            arena[at + FAN + x + k - 1] = arena[at + FAN + x]
        for x in range(k):
            arena[at + p + x], arena[at + FAN + p + x] = lows[x], refs[x]
        top[2 * t + 1] = U8((at // PAGE) << 8 | total)
        return
    page = head[PAGES]
    head[PAGES] = page + 1
    other = page * PAGE
    # Keys that come in rising order fill their nodes.
    left = FAN if t + 1 == head[TOPS] and p + 1 == size else total >> 1
    for x in range(total - 1, min(left, p) - 1, -1):
        if x >= p + k:
            low, ref = arena[at + x - k + 1], arena[at + FAN + x - k + 1]
        elif x >= p:
            low, ref = lows[x - p], refs[x - p]
        else:
            low, ref = arena[at + x], arena[at + FAN + x]
        to = other + x - left if x >= left else at + x
        arena[to] = low
        arena[to + FAN] = ref
    top[2 * t + 1] = U8((at // PAGE) << 8 | left)
    for x in range(2 * head[TOPS] + 1, 2 * t + 3, -1):
        top[x] = top[x - 2]
    top[2 * t + 2] = arena[other]
    top[2 * t + 3] = U8((other // PAGE) << 8 | (total - left))
    head[TOPS] += 1


@kernel()
def _reference(where: int, implicit: bool, count: int) -> Any:
    return U8(where << BITS | (IMPLICIT if implicit else 0) | count)


@kernel()
def _add_run(
    head: I64, known: U64, arena: U64, arena32: I32, top: U64, t: int, p: int, rank: int, keys: U64, i: int, j: int,
    lows: U64, refs: U64,
) -> None:  # fmt: skip
    """Add new keys[i:j], which lie between two neighbouring keys, at `rank` in leaf p of node t, as implicit leaves."""
    at, _ = node(top, t)
    ref = I8(arena[at + FAN + p])
    low = arena[at + p]
    where, implicit, held = ref >> BITS, (ref & IMPLICIT) != 0, ref & COUNTS
    count = head[COUNT]
    for k in range(j - i):
        known[count + k] = keys[i + k]
    k = 0
    if rank > 0:
        lows[0], refs[0] = low, _reference(where, implicit, rank)
        k = 1
    begin, end = count, count + j - i
    while begin < end:
        rest = end - begin
        size = _LENGTHS[k & 31]
        if rest <= LEAF:
            size = rest
        elif rest < size + _PIECE:
            size = rest >> 1
        lows[k], refs[k] = known[begin], _reference(begin, True, size)
        begin += size
        k += 1
    if rank < held:
        if implicit:
            lows[k], refs[k] = known[where + rank], _reference(where + rank, True, held - rank)
        else:
            page = head[PAGES]
            head[PAGES] = page + 1
            for x in range(held - rank):
                arena[page * PAGE + x] = arena[where * PAGE + rank + x]
                arena32[2 * (page * PAGE + LEAF) + x] = arena32[2 * (where * PAGE + LEAF) + rank + x]
            lows[k], refs[k] = arena[page * PAGE], _reference(page, False, held - rank)
        k += 1
    lows[0] = low
    head[COUNT] = end
    _splice(head, arena, top, t, p, k, lows, refs)


@kernel()
def _shift(
    known: U64, arena: U64, arena32: I32, begin: int, theirs: int, held: int, count: int, new: int, places: I64
) -> None:  # fmt: skip
    """Insert a few keys, known[count : count + new], into an explicit leaf at `places`, and shift later keys."""
    end = held
    for x in range(new - 1, -1, -1):
        rank = places[x]
        for y in range(end - 1, rank - 1, -1):
            arena[begin + y + x + 1] = arena[begin + y]
        for y in range(end - 1, rank - 1, -1):
            arena32[theirs + y + x + 1] = arena32[theirs + y]
        arena[begin + rank + x] = known[count + x]
        arena32[theirs + rank + x] = count + x
        end = rank


@kernel()
def _weave(
    from_: U64, old: I32, begin: int, theirs: int, held: int, into: U64, slots: I32, to: int, mine: int,
    known: U64, count: int, new: int, places: I64, bumps: I64,
) -> None:  # fmt: skip
    """Merge the keys of a leaf with known[count : count + new], whose `places` in it are given, without branches.

    The merge starts at the end, so that the leaf may be merged in place. `bumps` is zero before and after.
    """
    for x in range(new):
        bumps[places[x]] += 1
    by = new
    for y in range(held - 1, -1, -1):
        by -= bumps[y + 1]
        bumps[y + 1] = 0
        into[to + y + by] = from_[begin + y]
        slots[mine + y + by] = old[theirs + y]
    bumps[0] = 0
    for x in range(new):
        at = places[x] + x
        into[to + at] = known[count + x]
        slots[mine + at] = count + x


@kernel()
def _merge(
    head: I64, known: U64, arena: U64, arena32: I32, top: U64, t: int, p: int, keys: U64, i: int, j: int,
    out: I32, places: I64, bumps: I64, olds: I32, merged: U64, slots: I32, lows: U64, refs: U64,
    marks: U64,
) -> None:  # fmt: skip
    """Find or add keys[i:j], all of leaf p of node t, and write out[i:j]."""
    at, _ = node(top, t)
    ref = I8(arena[at + FAN + p])
    where, implicit, held = ref >> BITS, (ref & IMPLICIT) != 0, ref & COUNTS
    count = head[COUNT]
    new = 0
    from_, begin = (known, where) if implicit else (arena, where * PAGE)
    theirs = 2 * (where * PAGE + LEAF)
    if held < 8 or j - i < FEW:
        for k in range(i, j):
            places[k - i] = keys_below(from_, begin, held, keys[k])
    else:
        mark(from_, begin, held, marks)
        for k in range(i, j):
            places[k - i] = marked_below(from_, begin, held, marks, keys[k])
    for k in range(i, j):
        key, rank = keys[k], places[k - i]
        known[count + new] = key
        places[new] = rank
        slot = count + new
        hit = rank < held and from_[begin + rank] == key
        if hit:
            slot = where + rank if implicit else I8(arena32[theirs + rank])
        out[k] = slot
        new += not hit
    if new == 0:
        return
    head[COUNT] = count + new
    if not implicit and held + new <= LEAF:
        if new <= FEW:
            _shift(known, arena, arena32, begin, theirs, held, count, new, places)
        else:
            _weave(
                arena, arena32, begin, theirs, held, arena, arena32, begin, theirs, known, count, new, places, bumps,
            )  # fmt: skip
        arena[at + FAN + p] = _reference(where, False, held + new)
        return
    total = held + new
    if implicit:
        for x in range(held):
            olds[x] = where + x
        _weave(known, olds, where, 0, held, merged, slots, 0, 0, known, count, new, places, bumps)
    else:
        _weave(arena, arena32, begin, theirs, held, merged, slots, 0, 0, known, count, new, places, bumps)
    lows[0], refs[0] = arena[at + p], U8(ref)
    done, k = 0, 0
    if not implicit and places[0] == held:
        # Keys that come in rising order fill their leaves.
        done, k = held, 1
    pieces = 1 if total - done <= LEAF else -(-(total - done) // _FILLED)
    for piece in range(pieces):
        size = (total - done) // (pieces - piece)
        page = where
        if implicit or done > 0:
            page = head[PAGES]
            head[PAGES] = page + 1
        for x in range(size):
            arena[page * PAGE + x] = merged[done + x]
            arena32[2 * (page * PAGE + LEAF) + x] = slots[done + x]
        if k > 0:
            lows[k] = merged[done]
        refs[k] = _reference(page, False, size)
        done += size
        k += 1
    _splice(head, arena, top, t, p, k, lows, refs)


@kernel()
def _insert(
    head: I64, known: U64, arena: U64, arena32: I32, top: U64, keys: U64, total: int, out: I32,
    room: int, pages: int, tops: int, longs: I64, lows: U64, refs: U64, merged: U64, olds: I32, slots: I32,
    marks: U64,
) -> int:  # fmt: skip
    i, first = head[DONE], head[FIRST]
    bumps, places, ahead = longs, moved(longs, LEAF + 1), moved(longs, LEAF + 1 + _MERGED)
    t, p, tries, rest, sighted, sight = 0, 0, 1, 0, 0, 0
    while i < total:
        limit = min(i + RUN, total)
        if (
            room - head[COUNT] < limit - i
            or pages - head[PAGES] < SPARE_PAGES
            or tops - head[TOPS] < SPARE_TOPS
        ):
            head[DONE], head[FIRST] = i, first
            return ROOM
        if head[TOPS] == 0:
            page = head[PAGES]
            head[PAGES] = page + 1
            arena[page * PAGE] = U8(0)
            arena[page * PAGE + FAN] = U8(IMPLICIT)
            top[0], top[1] = U8(0), U8(page << 8 | 1)
            head[TOPS] = 1
        if i < sighted:
            t, p = ahead[4 * (i - sight)], ahead[4 * (i - sight) + 1]
        t, p = locate(head, arena, top, t, p, keys[i])
        if i >= sighted and far_apart(head, arena, top, t, p, keys, i, total):
            sight, sighted = i, min(i + AHEAD, total)
            look_ahead(head, known, arena, top, keys, i, sighted - i, ahead, True)
        at, _ = node(top, t)
        ref = I8(arena[at + FAN + p])
        where, implicit, held = ref >> BITS, (ref & IMPLICIT) != 0, ref & COUNTS
        from_, begin = (known, where) if implicit else (arena, where * PAGE)
        if i < sighted and not implicit and held < LEAF:
            key = keys[i]
            theirs = 2 * (begin + LEAF)
            rank = near(arena, begin, held, ahead[4 * (i - sight) + 3], key, NEAR)
            if rank < held and arena[begin + rank] == key:
                out[i] = arena32[theirs + rank]
            else:
                count = head[COUNT]
                head[COUNT] = count + 1
                known[count] = key
                for y in range(begin + held, begin + rank, -1):
                    arena[y] = arena[y - 1]
                for y in range(theirs + held, theirs + rank, -1):
                    arena32[y] = arena32[y - 1]
                arena[begin + rank] = key
                arena32[theirs + rank] = count
                arena[at + FAN + p] = _reference(where, False, held + 1)
                out[i] = count
            first = note_listed(out, first, i, i + 1)
            i += 1
            continue
        high, bounded = upper(head, arena, top, t, p)
        j = stretch(keys, i, min(limit, sighted) if i < sighted else limit, high, bounded)
        if held == 0 or j - i >= _PIECE:
            rank = keys_below(from_, begin, held, keys[i])
            if rank < held:
                bounded, high = True, from_[begin + rank]
            if held == 0 or (not bounded or keys[i + _PIECE - 1] < high):
                j = stretch(keys, i, j, high, bounded)
                first = note_run(out, first, i, j, head[COUNT])
                _add_run(head, known, arena, arena32, top, t, p, rank, keys, i, j, lows, refs)
                i = j
                continue
        if rest > 0:
            rest -= 1
        elif i >= sighted:
            rank = keys_below(from_, begin, held, keys[i])
            slot, same = 0, 0
            if rank < held:
                slot = where + rank if implicit else I8(arena32[2 * (where * PAGE + LEAF) + rank])
                same = agreeing(known, head[COUNT], slot, keys, i, total)
            if same >= 16 or same == total - i:
                first = note_run(out, first, i, i + same, slot)
                i += same
                tries = 1
                continue
            tries = min(2 * tries, 64)
            rest = tries
        j = min(j, i + _MERGED)
        _merge(
            head, known, arena, arena32, top, t, p, keys, i, j, out, places, bumps, olds, merged, slots, lows, refs,
            marks,
        )  # fmt: skip
        first = note_listed(out, first, i, j)
        i = j
    head[DONE], head[FIRST] = 0, UNSET
    return first if first != UNSET else LISTED


@kernel("i8(i8[::1], u8[::1], u8[::1], u8[::1], u8[::1], i4[::1])")
def insert(head: I64, known: U64, arena: U64, top: U64, keys: U64, out: I32) -> int:
    """Find the slots of keys as `find`, giving the next ones to new keys.

    Returns ROOM if it needs more memory: it continues when it is called again.
    """
    longs = np.zeros(LEAF + 1 + _MERGED + 4 * AHEAD, np.int64)
    words = np.empty(128 + LEAF + _MERGED + BLOCKS, np.uint64)
    ints = np.empty(2 * LEAF + _MERGED, np.int32)
    first = _insert(
        address(head), address(known), address(arena), halves(address(arena)), address(top),
        address(keys), len(keys), address(out), len(known), len(arena) // PAGE, len(top) >> 1, address(longs),
        address(words), moved(address(words), 64), moved(address(words), 128),
        address(ints), moved(address(ints), LEAF), moved(address(words), 128 + LEAF + _MERGED),
    )  # fmt: skip
    # They live until here.
    longs[0], words[0], ints[0] = 0, U8(0), 0
    return first
