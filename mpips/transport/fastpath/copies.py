"""Server fast path: the messages of chains that arrive (chain replication; paper, section 4.4).

at the primary  an acknowledgement: send the answers that have waited for it
behind it       a change: apply it; send it on, or acknowledge it if there is no next member
                an acknowledgement: pass it on
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath import unacknowledged
from mpips.transport.fastpath.callers import has_room, note, wake_later
from mpips.transport.fastpath.chain import (
    begin_change,
    body_of_change,
    count_change,
    find_room,
    find_slot,
    list_keys,
    record,
    send_change,
)
from mpips.transport.fastpath.headers import write_acknowledgement
from mpips.transport.fastpath.round_completion import send_answers
from mpips.transport.fastpath.round_memory import find_clock, find_kept_place, keep_rows, set_clock
from mpips.transport.fastpath.rounds import RANKS
from mpips.transport.fastpath.rows import (
    MOST_KEYS,
    apply_push,
    bytes_of,
    call_update,
    find_slots,
    fits,
    is_signed,
    learn,
)
from mpips.transport.fastpath.table import (
    AGGREGATES,
    ANSWERS,
    ANSWERS_AT,
    BEGIN,
    COPIES,
    DTYPE,
    HEAD,
    NAMESPACES,
    NO_PUSH,
    OPEN,
    PROGRAM,
    PUSH,
    PUSHED_TYPE,
    RECEIVE_AT,
    ROWS,
    VERSION,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import (
    AFTER,
    BACK,
    BUFFER,
    BYTES,
    CALLER,
    CALLERS_BYTES,
    CHANGES_OUT,
    DEST,
    EVERYWHERE,
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
from mpips.transport.fastpath.views import (
    buffers_of,
    caller_at,
    change_sends_of,
    changes_of,
    frame_of_change,
    frame_of_slot,
    head_at,
    held_of,
    link_of,
    lists_of,
    part_of,
    row_of,
    slots_of,
)
from mpips.transport.header import DETACHED, HEADER_BYTES, LISTED, WIDE_KEYS
from mpips.transport.key_cache import COUNT as LIST_COUNT
from mpips.transport.key_cache import FIRST as LIST_FIRST
from mpips.transport.key_cache import SLOTS as LIST_SLOTS
from mpips.transport.key_cache import USED, look_up
from mpips.transport.message import INLINE, NO_ROUND, Command
from mpips.transport.mpi.abi import at, call
from mpips.transport.mpi.kernels import (
    BODY,
    DONE,
    FRAME,
    FREE,
    TAKEN,
    TAKEN_WITH_BODIES,
    post,
    receive_bodies,
)
from mpips.transport.mpi.memory import (
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    FRAME_AT,
    FROM,
    LATE_ROW,
    MEMCPY,
    RECEIVED,
    SIZE,
)

_PUSH, _PUSH_PULL = int(Command.PUSH), int(Command.PUSH_PULL)
_INT4, _UINT8 = np.int32(0), np.uint64(0)


@kernel()
def take_acknowledgement(memory: Any, frame: Any) -> int:
    """Take an acknowledgement of the next member, and send the answers that waited, or pass it on; DONE, or TAKEN."""
    shard: Any = np.int64(frame.view(np.int32)[header.SHARD])
    number, link = frame.view(np.int64)[header.TIME], link_of(memory, shard)
    if link[FOLLOWING] != memory[FROM] + 1 or link[IN_PYTHON] != 0 or memory[SIZE] != HEADER_BYTES:
        return TAKEN
    out = find_slot(memory) if link[BACK] > 0 else 0
    if out < 0:
        return TAKEN
    changes, sends = changes_of(memory), change_sends_of(memory)
    for row in range(CHANGES_OUT):
        if changes[row, unacknowledged.SHARD] == shard + 1 and changes[row, NUMBER] <= number:
            dest, in_round = changes[row, CALLER], changes[row, IN_ROUND]
            if in_round > 0:
                send_answers(memory, in_round - 1)
            elif link[BACK] == 0:
                answer = memory[ANSWERS_AT] + HEADER_BYTES * row
                post(memory, sends, SENDS * row + SEND_ANSWER, answer, HEADER_BYTES, dest, FRAME)
                wake_later(memory, dest)
            changes[row, unacknowledged.SHARD] = 0
    if number >= link[LAST_CHANGE]:
        link[LAST_CHANGE] = 0
    link[EVERYWHERE] = max(link[EVERYWHERE], number)
    if link[BACK] > 0:
        _acknowledge(memory, frame, out, number, link[BACK] - 1)
    _send_held(memory, shard, number)
    memory[RECEIVED] += memory[SIZE]
    return DONE


@kernel()
def _acknowledge(memory: Any, frame: Any, out: int, number: int, dest: int) -> None:
    """Acknowledge changes of the shard of a frame up to a number, from a free slot."""
    place = frame_of_slot(memory, out)
    write_acknowledgement(memory, head_at(place), frame, number)
    post(memory, slots_of(memory), out, place, HEADER_BYTES, dest, FRAME)
    wake_later(memory, dest)


@kernel()
def _send_held(memory: Any, shard: int, number: int) -> None:
    """Send the answers to pulls that have waited for changes up to a number."""
    held, slots, buffers = held_of(memory), slots_of(memory), buffers_of(memory)
    left = 0
    for i in range(1, 1 + held[0, 0]):
        entry = held[i]
        if entry[OF] == shard and entry[AFTER] <= number:
            slot, buffer, dest = entry[SLOT], entry[BUFFER], entry[DEST]
            slots[slot, 0] = FREE
            post(memory, slots, slot, frame_of_slot(memory, slot), entry[TOTAL], dest, FRAME)
            if buffer >= 0:
                buffers[buffer, 0] = FREE
                post(memory, buffers, buffer, buffers[buffer, 2], entry[BYTES], dest, BODY)
            wake_later(memory, dest)
        else:
            left += 1
            if left < i:
                held[left] = entry
    held[0, 0] = left


@kernel()
def _named_rows(memory: Any, part: Any, frame: Any, shard: int, namespace: int, count: int) -> Any:
    """Find the rows that a change names, without the slots of listed keys.

    Return whether Python need not do it; the row of a known list (-1: none); and the first slot of a run, or the
    address of their slots (0: a run).
    """
    words = frame.view(np.int64)
    listed = (frame[header.FLAGS] & LISTED) != 0
    named = words[header.SIGNATURE] != 0 or words[header.SIGNATURE + 1] != 0
    if named:
        lists = lists_of(memory)
        known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        if known >= 0:
            lists[known, USED] = 1
            fitting = lists[known, LIST_COUNT] == count and words[header.KEYS] == (count if listed else 0)
            return fitting, known, lists[known, LIST_FIRST], lists[known, LIST_SLOTS]
    if listed:
        fitting = words[header.KEYS] == count and (count == 0 or part[ROWS] > 0 or part[HEAD] != 0)
        return fitting, -1, 0, 0
    first = words[header.FIRST] - part[BEGIN]
    fitting = not named and words[header.KEYS] == 0 and words[header.LAST] - words[header.FIRST] + 1 == count
    return fitting and 0 <= first < part[ROWS] and count <= part[ROWS] - first, -1, first, 0


@kernel()
def take_change(memory: Any, frame: Any) -> int:
    """Apply the previous member's next change, and send it on, or acknowledge it; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    namespace: Any = np.int64(small[header.NAMESPACE])
    many: Any = np.int64(small[header.AFTER]) // 2
    size = memory[SIZE]
    if namespace < 0 or namespace >= memory[NAMESPACES] or size < HEADER_BYTES + CALLERS_BYTES:
        return TAKEN
    part, link, number = part_of(memory, shard, namespace), link_of(memory, shard), words[header.TIME]
    if part[OPEN] != COPIES or part[PUSH] == NO_PUSH or number != part_of(memory, shard, 0)[VERSION] + 1:
        return TAKEN
    of_round, wants = words[header.ROUND] != NO_ROUND, frame[header.COMMAND] == _PUSH_PULL
    if (
        link[PRECEDING] != memory[FROM] + 1
        or of_round != (part[AGGREGATES] != 0)
        # Its answer, which has rows, must be kept.
        or (wants and not of_round)
        or (many < 1 if of_round else many != 1)
        or size < HEADER_BYTES + CALLERS_BYTES * many
    ):
        return TAKEN
    who = words[HEADER_BYTES // 8 : HEADER_BYTES // 8 + 4 * many]
    for each in range(many):
        origin = who[4 * each]
        if origin < 0 or origin >= memory[RANKS]:
            return TAKEN
        row = row_of(memory, shard, origin)
        if row <= 0 or not has_room(caller_at(memory, row), who[4 * each + 2]):
            return TAKEN
    # The rows.
    count = words[header.ROWS]
    fitting, known, first, where = _named_rows(memory, part, frame, shard, namespace, count)
    # A change of so many rows was received before, if only by Python.
    if (
        not fitting
        or count < (0 if of_round else 1)
        or count > MOST_KEYS
        or not fits(part, frame, count)
        or (frame[header.FLAGS] & WIDE_KEYS) != 0
    ):
        return TAKEN
    listed = (frame[header.FLAGS] & LISTED) != 0
    key_bytes = 8 * count if listed else 0
    width: Any = np.int64(small[header.WIDTH])
    value_bytes = count * width * bytes_of(part[PUSHED_TYPE])
    payload = key_bytes + value_bytes
    follow = payload > INLINE
    if follow != ((frame[header.FLAGS] & DETACHED) != 0):
        return TAKEN
    if size != HEADER_BYTES + CALLERS_BYTES * many + (0 if follow else payload):
        return TAKEN
    # The receive buffer holds the keys, the values, the slots of the keys, and a copy of the values for an update.
    program, forwards = part[PUSH] >= PROGRAM, link[FOLLOWING] > 0
    places = -(-payload // 8) * 8 if follow else 0
    spare = -(-(places + 4 * count) // 8) * 8
    out = find_room(memory, spare + (value_bytes if program and forwards else 0))
    if out < 0:
        return TAKEN
    kept, block, entry = -1, -1, -1
    if of_round:
        entry = find_clock(memory, shard, namespace, words)
        rows = -(-count * part[ANSWERS] // 8) * 8
        found, kept, block = find_kept_place(memory, who, many, rows + 4 * count, wants)
        if entry < 0 or not found:
            return TAKEN
    # Of the change that is sent on. A list that comes with its keys goes on with them, and is named the next time.
    change, keys, named, apart, target = -1, -1, False, False, 0
    if forwards:
        is_range = not listed and not is_signed(words)
        change, keys, named, apart = begin_change(
            memory, shard, -1 if listed else known, is_range, count, value_bytes
        )
        if change < 0:
            return TAKEN
        target = body_of_change(memory, change, many, apart) + max(keys, 0)
    content = memory[FRAME_AT] + HEADER_BYTES + CALLERS_BYTES * many
    if follow:
        # Where they are sent on from, if they are.
        content = memory[RECEIVE_AT] if change < 0 else target - key_bytes
        arrived = receive_bodies(memory, content, key_bytes, value_bytes)
        if arrived != TAKEN:
            memory[LATE_ROW] = change + 1
            return arrived
    rows, there, done = content + key_bytes, memory[RECEIVE_AT] + places, True
    unknown = listed and known < 0 and count > 0
    if unknown:
        done, first, run = find_slots(part, at(content, count, _UINT8), at(there, count, _INT4), True)
        where = 0 if run else there
    memory[ANSWER_AT], memory[ANSWER_TYPE], memory[ANSWER_WIDTH] = 0, part[DTYPE], part[WIDTH]
    if done and count > 0 and program:
        given = rows
        if change >= 0:
            # It may overwrite the rows, which are sent on.
            given = memory[RECEIVE_AT] + spare
            call(memory[MEMCPY], (given, rows, value_bytes))
        done = call_update(memory, part, given, count, width, first, where, there, wants)
    if not done:
        if follow and change >= 0:
            call(memory[MEMCPY], (memory[RECEIVE_AT], content, payload))
        return TAKEN_WITH_BODIES if follow else TAKEN
    if unknown:
        learn(memory, words, shard, namespace, first, count, where)
    if change >= 0:
        if not follow:
            call(memory[MEMCPY], (target - key_bytes, content, payload))
        if keys > 0 and not listed:
            list_keys(part, count, first, where, target - keys)
        callers = memory[FRAME_AT] + HEADER_BYTES
        call(memory[MEMCPY], (frame_of_change(memory, change) + HEADER_BYTES, callers, CALLERS_BYTES * many))
        send_change(
            memory, frame, change, _PUSH_PULL if wants else _PUSH, many, keys, count, value_bytes, words[header.FIRST],
            words[header.LAST], known, named, apart,
        )  # fmt: skip
    if count > 0 and not program:
        apply_push(memory, part, rows, count, first, where, there)
    count_change(memory, shard, namespace)
    if of_round:
        set_clock(memory, entry, shard, namespace, words)
        if kept >= 0:
            keep_rows(memory, part, who, words, shard, namespace, kept, block, count, first, where)
    for each in range(many):
        origin, time = who[4 * each], who[4 * each + 1]
        record(memory, shard, origin, time, who[3], many if each == 0 else 0)
        note(caller_at(memory, row_of(memory, shard, origin)), time, who[4 * each + 2], True)
    if change < 0:
        _acknowledge(memory, frame, out, number, memory[FROM])
    memory[RECEIVED] += size + (payload if follow else 0)
    return DONE
