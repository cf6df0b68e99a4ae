"""Views: chains, roles and workers after ranks die, join and leave, in any order."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.cluster.hash_ring import Ring
from mpips.cluster.layout import Layout, LayoutSpec, Role
from mpips.cluster.view import (
    GENERATION,
    NOBODY,
    Chain,
    Loss,
    View,
    first_view,
    next_epoch,
    next_spare,
    repaired,
    spare_worker,
    with_learner_joined,
    with_ring_order,
    with_server,
    with_workers,
    without,
    without_server,
)
from mpips.errors import ShardLost


def make(
    servers: int = 3,
    workers: int = 2,
    spares: int = 1,
    schedulers: int = 1,
    replicas: int = 1,
    virtual: int = 0,
    hosts: int = 1,
) -> View:
    """Make a first view; ranks are dealt to so many hosts in turn."""
    spec = LayoutSpec(servers=servers, workers=workers, spares=spares, schedulers=schedulers)
    layout = Layout.of(spec.size(), spec)
    return first_view(layout, virtual, replicas, [f"n{rank % hosts}" for rank in range(layout.size)])


def loss(view: View, rank: int) -> Loss:
    return Loss(rank, str(view.roles[rank]), "died", 1.5)


def sound(view: View) -> None:
    """Check the invariants of a view."""
    busy = []
    for chain in view.chains:
        assert chain.members
        assert len(set(chain.everyone)) == len(chain.everyone)
        assert all(view.roles[rank] is Role.SERVER for rank in chain.everyone)
        assert chain.since <= view.epoch
        if chain.learner != NOBODY:
            assert not chain.closing
            busy += [chain.members[-1], chain.learner]
    assert len(set(busy)) == len(busy), "nobody feeds or learns two at once"
    assert set(view.ring.servers) <= set(view.servers)
    assert set(view.workers) == set(view.of(Role.WORKER)) and view.workers_since <= view.epoch
    gone = {rank for rank, role in enumerate(view.roles) if role is None}
    assert {each.rank for each in view.losses} == gone and len(view.losses) == len(gone)
    assert View.from_meta(json.loads(json.dumps(view.to_meta()))) == view


def lawful(before: View, after: View) -> None:
    """Check the invariants of a view and the next one: a shard's changes stay with its chain."""
    assert after.epoch == before.epoch + 1
    assert (after.workers_since == after.epoch) == (after.workers != before.workers)
    for old, new in zip(before.chains, after.chains, strict=True):
        assert (new.since == after.epoch) == (new != old)
        assert set(new.members) <= set(old.everyone), "nobody is a member who has not learnt"
        if not old.closing:
            kept = [rank for rank in old.everyone if rank in new.members]
            assert list(new.members) == kept, "another order only after the chain was closing"


def settled(view: View, replicas: int) -> tuple[View, int]:
    """Let all learners learn and all chains drain until nothing changes; return the view and the steps taken."""
    for step in range(400):
        after = next_epoch(view)
        for shard, chain in enumerate(view.chains):
            if chain.learner != NOBODY:
                after = with_learner_joined(after, shard, chain.learner, chain.since)
            elif chain.closing:
                after = with_ring_order(after, shard, chain.since, replicas)
        after = repaired(after, replicas)
        sound(after)
        lawful(view, after)
        if replace(after, epoch=view.epoch) == view:
            return view, step
        view = after
    raise AssertionError("chains never become whole")


