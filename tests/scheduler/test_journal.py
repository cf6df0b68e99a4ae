"""Journals: a successor gets the same replies and decisions again, and continues where they end."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import GENERATION, Loss, first_view, without
from mpips.errors import RemoteError
from mpips.scheduler.journal import ACKNOWLEDGED_EVERY, COMPACTED_EVERY, FOREVER, Journal
from mpips.tasks.task import Task
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(5, LayoutSpec(servers=1, workers=1, schedulers=3))
FIRST, SECOND, THIRD, SERVER, WORKER = range(5)


class World:
    """A leader, two successors and two callees that count their requests."""

    def __init__(self, copies: int = 2, compacted_every: int = COMPACTED_EVERY) -> None:
        self.network = Network(5)
        self.view = first_view(LAYOUT)
        self.nodes = [Node(van, LAYOUT, self.view) for van in self.network.vans]
        self.journals = [Journal(node, copies, compacted_every) for node in self.nodes[:WORKER]]
        self.gone: set[int] = set()
        self.served: list[tuple[int, int, int]] = []  # (rank, origin, time)
        for rank in (SERVER, WORKER):
            self.nodes[rank].handlers[Command.CALL] = lambda request, rank=rank: self.serve(rank, request)  # type: ignore[misc]
        self.journals[FIRST].lead()

    def serve(self, rank: int, request: Message) -> None:
        self.served.append((rank, request.origin, request.time))
        if request.meta.get("fail"):
            self.nodes[rank].callee.fail(request, RuntimeError("as it was told"))
            return
        rows = np.full((2, 1), float(request.meta["n"]))
        self.nodes[rank].callee.reply(
            request, rows, {"n": request.meta["n"], "rank": rank}, np.arange(2, dtype=np.uint64)
        )

    def settle(self) -> None:
        while sum(node.poll() for node in self.nodes if node.rank not in self.gone):
            pass

    def submit(self, leader: int, numbers: dict[int, Any]) -> tuple[Task, list[Any]]:
        """Ask each rank of `numbers`; return the task, and a list to which its answers come."""
        answers: list[Any] = []

        def deliver(part: int, reply: Message) -> None:
            assert reply.values is not None and reply.keys is not None
            answers.append((part, reply.meta, reply.values[:, 0].tolist(), reply.keys.tolist()))

        parts = []
        for rank, number in numbers.items():
            meta = {"fail": True} if number is None else {"n": number}
            parts.append((rank, Message(Kind.REQUEST, Command.CALL, meta=meta)))
        return self.nodes[leader].tasks.submit(parts, deliver), answers

    def ask(self, leader: int, numbers: dict[int, Any]) -> Any:
        """Ask, wait, and give what came: answers in the order of parts, or the error's text."""
        task, answers = self.submit(leader, numbers)
        self.settle()
        assert task.done
        return str(task.error) if task.error is not None else sorted(answers)

    def decide(self, leader: int, value: Any) -> Any:
        """Decide while the others process messages."""
        node = self.nodes[leader]
        idle, turns = node.van.idle, iter(range(50))

        def others() -> None:
            next(turns)
            self.settle()

        node.van.idle = others  # type: ignore[method-assign]
        try:
            return self.journals[leader].decide(lambda: value)
        finally:
            node.van.idle = idle  # type: ignore[method-assign]

    def succeed(self, dead: int, heir: int) -> None:
        """Let the leader die, and the next one succeed it."""
        self.gone.add(dead)
        before = self.view
        view = without(
            replace(before, epoch=GENERATION * (before.epoch // GENERATION + 1), leader=heir),
            [Loss(dead, "scheduler", "died", 0.0)],
        )  # fmt: skip
        self.view = view
        for node in self.nodes:
            if node.rank not in self.gone:
                node.adopt(view)
        self.journals[heir].lead()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("decide"), st.integers(0, 99)),
        st.tuples(
            st.just("ask"), st.dictionaries(st.sampled_from([SERVER, WORKER]), st.integers(0, 99), min_size=1)
        ),
        st.tuples(st.just("ask"), st.just({WORKER: None})),
    ),
    max_size=40,
)


def play(world: World, leader: int, program: list[tuple[str, Any]], shift: int = 0) -> list[Any]:
    """Run a program; a decision that is made anew comes out otherwise by `shift`."""
    out = []
    for what, value in program:
        out.append(world.decide(leader, value + shift) if what == "decide" else world.ask(leader, value))
    return out


