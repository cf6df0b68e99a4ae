"""Server fast path: the memory of rounds (`mpips.transport.fastpath.rounds`): rows, blocks, and entries of the clock.

Kernels find what is free. What is missing is made by Python, for the next round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.rounds import (
    ACKED_AT,
    ADDRESS,
    ANSWER,
    ANSWERED,
    ARRIVED,
    BEGIN,
    BLOCK,
    BLOCKS_AT,
    BUSY,
    BYTES,
    CLOCK,
    CLOCK_AT,
    COUNT,
    FIRST,
    FREE,
    GROW,
    KEEPS,
    KEPT,
    LAST,
    MADE,
    MOST,
    NAMESPACE,
    OF_SHARD,
    OF_VECTOR,
    ORDER,
    PARTS_AT,
    PLACE,
    PROBES,
    RANKS,
    REACHED,
    ROUND,
    ROUNDS,
    ROUNDS_AT,
    ROW_TYPE,
    ROW_WIDTH,
    RUN,
    SENDS_AT,
    SHARD,
    SLOTS,
    STATE,
    STEPS,
    TIME,
    UNION,
    WORKERS,
    WORKERS_AT,
    mark_of,
)
from mpips.transport.fastpath.rows import COPY, bytes_of, move_rows
from mpips.transport.fastpath.table import VALUES
from mpips.transport.mpi.abi import at, call, table
from mpips.transport.mpi.kernels import is_free
from mpips.transport.mpi.memory import ANSWER_AT, ANSWER_TYPE, ANSWER_WIDTH, MEMCPY, WANTED_BLOCK

_INT8 = np.int64(0)


@kernel()
def find_block(memory: Any, size: int) -> int:
    """Find the smallest free block of at least `size` bytes; -1 if there is none."""
    blocks, found = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8), -1
    for block in range(memory[MADE]):
        # One without memory, which was given up, fits nothing.
        fits = blocks[block, BUSY] == 0 and blocks[block, BYTES] >= max(size, 1)
        if fits and (found < 0 or blocks[block, BYTES] < blocks[found, BYTES]):
            found = block
    return found


@kernel()
def _is_over(memory: Any, row: int) -> bool:
    """Return whether nobody needs a round any more: its answers are sent, and acknowledged or kept by Python."""
    most = memory[MOST]
    round_ = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row]
    parts = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    sends = table(memory[SENDS_AT], 2 * ROUNDS * most, 3, _INT8)
    workers, acked = at(memory[WORKERS_AT], most, _INT8), at(memory[ACKED_AT], memory[RANKS], _INT8)
    for worker in range(memory[WORKERS]):
        index = row * most + worker
        if round_[KEPT] != 0 and parts[index, TIME] >= acked[workers[worker]]:
            return False
    for index in range(row * most, (row + 1) * most):
        if not (is_free(memory, sends, 2 * index) and is_free(memory, sends, 2 * index + 1)):
            return False
    return True


@kernel()
def find_free(memory: Any) -> int:
    """Find a free row for a round, and free the rows and blocks of those that are over; -1 if there is none."""
    most, found = memory[MOST], -1
    rounds = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)
    parts = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    for row in range(ROUNDS):
        if rounds[row, STATE] == ANSWERED and _is_over(memory, row):
            for index in range(row * most, (row + 1) * most):
                if parts[index, BLOCK] > 0:
                    blocks[parts[index, BLOCK] - 1, BUSY] = 0
                    parts[index, BLOCK] = 0
            rounds[row, STATE] = FREE
        if rounds[row, STATE] == FREE and found < 0:
            found = row
    return found


@kernel()
def open_round(
    rounds: Any, row: int, state: int, shard: int, namespace: int, number: int, first: int
) -> None:
    """Set the columns of a round that has no parts yet."""
    round_ = rounds[row]
    round_[STATE], round_[SHARD], round_[NAMESPACE] = state, shard, namespace
    round_[ROUND], round_[FIRST] = number, first
    round_[ARRIVED] = round_[KEPT] = round_[UNION] = 0


@kernel()
def find_clock(memory: Any, shard: int, namespace: int, words: Any) -> int:
    """Find the entry for the range of a header in the list for the vector's clock, or a free one; -1 if none is."""
    clock = table(memory[CLOCK_AT], CLOCK, REACHED + 1, _INT8)
    first, last = words[header.FIRST], words[header.LAST]
    begin, free = mark_of(shard, namespace, 0, first), -1
    for probe in range(PROBES):
        entry = (begin + probe) % CLOCK
        if clock[entry, ORDER] == 0:
            free = entry if free < 0 else free
        elif (
            clock[entry, OF_SHARD] == shard
            and clock[entry, OF_VECTOR] == namespace
            and clock[entry, BEGIN] == first
            and clock[entry, LAST] == last
        ):
            return entry
    return free