class History:
    """A random sequence of views, determined by a seed."""

    def __init__(self, seed: int, view: View, replicas: int) -> None:
        self.rng, self.view, self.replicas = random.Random(seed), view, replicas

    def step(self) -> bool:
        """Make a random change; return whether the cluster survives."""
        happening = self.rng.choice(
            [self.die, self.die, self.join, self.leave, self.regroup, *[self.learn] * 6]
        )
        before = self.view
        hopeless = False
        try:
            made = happening(next_epoch(before))
        except ShardLost:
            hopeless = True
        if hopeless:
            return False
        made = repaired(made, self.replicas)
        sound(made)
        lawful(before, made)
        self.view = made
        return True

    def die(self, view: View) -> View:
        alive = [
            rank for rank in view.alive if rank != view.leader and view.roles[rank] is not Role.SCHEDULER
        ]
        gone = self.rng.sample(alive, min(len(alive), self.rng.choice([1, 1, 2, 3])))
        survive = all(set(chain.members) - set(gone) for chain in view.chains)
        if not survive and self.rng.random() < 0.8:
            return view  # else most histories would be short
        try:
            after = without(view, [loss(view, rank) for rank in gone])
        except ShardLost:
            assert not survive
            raise
        assert survive
        assert not set(gone) & set(after.alive) and set(view.alive) == set(after.alive) | set(gone)
        return after

    def join(self, view: View) -> View:
        spares = view.of(Role.SPARE)
        return with_server(view, self.rng.choice(spares)) if spares else view

    def leave(self, view: View) -> View:
        servers = view.ring.servers
        return without_server(view, self.rng.choice(servers)) if len(servers) > 1 else view

    def regroup(self, view: View) -> View:
        some = [*view.workers, *view.of(Role.SPARE)]
        return with_workers(view, self.rng.sample(some, self.rng.randint(0, len(some))))

    def learn(self, view: View) -> View:
        for shard, chain in enumerate(view.chains):
            if self.rng.random() < 0.5:
                if chain.learner != NOBODY:
                    view = with_learner_joined(view, shard, chain.learner, chain.since)
                view = with_ring_order(view, shard, chain.since, self.replicas)
        return view


views = st.builds(
    make,
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 4),
    st.just(2),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, 4),
)


@settings(max_examples=150)
@given(views, st.integers(0, 2**32), st.integers(0, 3), st.integers(0, 25))
def test_chains_converge_to_the_order_of_the_ring_after_any_changes(
    view: View, seed: int, replicas: int, steps: int
) -> None:
    history = History(seed, view, replicas)
    for _ in range(steps):
        if not history.step():
            return
    final, took = settled(history.view, replicas)
    ring = final.ring
    for shard, chain in enumerate(final.chains):
        assert chain.members == ring.holders(shard, replicas)
        assert chain.learner == NOBODY and not chain.closing
        assert len(chain.members) == min(replicas + 1, len(ring.servers))
        hosts = {ring.host(rank) for rank in ring.servers}
        assert len({ring.host(rank) for rank in chain.members}) == min(len(chain.members), len(hosts))
    assert set(final.servers) == set(ring.servers), "who has given up all shards is a spare again"
    # One copy for each place in each chain, at worst one after the other, and two views to hand the shard over.
    assert took <= (replicas + 3) * ring.shards + 2


@given(views)
def test_the_first_view_is_valid_and_needs_no_repair(view: View) -> None:
    sound(view)
    replicas = len(view.chains[0].members) - 1
    assert repaired(view, replicas) == view
    assert {view.rank_of(~shard) for shard in range(len(view.chains))} == set(view.ring.servers)
    for rank in view.alive:
        assert view.rank_of(rank) == rank
        assert view.primary_of(rank) == [s for s, c in enumerate(view.chains) if c.members[0] == rank]


def test_a_death_promotes_the_next_member_and_changes_no_other() -> None:
    view = make(servers=4, spares=0, replicas=2)
    after = without(next_epoch(view), [loss(view, 2)])
    for shard, (old, new) in enumerate(zip(view.chains, after.chains, strict=True)):
        assert new.members == tuple(rank for rank in old.members if rank != 2)
        assert new.members == after.ring.holders(shard, 2)[: len(new.members)]
        assert new.since == (1 if 2 in old.members else 0)
    assert after.roles[2] is None and after.losses == (Loss(2, "server", "died", 1.5),)
    assert without(after, [loss(view, 2)]) == after, "the second time it is no news"


@given(views, st.data())
def test_the_first_replica_becomes_primary_whatever_the_ring_prescribes(
    view: View, data: st.DataObject
) -> None:
    dead = data.draw(st.sampled_from(view.servers))
    if all(len(chain.members) > 1 for chain in view.chains):
        after = repaired(without(next_epoch(view), [loss(view, dead)]), 1)
        for old, new in zip(view.chains, after.chains, strict=True):
            assert new.members[0] == (old.members[1] if old.members[0] == dead else old.members[0])


@given(views, st.integers(0, 2**32), st.integers(1, 2))
def test_copies_stay_on_two_hosts_while_chains_change(view: View, seed: int, replicas: int) -> None:
    """A chain that is on two hosts is not on one again until somebody dies."""
    history = History(seed, view, replicas)
    for _ in range(12):
        before = history.view
        if not history.step():
            return
        if len({history.view.ring.host(rank) for rank in history.view.ring.servers}) == 1:
            continue  # it may have to
        if history.view.losses == before.losses:
            for old, new in zip(before.chains, history.view.chains, strict=True):
                if apart(before, old):
                    assert apart(history.view, new)


