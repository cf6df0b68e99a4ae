"""Tasks start after their dependencies, exactly once, whatever the network does to their messages."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import RemoteError, WorkerLost
from mpips.tasks.caller import Tasks
from mpips.tasks.request_dedup import RequestDedup
from mpips.tasks.retransmission import Timer
from mpips.tasks.task import Task
from mpips.transport.message import Command, Kind, Message, missing_of


def outstanding(tasks: Tasks, address: int) -> int:
    """Count the parts at `address` that are sent and not answered."""
    peer = tasks._peers.get(address)
    return len(peer.unanswered) if peer else 0


class Wire:
    """One caller (rank 0) and callees 1..n, with a set of messages in flight, which are delivered in random order."""

    def __init__(self, callees: int, window: int = 64, loss: float = 0.0, seed: int = 0) -> None:
        self.rng, self.loss = random.Random(seed), loss
        self.bag: list[tuple[int, Message]] = []
        self.now = 0.0
        self.tasks = Tasks(self.to_callee, window, origin=0, timer=lambda: Timer(1.0, self.rng.random))
        self.tasks.now = lambda: self.now
        self.inboxes = {rank: RequestDedup(self._replier(rank)) for rank in range(1, callees + 1)}
        self.started: dict[int, list[tuple[int, int]]] = {rank: [] for rank in self.inboxes}
        self.finished: dict[int, list[int]] = {rank: [] for rank in self.inboxes}
        self.running: list[tuple[int, Message]] = []

    def to_callee(self, dest: int, message: Message) -> None:
        copy = Message(message.kind, message.command, 0, origin=message.origin, acked=message.acked)
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
        """Deliver a random message, or finish a random running request; return whether there was anything."""
        choices = len(self.bag) + len(self.running)
        if not choices:
            return False
        at = self.rng.randrange(choices)
        if at < len(self.bag):
            dest, message = self.bag.pop(at)
            if dest == 0 and message.kind is Kind.MISSING:
                self.tasks.missing(message)
            elif dest == 0:
                self.tasks.answer(message)
            elif message.kind is Kind.PROBE:
                inbox = self.inboxes[dest]
                missing = [(time, time + 1) for time, _ in message.after if not inbox.repeat(0, time)]
                answer = missing_of(message, missing)
                answer.sender = dest
                self._post(0, answer)
            else:
                self._begin(dest, deque(self.inboxes[dest].admit(message)))
        else:
            rank, request = self.running.pop(at - len(self.bag))
            self.finished[rank].append(request.time)
            reply = Message(Kind.REPLY, Command.CALL, rank, time=request.time)
            self._post(0, reply)
            self._begin(rank, deque(self.inboxes[rank].finish(request.origin, request.time, reply)))
        return True

    def _begin(self, rank: int, requests: deque[Message]) -> None:
        for request in requests:
            self.started[rank].append((request.time, len(self.finished[rank])))
            self.running.append((rank, request))

    def settle(self) -> None:
        for _ in range(1_000):
            while self.step():
                pass
            if not self.tasks.unfinished:
                return
            self.now += 2.0
            self.tasks.probe()
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
        dests = data.draw(st.lists(st.integers(1, callees), max_size=3, unique=True))
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


def test_callbacks_run_once_and_late_ones_at_once() -> None:
    wire = Wire(2)
    seen: list[int] = []
    task = wire.tasks.submit([(1, call()), (2, call())]).then(lambda t: seen.append(t.received))
    assert seen == []
    wire.settle()
    task.then(lambda t: seen.append(-1))
    assert seen == [2, -1]


def test_a_failure_is_the_tasks_error() -> None:
    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call()), (2, call())])
    meta = {"rank": 2, "role": "server 1", "host": "h", "text": "no such vector", "trace": "t"}
    tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=2, time=0, meta=meta))
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=0))
    assert task.done
    assert isinstance(task.error, RemoteError)
    assert str(task.error) == "rank 2 (server 1 on h): no such vector"


def test_a_result_is_that_of_a_finished_task() -> None:
    """Where no event loop finishes tasks, nothing is waited for."""
    wire = Wire(1)
    task = wire.tasks.submit([(1, call())])
    task.values = 7
    with pytest.raises(RuntimeError, match="task 0 is not finished"):
        task.result()
    wire.settle()
    assert task.result() == 7
    task.error = RemoteError(1, "server", "host", "broken")
    with pytest.raises(RemoteError, match="broken"):
        task.result()


def test_a_failing_callback_of_the_caller_is_raised_at_its_task() -> None:
    def deliver(part: int, reply: Message) -> None:
        raise KeyError("mine")

    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call())], deliver)
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=0))
    with pytest.raises(KeyError):
        raise task.error or AssertionError


def drained(tasks: Tasks, sent: list[tuple[int, Message]]) -> list[int]:
    """Answer what was sent, in order, until nothing is left; return what was in flight at 1 each time."""
    trace = []
    while sent:
        dest, message = sent.pop(0)
        trace.append(outstanding(tasks, 1))
        tasks.answer(Message(Kind.REPLY, message.command, sender=dest, time=message.time))
    return trace


@pytest.mark.parametrize("window", [1, 64])
def test_a_callback_that_raises_is_heard_and_leaves_the_others_alone(window: int) -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window)
    seen: list[str] = []

    def boom(_: Task) -> None:
        raise KeyError("mine")

    first = tasks.submit([(1, call())]).then(boom).then(lambda _: seen.append("later"))
    held = tasks.submit([(2, call())], None, [first])
    other = tasks.submit([(1, call())])  # waits for the window, if that is 1
    sent.pop(0)
    with pytest.raises(KeyError, match="mine"):
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=0))
    assert seen == ["later"]
    assert isinstance(first.error, KeyError) and first.done
    drained(tasks, sent)
    assert held.done and held.error is None and other.done and other.error is None
    assert tasks.unfinished == {}


def test_another_error_replaces_the_loss_of_a_worker() -> None:
    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call()), (2, call()), (3, call())])
    for rank, meta in (
        (1, {"lost": True, "text": "gone"}),
        (2, {"text": "broken"}),
        (3, {"lost": True, "text": "too"}),
    ):
        tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=rank, meta=meta))
        assert isinstance(task.error, WorkerLost) is (rank == 1) and task.settled is (rank != 1)
    assert isinstance(task.error, RemoteError) and task.error.text == "broken"
