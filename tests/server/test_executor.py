"""Execution of requests to shards: answers that wait until the caller has received earlier ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["evict", "set_rows"])
def test_rows_are_not_dropped_or_set_in_a_round_and_copies_do_not_do_it_either(
    name: str, compiled: bool
) -> None:
    """Copies have no parts of rounds, and would do what the primary refuses."""
    layout = Layout.of(5, LayoutSpec(servers=2, workers=2))
    van = Network(5).vans[SERVER]
    server = Server(Node(van, layout, first_view(layout, replicas=1)))
    link = server.chains.links[SHARD]
    shard = link.shard
    assert shard is not None
    segment = shard.create(0, VectorSpec("v", update="adagrad", aggregate=True)).segment
    keys = np.array([segment.ranges[0].begin], np.uint64)
    sent: list[Message] = []
    van.send = lambda dest, message: sent.append(message)  # type: ignore[method-assign]
    part = Message(Kind.REQUEST, Command.PUSH, WORKER, origin=WORKER, shard=SHARD, time=0, round=0)
    part.range, part.keys, part.values = KeyRange(*segment.ranges[0]), keys, np.ones((1, 1))
    if compiled:
        # As if kernels had it.
        parts = [part]
        server.fast_path.take_parts = lambda *of: [parts.pop()] if parts else []  # type: ignore[method-assign]
    else:
        server.node.shards(part)
    args: dict[str, object] = {"number": 0}
    call = Message(Kind.REQUEST, Command.CALL, WORKER, origin=WORKER, shard=SHARD, time=1)
    if name == "evict":
        args |= {"least": 0, "usage": "n", "decay": 0.5, "also": []}
    else:
        call.keys, call.values = keys, np.full((1, 1), 7.0)
    call.meta = {"call": name, "args": args}
    server.node.shards(call)
    (answer,) = [each for each in sent if each.time == 1]
    assert answer.kind is Kind.FAILURE and "while pushes of a round are under way" in str(answer.meta)
    assert not [each for each in sent if each.kind is Kind.CHAIN] and shard.changes == 0
