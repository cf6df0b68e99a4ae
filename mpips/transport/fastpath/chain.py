"""Server fast path: pushes to shards with copies (chain replication; paper, section 4.4).

    primary      sends a change on; applies it; answers once it is acknowledged
    last member  applies it; acknowledges

The messages of chains that arrive are handled in `mpips.transport.fastpath.copies`. Where a shard has more members,
or the last member sends a copy to a learner, the members behind the primary are served by Python. What is
unacknowledged is in arrays that Python can take over: see `mpips.transport.fastpath.unacknowledged`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport.fastpath import unacknowledged
from mpips.transport.fastpath.table import BEGIN, CHANGES, KNOWN, KNOWN_ROOM, NEWS, ROWS, SLOTS_OUT, VERSION
from mpips.transport.fastpath.unacknowledged import (
    AFTER,
    BUFFER,
    BYTES,
    CALLER,
    CALLERS_BYTES,
    CHANGES_OUT,
    DEST,
    IN_ROUND,
    KEY_BYTES,
    LARGE,
    NUMBER,
    OF,
    ROOM,
    ROOM_BYTES,
    SEND_FRAME,
    SEND_KEYS,
    SEND_VALUES,
    SENDS,
    SLOT,
    TOTAL,
    VALUE_BYTES,
)
from mpips.transport.header import HEADER_BYTES
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.kernels import BODY, FRAME, FROM, NEXT, is_free, post

_INT4, _UINT8 = np.int32(0), np.uint64(0)


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
def send_change(
    lib: Any,
    cells: Any,
    changes: Any,
    sends: Any,
    head: Any,
    row: int,
    shard: int,
    number: int,
    callers: int,
    key_bytes: int,
    value_bytes: int,
    apart: bool,
    dest: int,
) -> None:
    """Send a change that is written in a row, its keys and values in the frame, or `apart` in the row's memory."""
    size = HEADER_BYTES + CALLERS_BYTES * callers + (0 if apart else key_bytes + value_bytes)
    changes[row, unacknowledged.SHARD], changes[row, NUMBER] = shard + 1, number
    changes[row, unacknowledged.SIZE], changes[row, CALLER], changes[row, IN_ROUND] = size, cells[FROM], 0
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
def count_change(parts: Any, shard: int, namespace: int) -> None:
    """Count a change that was applied."""
    parts[shard, namespace, CHANGES] += 1
    parts[shard, 0, VERSION] += 1
    parts[shard, 0, NEWS] = 1


@kernel()
def record(push_log: Any, shard: int, origin: int, time: int, command: int, callers: int) -> None:
    """Record one of the callers of a change, the first one with their number, if the run is recorded."""
    if len(push_log) > 0:
        push_log[0, 0] += 1
        entry = push_log[push_log[0, 0]]
        entry[0], entry[1], entry[2], entry[3], entry[4] = shard, origin, time, command, callers
