"""Client fast path: sends and receives dependency-free pushes and pulls without `Message` objects.

A push or pull that has no dependencies is a prepared header, in which a few fields change, and rows that are sent
without a copy; so are its keys, unless a range or a signature names them. `ask` sends it and records where the values
of the answer go. `receive` receives a message; if it answers such a request, its values go directly to that place. All
other messages go to Python. Tasks are the same on both paths.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.header import (
    DETACHED,
    HEADER_BYTES,
    LISTED,
    MAGIC,
    NO_VALUES,
    WRITE_THERE,
    WRITTEN_THERE,
)
from mpips.transport.message import INLINE, Kind
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

ASKED, HEADS, LISTS, TAILS, FRAMES = range(MEMORY, MEMORY + 5)
"""Addresses in the memory of the client fast path: of the tables of `FastPathClient`."""
CLIENT_MEMORY = FRAMES + 1
WAITS, TIME, SHARD, PLACE, BYTES, DTYPE, DEST, OPEN = range(8)
"""Columns of `asked`: state of the slot; time and shard of the request; address, bytes (0: none) and wire type of the
answer's values; rank that answers; whether that rank may write the values directly into this process."""
SLOTS = 64
DUE, COMING = 1, 2
"""Values of WAITS: an answer is due; its values are being received, and it is handled as a message."""

_MAGIC = int.from_bytes(MAGIC, "little")
_REPLY = int(Kind.REPLY)
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


@kernel("i8(i8[::1], i8, i8, i8, i8, i8, u1[::1], b1, i8, i8, u1[::1], i8, i8, i8, b1, u8[::1], i8, i8, i8)")
def ask(
    memory: Any,
    head: int,
    time: int,
    acked: int,
    epoch: int,
    dest: int,
    rows: Any,
    pushes: bool,
    first: int,
    nbytes: int,
    out: Any,
    out_first: int,
    out_bytes: int,
    kind: int,
    may_write: bool,
    keys: Any,
    begin: int,
    count: int,
    round_: int,
) -> Any:
    """Send a request; return its slot, -1 if none is free.

    A push sends `nbytes` of `rows` from byte `first` on; a pull receives its answer, of the wire type `kind`, in `out`,
    `out_bytes` (0: nothing) from `out_first` on, which the server may write into this process's memory if `may_write`.
    `head` is the address of the prepared header. The request lists `count` of `keys` from `begin` on, unless there are
    none. Calls with 20 arguments would each leave a tuple (`tests/test_tuples.py`).
    """
    asked = table(memory[ASKED], SLOTS, OPEN + 1, _INT8)
    heads = table(memory[HEADS], SLOTS, 3, _INT8)
    lists = table(memory[LISTS], SLOTS, 3, _INT8)
    tails = table(memory[TAILS], SLOTS, 3, _INT8)
    slot = _find(memory, asked, heads, lists, tails)
    if slot < 0:
        return -1
    memory[NEXT] = slot
    there = memory[FRAMES] + FRAME_BYTES * slot
    frame = at(there, FRAME_BYTES, _BYTE1)
    call(memory[MEMCPY], (there, head, HEADER_BYTES))
    small, words = frame.view(np.int32), frame.view(np.int64)
    small[header.EPOCH] = epoch
    words[header.ACKED] = acked
    words[header.TIME], words[header.ROUND] = time, round_
    address: Any = np.int64(rows.ctypes.data) + first
    place: Any = np.int64(out.ctypes.data) + out_first
    asked[slot, WAITS] = DUE
    asked[slot, TIME] = time
    asked[slot, SHARD] = small[header.SHARD]
    asked[slot, DEST] = dest
    asked[slot, PLACE] = place
    asked[slot, BYTES] = out_bytes
    asked[slot, DTYPE] = kind
    asked[slot, OPEN] = 1 if may_write else 0
    if may_write:
        frame[header.FLAGS] |= WRITE_THERE
        words[header.ROWS] = place
    size = HEADER_BYTES
    listed: Any = np.int64(keys.ctypes.data) + 8 * begin
    key_bytes, value_bytes = 8 * count, nbytes if pushes else 0
    apart = key_bytes + value_bytes > INLINE
    if count > 0:
        frame[header.FLAGS] |= LISTED | (DETACHED if apart else 0)
        words[header.KEYS] = count
        if pushes:
            words[header.ROWS] = count
    if not apart:
        call(memory[MEMCPY], (there + HEADER_BYTES, listed, key_bytes))
        call(memory[MEMCPY], (there + HEADER_BYTES + key_bytes, address, value_bytes))
        size += key_bytes + value_bytes
    post(memory, heads, slot, there, size, dest, FRAME)
    if apart and count > 0:
        post(memory, lists, slot, listed, key_bytes, dest, BODY)
    if apart and value_bytes > 0:
        post(memory, tails, slot, address, value_bytes, dest, BODY)
    return slot


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
    each = 4 if frame[header.DTYPE] == 0 or frame[header.DTYPE] == 2 else 8
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
        self.rows: list[NDArray[Any] | None] = [None] * SLOTS
        """By slot: the array that is sent, kept alive until the slot is used again."""
        self.out: list[NDArray[Any] | None] = [None] * SLOTS
        """By slot: the array that is received into, kept alive likewise."""
        self.keys: list[NDArray[np.uint64] | None] = [None] * SLOTS
        """By slot: the array of the keys that are sent, kept alive likewise."""
        self.writable = [False] * SLOTS
        """By slot: whether the server may write the answer into this process's memory."""
        self._lost: list[NDArray[Any] | None] = []

    def withdraw(self, slot: int) -> None:
        """Free a slot: an answer to its request is then handled as a message."""
        due, self.asked[slot, WAITS] = self.asked[slot, WAITS] == DUE, 0
        # The server may still write into this array, so it is never freed.
        if due and self.writable[slot]:
            self._lost.append(self.out[slot])
