"""The ring against brute force over keys: owners, replicas, movement and load."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mpips.ranges import ALL, END, KeyRange, coalesce, meet
from mpips.ring import VACANT, Move, Ring, difference

extents = st.sampled_from([1, 2, 7, 100, 1000, 2**32 - 5, END]) | st.integers(1, END)
virtual = st.integers(0, 5)


@st.composite
def rings(draw: st.DrawFn, least: int = 1) -> Ring:
    """Rings with a history: some servers have left, and their slots are vacant."""
    servers = draw(st.lists(st.integers(0, 40), min_size=least, max_size=9, unique=True))
    ring = Ring.of(servers, draw(virtual))
    for server in draw(st.lists(st.sampled_from(servers), unique=True, max_size=len(servers) - least)):
        ring = ring.leave(server)
    return ring


def span(ranges: list[KeyRange]) -> int:
    return sum(keys.span for keys in ranges)


def fullest(ring: Ring) -> float:
    """The load of the fullest server, over the mean load."""
    return max(span(ring.owned(server)) for server in ring.servers) * len(ring.servers) / END


@given(rings(), extents)
def test_segments_cut_the_whole_space_by_owner(ring: Ring, extent: int) -> None:
    begins, owners = ring.segments(extent)
    assert begins.dtype == np.uint64
    assert owners.dtype == np.int32
    assert begins[0] == 0
    assert int(begins[-1]) < extent
    assert all(left < right for left, right in pairwise(begins.tolist()))
    if extent > 2**20:
        assert all(left != right for left, right in pairwise(owners.tolist()))
    assert set(owners.tolist()) <= set(ring.servers)
    owned = [keys for server in ring.servers for keys in ring.owned(server, extent)]
    assert coalesce(owned) == [KeyRange(0, extent)]
    assert span(owned) == extent
    with pytest.raises(ValueError, match="read-only"):
        owners[0] = 3


@given(rings(), extents, st.data())
def test_owners_of_a_part(ring: Ring, extent: int, data: st.DataObject) -> None:
    begin, end = data.draw(st.integers(0, extent)), data.draw(st.integers(0, END))
    expected = []
    for server in ring.servers:
        for keys in ring.owned(server, extent):
            assert ring.replicas(keys.begin, 2, extent) == ring.replicas(keys.end - 1, 2, extent)
            part = meet(keys, KeyRange(begin, end))
            if part is not None:
                expected.append((part, server))
                assert ring.owner(part.begin, extent) == ring.owner(part.end - 1, extent) == server
    assert ring.owners(KeyRange(begin, end), extent) == sorted(expected)


@given(rings(), st.integers(50, 60), extents)
def test_a_newcomer_takes_ranges_and_nothing_else_moves(ring: Ring, newcomer: int, extent: int) -> None:
    joined = ring.join(newcomer)
    moves = difference(ring, joined, extent)
    assert {move.target for move in moves} <= {newcomer}
    assert coalesce(move.keys for move in moves) == coalesce(joined.owned(newcomer, extent))
    back = difference(joined, joined.leave(newcomer), extent)
    assert back == [Move(move.keys, move.target, move.source) for move in moves]


@given(rings(least=2), extents, st.data())
def test_a_departed_server_gives_each_range_to_its_first_replica(
    ring: Ring, extent: int, data: st.DataObject
) -> None:
    departed = data.draw(st.sampled_from(ring.servers))
    left = ring.leave(departed)
    assert departed not in left.servers
    assert left.owned(departed, extent) == []
    for keys, source, target in difference(ring, left, extent):
        assert source == departed
        for key in (keys.begin, keys.end - 1):
            assert ring.replicas(key, 1, extent) == (target,) == (left.owner(key, extent),)
    spare = left.join(99)
    if left.slots.count(VACANT) == 1:  # a spare steps into the slot of the departed
        assert spare.owned(99, extent) == ring.owned(departed, extent)


@given(rings(), extents, st.integers(0, 4), st.data())
def test_replicas_are_the_next_owners_should_servers_leave(
    ring: Ring, extent: int, k: int, data: st.DataObject
) -> None:
    key = data.draw(st.integers(0, extent - 1))
    replicas = ring.replicas(key, k, extent)
    assert len(replicas) == min(k, len(ring.servers) - 1)
    remaining = ring
    for replica in replicas:
        remaining = remaining.leave(remaining.owner(key, extent))
        assert remaining.owner(key, extent) == replica
    for server in ring.servers:
        held = any(keys.contains(key) for keys in ring.copied(server, k, extent))
        assert held == (server in replicas)


def test_a_server_copies_the_ranges_that_follow_its_own() -> None:
    """The paper's picture, keys growing counter-clockwise: whoever owns the range before holds a copy."""
    ring = Ring.of([10, 11], 2)  # 10: [0, 1/4), 11: [1/4, 1/2), 10, 11
    quarter = END // 4
    assert ring.owned(10) == [KeyRange(0, quarter), KeyRange(2 * quarter, 3 * quarter)]
    assert ring.copied(10, 1) == ring.owned(11)
    assert ring.copied(11, 2) == ring.owned(10)
    three = Ring.of([10, 11, 12])
    begins, owners = three.segments()
    following = {(owner, int(np.roll(owners, -1)[i])) for i, owner in enumerate(owners.tolist())}
    for begin, owner in zip(begins.tolist(), owners.tolist(), strict=True):
        assert (three.replicas(begin, 1)[0], owner) in following


