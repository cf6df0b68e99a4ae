"""The loss of a host: its servers are replaced, and all chains are whole again, on different hosts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.cluster.layout import Cause, Layout, LayoutSpec, Role
from mpips.cluster.view import (
    NOBODY,
    View,
    first_view,
    next_epoch,
    repaired,
    survives,
    with_learner_joined,
    with_ring_order,
)
from mpips.membership.losses import without_lost


def repaired_whole(view: View, replicas: int) -> View:
    """Return the view once all copies are complete."""
    while True:
        made = next_epoch(view)
        for shard, chain in enumerate(made.chains):
            if chain.learner != NOBODY:
                made = with_learner_joined(made, shard, chain.learner, chain.since)
            made = with_ring_order(made, shard, chain.since, replicas)
        made = repaired(made, replicas)
        if made.chains == view.chains:
            return view
        view = made


@settings(max_examples=60)
@given(
    servers=st.integers(2, 6), spares=st.integers(0, 4), replicas=st.integers(1, 2), hosts=st.integers(2, 4),
    lost=st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True),
)  # fmt: skip
def test_after_the_loss_of_a_host_all_chains_are_whole_on_different_hosts(
    servers: int, spares: int, replicas: int, hosts: int, lost: list[int]
) -> None:
    spec = LayoutSpec(servers=servers, workers=2, spares=spares, schedulers=2)
    layout = Layout.of(spec.size(), spec)
    of = [rank % hosts for rank in range(layout.size)]
    view = first_view(layout, 0, replicas, of)
    for host in lost:
        gone = [rank for rank in view.alive if of[rank] == host]
        if not survives(view, gone):
            # There is one host left, or fewer.
            assert len({of[rank] for rank in view.ring.servers} - {host}) == 0
            return
        servers_lost = sum(view.roles[rank] is Role.SERVER for rank in gone)
        able = sum(rank not in gone for rank in view.spares)
        before = len(view.ring.servers)
        view = without_lost(next_epoch(view), gone, dict.fromkeys(gone, Cause.DIED), 0.0)
        assert len(view.ring.servers) == before - max(servers_lost - able, 0), (
            "spares have taken their places"
        )
        view = repaired_whole(view, replicas)
        on = {of[rank] for rank in view.ring.servers}
        for chain in view.chains:
            assert chain.learner == NOBODY and not chain.closing
            assert len(chain.members) == min(replicas + 1, len(view.ring.servers))
            assert len({of[rank] for rank in chain.members}) == min(len(chain.members), len(on))
