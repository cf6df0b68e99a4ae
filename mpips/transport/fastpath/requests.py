"""Server fast path: single pushes and pulls, of callers that are served.

Until all that a request needs is there, nothing is changed, and Python can handle it instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.callers import note, wake_later
from mpips.transport.fastpath.chain import (
    begin_change,
    body_of_change,
    count_change,
    find_room,
    hold,
    list_keys,
    record,
    send_change,
)
from mpips.transport.fastpath.headers import write_answer, write_caller
from mpips.transport.fastpath.rows import (
    COPY,
    apply_push,
    bytes_of,
    call_update,
    find_slots,
    fits,
    has_all,
    is_signed,
    learn,
    move_rows,
    named_rows,
)
from mpips.transport.fastpath.table import (
    AGGREGATES,
    ANSWERS_AT,
    ASSIGN,
    BEGIN,
    BUFFERS,
    DTYPE,
    NEWS,
    NO_PUSH,
    PIDS_AT,
    PROGRAM,
    PULL,
    PUSH,
    PUSHED_TYPE,
    RECEIVE_AT,
    ROWS,
    VALUES,
    VERSION,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import FOLLOWING, LAST_CHANGE
from mpips.transport.fastpath.views import (
    buffers_of,
    caller_at,
    frame_of_change,
    frame_of_slot,
    head_at,
    link_of,
    part_of,
    row_of,
    slots_of,
)
from mpips.transport.header import DETACHED, HEADER_BYTES, NO_VALUES, WRITE_THERE, WRITTEN_THERE
from mpips.transport.message import INLINE, Command
from mpips.transport.mpi.abi import at, call
from mpips.transport.mpi.kernels import (
    BODY,
    DONE,
    FRAME,
    HELD,
    TAKEN,
    TAKEN_WITH_BODIES,
    is_free,
    post,
    receive_bodies,
)
from mpips.transport.mpi.memory import (
    FRAME_AT,
    FROM,
    HERE,
    LATE_ROW,
    MEMCPY,
    RECEIVED,
    SENT,
    SIZE,
    VECTORS,
    WANTED,
    WRITE,
)

_PUSH = int(Command.PUSH)
_INT4, _INT8, _UINT8 = np.int32(0), np.int64(0), np.uint64(0)


@kernel()
def _follows(memory: Any, frame: Any, payload: int) -> Any:
    """Return whether a frame has the size that a payload of keys and rows gives it, and whether that follows it."""
    follow = payload > INLINE
    size = HEADER_BYTES + (0 if follow else payload)
    return memory[SIZE] == size and follow == ((frame[header.FLAGS] & DETACHED) != 0), follow


@kernel()
def _finish(memory: Any, frame: Any, received: int, pushed: bool) -> None:
    """Record that a request is finished, of which so many bytes were received."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    origin: Any = np.int64(small[header.ORIGIN])
    memory[RECEIVED] += received
    note(caller_at(memory, row_of(memory, shard, origin)), words[header.TIME], words[header.ACKED], pushed)
    part_of(memory, shard, 0)[NEWS] = 1


