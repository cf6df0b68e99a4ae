"""Server fast path: receives messages, and answers plain pushes and pulls in compiled code (see
`mpips.transport.fastpath.table`).

    while there is a message: if it is plain: find its rows; apply it; answer; record it; else: return it to Python

No call blocks: a transfer that is not complete after some milliseconds is returned to Python unfinished, and the van
completes it like any slow message.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.callers import has_room
from mpips.transport.fastpath.copies import take_acknowledgement, take_change
from mpips.transport.fastpath.requests import take_pull, take_push
from mpips.transport.fastpath.round_parts import take_part
from mpips.transport.fastpath.rounds import RANKS
from mpips.transport.fastpath.table import (
    EPOCH,
    HIGHEST,
    LOG_AT,
    LOG_ROOM,
    MOST_AT_ONCE,
    NAMESPACES,
    OPEN,
    REQUESTS,
    SHARDS,
)
from mpips.transport.fastpath.views import caller_at, part_of, row_of
from mpips.transport.header import HEADER_BYTES, MAGIC
from mpips.transport.key_cache import COUNT
from mpips.transport.message import NO_ROUND, Command, Kind
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.kernels import (
    DONE,
    FRAME_ROOM,
    NOTHING,
    POLLS_BEFORE_YIELD,
    TAKEN,
    URGENT_PERIOD,
    poll,
)
from mpips.transport.mpi.memory import FRAME_AT, FROM, NEW_LIST, SERVED, SIZE, SLEEPERS

_MAGIC = int.from_bytes(MAGIC, "little")
_REQUEST, _CHAIN = int(Kind.REQUEST), int(Kind.CHAIN)
_PUSH, _PULL, _APPLIED = int(Command.PUSH), int(Command.PULL), int(Command.APPLIED)
_PUSH_PULL = int(Command.PUSH_PULL)
_INT8, _UINT1 = np.int64(0), np.uint8(0)


@kernel()
def _take_of_chain(memory: Any, frame: Any) -> int:
    """Handle a message of a chain, of this epoch; DONE, or a result for Python."""
    command = frame[header.COMMAND]
    if command == _APPLIED:
        return take_acknowledgement(memory, frame)
    if command == _PUSH or command == _PUSH_PULL:
        return take_change(memory, frame)
    return TAKEN


@kernel()
def _take_request(memory: Any, frame: Any) -> int:
    """Handle a request of this epoch, if it is a push or pull without dependencies; DONE, or a result for Python."""
    small, words = frame.view(np.int32), frame.view(np.int64)
    single, command = words[header.ROUND] == NO_ROUND, frame[header.COMMAND]
    # Only parts of rounds are pushed and pulled at once; all of these are pushes.
    if small[header.AFTER] != 0 or (command != _PUSH and command != (_PULL if single else _PUSH_PULL)):
        return TAKEN
    shard: Any = np.int64(small[header.SHARD])
    namespace: Any = np.int64(small[header.NAMESPACE])
    origin: Any = np.int64(small[header.ORIGIN])
    if namespace < 0 or namespace >= memory[NAMESPACES]:
        return TAKEN
    if origin < 0 or origin >= memory[RANKS] or origin != memory[FROM]:
        return TAKEN
    row = row_of(memory, shard, origin)
    if row <= 0 or part_of(memory, shard, namespace)[OPEN] != REQUESTS:
        return TAKEN
    caller = caller_at(memory, row)
    if words[header.TIME] <= caller[HIGHEST] or not has_room(caller, words[header.ACKED]):
        return TAKEN
    if not single:
        return take_part(memory, frame)
    if command == _PUSH:
        return take_push(memory, frame)
    return take_pull(memory, frame)


@kernel("i8(i8[::1], i8, i8)")
def serve(memory: Any, tries: int, epoch: int) -> int:
    """Receive, and answer plain requests, until there is a message for Python, or none in `tries` polls.

    `memory` is that of `FastPathTable`. Returns one of the results of `mpips.transport.mpi.kernels`.
    """
    frame = at(memory[FRAME_AT], FRAME_ROOM, _UINT1)
    small = frame.view(np.int32)
    logged = at(memory[LOG_AT], 1, _INT8)
    left, most, turn = tries, MOST_AT_ONCE, -1
    memory[EPOCH] = epoch
    memory[NEW_LIST + COUNT] = 0
    while left > 0 and most > 0 and (memory[LOG_ROOM] == 0 or logged[0] < MOST_AT_ONCE):
        if memory[NEW_LIST + COUNT] != 0:
            # Python caches it before the next message.
            return NOTHING
        turn += 1
        found = poll(memory, turn % URGENT_PERIOD == 0, tries - left >= POLLS_BEFORE_YIELD)
        if found == NOTHING:
            if memory[SLEEPERS] > 0:
                # Python wakes them.
                return NOTHING
            left -= 1
            continue
        if found != TAKEN:
            return found
        if (
            memory[SIZE] < HEADER_BYTES
            or small[header.START] != _MAGIC
            or small[header.SHARD] < 0
            or small[header.SHARD] >= memory[SHARDS]
            or small[header.EPOCH] != epoch
            or small[header.META] != 0
        ):
            return TAKEN
        if frame[header.KIND] == _CHAIN:
            found = _take_of_chain(memory, frame)
        elif frame[header.KIND] == _REQUEST:
            found = _take_request(memory, frame)
        if found != DONE:
            return found
        memory[SERVED] += 1
        left, most = tries, most - 1
    return NOTHING
