"""Server fast path: completes a round of pushes whose parts have all arrived (paper, section 3.4).

    sum the parts in the order of the workers; apply the sum; send it on, if there is a copy; answer all

Until all that this needs is there, nothing is changed. The sum has the same bits as that of `mpips.storage.aggregate`,
whichever part arrives last.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.storage.aggregate import MOST_UNIONS
from mpips.transport import header
from mpips.transport.fastpath.callers import has_room, note, wake_later
from mpips.transport.fastpath.chain import count_change, find_row, list_keys, record, send_change
from mpips.transport.fastpath.headers import write_answer, write_caller, write_change
from mpips.transport.fastpath.round_memory import find_clock, set_clock
from mpips.transport.fastpath.rounds import (
    ADDRESS,
    ANSWER,
    ANSWERED,
    APPLIED,
    BLOCK,
    BLOCKS_AT,
    BYTES,
    COUNT,
    GROW,
    KEEPS,
    KEPT,
    MADE,
    MOST,
    NAMESPACE,
    PARTS_AT,
    PLACE,
    PUSHED,
    ROUNDS,
    ROUNDS_AT,
    RUN,
    SENDS_AT,
    SHARD,
    SLOTS,
    STATE,
    UNION,
    WORKERS,
    WORKERS_AT,
)
from mpips.transport.fastpath.rows import (
    COPY,
    apply_push,
    bytes_of,
    call_update,
    is_signed,
    move_rows,
    sum_parts,
    unite_parts,
)
from mpips.transport.fastpath.table import (
    ASSIGN,
    CAPACITY,
    DTYPE,
    PROGRAM,
    PUSH,
    PUSHED_TYPE,
    ROWS,
    STAMPS,
    STAMPS_ROOM,
    VALUES,
    VERSION,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import (
    CALLERS_BYTES,
    FOLLOWING,
    IN_ROUND,
    KEEPS_LISTS,
    LAST_CHANGE,
    ROOM,
)
from mpips.transport.header import HEADER_BYTES, LISTED
from mpips.transport.key_cache import FORWARDED, look_up
from mpips.transport.message import INLINE, Command
from mpips.transport.mpi.abi import MEMCPY, at, call, table
from mpips.transport.mpi.kernels import (
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    BODY,
    FRAME,
    WANTED,
    WANTED_ROOM,
    post,
)

_PUSH, _PUSH_PULL = int(Command.PUSH), int(Command.PUSH_PULL)
_INT8, _UINT1 = np.int64(0), np.uint8(0)


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


@kernel()
def complete_round(
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
    """Sum and apply a round, send it on, and answer its callers; return False if Python has to.

    Then nothing was done, unless the update has raised.
    """
    most, many = memory[MOST], memory[WORKERS]
    round_ = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row]
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)[row * most : row * most + many]
    workers = at(memory[WORKERS_AT], many, _INT8)
    shard, namespace = round_[SHARD], round_[NAMESPACE]
    part = parts[shard, namespace]
    kind, program = part[PUSHED_TYPE], part[PUSH] == PROGRAM
    width: Any = np.int64(at(mine[0, ADDRESS], HEADER_BYTES, _UINT1).view(np.int32)[header.WIDTH])
    same, wants, total = True, False, 0
    for worker in range(many):
        head = at(mine[worker, ADDRESS], HEADER_BYTES, _UINT1)
        caller = rows_of[shard, workers[worker]]
        # A caller whose requests wait for others is not served.
        if (
            caller <= 0
            or not has_room(callers[caller], head.view(np.int64)[header.ACKED])
            or head.view(np.int32)[header.WIDTH] != width
        ):
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
    each = bytes_of(kind)
    count, first, where = mine[0, COUNT], mine[0, RUN], mine[0, SLOTS]
    # The receive buffer holds sums, slots and places of different parts, or what the update needs.
    room: Any = np.int64(receive_buffer.ctypes.data)
    there, sums, places, wanted = room, mine[0, PUSHED], np.int64(0), np.int64(0)
    behind = -(-total * width * each // 8) * 8
    if not same:
        wanted = behind + 8 * total
    elif program:
        wanted = count * width * each
    elif where == 0 and part[PUSH] > ASSIGN:
        wanted = 4 * count
    if wanted > len(receive_buffer):
        cells[WANTED] = wanted
        return False
    if not same:
        if part[STAMPS_ROOM] < 1 + part[CAPACITY] or at(part[STAMPS], 1, _INT8)[0] >= MOST_UNIONS:
            return False
        sums, where, first, places = room, room + behind, 0, room + behind + 4 * total
        count = unite_parts(mine, part, sums, where, places, total, width)
    elif program:
        # The parts stay as they came, for Python if the update raises.
        sums = room
    entry = find_clock(memory, shard, namespace, words)
    if entry < 0:
        return False
    # Of the change that is sent on: a range names its keys, and a known list is only named.
    nbytes = count * width * each
    following, change, apart = links[shard, FOLLOWING] - 1, -1, False
    lists_keys, key_bytes, known, named, forwarded = False, 0, -1, False, False
    if following >= 0:
        signed = is_signed(words)
        run = part[ROWS] > 0 and same and not signed and (frame[header.FLAGS] & LISTED) == 0
        if same and signed and links[shard, KEEPS_LISTS] != 0:
            known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        named = known >= 0
        forwarded = named and lists[known, FORWARDED] != 0
        lists_keys = not run and not forwarded
        key_bytes = 8 * count if lists_keys else 0
        apart = key_bytes + nbytes > INLINE
        change = find_row(lib, cells, status, changes, sends, key_bytes + nbytes if apart else 0)
        if change < 0:
            cells[WANTED_ROOM] = key_bytes + nbytes if apart else 0
            return False
    # Nothing is missing, but for an update that raises.
    cells[ANSWER_AT], cells[ANSWER_TYPE], cells[ANSWER_WIDTH] = 0, part[DTYPE], part[WIDTH]
    target: Any = np.int64(0)
    if change >= 0:
        target = np.int64(changed[change].ctypes.data) + HEADER_BYTES + CALLERS_BYTES * many
        if apart:
            target = changes[change, ROOM]
    if same:
        sum_parts(lib, mine, target + key_bytes if change >= 0 and not program else sums, count * width, kind)
    if change >= 0:
        if program or not same:
            call(lib[MEMCPY], (target + key_bytes, sums, nbytes))
        if not program:
            sums = target + key_bytes
    # It may overwrite the sums.
    if program and count > 0 and not call_update(part, cells, sums, count, width, first, where, wants):
        return False
    if change >= 0:
        body = changed[change]
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
            lists[known, FORWARDED] = 1
    if count > 0 and not program:
        apply_push(lib, part, sums, count, first, where, there)
    count_change(parts, shard, namespace)
    set_clock(memory, entry, shard, namespace, words)
    record(push_log, shard, small[header.ORIGIN], words[header.TIME], frame[header.COMMAND], many)
    # The answers take the places of the parts.
    kind, width = cells[ANSWER_TYPE], cells[ANSWER_WIDTH]
    each = width * bytes_of(kind)
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    for worker in range(many):
        address = mine[worker, ADDRESS]
        call(lib[MEMCPY], (frame.ctypes.data, address, HEADER_BYTES))
        time = words[header.TIME]
        if worker > 0:
            record(push_log, shard, small[header.ORIGIN], time, frame[header.COMMAND], 0)
        note(callers[rows_of[shard, workers[worker]]], time, words[header.ACKED], True)
        rows = mine[worker, COUNT] if frame[header.COMMAND] == _PUSH_PULL else -1
        mine[worker, ANSWER] = rows * each if rows >= 0 else -1
        if rows > 0:
            block = mine[worker, BLOCK] - 1
            # The slots at its end are still read.
            needed = HEADER_BYTES + rows * each + 4 * rows
            if needed > blocks[block, BYTES]:
                call(memory[GROW], (block, needed))
                address = mine[worker, ADDRESS] = blocks[block, PLACE]
            source, run, listed = part[VALUES], mine[worker, RUN], mine[worker, SLOTS]
            if cells[ANSWER_AT] != 0:
                source, run, listed = cells[ANSWER_AT], 0, places
            move_rows(lib, kind, source, address + HEADER_BYTES, rows, run, listed, width, COPY)
        if places != 0:
            places += 4 * mine[worker, COUNT]
        head = at(address, HEADER_BYTES, _UINT1)
        write_answer(head, frame, kind, rows, width, me, epoch, mine[worker, ANSWER] > INLINE)
    round_[STATE], round_[KEPT] = APPLIED, 1 if wants and memory[KEEPS] != 0 else 0
    if change < 0:
        send_answers(lib, cells, asleep, sleepers, memory, row)
    return True
