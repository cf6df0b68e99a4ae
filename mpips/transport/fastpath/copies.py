"""Server fast path: the messages of chains that arrive (chain replication; paper, section 4.4).

at the primary      an acknowledgement: send the answers that have waited for it
at the last member  a change: apply it; acknowledge it
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath import unacknowledged
from mpips.transport.fastpath.callers import has_room, note, wake_later
from mpips.transport.fastpath.chain import count_change, find_slot, record
from mpips.transport.fastpath.headers import write_acknowledgement
from mpips.transport.fastpath.round_completion import send_answers
from mpips.transport.fastpath.round_memory import find_clock, find_kept_place, keep_rows, set_clock
from mpips.transport.fastpath.rows import apply_push, bytes_of, call_update, find_slots, fits, learn
from mpips.transport.fastpath.table import (
    AGGREGATES,
    ANSWERS,
    BEGIN,
    COPIES,
    DTYPE,
    HEAD,
    NO_PUSH,
    OPEN,
    PROGRAM,
    PUSH,
    PUSHED_TYPE,
    ROWS,
    VERSION,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import (
    AFTER,
    BUFFER,
    BYTES,
    CALLER,
    CALLERS_BYTES,
    CHANGES_OUT,
    DEST,
    FOLLOWING,
    IN_PYTHON,
    IN_ROUND,
    LAST_CHANGE,
    NUMBER,
    OF,
    PRECEDING,
    SEND_ANSWER,
    SENDS,
    SLOT,
    TOTAL,
)
from mpips.transport.header import DETACHED, HEADER_BYTES, LISTED, WIDE_KEYS
from mpips.transport.key_cache import COUNT as LIST_COUNT
from mpips.transport.key_cache import FIRST as LIST_FIRST
from mpips.transport.key_cache import SLOTS as LIST_SLOTS
from mpips.transport.key_cache import USED, look_up
from mpips.transport.message import INLINE, NO_ROUND, Command
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.kernels import (
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    BODY,
    DONE,
    FRAME,
    FREE,
    FROM,
    RECEIVED,
    SIZE,
    TAKEN,
    TAKEN_WITH_BODIES,
    WANTED,
    post,
    receive_bodies,
)

_PUSH_PULL = int(Command.PUSH_PULL)
_INT4, _UINT8 = np.int32(0), np.uint64(0)


@kernel()
def take_acknowledgement(
    lib: Any,
    cells: Any,
    frame: Any,
    links: Any,
    changes: Any,
    sends: Any,
    answers: Any,
    held: Any,
    slots: Any,
    frames: Any,
    buffers: Any,
    asleep: Any,
    sleepers: Any,
    memory: Any,
) -> int:
    """Take an acknowledgement of the next member, and send the answers that waited for it; DONE, or TAKEN."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard, number = small[header.SHARD], words[header.TIME]
    link = links[shard]
    if link[FOLLOWING] != cells[FROM] + 1 or link[IN_PYTHON] != 0 or cells[SIZE] != HEADER_BYTES:
        return TAKEN
    for row in range(CHANGES_OUT):
        if changes[row, unacknowledged.SHARD] == shard + 1 and changes[row, NUMBER] <= number:
            dest, in_round = changes[row, CALLER], changes[row, IN_ROUND]
            if in_round > 0:
                send_answers(lib, cells, asleep, sleepers, memory, in_round - 1)
            else:
                answer: Any = np.int64(answers.ctypes.data) + HEADER_BYTES * row
                post(lib, cells, sends, SENDS * row + SEND_ANSWER, answer, HEADER_BYTES, dest, FRAME)
                wake_later(cells, asleep, sleepers, dest)
            changes[row, unacknowledged.SHARD] = 0
    if number >= link[LAST_CHANGE]:
        link[LAST_CHANGE] = 0
    left = 0
    for i in range(1, 1 + held[0, 0]):
        entry = held[i]
        if entry[OF] == shard and entry[AFTER] <= number:
            slot, buffer, dest = entry[SLOT], entry[BUFFER], entry[DEST]
            slots[slot, 0] = FREE
            post(lib, cells, slots, slot, frames[slot].ctypes.data, entry[TOTAL], dest, FRAME)
            if buffer >= 0:
                buffers[buffer, 0] = FREE
                post(lib, cells, buffers, buffer, buffers[buffer, 2], entry[BYTES], dest, BODY)
            wake_later(cells, asleep, sleepers, dest)
        else:
            left += 1
            if left < i:
                held[left] = entry
    held[0, 0] = left
    cells[RECEIVED] += cells[SIZE]
    return DONE


