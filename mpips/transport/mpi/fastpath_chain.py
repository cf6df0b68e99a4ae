"""Server fast path: pushes to shards with copies (chain replication; paper, section 4.4).

    primary      sends a change on; applies it; answers once it is acknowledged
    last member  applies it; acknowledges

Where a shard has more members, or the last member sends a copy to a learner, the members behind the primary are served
by Python. What is unacknowledged is in arrays that Python can take over: see `mpips.transport.unacknowledged`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header, unacknowledged
from mpips.transport.fastpath_table import (
    BEGIN,
    CHANGES,
    COPIES,
    DTYPE,
    HEAD,
    KNOWN,
    KNOWN_ROOM,
    NEWS,
    NO_PUSH,
    OPEN,
    PUSH,
    ROWS,
    SLOTS_OUT,
    VERSION,
    WIDTH,
)
from mpips.transport.header import DETACHED, HEADER_BYTES, LISTED, MAGIC, NO_VALUES, WIDE_KEYS
from mpips.transport.key_cache import COUNT as LIST_COUNT
from mpips.transport.key_cache import FIRST as LIST_FIRST
from mpips.transport.key_cache import SLOTS as LIST_SLOTS
from mpips.transport.key_cache import USED, look_up
from mpips.transport.message import INLINE, NO_ROUND, Command, Kind
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.fastpath_callers import has_room, note, wake_later
from mpips.transport.mpi.fastpath_rows import apply_push, find_slots
from mpips.transport.mpi.kernels import (
    BODY,
    DONE,
    FRAME,
    FREE,
    FROM,
    LANDED,
    NEXT,
    RECEIVED,
    SIZE,
    TAKEN,
    WANTED,
    is_free,
    post,
    receive_bodies,
)
from mpips.transport.unacknowledged import (
    AFTER,
    BUFFER,
    BYTES,
    CALLER,
    CALLERS_BYTES,
    CHANGES_OUT,
    DEST,
    FOLLOWING,
    IN_PYTHON,
    KEY_BYTES,
    LARGE,
    LAST,
    NUMBER,
    OF,
    PRECEDING,
    ROOM,
    ROOM_BYTES,
    SEND_ANSWER,
    SEND_FRAME,
    SEND_KEYS,
    SEND_VALUES,
    SENDS,
    SLOT,
    TOTAL,
    VALUE_BYTES,
)

_MAGIC = int.from_bytes(MAGIC, "little")
_CHAIN = int(Kind.CHAIN)
_PUSH, _APPLIED = int(Command.PUSH), int(Command.APPLIED)
# The last key of the key space, as int64.
_ALL = -1
_INT4, _INT8, _UINT8 = np.int32(0), np.int64(0), np.uint64(0)


# --- at the primary --------------------------------------------------------------------------------------


@kernel()
def _is_idle(lib: Any, cells: Any, status: Any, sends: Any, row: int) -> bool:
    """Return whether no send of a row of changes is in progress."""
    for i in range(SENDS):  # noqa: SIM110 (a kernel)
        if not is_free(lib, cells, status, sends, SENDS * row + i):
            return False
    return True


@kernel()
def find_row(lib: Any, cells: Any, status: Any, changes: Any, sends: Any, room: int) -> int:
    """Find a free row of changes, with memory for `room` bytes that follow the frame (0: none); -1 if there is none."""
    for row in range(0 if room > 0 else LARGE, LARGE if room > 0 else CHANGES_OUT):
        # The test also frees the row, so that it may get more memory.
        free = changes[row, unacknowledged.SHARD] == 0 and _is_idle(lib, cells, status, sends, row)
        if free and changes[row, ROOM_BYTES] >= room:
            return row
    return -1


@kernel()
def list_keys(part: Any, count: int, first: int, where: int, target: int) -> None:
    """Write the keys of a run of slots from `first` on, or of those listed at `where`, to an address."""
    keys = at(target, count, _UINT8)
    slots = at(where, count, _INT4)
    if part[ROWS] > 0:
        begin = np.uint64(part[BEGIN])
        for i in range(count):
            keys[i] = begin + np.uint64(slots[i] if where != 0 else first + i)
        return
    known = at(part[KNOWN], part[KNOWN_ROOM], _UINT8)
    for i in range(count):
        keys[i] = known[slots[i] if where != 0 else first + i]


@kernel()
def write_change(
    head: Any,
    request: Any,
    me: int,
    epoch: int,
    number: int,
    keys: int,
    first: int,
    last: int,
    apart: bool,
    named: bool,
) -> None:
    """Write the frame of a push as a change, without keys and values, as `mpips.transport.message.encode` would.

    `named`: with the signature of its list of keys.
    """
    small, words = head.view(np.int32), head.view(np.int64)
    asked, asks = request.view(np.int64), request.view(np.int32)
    for i in range(HEADER_BYTES // 8):
        words[i] = 0
    small[header.START] = _MAGIC
    head[header.KIND] = _CHAIN
    head[header.COMMAND] = _PUSH
    head[header.FLAGS] = (LISTED if keys > 0 else 0) | (DETACHED if apart else 0)
    small[header.SENDER] = me
    small[header.ORIGIN] = -1
    small[header.SHARD] = asks[header.SHARD]
    small[header.EPOCH] = epoch
    small[header.NAMESPACE] = asks[header.NAMESPACE]
    small[header.AFTER] = 2
    small[header.WIDTH] = asks[header.WIDTH]
    head[header.DTYPE] = request[header.DTYPE]
    words[header.TIME] = number
    words[header.ROUND] = NO_ROUND
    words[header.FIRST], words[header.LAST] = first, last
    words[header.KEYS], words[header.ROWS] = keys, asked[header.ROWS]
    if named:
        words[header.SIGNATURE], words[header.SIGNATURE + 1] = (
            asked[header.SIGNATURE],
            asked[header.SIGNATURE + 1],
        )
    callers = HEADER_BYTES // 8
    words[callers], words[callers + 1] = asks[header.ORIGIN], asked[header.TIME]
    words[callers + 2], words[callers + 3] = asked[header.ACKED], _PUSH


@kernel()
def send_change(
    lib: Any,
    cells: Any,
    changes: Any,
    sends: Any,
    head: Any,
    row: int,
    shard: int,
    number: int,
    key_bytes: int,
    value_bytes: int,
    apart: bool,
    dest: int,
) -> None:
    """Send a change that is written in a row, its keys and values in the frame, or `apart` in the row's memory."""
    size = HEADER_BYTES + CALLERS_BYTES + (0 if apart else key_bytes + value_bytes)
    changes[row, unacknowledged.SHARD], changes[row, NUMBER] = shard + 1, number
    changes[row, unacknowledged.SIZE], changes[row, CALLER] = size, cells[FROM]
    changes[row, KEY_BYTES] = key_bytes if apart else 0
    changes[row, VALUE_BYTES] = value_bytes if apart else 0
    post(lib, cells, sends, SENDS * row + SEND_FRAME, head.ctypes.data, size, dest, FRAME)
    if apart:
        room = changes[row, ROOM]
        if key_bytes > 0:
            post(lib, cells, sends, SENDS * row + SEND_KEYS, room, key_bytes, dest, BODY)
        post(lib, cells, sends, SENDS * row + SEND_VALUES, room + key_bytes, value_bytes, dest, BODY)