@settings(max_examples=60)
@given(steps, st.integers(0, 40), st.integers(0, 40))
def test_a_successor_gets_the_same_replies(program: list[tuple[str, Any]], first: int, second: int) -> None:
    """One after the other die after some steps; the next one begins from the start."""
    world = World()
    reported = play(world, FIRST, program[:first])
    served = list(world.served)
    world.succeed(FIRST, SECOND)
    again = play(world, SECOND, program[:first], shift=1000)
    assert again == reported, "replies and decisions alike"
    assert world.served == served, "nobody was asked twice"
    assert not world.journals[SECOND].replaying
    reported += play(world, SECOND, program[first : first + second], shift=1000)
    served = list(world.served)
    world.succeed(SECOND, THIRD)
    assert play(world, THIRD, program[: first + second], shift=2000) == reported
    assert world.served == served
    rest = play(world, THIRD, program[first + second :], shift=2000)
    assert len(reported) + len(rest) == len(program)
    assert len(set(world.served)) == len(world.served)
    assert {origin for _, origin, _ in world.served} <= {FIRST}, "all in the name of the one scheduler"


def test_what_was_asked_and_not_answered_is_asked_again_under_its_name() -> None:
    world = World()
    assert world.ask(FIRST, {SERVER: 1}) != ""
    world.submit(FIRST, {SERVER: 2, WORKER: 3})
    for rank in (SERVER, WORKER):  # they execute it, and answer a dead leader
        while world.nodes[rank].poll():
            pass
    served = list(world.served)
    assert len(served) == 3
    world.succeed(FIRST, SECOND)
    world.settle()
    assert world.ask(SECOND, {SERVER: 1})[0][1] == {"n": 1, "rank": SERVER}
    assert [meta for _, meta, _, _ in world.ask(SECOND, {SERVER: 2, WORKER: 3})] == [
        {"n": 2, "rank": SERVER}, {"n": 3, "rank": WORKER},
    ]  # fmt: skip
    assert world.served == served, "whoever had executed it answered from what it had kept"


def test_a_failure_is_replayed_too() -> None:
    world = World()
    said = world.ask(FIRST, {WORKER: None})
    assert "rank 4 (worker 0 on " in said and "as it was told" in said
    world.succeed(FIRST, SECOND)
    task, _ = world.submit(SECOND, {WORKER: None})
    world.settle()
    assert isinstance(task.error, RemoteError) and task.error.rank == WORKER
    assert str(task.error) == said and len(world.served) == 1


def test_a_decision_is_with_the_successors_before_anything_follows() -> None:
    world = World()
    assert world.decide(FIRST, {"folder": "a", "at": [1, 2.5, None]}) == {"folder": "a", "at": [1, 2.5, None]}
    for rank in (SECOND, THIRD):
        assert world.journals[rank].log.decisions == {0: {"folder": "a", "at": [1, 2.5, None]}}
    waiting = World()
    with pytest.raises(TimeoutError):

        def give_up() -> None:
            raise TimeoutError

        waiting.nodes[FIRST].van.idle = give_up  # type: ignore[method-assign]
        waiting.journals[FIRST].decide(lambda: 7)
    assert waiting.journals[SECOND].log.decisions == {}


def test_a_callee_keeps_a_reply_until_the_successors_have_it() -> None:
    world = World(copies=1)
    tasks = world.nodes[FIRST].tasks
    for number in range(3 * ACKNOWLEDGED_EVERY):
        world.ask(FIRST, {SERVER: number})
    assert 0 < tasks.acked <= 3 * ACKNOWLEDGED_EVERY, "they say every so often how many they have"
    before = tasks.acked
    world.gone.add(SECOND)  # it hears nothing for a while
    for number in range(3 * ACKNOWLEDGED_EVERY):
        world.ask(FIRST, {SERVER: number})
    assert tasks.acked == before
    kept = world.nodes[SERVER].callee.inbox.callers()[FIRST][2]
    assert set(range(before, 6 * ACKNOWLEDGED_EVERY)) <= set(kept)
    world.gone.clear()
    world.settle()
    world.ask(FIRST, {SERVER: 0})
    assert tasks.acked > before
    assert Journal(World().nodes[FIRST])._stable_time() == FOREVER, "without successors nothing need be kept"


