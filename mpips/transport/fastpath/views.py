"""Server fast path: views of the arrays that Python and kernels share, by the addresses in the fast path's memory.

See `mpips.transport.fastpath.table` and `mpips.transport.fastpath.unacknowledged` for their columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport.fastpath.rounds import RANKS
from mpips.transport.fastpath.table import (
    BUFFERS,
    BUFFERS_AT,
    CALLERS_AT,
    CHANGE_SENDS_AT,
    CHANGED_AT,
    CHANGED_BYTES,
    CHANGES_AT,
    COLUMNS,
    FRAMES_AT,
    HELD_AT,
    LINKS_AT,
    LISTS_AT,
    NAMESPACES,
    ROWS_AT,
    SLOTS_AT,
    SLOTS_OUT,
    TIMES,
    VECTORS_AT,
    WINDOW,
)
from mpips.transport.fastpath.unacknowledged import (
    CHANGES_OUT,
    DEST,
    EVERYWHERE,
    IN_ROUND,
    MOST_HELD,
    SENDS,
)
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import FORWARDED
from mpips.transport.message import INLINE
from mpips.transport.mpi.abi import at, table

FRAME_BYTES = HEADER_BYTES + INLINE
_INT4, _INT8, _UINT1 = np.int32(0), np.int64(0), np.uint8(0)


@kernel()
def part_of(memory: Any, shard: int, namespace: int) -> Any:
    """View the columns of `parts` of a vector at a shard."""
    row = shard * memory[NAMESPACES] + namespace
    return at(memory[VECTORS_AT] + 8 * COLUMNS * row, COLUMNS, _INT8)


@kernel()
def row_of(memory: Any, shard: int, rank: int) -> int:
    """Return a caller's row in `callers`; 0: it is not served."""
    return np.int64(at(memory[ROWS_AT] + 4 * (shard * memory[RANKS] + rank), 1, _INT4)[0])  # type: ignore[return-value]


@kernel()
def caller_at(memory: Any, row: int) -> Any:
    """View a row of `callers`."""
    return at(memory[CALLERS_AT] + 8 * (TIMES + WINDOW) * row, TIMES + WINDOW, _INT8)


@kernel()
def lists_of(memory: Any) -> Any:
    """View `KeyCache.table`."""
    place = at(memory[LISTS_AT], 2, _INT8)
    return table(place[0], place[1], FORWARDED + 1, _INT8)


@kernel()
def link_of(memory: Any, shard: int) -> Any:
    """View the columns of `links` of a shard."""
    return at(memory[LINKS_AT] + 8 * (EVERYWHERE + 1) * shard, EVERYWHERE + 1, _INT8)


@kernel()
def slots_of(memory: Any) -> Any:
    """View the sends of answers and acknowledgements, of which each has a frame."""
    return table(memory[SLOTS_AT], SLOTS_OUT, 3, _INT8)


@kernel()
def frame_of_slot(memory: Any, slot: int) -> int:
    """Return the address of the frame of a slot."""
    return memory[FRAMES_AT] + FRAME_BYTES * slot  # type: ignore[no-any-return]


@kernel()
def buffers_of(memory: Any) -> Any:
    """View the send buffers for large answers."""
    return table(memory[BUFFERS_AT], BUFFERS, 5, _INT8)


@kernel()
def changes_of(memory: Any) -> Any:
    """View the unacknowledged changes."""
    return table(memory[CHANGES_AT], CHANGES_OUT, IN_ROUND + 1, _INT8)


@kernel()
def change_sends_of(memory: Any) -> Any:
    """View the sends of changes and of their answers."""
    return table(memory[CHANGE_SENDS_AT], SENDS * CHANGES_OUT, 3, _INT8)


@kernel()
def frame_of_change(memory: Any, row: int) -> int:
    """Return the address of the frame of a change."""
    return memory[CHANGED_AT] + memory[CHANGED_BYTES] * row  # type: ignore[no-any-return]


@kernel()
def held_of(memory: Any) -> Any:
    """View the answers that wait: their number, then each of them."""
    return table(memory[HELD_AT], 1 + MOST_HELD, DEST + 1, _INT8)


@kernel()
def head_at(address: int) -> Any:
    """View the bytes of a header."""
    return at(address, HEADER_BYTES, _UINT1)
