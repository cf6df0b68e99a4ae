"""Admission: which requests to a server's shards are executed now, which wait, and for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import View, first_view
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import Network
from mpips.transport.key_cache import sign
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(4, LayoutSpec(servers=2, workers=1))
SERVER, WORKER = 1, 3
SPEC = VectorSpec("v", extent=8)
SHARD = 0


class Primary:
    """A server that is the primary of one shard, and the replies that it has sent."""

    def __init__(self) -> None:
        self.view = first_view(LAYOUT)
        van = Network(4).vans[SERVER]
        self.node = Node(van, LAYOUT, self.view)
        self.server = Server(self.node)
        self.sent: list[Message] = []
        van.send = lambda dest, message: self.sent.append(message)  # type: ignore[method-assign]
        self.arriving = False
        van.arriving = lambda rank: self.arriving  # type: ignore[method-assign]
        link = self.server.chains.links[SHARD]
        assert link.shard is not None and link.primary
        link.shard.create(0, SPEC)
        self.keys = np.arange(*link.shard.vectors[0].segment.ranges[0], dtype=np.uint64)[:2]

    def push(self, time: int, **fields: Any) -> Message:
        request = Message(Kind.REQUEST, Command.PUSH, WORKER, origin=WORKER, shard=SHARD, time=time, **fields)
        request.keys, request.values = self.keys, np.ones((len(self.keys), 1))
        return request

    def take(self, request: Message) -> list[tuple[Kind, int]]:
        """Take a request; return the kinds and times of what was answered."""
        self.sent.clear()
        request.epoch = self.node.view.epoch
        self.node.shards(request)
        return self.answers()

    def answers(self) -> list[tuple[Kind, int]]:
        return [(each.kind, each.time) for each in self.sent if each.kind is not Kind.CONTROL]

    def change(self, how: Callable[[View], View]) -> list[tuple[Kind, int]]:
        self.sent.clear()
        self.view = how(replace(self.view, epoch=self.view.epoch + 1))
        self.node.adopt(self.view)
        return self.answers()

    def set_closing(self, closing: bool) -> list[tuple[Kind, int]]:
        def change(view: View) -> View:
            chain = view.chains[SHARD]._replace(closing=closing, since=view.epoch)
            return replace(view, chains=(chain, *view.chains[1:]))

        return self.change(change)


def test_requests_to_a_chain_that_is_closing_wait_until_it_is_open_again() -> None:
    primary = Primary()
    assert primary.take(primary.push(0)) == [(Kind.REPLY, 0)]
    assert primary.set_closing(True) == []
    assert primary.take(primary.push(1)) == [] and primary.take(primary.push(2)) == []
    assert primary.set_closing(False) == [(Kind.REPLY, 1), (Kind.REPLY, 2)]
    assert primary.take(primary.push(3)) == [(Kind.REPLY, 3)]


def test_requests_that_wait_for_a_shard_of_another_server_are_dropped() -> None:
    primary = Primary()
    primary.set_closing(True)
    primary.take(primary.push(1))

    def leave(view: View) -> View:
        chain = view.chains[SHARD]._replace(members=(2,), closing=False, since=view.epoch)
        return replace(view, chains=(chain, *view.chains[1:]))

    assert primary.change(leave) == [] and SHARD not in primary.server.chains.links
    assert primary.take(primary.push(2)) == []


def test_a_push_whose_change_of_workers_is_over_is_dropped() -> None:
    primary = Primary()
    primary.change(lambda view: replace(view, workers_since=view.epoch))
    request = primary.push(0, round=3)
    request.epoch = 0
    primary.node.shards(request)
    assert primary.answers() == []


def signed(primary: Primary, time: int) -> Message:
    request = primary.push(time)
    request.keys, request.signature = None, sign(primary.keys)
    return request


def test_unknown_keys_are_asked_for_unless_they_are_on_their_way() -> None:
    primary = Primary()
    assert primary.take(signed(primary, 0)) == [(Kind.SEND_KEYS, 0)]
    primary.arriving = True
    assert primary.take(signed(primary, 1)) == []
    known = primary.push(2)
    known.signature = sign(primary.keys)
    assert sorted(primary.take(known)) == [(Kind.REPLY, 1), (Kind.REPLY, 2)]
    assert primary.take(signed(primary, 3)) == [(Kind.REPLY, 3)]


def test_a_request_whose_keys_come_while_its_chain_is_closing_waits_on() -> None:
    """A shard that was reported as drained must not change."""
    primary = Primary()
    primary.arriving = True
    assert primary.take(signed(primary, 1)) == []
    primary.set_closing(True)
    primary.arriving = False
    primary.sent.clear()
    primary.server.admission.admit_keyless()
    assert primary.answers() == []
    assert primary.set_closing(False) == [(Kind.SEND_KEYS, 1)]


def test_a_probe_names_what_has_not_arrived_and_repeats_what_is_answered() -> None:
    primary = Primary()
    primary.take(primary.push(0))
    probe = Message(Kind.PROBE, Command.CALL, WORKER, origin=WORKER, shard=SHARD, after=((0, 0), (1, 0)))
    assert primary.take(probe) == [(Kind.REPLY, 0), (Kind.MISSING, 0)]
    assert primary.sent[-1].after == ((1, 2),)
    primary.set_closing(True)
    assert primary.take(probe) == [], "requests may be waiting that are not in the table yet"
