"""The ring, compared with brute force over shards and keys: holders, moved shards, and balance."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from mpips.cluster.hash_ring import VACANT, Ring, moved, numbered
from mpips.ranges import ALL, END, KeyRange, coalesce

extents = st.sampled_from([1, 2, 7, 100, 1000, 2**32 - 5, END]) | st.integers(1, END)
virtual = st.integers(0, 5)


@st.composite
def rings(draw: st.DrawFn, least: int = 1) -> Ring:
    """Rings with a history: some slots were never taken, some servers have left, others have come since."""
    servers = draw(st.lists(st.integers(0, 40), min_size=least, max_size=9, unique=True))
    ring = Ring.of(servers, draw(virtual), len(servers) + draw(st.integers(0, 3)))
    leaving = draw(st.lists(st.sampled_from(servers), unique=True, max_size=len(servers) - least))
    for server in leaving:
        ring = ring.leave(server)
    for newcomer in range(41, 41 + draw(st.integers(0, len(leaving)))):
        ring = ring.join(newcomer)
    return ring


@st.composite
def spread(draw: st.DrawFn, least: int = 1) -> Ring:
    """Rings with a history whose servers are on one to four hosts, in any order."""
    ring = draw(rings(least))
    hosts = draw(st.lists(st.integers(0, 3), min_size=80, max_size=80))
    return replace(ring, hosts=numbered(hosts))


def owned(ring: Ring, server: int, extent: int = END) -> list[KeyRange]:
    """What a server is the first holder of."""
    mine = [shard for shard in range(ring.shards) if ring.holders(shard) == (server,)]
    return coalesce(keys for keys in (ring.range(shard, extent) for shard in mine) if not keys.empty)


def span(ranges: list[KeyRange]) -> int:
    return sum(keys.span for keys in ranges)


def fullest(ring: Ring) -> float:
    """The load of the fullest server, over the mean load."""
    loads = dict.fromkeys(ring.servers, 0)
    for shard in range(ring.shards):
        loads[ring.holders(shard)[0]] += ring.range(shard).span
    return max(loads.values()) * len(loads) / END


@given(rings(), extents)
def test_shards_cut_the_whole_space(ring: Ring, extent: int) -> None:
    cuts = ring.cuts(extent)
    assert cuts.dtype == np.uint64
    assert len(cuts) == ring.shards
    assert cuts[0] == 0
    assert int(cuts[-1]) < extent
    assert all(left <= right for left, right in pairwise(cuts.tolist()))
    ranges = [ring.range(shard, extent) for shard in range(ring.shards)]
    assert [keys.begin for keys in ranges] == cuts.tolist()
    assert all(left.end == right.begin for left, right in pairwise(ranges))
    assert coalesce(keys for keys in ranges if not keys.empty) == [KeyRange(0, extent)]
    if extent == END:
        assert not any(keys.empty for keys in ranges)
    with pytest.raises(ValueError, match="read-only"):
        cuts[0] = 3


@given(rings(), st.integers(0, 9), extents)
def test_every_shard_is_held_by_as_many_distinct_servers_as_asked_for(
    ring: Ring, k: int, extent: int
) -> None:
    for shard in range(ring.shards):
        holders = ring.holders(shard, k)
        assert len(holders) == len(set(holders)) == min(k + 1, len(ring.servers))
        assert set(holders) <= set(ring.servers)
        assert holders[:1] == ring.holders(shard)
    assert coalesce(keys for server in ring.servers for keys in owned(ring, server, extent)) == [
        KeyRange(0, extent)
    ]


@given(rings(), st.integers(0, 4))
def test_shards_do_not_depend_on_the_servers(ring: Ring, k: int) -> None:
    """They never split or merge, so their cuts depend on slots alone; more slots only cut finer."""
    alone = Ring((7,) + (VACANT,) * (len(ring.slots) - 1), ring.virtual_servers)
    assert alone.shards == ring.shards
    assert alone.cuts().tolist() == ring.cuts().tolist()
    more = Ring(ring.slots + (VACANT,) * k, ring.virtual_servers)
    assert set(ring.cuts().tolist()) <= set(more.cuts().tolist())


@given(rings(), st.integers(0, 4), extents)
def test_vacant_slots_leave_the_owners_of_keys_alone(ring: Ring, k: int, extent: int) -> None:
    more = Ring(ring.slots + (VACANT,) * k, ring.virtual_servers)
    for server in ring.servers:
        assert owned(more, server, extent) == owned(ring, server, extent)


@given(rings(), st.integers(60, 70), extents)
def test_a_joining_server_takes_shards_and_no_other_shard_moves(
    ring: Ring, newcomer: int, extent: int
) -> None:
    ring = Ring((*ring.slots, VACANT), ring.virtual_servers)
    joined = ring.join(newcomer)
    mine = [shard for shard in range(joined.shards) if joined.holders(shard) == (newcomer,)]
    assert mine
    assert moved(ring, joined) == mine
    assert moved(joined, joined.leave(newcomer)) == mine
    assert joined.leave(newcomer).slots == ring.slots
    for server in ring.servers:  # by keys: nobody else gets any
        before = owned(ring, server, extent)
        assert coalesce(before + owned(joined, server, extent)) == before


@given(rings(), st.integers(60, 70), st.integers(0, 4))
def test_a_joining_server_changes_only_its_own_chains(ring: Ring, newcomer: int, k: int) -> None:
    ring = Ring((*ring.slots, VACANT), ring.virtual_servers)
    joined = ring.join(newcomer)
    for shard in range(ring.shards):
        before, now = ring.holders(shard, k), joined.holders(shard, k)
        others = tuple(server for server in now if server != newcomer)
        assert others == before[: len(others)], "the others keep their order, and at most the last one goes"
        assert newcomer in now or now == before


@given(rings(least=2), st.integers(0, 4), extents, st.data())
def test_a_departed_server_gives_each_shard_to_its_first_backup(
    ring: Ring, k: int, extent: int, data: st.DataObject
) -> None:
    departed = data.draw(st.sampled_from(ring.servers))
    left = ring.leave(departed)
    assert departed not in left.servers
    assert owned(left, departed, extent) == []
    assert moved(ring, left) == [s for s in range(ring.shards) if ring.holders(s) == (departed,)]
    for shard in range(ring.shards):
        rest = [server for server in ring.holders(shard, k) if server != departed]
        assert list(left.holders(shard, k))[: len(rest)] == rest
    spare = left.join(99)
    if left.slots.index(VACANT) == ring.slots.index(departed):  # a spare steps into the slot of the departed
        assert owned(spare, 99, extent) == owned(ring, departed, extent)


@given(rings(), st.integers(0, 4), st.data())
def test_replicas_are_in_the_order_of_succession(ring: Ring, k: int, data: st.DataObject) -> None:
    shard = data.draw(st.integers(0, ring.shards - 1))
    remaining = ring
    for holder in ring.holders(shard, k):
        assert remaining.holders(shard) == (holder,)
        if len(remaining.servers) > 1:
            remaining = remaining.leave(holder)


# Several hosts.


@given(spread(), st.integers(0, 9))
def test_copies_are_on_as_many_hosts_as_there_can_be(ring: Ring, k: int) -> None:
    hosts = {ring.host(server) for server in ring.servers}
    for holders in ring.chains(k):
        assert len(holders) == len(set(holders)) == min(k + 1, len(ring.servers))
        assert len({ring.host(server) for server in holders}) == min(len(holders), len(hosts))
        first = [ring.host(server) for server in holders[: len(hosts)]]
        assert len(set(first)) == len(first), "each host's first comes before any host's second"


@given(spread(least=2), st.integers(1, 3))
def test_a_replica_is_never_on_its_primarys_host_when_there_are_two(ring: Ring, k: int) -> None:
    if len({ring.host(server) for server in ring.servers}) > 1:
        assert all(ring.host(owner) != ring.host(copy) for owner, copy, *_ in ring.chains(k))


@given(spread(), st.integers(0, 4))
def test_ownership_does_not_depend_on_hosts(ring: Ring, k: int) -> None:
    plain = replace(ring, hosts=())
    assert ring.chains() == plain.chains()
    assert ring.cuts().tolist() == plain.cuts().tolist()
    one = replace(ring, hosts=numbered(["a"] * 80))
    assert one == plain
    for apart in (replace(ring, hosts=tuple([1] * 80)), replace(ring, hosts=tuple(range(80)))):
        assert apart.chains(k) == plain.chains(k), (
            "on one host, and on as many as servers, the order is the plain one"
        )


@given(spread(least=2), st.integers(1, 4), st.data())
def test_with_hosts_too_only_shards_of_the_departed_server_change_their_owner(
    ring: Ring, k: int, data: st.DataObject
) -> None:
    departed = data.draw(st.sampled_from(ring.servers))
    left = ring.leave(departed)
    assert left.hosts == ring.hosts
    for before, now in zip(ring.chains(k), left.chains(k), strict=True):
        assert (before[0] == now[0]) == (before[0] != departed)
        if departed not in before[1:]:
            assert before[0] == departed or now == before


@pytest.mark.parametrize("hosts", [2, 3, 4, 8])
def test_copies_lie_about_as_evenly_as_on_one_host(hosts: int) -> None:
    def fullest_copies(ring: Ring) -> float:
        loads = dict.fromkeys(ring.servers, 0)
        for shard, (_, *copies) in enumerate(ring.chains(1)):
            for copy in copies:
                loads[copy] += ring.range(shard).span
        return max(loads.values()) * len(loads) / END

    for servers in (hosts, 2 * hosts, 4 * hosts, 32):
        in_turn = [rank % hosts for rank in range(servers)]
        apart = fullest_copies(Ring.of(range(servers), hosts=in_turn))
        assert apart < 1.4 * fullest_copies(Ring.of(range(servers)))


def test_two_hosts_of_two_servers_in_full() -> None:
    in_turn = Ring.of(range(4), hosts=["a", "b", "a", "b"])
    assert in_turn.hosts == (0, 1, 0, 1)
    assert [holders[0] for holders in in_turn.chains()] == [0, 3, 2, 1, 3, 2, 3]
    assert in_turn.chains(1) == ((0, 3), (3, 0), (2, 3), (1, 2), (3, 2), (2, 3), (3, 2))
    assert in_turn.holders(0, 3) == (0, 3, 2, 1), "the other host first, then one's own, then the rest"


def test_a_server_copies_the_ranges_that_follow_its_own() -> None:
    """The paper's picture, keys growing counter-clockwise: whoever owns the range before holds a copy."""
    ring = Ring.of([10, 11], 2)  # 10: [0, 1/4), 11: [1/4, 1/2), 10, 11
    quarter = END // 4
    assert owned(ring, 10) == [KeyRange(0, quarter), KeyRange(2 * quarter, 3 * quarter)]
    assert [ring.holders(shard, 1) for shard in range(4)] == [(10, 11), (11, 10), (10, 11), (11, 10)]
    three = Ring.of([10, 11, 12])
    owners = [three.holders(shard)[0] for shard in range(three.shards)]
    for shard, owner in enumerate(owners):
        before = owners[shard - 1]
        assert before != owner
        assert three.holders(shard, 1) == (owner, before)


