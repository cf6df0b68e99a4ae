"""The built-in functions that the scheduler calls on shards.

For functions that programs register see `mpips.storage.updates`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpips.calls import BuiltInCall
from mpips.checkpoint.loading import load_clocks, load_range, vectors
from mpips.checkpoint.manifest import NOTE
from mpips.server.shard import AGGREGATE, Shard
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
        segment.import_state(load_range(path, segment.spec.name, segment.ranges))
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


BUILT_IN: dict[str, Callable[..., dict[str, Any]]] = {
    BuiltInCall.CREATE_VECTOR: create_vector,
    BuiltInCall.RESTORE: restore,
}
"""By name: each gets the shard and the arguments of the call."""
