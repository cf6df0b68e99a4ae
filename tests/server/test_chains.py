"""A server's chains: what is applied at once and what later, and the reports to the leader."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import View, first_view
from mpips.server.chains import MOST_BACKLOG
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(4, LayoutSpec(servers=2, workers=1))
MEMBER = 2


def member() -> tuple[Server, int, list[Message]]:
    """Return a server, a shard of which it is the second member, and what it sends."""
    view = first_view(LAYOUT, replicas=1)
    van = Network(4).vans[MEMBER]
    server = Server(Node(van, LAYOUT, view))
    sent: list[Message] = []
    van.send = lambda dest, message: sent.append(message)  # type: ignore[method-assign]
    number = next(n for n, chain in enumerate(view.chains) if chain.members[1] == MEMBER)
    shard = server.chains.links[number].shard
    assert shard is not None
    shard.create(0, VectorSpec("v", extent=100))
    return server, number, sent


def change(server: Server, number: int, time: int) -> Message:
    shard = server.chains.links[number].shard
    assert shard is not None
    made = Message(
        Kind.CHAIN, Command.PUSH, shard=number, time=time, after=((3, time), (0, int(Command.PUSH)))
    )
    made.sender = server.node.view.chains[number].members[0]
    made.keys = np.array([shard.vectors[0].segment.ranges[0].begin], np.uint64)
    made.values = np.ones((1, 1))
    return made


def test_changes_of_other_primaries_wait_for_an_idle_moment_and_are_applied_one_by_one() -> None:
    server, number, _ = member()
    shard = server.chains.links[number].shard
    assert shard is not None
    for time in (1, 2):
        server.node.shards(change(server, number, time))
    assert shard.changes == 0
    assert server.chains.apply_queued() and shard.changes == 1
    assert server.chains.apply_queued() and shard.changes == 2
    assert not server.chains.apply_queued()


def test_the_queue_of_changes_is_bounded() -> None:
    server, number, _ = member()
    shard = server.chains.links[number].shard
    assert shard is not None
    for time in range(1, MOST_BACKLOG + 4):
        server.node.shards(change(server, number, time))
    assert shard.changes == 3


def test_all_changes_are_applied_before_a_new_view_and_a_drained_shard_is_reported_once() -> None:
    server, number, sent = member()
    shard = server.chains.links[number].shard
    assert shard is not None
    for time in (1, 2, 3):
        server.node.shards(change(server, number, time))
    view = replace(server.node.view, epoch=1)

    def lead(view: View, closing: bool) -> View:
        chain = view.chains[number]._replace(members=(MEMBER,), closing=closing, since=view.epoch)
        return replace(view, chains=tuple(chain if n == number else c for n, c in enumerate(view.chains)))

    server.node.adopt(lead(view, closing=True))
    assert shard.changes == 3
    for _ in range(2):
        server.chains.tick()
    drained = [each for each in sent if each.command is Command.DRAINED]
    assert [each.meta["shard"] for each in drained] == [number]
    assert [link.number for link in server.chains.primary_links()].count(number) == 1