@kernel()
def take_push(memory: Any, frame: Any) -> int:
    """Apply a push, and answer it, or send it on to the copy first; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    namespace: Any = np.int64(small[header.NAMESPACE])
    width: Any = np.int64(small[header.WIDTH])
    part, link, size = part_of(memory, shard, namespace), link_of(memory, shard), memory[SIZE]
    # The rows.
    found, listed, known, count, first, where = named_rows(memory, part, frame, shard, namespace, 1)
    if not found or part[PUSH] == NO_PUSH or part[AGGREGATES] != 0 or not fits(part, frame, count):
        return TAKEN
    program = part[PUSH] >= PROGRAM
    nbytes = count * width * bytes_of(part[PUSHED_TYPE])
    key_bytes = 8 * count if listed else 0
    payload = key_bytes + nbytes
    fitting, follow = _follows(memory, frame, payload)
    if not fitting:
        return TAKEN
    # The receive buffer holds the keys, the values, the slots of the keys, and a copy of the values for an update.
    places = -(-payload // 8) * 8 if follow else 0
    spare = places + (4 * count if listed or part[PUSH] > ASSIGN else 0)
    spare += -spare % 8
    wanted = spare + (nbytes if program else 0)
    out = find_room(memory, wanted)
    if out < 0:
        return TAKEN
    # Of the change that is sent on.
    change, keys, named, apart, target = -1, -1, False, False, 0
    if link[FOLLOWING] > 0:
        is_range = part[ROWS] > 0 and where == 0 and not listed
        change, keys, named, apart = begin_change(memory, shard, known, is_range, count, nbytes)
        if change < 0:
            return TAKEN
        target = body_of_change(memory, change, 1, apart) + max(keys, 0)
    # All conditions hold but for listed keys: receive the rest, and apply the push.
    content = memory[FRAME_AT] + HEADER_BYTES
    if follow:
        # Where they are sent on from, if they are.
        content = memory[RECEIVE_AT] if change < 0 else target - key_bytes
        arrived = receive_bodies(memory, content, key_bytes, nbytes)
        if arrived != TAKEN:
            memory[LATE_ROW] = change + 1
            return arrived
    rows, there, done = content + key_bytes, memory[RECEIVE_AT] + places, True
    if listed:
        done, first, run = find_slots(part, at(content, count, _UINT8), at(there, count, _INT4), True)
        where = 0 if run else there
    if done and program:
        given = rows
        if change >= 0:
            # It may overwrite the rows, which are sent on.
            given = memory[RECEIVE_AT] + spare
            call(memory[MEMCPY], (given, rows, nbytes))
        done = call_update(memory, part, given, count, width, first, where, there, False)
    if not done:
        if follow and change >= 0:
            call(memory[MEMCPY], (memory[RECEIVE_AT], content, payload))
        return TAKEN_WITH_BODIES if follow else TAKEN
    if listed:
        learn(memory, words, shard, namespace, first, count, where)
    if change >= 0:
        if not follow:
            call(memory[MEMCPY], (target - key_bytes, content, payload))
        if keys > 0 and not listed:
            list_keys(part, count, first, where, target - keys)
        begin, end = words[header.FIRST], words[header.LAST]
        if keys < 0 and not named:
            begin, end = part[BEGIN] + first, part[BEGIN] + first + count - 1
        write_caller(frame_of_change(memory, change), 0, frame)
        send_change(memory, frame, change, _PUSH, 1, keys, count, nbytes, begin, end, known, named, apart)
    if not program:
        apply_push(memory, part, rows, count, first, where, there)
    if change >= 0:
        write_answer(memory, head_at(memory[ANSWERS_AT] + HEADER_BYTES * change), frame, 0, -1, 0, False)
    else:
        answer = frame_of_slot(memory, out)
        write_answer(memory, head_at(answer), frame, 0, -1, 0, False)
        post(memory, slots_of(memory), out, answer, HEADER_BYTES, memory[FROM], FRAME)
        if link[LAST_CHANGE] == 0:
            wake_later(memory, memory[FROM])
    count_change(memory, shard, namespace)
    record(memory, shard, memory[FROM], words[header.TIME], _PUSH, 1)
    _finish(memory, frame, size + (payload if follow else 0), True)
    return DONE


@kernel()
def _write(memory: Any, rank: int, source: int, target: int, nbytes: int) -> bool:
    """Write into the memory of another process, if that is possible; return whether all bytes were written."""
    pid = at(memory[PIDS_AT] + 8 * rank, 1, _INT8)
    if pid[0] == 0 or memory[WRITE] == 0 or nbytes >= 1 << 30:
        pid[0] = 0
        return False
    memory[VECTORS], memory[VECTORS + 1] = source, nbytes
    memory[VECTORS + 2], memory[VECTORS + 3] = target, nbytes
    here = memory[HERE] + 8 * VECTORS
    written = call(memory[WRITE], (pid[0], here, 1, here + 16, 1, 0)) == nbytes
    if not written:
        pid[0] = 0
    return bool(written)


@kernel()
def take_pull(memory: Any, frame: Any) -> int:
    """Answer a pull, or let the answer wait for changes that it has read; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    shard: Any = np.int64(small[header.SHARD])
    namespace: Any = np.int64(small[header.NAMESPACE])
    part, last, dest = part_of(memory, shard, namespace), link_of(memory, shard)[LAST_CHANGE], memory[FROM]
    # The rows.
    found, listed, _, count, first, where = named_rows(memory, part, frame, shard, namespace, 1)
    if not found or part[PULL] == 0 or frame[header.DTYPE] != NO_VALUES:
        return TAKEN
    width, kind, size = part[WIDTH], part[DTYPE], memory[SIZE]
    nbytes = count * width * bytes_of(kind)
    key_bytes = 8 * count if listed else 0
    apart = nbytes > INLINE
    fitting, follow = _follows(memory, frame, key_bytes)
    if not fitting:
        return TAKEN
    # The receive buffer holds the keys and their slots.
    places = key_bytes if follow else 0
    out = find_room(memory, places + (4 * count if listed else 0))
    if out < 0:
        return TAKEN
    written = False
    if apart and where == 0 and not listed and (frame[header.FLAGS] & WRITE_THERE) != 0 and last == 0:
        values = part[VALUES] + first * width * bytes_of(kind)
        written = _write(memory, dest, values, words[header.ROWS], nbytes)
    buffers, buffer = buffers_of(memory), -1
    if apart and not written:
        for each in range(BUFFERS):
            if buffers[each, 3] >= nbytes and is_free(memory, buffers, each):
                buffer = each
                break
        if buffer < 0:
            memory[WANTED] = nbytes
            return TAKEN
    # All conditions hold but for listed keys.
    if listed:
        content, there = memory[FRAME_AT] + HEADER_BYTES, memory[RECEIVE_AT] + places
        if follow:
            content = memory[RECEIVE_AT]
            arrived = receive_bodies(memory, content, key_bytes, 0)
            if arrived != TAKEN:
                return arrived
        slots = at(there, count, _INT4)
        done, first, run = find_slots(part, at(content, count, _UINT8), slots, False)
        where = 0 if run else there
        # Python keeps the keys of a list with a signature until all have slots.
        if not done or (is_signed(words) and not run and not has_all(slots)):
            return TAKEN_WITH_BODIES if follow else TAKEN
        learn(memory, words, shard, namespace, first, count, where)
    answer = frame_of_slot(memory, out)
    target = answer + HEADER_BYTES
    if buffer >= 0:
        target = buffers[buffer, 2]
    if not written:
        move_rows(memory, kind, part[VALUES], target, count, first, where, width, COPY)
    head, version = head_at(answer), part_of(memory, shard, 0)[VERSION]
    write_answer(memory, head, frame, kind, count, width, apart)
    head.view(np.int64)[header.ROUND] = version
    if written:
        head[header.FLAGS] = WRITTEN_THERE
        memory[SENT] += nbytes
    total, slots_out = HEADER_BYTES + (0 if apart else nbytes), slots_of(memory)
    if last != 0:
        slots_out[out, 0] = HELD
        if buffer >= 0:
            buffers[buffer, 0] = HELD
        hold(memory, shard, version, out, total, buffer, nbytes, dest)
    else:
        post(memory, slots_out, out, answer, total, dest, FRAME)
        if buffer >= 0:
            post(memory, buffers, buffer, target, nbytes, dest, BODY)
        wake_later(memory, dest)
    _finish(memory, frame, size + (key_bytes if follow else 0), False)
    return DONE