@kernel()
def hold(
    held: Any, shard: int, number: int, slot: int, total: int, buffer: int, nbytes: int, dest: int
) -> None:
    """Let an answer to a pull wait until change `number` is acknowledged."""
    held[0, 0] += 1
    entry = held[held[0, 0]]
    entry[OF], entry[AFTER], entry[SLOT], entry[TOTAL] = shard, number, slot, total
    entry[BUFFER], entry[BYTES], entry[DEST] = buffer, nbytes, dest


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
) -> int:
    """Take an acknowledgement of the next member, and send the answers that waited for it; DONE, or TAKEN."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard, number = small[header.SHARD], words[header.TIME]
    link = links[shard]
    if link[FOLLOWING] != cells[FROM] + 1 or link[IN_PYTHON] != 0 or cells[SIZE] != HEADER_BYTES:
        return TAKEN
    for row in range(CHANGES_OUT):
        if changes[row, unacknowledged.SHARD] == shard + 1 and changes[row, NUMBER] <= number:
            dest = changes[row, CALLER]
            answer: Any = np.int64(answers.ctypes.data) + HEADER_BYTES * row
            post(lib, cells, sends, SENDS * row + SEND_ANSWER, answer, HEADER_BYTES, dest, FRAME)
            wake_later(cells, asleep, sleepers, dest)
            changes[row, unacknowledged.SHARD] = 0
    if number >= link[LAST]:
        link[LAST] = 0
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


# --- at the last member ----------------------------------------------------------------------------------


@kernel()
def _acknowledge(head: Any, change: Any, me: int, epoch: int, number: int) -> None:
    """Write the acknowledgement of a change, as `mpips.transport.message.encode` would."""
    small, words = head.view(np.int32), head.view(np.int64)
    for i in range(len(words)):
        words[i] = 0
    small[header.START] = _MAGIC
    head[header.KIND] = _CHAIN
    head[header.COMMAND] = _APPLIED
    small[header.SENDER] = me
    small[header.ORIGIN] = -1
    small[header.SHARD] = change.view(np.int32)[header.SHARD]
    small[header.EPOCH] = epoch
    words[header.TIME] = number
    words[header.ROUND] = NO_ROUND
    words[header.LAST] = _ALL
    head[header.DTYPE] = NO_VALUES


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
) -> int:
    """Apply the primary's next change, and acknowledge it; DONE, or another result if Python has to handle it."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard, namespace, size = small[header.SHARD], small[header.NAMESPACE], cells[SIZE]
    if namespace < 0 or namespace >= parts.shape[1] or size < HEADER_BYTES + CALLERS_BYTES:
        return TAKEN
    part, number = parts[shard, namespace], words[header.TIME]
    if part[OPEN] != COPIES or part[PUSH] == NO_PUSH or number != parts[shard, 0, VERSION] + 1:
        return TAKEN
    if (
        links[shard, PRECEDING] != cells[FROM] + 1
        or words[header.ROUND] != NO_ROUND
        or small[header.AFTER] != 2
    ):
        return TAKEN
    who = HEADER_BYTES // 8
    origin, time, acked = words[who], words[who + 1], words[who + 2]
    if origin < 0 or origin >= rows_of.shape[1]:
        return TAKEN
    row = rows_of[shard, origin]
    if row <= 0 or not has_room(callers[row], acked):
        return TAKEN
    # The rows.
    listed = (frame[header.FLAGS] & LISTED) != 0
    named = words[header.SIGNATURE] != 0 or words[header.SIGNATURE + 1] != 0
    count, first, where = words[header.ROWS], 0, 0
    if named:
        known = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        if known < 0 or lists[known, LIST_COUNT] != count or words[header.KEYS] != (count if listed else 0):
            return TAKEN
        lists[known, USED] = 1
        first, where = lists[known, LIST_FIRST], lists[known, LIST_SLOTS]
    elif listed:
        if words[header.KEYS] != count or (part[ROWS] == 0 and part[HEAD] == 0):
            return TAKEN
    else:
        first = words[header.FIRST] - part[BEGIN]
        if words[header.KEYS] != 0 or words[header.LAST] - words[header.FIRST] + 1 != count:
            return TAKEN
        if first < 0 or first >= part[ROWS] or count > part[ROWS] - first:
            return TAKEN
    # A change of so many rows was received before, if only by Python.
    if (
        count < 1
        or count > 1 << 27
        or (frame[header.FLAGS] & WIDE_KEYS) != 0
        or frame[header.DTYPE] != part[DTYPE]
        or small[header.WIDTH] != part[WIDTH]
    ):
        return TAKEN
    key_bytes = 8 * count if listed else 0
    value_bytes = count * part[WIDTH] * (4 if part[DTYPE] == 0 or part[DTYPE] == 2 else 8)
    payload = key_bytes + value_bytes
    follow = payload > INLINE
    if follow != ((frame[header.FLAGS] & DETACHED) != 0):
        return TAKEN
    if size != HEADER_BYTES + CALLERS_BYTES + (0 if follow else payload):
        return TAKEN
    places = -(-payload // 8) * 8 if follow else 0
    if places + 4 * count > len(receive_buffer):
        cells[WANTED] = places + 4 * count
        return TAKEN
    out = find_slot(lib, cells, status, slots)
    if out < 0:
        return TAKEN
    content: Any = np.int64(frame.ctypes.data) + HEADER_BYTES + CALLERS_BYTES
    if follow:
        content = np.int64(receive_buffer.ctypes.data)
        found = receive_bodies(lib, cells, status, content, key_bytes, value_bytes)
        if found != TAKEN:
            return found
    there: Any = np.int64(receive_buffer.ctypes.data) + places
    if listed and not named:
        mine, first, run = find_slots(part, at(content, count, _UINT8), at(there, count, _INT4), True)
        if not mine:
            return LANDED if follow else TAKEN
        where = 0 if run else there
    apply_push(lib, part, content + key_bytes, count, first, where, there)
    count_change(parts, push_log, shard, namespace, origin, time)
    note(callers[row], time, acked, True)
    head = frames[out]
    _acknowledge(head[:HEADER_BYTES], frame, me, epoch, number)
    post(lib, cells, slots, out, head.ctypes.data, HEADER_BYTES, cells[FROM], FRAME)
    wake_later(cells, asleep, sleepers, cells[FROM])
    cells[RECEIVED] += size + (payload if follow else 0)
    return DONE


# --- at both ---------------------------------------------------------------------------------------------


@kernel()
def find_slot(lib: Any, cells: Any, status: Any, slots: Any) -> int:
    """Find a free slot for a message; -1 if there is none."""
    for _ in range(SLOTS_OUT):
        cells[NEXT] = (cells[NEXT] + 1) % SLOTS_OUT
        if is_free(lib, cells, status, slots, cells[NEXT]):
            return int(cells[NEXT])
    return -1


@kernel()
def count_change(parts: Any, push_log: Any, shard: int, namespace: int, origin: int, time: int) -> None:
    """Count a push that was applied, and record it if the run is recorded."""
    parts[shard, namespace, CHANGES] += 1
    parts[shard, 0, VERSION] += 1
    parts[shard, 0, NEWS] = 1
    if len(push_log) > 0:
        push_log[0, 0] += 1
        push_log[push_log[0, 0], 0], push_log[push_log[0, 0], 1], push_log[push_log[0, 0], 2] = (
            shard,
            origin,
            time,
        )