@kernel()
def set_clock(memory: Any, entry: int, shard: int, namespace: int, words: Any) -> None:
    """List the round of a header, with its range, in an entry."""
    clock = table(memory[CLOCK_AT], CLOCK, REACHED + 1, _INT8)
    memory[STEPS] += 1
    clock[entry, ORDER], clock[entry, OF_SHARD], clock[entry, OF_VECTOR] = memory[STEPS], shard, namespace
    clock[entry, BEGIN], clock[entry, LAST] = words[header.FIRST], words[header.LAST]
    clock[entry, REACHED] = words[header.ROUND]


# --- at the last member ----------------------------------------------------------------------------------


@kernel()
def find_kept_place(memory: Any, callers: Any, many: int, size: int, keeps: bool) -> Any:
    """Find a row, and a block of `size` bytes, for the rows of a round that a copy keeps: (whether found, row, block).

    The row is -1 if nothing must be kept. `callers` are those of the change: they must be the workers.
    """
    if many != memory[WORKERS]:
        return False, -1, -1
    workers = at(memory[WORKERS_AT], many, _INT8)
    for worker in range(many):
        if callers[4 * worker] != workers[worker]:
            return False, -1, -1
    if not keeps or memory[KEEPS] == 0:
        return True, -1, -1
    row, block = find_free(memory), find_block(memory, size)
    if block < 0:
        memory[WANTED_BLOCK] = size
    return row >= 0 and block >= 0, row, block


@kernel()
def keep_rows(
    memory: Any, part: Any, callers: Any, words: Any, shard: int, namespace: int, row: int, block: int, count: int,
    first: int, where: int,
) -> None:  # fmt: skip
    """Keep the rows of a round that a copy has applied, as answers to repeated pushes, with their slots."""
    most = memory[MOST]
    rounds = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)[row * most : (row + 1) * most]
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    acked = at(memory[ACKED_AT], memory[RANKS], _INT8)
    open_round(rounds, row, ANSWERED, shard, namespace, words[header.ROUND], words[header.FIRST])
    rounds[row, KEPT] = rounds[row, UNION] = 1
    blocks[block, BUSY] = 1
    kind, width = memory[ANSWER_TYPE], memory[ANSWER_WIDTH]
    nbytes = count * width * bytes_of(kind)
    behind = -(-nbytes // 8) * 8
    if behind + 4 * count > blocks[block, BYTES]:
        call(memory[GROW], (block, behind + 4 * count))
    address = blocks[block, PLACE]
    mine[0, BLOCK], mine[0, ADDRESS], mine[0, ANSWER] = block + 1, address, nbytes
    mine[0, ROW_TYPE], mine[0, ROW_WIDTH] = kind, width
    mine[0, COUNT], mine[0, RUN], mine[0, SLOTS] = count, first, 0
    for worker in range(memory[WORKERS]):
        mine[worker, TIME] = callers[4 * worker + 1]
        origin = callers[4 * worker]
        acked[origin] = max(acked[origin], callers[4 * worker + 2])
    if count > 0 and memory[ANSWER_AT] != 0:
        call(memory[MEMCPY], (address, memory[ANSWER_AT], nbytes))
    elif count > 0:
        move_rows(memory, kind, part[VALUES], address, count, first, where, width, COPY)
    if where != 0:
        mine[0, SLOTS] = address + behind
        call(memory[MEMCPY], (mine[0, SLOTS], where, 4 * count))
