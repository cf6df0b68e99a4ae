"""Chains as state machines: all members have each answered change, whatever dies, is lost, repeated or late.

A `Chainland` is one shard's chain on several servers, each with its own idea of the view, and a bag of messages in
between that a seed empties. The view functions are the real ones; the shard is a list of what was applied.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.cluster.layout import Layout, LayoutSpec, Role
from mpips.cluster.view import (
    NOBODY,
    Chain,
    Loss,
    View,
    first_view,
    next_epoch,
    repaired,
    with_learner_joined,
    with_ring_order,
    with_server,
    without,
    without_server,
)
from mpips.errors import ShardLost
from mpips.server import migration
from mpips.server.migration import RateLimit
from mpips.server.replication import Link
from mpips.storage.disk.buffer import Buffer
from mpips.transport.message import Command, Kind, Message

LEADER = 0
THREE = Chain((1, 2, 3))


class Listed:
    """A shard that is the list of what was applied to it."""

    number = 0

    def __init__(self) -> None:
        self.log: list[int] = []

    @property
    def changes(self) -> int:
        return len(self.log)

    def abandon(self) -> None:
        """There is nothing that only a primary knows."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "CHUNK", 24)
    monkeypatch.setattr(migration, "WINDOW", 2)
    monkeypatch.setattr(migration, "pack", pack)


def make_shard(_: int) -> Any:
    return Listed()


def pack(shard: Any) -> Buffer:
    return Buffer.of(np.array([shard.changes, *shard.log], np.int64).view(np.uint8))


def fill(packed: Buffer, shard: Any) -> None:
    changes, *shard.log = packed.read(0, len(packed)).view(np.int64).tolist()
    assert changes == shard.changes


def repeat(shard: Any, change: Message) -> None:
    shard.log.append(change.meta["token"])


class Server:
    """One server's link, if it is of the chain, and what it believes."""

    def __init__(self, land: Chainland, rank: int, view: View) -> None:
        self.land, self.rank, self.view = land, rank, view
        self.early: list[Message] = []
        self.link: Link | None = None
        self.rate_limit = RateLimit(0.0, lambda: 0.0)
        if rank in view.chains[0].everyone:
            self.link = self.new_link(Listed())

    def new_link(self, shard: Any) -> Link:
        return Link(0, self.rank, self.view.chains[0], shard, self.send, repeat, self.rate_limit)

    def send(self, dest: int, message: Message) -> None:
        message.sender, message.epoch = self.rank, self.view.epoch
        self.land.post(dest, copy(message))

    def tell(self, command: Command) -> None:
        assert self.link is not None
        self.send(LEADER, Message(Kind.CONTROL, command, time=self.link.chain.since))

    def take(self, message: Message) -> None:
        if self.view.roles[message.sender] is None:
            return
        if message.epoch > self.view.epoch:
            self.early.append(message)
        elif self.link is None:
            return
        elif message.kind is Kind.CHAIN:
            self.link.take(message)
        elif message.command is Command.COPY_RECEIVED:
            self.link.chunk_received(message)
        elif self.link.take_chunk(message, make_shard, fill):
            self.tell(Command.COPY_COMPLETE)

    def adopt(self, view: View) -> None:
        if view.epoch <= self.view.epoch:
            return
        self.view, chain = view, view.chains[0]
        if self.rank not in chain.everyone:
            self.link = None
        elif self.link is None:
            self.link = self.new_link(None)
        elif self.link.chain != chain:
            self.link.rewire(chain)
        early, self.early = self.early, []
        for message in early:
            self.take(message)
        self.tick()

    def tick(self) -> None:
        link = self.link
        if link is None:
            return
        link.send_chunks()
        if link.learning and link.shard is not None:
            self.tell(Command.COPY_COMPLETE)
        if link.chain.closing and link.primary and link.replicated:
            self.tell(Command.DRAINED)
        if self.land.loss:
            link.send_again()

    def push(self, token: int) -> None:
        """Take a client's request, as a server does: apply it once, answer when it is with all."""
        link = self.link
        if link is None or not link.primary or link.chain.closing:
            return
        shard: Any = link.shard
        if token in shard.log:
            link.after_all(lambda: self.land.answer(self, token))
            return
        shard.log.append(token)
        link.announce(lambda: Message(Kind.CHAIN, Command.PUSH, meta={"token": token}))
        link.after_all(lambda: self.land.answer(self, token))

    def knows(self, token: int) -> bool:
        """Whether a member has a change, or has it at hand until its copy counts."""
        link = self.link
        assert link is not None
        early = {change.meta.get("token") for change in link.early.values()}
        return token in early or (link.shard is not None and token in link.shard.log)  # type: ignore[attr-defined]


