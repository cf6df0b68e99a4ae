"""The copy of a server's shards for a checkpoint: rows in key order, notes and clocks, unchanged by later pushes."""

from __future__ import annotations

import numpy as np
import pytest
from server.test_shard import caller_of, make, request

from mpips.errors import CheckpointError
from mpips.ranges import KeyRange
from mpips.server.checkpoint_copy import copied
from mpips.server.shard import AGGREGATE, Shard
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command


def push(shard: Shard, keys: list[int], rows: list[float], time: int) -> None:
    message = request(Command.PUSH, keys, rows, time=time)
    shard.finish([caller_of(message)], shard.push(message))


@pytest.fixture
def shards() -> list[Shard]:
    """Return the shards of keys [0, 50) and [50, 100) with rows of w, pushed out of order."""
    both = [make(0), make(1)]
    for shard in both:
        shard.create(1, VectorSpec("w", "float64", extent=100))
    push(both[0], [7, 30], [0.5, 2.0], 0)
    push(both[0], [3], [1.0], 1)
    push(both[1], [60], [4.0], 0)
    return both


def test_the_rows_of_all_shards_are_joined_in_key_order(shards: list[Shard]) -> None:
    parts, clocks = copied(reversed(shards))
    assert list(parts) == ["w"] and parts["w"].rows.keys.tolist() == [3, 7, 30, 60]
    assert parts["w"].rows.values.tolist() == [[1.0], [0.5], [2.0], [4.0]]
    assert clocks == {"w": [[], [], [], []]}, "only rounds are in the clock"


def test_later_pushes_do_not_change_a_copy(shards: list[Shard]) -> None:
    parts, _ = copied(shards)
    push(shards[0], [3, 4], [10.0, 10.0], 2)
    assert parts["w"].rows.keys.tolist() == [3, 7, 30, 60] and parts["w"].rows.values[0] == 1.0


def test_the_clocks_of_all_shards_are_appended(shards: list[Shard]) -> None:
    shards[0].hosted(1).segment.advance(KeyRange(0, 20), AGGREGATE, 5)
    shards[1].hosted(1).segment.advance(KeyRange(0, 100), AGGREGATE, 4)
    _, clocks = copied(shards)
    assert clocks == {"w": [[AGGREGATE, AGGREGATE], [0, 50], [19, 99], [5, 4]]}


def test_a_note_is_a_vector_of_the_keys_that_have_it(shards: list[Shard]) -> None:
    segment = shards[0].hosted(1).segment
    slots = np.array([1, 2], np.int32)  # of the second and the third key that was pushed: 30 and 3
    segment.notes["radius"] = (slots, np.array([[0.25], [0.75]]))
    parts, _ = copied(shards)
    assert sorted(parts) == ["w", "w:radius"] or len(parts) == 2
    (note,) = (part for name, part in parts.items() if name != "w")
    assert note.rows.keys.tolist() == [3, 30] and note.rows.values.tolist() == [[0.75], [0.25]]


def test_a_key_in_two_shards_is_an_error(shards: list[Shard]) -> None:
    with pytest.raises(CheckpointError, match="key 3 of vector 'w' is in two shards"):
        copied([shards[0], shards[0]])
