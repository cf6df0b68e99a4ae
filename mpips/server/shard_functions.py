"""The built-in functions that the scheduler calls on shards.

For functions that programs register see `mpips.storage.updates`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.calls import BuiltInCall
from mpips.checkpoint.loading import load_clocks, load_pieces, load_range, vectors
from mpips.checkpoint.manifest import NOTE
from mpips.errors import UsageError
from mpips.keys import KeyArray
from mpips.server.shard import AGGREGATE, Shard
from mpips.storage.aggregate import Aggregator
from mpips.storage.eviction import standings
from mpips.storage.segment import one_by_one
from mpips.storage.updates import VectorSpec
from mpips.storage.vector_clock import NOTHING


def create_vector(shard: Shard, spec: dict[str, Any], number: int, expect: int) -> dict[str, Any]:
    """Create a shard's part of a vector."""
    shard.create(number, VectorSpec(**spec), expect)
    return {}


def restore(shard: Shard, folder: str) -> dict[str, Any]:
    """Read the rows of a shard's ranges from the files of a checkpoint."""
    path = Path(folder)
    names = vectors(path)
    for hosted in shard.vectors.values():
        segment = hosted.segment
        for piece in load_pieces(path, segment.spec.name, segment.ranges, segment.rows_at_once()):
            segment.import_state(piece)
        for name in names:
            owner, _, note = name.partition(NOTE)
            if note and owner == segment.spec.name:
                rows = load_range(path, name, segment.ranges)
                segment.notes[note] = (segment.slots_of(rows.keys), rows.values)
        for clock in load_clocks(path, segment.spec.name):
            # Round numbers continue; the task times of a worker start again in every run.
            for keys, round_ in clock.entries(AGGREGATE):
                if round_ != NOTHING:
                    segment.advance(keys, AGGREGATE, round_)
    return {}


def evict(shard: Shard, number: int, least: int, usage: str, decay: float, also: list[int]) -> dict[str, Any]:
    """Drop the rows of a vector with a standing below `least`, and those of others whose keys have none any more."""
    hosted = shard.hosted(number)
    segment = hosted.segment
    kept = standings(segment, usage) >= np.uint64(least)
    dropped = len(kept) - int(np.count_nonzero(kept))
    for other in [hosted, *map(shard.hosted, also)]:
        if other.waiting or other.aggregator.pending():
            raise UsageError(
                f"vector {other.segment.spec.name!r}: rows are evicted while pushes are under way"
            )
    for other in map(shard.hosted, also):
        slots = one_by_one(segment.resolve(other.segment.keys_of(slice(0, len(other.segment)))))
        other.segment.keep((slots >= 0) & np.append(kept, False)[slots])
    segment.keep(kept)
    used = segment.state[usage][: len(segment)]
    used[...] = used * decay
    for other in [hosted, *map(shard.hosted, also)]:
        # It has notes by slot.
        other.aggregator = Aggregator(other.segment, shard.workers)
    shard.renumbered = True
    return {"dropped": dropped}


def set_rows(shard: Shard, number: int, keys: KeyArray, values: NDArray[Any]) -> dict[str, Any]:
    """Set rows of a vector, with the state of new ones."""
    hosted = shard.hosted(number)
    if hosted.waiting or hosted.aggregator.pending():
        raise UsageError(
            f"vector {hosted.segment.spec.name!r}: rows are set while pushes of a round are under way"
        )
    hosted.segment.set_rows(keys, values)
    return {}


BUILT_IN: dict[str, Callable[..., dict[str, Any]]] = {
    BuiltInCall.CREATE_VECTOR: create_vector,
    BuiltInCall.EVICT: evict,
    BuiltInCall.RESTORE: restore,
    BuiltInCall.SET_ROWS: set_rows,
}
"""By name: each gets the shard and the arguments of the call, and its keys and values if it has some."""
