"""Server fast path: takes the parts of rounds, that is, pushes that are summed over all workers (paper, section 3.4).

A part is kept until those of all workers have arrived. The last one completes the round
(`mpips.transport.fastpath.round_completion`). Until then nothing is changed, and Python can take over the parts (see
`mpips.transport.fastpath.rounds`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.round_completion import complete_round
from mpips.transport.fastpath.round_memory import find_block, find_free, open_round
from mpips.transport.fastpath.rounds import (
    ACKED_AT,
    ADDRESS,
    ANSWER,
    ARRIVED,
    BLOCK,
    BLOCKS_AT,
    BUSY,
    BYTES,
    COUNT,
    FIRST,
    FRAME_SIZE,
    FREE,
    INDEX_AT,
    MADE,
    MARKS,
    MARKS_AT,
    MOST,
    NAMESPACE,
    PARTS_AT,
    PLACE,
    PUSHED,
    RANKS,
    ROUND,
    ROUNDS,
    ROUNDS_AT,
    RUN,
    SHARD,
    SLOTS,
    STATE,
    TIME,
    UNION,
    WAITS,
    WORKERS,
    mark_of,
)
from mpips.transport.fastpath.rows import bytes_of, find_slots, fits, learn, named_rows
from mpips.transport.fastpath.table import AGGREGATES, ANSWERS, HIGHEST, NO_PUSH, PUSH, PUSHED_TYPE
from mpips.transport.fastpath.views import caller_at, part_of, row_of
from mpips.transport.header import DETACHED, HEADER_BYTES
from mpips.transport.message import INLINE
from mpips.transport.mpi.abi import at, call, table
from mpips.transport.mpi.kernels import DONE, PART, TAKEN, receive_bodies
from mpips.transport.mpi.memory import (
    FRAME_AT,
    LATE_ROW,
    MEMCPY,
    PART_AT,
    RECEIVED,
    SIZE,
    WANTED_BLOCK,
)

_INT4, _INT8, _UINT8 = np.int32(0), np.int64(0), np.uint64(0)


@kernel()
def take_part(memory: Any, frame: Any) -> int:
    """Take a part of a round, of a caller that is served, and complete the round; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    namespace: Any = np.int64(small[header.NAMESPACE])
    origin: Any = np.int64(small[header.ORIGIN])
    number, begin = words[header.ROUND], words[header.FIRST]
    part, caller = part_of(memory, shard, namespace), caller_at(memory, row_of(memory, shard, origin))
    worker = at(memory[INDEX_AT], memory[RANKS], _INT8)[origin] - 1
    if worker < 0 or part[AGGREGATES] == 0 or part[PUSH] == NO_PUSH:
        return TAKEN
    if at(memory[MARKS_AT], MARKS, _INT8)[mark_of(shard, namespace, number, begin)] != 0:
        return TAKEN
    most, row = memory[MOST], -1
    rounds = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)
    every = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    for each in range(ROUNDS):
        if (
            rounds[each, STATE] == WAITS
            and rounds[each, ROUND] == number
            and rounds[each, SHARD] == shard
            and rounds[each, NAMESPACE] == namespace
            and rounds[each, FIRST] == begin
        ):
            row = each
            break
    if row >= 0 and every[row * most + worker, BLOCK] > 0:
        return TAKEN
    # The rows, and memory for them: the frame, keys and values as they come, and the slots of listed keys.
    found, listed, _, count, first, where = named_rows(memory, part, frame, shard, namespace, 0)
    size = memory[SIZE]
    nbytes = count * np.int64(small[header.WIDTH]) * bytes_of(part[PUSHED_TYPE])
    key_bytes = 8 * count if listed else 0
    payload = key_bytes + nbytes
    follow = payload > INLINE
    if (
        not found
        or not fits(part, frame, count)
        or follow != ((frame[header.FLAGS] & DETACHED) != 0)
        or size != HEADER_BYTES + (0 if follow else payload)
    ):
        return TAKEN
    # The answer takes the place of keys and values; slots are at the end.
    place_bytes = 4 * count if listed else 0
    wanted = HEADER_BYTES + -(-max(payload, count * part[ANSWERS]) // 8) * 8 + place_bytes
    if row < 0:
        row = find_free(memory)
        if row < 0:
            return TAKEN
    block = find_block(memory, wanted)
    if block < 0:
        memory[WANTED_BLOCK] = wanted
        return TAKEN
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    address = blocks[block, PLACE]
    if follow:
        arrived = receive_bodies(memory, address + HEADER_BYTES, key_bytes, nbytes)
        if arrived != TAKEN:
            memory[LATE_ROW] = -1 - block
            return arrived
    call(memory[MEMCPY], (address, memory[FRAME_AT], size))
    if rounds[row, STATE] == FREE:
        open_round(rounds, row, WAITS, shard, namespace, number, begin)
    index = row * most + worker
    mine = every[index]
    blocks[block, BUSY] = 1
    mine[BLOCK], mine[ADDRESS], mine[FRAME_SIZE] = block + 1, address, size
    mine[TIME], mine[PUSHED] = words[header.TIME], address + HEADER_BYTES + key_bytes
    rounds[row, ARRIVED] += 1
    memory[PART_AT] = index
    if listed and count > 0:
        there = address + blocks[block, BYTES] - place_bytes
        keys, slots = at(address + HEADER_BYTES, count, _UINT8), at(there, count, _INT4)
        inside, first, run = find_slots(part, keys, slots, True)
        if not inside:
            return PART
        where = 0 if run else there
        learn(memory, words, shard, namespace, first, count, where)
    mine[COUNT], mine[RUN], mine[SLOTS] = count, first, where
    caller[HIGHEST] = max(caller[HIGHEST], words[header.TIME])
    acked = at(memory[ACKED_AT], memory[RANKS], _INT8)
    acked[origin] = max(acked[origin], words[header.ACKED])
    if rounds[row, ARRIVED] == memory[WORKERS] and not complete_round(memory, frame, row):
        return PART
    memory[RECEIVED] += size + (payload if follow else 0)
    return DONE
