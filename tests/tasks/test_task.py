"""Tasks start after their dependencies, exactly once, whatever the network does to their messages."""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import RemoteError, WorkerLost
from mpips.tasks.ahead import AHEAD
from mpips.tasks.caller import JUMP, Tasks
from mpips.tasks.request_dedup import RequestDedup
from mpips.tasks.retransmission import BURST, SHARE, Timer
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


def test_the_window_bounds_outstanding_parts() -> None:
    wire = Wire(1, window=3)
    tasks = [wire.tasks.submit([(1, call())]) for _ in range(10)]
    assert len(wire.bag) == 3 and outstanding(wire.tasks, 1) == 3
    wire.settle()
    assert all(task.done for task in tasks)


def test_memory_is_bounded() -> None:
    wire = Wire(1, window=4)
    for _ in range(500):
        wire.tasks.submit([(1, call())])
        wire.settle()
    state = wire.inboxes[1]._callers[0]
    assert len(state.finished) <= 64 and len(state.kept) <= 4
    assert not state.parked and not state.running


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


# Callbacks, messages that cannot be encoded, and timeouts.


def drained(tasks: Tasks, sent: list[tuple[int, Message]]) -> list[int]:
    """Answer what was sent, in order, until nothing is left; return what was in flight at 1 each time."""
    trace = []
    while sent:
        dest, message = sent.pop(0)
        trace.append(outstanding(tasks, 1))
        tasks.answer(Message(Kind.REPLY, message.command, sender=dest, time=message.time))
    return trace


def test_a_long_chain_of_dependent_tasks_keeps_the_window_full() -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window=8)
    last: list[Task] = []
    for _ in range(64):
        last = [tasks.submit([(1, call())], None, last)]
    afters: list[tuple[tuple[int, int], ...]] = []
    trace = []
    while sent:
        _, message = sent.pop(0)
        trace.append(outstanding(tasks, 1))
        afters.append(message.after)
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=message.time))
    assert trace == [8] * 57 + [7, 6, 5, 4, 3, 2, 1]
    assert last[0].done
    assert afters[:8] == [(), *(((s, s + 1),) for s in range(7))]


def test_parts_to_a_node_leave_in_the_order_of_submission() -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window=2)
    order: list[int] = []
    submitted = [tasks.submit([(1, call())]) for _ in range(4)]
    # Answered within a callback: there is room in the window while others still queue.
    submitted[0].then(lambda _: submitted.append(tasks.submit([(1, call())])))
    while sent:
        dest, message = sent.pop(0)
        order.append(message.time)
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=dest, time=message.time))
    assert order == [0, 1, 2, 3, 4]


def test_a_task_waits_forevery_part_of_another_at_its_node() -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window=1)
    tasks.submit([(1, call())])  # fills the window of 1
    first = tasks.submit([(2, call()), (1, call())])
    second = tasks.submit([(1, call())], None, [first])
    order = []
    while sent:
        dest, message = sent.pop(0)
        order.append((dest, message.time))
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=dest, time=message.time))
    assert order == [(1, 0), (2, 1), (1, 1), (1, 2)]
    assert second.done


def test_a_whole_task_starts_nowhere_before_another_is_finished_everywhere() -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)))
    first = tasks.submit([(1, call()), (2, call())])
    tasks.submit([(1, call()), (2, call())], None, [first], whole=True)
    assert len(sent) == 2
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=0))
    assert len(sent) == 2
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=2, time=0))
    assert [(dest, message.time, message.after) for dest, message in sent[2:]] == [(1, 1, ()), (2, 1, ())]


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


def picky(sent: list[tuple[int, Message]]):  # type: ignore[no-untyped-def]
    def send(dest: int, message: Message) -> None:
        if message.meta.get("bad"):
            raise TypeError("cannot travel")
        sent.append((dest, message))

    return send


def bad_call() -> Message:
    return Message(Kind.REQUEST, Command.CALL, meta={"bad": True})


@pytest.mark.parametrize("window", [1, 2, 64])
def test_what_cannot_travel_is_its_tasks_error_and_takes_no_room(window: int) -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(picky(sent), window)
    good = [tasks.submit([(1, call())])]
    bad = [tasks.submit([(1, bad_call())]) for _ in range(3)]  # some at once, some after the queue
    good.append(tasks.submit([(1, call())]))
    mixed = tasks.submit([(3, call()), (1, bad_call()), (2, call())])
    good.append(tasks.submit([(1, call()), (2, call())], None, [good[0], mixed]))
    acked, times = [], []
    while sent:
        dest, message = sent.pop(0)
        if dest == 1:
            times.append(message.time)
            acked.append(message.acked)
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=dest, time=message.time))
    assert all(task.done and task.error is None for task in good)
    assert all(task.done and isinstance(task.error, TypeError) for task in (*bad, mixed))
    assert times == [good[0].time, good[1].time, good[2].time]
    assert all(first <= time for first, time in zip(acked, times, strict=True))
    assert tasks.acked == good[2].time + 1, "what was never sent holds nothing up"
    assert outstanding(tasks, 1) == outstanding(tasks, 2) == 0 and tasks.unfinished == {}


