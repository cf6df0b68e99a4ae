"""Server fast path: receives messages, and answers plain pushes and pulls in compiled code (see
`mpips.transport.fastpath.table`).

    while there is a message: if it is plain: find its rows; apply it; answer; record it; else: return it to Python

No call blocks: a transfer that is not complete after some milliseconds is returned to Python unfinished, and the van
completes it like any slow message. The module is long because its kernel names the constants of all tables that it
reads, and decides in one place what becomes of a message.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.callers import has_room, note, wake_later
from mpips.transport.fastpath.chain import (
    count_change,
    find_row,
    find_slot,
    hold,
    list_keys,
    record,
    send_change,
)
from mpips.transport.fastpath.copies import take_acknowledgement, take_change
from mpips.transport.fastpath.headers import write_answer, write_caller, write_change
from mpips.transport.fastpath.round_parts import take_part
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
    ASSIGN,
    BEGIN,
    DTYPE,
    HIGHEST,
    MOST_AT_ONCE,
    NEWS,
    NO_PUSH,
    OPEN,
    PROGRAM,
    PULL,
    PUSH,
    PUSHED_TYPE,
    REQUESTS,
    ROWS,
    VALUES,
    VERSION,
    WIDTH,
)
from mpips.transport.fastpath.unacknowledged import CALLERS_BYTES, FOLLOWING, KEEPS_LISTS, LAST_CHANGE, ROOM
from mpips.transport.header import (
    DETACHED,
    HEADER_BYTES,
    MAGIC,
    NO_VALUES,
    WRITE_THERE,
    WRITTEN_THERE,
)
from mpips.transport.key_cache import COUNT, FORWARDED
from mpips.transport.message import INLINE, NO_ROUND, Command, Kind
from mpips.transport.mpi.abi import MEMCPY, WRITE, at, call
from mpips.transport.mpi.kernels import (
    BODY,
    DONE,
    FRAME,
    FROM,
    HELD,
    LATE_ROW,
    NEW_LIST,
    NOTHING,
    POLLS_BEFORE_YIELD,
    RECEIVED,
    SENT,
    SERVED,
    SIZE,
    SLEEPERS,
    TAKEN,
    TAKEN_WITH_BODIES,
    URGENT_PERIOD,
    VECTORS,
    WANTED,
    WANTED_ROOM,
    is_free,
    poll,
    post,
    receive_bodies,
)

_MAGIC = int.from_bytes(MAGIC, "little")
_REQUEST, _CHAIN = int(Kind.REQUEST), int(Kind.CHAIN)
_PUSH, _PULL, _APPLIED = int(Command.PUSH), int(Command.PULL), int(Command.APPLIED)
_PUSH_PULL = int(Command.PUSH_PULL)
_INT4, _UINT8 = np.int32(0), np.uint64(0)


@kernel()
def _is_plain(frame: Any, epoch: int) -> Any:
    """Return whether a frame may be plain: a push or pull without dependencies, metadata or filters."""
    small = frame.view(np.int32)
    words = frame.view(np.int64)
    return (
        small[header.START] == _MAGIC
        and frame[header.KIND] == _REQUEST
        and small[header.SHARD] >= 0
        and small[header.EPOCH] == epoch
        and small[header.META] == 0
        and small[header.AFTER] == 0
        # Only parts of rounds are pushed and pulled at once; all of these are pushes.
        and (
            frame[header.COMMAND] == _PUSH
            or frame[header.COMMAND] == (_PULL if words[header.ROUND] == NO_ROUND else _PUSH_PULL)
        )
    )


@kernel()
def _is_of_chain(frame: Any, size: int, epoch: int, links: Any) -> Any:
    """Return whether a frame is a message of a chain that may be handled: of this epoch, without metadata."""
    small = frame.view(np.int32)
    return (
        size >= HEADER_BYTES
        and small[header.START] == _MAGIC
        and frame[header.KIND] == _CHAIN
        and small[header.SHARD] >= 0
        and small[header.SHARD] < len(links)
        and small[header.EPOCH] == epoch
        and small[header.META] == 0
    )


@kernel()
def _write(lib: Any, cells: Any, pid: int, source: int, target: int, nbytes: int) -> bool:
    """Write into another process's memory; return whether all bytes were written."""
    if lib[WRITE] == 0 or nbytes >= 1 << 30:
        return False
    cells[VECTORS], cells[VECTORS + 1], cells[VECTORS + 2], cells[VECTORS + 3] = (
        source,
        nbytes,
        target,
        nbytes,
    )
    here: Any = np.int64(cells.ctypes.data) + 8 * VECTORS
    return call(lib[WRITE], (pid, here, 1, here + 16, 1, 0)) == nbytes  # type: ignore[no-any-return]


