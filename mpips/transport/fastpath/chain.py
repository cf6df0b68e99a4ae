"""Server fast path: pushes to shards with copies (chain replication; paper, section 4.4).

    primary      sends a change on; applies it; answers once it is acknowledged
    member       applies it; sends it on; acknowledges it once it is acknowledged
    last member  applies it; acknowledges

The messages of chains that arrive are handled in `mpips.transport.fastpath.copies`. What is unacknowledged is in
arrays that Python can take over: see `mpips.transport.fastpath.unacknowledged`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath import unacknowledged
from mpips.transport.fastpath.callers import wake_later
from mpips.transport.fastpath.headers import write_change
from mpips.transport.fastpath.table import (
    BEGIN,
    CHANGES,
    KNOWN,
    KNOWN_ROOM,
    LOG_AT,
    LOG_ROOM,
    NEWS,
    RECEIVE_ROOM,
    ROWS,
    SLOTS_OUT,
    VERSION,
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
    IN_ROUND,
    KEEPS_LISTS,
    KEY_BYTES,
    LARGE,
    LAST_CHANGE,
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
from mpips.transport.fastpath.views import (
    change_sends_of,
    changes_of,
    frame_of_change,
    head_at,
    held_of,
    link_of,
    lists_of,
    part_of,
    slots_of,
)
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import FORWARDED
from mpips.transport.message import INLINE
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.kernels import BODY, FRAME, is_free, post
from mpips.transport.mpi.memory import FROM, NEXT, WANTED, WANTED_ROOM

_INT4, _INT8, _UINT8 = np.int32(0), np.int64(0), np.uint64(0)


# --- at those with a next member --------------------------------------------------------------------------------------


@kernel()
def _is_idle(memory: Any, sends: Any, row: int) -> bool:
    """Return whether no send of a row of changes is in progress."""
    for i in range(SENDS):  # noqa: SIM110 (a kernel)
        if not is_free(memory, sends, SENDS * row + i):
            return False
    return True


@kernel()
def _find_row(memory: Any, room: int) -> int:
    """Find a free row of changes, with memory for `room` bytes that follow the frame (0: none); -1 if there is none."""
    changes, sends = changes_of(memory), change_sends_of(memory)
    for row in range(0 if room > 0 else LARGE, LARGE if room > 0 else CHANGES_OUT):
        # The test also frees the row, so that it may get more memory.
        free = changes[row, unacknowledged.SHARD] == 0 and _is_idle(memory, sends, row)
        if free and changes[row, ROOM_BYTES] >= room:
            return row
    return -1


@kernel()
def begin_change(memory: Any, shard: int, known: int, is_range: bool, count: int, nbytes: int) -> Any:
    """Find room for a change of `count` keys and `nbytes` of rows, and decide how it tells the next member its keys.

    A range says them, if it `is_range`; the name of a list does, if that is `known` (its row; -1: none) and was sent
    there before; else the change lists them.

    Return its row in `changes` (-1: there is none, and Python has to send it), the bytes of its keys (-1: it lists
    none), whether it names a list, and whether keys and rows follow its frame.
    """
    named = known >= 0 and not is_range and link_of(memory, shard)[KEEPS_LISTS] != 0
    listed = not is_range and not (named and lists_of(memory)[known, FORWARDED] != 0)
    size = nbytes + (8 * count if listed else 0)
    apart = size > INLINE
    room = size if apart else 0
    row = _find_row(memory, room)
    if row < 0:
        memory[WANTED_ROOM] = room
    return row, 8 * count if listed else -1, named, apart


@kernel()
def body_of_change(memory: Any, row: int, callers: int, apart: bool) -> int:
    """Return the address of the keys and rows of a change."""
    if apart:
        return changes_of(memory)[row, ROOM]  # type: ignore[no-any-return]
    return frame_of_change(memory, row) + HEADER_BYTES + CALLERS_BYTES * callers


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
    memory: Any,
    request: Any,
    row: int,
    command: int,
    callers: int,
    key_bytes: int,
    rows: int,
    value_bytes: int,
    first: int,
    last: int,
    known: int,
    named: bool,
    apart: bool,
) -> None:
    """Send the next change of a shard to the next member of its chain: `request`, or the round of it.

    Its callers, keys and rows are in its row; what `begin_change` has returned says how. `first` and `last` are the
    keys of its range.
    """
    shard: Any = np.int64(request.view(np.int32)[header.SHARD])
    link, number = link_of(memory, shard), part_of(memory, shard, 0)[VERSION] + 1
    changes, sends = changes_of(memory), change_sends_of(memory)
    change, dest, frame = changes[row], link[FOLLOWING] - 1, frame_of_change(memory, row)
    keys = key_bytes >> 3 if key_bytes >= 0 else -1
    write_change(
        memory, head_at(frame), request, command, callers, number, keys, rows, first, last, apart, named
    )
    key_bytes = max(key_bytes, 0)
    size = HEADER_BYTES + CALLERS_BYTES * callers + (0 if apart else key_bytes + value_bytes)
    change[unacknowledged.SHARD], change[NUMBER] = shard + 1, number
    change[unacknowledged.SIZE], change[CALLER], change[IN_ROUND] = size, memory[FROM], 0
    change[KEY_BYTES] = key_bytes if apart else 0
    change[VALUE_BYTES] = value_bytes if apart else 0
    post(memory, sends, SENDS * row + SEND_FRAME, frame, size, dest, FRAME)
    if apart:
        if key_bytes > 0:
            post(memory, sends, SENDS * row + SEND_KEYS, change[ROOM], key_bytes, dest, BODY)
        if value_bytes > 0:
            post(memory, sends, SENDS * row + SEND_VALUES, change[ROOM] + key_bytes, value_bytes, dest, BODY)
    wake_later(memory, dest)
    link[LAST_CHANGE] = number
    if named:
        lists_of(memory)[known, FORWARDED] = 1


@kernel()
def hold(
    memory: Any, shard: int, number: int, slot: int, total: int, buffer: int, nbytes: int, dest: int
) -> None:
    """Let an answer to a pull wait until change `number` is acknowledged."""
    held = held_of(memory)
    held[0, 0] += 1
    entry = held[held[0, 0]]
    entry[OF], entry[AFTER], entry[SLOT], entry[TOTAL] = shard, number, slot, total
    entry[BUFFER], entry[BYTES], entry[DEST] = buffer, nbytes, dest


# --- at all ---------------------------------------------------------------------------------------------


@kernel()
def find_slot(memory: Any) -> int:
    """Find a free slot for a message; -1 if there is none."""
    slots = slots_of(memory)
    for _ in range(SLOTS_OUT):
        memory[NEXT] = (memory[NEXT] + 1) % SLOTS_OUT
        if is_free(memory, slots, memory[NEXT]):
            return memory[NEXT]  # type: ignore[no-any-return]
    return -1


@kernel()
def find_room(memory: Any, size: int) -> int:
    """Find a free slot for a message, if the receive buffer has `size` bytes; -1 if not, and Python makes room."""
    if size > memory[RECEIVE_ROOM]:
        memory[WANTED] = size
        return -1
    return find_slot(memory)


@kernel()
def count_change(memory: Any, shard: int, namespace: int) -> None:
    """Count a change that was applied."""
    part_of(memory, shard, namespace)[CHANGES] += 1
    first = part_of(memory, shard, 0)
    first[VERSION] += 1
    first[NEWS] = 1


@kernel()
def record(memory: Any, shard: int, origin: int, time: int, command: int, callers: int) -> None:
    """Record one of the callers of a change, the first one with their number, if the run is recorded."""
    if memory[LOG_ROOM] > 0:
        count = at(memory[LOG_AT], 1, _INT8)
        count[0] += 1
        entry = at(memory[LOG_AT] + 40 * count[0], 5, _INT8)
        entry[0], entry[1], entry[2], entry[3], entry[4] = shard, origin, time, command, callers
