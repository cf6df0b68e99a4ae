"""The heartbeat timeout grows where many ranks share a core; a slow rank is not taken for a hung one."""

from __future__ import annotations

import pytest

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.launch.oversubscription import LOAD_LIMIT, factor, oversubscription, warning
from mpips.membership.membership import Membership
from mpips.transport.in_memory import Network


@pytest.mark.parametrize(
    ("ranks", "cores", "load", "grown"),
    [(4, 2, 0.0, 1), (8, 2, 8.0, 1), (32, 2, 0.0, 4), (4, 2, 64.0, 8), (64, 64, 64.0, 1), (1, 0, 0.0, 1)],
)
def test_the_timeout_grows_with_the_ranks_per_core(ranks: int, cores: int, load: float, grown: float) -> None:
    assert factor(ranks, cores, load) == grown


def test_this_machine_is_asked() -> None:
    assert oversubscription(1)() >= 1.0
    assert oversubscription(10**6)() > LOAD_LIMIT


def test_a_warning_is_printed() -> None:
    assert warning(8, 1, 2, 1.0) == "" == warning(64, 8, 2, 1.0)
    said = warning(32, 1, 2, 1.0)
    assert said.startswith("32 ranks share 2 cores") and "4 s instead of 1" in said
    assert warning(64, 2, 1, 0.5).startswith("32 ranks share 1 core:")


class Silent:
    """Every rank was heard `since` seconds ago."""

    targets, seldom, follows, muted, hears_muted = (), (), -1, False, False

    def __init__(self) -> None:
        self.since = 0.0

    def silent(self, ranks: list[int], patience: float) -> list[int]:
        return list(ranks) if self.since >= patience else []

    def unconfirmed(self, ranks: list[int], patience: float) -> list[int]:
        return self.silent(ranks, patience)

    def deaf(self, ranks: list[int], patience: float) -> list[int]:
        return []


def test_a_rank_that_is_slow_on_a_crowded_machine_is_not_given_up() -> None:
    spec = LayoutSpec(servers=2, workers=1)
    layout = Layout.of(spec.size(), spec)
    network, heartbeat = Network(layout.size), Silent()
    node = Node(network.vans[0], layout, first_view(layout, replicas=1))
    membership = Membership(node, 1, heartbeat, patience=1.0, oversubscription=lambda: 4.0)
    heartbeat.since = 3.9
    membership.tick()
    assert len(node.view.alive) == layout.size
    heartbeat.since = 4.1
    membership.tick()
    assert membership._detection.silent == {1, 2, 3}
