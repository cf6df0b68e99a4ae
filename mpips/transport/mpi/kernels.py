"""Kernels that send and receive by MPI: they probe for frames, receive them, and post sends.

No call blocks: a transfer that is not complete after some milliseconds is returned to the van unfinished. MPI requests
are kept in tables of rows [FREE, BUSY or LOST, handle, ..., destination].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import USED
from mpips.transport.message import INLINE
from mpips.transport.mpi.abi import (
    ANY,
    BYTE,
    COMM,
    GET_COUNT,
    IMPROBE,
    IMRECV,
    IRECV,
    ISEND,
    LIBRARY,
    SOURCE,
    TEST,
    YIELD,
    at,
    call,
)

FRAME, BODY, URGENT = 1, 2, 3
"""Tags: a frame; keys and values that follow a frame; an urgent frame, which overtakes others and has no buffers."""

NOTHING, TAKEN, TOO_LARGE, LATE, LATE_BODY, BROKEN, TAKEN_WITH_BODIES, DONE, PART, DROPPED = range(10)
"""Results of a fast path: no message; a frame for Python; a frame larger than the buffer; an incomplete frame; a frame
with incomplete keys or values; an MPI error; a frame for Python, whose keys and values are in the receive buffer; a
message that was handled; a part of a round for Python, in the memory of rounds; a frame from a rank that is ignored."""

(
    FLAG,
    MESSAGE,
    REQUEST,
    SECOND,
    SIZE,
    FROM,
    ERROR,
    SENT,
    POSTED,
    RECEIVED,
    SERVED,
    NEXT,
    WANTED,
    SLEEPERS,
    WANTED_ROOM,
    WANTED_BLOCK,
    PART_AT,
    LATE_ROW,
    LATE_AT,
    IGNORED_AT,
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    NEW_LIST,
) = range(24)
VECTORS = NEW_LIST + USED
"""Cells of the fast paths' memory, i8[34]: the first five are written by MPI; bytes and frames that were moved, and
requests that were answered; where the search for a free slot begins; the size of a body for which there was no buffer
(0: none); how many of the answered ranks sleep; the size of a change, and of a part of a round, for which there was
no memory (0: none); the row of the part that Python takes; of keys or values that are incomplete, 1 + the row of the
change into whose memory they are received (0: the receive buffer, -1 - n: block n of the rounds), and the address; the
address of u1[ranks], the ranks that are ignored (0: none); address (0: the values), wire type and width of the rows
that an update has answered; the first columns of the row of a list that is to be cached (`mpips.transport.key_cache`;
its COUNT is 0: none); and two pairs of address and size, for system calls."""
CELLS = VECTORS + 4

MEMORY = LIBRARY + CELLS
STATUS, FRAME_AT, ASKED, HEADS, LISTS, TAILS, FRAMES = range(MEMORY, MEMORY + 7)
"""The memory of the client fast path, i8[54]: a library's table, the cells, and the addresses of a status, of the frame
buffer, and of the client's tables."""

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
def complete(lib: Any, cells: Any, status: Any, cell: int) -> int:
    """Test the request in a cell until it is complete: 1; 0 if it takes too long; -1 on an error."""
    base = cells.ctypes.data
    for _ in range(TRIES):
        cells[FLAG] = 0
        error = call(lib[TEST], (base + 8 * cell, base + 8 * FLAG, status.ctypes.data))
        if error != 0:
            cells[ERROR] = error
            return -1
        if cells[FLAG] != 0:
            return 1
    return 0


@kernel()
def post_receive(lib: Any, cells: Any, cell: int, address: int, size: int) -> bool:
    """Start to receive keys or values that follow the frame, with the request in a cell; return whether MPI could."""
    cells[cell] = 0
    place = cells.ctypes.data + 8 * cell
    error = call(lib[IRECV], (address, size, lib[BYTE], cells[FROM], BODY, lib[COMM], place))
    if error != 0:
        cells[ERROR] = error
    return bool(error == 0)


