"""The fast path at a server: which shards it serves, and whose requests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.server.server import Server
from mpips.transport.fastpath.table import (
    BEGIN,
    COPIES,
    INITIAL,
    NO_PUSH,
    OPEN,
    PULL,
    PUSH,
    REQUESTS,
    VERSION,
)
from mpips.transport.fastpath.unacknowledged import FOLLOWING, IN_PYTHON, LAST_CHANGE, PRECEDING
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(4, LayoutSpec(servers=2, workers=1))
SERVER, WORKER = 1, 3
SHARD = 0
SPEC = {"name": "v", "extent": 8}


def server_of(replicas: int = 0, spec: dict[str, Any] = SPEC) -> Server:
    """Make a server that is the primary of a shard with one vector; what it sends is lost."""
    van = Network(4).vans[SERVER]
    van.send = lambda dest, message: None  # type: ignore[method-assign]
    server = Server(Node(van, LAYOUT, first_view(LAYOUT, replicas=replicas)))
    create = {"call": "create_vector", "args": {"spec": spec, "number": 0, "expect": 0}}
    server.node.shards(Message(Kind.REQUEST, Command.CALL, 0, origin=0, shard=SHARD, time=0, meta=create))
    return server


def columns(server: Server) -> list[bool]:
    """Return whether the vector is open, and for pushes and pulls."""
    part = server.fast_path.table.parts[SHARD, 0]
    return [part[OPEN] == REQUESTS, bool(part[PUSH] != NO_PUSH), bool(part[PULL])]


def test_a_shard_without_copies_is_served_for_pushes_and_pulls() -> None:
    assert columns(server_of(0)) == [True, True, True]


def test_changes_whose_keys_kernels_cannot_list_are_sent_to_copies_by_python() -> None:
    for replicas, pushes in ((0, True), (1, False)):
        server = server_of(replicas, {"name": "v", "key_bits": 128})
        assert columns(server) == [True, pushes, True]


def test_vectors_that_begin_with_other_rows_than_0_are_served_and_new_keys_left_to_python() -> None:
    for replicas in (0, 1):
        server = server_of(replicas, {**SPEC, "init": 0.5})
        assert columns(server) == [True, True, True]
        assert server.fast_path.table.parts[SHARD, 0, INITIAL] == 1


def test_a_closing_chain_is_not_served_after_a_change() -> None:
    server = server_of(1)
    link = server.chains.links[SHARD]
    server.fast_path.close(link)
    link.rewire(link.chain._replace(closing=True))
    server.fast_path.expose(link, 0)
    assert not columns(server)[0]


def test_a_shard_with_copies_is_served_and_python_waits_for_its_own_changes() -> None:
    server = server_of(1)
    link = server.chains.links[SHARD]
    acknowledged = Message(Kind.CHAIN, Command.APPLIED, link.next, shard=SHARD)
    state = server.fast_path.table.unacknowledged.links[SHARD]
    # The vector was created by a change.
    assert columns(server) == [True, True, True]
    assert (state[FOLLOWING], state[LAST_CHANGE], state[IN_PYTHON]) == (1 + link.next, 1, 1)
    assert link.shard is not None
    for change in (1, 2):
        acknowledged.time = change
        server.node.shards(acknowledged)
        assert (state[LAST_CHANGE], state[IN_PYTHON]) == (0, 0)
        push = Message(Kind.REQUEST, Command.PUSH, WORKER, origin=WORKER, shard=SHARD, time=change)
        begin = link.shard.vectors[0].segment.ranges[0].begin
        push.keys, push.values = np.array([begin], np.uint64), np.ones((1, 1))
        server.node.shards(push)
        assert link.shard.changes == change + 1 == server.fast_path.table.parts[SHARD, 0, VERSION]
        assert (state[LAST_CHANGE], state[IN_PYTHON]) == (change + 1, 1)


def test_the_last_member_is_served_unless_python_has_later_changes() -> None:
    server = server_of(1)
    number = next(link.number for link in server.chains if not link.primary)
    link, table = server.chains.links[number], server.fast_path.table
    assert link.shard is not None

    def change(time: int, command: Command) -> None:
        made = Message(Kind.CHAIN, command, link.previous, shard=number, time=time)
        made.after = ((WORKER, time), (0, int(command)))
        if command is Command.CALL:
            made.meta = {"call": "create_vector", "args": {"spec": SPEC, "number": 0, "expect": 0}}
        else:
            made.keys = np.array([table.parts[number, 0, BEGIN]], np.uint64)
            made.values = np.ones((1, 1))
        server.node.shards(made)
        server.chains.apply_queued()

    assert table.unacknowledged.links[number, PRECEDING] == 1 + link.previous
    change(1, Command.CALL)
    assert (table.parts[number, 0, OPEN], table.parts[number, 0, VERSION]) == (COPIES, 1)
    assert table.rows_of[number, WORKER] > 0
    change(3, Command.PUSH)
    assert table.unacknowledged.links[number, PRECEDING] == 0, "what it waits for must come to Python"
    change(2, Command.PUSH)
    assert table.unacknowledged.links[number, PRECEDING] == 1 + link.previous
    assert link.shard.changes == table.parts[number, 0, VERSION] == 3


def test_a_shard_is_not_served_while_its_chain_is_closing() -> None:
    server = server_of()
    table, view = server.fast_path.table, server.node.view
    for epoch, closing in ((1, True), (2, False)):
        chain = view.chains[SHARD]._replace(closing=closing, since=epoch)
        server.node.adopt(replace(view, epoch=epoch, chains=(chain, *view.chains[1:])))
        assert table.parts[SHARD, 0, OPEN] == (not closing)


def test_a_caller_is_served_unless_a_request_of_it_waits_for_another() -> None:
    server = server_of()
    link = server.chains.links[SHARD]
    assert link.shard is not None
    begin = link.shard.vectors[0].segment.ranges[0].begin

    def push(time: int, after: tuple[tuple[int, int], ...] = ()) -> bool:
        """Push; return whether the fast path may serve the caller then."""
        request = Message(
            Kind.REQUEST, Command.PUSH, WORKER, origin=WORKER, shard=SHARD, time=time, after=after
        )
        request.keys, request.values = np.array([begin], np.uint64), np.ones((1, 1))
        server.node.shards(request)
        return bool(server.fast_path.table.rows_of[SHARD, WORKER])

    assert push(0)
    assert not push(2, after=((1, 2),)), "what it waits for must not be finished unnoticed"
    push(1)
    assert push(3), "nothing waits any more"
