"""Tasks start after what they depend on, exactly once, whatever the network does to their messages."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import RemoteError
from mpips.message import Command, Kind, Message
from mpips.task import Inbox, Task, Tasks


class Wire:
    """One caller (rank 0) and callees 1..n, with a bag of messages in between that a seed empties."""

    def __init__(self, callees: int, window: int = 64, loss: float = 0.0, seed: int = 0) -> None:
        self.rng, self.loss = random.Random(seed), loss
        self.bag: list[tuple[int, Message]] = []
        self.now = 0.0
        self.tasks = Tasks(self.to_callee, window, resend=1.0)
        self.tasks.now = lambda: self.now
        self.inboxes = {rank: Inbox(self._replier(rank)) for rank in range(1, callees + 1)}
        self.started: dict[int, list[tuple[int, int]]] = {rank: [] for rank in self.inboxes}
        self.finished: dict[int, list[int]] = {rank: [] for rank in self.inboxes}
        self.running: list[tuple[int, Message]] = []

    def to_callee(self, dest: int, message: Message) -> None:
        copy = Message(message.kind, message.command, 0, seq=message.seq, acked=message.acked)
        copy.time, copy.after = message.time, message.after
        self._post(dest, copy)

    def _replier(self, rank: int):  # type: ignore[no-untyped-def]
        def send(dest: int, message: Message) -> None:
            message.sender = rank
            self._post(0, message)

        return send

    def _post(self, dest: int, message: Message) -> None:
        if self.rng.random() >= self.loss:
            self.bag.append((dest, message))
            if self.loss and self.rng.random() < 0.2:
                self.bag.append((dest, message))

    def step(self) -> bool:
        """Deliver a random message, or finish a random running request; give whether there was anything."""
        choices = len(self.bag) + len(self.running)
        if not choices:
            return False
        at = self.rng.randrange(choices)
        if at < len(self.bag):
            dest, message = self.bag.pop(at)
            if dest == 0:
                self.tasks.answer(message)
            else:
                self._begin(dest, deque(self.inboxes[dest].admit(message)))
        else:
            rank, request = self.running.pop(at - len(self.bag))
            self.finished[rank].append(request.time)
            reply = Message(Kind.REPLY, Command.CALL)
            self._begin(rank, deque(self.inboxes[rank].finish(request, reply)))
        return True

    def _begin(self, rank: int, requests: deque[Message]) -> None:
        for request in requests:
            self.started[rank].append((request.time, len(self.finished[rank])))
            self.running.append((rank, request))

    def settle(self) -> None:
        for _ in range(100_000):
            while self.step():
                pass
            if not self.tasks.unfinished:
                return
            self.now += 2.0
            self.tasks.resend()
        raise AssertionError("tasks never finish")


def call() -> Message:
    return Message(Kind.REQUEST, Command.CALL)


@settings(max_examples=60)
@given(st.data())
def test_order_and_exactly_once(data: st.DataObject) -> None:
    callees = data.draw(st.integers(1, 3))
    wire = Wire(
        callees,
        window=data.draw(st.integers(1, 6)),
        loss=data.draw(st.sampled_from([0.0, 0.3])),
        seed=data.draw(st.integers(0, 2**32)),
    )
    tasks: list[Task] = []
    depends: list[list[int]] = []
    where: list[list[int]] = []
    for number in range(data.draw(st.integers(1, 25))):
        dests = data.draw(st.lists(st.integers(1, callees), max_size=3))
        after = data.draw(st.lists(st.integers(0, number - 1), max_size=3)) if number else []
        tasks.append(wire.tasks.submit([(d, call()) for d in dests], None, [tasks[a] for a in after]))
        depends.append(after)
        where.append(dests)
        for _ in range(data.draw(st.integers(0, 4))):
            wire.step()
    wire.settle()
    assert all(task.done and task.error is None for task in tasks)
    for rank in wire.inboxes:
        times = [time for time, _ in wire.started[rank]]
        for number, task in enumerate(tasks):
            assert times.count(task.time) == where[number].count(rank)
            for time, finished_before in wire.started[rank]:
                if time != task.time:
                    continue
                for dependency in depends[number]:
                    if rank in where[dependency]:
                        seen = wire.finished[rank][:finished_before]
                        expected = sum(t == tasks[dependency].time for t in times)
                        assert seen.count(tasks[dependency].time) == expected
        assert len(times) == len(wire.finished[rank])
    assert wire.tasks.unfinished == {}


def test_a_dependency_elsewhere_is_waited_for_at_the_caller() -> None:
    wire = Wire(2)
    first = wire.tasks.submit([(1, call())])
    second = wire.tasks.submit([(2, call())], None, [first])
    assert [dest for dest, _ in wire.bag] == [1]
    wire.settle()
    assert second.done


def test_a_dependency_at_the_same_node_travels_with_the_message() -> None:
    wire = Wire(1)
    first = wire.tasks.submit([(1, call())])
    wire.tasks.submit([(1, call())], None, [first])
    assert [message.after for _, message in wire.bag] == [(), ((0, 1),)]


def test_the_window_bounds_what_is_outstanding() -> None:
    wire = Wire(1, window=3)
    tasks = [wire.tasks.submit([(1, call())]) for _ in range(10)]
    assert len(wire.bag) == 3 and wire.tasks.outstanding(1) == 3
    wire.settle()
    assert all(task.done for task in tasks)


def test_memory_is_bounded() -> None:
    wire = Wire(1, window=4)
    for _ in range(500):
        wire.tasks.submit([(1, call())])
        wire.settle()
    state = wire.inboxes[1]._senders[0]
    assert len(state.finished.runs()) == 1
    assert len(state.replies) <= 4 and not state.parked and not state.running


def test_callbacks_run_once_and_late_ones_at_once() -> None:
    wire = Wire(1)
    seen: list[int] = []
    task = wire.tasks.submit([(1, call()), (1, call())]).then(lambda t: seen.append(t.received))
    assert seen == []
    wire.settle()
    task.then(lambda t: seen.append(-1))
    assert seen == [2, -1]


def test_a_failure_is_the_tasks_error() -> None:
    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call()), (2, call())])
    meta = {"rank": 2, "role": "server 1", "host": "h", "text": "no such vector", "trace": "t"}
    tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=2, seq=0, meta=meta))
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, seq=0))
    assert task.done
    assert isinstance(task.error, RemoteError)
    assert str(task.error) == "rank 2 (server 1 on h): no such vector"


def test_a_failing_callback_of_the_caller_is_raised_at_its_task() -> None:
    def deliver(part: int, reply: Message) -> None:
        raise KeyError("mine")

    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call())], deliver)
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, seq=0))
    with pytest.raises(KeyError):
        raise task.error or AssertionError