@kernel()
def take_change(
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
    links: Any,
    slots: Any,
    frames: Any,
    receive_buffer: Any,
    asleep: Any,
    sleepers: Any,
    push_log: Any,
    memory: Any,
) -> int:
    """Apply the primary's next change, and acknowledge it; DONE, or another result if Python has to handle it."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard, namespace, size = small[header.SHARD], small[header.NAMESPACE], cells[SIZE]
    if namespace < 0 or namespace >= parts.shape[1] or size < HEADER_BYTES + CALLERS_BYTES:
        return TAKEN
    part, number, many = parts[shard, namespace], words[header.TIME], int(small[header.AFTER]) // 2
    if part[OPEN] != COPIES or part[PUSH] == NO_PUSH or number != parts[shard, 0, VERSION] + 1:
        return TAKEN
    of_round = words[header.ROUND] != NO_ROUND
    if (
        links[shard, PRECEDING] != cells[FROM] + 1
        or of_round != (part[AGGREGATES] != 0)
        # Its answer, which has rows, must be kept.
        or (frame[header.COMMAND] == _PUSH_PULL and not of_round)
        or (many < 1 if of_round else many != 1)
        or size < HEADER_BYTES + CALLERS_BYTES * many
    ):
        return TAKEN
    who = words[HEADER_BYTES // 8 : HEADER_BYTES // 8 + 4 * many]
    for each in range(many):
        origin = who[4 * each]
        if origin < 0 or origin >= rows_of.shape[1]:
            return TAKEN
        row = rows_of[shard, origin]
        if row <= 0 or not has_room(callers[row], who[4 * each + 2]):
            return TAKEN
    # The rows.
    listed = (frame[header.FLAGS] & LISTED) != 0
    named = words[header.SIGNATURE] != 0 or words[header.SIGNATURE + 1] != 0
    count, first, where = words[header.ROWS], 0, 0
    known = -1
    if named:
        known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
    if known >= 0:
        if lists[known, LIST_COUNT] != count or words[header.KEYS] != (count if listed else 0):
            return TAKEN
        lists[known, USED] = 1
        first, where = lists[known, LIST_FIRST], lists[known, LIST_SLOTS]
    elif listed:
        if words[header.KEYS] != count or (count > 0 and part[ROWS] == 0 and part[HEAD] == 0):
            return TAKEN
    elif named:
        return TAKEN
    else:
        first = words[header.FIRST] - part[BEGIN]
        if words[header.KEYS] != 0 or words[header.LAST] - words[header.FIRST] + 1 != count:
            return TAKEN
        if first < 0 or first >= part[ROWS] or count > part[ROWS] - first:
            return TAKEN
    # A change of so many rows was received before, if only by Python.
    if (
        count < (0 if of_round else 1)
        or count > 1 << 27
        or not fits(part, frame, count)
        or (frame[header.FLAGS] & WIDE_KEYS) != 0
    ):
        return TAKEN
    key_bytes = 8 * count if listed else 0
    width: Any = np.int64(small[header.WIDTH])
    value_bytes = count * width * bytes_of(part[PUSHED_TYPE])
    payload = key_bytes + value_bytes
    follow = payload > INLINE
    if follow != ((frame[header.FLAGS] & DETACHED) != 0):
        return TAKEN
    if size != HEADER_BYTES + CALLERS_BYTES * many + (0 if follow else payload):
        return TAKEN
    places = -(-payload // 8) * 8 if follow else 0
    if places + 4 * count > len(receive_buffer):
        cells[WANTED] = places + 4 * count
        return TAKEN
    out = find_slot(lib, cells, status, slots)
    if out < 0:
        return TAKEN
    kept, block, entry, wants = -1, -1, -1, frame[header.COMMAND] == _PUSH_PULL
    if of_round:
        entry = find_clock(memory, shard, namespace, words)
        rows = -(-count * part[ANSWERS] // 8) * 8
        found, kept, block = find_kept_place(lib, cells, status, memory, who, many, rows + 4 * count, wants)
        if entry < 0 or not found:
            return TAKEN
    content: Any = np.int64(frame.ctypes.data) + HEADER_BYTES + CALLERS_BYTES * many
    if follow:
        content = np.int64(receive_buffer.ctypes.data)
        arrived = receive_bodies(lib, cells, status, content, key_bytes, value_bytes)
        if arrived != TAKEN:
            return arrived
    there: Any = np.int64(receive_buffer.ctypes.data) + places
    done = True
    if listed and known < 0 and count > 0:
        done, first, run = find_slots(part, at(content, count, _UINT8), at(there, count, _INT4), True)
        where = 0 if run else there
    cells[ANSWER_AT], cells[ANSWER_TYPE], cells[ANSWER_WIDTH] = 0, part[DTYPE], part[WIDTH]
    if done and count > 0 and part[PUSH] == PROGRAM:
        done = call_update(part, cells, content + key_bytes, count, width, first, where, wants)
    if not done:
        return TAKEN_WITH_BODIES if follow else TAKEN
    if listed and known < 0:
        learn(cells, words, shard, namespace, first, count, where)
    if count > 0 and part[PUSH] != PROGRAM:
        apply_push(lib, part, content + key_bytes, count, first, where, there)
    count_change(parts, shard, namespace)
    if of_round:
        set_clock(memory, entry, shard, namespace, words)
        if kept >= 0:
            keep_rows(
                lib, cells, part, memory, who, words, shard, namespace, kept, block, count, first, where
            )
    for each in range(many):
        origin, time = who[4 * each], who[4 * each + 1]
        record(push_log, shard, origin, time, who[3], many if each == 0 else 0)
        note(callers[rows_of[shard, origin]], time, who[4 * each + 2], True)
    head = frames[out]
    write_acknowledgement(head, frame, me, epoch, number)
    post(lib, cells, slots, out, head.ctypes.data, HEADER_BYTES, cells[FROM], FRAME)
    wake_later(cells, asleep, sleepers, cells[FROM])
    cells[RECEIVED] += size + (payload if follow else 0)
    return DONE
