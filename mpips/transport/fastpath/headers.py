"""Fast path: the headers that kernels write, as `mpips.transport.message.encode` would."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport import header
from mpips.transport.fastpath.table import EPOCH, ME
from mpips.transport.fastpath.unacknowledged import CALLERS_BYTES
from mpips.transport.header import DETACHED, HEADER_BYTES, LISTED, MAGIC, NO_VALUES
from mpips.transport.message import NO_ROUND, Command, Kind
from mpips.transport.mpi.abi import at

_MAGIC = int.from_bytes(MAGIC, "little")
_REPLY, _CHAIN = int(Kind.REPLY), int(Kind.CHAIN)
_APPLIED = int(Command.APPLIED)
# The last key of the key space, as int64.
_ALL = -1
_INT8 = np.int64(0)


@kernel()
def _begin(memory: Any, head: Any, kind: int, command: int, origin: int, like: Any) -> None:
    """Write a header without keys and values, about the shard of the header `like`."""
    small, words = head.view(np.int32), head.view(np.int64)
    for i in range(HEADER_BYTES // 8):
        words[i] = 0
    small[header.START] = _MAGIC
    head[header.KIND] = kind
    head[header.COMMAND] = command
    small[header.SENDER] = memory[ME]
    small[header.ORIGIN] = origin
    small[header.SHARD] = like.view(np.int32)[header.SHARD]
    small[header.EPOCH] = memory[EPOCH]
    words[header.ROUND] = NO_ROUND
    words[header.LAST] = _ALL
    head[header.DTYPE] = NO_VALUES


@kernel()
def write_answer(memory: Any, head: Any, request: Any, kind: int, rows: int, width: int, apart: bool) -> None:
    """Write the header of the answer to a request, with `rows` rows of a wire type (-1: no values)."""
    asks = request.view(np.int32)
    command: Any = np.int64(request[header.COMMAND])
    origin: Any = np.int64(asks[header.ORIGIN])
    _begin(memory, head, _REPLY, command, origin, request)
    small, words = head.view(np.int32), head.view(np.int64)
    small[header.NAMESPACE] = asks[header.NAMESPACE]
    words[header.TIME] = request.view(np.int64)[header.TIME]
    head[header.FLAGS] = DETACHED if apart else 0
    if rows >= 0:
        words[header.ROWS] = rows
        head[header.DTYPE] = kind
        small[header.WIDTH] = width


@kernel()
def write_change(
    memory: Any,
    head: Any,
    request: Any,
    command: int,
    callers: int,
    number: int,
    keys: int,
    rows: int,
    first: int,
    last: int,
    apart: bool,
    named: bool,
) -> None:
    """Write the header of change `number`, of the push `request` or of its round, with so many callers.

    `keys`: how many it lists, -1 if it lists none; `named`: with the signature of its list of keys.
    """
    asked, asks = request.view(np.int64), request.view(np.int32)
    _begin(memory, head, _CHAIN, command, -1, request)
    small, words = head.view(np.int32), head.view(np.int64)
    head[header.FLAGS] = (LISTED if keys >= 0 else 0) | (DETACHED if apart else 0)
    small[header.NAMESPACE] = asks[header.NAMESPACE]
    small[header.AFTER] = 2 * callers
    small[header.WIDTH] = asks[header.WIDTH]
    head[header.DTYPE] = request[header.DTYPE]
    words[header.TIME], words[header.ROUND] = number, asked[header.ROUND]
    words[header.FIRST], words[header.LAST] = first, last
    words[header.KEYS], words[header.ROWS] = max(keys, 0), rows
    if named:
        words[header.SIGNATURE], words[header.SIGNATURE + 1] = (
            asked[header.SIGNATURE],
            asked[header.SIGNATURE + 1],
        )


@kernel()
def write_caller(address: int, caller: int, request: Any) -> None:
    """Write a caller of a change behind its header: origin, time, acknowledged time and command of a request."""
    words, asked = at(address + HEADER_BYTES + CALLERS_BYTES * caller, 4, _INT8), request.view(np.int64)
    words[0], words[1] = request.view(np.int32)[header.ORIGIN], asked[header.TIME]
    words[2], words[3] = asked[header.ACKED], request[header.COMMAND]


@kernel()
def write_acknowledgement(memory: Any, head: Any, change: Any, number: int) -> None:
    """Write the acknowledgement of a change."""
    _begin(memory, head, _CHAIN, _APPLIED, -1, change)
    head.view(np.int64)[header.TIME] = number
