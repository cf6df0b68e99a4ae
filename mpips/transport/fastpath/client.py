"""Client fast path: sends and receives dependency-free pushes and pulls without `Message` objects.

A push or pull that has no dependencies is a header for each shard, and rows that are sent without a copy; so are its
keys, unless a range or a signature names them. `ask` sends all its parts and records where the values of the answers
go. `receive` receives a message; if it answers such a part, its values go directly to that place. All other messages go
to Python. Tasks are the same on both paths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.transport import header, request_parts
from mpips.transport.buffer_pool import LEAST
from mpips.transport.fastpath.rows import bytes_of
from mpips.transport.header import (
    DETACHED,
    HEADER_BYTES,
    LISTED,
    MAGIC,
    NO_VALUES,
    WRITE_THERE,
    WRITTEN_THERE,
)
from mpips.transport.message import INLINE, NO_ROUND, Command, Kind
from mpips.transport.mpi.abi import at, call, table
from mpips.transport.mpi.kernels import (
    BODY,
    BROKEN,
    FRAME,
    FRAME_ROOM,
    LATE_BODY,
    NOTHING,
    POLLS_BEFORE_YIELD,
    TAKEN,
    URGENT_PERIOD,
    complete,
    is_free,
    poll,
    post,
    post_receive,
)
from mpips.transport.mpi.memory import (
    FRAME_AT,
    FROM,
    MEMCPY,
    MEMORY,
    NEXT,
    RECEIVED,
    REQUEST,
    SECOND,
    SIZE,
)

ANSWERED = 6
"""A result of `receive`, in addition to those in `mpips.transport.mpi.kernels`: the request in a slot is answered."""
FRAME_BYTES = HEADER_BYTES + INLINE

ASKED, HEADS, LISTS, TAILS, FRAMES, RANK, PIDS = range(MEMORY, MEMORY + 7)
"""In the memory of the client fast path: the addresses of the tables of `FastPathClient`, this rank, and the address of
i8[ranks], the processes that may write answers into this one's memory (0: it may not)."""
CLIENT_MEMORY = PIDS + 1
WAITS, TIME, SHARD, PLACE, BYTES, DTYPE, DEST, OPEN = range(8)
"""Columns of `asked`: state of the slot; time and shard of the request; address, bytes (0: none) and wire type of the
answer's values; rank that answers; whether that rank may write the values directly into this process."""
SLOTS = 64
DUE, COMING = 1, 2
"""Values of WAITS: an answer is due; its values are being received, and it is handled as a message."""

_MAGIC = int.from_bytes(MAGIC, "little")
_REQUEST, _REPLY, _PULL = int(Kind.REQUEST), int(Kind.REPLY), int(Command.PULL)
_BYTE1, _INT8 = np.uint8(0), np.int64(0)


@kernel()
def _find(memory: Any, asked: Any, heads: Any, lists: Any, tails: Any) -> Any:
    """Find a slot without a due answer or a send in progress; -1 if there is none."""
    slot = memory[NEXT]
    for _ in range(SLOTS):
        slot = (slot + 1) % SLOTS
        if (
            asked[slot, WAITS] == 0
            and is_free(memory, heads, slot)
            and is_free(memory, lists, slot)
            and is_free(memory, tails, slot)
        ):
            return slot
    return -1


