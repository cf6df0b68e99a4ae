"""Server fast path: rounds, that is, pushes that are summed over all workers (paper, section 3.4).

    part      keep it until those of all workers have come
    the last  sum the parts in the order of the workers; apply the sum; send it on, if there is a copy; answer all

A round is all or nothing: until all that it needs is there, nothing is changed, and Python can take over its parts (see
`mpips.transport.rounds`). The sum has the same bits as that of `mpips.storage.aggregate`, whichever part comes last.
The module is long since the checks, which decide whether Python has to do it, are of one piece with what follows them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.storage.aggregate import MOST_UNIONS
from mpips.transport import header
from mpips.transport.fastpath_table import (
    AGGREGATES,
    ASSIGN,
    CAPACITY,
    DTYPE,
    HIGHEST,
    NO_PUSH,
    PUSH,
    ROWS,
    STAMPS,
    STAMPS_ROOM,
    VALUES,
    VERSION,
    WIDTH,
)
from mpips.transport.header import DETACHED, HEADER_BYTES, LISTED
from mpips.transport.key_cache import TOLD, look_up
from mpips.transport.message import INLINE, Command
from mpips.transport.mpi.abi import MEMCPY, at, call, table
from mpips.transport.mpi.fastpath_callers import has_room, note, wake_later
from mpips.transport.mpi.fastpath_chain import count_change, find_row, list_keys, record, send_change
from mpips.transport.mpi.fastpath_headers import write_answer, write_caller, write_change
from mpips.transport.mpi.fastpath_rows import (
    COPY,
    apply_push,
    find_slots,
    move_rows,
    named_rows,
    sum_parts,
    unite_parts,
)
from mpips.transport.mpi.kernels import (
    BODY,
    DONE,
    FRAME,
    LATE_ROW,
    PART,
    PART_AT,
    RECEIVED,
    SIZE,
    TAKEN,
    WANTED,
    WANTED_BLOCK,
    WANTED_ROOM,
    is_free,
    post,
    receive_bodies,
)
from mpips.transport.rounds import (
    ACKED_AT,
    ADDRESS,
    ANSWER,
    APPLIED,
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
    INDEX_AT,
    KEEPS,
    KEPT,
    LAST,
    MADE,
    MARKS,
    MARKS_AT,
    MOST,
    NAMESPACE,
    OF_SHARD,
    OF_VECTOR,
    ORDER,
    PARTS_AT,
    PLACE,
    PROBES,
    PUSHED,
    RANKS,
    REACHED,
    ROUND,
    ROUNDS,
    ROUNDS_AT,
    RUN,
    SENDS_AT,
    SHARD,
    SLOTS,
    STATE,
    STEPS,
    TIME,
    UNION,
    WAITS,
    WORKERS,
    WORKERS_AT,
    mark_of,
)
from mpips.transport.rounds import DONE as ANSWERED
from mpips.transport.rounds import SIZE as FRAME_SIZE
from mpips.transport.unacknowledged import CALLERS_BYTES, FOLLOWING, IN_ROUND, ROOM
from mpips.transport.unacknowledged import KEEPS as KEEPS_LISTS
from mpips.transport.unacknowledged import LAST as LAST_CHANGE

_PUSH, _PUSH_PULL = int(Command.PUSH), int(Command.PUSH_PULL)
_INT4, _INT8, _UINT1, _UINT8 = np.int32(0), np.int64(0), np.uint8(0), np.uint64(0)


# --- memory ----------------------------------------------------------------------------------------------


@kernel()
def _find_block(memory: Any, size: int) -> int:
    """Find the smallest free block of at least `size` bytes; -1 if there is none."""
    blocks, found = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8), -1
    for block in range(memory[MADE]):
        # One without memory, which was given up, fits nothing.
        fits = blocks[block, BUSY] == 0 and blocks[block, BYTES] >= max(size, 1)
        if fits and (found < 0 or blocks[block, BYTES] < blocks[found, BYTES]):
            found = block
    return found


@kernel()
def _is_over(lib: Any, cells: Any, status: Any, memory: Any, row: int) -> bool:
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
        if not (
            is_free(lib, cells, status, sends, 2 * index)
            and is_free(lib, cells, status, sends, 2 * index + 1)
        ):
            return False
    return True


@kernel()
def _find_free(lib: Any, cells: Any, status: Any, memory: Any) -> int:
    """Find a free row for a round, and free the rows and blocks of those that are over; -1 if there is none."""
    most, found = memory[MOST], -1
    rounds = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)
    parts = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    for row in range(ROUNDS):
        if rounds[row, STATE] == ANSWERED and _is_over(lib, cells, status, memory, row):
            for index in range(row * most, (row + 1) * most):
                if parts[index, BLOCK] > 0:
                    blocks[parts[index, BLOCK] - 1, BUSY] = 0
                    parts[index, BLOCK] = 0
            rounds[row, STATE] = FREE
        if rounds[row, STATE] == FREE and found < 0:
            found = row
    return found


@kernel()
def _open_round(
    rounds: Any, row: int, state: int, shard: int, namespace: int, number: int, first: int
) -> None:
    round_ = rounds[row]
    round_[STATE], round_[SHARD], round_[NAMESPACE] = state, shard, namespace
    round_[ROUND], round_[FIRST] = number, first
    round_[ARRIVED] = round_[KEPT] = round_[UNION] = 0


@kernel()
def _find_entry(clock: Any, shard: int, namespace: int, first: int, last: int) -> int:
    """Find the entry of a range in the list for the vector's clock, or a free one; -1 if there is none."""
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
def _set_clock(memory: Any, clock: Any, entry: int, shard: int, namespace: int, words: Any) -> None:
    """List the round of a header with its range."""
    memory[STEPS] += 1
    clock[entry, ORDER], clock[entry, OF_SHARD], clock[entry, OF_VECTOR] = memory[STEPS], shard, namespace
    clock[entry, BEGIN], clock[entry, LAST] = words[header.FIRST], words[header.LAST]
    clock[entry, REACHED] = words[header.ROUND]


