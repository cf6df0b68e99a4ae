"""Compiled kernels of the sketch: hashing, the worker's table of deltas, the servers' blocks, estimates.

A CountMin sketch (Cormode, Muthukrishnan, J. Algorithms 55, 2005) is a table of `depth` rows and `width` columns; a key
is counted in one cell of each row. Cell c = row * width + column lies in block c >> shift of the servers' vector, at
c & (2**shift - 1).

The rows' hash functions: 64 mixed bits of the key and a seed per pair of rows; each row of the pair uses one half.

Few keys make up most of a real stream. So a worker first counts keys in a cache of pairs of slots (`count`); only
evicted keys are added to its table, which is larger than the processor's second-level cache. The slot with the larger
count of a pair stays, the other one is replaced by a new key. The cache is emptied at the end of a batch, so every key
of a batch is passed to `spill` and `note`, for the last time when its cells have all counts of the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips import kernel
from mpips.data.kernels import mix

U8 = np.uint64
Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]

SLOTS = 14
"""log2 of the pairs of slots in the cache: 512 kB, a quarter of a second-level cache."""
REGISTERS = 14
"""log2 of the number of registers for the count of distinct keys."""

_S32, _LOW, _STEP = U8(32), U8(0xFFFFFFFF), U8(0xD6E8FEB86659FD93)
_SPREAD, _OTHER = U8(0x9E3779B97F4A7C15), U8(0xE7037ED1A0B428DB)


@kernel("u8(u8, u8, i8)", inline=True)
def _two(key: np.uint64, seed: np.uint64, pair: int) -> np.uint64:
    """Return the bits of rows 2 pair and 2 pair + 1."""
    return mix(key ^ (seed + U8(pair) * _STEP))


@kernel("u8(u8, i8, i8)", inline=True)
def _cell(bits: np.uint64, row: int, width: int) -> np.uint64:
    """Return the cell of a row: the high half of the bits for even rows, the low one for odd, scaled to the width."""
    half = bits & _LOW if row & 1 else bits >> _S32
    return U8(row * width) + ((half * U8(width)) >> _S32)


# --- The cache -----------------------------------------------------------------------------------------------------


# Both kernels have the same body: a helper would count references to its arrays, which takes five times as long.


@kernel("UniTuple(i8, 2)(u8[::1], i8, i8[:,::1], u8[::1], i8[::1])")
def count(keys: Keys, pos: int, slots: Counts, out: Keys, counts: Counts) -> tuple[int, int]:
    """Count keys from `pos` on, each once, until `out` is full; return the next position, and the number in `out`.

    slots i8[2**SLOTS, 4]: two keys and their counts, of which the first should be the larger; a count of 0 is none.
    """
    filled, room = 0, len(out)
    for i in range(pos, len(keys)):
        key = keys[i]
        at, name = (key * _SPREAD) >> U8(64 - SLOTS), np.int64(key)
        if slots[at, 0] == name:
            slots[at, 2] += 1
        elif slots[at, 1] == name:
            more = slots[at, 3] + 1
            if more > slots[at, 2]:
                slots[at, 1], slots[at, 3] = slots[at, 0], slots[at, 2]
                slots[at, 0], slots[at, 2] = name, more
            else:
                slots[at, 3] = more
        else:
            if slots[at, 3]:
                out[filled] = U8(slots[at, 1])
                counts[filled] = slots[at, 3]
                filled += 1
            slots[at, 1], slots[at, 3] = name, 1
            if filled == room:
                return i + 1, filled
    return len(keys), filled


@kernel("UniTuple(i8, 2)(u8[::1], i8[::1], i8, i8[:,::1], u8[::1], i8[::1])")
def count_weights(
    keys: Keys, weights: Counts, pos: int, slots: Counts, out: Keys, counts: Counts
) -> tuple[int, int]:
    """Count keys as `count` does, each with its non-negative weight."""
    filled, room = 0, len(out)
    for i in range(pos, len(keys)):
        key, weight = keys[i], weights[i]
        if not weight:
            continue
        at, name = (key * _SPREAD) >> U8(64 - SLOTS), np.int64(key)
        if slots[at, 0] == name:
            slots[at, 2] += weight
        elif slots[at, 1] == name:
            more = slots[at, 3] + weight
            if more > slots[at, 2]:
                slots[at, 1], slots[at, 3] = slots[at, 0], slots[at, 2]
                slots[at, 0], slots[at, 2] = name, more
            else:
                slots[at, 3] = more
        else:
            if slots[at, 3]:
                out[filled] = U8(slots[at, 1])
                counts[filled] = slots[at, 3]
                filled += 1
            slots[at, 1], slots[at, 3] = name, weight
            if filled == room:
                return i + 1, filled
    return len(keys), filled


@kernel("UniTuple(i8, 2)(i8, i8[:,::1], u8[::1], i8[::1])")
def empty(pos: int, slots: Counts, out: Keys, counts: Counts) -> tuple[int, int]:
    """Take the keys out of the pairs of slots from `pos` on, as `count` does."""
    filled, room = 0, len(out)
    for at in range(pos, len(slots)):
        if filled + 2 > room:
            return at, filled
        for which in range(2):
            if slots[at, 2 + which]:
                out[filled] = U8(slots[at, which])
                counts[filled] = slots[at, 2 + which]
                filled += 1
                slots[at, 2 + which] = 0
    return len(slots), filled


# --- The worker's table ----------------------------------------------------------------------------------------------


_SPILL = "void(u8[::1], i8[::1], i8, {t}[::1], i8, i8, u8, u4[:,::1], i8[::1])"


@kernel(*(_SPILL.format(t=t) for t in ("i4", "i8")))
def spill(
    keys: Keys,
    counts: Counts,
    n: int,
    table: NDArray[np.signedinteger],
    depth: int,
    width: int,
    seed: np.uint64,
    cells: NDArray[np.uint32],
    most: Counts,
) -> None:
    """Add the counts of n keys to a worker's table; return the values of their cells in its first row.

    cells u4[depth, or one more if that is odd, n or more] is scratch memory: hashing all keys first, and then adding
    row by row, lets the processor load more cells at the same time.
    """
    for row in range(0, depth, 2):
        even, odd = cells[row], cells[row + 1]
        for i in range(n):
            bits = _two(keys[i], seed, row >> 1)
            even[i], odd[i] = np.uint32(_cell(bits, row, width)), np.uint32(_cell(bits, row + 1, width))
    first = cells[0]
    for i in range(n):
        more = table[first[i]] + counts[i]
        table[first[i]] = more
        most[i] = more
    for row in range(1, depth):
        own = cells[row]
        for i in range(n):
            table[own[i]] += counts[i]


@kernel(*(_SPILL.format(t=t) for t in ("i4", "i8")))
def spill_conservatively(
    keys: Keys,
    counts: Counts,
    n: int,
    table: NDArray[np.signedinteger],
    depth: int,
    width: int,
    seed: np.uint64,
    cells: NDArray[np.uint32],
    most: Counts,
) -> None:
    """Do as `spill`, but raise no cell above the new value of the key's least one (Estan, Varghese, SIGCOMM 2002)."""
    for i in range(n):
        least = np.int64(2**62)
        for row in range(depth):
            least = min(least, np.int64(table[_cell(_two(keys[i], seed, row >> 1), row, width)]))
        least += counts[i]
        for row in range(depth):
            cell = _cell(_two(keys[i], seed, row >> 1), row, width)
            table[cell] = max(np.int64(table[cell]), least)
        most[i] = least