@kernel("i8(i8[::1], i8[:,::1], u8[::1], u1[::1], u1[::1], i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, i8, b1)")
def ask(
    memory: Any,
    parts: Any,
    keys: Any,
    rows: Any,
    out: Any,
    epoch: int,
    time: int,
    acked: int,
    round_: int,
    command: int,
    origin: int,
    namespace: int,
    kind: int,
    width: int,
    answer: int,
    size: int,
    fresh: bool,
) -> Any:
    """Send the parts of a request, and write down their slots; return the first one. See `Van.ask`.

    Calls with 20 arguments would each leave a tuple (`tests/test_tuples.py`).
    """
    asked = table(memory[ASKED], SLOTS, OPEN + 1, _INT8)
    heads = table(memory[HEADS], SLOTS, 3, _INT8)
    lists = table(memory[LISTS], SLOTS, 3, _INT8)
    tails = table(memory[TAILS], SLOTS, 3, _INT8)
    pushed = width * bytes_of(kind) if command != _PULL else 0
    for number in range(len(parts)):
        part = parts[number]
        begin, dest = part[request_parts.BEGIN], part[request_parts.DEST]
        count = part[request_parts.END] - begin
        if count == 0 and round_ == NO_ROUND:
            part[request_parts.SLOT] = request_parts.SKIPPED
            continue
        slot = _find(memory, asked, heads, lists, tails)
        part[request_parts.SLOT] = slot
        if slot < 0:
            continue
        memory[NEXT] = slot
        there = memory[FRAMES] + FRAME_BYTES * slot
        frame = at(there, FRAME_BYTES, _BYTE1)
        listed: Any = np.int64(keys.ctypes.data) + 8 * begin
        address: Any = np.int64(rows.ctypes.data) + begin * pushed
        place: Any = np.int64(out.ctypes.data) + begin * size
        key_bytes = 8 * count if part[request_parts.LISTS] != 0 else 0
        value_bytes = count * pushed
        apart = key_bytes + value_bytes > INLINE
        may_write = fresh and count * size >= LEAST and at(memory[PIDS] + 8 * dest, 1, _INT8)[0] != 0
        asked[slot, WAITS] = DUE
        asked[slot, TIME] = time
        asked[slot, SHARD] = part[request_parts.SHARD]
        asked[slot, DEST] = dest
        asked[slot, PLACE] = place
        asked[slot, BYTES] = count * size
        asked[slot, DTYPE] = answer
        asked[slot, OPEN] = 1 if may_write else 0
        # The header.
        small, words = frame.view(np.int32), frame.view(np.int64)
        for i in range(HEADER_BYTES // 8):
            words[i] = 0
        small[header.START] = _MAGIC
        frame[header.KIND] = _REQUEST
        frame[header.COMMAND] = command
        frame[header.FLAGS] = (
            (LISTED if part[request_parts.LISTS] != 0 else 0)
            | (DETACHED if apart else 0)
            | (WRITE_THERE if may_write else 0)
        )
        small[header.SENDER] = memory[RANK]
        small[header.ORIGIN] = origin
        small[header.SHARD] = part[request_parts.SHARD]
        small[header.EPOCH] = epoch
        small[header.NAMESPACE] = namespace
        words[header.ACKED], words[header.TIME], words[header.ROUND] = acked, time, round_
        words[header.FIRST], words[header.LAST] = part[request_parts.FIRST], part[request_parts.LAST]
        words[header.KEYS] = key_bytes >> 3
        words[header.SIGNATURE] = part[request_parts.LOW]
        words[header.SIGNATURE + 1] = part[request_parts.HIGH]
        frame[header.DTYPE] = NO_VALUES
        if may_write:
            words[header.ROWS] = place
        if command != _PULL:
            words[header.ROWS] = count
            frame[header.DTYPE] = kind
            small[header.WIDTH] = width
        total = HEADER_BYTES
        if not apart:
            call(memory[MEMCPY], (there + HEADER_BYTES, listed, key_bytes))
            call(memory[MEMCPY], (there + HEADER_BYTES + key_bytes, address, value_bytes))
            total += key_bytes + value_bytes
        post(memory, heads, slot, there, total, dest, FRAME)
        if apart and key_bytes > 0:
            post(memory, lists, slot, listed, key_bytes, dest, BODY)
        if apart and value_bytes > 0:
            post(memory, tails, slot, address, value_bytes, dest, BODY)
    return parts[0, request_parts.SLOT]


@kernel()
def _matches(frame: Any, size: int, source: int, asked: Any) -> Any:
    """Find the slot of the request that a frame answers, if the answer has only values; -1 if there is none."""
    small = frame.view(np.int32)
    words = frame.view(np.int64)
    if (
        size < HEADER_BYTES
        or small[header.START] != _MAGIC
        or frame[header.KIND] != _REPLY
        or small[header.SHARD] < 0
        or small[header.META] != 0
        or small[header.AFTER] != 0
        or words[header.ACKED] != 0
        or words[header.KEYS] != 0
    ):
        return -1
    for slot in range(SLOTS):
        if (
            asked[slot, WAITS] == DUE
            and asked[slot, TIME] == words[header.TIME]
            and asked[slot, SHARD] == small[header.SHARD]
        ):
            break
    else:
        return -1
    if asked[slot, DEST] != source:
        return -1
    wanted = asked[slot, BYTES]
    if wanted == 0:
        empty = frame[header.DTYPE] == NO_VALUES or words[header.ROWS] == 0
        return slot if empty and size == HEADER_BYTES else -1
    if frame[header.DTYPE] != asked[slot, DTYPE]:
        return -1
    each = bytes_of(frame[header.DTYPE])
    rows, width = words[header.ROWS], np.int64(small[header.WIDTH])
    if rows <= 0 or width <= 0 or rows > wanted or width > wanted or rows * width * each != wanted:
        return -1
    # The values are in the frame, follow it, or were written into this process's memory.
    if (frame[header.FLAGS] & WRITTEN_THERE) != 0:
        return slot if asked[slot, OPEN] != 0 and size == HEADER_BYTES else -1
    return slot if size == HEADER_BYTES + (0 if (frame[header.FLAGS] & DETACHED) != 0 else wanted) else -1


@kernel("i8(i8[::1], i8)")
def receive(memory: Any, polls: int) -> Any:
    """Receive one message, with `polls` polls; complete the request in a slot if the message answers it.

    Returns one of the results of `mpips.transport.mpi.kernels`, or ANSWERED + 256 * slot.
    """
    asked = table(memory[ASKED], SLOTS, OPEN + 1, _INT8)
    frame = at(memory[FRAME_AT], FRAME_ROOM, _BYTE1)
    found = NOTHING
    for turn in range(polls):
        found = poll(memory, turn % URGENT_PERIOD == 0, turn >= POLLS_BEFORE_YIELD)
        if found != NOTHING:
            break
    if found != TAKEN:
        return found
    slot = _matches(frame, memory[SIZE], memory[FROM], asked)
    if slot < 0:
        return TAKEN
    memory[NEXT] = slot
    nbytes = asked[slot, BYTES]
    if (frame[header.FLAGS] & WRITTEN_THERE) != 0:
        memory[RECEIVED] += nbytes
    elif nbytes > 0 and (frame[header.FLAGS] & DETACHED) != 0:
        memory[SECOND] = 0
        if not post_receive(memory, REQUEST, asked[slot, PLACE], nbytes):
            return BROKEN
        done = complete(memory, REQUEST)
        if done <= 0:
            return LATE_BODY if done == 0 else BROKEN
        memory[RECEIVED] += nbytes
    elif nbytes > 0:
        call(memory[MEMCPY], (asked[slot, PLACE], memory[FRAME_AT] + HEADER_BYTES, nbytes))
    memory[RECEIVED] += memory[SIZE]
    asked[slot, WAITS] = 0
    return ANSWERED + 256 * slot


@kernel("i8(u1[::1], i8, i8, i8[:,::1])")
def take_answer(frame: Any, size: int, source: int, asked: Any) -> Any:
    """Return and free the slot of the request that a frame answers, the values being in place already; -1 if none."""
    slot = _matches(frame, size, source, asked)
    if slot >= 0:
        asked[slot, WAITS] = 0
    return slot


class FastPathClient:
    """The unanswered requests of the client fast path, and their sends in progress."""

    def __init__(self) -> None:
        self.asked = np.zeros((SLOTS, OPEN + 1), np.int64)
        self.heads = np.zeros((SLOTS, 3), np.int64)
        self.lists = np.zeros((SLOTS, 3), np.int64)
        self.tails = np.zeros((SLOTS, 3), np.int64)
        # Not cleared: a frame is read as far as it was written.
        self.frames = np.empty((SLOTS, FRAME_BYTES), np.uint8)
        self.sent: list[object] = [None] * SLOTS
        """By slot: the arrays that are sent, kept alive until the slot is used again."""
        self.out: list[NDArray[Any] | None] = [None] * SLOTS
        """By slot: the array that is received into, kept alive until then."""
        self._lost: list[NDArray[Any] | None] = []

    def withdraw(self, slot: int) -> None:
        """Free a slot: an answer to its request is then handled as a message."""
        due, self.asked[slot, WAITS] = self.asked[slot, WAITS] == DUE, 0
        # The server may still write into this array, so it is never freed.
        if due and self.asked[slot, OPEN]:
            self._lost.append(self.out[slot])
