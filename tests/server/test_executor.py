"""Execution of requests to shards: answers that wait until the caller has received earlier ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.ranges import KeyRange
from mpips.server.executor import MOST_UNSENT
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(4, LayoutSpec(servers=2, workers=1))
SERVER, WORKER = 1, 3
SHARD = 0


@pytest.mark.parametrize("moves", [False, True])
def test_a_pull_of_a_caller_that_does_not_receive_waits_unless_its_shard_moves(moves: bool) -> None:
    van = Network(4).vans[SERVER]
    view = first_view(LAYOUT)
    server = Server(Node(van, LAYOUT, view))
    shard = server.chains.links[SHARD].shard
    assert shard is not None
    segment = shard.create(0, VectorSpec("v", extent=8)).segment
    sent: list[Message] = []
    unsent = {WORKER: MOST_UNSENT + 1}
    van.send = lambda dest, message: sent.append(message)  # type: ignore[method-assign]
    van.unsent = lambda rank: unsent.get(rank, 0)  # type: ignore[method-assign]
    pull = Message(Kind.REQUEST, Command.PULL, WORKER, origin=WORKER, shard=SHARD, time=0)
    pull.range = KeyRange(*segment.ranges[0])
    server.node.shards(pull)
    server.executor.tick()
    assert sent == []
    unsent.clear()
    if moves:
        chain = view.chains[SHARD]._replace(members=(2,), since=1)
        server.node.adopt(replace(view, epoch=1, chains=(chain, *view.chains[1:])))
    server.executor.tick()
    answers = [each for each in sent if each.kind is Kind.REPLY]
    assert [each.time for each in answers] == ([] if moves else [0]), "its caller asks the new primary"