@kernel(
    "void(u8[::1], i8[::1], i8[::1], i8, u8, i8, u8, i4[::1], u8[::1], i8[::1], u8[::1], i8[::1], i8[::1])"
)
def note(
    keys: Keys,
    counts: Counts,
    most: Counts,
    n: int,
    seed: np.uint64,
    heavy: int,
    sampled: np.uint64,
    registers: NDArray[np.int32],
    heavy_keys: Keys,
    heavy_counts: Counts,
    sample_keys: Keys,
    sample_counts: Counts,
    fill: Counts,
) -> None:
    """Record further facts about n keys.

    These are the registers of distinct keys (HyperLogLog), the keys whose count, at most `most`, may be `heavy` or
    more, and the counts of keys whose hash is below `sampled`. fill i8[2]: the numbers of the latter two, with room for
    n more of each.
    """
    first, second = fill[0], fill[1]
    for i in range(n):
        bits = mix(keys[i] ^ (seed + _OTHER))
        at, rest = bits >> U8(64 - REGISTERS), bits | U8(1 << (64 - REGISTERS))
        # Rarely true, and so predicted; a loop over the bits of each hash would not be.
        while not rest & ((U8(1) << U8(registers[at])) - U8(1)):
            registers[at] += 1
        if most[i] >= heavy:
            heavy_keys[first], heavy_counts[first] = keys[i], most[i]
            first += 1
        if bits < sampled:
            sample_keys[second], sample_counts[second] = keys[i], counts[i]
            second += 1
    fill[0], fill[1] = first, second