def test_a_filter_that_raises_takes_no_room_either() -> None:
    sent: list[tuple[int, Message]] = []

    def encode(dest: int, message: Message) -> Message:
        if message.meta.get("bad"):
            raise ValueError("not for this filter")
        return message

    tasks = Tasks(lambda dest, message: sent.append((dest, message)), 1, encode=encode)
    bad, good = tasks.submit([(1, bad_call())]), tasks.submit([(1, call())])
    assert isinstance(bad.error, ValueError) and bad.done
    drained(tasks, sent)
    assert good.done and good.error is None


def test_parts_that_queue_behind_an_error_are_never_sent() -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window=1)
    tasks.submit([(1, call())])  # fills the window of 1
    task = tasks.submit([(2, call()), (1, call()), (3, call())])
    meta = {"rank": 2, "text": "no"}
    tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=2, time=1, meta=meta))
    assert isinstance(task.error, RemoteError) and not task.done
    later = tasks.submit([(1, call()), (2, call())])
    order = []
    del sent[1]  # that of the failed part
    while sent:
        dest, message = sent.pop(0)
        order.append((dest, message.time))
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=dest, time=message.time))
    assert order == [(1, 0), (3, 1), (2, 2), (1, 2)]
    assert task.done and later.done and later.error is None and tasks.unfinished == {}


def probing(now: list[float]) -> tuple[Tasks, list[Message]]:
    """Make a caller on a clock, and the list of what it sends."""
    sent: list[Message] = []
    tasks = Tasks(lambda dest, message: sent.append(message), timer=lambda: Timer(1.0, lambda: 0.0))
    tasks.now = lambda: now[0]
    return tasks, sent


def test_a_silent_callee_is_probed_less_and_less_often_and_is_sent_no_data() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    times = []
    for tick in range(1, 1_000):
        now[0] = 0.1 * tick
        before = len(sent)
        tasks.probe()
        times += [now[0]] * (len(sent) - before)
    assert [message.kind for message in sent] == [Kind.REQUEST] + [Kind.PROBE] * len(times)
    assert sent[-1].after == ((0, 0),)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[:4] == pytest.approx([2, 4, 8, 16], abs=0.11) and max(gaps) < 16.2


def test_only_what_has_never_come_is_sent_again() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    for _ in range(3):
        tasks.submit([(1, call())])
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((1, 2),)))
    assert [message.time for message in sent] == [0, 1, 2, 1] and tasks.again == {"lost": 1}
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=1))
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((1, 2),)))
    assert len(sent) == 4, "it was answered meanwhile"


def test_retransmissions_are_bounded_by_the_messages_sent() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    for _ in range(1_000):
        tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((0, 1),)))
    assert len(sent) - 1 <= BURST / (1 - SHARE) + 1
    now[0] = 100.0
    tasks.probe()
    now[0] = 200.0
    tasks.probe()
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((0, 1),)))
    assert sent[-1].kind is Kind.REQUEST, "but it always goes on"


def test_without_losses_there_are_no_probes() -> None:
    sent: list[Message] = []
    tasks = Tasks(lambda dest, message: sent.append(message))
    tasks.submit([(1, call())])
    tasks.now = lambda: 1e9
    tasks.probe()
    assert len(sent) == 1


def test_only_what_was_answered_is_acknowledged() -> None:
    sent: list[int] = []
    tasks = Tasks(lambda dest, message: sent.append(message.acked))
    for _ in range(4):
        tasks.submit([(1, call())])
    for time in (0, 2):
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=time))
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((1, 2), (3, 4))))
    tasks.submit([(1, call())])
    assert sent == [0, 0, 0, 0, 1, 1, 1]


# Addresses and callers that have moved to other ranks.


def test_unanswered_parts_are_sent_again_when_their_address_moves() -> None:
    sent: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message.time, message.after)), window=3)
    first = tasks.submit([(~0, call()), (~1, call())])
    second = tasks.submit([(~0, call())], None, [first])
    third = tasks.submit([(~0, call())], None, [first, second])
    tasks.submit([(~0, call())], None, [third])  # waits for the window
    assert sent == [(~0, 0, ()), (~1, 0, ()), (~0, 1, ((0, 1),)), (~0, 2, ((0, 1), (1, 2)))]
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=5, shard=0, time=0))
    sent.clear()
    assert tasks.redirect([~0], "moved") == 3, (
        "what was answered there is not sent again, nor is what nobody was sent"
    )
    assert sent == [(~0, 1, ()), (~0, 2, ((1, 2),)), (~0, 3, ((2, 3),))]
    assert tasks.redirect([~7], "moved") == 0


