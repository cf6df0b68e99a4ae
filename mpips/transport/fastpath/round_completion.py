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
from mpips.transport.fastpath.chain import (
    begin_change,
    body_of_change,
    count_change,
    list_keys,
    record,
    send_change,
)
from mpips.transport.fastpath.headers import write_answer, write_caller
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
    RECEIVE_AT,
    RECEIVE_ROOM,
    ROWS,
    STAMPS,
    STAMPS_ROOM,
    VALUES,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import FOLLOWING, IN_ROUND
from mpips.transport.fastpath.views import (
    caller_at,
    changes_of,
    frame_of_change,
    head_at,
    link_of,
    lists_of,
    part_of,
    row_of,
)
from mpips.transport.header import HEADER_BYTES, LISTED
from mpips.transport.key_cache import look_up
from mpips.transport.message import INLINE, Command
from mpips.transport.mpi.abi import at, call, table
from mpips.transport.mpi.kernels import BODY, FRAME, post
from mpips.transport.mpi.memory import (
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    FRAME_AT,
    MEMCPY,
    WANTED,
)

_PUSH, _PUSH_PULL = int(Command.PUSH), int(Command.PUSH_PULL)
_INT8 = np.int64(0)


@kernel()
def send_answers(memory: Any, row: int) -> None:
    """Send the answers of a round."""
    most = memory[MOST]
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)
    sends = table(memory[SENDS_AT], 2 * ROUNDS * most, 3, _INT8)
    workers = at(memory[WORKERS_AT], memory[WORKERS], _INT8)
    for worker in range(memory[WORKERS]):
        index, dest = row * most + worker, workers[worker]
        address, nbytes = mine[index, ADDRESS], max(mine[index, ANSWER], 0)
        apart = nbytes > INLINE
        post(memory, sends, 2 * index, address, HEADER_BYTES + (0 if apart else nbytes), dest, FRAME)
        if apart:
            post(memory, sends, 2 * index + 1, address + HEADER_BYTES, nbytes, dest, BODY)
        wake_later(memory, dest)
    table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row, STATE] = ANSWERED


@kernel()
def _caller_of(memory: Any, shard: int, worker: int) -> Any:
    """View what is known of the requests of a worker to a shard."""
    rank = at(memory[WORKERS_AT], memory[WORKERS], _INT8)[worker]
    return caller_at(memory, row_of(memory, shard, rank))


@kernel()
def _compare(memory: Any, shard: int, mine: Any, width: int) -> Any:
    """Compare the parts of a round.

    Return whether Python need not sum them; whether their keys are the same; whether a worker wants the rows after the
    update; and the number of rows of all.
    """
    workers = at(memory[WORKERS_AT], memory[WORKERS], _INT8)
    same, wants, total = True, False, 0
    for worker in range(len(mine)):
        head, row = head_at(mine[worker, ADDRESS]), row_of(memory, shard, workers[worker])
        # A caller whose requests wait for others is not served.
        if (
            row <= 0
            or not has_room(caller_at(memory, row), head.view(np.int64)[header.ACKED])
            or head.view(np.int32)[header.WIDTH] != width
        ):
            return False, False, False, 0
        same = same and (
            mine[worker, COUNT] == mine[0, COUNT]
            and mine[worker, RUN] == mine[0, RUN]
            and mine[worker, SLOTS] == mine[0, SLOTS]
        )
        wants = wants or head[header.COMMAND] == _PUSH_PULL
        total += mine[worker, COUNT]
    return True, same, wants, total