@kernel()
def receive_bodies(lib: Any, cells: Any, status: Any, place: int, key_bytes: int, value_bytes: int) -> int:
    """Receive the keys and values that follow a frame, one after the other: TAKEN, LATE_BODY or BROKEN."""
    cells[REQUEST] = cells[SECOND] = 0
    cells[LATE_ROW], cells[LATE_AT] = 0, place
    if key_bytes > 0 and not post_receive(lib, cells, REQUEST, place, key_bytes):
        return BROKEN
    if value_bytes > 0 and not post_receive(lib, cells, SECOND, place + key_bytes, value_bytes):
        return BROKEN
    done = complete(lib, cells, status, REQUEST) if key_bytes > 0 else 1
    if done > 0 and value_bytes > 0:
        done = complete(lib, cells, status, SECOND)
    return TAKEN if done > 0 else LATE_BODY if done == 0 else BROKEN


@kernel()
def take(lib: Any, cells: Any, status: Any, frame: Any, tag: int) -> int:
    """Receive the next frame of a tag from any source, if there is one."""
    base = cells.ctypes.data
    cells[FLAG] = 0
    cells[MESSAGE] = 0
    where = status.ctypes.data
    error = call(lib[IMPROBE], (lib[ANY], tag, lib[COMM], base + 8 * FLAG, base + 8 * MESSAGE, where))
    if error != 0:
        cells[ERROR] = error
        cells[FROM] = -1
        return BROKEN
    if cells[FLAG] == 0:
        return NOTHING
    cells[SIZE] = 0
    call(lib[GET_COUNT], (where, lib[BYTE], base + 8 * SIZE))
    cells[FROM] = at(where + lib[SOURCE], 1, _INT4)[0]
    size = cells[SIZE]
    if size > len(frame):
        return TOO_LARGE
    cells[REQUEST] = 0
    error = call(lib[IMRECV], (frame.ctypes.data, size, lib[BYTE], base + 8 * MESSAGE, base + 8 * REQUEST))
    if error != 0:
        cells[ERROR] = error
        return BROKEN
    done = complete(lib, cells, status, REQUEST)
    # Python drops its frames without the keys and values that follow them. Those of another frame would be received.
    if (
        done > 0
        and cells[IGNORED_AT] != 0
        and at(cells[IGNORED_AT], cells[FROM] + 1, _UINT1)[cells[FROM]] != 0
    ):
        return DROPPED
    return TAKEN if done > 0 else LATE if done == 0 else BROKEN


@kernel()
def poll(lib: Any, cells: Any, status: Any, frame: Any, urgent: bool, yields: bool) -> int:
    """Receive the next frame from any source, first `urgent` ones; if there is none, yield if `yields`."""
    found = NOTHING
    if urgent:
        found = take(lib, cells, status, frame, URGENT)
    if found == NOTHING:
        found = take(lib, cells, status, frame, FRAME)
    if found == NOTHING and yields:
        call(lib[YIELD], ())
    return found


# --- sending -----------------------------------------------------------------------------------------


@kernel()
def is_free(lib: Any, cells: Any, status: Any, handles: Any, row: int) -> bool:
    """Return whether a send slot is free. See the module for `handles`."""
    if handles[row, 0] == FREE:
        return True
    if handles[row, 0] == HELD:
        return False
    cells[FLAG] = 0
    place = handles.ctypes.data + 8 * (row * handles.shape[1] + 1)
    error = call(lib[TEST], (place, cells.ctypes.data + 8 * FLAG, status.ctypes.data))
    if error != 0 or cells[FLAG] != 0:
        handles[row, 0] = FREE
        return True
    return False


@kernel()
def post(lib: Any, cells: Any, handles: Any, row: int, address: int, size: int, dest: int, tag: int) -> None:
    """Start a send from an address; the bytes must not change before `is_free`."""
    place = handles.ctypes.data + 8 * (row * handles.shape[1] + 1)
    handles[row, 0] = BUSY
    handles[row, 1] = 0
    handles[row, handles.shape[1] - 1] = dest
    error = call(lib[ISEND], (address, size, lib[BYTE], dest, tag, lib[COMM], place))
    if error != 0:
        handles[row, 0] = FREE
        cells[ERROR] = error
    cells[SENT] += size
    cells[POSTED] += tag != BODY


@kernel("i8(i8[::1], i8[::1], u1[::1], i8[:,::1])")
def unsent(lib: Any, cells: Any, status: Any, handles: Any) -> int:
    """Count the sends in progress of a table, without those to lost ranks."""
    count = 0
    for row in range(len(handles)):
        if not is_free(lib, cells, status, handles, row) and handles[row, 0] == BUSY:
            count += 1
    return count
