"""The leader knows the number of retransmissions, and gets no messages while there are none."""

from __future__ import annotations

from collections import Counter

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.rank.retransmission_counts import RetransmissionCounts
from mpips.transport.in_memory import Network


def test_only_changed_counts_are_reported_to_the_leader() -> None:
    spec = LayoutSpec(servers=1, workers=1)
    layout = Layout.of(spec.size(), spec)
    network = Network(layout.size)
    nodes = [Node(network.vans[rank], layout, first_view(layout)) for rank in (0, 2)]
    leader, worker = nodes
    counts = [RetransmissionCounts(node) for node in nodes]

    def pass_by(seconds: float) -> None:
        end = network.time + seconds
        while network.time < end:
            network.time += 0.1
            for node in nodes:
                node.poll()

    pass_by(3.0)
    assert worker.van.sent_messages == 0 and counts[0].total() == Counter()
    worker.resent["moved"] += 2
    pass_by(5.0)
    assert worker.van.sent_messages == 1 and counts[0].total() == {"moved": 2}
    worker.resent["lost"] += 1
    leader.resent["moved"] += 1
    pass_by(5.0)
    assert worker.van.sent_messages == 2 and counts[0].total() == {"moved": 3, "lost": 1}