def test_the_layout_of_few_servers_in_full() -> None:
    def shown(ring: Ring, extent: int) -> tuple[list[int], list[int]]:
        return ring.cuts(extent).tolist(), [ring.holders(shard)[0] for shard in range(ring.shards)]

    assert shown(Ring.of([5]), 1000) == ([0], [5])
    assert shown(Ring.of([5, 7]), 1000) == ([0, 500], [5, 7])
    assert shown(Ring.of([5, 7, 6]), 1200) == ([0, 400, 600, 999], [5, 6, 7, 6])
    assert shown(Ring.of([5, 7, 6]).leave(5), 1200) == ([0, 400, 600, 999], [6, 6, 7, 6])
    assert shown(Ring.of([5, 7], 0, 3), 1200) == ([0, 400, 600, 999], [5, 5, 7, 7])
    assert Ring.of([5, 7], 0, 3).join(6) == Ring.of([5, 7, 6])
    assert Ring.of([5, 7]).leave(5).join(6) == Ring.of([6, 7])


@pytest.mark.parametrize("virtual_servers", [0, 1, 4, 8, 16])
def test_loads_are_even(virtual_servers: int) -> None:
    """The fullest server has under 15 % more than its share; the default under 6 %, with few shards."""
    for servers in [*range(1, 33), 48, 64, 100, 128]:
        ring = Ring.of(range(servers), virtual_servers)
        assert fullest(ring) < 1.15
        if virtual_servers == 0:
            assert fullest(ring) < (1.01 if servers <= 16 else 1.06)
            assert ring.shards <= min(servers * (servers - 1) // 2 + 1, 16 * servers)


@pytest.mark.parametrize("vacant", [1, 4])
def test_loads_are_even_with_vacant_slots(vacant: int) -> None:
    for servers in (1, 2, 3, 7, 16):
        assert fullest(Ring.of(range(servers), 0, servers + vacant)) < 1.01


def test_the_number_of_shards_is_a_function_of_the_slots() -> None:
    assert [Ring.of([0], 0, slots).shards for slots in (1, 2, 7, 16)] == [1, 2, 22, 121]


@pytest.mark.parametrize("servers", [2, 3, 8, 16])
def test_loads_after_a_departure_are_bounded(servers: int) -> None:
    """One server may get all that the departed had; with 16 virtual servers it is spread."""
    for virtual_servers, bound in ((0, 2.0), (16, 1.35)):
        ring = Ring.of(range(servers), virtual_servers)
        assert all(fullest(ring.leave(server)) < bound for server in range(servers))


def test_uniform_keys_load_servers_evenly_for_any_extent() -> None:
    keys = np.random.default_rng(4).integers(0, END, 40_000, dtype=np.uint64, endpoint=False)
    ring = Ring.of(range(7), 0, 9)
    owners = np.array([ring.holders(shard)[0] for shard in range(ring.shards)])
    for extent in (END, 1_355_191):
        scaled = keys if extent == END else keys % np.uint64(extent)
        counts = np.bincount(owners[np.searchsorted(ring.cuts(extent), scaled, "right") - 1], minlength=7)
        assert counts.max() / counts.mean() < 1.05


def test_what_has_moved() -> None:
    ring = Ring.of([1, 2, 3])
    assert moved(ring, Ring.of([1, 2, 3])) == []
    assert moved(Ring.of([3]), Ring.of([4])) == [0]
    assert Ring.of([3]).range(0) == ALL
    assert moved(ring, Ring.of([4, 5, 6])) == list(range(ring.shards))
    assert moved(Ring.of([4], 0, 2), Ring.of([4, 5])) == [1]
    assert Ring.of([4, 5]).range(1, 10) == KeyRange(5, 10)


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


def test_a_server_without_a_host_is_refused() -> None:
    with pytest.raises(ValueError, match="server 2 has no host: there are 2"):
        Ring.of([1, 2], hosts=["a", "b"])
    with pytest.raises(ValueError, match="server 3 has no host"):
        Ring.of([1, 2], 0, 3, ["a", "b", "b"]).join(3)


def test_invalid_changes_and_extents_are_refused() -> None:
    ring = Ring.of([1], 0, 2)
    with pytest.raises(ValueError, match="server 2 is not on the ring"):
        ring.leave(2)
    with pytest.raises(ValueError, match="at least one server"):
        ring.leave(1)
    with pytest.raises(ValueError, match="distinct"):
        ring.join(1)
    with pytest.raises(ValueError, match="no slot is left for server 3: the ring has 2"):
        ring.join(2).join(3)
    for extent in (0, END + 1):
        with pytest.raises(ValueError, match="extent"):
            ring.cuts(extent)