# --- at the primary --------------------------------------------------------------------------------------


@kernel()
def take_part(
    lib: Any,
    cells: Any,
    status: Any,
    frame: Any,
    me: int,
    epoch: int,
    parts: Any,
    rows_of: Any,
    callers: Any,
    lists: Any,
    receive_buffer: Any,
    asleep: Any,
    sleepers: Any,
    push_log: Any,
    links: Any,
    changes: Any,
    sends: Any,
    changed: Any,
    memory: Any,
) -> int:
    """Take a part of a round, of a caller that is served, and complete the round; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard, namespace, origin = small[header.SHARD], small[header.NAMESPACE], small[header.ORIGIN]
    number, begin = words[header.ROUND], words[header.FIRST]
    part, caller = parts[shard, namespace], callers[rows_of[shard, origin]]
    worker = at(memory[INDEX_AT], rows_of.shape[1], _INT8)[origin] - 1
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
    found, listed, _, count, first, where = named_rows(part, frame, lists, shard, namespace, 0)
    width, size = part[WIDTH], cells[SIZE]
    nbytes = count * width * (4 if part[DTYPE] == 0 or part[DTYPE] == 2 else 8)
    key_bytes = 8 * count if listed else 0
    payload = key_bytes + nbytes
    follow = payload > INLINE
    if (
        not found
        or words[header.ROWS] != count
        or frame[header.DTYPE] != part[DTYPE]
        or small[header.WIDTH] != width
        or follow != ((frame[header.FLAGS] & DETACHED) != 0)
        or size != HEADER_BYTES + (0 if follow else payload)
    ):
        return TAKEN
    places = HEADER_BYTES + -(-payload // 8) * 8
    wanted = places + (4 * count if listed else 0)
    if row < 0:
        row = _find_free(lib, cells, status, memory)
        if row < 0:
            return TAKEN
    block = _find_block(memory, wanted)
    if block < 0:
        cells[WANTED_BLOCK] = wanted
        return TAKEN
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    address = blocks[block, PLACE]
    if follow:
        arrived = receive_bodies(lib, cells, status, address + HEADER_BYTES, key_bytes, nbytes)
        if arrived != TAKEN:
            cells[LATE_ROW] = -1 - block
            return arrived
    call(lib[MEMCPY], (address, frame.ctypes.data, size))
    if rounds[row, STATE] == FREE:
        _open_round(rounds, row, WAITS, shard, namespace, number, begin)
    index = row * most + worker
    mine = every[index]
    blocks[block, BUSY] = 1
    mine[BLOCK], mine[ADDRESS], mine[FRAME_SIZE] = block + 1, address, size
    mine[TIME], mine[PUSHED] = words[header.TIME], address + HEADER_BYTES + key_bytes
    rounds[row, ARRIVED] += 1
    cells[PART_AT] = index
    if listed and count > 0:
        there = address + places
        keys, slots = at(address + HEADER_BYTES, count, _UINT8), at(there, count, _INT4)
        inside, first, run = find_slots(part, keys, slots, True)
        if not inside:
            return PART
        where = 0 if run else there
    mine[COUNT], mine[RUN], mine[SLOTS] = count, first, where
    caller[HIGHEST] = max(caller[HIGHEST], words[header.TIME])
    acked = at(memory[ACKED_AT], rows_of.shape[1], _INT8)
    acked[origin] = max(acked[origin], words[header.ACKED])
    if rounds[row, ARRIVED] == memory[WORKERS] and not _complete(
        lib, cells, status, frame, me, epoch, parts, rows_of, callers, lists, receive_buffer, asleep, sleepers,
        push_log, links, changes, sends, changed, memory, row,
    ):  # fmt: skip
        return PART
    cells[RECEIVED] += size + (payload if follow else 0)
    return DONE


@kernel()
def _complete(
    lib: Any,
    cells: Any,
    status: Any,
    frame: Any,
    me: int,
    epoch: int,
    parts: Any,
    rows_of: Any,
    callers: Any,
    lists: Any,
    receive_buffer: Any,
    asleep: Any,
    sleepers: Any,
    push_log: Any,
    links: Any,
    changes: Any,
    sends: Any,
    changed: Any,
    memory: Any,
    row: int,
) -> bool:
    """Sum and apply a round, send it on, and answer its callers; return False, with nothing done, if Python has to."""
    most, many = memory[MOST], memory[WORKERS]
    round_ = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row]
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)[row * most : row * most + many]
    workers = at(memory[WORKERS_AT], many, _INT8)
    shard, namespace = round_[SHARD], round_[NAMESPACE]
    part = parts[shard, namespace]
    same, wants, total = True, False, 0
    for worker in range(many):
        head = at(mine[worker, ADDRESS], HEADER_BYTES, _UINT1)
        caller = rows_of[shard, workers[worker]]
        # A caller whose requests wait for others is not served.
        if caller <= 0 or not has_room(callers[caller], head.view(np.int64)[header.ACKED]):
            return False
        same = same and (
            mine[worker, COUNT] == mine[0, COUNT]
            and mine[worker, RUN] == mine[0, RUN]
            and mine[worker, SLOTS] == mine[0, SLOTS]
        )
        wants = wants or head[header.COMMAND] == _PUSH_PULL
        total += mine[worker, COUNT]
    # The header of its change is like that of the first part.
    call(lib[MEMCPY], (frame.ctypes.data, mine[0, ADDRESS], HEADER_BYTES))
    small, words = frame.view(np.int32), frame.view(np.int64)
    each = 4 if part[DTYPE] == 0 or part[DTYPE] == 2 else 8
    count, first, where, width = mine[0, COUNT], mine[0, RUN], mine[0, SLOTS], part[WIDTH]
    room: Any = np.int64(receive_buffer.ctypes.data)
    there, sums = room, mine[0, PUSHED]
    if not same:
        behind = -(-total * width * each // 8) * 8
        if part[STAMPS_ROOM] < 1 + part[CAPACITY] or at(part[STAMPS], 1, _INT8)[0] >= MOST_UNIONS:
            return False
        if behind + 8 * total > len(receive_buffer):
            cells[WANTED] = behind + 8 * total
            return False
        sums, where, first = room, room + behind, 0
        count = unite_parts(mine, part, sums, where, where + 4 * total, total)
    elif where == 0 and part[PUSH] > ASSIGN and 4 * count > len(receive_buffer):
        cells[WANTED] = 4 * count
        return False
    clock = table(memory[CLOCK_AT], CLOCK, REACHED + 1, _INT8)
    entry = _find_entry(clock, shard, namespace, words[header.FIRST], words[header.LAST])
    if entry < 0:
        return False
    # Of the change that is sent on: a range names its keys, and a known list is only named.
    nbytes = count * width * each
    following, change, apart = links[shard, FOLLOWING] - 1, -1, False
    lists_keys, known, named, told = False, -1, False, False
    if following >= 0:
        signed = words[header.SIGNATURE] != 0 or words[header.SIGNATURE + 1] != 0
        run = part[ROWS] > 0 and same and not signed and (frame[header.FLAGS] & LISTED) == 0
        if same and signed and links[shard, KEEPS_LISTS] != 0:
            known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        named = known >= 0
        told = named and lists[known, TOLD] != 0
        lists_keys = not run and not told
        key_bytes = 8 * count if lists_keys else 0
        apart = key_bytes + nbytes > INLINE
        change = find_row(lib, cells, status, changes, sends, key_bytes + nbytes if apart else 0)
        if change < 0:
            cells[WANTED_ROOM] = key_bytes + nbytes if apart else 0
            return False
    # Nothing is missing.
    if change >= 0:
        body = changed[change]
        key_bytes = 8 * count if lists_keys else 0
        target: Any = np.int64(body.ctypes.data) + HEADER_BYTES + CALLERS_BYTES * many
        if apart:
            target = changes[change, ROOM]
        if same:
            sum_parts(lib, mine, target + key_bytes, count * width, part[DTYPE])
        else:
            call(lib[MEMCPY], (target + key_bytes, sums, nbytes))
        sums = target + key_bytes
        if key_bytes > 0:
            list_keys(part, count, first, where, target)
        after = parts[shard, 0, VERSION] + 1
        write_change(
            body, frame, _PUSH_PULL if wants else _PUSH, many, me, epoch, after, count if lists_keys else -1, count,
            words[header.FIRST], words[header.LAST], apart, named,
        )  # fmt: skip
        for worker in range(many):
            write_caller(body, worker, at(mine[worker, ADDRESS], HEADER_BYTES, _UINT1))
        send_change(
            lib, cells, changes, sends, body, change, shard, after, many, key_bytes, nbytes, apart, following
        )
        changes[change, IN_ROUND] = row + 1
        wake_later(cells, asleep, sleepers, following)
        links[shard, LAST_CHANGE] = after
        if named:
            lists[known, TOLD] = 1
    elif same:
        sum_parts(lib, mine, sums, count * width, part[DTYPE])
    if count > 0:
        apply_push(lib, part, sums, count, first, where, there)
    count_change(parts, shard, namespace)
    _set_clock(memory, clock, entry, shard, namespace, words)
    record(push_log, shard, small[header.ORIGIN], words[header.TIME], frame[header.COMMAND], many)
    # The answers take the places of the parts.
    for worker in range(many):
        address = mine[worker, ADDRESS]
        call(lib[MEMCPY], (frame.ctypes.data, address, HEADER_BYTES))
        time = words[header.TIME]
        if worker > 0:
            record(push_log, shard, small[header.ORIGIN], time, frame[header.COMMAND], 0)
        note(callers[rows_of[shard, workers[worker]]], time, words[header.ACKED], True)
        rows = mine[worker, COUNT] if frame[header.COMMAND] == _PUSH_PULL else -1
        mine[worker, ANSWER] = rows * width * each if rows >= 0 else -1
        if rows > 0:
            move_rows(
                lib, part[DTYPE], part[VALUES], address + HEADER_BYTES, rows, mine[worker, RUN], mine[worker, SLOTS],
                width, COPY,
            )  # fmt: skip
        head = at(address, HEADER_BYTES, _UINT1)
        write_answer(head, frame, part[DTYPE], rows, width, me, epoch, mine[worker, ANSWER] > INLINE)
    round_[STATE], round_[KEPT] = APPLIED, 1 if wants and memory[KEEPS] != 0 else 0
    if change < 0:
        send_answers(lib, cells, asleep, sleepers, memory, row)
    return True


@kernel()
def send_answers(lib: Any, cells: Any, asleep: Any, sleepers: Any, memory: Any, row: int) -> None:
    """Send the answers of a round."""
    most = memory[MOST]
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    sends = table(memory[SENDS_AT], 2 * ROUNDS * most, 3, _INT8)
    workers = at(memory[WORKERS_AT], memory[WORKERS], _INT8)
    for worker in range(memory[WORKERS]):
        index, dest = row * most + worker, workers[worker]
        address, nbytes = mine[index, ADDRESS], max(mine[index, ANSWER], 0)
        apart = nbytes > INLINE
        post(lib, cells, sends, 2 * index, address, HEADER_BYTES + (0 if apart else nbytes), dest, FRAME)
        if apart:
            post(lib, cells, sends, 2 * index + 1, address + HEADER_BYTES, nbytes, dest, BODY)
        wake_later(cells, asleep, sleepers, dest)
    table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row, STATE] = ANSWERED


# --- at the last member ----------------------------------------------------------------------------------


@kernel()
def find_place(
    lib: Any, cells: Any, status: Any, memory: Any, callers: Any, many: int, size: int, keeps: bool
) -> Any:
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
    row, block = _find_free(lib, cells, status, memory), _find_block(memory, size)
    if block < 0:
        cells[WANTED_BLOCK] = size
    return row >= 0 and block >= 0, row, block


@kernel()
def keep_rows(
    lib: Any, part: Any, memory: Any, callers: Any, words: Any, shard: int, namespace: int, row: int, block: int,
    count: int, first: int, where: int, nbytes: int,
) -> None:  # fmt: skip
    """Keep the rows of a round that a copy has applied, as answers to repeated pushes, with their slots."""
    most = memory[MOST]
    rounds = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)[row * most : (row + 1) * most]
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    acked = at(memory[ACKED_AT], memory[RANKS], _INT8)
    _open_round(rounds, row, ANSWERED, shard, namespace, words[header.ROUND], words[header.FIRST])
    rounds[row, KEPT] = rounds[row, UNION] = 1
    blocks[block, BUSY] = 1
    address = blocks[block, PLACE]
    mine[0, BLOCK], mine[0, ADDRESS], mine[0, ANSWER] = block + 1, address, nbytes
    mine[0, COUNT], mine[0, RUN], mine[0, SLOTS] = count, first, 0
    for worker in range(memory[WORKERS]):
        mine[worker, TIME] = callers[4 * worker + 1]
        origin = callers[4 * worker]
        acked[origin] = max(acked[origin], callers[4 * worker + 2])
    if count > 0:
        move_rows(lib, part[DTYPE], part[VALUES], address, count, first, where, part[WIDTH], COPY)
    if where != 0:
        mine[0, SLOTS] = address + -(-nbytes // 8) * 8
        call(lib[MEMCPY], (mine[0, SLOTS], where, 4 * count))


@kernel()
def find_clock(memory: Any, shard: int, namespace: int, words: Any) -> int:
    """Find an entry for the range of a change in the list for the vector's clock; -1 if there is none."""
    clock = table(memory[CLOCK_AT], CLOCK, REACHED + 1, _INT8)
    return _find_entry(clock, shard, namespace, words[header.FIRST], words[header.LAST])


@kernel()
def set_clock(memory: Any, entry: int, shard: int, namespace: int, words: Any) -> None:
    """List the round of a change in an entry."""
    clock = table(memory[CLOCK_AT], CLOCK, REACHED + 1, _INT8)
    _set_clock(memory, clock, entry, shard, namespace, words)