def apart(view: View, chain: Chain) -> bool:
    return len({view.ring.host(rank) for rank in chain.members}) > 1


def test_a_dead_servers_place_goes_to_a_spare_that_keeps_copies_apart() -> None:
    layout = Layout.of(9, LayoutSpec(servers=3, workers=1, spares=4))

    def made(hosts: str) -> View:
        return first_view(layout, 0, 1, hosts)

    # ranks: scheduler, servers 1 to 3, a worker, spares 5 to 8
    assert next_spare(made("aaaaaaaaa")) == 8, "on one host the last one, as the first ones lead sooner"
    assert next_spare(made("aaabaaaab")) == 8, "b has one server, a two"
    view = made("aaababbaa")
    dead = without(next_epoch(view), [loss(view, 3)])
    assert next_spare(dead) == 6, "the last one on the host that has no server now"
    after, _ = settled(repaired(with_server(dead, 6), 1), 1)
    assert all(apart(after, chain) for chain in after.chains)
    dead = without(dead, [loss(view, rank) for rank in (5, 6)])
    assert next_spare(dead) == 8
    assert next_spare(without(dead, [loss(view, rank) for rank in (7, 8)])) is None


def test_hosts_are_kept_in_the_text_of_a_view() -> None:
    view = make(servers=2, spares=1, hosts=2)
    assert view.ring.hosts == (0, 1, 0, 1, 0, 1)
    assert View.from_meta(json.loads(json.dumps(view.to_meta()))) == view
    assert without(next_epoch(view), [loss(view, 1)]).ring.hosts == view.ring.hosts
    assert make(servers=2, spares=1).ring.hosts == ()


def test_an_incomplete_copy_is_started_again_when_the_chain_changes() -> None:
    view = make(servers=3, spares=0, replicas=1)
    one = replace(view, chains=(Chain((1, 2), learner=3), *view.chains[1:]))
    for rank, rest in ((1, (2,)), (2, (1,)), (3, (1, 2))):
        after = without(next_epoch(one), [loss(one, rank)])
        assert after.chains[0] == Chain(rest, since=1)
        assert with_learner_joined(after, 0, 3, 0) == after


def test_a_lost_shard_says_what_would_have_helped() -> None:
    view = make(servers=3, replicas=1, spares=2)
    first = view.chains[0].members
    with pytest.raises(ShardLost, match=r"rank \d, rank \d died.*--resume latest.*ring\.replicas") as caught:
        without(view, [loss(view, rank) for rank in first])
    assert "\n" not in str(caught.value)
    for rank in first:  # either of them alone is no loss
        without(view, [loss(view, rank)])
    with pytest.raises(ShardLost):
        without(make(servers=1, spares=1), [loss(view, 1)])


def test_a_leaving_server_stays_if_it_is_the_last_one() -> None:
    view = make(servers=2, spares=0, replicas=1)
    leaving, other = view.ring.servers
    view = without_server(view, leaving)
    view = replace(view, chains=tuple(Chain((leaving,)) for _ in view.chains))
    after, _ = settled(without(view, [loss(view, other)]), 1)
    assert after.ring.servers == (leaving,)
    assert {chain.members for chain in after.chains} == {(leaving,)}


def test_a_join_without_a_vacant_slot_changes_nothing() -> None:
    view = with_workers(next_epoch(make(servers=2, workers=2, spares=0)), [3])
    assert view.roles[4] is Role.SPARE, "a worker that has left"
    assert with_server(view, 4) == view, "but all slots are taken"
    assert with_server(without_server(view, 1), 4).ring.servers == (4, 2)
    assert with_server(view, 3) == view, "it is a worker"
    left = without_server(without_server(view, 1), 2)
    assert left.ring.servers == (2,), "the last one stays"
    assert without_server(left, 1) == left


def test_a_chain_changes_its_order_only_while_it_is_closed() -> None:
    view = make(servers=2, spares=0, replicas=1)
    shard = 0
    wanted = view.ring.holders(shard, 1)
    view = replace(view, chains=(Chain(wanted[::-1]), *view.chains[1:]))
    closing = repaired(next_epoch(view), 1)
    assert closing.chains[shard] == Chain(wanted[::-1], closing=True, since=1)
    assert repaired(closing, 1) == closing
    assert with_ring_order(closing, shard, 0, 1) == closing, "a word of the chain before"
    after = with_ring_order(next_epoch(closing), shard, 1, 1)
    assert after.chains[shard] == Chain(wanted, since=2)
    assert with_ring_order(view, shard, 0, 1) == view, "it did not close"


