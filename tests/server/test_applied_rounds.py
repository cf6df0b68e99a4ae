"""The progress of a server: its last round, and the ranges that have not reached it."""

from __future__ import annotations

import pytest
from server.test_shard import make

from mpips.ranges import KeyRange
from mpips.server.applied_rounds import MOST, AppliedRounds, applied_rounds
from mpips.server.shard import AGGREGATE, Shard
from mpips.storage.updates import VectorSpec


@pytest.fixture
def shards() -> list[Shard]:
    """Return the two shards of a ring of two servers: keys [0, 50) and [50, 100) of w."""
    both = [make(0), make(1)]
    for shard in both:
        shard.create(1, VectorSpec("w", extent=100, aggregate=True))
        shard.create(2, VectorSpec("other", extent=100))
    assert [shard.hosted(1).segment.ranges for shard in both] == [[KeyRange(0, 50)], [KeyRange(50, 100)]]
    return both


def apply(shard: Shard, begin: int, end: int, round_: int) -> None:
    shard.hosted(1).segment.advance(KeyRange(begin, end), AGGREGATE, round_)


def test_only_aggregating_vectors_have_rounds(shards: list[Shard]) -> None:
    assert applied_rounds(shards) == {"w": AppliedRounds(-1, [], 0)}
    assert applied_rounds([]) == {}


def test_ranges_of_equal_rounds_are_joined_over_shards(shards: list[Shard]) -> None:
    for shard in shards:
        apply(shard, 0, 100, 3)
    assert applied_rounds(shards) == {"w": AppliedRounds(3, [], 0)}
    apply(shards[0], 0, 40, 4)
    apply(shards[1], 60, 100, 4)
    assert applied_rounds(shards) == {"w": AppliedRounds(4, [[40, 60, 3]], 0)}


def test_the_ranges_furthest_behind_are_listed(shards: list[Shard]) -> None:
    for key in range(0, 50, 5):
        apply(shards[0], key, key + 5, 10 - key // 5)
    rounds = applied_rounds(shards)["w"]
    assert rounds.latest == 10 and rounds.more == 6
    assert rounds.behind == [[50, 100, -1], [45, 50, 1], [40, 45, 2], [35, 40, 3]] and MOST == 4
