"""Eviction: which rows of a vector go when there are too many (as in DiFacto, Li et al., WSDM 2016).

A state column of the update says how much a row is used, such as the number of pushes; it is halved at each eviction,
so that what was used long ago counts for less. The standing of a row is its usage, as float32, and for equal ones a
hash of its key: 64 bits that depend on the row alone, so that the same rows go on any layout. The scheduler finds the
least standing that stays, 8 bits at a time, by histograms of all shards; then each shard drops its rows below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import UsageError
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import folded
from mpips.storage.segment import Segment
from mpips.storage.updates import call

BITS = 8
"""Bits of a standing that one histogram tells apart."""
ROOM = 10
"""An eviction leaves room for one row in so many, so that it is not needed again at once."""
_HALF = np.uint64(32)


@kernel("void(u8[::1], f4[::1], u8[::1])")
def _standings(keys: NDArray[np.uint64], usage: NDArray[np.float32], out: NDArray[np.uint64]) -> None:
    # The bits of floats from 0 have the order of the floats.
    bits = usage.view(np.uint32)
    for i in range(len(keys)):
        out[i] = (np.uint64(bits[i]) << _HALF) | (mix(keys[i]) >> _HALF)


def standings(segment: Segment, usage: str) -> NDArray[np.uint64]:
    """Return the standing of each slot, u64[len]; UsageError if the update has no such state column.

    >>> from mpips.storage.updates import VectorSpec
    >>> segment = Segment(VectorSpec("w", update="adagrad"))
    >>> segment.push(np.array([3, 5], np.uint64), np.array([[1.0], [2.0]]))
    >>> (standings(segment, "n") >> np.uint64(32)).astype(np.uint32).view(np.float32).tolist()
    [1.0, 2.0]
    """
    columns = [name for name in segment.layout if name]
    if usage not in columns or segment.spec.dense:
        raise UsageError(
            f"vector {segment.spec.name!r}: rows of {'a dense vector' if segment.spec.dense else 'update '}"
            f"{'' if segment.spec.dense else repr(segment.spec.update)} cannot be evicted by {usage!r}; its state "
            f"columns are: {', '.join(columns) or 'none'}"
        )
    n = len(segment)
    keys = np.array(folded(segment.keys_of(slice(0, n))), np.uint64)
    used = np.maximum(segment.taken(usage, slice(0, n))[:, 0], 0).astype(np.float32)
    out = np.empty(n, np.uint64)
    _standings(keys, used, out)
    return out


@call("standing_histogram", reads=True)
def histogram(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return the number of rows, and how many have each value of the next bits of their standing.

    args: `usage`, the state column; `prefix`, the first bits of the standings to count, and `shift`, the number of bits
    after the next ones.
    """
    found, shift = standings(segment, args["usage"]), args["shift"]
    if shift + BITS < 64:
        found = found[found >> np.uint64(shift + BITS) == np.uint64(args["prefix"])]
    digits = (found >> np.uint64(shift)).astype(np.int64) & (2**BITS - 1)
    return {"rows": len(segment), "counts": np.bincount(digits, minlength=2**BITS).tolist()}


def least_that_stays(histogram_of: Callable[[int, int], list[dict[str, Any]]], most: int) -> int | None:
    """Return the least standing of the rows that stay: nine tenths of `most`; None if there are no more than `most`.

    `histogram_of(prefix, shift)` returns what `histogram` does, of each shard.

    >>> keys = np.arange(100, dtype=np.uint64) << np.uint64(40)
    >>> def histogram_of(prefix, shift):
    ...     found = keys[keys >> np.uint64(shift) >> np.uint64(8) == prefix] >> np.uint64(shift)
    ...     counts = np.bincount(found.astype(np.int64) & 255, minlength=256)
    ...     return [{"rows": len(keys), "counts": counts.tolist()}]
    >>> least_that_stays(histogram_of, 50) == int(keys[55]), least_that_stays(histogram_of, 100)
    (True, None)
    """
    left, prefix, shift = most - most // ROOM, 0, 64 - BITS
    found = histogram_of(prefix, shift)
    if sum(each["rows"] for each in found) <= most:
        return None
    while True:
        counts = np.sum([each["counts"] for each in found], axis=0)
        from_above = np.cumsum(counts[::-1])[::-1]
        # The rows with this value, or a larger one, all stay; the next bits decide among those with the value before.
        digit = int(np.count_nonzero(from_above > left))
        left -= int(from_above[digit]) if digit < len(counts) else 0
        if left == 0 or shift == 0:
            return min(((prefix << BITS) + digit) << shift, 2**64 - 1)
        prefix, shift = (prefix << BITS) + digit - 1, shift - BITS
        found = histogram_of(prefix, shift)