def test_the_layout_of_few_servers_in_full() -> None:
    assert Ring.of([5]).segments(1000).begins.tolist() == [0]
    begins, owners = Ring.of([5, 7]).segments(1000)
    assert (begins.tolist(), owners.tolist()) == ([0, 500], [5, 7])
    begins, owners = Ring.of([5, 7, 6]).segments(1200)
    assert (begins.tolist(), owners.tolist()) == ([0, 400, 600, 999], [5, 6, 7, 6])
    begins, owners = Ring.of([5, 7, 6]).leave(5).segments(1200)
    assert (begins.tolist(), owners.tolist()) == ([0, 600, 999], [6, 7, 6])
    assert Ring.of([5, 7]).join(6) == Ring.of([5, 7, 6])
    assert Ring.of([5, 7]).leave(5).join(6) == Ring.of([6, 7])


@pytest.mark.parametrize("virtual_servers", [0, 1, 4, 8, 16])
def test_loads_are_even(virtual_servers: int) -> None:
    """The fullest server has under 15 % more than its share; the default under 6 %, with few segments."""
    for servers in [*range(1, 33), 48, 64, 100, 128]:
        ring = Ring.of(range(servers), virtual_servers)
        assert fullest(ring) < 1.15
        if virtual_servers == 0:
            assert fullest(ring) < (1.01 if servers <= 16 else 1.06)
            assert len(ring.segments().begins) <= min(servers * (servers - 1) // 2 + 1, 16 * servers)


@pytest.mark.parametrize("servers", [2, 3, 8, 16])
def test_loads_after_a_departure_are_bounded(servers: int) -> None:
    """One server may get all that the departed had; with 16 virtual servers it is spread."""
    for virtual_servers, bound in ((0, 2.0), (16, 1.35)):
        ring = Ring.of(range(servers), virtual_servers)
        assert all(fullest(ring.leave(server)) < bound for server in range(servers))


def test_uniform_keys_find_even_servers_whatever_the_extent() -> None:
    keys = np.random.default_rng(4).integers(0, END, 40_000, dtype=np.uint64, endpoint=False)
    ring = Ring.of(range(7))
    for extent in (END, 1_355_191):
        begins, owners = ring.segments(extent)
        scaled = keys if extent == END else keys % np.uint64(extent)
        counts = np.bincount(owners[np.searchsorted(begins, scaled, "right") - 1], minlength=7)
        assert counts.max() / counts.mean() < 1.05
        assert ring.owner(int(scaled[0]), extent) == owners[np.searchsorted(begins, scaled[0], "right") - 1]


def test_difference_coalesces_and_is_empty_between_equal_rings() -> None:
    ring = Ring.of([1, 2, 3])
    assert difference(ring, Ring.of([1, 2, 3])) == []
    other = Ring.of([4])
    assert difference(Ring.of([3]), other) == [Move(ALL, 3, 4)]
    assert [move.keys for move in difference(ring, other)] == [keys for keys, _ in ring.owners(ALL)]
    assert difference(other, Ring.of([4, 5]), 10) == [Move(KeyRange(5, 10), 4, 5)]
    assert difference(Ring.of([1, 2], 2), Ring.of([1, 2]), 8) == [
        Move(KeyRange(2, 4), 2, 1),
        Move(KeyRange(4, 6), 1, 2),
    ]


@pytest.mark.parametrize(
    ("slots", "virtual_servers", "text"),
    [
        ((), 0, "at least one server"),
        ((VACANT,), 0, "at least one server"),
        ((1, 1), 0, "distinct"),
        ((1, -2), 0, "distinct and not negative"),
        ((1,), -1, "virtual_servers must be at least 0, got -1"),
    ],
)
def test_an_impossible_ring_is_refused(slots: tuple[int, ...], virtual_servers: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Ring(slots, virtual_servers)


def test_wrong_questions_are_refused() -> None:
    ring = Ring.of([1])
    with pytest.raises(ValueError, match="server 2 is not on the ring"):
        ring.leave(2)
    with pytest.raises(ValueError, match="at least one server"):
        ring.leave(1)
    with pytest.raises(ValueError, match="distinct"):
        ring.join(1)
    for extent in (0, END + 1):
        with pytest.raises(ValueError, match="extent"):
            ring.segments(extent)
