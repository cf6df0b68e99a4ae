"""The functions that the scheduler calls on shards: creating a vector, and restoring it from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from server.test_shard import make

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.manifest import NOTE
from mpips.checkpoint.writing import write_shard
from mpips.errors import CheckpointError, UsageError
from mpips.ranges import KeyRange
from mpips.server.checkpoint_copy import copied
from mpips.server.shard import AGGREGATE, Shard
from mpips.server.shard_functions import BUILT_IN, create_vector, evict, restore, set_rows
from mpips.storage.updates import VectorSpec
from mpips.storage.vector_clock import NOTHING

SPEC = {"name": "w", "dtype": "float64", "extent": 100, "update": "adagrad", "aggregate": True}


def made(number: int) -> Shard:
    shard = make(number)
    assert create_vector(shard, SPEC, 1, 0) == {}
    return shard


def test_the_names_are_those_of_calls() -> None:
    assert {name.value: function for name, function in BUILT_IN.items()} == {  # type: ignore[attr-defined]
        "create_vector": create_vector,
        "evict": evict,
        "restore": restore,
        "set_rows": set_rows,
    }


def test_a_vector_is_created_by_its_specification() -> None:
    hosted = made(1).hosted(1)
    assert hosted.segment.spec == VectorSpec("w", "float64", extent=100, update="adagrad", aggregate=True)
    assert hosted.segment.ranges == [KeyRange(50, 100)] and len(hosted.segment) == 0


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a checkpoint of one server with both shards: rows, squared gradients, a note and rounds."""
    shards = [made(0), made(1)]
    for shard, keys in zip(shards, ([3, 20], [60, 99]), strict=True):
        segment = shard.hosted(1).segment
        slots = segment.resolve(np.array(keys, np.uint64), create=True)
        segment.values[slots] = [[keys[0] / 10.0], [keys[1] / 10.0]]
        next(iter(segment.state.values()))[slots] = [[1.0], [2.0]]
        segment.notes["radius"] = (np.zeros(1, np.int32), np.array([[0.5 * keys[0]]]))
        segment.advance(KeyRange(0, 100), AGGREGATE, 7)
    parts, clocks = copied(shards)
    folder = begin(tmp_path, 1)
    commit(folder, [write_shard(folder, 0, parts, {"server": 0, "clocks": clocks})], {"step": 1})
    return folder


@pytest.mark.parametrize(("number", "keys"), [(0, [3, 20]), (1, [60, 99])])
def test_a_shard_restores_the_rows_of_its_range(checkpoint: Path, number: int, keys: list[int]) -> None:
    shard = made(number)
    assert restore(shard, str(checkpoint)) == {}
    hosted = shard.hosted(1)
    segment = hosted.segment
    rows = segment.in_slot_order()
    order = np.argsort(rows.keys)
    assert rows.keys[order].tolist() == keys
    assert rows.values[order].tolist() == [[key / 10.0] for key in keys]
    (state,) = rows.state.values()
    assert state[order].tolist() == [[1.0], [2.0]]
    slots, noted = segment.notes["radius"]
    assert segment.in_slot_order().keys[slots].tolist() == keys[:1] and noted.tolist() == [[0.5 * keys[0]]]
    begin, end = segment.ranges[0]
    assert hosted.clock.get(KeyRange(begin, end), AGGREGATE) == 7
    assert hosted.clock.get(KeyRange(0, 100), AGGREGATE) == NOTHING, "other ranges are other shards'"


def test_a_vector_that_the_checkpoint_lacks_is_an_error(checkpoint: Path) -> None:
    shard = make(0)
    create_vector(shard, SPEC | {"name": "v"}, 1, 0)
    with pytest.raises(CheckpointError, match=f"has no vector 'v'; it has: w, w{NOTE}radius"):
        restore(shard, str(checkpoint))


def test_an_eviction_that_is_refused_drops_nothing_and_one_of_the_same_vector_twice_drops_it_once() -> None:
    """Else kernels would use slots of cached lists that are other keys' now."""
    shard = make(0)
    keys = np.arange(10, dtype=np.uint64)
    specs = {"w": SPEC, "v": SPEC | {"name": "v"}, "d": SPEC | {"name": "d", "dense": True}}
    for number, spec in enumerate(specs.values(), 1):
        create_vector(shard, spec, number, 0)
        shard.hosted(number).segment.push(keys, np.arange(10.0)[:, None])
    least = int(np.float32(6.0).view(np.uint32)) << 32
    with pytest.raises(UsageError, match="a dense vector has a row for each key"):
        evict(shard, 1, least, "n", 1.0, [2, 3])
    assert [len(shard.hosted(number).segment) for number in (1, 2)] == [10, 10]
    assert evict(shard, 1, least, "n", 1.0, [2, 1, 2]) == {"dropped": 6}
    assert [shard.hosted(number).segment.items()[0].tolist() for number in (1, 2)] == [[6, 7, 8, 9]] * 2