def test_a_late_follower_gets_all() -> None:
    world = World(copies=1)
    program: list[tuple[str, Any]] = [
        ("ask", {SERVER: 4}), ("decide", 5), ("ask", {WORKER: 6, SERVER: 7}), ("decide", 8),
    ]  # fmt: skip
    reported = play(world, FIRST, program)
    assert world.journals[THIRD].log.decisions == {}, "one copy"
    # The one that had it dies; the next in the succession is told everything from the start.
    world.gone.add(SECOND)
    world.view = without(replace(world.view, epoch=1), [Loss(SECOND, "scheduler", "died", 0.0)])
    for node in world.nodes:
        if node.rank != SECOND:
            node.adopt(world.view)
    world.settle()
    assert world.journals[THIRD].log.decisions == {0: 5, 1: 8}
    assert len(world.journals[THIRD].log.replies) == 3
    world.succeed(FIRST, THIRD)
    assert play(world, THIRD, program, shift=1000) == reported


def test_entries_that_come_late_or_twice_are_taken_in_order() -> None:
    world = World()
    for number in range(6):
        world.submit(FIRST, {SERVER: number})
    world.settle()
    leader, entries = world.journals[FIRST], list(world.journals[FIRST].log.entries)
    other = Journal(world.nodes[THIRD], 0)
    handle = world.nodes[THIRD].controls[Command.LOG]
    for entry in [*reversed(entries), entries[2]]:
        entry.sender = FIRST
        handle(entry)
    assert other.log.replies.keys() == leader.log.replies.keys()
    assert len(other.log.entries) == 6


# Restart points.

PREFIX, EVERY = 3, 8
"""Entries before the first turn; entries after which a snapshot is due."""


def turns(world: World, leader: int, count: int) -> tuple[list[Any], int]:
    """Run a program up to a number of turns; return what it has accumulated, and how many turns this leader ran."""
    seen = [world.decide(leader, 3), world.ask(leader, {SERVER: 1, WORKER: 2})]
    at, ran = 0, 0
    while at < count:
        later = world.journals[leader].compact(partial(dict, at=at, seen=seen))
        if later is not None:
            at, seen = later["at"], list(later["seen"])
        seen = [*seen[-4:], world.ask(leader, {SERVER: at, WORKER: -at}), world.decide(leader, at)]
        at, ran = at + 1, ran + 1
    return seen, ran


@settings(max_examples=30)
@given(first=st.integers(0, 12), second=st.integers(0, 12))
def test_a_successor_continues_from_a_snapshot(first: int, second: int) -> None:
    total = first + second + 1
    world, alone = World(compacted_every=EVERY), World()
    expected, _ = turns(alone, FIRST, total)
    turns(world, FIRST, first)
    for rank, count in ((SECOND, first + second), (THIRD, total)):
        before = list(world.served)
        world.succeed(rank - 1, rank)
        seen, ran = turns(world, rank, count)
        assert len(set(world.served)) == len(world.served), "nobody was asked twice"
        assert ran <= count - (first if rank == SECOND else first + second) + EVERY, "few turns are repeated"
        assert world.served[: len(before)] == before
    assert json.loads(json.dumps(seen)) == json.loads(json.dumps(expected))
    assert sorted(world.served) == sorted(alone.served)
    log = world.journals[THIRD].log
    assert len(log.entries) <= PREFIX + 1 + 2 * EVERY, "the journal does not grow"
    assert len(log.replies) + len(log.decisions) <= PREFIX + 2 * EVERY


def test_a_late_follower_gets_the_snapshot_and_what_came_after() -> None:
    world = World(copies=1, compacted_every=EVERY)
    expected, _ = turns(world, FIRST, 20)
    world.gone.add(SECOND)
    world.view = without(replace(world.view, epoch=1), [Loss(SECOND, "scheduler", "died", 0.0)])
    for node in world.nodes:
        if node.rank != SECOND:
            node.adopt(world.view)
    world.settle()
    log = world.journals[THIRD].log
    assert log.snapshot is not None and len(log.entries) < 3 * EVERY
    world.succeed(FIRST, THIRD)
    seen, ran = turns(world, THIRD, 20)
    assert json.loads(json.dumps(seen)) == json.loads(json.dumps(expected)) and ran <= EVERY


def test_a_snapshot_waits_for_tasks_that_are_under_way() -> None:
    world = World(compacted_every=1)
    journal = world.journals[FIRST]
    journal.compact(dict)
    world.ask(FIRST, {SERVER: 1})
    world.submit(FIRST, {WORKER: 2})
    journal.compact(dict)
    assert journal.log.snapshot is None
    world.settle()
    journal.compact(dict)
    assert journal.log.snapshot is not None


def test_a_message_without_metadata_cannot_be_given_some() -> None:
    """All such messages share them."""
    with pytest.raises(TypeError, match="snapshot"):
        Message(Kind.CONTROL, Command.LOG).meta["snapshot"] = 1
    assert Message(Kind.CONTROL, Command.LOG).meta == {}