def test_a_late_report_changes_nothing() -> None:
    view = make(servers=3, spares=0, replicas=1)
    assert with_learner_joined(view, 0, 3, 0) == view
    view = replace(view, chains=(Chain((1,), learner=2, since=7), *view.chains[1:]))
    assert with_learner_joined(view, 0, 3, 7) == view and with_learner_joined(view, 0, 2, 6) == view
    assert with_learner_joined(view, 0, 2, 7).chains[0] == Chain((1, 2))


def test_workers_come_and_go_in_the_order_that_is_given() -> None:
    view = next_epoch(make(workers=3, spares=2))
    workers, spares = view.workers, view.of(Role.SPARE)
    changed = with_workers(view, [workers[2], spares[1], workers[0]])
    assert changed.workers == (workers[2], spares[1], workers[0]) and changed.workers_since == 1
    assert set(changed.of(Role.SPARE)) == {spares[0], workers[1]}
    same = with_workers(view, workers)
    assert same.workers_since == 0 and same == view
    lost = without(view, [loss(view, workers[1])])
    assert lost.workers == (workers[0], workers[2]) and lost.workers_since == 1


def test_the_leader_comes_first_then_schedulers_spares_and_servers() -> None:
    view = make(servers=2, workers=1, spares=2, schedulers=2)
    assert view.succession() == [0, 1, 5, 6, 2, 3]
    assert replace(view, leader=5).succession() == [5, 0, 1, 6, 2, 3]
    assert view.caller(view.origin) == 0 and view.caller(4) == 4
    later = replace(view, leader=6, epoch=GENERATION)
    assert later.caller(view.origin) == 6, "whoever leads is the scheduler that tasks were issued by"


@settings(max_examples=60)
@given(views, st.integers(0, 2**32), st.integers(0, 12))
def test_the_first_that_may_lead_are_on_as_many_hosts_as_there_can_be(
    view: View, seed: int, steps: int
) -> None:
    history = History(seed, view, 1)
    for _ in range(steps):
        history.step()
    view = history.view
    for leader in view.successors:
        view = replace(view, leader=leader)
        order, host = view.succession(), view.ring.host
        assert order[0] == leader and sorted(order) == sorted(view.successors)
        hosts = {host(rank) for rank in order}
        assert {host(rank) for rank in order[: len(hosts)]} == hosts
        for each in hosts:
            mine = [rank for rank in (leader, *view.successors) if host(rank) == each]
            assert [rank for rank in order if host(rank) == each] == list(dict.fromkeys(mine))


def test_a_lost_rank_is_replaced_on_another_host() -> None:
    def made(hosts: str) -> View:
        spec = LayoutSpec(servers=2, workers=2, spares=3)
        return first_view(Layout.of(8, spec), 0, 1, hosts)

    #             scheduler, 2 servers, 2 workers, 3 spares
    view = made("aabababa")
    assert next_spare(view) == 7 and next_spare(view, 1) == 6, "the lost one was on a"
    assert spare_worker(view, (5, 6, 7), lost=3) == 6 and spare_worker(view, (5, 7), lost=3) == 7
    dead = without(next_epoch(made("aabbbbba")), [loss(view, 1)])
    assert next_spare(dead, 1) == 7, "so that copies are on two hosts, although the lost one was on a, too"


def test_a_ring_of_more_slots_than_servers_is_kept_in_the_text_of_a_view() -> None:
    view = make(servers=2, spares=3, virtual=2)
    assert view.ring == Ring.of((1, 2), 2, 5)
    text = json.dumps(view.to_meta())
    assert View.from_meta(json.loads(text)).ring == view.ring


def test_received_views_leave_no_freed_tuples_behind() -> None:
    # CPython keeps up to 2,000 freed tuples of each length, and uses none where tuples are made from generators.
    meta = json.loads(json.dumps(make(servers=4, workers=4, spares=3).to_meta()))
    tracemalloc.start()
    try:
        for _ in range(50):
            assert View.from_meta(meta).servers
        begin = tracemalloc.get_traced_memory()[0]
        for _ in range(300):
            assert View.from_meta(meta).spares
        assert tracemalloc.get_traced_memory()[0] < begin + 5000
    finally:
        tracemalloc.stop()