@kernel(
    "i8(i8[::1], i8[::1], u1[::1], u1[::1], i8, i8, i8, i8[:,:,::1], i4[:,::1], i8[:,::1], i8[:,::1],"
    " i8[:,::1], u1[:,::1], i8[:,::1], u1[::1], u1[:], i4[::1], i8[::1], i8[:,::1], i8[:,::1], i8[:,::1],"
    " i8[:,::1], u1[:,::1], u1[:,::1], i8[:,::1], i8[::1])"
)
def serve(
    lib: Any,
    cells: Any,
    status: Any,
    frame: Any,
    tries: int,
    me: int,
    epoch: int,
    parts: Any,
    rows_of: Any,
    callers: Any,
    lists: Any,
    slots: Any,
    frames: Any,
    buffers: Any,
    receive_buffer: Any,
    asleep: Any,
    sleepers: Any,
    pids: Any,
    push_log: Any,
    links: Any,
    changes: Any,
    sends: Any,
    changed: Any,
    answers: Any,
    held: Any,
    memory: Any,
) -> int:
    """Receive, and answer plain requests, until there is a message for Python, or none in `tries` polls.

    `parts` i8[shards, namespaces, 31]; `rows_of` i4[shards, ranks]: a caller's row in `callers` i8[n, 3 + 64], 0: not
    known; `lists`: `KeyCache.table`; `slots` i8[64, 3] and `frames` u1[64, bytes]: answers being sent; `buffers` i8[n,
    5]: busy, request, address, size and receiver of the send buffers for large answers; `receive_buffer`: the receive
    buffer for large pushes; `asleep` u1[ranks]: ranks that sleep; of these, the ranks that were answered are listed in
    `sleepers` i4[256]; `pids` i8[ranks]: processes whose memory answers may be written to
    (`mpips.transport.mpi.process_memory`), 0: none; `push_log` i8[0 or n, 5]: the pushes in order, for a record;
    `links`, `changes`, `sends`, `changed` (the frames of changes), `answers` and `held`: see
    `mpips.transport.fastpath.unacknowledged`; `memory`: see `mpips.transport.fastpath.rounds`.
    """
    small = frame.view(np.int32)
    words = frame.view(np.int64)
    left, most, turn = tries, MOST_AT_ONCE, -1
    cells[NEW_LIST + COUNT] = 0
    while left > 0 and most > 0 and (len(push_log) == 0 or push_log[0, 0] < MOST_AT_ONCE):
        if cells[NEW_LIST + COUNT] != 0:
            # Python caches it before the next message.
            return NOTHING
        turn += 1
        found = poll(lib, cells, status, frame, turn % URGENT_PERIOD == 0, tries - left >= POLLS_BEFORE_YIELD)
        if found == NOTHING:
            if cells[SLEEPERS] > 0:
                # Python wakes them.
                return NOTHING
            left -= 1
            continue
        if found != TAKEN:
            return found
        size = cells[SIZE]
        if _is_of_chain(frame, size, epoch, links):
            if frame[header.COMMAND] == _APPLIED:
                found = take_acknowledgement(
                    lib,
                    cells,
                    frame,
                    links,
                    changes,
                    sends,
                    answers,
                    held,
                    slots,
                    frames,
                    buffers,
                    asleep,
                    sleepers,
                    memory,
                )
            elif frame[header.COMMAND] == _PUSH or frame[header.COMMAND] == _PUSH_PULL:
                found = take_change(
                    lib, cells, status, frame, me, epoch, parts, rows_of, callers, lists, links, slots, frames,
                    receive_buffer, asleep, sleepers, push_log, memory,
                )  # fmt: skip
            if found != DONE:
                return found
            cells[SERVED] += 1
            left, most = tries, most - 1
            continue
        if size < HEADER_BYTES or not _is_plain(frame, epoch):
            return TAKEN
        # The caller, shard and namespace.
        shard, namespace, origin = small[header.SHARD], small[header.NAMESPACE], small[header.ORIGIN]
        if shard >= parts.shape[0] or namespace < 0 or namespace >= parts.shape[1]:
            return TAKEN
        if origin < 0 or origin >= rows_of.shape[1] or origin != cells[FROM]:
            return TAKEN
        row = rows_of[shard, origin]
        part = parts[shard, namespace]
        if row <= 0 or part[OPEN] != REQUESTS:
            return TAKEN
        caller = callers[row]
        time, acked = words[header.TIME], words[header.ACKED]
        if time <= caller[HIGHEST] or not has_room(caller, acked):
            return TAKEN
        if words[header.ROUND] != NO_ROUND:
            found = take_part(
                lib, cells, status, frame, me, epoch, parts, rows_of, callers, lists, receive_buffer, asleep, sleepers,
                push_log, links, changes, sends, changed, memory,
            )  # fmt: skip
            if found != DONE:
                return found
            cells[SERVED] += 1
            left, most = tries, most - 1
            continue
        # The rows.
        is_known, listed, known, count, first, where = named_rows(part, frame, lists, shard, namespace, 1)
        if not is_known:
            return TAKEN
        push = frame[header.COMMAND] == _PUSH
        program = push and part[PUSH] == PROGRAM
        width: Any = np.int64(small[header.WIDTH]) if push else part[WIDTH]
        nbytes = count * width * bytes_of(part[PUSHED_TYPE] if push else part[DTYPE])
        # Of the request: its keys and values follow the frame, or are in it. Of the answer: its values do.
        key_bytes, value_bytes = 8 * count if listed else 0, nbytes if push else 0
        payload = key_bytes + value_bytes
        follow, apart = payload > INLINE, not push and nbytes > INLINE
        if follow != ((frame[header.FLAGS] & DETACHED) != 0):
            return TAKEN
        if size != HEADER_BYTES + (0 if follow else payload):
            return TAKEN
        # The receive buffer holds the keys, the values, the slots of the keys, and a copy of the values for an update.
        places = -(-payload // 8) * 8 if follow else 0
        spare = places + (4 * count if listed or (push and part[PUSH] > ASSIGN) else 0)
        spare += -spare % 8
        wanted = spare + (nbytes if program else 0)
        if wanted > len(receive_buffer):
            cells[WANTED] = wanted
            return TAKEN
        # Buffers for the answer, and for the values of a push.
        out = find_slot(lib, cells, status, slots)
        if out < 0:
            return TAKEN
        buffer, following, last = -1, links[shard, FOLLOWING] - 1, links[shard, LAST_CHANGE]
        if push:
            if part[PUSH] == NO_PUSH or part[AGGREGATES] != 0 or not fits(part, frame, count):
                return TAKEN
        else:
            if part[PULL] == 0 or frame[header.DTYPE] != NO_VALUES:
                return TAKEN
            written = False
            if (
                apart
                and where == 0
                and not listed
                and (frame[header.FLAGS] & WRITE_THERE) != 0
                and pids[origin] != 0
                and last == 0
            ):
                values = part[VALUES] + first * width * bytes_of(part[DTYPE])
                written = _write(lib, cells, pids[origin], values, words[header.ROWS], nbytes)
                if not written:
                    pids[origin] = 0
            if apart and not written:
                for each in range(len(buffers)):
                    if buffers[each, 3] >= nbytes and is_free(lib, cells, status, buffers, each):
                        buffer = each
                        break
                if buffer < 0:
                    cells[WANTED] = nbytes
                    return TAKEN
        # Of the change that is sent on: the keys of a run of dense rows are a range, and a known list is only named.
        change, change_keys, room, named, forwarded = -1, 0, 0, False, False
        if push and following >= 0:
            run = part[ROWS] > 0 and where == 0 and not listed
            named = known >= 0 and not run and links[shard, KEEPS_LISTS] != 0
            forwarded = named and lists[known, FORWARDED] != 0
            change_keys = 0 if run or forwarded else 8 * count
            room = change_keys + nbytes if change_keys + nbytes > INLINE else 0
            change = find_row(lib, cells, status, changes, sends, room)
            if change < 0:
                cells[WANTED_ROOM] = room
                return TAKEN
        # All conditions hold but for listed keys: receive the rest, and apply the request.
        head = frames[out]
        content: Any = np.int64(frame.ctypes.data) + HEADER_BYTES
        target: Any = content
        if follow:
            content = np.int64(receive_buffer.ctypes.data)
            if change >= 0:
                # Where they are sent on from.
                content = changes[change, ROOM] + change_keys - key_bytes
            found = receive_bodies(lib, cells, status, content, key_bytes, value_bytes)
            if found != TAKEN:
                cells[LATE_ROW] = change + 1
                return found
        there: Any = np.int64(receive_buffer.ctypes.data) + places
        done = True
        if listed:
            done, first, run = find_slots(part, at(content, count, _UINT8), at(there, count, _INT4), push)
            where = 0 if run else there
            if done and is_signed(words):
                # Python keeps the keys of a list until all have slots.
                done = run or push or has_all(at(there, count, _INT4))
        if done and program:
            rows = content + key_bytes
            if change >= 0:
                # It may overwrite the rows, which are sent on.
                rows = np.int64(receive_buffer.ctypes.data) + spare
                call(lib[MEMCPY], (rows, content + key_bytes, nbytes))
            done = call_update(part, cells, rows, count, width, first, where, False)
        if not done:
            if follow and change >= 0:
                call(lib[MEMCPY], (np.int64(receive_buffer.ctypes.data), content, payload))
            return TAKEN_WITH_BODIES if follow else TAKEN
        if listed:
            learn(cells, words, shard, namespace, first, count, where)
        if push and change >= 0:
            source = content + key_bytes
            number = parts[shard, 0, VERSION] + 1
            body = changed[change]
            target = np.int64(body.ctypes.data) + HEADER_BYTES + CALLERS_BYTES
            if room > 0:
                target = changes[change, ROOM]
            if not follow:
                call(lib[MEMCPY], (target + change_keys - key_bytes, content, payload))
            if change_keys > 0 and not listed:
                list_keys(part, count, first, where, target)
            begin, end = words[header.FIRST], words[header.LAST]
            if change_keys == 0 and not forwarded:
                begin, end = part[BEGIN] + first, part[BEGIN] + first + count - 1
            write_change(
                body, frame, _PUSH, 1, me, epoch, number, count if change_keys > 0 else -1, count, begin, end, room > 0,
                named,
            )  # fmt: skip
            write_caller(body, 0, frame)
            send_change(
                lib,
                cells,
                changes,
                sends,
                body,
                change,
                shard,
                number,
                1,
                change_keys,
                nbytes,
                room > 0,
                following,
            )
            wake_later(cells, asleep, sleepers, following)
            links[shard, LAST_CHANGE] = number
            if named:
                lists[known, FORWARDED] = 1
            if not program:
                apply_push(lib, part, source, count, first, where, there)
            write_answer(answers[change], frame, 0, -1, 0, me, epoch, False)
        elif push:
            if not program:
                apply_push(lib, part, content + key_bytes, count, first, where, there)
            write_answer(head, frame, 0, -1, 0, me, epoch, False)
            post(lib, cells, slots, out, head.ctypes.data, HEADER_BYTES, cells[FROM], FRAME)
        else:
            target = np.int64(head.ctypes.data) + HEADER_BYTES
            if buffer >= 0:
                target = buffers[buffer, 2]
            if not written:
                move_rows(lib, part[DTYPE], part[VALUES], target, count, first, where, width, COPY)
            write_answer(head, frame, part[DTYPE], count, width, me, epoch, apart)
            head.view(np.int64)[header.ROUND] = parts[shard, 0, VERSION]
            if written:
                head[header.FLAGS] = WRITTEN_THERE
                cells[SENT] += nbytes
            total = HEADER_BYTES + (0 if apart else nbytes)
            if last != 0:
                slots[out, 0] = HELD
                if buffer >= 0:
                    buffers[buffer, 0] = HELD
                hold(held, shard, parts[shard, 0, VERSION], out, total, buffer, nbytes, cells[FROM])
            else:
                post(lib, cells, slots, out, head.ctypes.data, total, cells[FROM], FRAME)
                if buffer >= 0:
                    post(lib, cells, buffers, buffer, target, nbytes, cells[FROM], BODY)
        cells[RECEIVED] += size + (payload if follow else 0)
        cells[SERVED] += 1
        if last == 0 and change < 0:
            wake_later(cells, asleep, sleepers, cells[FROM])
        if push:
            count_change(parts, shard, namespace)
            record(push_log, shard, origin, time, _PUSH, 1)
        note(caller, time, acked, push)
        parts[shard, 0, NEWS] = 1
        left, most = tries, most - 1
    return NOTHING