@kernel(*(f"i8({t}[:,::1], i8, i8, b1, {t}[:,::1], u8[::1])" for t in ("i4", "i8")))
def unload(
    table: NDArray[np.signedinteger],
    part: int,
    batch: int,
    everything: bool,
    rows: NDArray[np.signedinteger],
    blocks: Keys,
) -> int:
    """Move a worker's table, block by block, to rows to be pushed, and set it to zero.

    Blocks that are all zero are left out, unless `everything`. Lists the blocks; returns their number.
    """
    n, width = 0, table.shape[1]
    for block in range(len(table)):
        any_of = table[block, 0]
        for at in range(1, width):
            any_of |= table[block, at]
        if any_of or everything:
            for at in range(width):
                rows[n, at] = table[block, at]
                table[block, at] = 0
            rows[n, width], rows[n, width + 1] = part, batch
            blocks[n] = block
            n += 1
    return n


# --- The servers' blocks ---------------------------------------------------------------------------------------------


@kernel(*(f"void(i8[:,::1], i4[:,::1], i4[::1], {t}[:,::1])" for t in ("i4", "i8")))
def apply(
    values: Counts, applied: NDArray[np.int32], slots: NDArray[np.int32], rows: NDArray[np.signedinteger]
) -> None:
    """Add deltas to blocks that have not applied their batch yet; see `servers`."""
    width = values.shape[1]
    for i in range(len(slots)):
        slot, part, batch = slots[i], rows[i, width], rows[i, width + 1]
        if applied[slot, part] < batch:
            applied[slot, part] = batch
            for at in range(width):
                values[slot, at] += rows[i, at]


@kernel(*(f"void(i8[:,::1], i4[:,::1], {t}[:,::1])" for t in ("i4", "i8")))
def apply_range(values: Counts, applied: NDArray[np.int32], rows: NDArray[np.signedinteger]) -> None:
    """Do as `apply` for contiguous blocks."""
    width = values.shape[1]
    for i in range(len(rows)):
        part, batch = rows[i, width], rows[i, width + 1]
        if applied[i, part] < batch:
            applied[i, part] = batch
            for at in range(width):
                values[i, at] += rows[i, at]


@kernel("void(i4[:,::1], i4[::1], i4[:,::1])")
def raise_to(values: NDArray[np.int32], slots: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
    """Set values to the maximum of themselves and the pushed rows."""
    for i in range(len(slots)):
        for at in range(values.shape[1]):
            values[slots[i], at] = max(values[slots[i], at], rows[i, at])


# --- Estimates -------------------------------------------------------------------------------------------------------


@kernel(*(f"void(u8[::1], {t}[::1], i8, i8, u8, i8[::1])" for t in ("i4", "i8")))
def estimate(
    keys: Keys, table: NDArray[np.signedinteger], depth: int, width: int, seed: np.uint64, out: Counts
) -> None:
    """Estimate the counts of keys from a whole table of depth * width cells."""
    for i in range(len(keys)):
        least = np.int64(table[_cell(_two(keys[i], seed, 0), 0, width)])
        for row in range(1, depth):
            least = min(least, np.int64(table[_cell(_two(keys[i], seed, row >> 1), row, width)]))
        out[i] = least


@kernel("i8(u8[::1], i8, i8, i8, u8, i4[::1], i8[::1], u8[::1])")
def asked(
    keys: Keys,
    shift: int,
    depth: int,
    width: int,
    seed: np.uint64,
    marks: NDArray[np.int32],
    cells: Counts,
    blocks: Keys,
) -> int:
    """List the blocks that hold the cells of keys, in order, each once; return their number.

    marks i4[all blocks], zero before, are the places in that list, from 1; cells i8[n * depth] are the keys' cells.
    """
    for i in range(len(keys)):
        for row in range(depth):
            cell = _cell(_two(keys[i], seed, row >> 1), row, width)
            cells[i * depth + row] = cell
            marks[cell >> U8(shift)] = 1
    n = 0
    for block in range(len(marks)):
        if marks[block]:
            blocks[n] = block
            n += 1
            marks[block] = n
    return n


@kernel("void(i8[:,::1], u8[::1], i8, i8, i4[::1], i8[::1], i8[::1])")
def answered(
    rows: Counts,
    blocks: Keys,
    shift: int,
    depth: int,
    marks: NDArray[np.int32],
    cells: Counts,
    out: Counts,
) -> None:
    """Estimate the counts of keys from the blocks that `asked` has listed; resets `marks` to zero."""
    mask = (1 << shift) - 1
    for i in range(len(out)):
        least = np.int64(2**63 - 1)
        for row in range(depth):
            cell = cells[i * depth + row]
            least = min(least, rows[marks[cell >> shift] - 1, cell & mask])
        out[i] = least
    for block in blocks:
        marks[block] = 0
