"""Kernels that send and receive by MPI: they probe for frames, receive them, and post sends.

No call blocks: a transfer that is not complete after some milliseconds is returned to the van unfinished. MPI requests
are kept in tables of rows [FREE, BUSY or LOST, handle, ..., destination].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport.header import HEADER_BYTES
from mpips.transport.message import INLINE
from mpips.transport.mpi.abi import at, call
from mpips.transport.mpi.memory import (
    ANY,
    BYTE,
    COMM,
    ERROR,
    FLAG,
    FRAME_AT,
    FROM,
    GET_COUNT,
    HERE,
    IGNORED_AT,
    IMPROBE,
    IMRECV,
    IRECV,
    ISEND,
    LATE_AT,
    LATE_ROW,
    MESSAGE,
    POSTED,
    REQUEST,
    SECOND,
    SENT,
    SIZE,
    SOURCE,
    STATUS,
    TEST,
    YIELD,
    YIELDS,
)

FRAME, BODY, URGENT = 1, 2, 3
"""Tags: a frame; keys and values that follow a frame; an urgent frame, which overtakes others and has no buffers."""

NOTHING, TAKEN, TOO_LARGE, LATE, LATE_BODY, BROKEN, TAKEN_WITH_BODIES, DONE, PART, DROPPED = range(10)
"""Results of a fast path: no message; a frame for Python; a frame larger than the buffer; an incomplete frame; a frame
with incomplete keys or values; an MPI error; a frame for Python, whose keys and values are in the receive buffer; a
message that was handled; a part of a round for Python, in the memory of rounds; a frame from a rank that is ignored."""

POLLS_BEFORE_YIELD = 4
"""Polls after which a rank yields before each further poll."""
URGENT_PERIOD = 8
"""Polls from one that also probes for urgent frames to the next."""
FREE, BUSY, LOST, HELD = range(4)
"""States of a send slot; LOST: a send to an excluded rank, whose completion is not waited for; HELD: not sent yet."""
TRIES = 20_000
"""Tests of a transfer before it is returned as late: some milliseconds."""
FRAME_ROOM = HEADER_BYTES + INLINE + 4096
_INT4, _UINT1 = np.int32(0), np.uint8(0)


# --- receiving ---------------------------------------------------------------------------------------


@kernel()
def complete(memory: Any, cell: int) -> int:
    """Test the request in a cell until it is complete: 1; 0 if it takes too long; -1 on an error."""
    place, flag = memory[HERE] + 8 * cell, memory[HERE] + 8 * FLAG
    for _ in range(TRIES):
        memory[FLAG] = 0
        error = call(memory[TEST], (place, flag, memory[STATUS]))
        if error != 0:
            memory[ERROR] = error
            return -1
        if memory[FLAG] != 0:
            return 1
    return 0


@kernel()
def post_receive(memory: Any, cell: int, address: int, size: int) -> bool:
    """Start to receive keys or values that follow the frame, with the request in a cell; return whether MPI could."""
    memory[cell] = 0
    place = memory[HERE] + 8 * cell
    error = call(memory[IRECV], (address, size, memory[BYTE], memory[FROM], BODY, memory[COMM], place))
    if error != 0:
        memory[ERROR] = error
    return bool(error == 0)


@kernel()
def receive_bodies(memory: Any, place: int, key_bytes: int, value_bytes: int) -> int:
    """Receive the keys and values that follow a frame, one after the other: TAKEN, LATE_BODY or BROKEN."""
    memory[REQUEST] = memory[SECOND] = 0
    memory[LATE_ROW], memory[LATE_AT] = 0, place
    if key_bytes > 0 and not post_receive(memory, REQUEST, place, key_bytes):
        return BROKEN
    if value_bytes > 0 and not post_receive(memory, SECOND, place + key_bytes, value_bytes):
        return BROKEN
    done = complete(memory, REQUEST) if key_bytes > 0 else 1
    if done > 0 and value_bytes > 0:
        done = complete(memory, SECOND)
    return TAKEN if done > 0 else LATE_BODY if done == 0 else BROKEN


@kernel()
def _probe(memory: Any, given: Any) -> Any:
    """Probe for a frame, and keep Open MPI from yielding if there is none, as it does where ranks outnumber cores."""
    if memory[YIELDS] == 0:
        return call(memory[IMPROBE], given)
    yields = at(memory[YIELDS], 1, _UINT1)
    before = yields[0]
    yields[0] = 0
    error = call(memory[IMPROBE], given)
    yields[0] = before
    return error


@kernel()
def take(memory: Any, tag: int) -> int:
    """Receive the next frame of a tag from any source, if there is one."""
    base, status = memory[HERE], memory[STATUS]
    memory[FLAG] = 0
    memory[MESSAGE] = 0
    given = (memory[ANY], tag, memory[COMM], base + 8 * FLAG, base + 8 * MESSAGE, status)
    error = _probe(memory, given)
    if error != 0:
        memory[ERROR] = error
        memory[FROM] = -1
        return BROKEN
    if memory[FLAG] == 0:
        return NOTHING
    memory[SIZE] = 0
    call(memory[GET_COUNT], (status, memory[BYTE], base + 8 * SIZE))
    memory[FROM] = at(status + memory[SOURCE], 1, _INT4)[0]
    size = memory[SIZE]
    if size > FRAME_ROOM:
        return TOO_LARGE
    memory[REQUEST] = 0
    place = memory[FRAME_AT]
    error = call(memory[IMRECV], (place, size, memory[BYTE], base + 8 * MESSAGE, base + 8 * REQUEST))
    if error != 0:
        memory[ERROR] = error
        return BROKEN
    done = complete(memory, REQUEST)
    # Python drops its frames without the keys and values that follow them. Those of another frame would be received.
    if (
        done > 0
        and memory[IGNORED_AT] != 0
        and at(memory[IGNORED_AT], memory[FROM] + 1, _UINT1)[memory[FROM]] != 0
    ):
        return DROPPED
    return TAKEN if done > 0 else LATE if done == 0 else BROKEN


@kernel()
def poll(memory: Any, urgent: bool, yields: bool) -> int:
    """Receive the next frame from any source, first `urgent` ones; if there is none, yield if `yields`."""
    found = NOTHING
    if urgent:
        found = take(memory, URGENT)
    if found == NOTHING:
        found = take(memory, FRAME)
    if found == NOTHING and yields:
        call(memory[YIELD], ())
    return found


# --- sending -----------------------------------------------------------------------------------------


@kernel()
def is_free(memory: Any, handles: Any, row: int) -> bool:
    """Return whether a send slot is free. See the module for `handles`."""
    if handles[row, 0] == FREE:
        return True
    if handles[row, 0] == HELD:
        return False
    memory[FLAG] = 0
    place: Any = np.int64(handles.ctypes.data) + 8 * (row * handles.shape[1] + 1)
    error = call(memory[TEST], (place, memory[HERE] + 8 * FLAG, memory[STATUS]))
    if error != 0 or memory[FLAG] != 0:
        handles[row, 0] = FREE
        return True
    return False


@kernel()
def post(memory: Any, handles: Any, row: int, address: int, size: int, dest: int, tag: int) -> None:
    """Start a send from an address; the bytes must not change before `is_free`."""
    place: Any = np.int64(handles.ctypes.data) + 8 * (row * handles.shape[1] + 1)
    handles[row, 0] = BUSY
    handles[row, 1] = 0
    handles[row, handles.shape[1] - 1] = dest
    error = call(memory[ISEND], (address, size, memory[BYTE], dest, tag, memory[COMM], place))
    if error != 0:
        handles[row, 0] = FREE
        memory[ERROR] = error
    memory[SENT] += size
    memory[POSTED] += tag != BODY


@kernel("i8(i8[::1], i8[:,::1])")
def unsent(memory: Any, handles: Any) -> int:
    """Count the sends in progress of a table, without those to lost ranks."""
    count = 0
    for row in range(len(handles)):
        if not is_free(memory, handles, row) and handles[row, 0] == BUSY:
            count += 1
    return count
