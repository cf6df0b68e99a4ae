"""`evict`: keep the number of rows of vectors below a limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpips.calls import BuiltInCall
from mpips.scheduler.scheduler import Cluster
from mpips.storage.eviction import BITS
from mpips.worker.vector import Vector

ROOM = 10
"""An eviction leaves room for one row in so many, so that it is not needed again at once."""


def evict(
    cluster: Cluster,
    vector: Vector,
    most: int,
    *,
    usage: str,
    also: Sequence[Vector] = (),
    decay: float = 0.5,
) -> int:
    """Drop the least used rows of a vector if it has more than `most`; return how many.

    Nine tenths of `most` then remain, the same ones on any layout. Dropped keys read as their initial values again, and
    a push makes a new row. All copies drop the same rows at the same place among the pushes, and checkpoints have only
    those that remain. No pushes and pulls of these vectors may be under way: those of a worker's call are over when it
    has returned.

    Args:
        cluster: the run.
        vector: a sparse vector.
        most: the largest number of rows, at least 1.
        usage: the state column, of its update, that says how much a row is used.
        also: sparse vectors whose rows are dropped for all keys that have no row of `vector` any more.
        decay: the factor by which the usage of the remaining rows is multiplied, from 0 to 1.

    Raises:
        UsageError: the update has no such state column, or a vector is dense, or pushes are under way.

    >>> from mpips import Column, VectorSpec, simulate, update
    >>> @update("example_counted", columns=lambda spec: {"pushes": Column("int64")})
    ... def counted(values, state, slots, rows, settings):
    ...     state["pushes"][slots] += 1
    ...     values[slots] += rows
    >>> def schedule(cluster):
    ...     w = cluster.create_vector(VectorSpec("w", update="example_counted"))
    ...     keys = np.arange(20, dtype=np.uint64)
    ...     for often in (keys, keys[5:]):
    ...         w.push(often, np.ones(len(often))).result()
    ...     dropped = evict(cluster, w, 16, usage="pushes")
    ...     return dropped, int(w.pull(keys[:5]).result().sum()), int(w.pull(keys[5:]).result().sum())
    >>> simulate(schedule, worker=lambda context: None)
    (5, 0, 30)
    """
    servers, left, prefix, shift = cluster.servers, most - most // ROOM, 0, 64 - BITS
    while True:
        asked = {"usage": usage, "prefix": prefix, "shift": shift}
        found = servers.call("standing_histogram", asked, vector=vector)
        if shift == 64 - BITS and sum(each["rows"] for each in found) <= most:
            return 0
        counts = np.sum([each["counts"] for each in found], axis=0)
        from_above = np.cumsum(counts[::-1])[::-1]
        # The rows with this value, or a larger one, all stay; the next bits decide among those with the value before.
        digit = int(np.count_nonzero(from_above > left))
        left -= int(from_above[digit]) if digit < len(counts) else 0
        least = min(((prefix << BITS) + digit) << shift, 2**64 - 1)
        if left == 0 or shift == 0:
            break
        prefix, shift = (prefix << BITS) + digit - 1, shift - BITS
    args = {
        "number": vector.number, "least": least, "usage": usage, "decay": decay,
        "also": [each.number for each in also],
    }  # fmt: skip
    return sum(each["dropped"] for each in servers.call(BuiltInCall.EVICT, args))