class Chainland:
    """One chain and all that moves along it; rank 0 is the leader and has no link."""

    def __init__(self, seed: int, servers: int, spares: int, replicas: int, loss: float) -> None:
        self.rng, self.replicas, self.loss = random.Random(seed), replicas, loss
        spec = LayoutSpec(servers=servers, workers=1, spares=spares)
        view = first_view(Layout.of(spec.size(), spec), 0, replicas)
        self.view = replace(view, chains=view.chains[:1])
        ranks = [*view.servers, *view.of(Role.SPARE)]
        self.servers = {rank: Server(self, rank, self.view) for rank in ranks}
        self.bag: list[tuple[int, Message | View]] = []
        self.answered: set[int] = set()
        self.issued = 0

    def post(self, dest: int, message: Message) -> None:
        lossy = self.loss and message.kind is Kind.CHAIN
        if lossy and self.rng.random() < self.loss:
            return
        self.bag += [(dest, message)] * (2 if lossy and self.rng.random() < 0.2 else 1)

    def answer(self, server: Server, token: int) -> None:
        """A client hears that its change is done: it must now be with all that count, by whichever view."""
        if server.rank not in self.servers or self.view.chains[0].members[0] != server.rank:
            return  # a former primary: a client that has seen the view does not believe it
        self.answered.add(token)

    # What can happen.

    def deliver(self) -> None:
        if not self.bag:
            return
        dest, message = self.bag.pop(self.rng.randrange(len(self.bag)))
        if isinstance(message, View):
            if dest in self.servers:
                self.servers[dest].adopt(message)
        elif dest == LEADER:
            self.lead(message)
        elif dest in self.servers:
            self.servers[dest].take(copy(message))

    def lead(self, message: Message) -> None:
        sender = message.sender
        if self.view.roles[sender] is None:
            return
        if message.command is Command.COPY_COMPLETE:
            self.change(lambda view: with_learner_joined(view, 0, sender, message.time))
        else:
            self.change(lambda view: with_ring_order(view, 0, message.time, self.replicas))

    def change(self, how: Callable[[View], View]) -> None:
        view = repaired(how(next_epoch(self.view)), self.replicas)
        if replace(view, epoch=self.view.epoch) == self.view:
            return
        self.view = view
        self.bag += [(rank, view) for rank in self.servers]

    def kill(self) -> None:
        rank = self.rng.choice(sorted(self.servers))
        try:
            without(self.view, [Loss(rank, "server", "died", 0.0)])
        except ShardLost:
            return
        del self.servers[rank]
        # Of what it had sent, some arrives still: all, or nothing, by chance.
        if self.rng.random() < 0.5:
            self.bag = [(d, m) for d, m in self.bag if isinstance(m, View) or m.sender != rank]
        self.change(lambda view: without(view, [Loss(rank, "server", "died", 0.0)]))

    def join(self) -> None:
        spares = self.view.of(Role.SPARE)
        if spares:
            self.change(lambda view: with_server(view, self.rng.choice(spares)))

    def leave(self) -> None:
        if len(self.view.ring.servers) > 1:
            rank = self.rng.choice(self.view.ring.servers)
            self.change(lambda view: without_server(view, rank))

    def push(self) -> None:
        """A client issues a change, or asks again for one that is unanswered, wherever it takes the primary to be."""
        waiting = [token for token in range(self.issued) if token not in self.answered]
        if not waiting or self.rng.random() < 0.6:
            waiting = [self.issued]
            self.issued += 1
        server = self.rng.choice(list(self.servers.values()))
        # A client's own view is not behind that of whoever takes its request at once.
        server.push(self.rng.choice(waiting))

    def step(self) -> None:
        happening = self.rng.choices(
            [self.deliver, self.push, self.tick, self.kill, self.join, self.leave], [60, 20, 5, 1, 1, 1]
        )[0]
        happening()

    def tick(self) -> None:
        self.rng.choice(list(self.servers.values())).tick()

    def check(self) -> None:
        """Whoever is a member now has every answered change; all have the same ones, one behind the other."""
        chain = self.view.chains[0]
        members = [self.servers[rank] for rank in chain.members]
        for server in members:
            assert server.link is not None
            assert all(server.knows(token) for token in self.answered), server.rank
            log = [] if server.link.shard is None else server.link.shard.log  # type: ignore[attr-defined]
            assert len(set(log)) == len(log), "a change was applied twice"

    def settle(self) -> None:
        """Let nothing more die; the last messages arrive, and clients ask until they are answered."""
        self.loss = 0.0
        for _ in range(300):
            while self.bag:
                self.deliver()
            for server in self.servers.values():
                server.tick()
                if server.link is not None:
                    server.link.send_again()
            for token in set(range(self.issued)) - self.answered:
                for server in self.servers.values():
                    server.push(token)
            chain = self.view.chains[0]
            done = chain.learner == NOBODY and len(self.answered) == self.issued
            if done and not self.bag and not chain.closing:
                return
        raise AssertionError(f"never settles: {self.view.chains[0]}, {self.issued - len(self.answered)} left")


