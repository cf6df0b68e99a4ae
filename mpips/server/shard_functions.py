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
from mpips.storage.segment import Segment, one_by_one
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
    others = [shard.hosted(each) for each in dict.fromkeys(also) if each != number]
    # An error comes before the first row is dropped.
    stay = [_with_rows(other.segment, segment, kept) for other in others]
    for other, rows in zip(others, stay, strict=True):
        other.segment.keep(rows)
    segment.keep(kept)
    segment.scale(usage, decay)
    for other in [hosted, *others]:
        # It has notes by slot.
        other.aggregator = Aggregator(other.segment, shard.workers)
    shard.renumbered = True
    return {"dropped": dropped}


def _with_rows(other: Segment, segment: Segment, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which slots of another segment have keys with a row that is kept; UsageError if it is dense."""
    if other.spec.dense:
        raise UsageError(f"vector {other.spec.name!r}: a dense vector has a row for each key")
    slots = one_by_one(segment.resolve(other.keys_of(slice(0, len(other)))))
    found: NDArray[np.bool_] = (slots >= 0) & np.append(kept, False)[slots]
    return found


def set_rows(shard: Shard, number: int, keys: KeyArray, values: NDArray[Any]) -> dict[str, Any]:
    """Set rows of a vector, with the state of new ones."""
    shard.hosted(number).segment.set_rows(keys, values)
    return {}


CHANGES_ROWS = {BuiltInCall.EVICT: "evicted", BuiltInCall.SET_ROWS: "set"}
"""Functions for which no round may be under way, and what they do with rows."""


def check_no_round(shard: Shard, name: str, args: dict[str, Any]) -> None:
    """Check that no round of the vectors whose rows a function changes is under way.

    Only a primary has parts of rounds, and copies would not refuse the call. So it is checked before it is a change.

    Raises:
        UsageError: there are parts of a round.
    """
    for number in (args["number"], *args.get("also", ())):
        hosted = shard.hosted(number)
        if hosted.waiting or hosted.aggregator.pending():
            what = CHANGES_ROWS[BuiltInCall(name)]
            raise UsageError(
                f"vector {hosted.segment.spec.name!r}: rows are {what} while pushes of a round are under way"
            )


BUILT_IN: dict[str, Callable[..., dict[str, Any]]] = {
    BuiltInCall.CREATE_VECTOR: create_vector,
    BuiltInCall.EVICT: evict,
    BuiltInCall.RESTORE: restore,
    BuiltInCall.SET_ROWS: set_rows,
}
"""By name: each gets the shard and the arguments of the call, and its keys and values if it has some."""