@kernel()
def complete_round(memory: Any, frame: Any, row: int) -> bool:
    """Sum and apply a round, send it on, and answer its callers; return False if Python has to.

    Then nothing was done, unless the update has raised. `frame` is that of the last part, and is overwritten.
    """
    most, many = memory[MOST], memory[WORKERS]
    round_ = table(memory[ROUNDS_AT], ROUNDS, UNION + 1, _INT8)[row]
    mine = table(memory[PARTS_AT], ROUNDS * most, ANSWER + 1, _INT8)[row * most : row * most + many]
    shard, namespace = round_[SHARD], round_[NAMESPACE]
    part = part_of(memory, shard, namespace)
    kind, program = part[PUSHED_TYPE], part[PUSH] >= PROGRAM
    width: Any = np.int64(head_at(mine[0, ADDRESS]).view(np.int32)[header.WIDTH])
    fitting, same, wants, total = _compare(memory, shard, mine, width)
    if not fitting:
        return False
    # The header of its change is like that of the first part.
    call(memory[MEMCPY], (memory[FRAME_AT], mine[0, ADDRESS], HEADER_BYTES))
    small, words = frame.view(np.int32), frame.view(np.int64)
    each = bytes_of(kind)
    count, first, where = mine[0, COUNT], mine[0, RUN], mine[0, SLOTS]
    # The receive buffer holds sums, slots and places of different parts, or what the update needs.
    room = memory[RECEIVE_AT]
    sums, places, wanted, there = mine[0, PUSHED], 0, 0, room
    behind = -(-total * width * each // 8) * 8
    if not same:
        wanted = behind + 8 * total
    elif program:
        there = room + -(-count * width * each // 8) * 8
        wanted = there - room + 4 * count
    elif where == 0 and part[PUSH] > ASSIGN:
        wanted = 4 * count
    if wanted > memory[RECEIVE_ROOM]:
        memory[WANTED] = wanted
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
    # Of the change that is sent on.
    nbytes, change, keys, known, named, apart, target = count * width * each, -1, -1, -1, False, False, 0
    if link_of(memory, shard)[FOLLOWING] > 0:
        signed = is_signed(words)
        is_range = part[ROWS] > 0 and same and not signed and (frame[header.FLAGS] & LISTED) == 0
        if same and signed:
            lists = lists_of(memory)
            known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        change, keys, named, apart = begin_change(memory, shard, known, is_range, count, nbytes)
        if change < 0:
            return False
        target = body_of_change(memory, change, many, apart) + max(keys, 0)
    # Nothing is missing, but for an update that raises.
    memory[ANSWER_AT], memory[ANSWER_TYPE], memory[ANSWER_WIDTH] = 0, part[DTYPE], part[WIDTH]
    if same:
        sum_parts(memory, mine, target if change >= 0 and not program else sums, count * width, kind)
    if change >= 0:
        if program or not same:
            call(memory[MEMCPY], (target, sums, nbytes))
        if not program:
            sums = target
    # It may overwrite the sums.
    if (
        program
        and count > 0
        and not call_update(memory, part, sums, count, width, first, where, there, wants)
    ):
        return False
    if change >= 0:
        if keys > 0:
            list_keys(part, count, first, where, target - keys)
        for worker in range(many):
            write_caller(frame_of_change(memory, change), worker, head_at(mine[worker, ADDRESS]))
        send_change(
            memory, frame, change, _PUSH_PULL if wants else _PUSH, many, keys, count, nbytes, words[header.FIRST],
            words[header.LAST], known, named, apart,
        )  # fmt: skip
        changes_of(memory)[change, IN_ROUND] = row + 1
    if count > 0 and not program:
        apply_push(memory, part, sums, count, first, where, there)
    count_change(memory, shard, namespace)
    set_clock(memory, entry, shard, namespace, words)
    command: Any = np.int64(frame[header.COMMAND])
    origin: Any = np.int64(small[header.ORIGIN])
    record(memory, shard, origin, words[header.TIME], command, many)
    for worker in range(many):
        _answer(memory, frame, mine[worker], part, worker, places)
        if places != 0:
            places += 4 * mine[worker, COUNT]
    round_[STATE], round_[KEPT] = APPLIED, 1 if wants and memory[KEEPS] != 0 else 0
    if change < 0:
        send_answers(memory, row)
    return True


@kernel()
def _answer(memory: Any, frame: Any, mine: Any, part: Any, worker: int, places: int) -> None:
    """Write the answer to a part of a round in its place.

    `places` is the address of the places of its rows in the update's answer (0: it has the part's rows, in order).
    """
    blocks = table(memory[BLOCKS_AT], memory[MADE], BYTES + 1, _INT8)
    kind, width, address = memory[ANSWER_TYPE], memory[ANSWER_WIDTH], mine[ADDRESS]
    each = width * bytes_of(kind)
    call(memory[MEMCPY], (memory[FRAME_AT], address, HEADER_BYTES))
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    command: Any = np.int64(frame[header.COMMAND])
    time = words[header.TIME]
    if worker > 0:
        origin: Any = np.int64(small[header.ORIGIN])
        record(memory, shard, origin, time, command, 0)
    note(_caller_of(memory, shard, worker), time, words[header.ACKED], True)
    rows = mine[COUNT] if command == _PUSH_PULL else -1
    mine[ANSWER] = rows * each if rows >= 0 else -1
    if rows > 0:
        block = mine[BLOCK] - 1
        # The slots at its end are still read.
        needed = HEADER_BYTES + rows * each + 4 * rows
        if needed > blocks[block, BYTES]:
            call(memory[GROW], (block, needed))
            address = mine[ADDRESS] = blocks[block, PLACE]
        source, run, listed = part[VALUES], mine[RUN], mine[SLOTS]
        if memory[ANSWER_AT] != 0:
            source, run, listed = memory[ANSWER_AT], 0, places
        move_rows(memory, kind, source, address + HEADER_BYTES, rows, run, listed, width, COPY)
    write_answer(memory, head_at(address), frame, kind, rows, width, mine[ANSWER] > INLINE)