def test_a_part_that_another_primary_answers_ahead_again_is_asked_for_once() -> None:
    tasks = Tasks(lambda dest, message: None)
    tasks.submit([(~0, call())])
    ahead = Message(Kind.REPLY, Command.CALL, sender=5, shard=0, time=0, acked=AHEAD)
    tasks.answer(ahead)
    assert tasks.ahead.newly() == [(~0, 0)] and tasks.ahead.newly() == []
    tasks.redirect([~0], "moved")
    assert tasks.ahead.newly() == [(~0, 0)], "the new primary is asked, and may not have applied it yet"
    tasks.answer(ahead)
    assert tasks.ahead.newly() == [] and tasks.ahead.count == 1, "it remembers that it was asked"
    tasks.ahead.acknowledge(~0, 0)
    tasks.answer(ahead)
    assert tasks.ahead.newly() == [] and tasks.ahead.count == 0


def test_a_reply_is_identified_by_its_shard() -> None:
    tasks = Tasks(lambda dest, message: None, origin=9)
    parts = [(~0, call()), (~4, call()), (4, call())]
    task = tasks.submit(parts)
    assert [(message.origin, message.shard, message.time) for _, message in parts] == [
        (9, 0, 0),
        (9, 4, 0),
        (9, -1, 0),
    ]
    for sender, shard, received in ((4, 0, 1), (8, 0, 1), (4, 4, 2), (4, -1, 3)):
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=sender, shard=shard, time=0))
        assert task.received == received


@pytest.mark.parametrize("window", [1, 64])
def test_abandoned_parts_fail_once_and_do_not_block_others(window: int) -> None:
    sent: list[tuple[int, Message]] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message)), window)
    doomed = [tasks.submit([(1, bad_call()), (2, call())]) for _ in range(2)]
    other = tasks.submit([(1, call())])
    why = Message(Kind.FAILURE, Command.CALL, sender=1, meta={"lost": True, "text": "gone"})
    tasks.give_up(why, lambda address, request: bool(request.meta.get("bad")))
    for task in doomed:
        assert isinstance(task.error, WorkerLost) and not task.done and not task.settled
    drained(tasks, sent)
    assert all(task.done for task in doomed) and other.done and other.error is None
    assert tasks.unfinished == {} and outstanding(tasks, 1) == outstanding(tasks, 2) == 0


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


def test_a_succeeding_caller_takes_known_replies_and_sends_the_rest() -> None:
    sent: list[tuple[int, int]] = []
    noted: list[tuple[int, int]] = []

    def play(tasks: Tasks) -> list[Task]:
        tasks.on_journaled = lambda address, reply: noted.append((reply.time, address))
        first = tasks.submit([(1, call()), (~2, call())])
        second = tasks.submit([(1, call())], None, [first], whole=True)
        return [first, second]

    tasks = Tasks(lambda dest, message: sent.append((dest, message.time)), origin=7)
    play(tasks)
    replies = {
        (0, 1): Message(Kind.REPLY, Command.CALL, sender=1, time=0),
        (0, ~2): Message(Kind.REPLY, Command.CALL, sender=3, shard=2, time=0),
    }
    assert sent == [(1, 0), (~2, 0)]
    sent.clear()
    heir = Tasks(lambda dest, message: sent.append((dest, message.time)), origin=7)
    heir.take_replies(replies)
    again = play(heir)
    assert sent == [] and not again[0].done
    while heir.due_replies:
        heir.answer(heir.due_replies.popleft())
    assert again[0].done and sent == [(1, 1)], "what nobody had been told is sent"
    assert noted == [(0, 1), (0, ~2)] and not heir.known_replies


@pytest.mark.parametrize("window", [1, 64])
def test_a_succeeding_caller_gives_up_no_part_whose_reply_is_known(window: int) -> None:
    """The rank has died since it answered: the program has seen the answer, and continues by it."""
    tasks = Tasks(lambda dest, message: None, window, origin=7)
    answered = {"time": 0, "sender": 1}, {"time": 1, "sender": 1}
    tasks.take_replies(
        {(each["time"], 1): Message(Kind.REPLY, Command.CALL, meta=each, **each) for each in answered}
    )
    taken: list[Message] = []
    known = [tasks.submit([(1, call())], lambda _, reply: taken.append(reply)) for _ in answered]
    unknown = tasks.submit([(1, call())])
    gone = Message(Kind.FAILURE, Command.CALL, sender=1, meta={"lost": True, "text": "gone"})
    tasks.give_up(gone, lambda address, _: address == 1)
    assert isinstance(unknown.error, WorkerLost)
    while tasks.due_replies:
        tasks.answer(tasks.due_replies.popleft())
    assert [task.error for task in known] == [None, None]
    assert [reply.meta for reply in taken] == [*answered]


def test_skipped_times_are_unused_and_acknowledged_times_are_bounded_by_successors() -> None:
    times: list[tuple[int, int]] = []
    tasks = Tasks(lambda dest, message: times.append((message.time, message.acked)))
    for _ in range(3):
        tasks.submit([(1, call())])
    tasks.skip_times()
    tasks.submit([(1, call())])
    tasks.skip_times()
    tasks.submit([(1, call())])
    assert [time for time, _ in times] == [0, 1, 2, JUMP, 2 * JUMP]
    for time, _ in list(times):
        tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=time))
    assert tasks.acked == 2 * JUMP + 1
    tasks.stable = lambda: 2
    assert tasks.acked == 2