@settings(max_examples=150)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.2]),
)
def test_answered_changes_are_with_every_member_and_applied_once(
    seed: int, servers: int, spares: int, replicas: int, loss: float
) -> None:
    land = Chainland(seed, servers, spares, replicas, loss)
    for _ in range(300):
        land.step()
        land.check()
    land.settle()
    land.check()
    chain = land.view.chains[0]
    assert chain.members == land.view.ring.holders(0, replicas)
    logs = []
    for rank in chain.members:
        link = land.servers[rank].link
        assert link is not None and link.shard is not None and link.replicated
        logs.append(link.shard.log)  # type: ignore[attr-defined]
    assert all(log == logs[0] for log in logs), "in the same order"
    assert sorted(logs[0]) == list(range(land.issued)), "each once"


# One chain of three, step by step.


class Row:
    """Three links of one chain, and what each has sent and not had delivered."""

    def __init__(self, chain: Chain = THREE) -> None:
        self.sent: list[tuple[int, int, Message]] = []
        self.links = {rank: self.link(rank, chain, Listed()) for rank in chain.everyone}
        self.answers: list[int] = []

    def link(self, rank: int, chain: Chain, shard: Any) -> Link:
        def send(dest: int, message: Message) -> None:
            message = copy(message)
            message.sender, message.epoch = rank, 9
            self.sent.append((rank, dest, message))

        return Link(0, rank, chain, shard, send, repeat, RateLimit(0.0, lambda: 0.0))

    def log(self, rank: int) -> list[int]:
        shard: Any = self.links[rank].shard
        return list(shard.log)

    def push(self, token: int) -> None:
        shard: Any = self.links[1].shard
        shard.log.append(token)
        self.links[1].announce(lambda: Message(Kind.CHAIN, Command.PUSH, meta={"token": token}))
        self.links[1].after_all(lambda: self.answers.append(token))

    def deliver(self, count: int = 1) -> list[tuple[int, int, str]]:
        moved = []
        for _ in range(count):
            source, dest, message = self.sent.pop(0)
            moved.append((source, dest, message.command.name))
            if message.kind is Kind.CHAIN:
                self.links[dest].take(message)
            elif message.command is Command.COPY_RECEIVED:
                self.links[dest].chunk_received(message)
            else:
                self.links[dest].take_chunk(message, make_shard, fill)
        return moved

    def run(self) -> None:
        while self.sent:
            self.deliver()


