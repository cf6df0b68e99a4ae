"""The parts of a request, one for each shard, as a table: the client fast path sends all of them in one call.

A list of keys is checked, and cut into the parts of a table, by another call (`cut`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix

SHARD, FIRST, LAST, BEGIN, END, LOW, HIGH, LISTS, DEST, SLOT = range(10)
"""Columns: the shard; the first and the last key that belong to the part, u64; the places [begin, end) of its keys and
rows among those of the request; the signature of the keys; whether it lists them; the rank that it is sent to; and the
slot in which it was sent."""
COLUMNS = SLOT + 1
NO_SLOT, SKIPPED = -1, -2
"""Values of SLOT: the part must be sent as a message; it has no keys, and was not sent."""
UNSORTED, OUTSIDE = -1, -2
"""Results of `cut` for keys that are not sorted and unique, and for keys outside of all parts."""


@kernel("i8(u8[::1], i8[:,::1], b1)")
def cut(keys: NDArray[np.uint64], parts: Any, checked: bool) -> int:
    """Check that 64-bit keys are sorted, unique and inside the parts; cut them at the first key of each part.

    Returns a hash of some of them. Upper halves of 128-bit keys may be equal, and are `checked` before.
    """
    total, block, last = len(keys), 4096, len(parts) - 1
    if last < 0:
        return OUTSIDE if total > 0 else 0
    for start in range(1, 1 if checked else total, block):
        earlier, later = keys[start - 1 :], keys[start:]
        wrong = 0
        # Without an early exit, so that the compiler vectorizes it.
        for i in range(min(block, total - start)):
            wrong += later[i] <= earlier[i]
        if wrong:
            return UNSORTED
    sample = np.uint64(total)
    if total > 0:
        if keys[0] < np.uint64(parts[0, FIRST]) or keys[total - 1] > np.uint64(parts[last, LAST]):
            return OUTSIDE
        for i in (0, total // 3, total // 2, total - 1):
            sample = mix(sample ^ keys[i])
    parts[0, BEGIN], parts[last, END] = 0, total
    for part in range(1, last + 1):
        low, high, bound = parts[part - 1, BEGIN], total, np.uint64(parts[part, FIRST])
        while low < high:
            middle = (low + high) >> 1
            if keys[middle] < bound:
                low = middle + 1
            else:
                high = middle
        parts[part - 1, END] = parts[part, BEGIN] = low
    return np.int64(sample >> np.uint64(1))  # type: ignore[return-value]