def test_a_change_goes_down_the_chain_and_the_acknowledgement_returns() -> None:
    row = Row()
    row.push(5)
    assert row.deliver(2) == [(1, 2, "PUSH"), (2, 3, "PUSH")]
    assert row.answers == [] and not row.links[1].replicated
    assert row.deliver(2) == [(3, 2, "APPLIED"), (2, 1, "APPLIED")]
    assert row.answers == [5] and row.links[1].replicated and row.links[2].replicated
    assert row.log(1) == row.log(2) == row.log(3) == [5]


def test_a_reader_waits_for_what_it_would_see() -> None:
    row = Row()
    row.links[1].after_all(lambda: row.answers.append(-1))
    assert row.answers == [-1]
    row.push(5)
    row.links[1].after_all(lambda: row.answers.append(-2))
    assert row.answers == [-1]
    row.run()
    assert row.answers == [-1, 5, -2]


def test_changes_that_overtake_one_another_are_applied_in_order() -> None:
    row = Row()
    for token in (5, 6, 7):
        row.push(token)
    row.sent.reverse()
    row.run()
    assert row.log(2) == row.log(3) == [5, 6, 7] and row.answers == [5, 6, 7]


def test_a_member_of_one_answers_at_once() -> None:
    row = Row(Chain((1,)))
    row.push(5)
    assert row.answers == [5] and row.sent == []


@pytest.mark.parametrize("delivered", range(5))
@pytest.mark.parametrize("dead", [1, 2, 3])
def test_a_death_at_any_instant_loses_no_answer(dead: int, delivered: int) -> None:
    row = Row()
    row.push(5)
    row.deliver(min(delivered, 1))
    for _ in range(delivered - 1):
        row.deliver()
    rest = tuple(rank for rank in (1, 2, 3) if rank != dead)
    del row.links[dead]
    row.sent = [each for each in row.sent if dead not in each[:2]]
    for link in row.links.values():
        link.rewire(Chain(rest, since=9))
    row.run()
    logs = [row.log(rank) for rank in rest]
    assert logs[0] == logs[1]
    assert all(link.replicated for link in row.links.values())
    if dead != 1:
        assert logs[0] == [5] and row.answers == [5]
    else:
        assert logs[0] == ([5] if delivered else [])


def test_a_learner_gets_a_copy_while_changes_continue() -> None:
    row = Row(Chain((1, 2)))
    for token in range(20):
        row.push(token)
    row.run()
    learning = Chain((1, 2), learner=3, since=9)
    row.links[3] = row.link(3, learning, None)
    for rank in (1, 2):
        row.links[rank].rewire(learning)
    row.links[2].send_chunks()
    chunks = [message for _, dest, message in row.sent if message.command is Command.COPY_CHUNK]
    assert len(chunks) == migration.WINDOW, "unacknowledged at once"
    row.push(20)
    while row.links[3].shard is None:
        row.push(21 + len(row.answers))
        row.deliver(2)
    assert 20 not in row.log(3) or row.log(3) == row.log(1)[: len(row.log(3))]
    row.run()
    assert len(row.answers) == len(row.log(1)), "its acknowledgements count before its copy is complete"
    for link in row.links.values():
        link.rewire(Chain((1, 2, 3), since=10))
    assert row.log(3) == row.log(2) == row.log(1)


def test_acknowledgements_of_a_former_chain_are_ignored() -> None:
    row = Row()
    row.push(5)
    row.deliver(3)  # the last member's acknowledgement has reached the second, whose own is in flight
    (acknowledgement,) = [message for _, dest, message in row.sent if dest == 1]
    row.links[1].rewire(Chain((1, 3), since=10))
    row.links[1].take(acknowledgement)
    assert row.answers == [] and not row.links[1].replicated
