"""The caller's side of tasks: what is sent and when, replies by part, lost parts, moved addresses, and successors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tasks.test_task import Wire, call, drained, outstanding

from mpips.errors import RemoteError, WorkerLost
from mpips.tasks.ahead import AHEAD
from mpips.tasks.caller import JUMP, Tasks
from mpips.tasks.part import Part
from mpips.tasks.task import Task
from mpips.transport.message import Command, Kind, Message


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


def test_a_task_waits_for_every_part_of_another_at_its_node() -> None:
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


# Messages that cannot be encoded.


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


# Replies, by part.


def reply(sender: int, time: int = 0, **fields: Any) -> Message:
    return Message(Kind.REPLY, Command.CALL, sender=sender, time=time, **fields)


def test_each_reply_is_delivered_once_with_the_number_of_its_part() -> None:
    tasks = Tasks(lambda dest, message: None)
    got: list[tuple[int, int]] = []
    task = tasks.submit(
        [(4, call()), (~4, call()), (2, call())], lambda number, each: got.append((number, each.sender))
    )
    for each in (reply(2), reply(2), reply(9), reply(9, shard=4), reply(2, time=1), reply(4), reply(4)):
        tasks.answer(each)
    assert got == [(2, 2), (1, 9), (0, 4)] and task.done and task.received == 3


def test_a_failed_part_has_the_line_and_trace_of_the_other_side_and_the_other_parts_are_counted() -> None:
    tasks = Tasks(lambda dest, message: None)
    got: list[int] = []
    task = tasks.submit([(1, call()), (2, call()), (3, call())], lambda number, _: got.append(number))
    meta = {
        "rank": 2,
        "role": "worker 0",
        "host": "h",
        "text": "KeyError: 3 (at prog.py:7)",
        "trace": "t",
        "at": "prog.py:7",
    }
    tasks.answer(reply(1))
    tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=2, meta=meta))
    assert task.settled and not task.done, "a wait ends, and the third part is still outstanding"
    tasks.answer(reply(3))
    error = task.error
    assert isinstance(error, RemoteError) and (error.rank, error.at, error.trace) == (2, "prog.py:7", "t")
    assert str(error) == "rank 2 (worker 0 on h): KeyError: 3 (at prog.py:7)"
    assert got == [0] and task.done and tasks.unfinished == {}, "after the failure nothing is delivered"


def test_a_task_without_parts_finishes_with_the_last_that_it_depends_on() -> None:
    tasks = Tasks(lambda dest, message: None)
    first, second = tasks.submit([(1, call())]), tasks.submit([(2, call())])
    joined = tasks.submit([], None, [first, second])
    tasks.answer(reply(2, time=1))
    assert not joined.done
    tasks.answer(reply(1))
    assert joined.done and tasks.submit([], None, [first]).done, "a finished dependency is not waited for"


def test_the_addresses_that_have_not_answered_are_those_of_sent_and_of_queued_parts() -> None:
    tasks = Tasks(lambda dest, message: None, window=1)
    tasks.submit([(1, call())])
    task = tasks.submit([(1, call()), (2, call()), (~3, call())])
    assert tasks.unanswered(task) == [1, 2, ~3] and tasks.queued == 1
    tasks.answer(reply(2, time=1))
    assert tasks.unanswered(task) == [1, ~3]
    tasks.answer(reply(1))
    assert tasks.unanswered(task) == [1, ~3] and tasks.queued == 0, "it is sent now"


def test_tasks_that_the_program_has_not_handled_are_listed_from_a_time_on() -> None:
    tasks = Tasks(lambda dest, message: None)
    early, failed, handled, finished, running = (tasks.submit([(1, call())]) for _ in range(5))
    for each in (failed, handled):
        handled.handled = True
        tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=1, time=each.time, meta={"text": "no"}))
    tasks.answer(reply(1, time=finished.time))
    assert tasks.unhandled(failed.time) == [failed, running]
    assert tasks.unhandled(0) == [failed, early, running]
    failed.handled = True
    assert tasks.unhandled(0) == [early, running]


def test_the_bytes_of_rows_are_those_of_unfinished_tasks() -> None:
    tasks = Tasks(lambda dest, message: None)
    first, second = tasks.submit([(1, call())]), tasks.submit([(1, call())])
    tasks.count_bytes(first, 30)
    tasks.count_bytes(second, 12)
    assert tasks.nbytes == 42
    tasks.answer(reply(1))
    assert tasks.nbytes == 12
    tasks.count_bytes(first, 30)
    assert tasks.nbytes == 12, "it is finished"
    tasks.answer(Message(Kind.FAILURE, Command.CALL, sender=1, time=1, meta={"text": "no"}))
    assert tasks.nbytes == 0


def test_the_array_for_the_values_of_a_reply_is_given_once_and_only_if_it_fits() -> None:
    tasks = Tasks(lambda dest, message: None)
    places = [np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1))]
    for place in places:
        tasks.submit([(~0, Message(Kind.REQUEST, Command.PULL, place=place))])
    answers = [reply(1, time=time, shard=0, values=np.ones((2, 1))) for time in range(3)]
    answers[1].values = np.ones((3, 1))
    answers[2].values = np.ones((2, 1), np.float32)
    assert tasks.place(answers[0]) is places[0] and tasks.place(answers[0]) is None
    assert tasks.place(answers[1]) is None and tasks.place(answers[2]) is None
    assert tasks.place(reply(1, time=3, shard=0, values=np.ones((2, 1)))) is None, "nothing was asked for"
    assert tasks.place(reply(1, time=0, shard=5, values=np.ones((2, 1)))) is None


def test_a_part_is_sent_again_with_the_keys_that_its_callee_has_not_cached() -> None:
    sent: list[Message] = []
    tasks = Tasks(lambda dest, message: sent.append(message))
    keys = np.arange(5, dtype=np.uint64)
    tasks.submit([(~2, Message(Kind.REQUEST, Command.PULL, unsent_keys=keys))])
    asks = Message(Kind.SEND_KEYS, Command.PULL, sender=1, shard=2, time=0)
    assert sent[0].keys is None
    assert tasks.send_keys(asks) == keys.nbytes and sent[1].keys is keys
    assert tasks.send_keys(asks) == 0 and sent[2].keys is keys, "the keys were lost: they are counted once"
    tasks.answer(reply(1, shard=2))
    assert tasks.send_keys(asks) == 0 and len(sent) == 3 and tasks.again == {"keys": 2}


# Lost parts.


GONE = Message(Kind.FAILURE, Command.CALL, sender=1, meta={"lost": True, "text": "gone"})


def test_a_task_with_a_lost_part_ends_when_its_other_parts_are_answered() -> None:
    tasks = Tasks(lambda dest, message: None)
    task = tasks.submit([(1, call()), (2, call())])
    tasks.give_up(GONE, lambda address, _: address == 1)
    assert isinstance(task.error, WorkerLost) and not task.settled
    tasks.answer(reply(1))
    assert not task.settled, "a late reply of the lost rank counts for nothing"
    tasks.answer(reply(2))
    assert task.done and task.settled


def test_filters_are_reset_from_the_latest_lost_part_to_the_earliest() -> None:
    tasks = Tasks(lambda dest, message: None, window=3)
    reset: list[tuple[int, int]] = []

    def parts(number: int) -> list[tuple[int, Message]]:
        return [
            (
                address,
                Message(Kind.REQUEST, Command.PUSH, restore=lambda a=address: reset.append((a, number))),
            )  # type: ignore[misc]
            for address in (~0, ~1)
        ]

    submitted = [tasks.submit(parts(number)) for number in range(4)]
    tasks.answer(reply(1, time=0, shard=0))
    tasks.give_up(GONE, lambda address, _: address == ~0)
    assert reset == [(~0, 3), (~0, 2), (~0, 1)], "not of what was answered, nor of another address"
    assert [isinstance(task.error, WorkerLost) for task in submitted] == [False, True, True, True]


def test_the_journal_and_observers_get_each_lost_part_with_its_own_time() -> None:
    tasks = Tasks(lambda dest, message: None, window=1)
    journal: list[tuple[int, int, Kind]] = []
    seen: list[tuple[int, int, bool]] = []
    tasks.on_journaled = lambda address, each: journal.append((address, each.time, each.kind))
    tasks.on_reply = lambda address, time, each, given_up: seen.append((address, time, given_up))
    for _ in range(3):
        tasks.submit([(1, call())])
    tasks.answer(reply(1))
    tasks.give_up(GONE, lambda address, _: True)
    # One was sent, and one was queued.
    assert sorted(journal) == [(1, 0, Kind.REPLY), (1, 1, Kind.FAILURE), (1, 2, Kind.FAILURE)]
    assert sorted(seen) == [(1, 0, False), (1, 1, True), (1, 2, True)]


# Parts that the client fast path sends.


class Pull:
    """A request with one part at each of some shards; the fast path takes it while it has slots."""

    command = Command.PULL

    def __init__(self, addresses: list[int], slots: list[int]) -> None:
        self.addresses, self.slots = addresses, slots
        self.got: list[int] = []

    def send(self, time: int, acked: int) -> list[int]:
        return [self.slots.pop(0) if self.slots else -1 for _ in self.addresses]

    def make(self, number: int) -> Message:
        return Message(Kind.REQUEST, Command.PULL)

    def __call__(self, number: int, each: Message, /) -> None:
        self.got.append(number)


def fast(window: int = 64) -> tuple[Tasks, list[tuple[int, int]], list[int]]:
    """Return a caller, (address, time) of the messages that it sends, and the slots that it frees."""
    sent: list[tuple[int, int]] = []
    freed: list[int] = []
    tasks = Tasks(lambda dest, message: sent.append((dest, message.time)), window, withdraw=freed.append)
    return tasks, sent, freed


def test_a_part_without_a_slot_is_sent_as_a_message() -> None:
    tasks, sent, freed = fast()
    request = Pull([~0, ~1], [5])
    task = tasks.ask(request)
    assert sent == [(~1, 0)] and tasks.asked_at(5) == (~0, 0)
    tasks.answered(5)
    assert not task.done and request.got == [], "the values are in place already"
    tasks.answer(reply(2, shard=1))
    assert task.done and request.got == [1] and tasks.unfinished == {} and freed == []


def test_the_window_counts_parts_with_slots_and_an_answer_in_one_sends_what_waits() -> None:
    tasks, sent, _ = fast(window=1)
    first, second = tasks.ask(Pull([~0], [5])), tasks.ask(Pull([~0], [6]))
    assert sent == [] and tasks.queued == 1
    tasks.answered(5)
    assert first.done and sent == [(~0, 1)]
    tasks.answer(reply(1, time=1, shard=0))
    assert second.done


@pytest.mark.parametrize(
    "leave",
    [
        lambda tasks, task: tasks.withdraw(),
        lambda tasks, task: tasks.withdraw(task),
        lambda tasks, task: tasks.redirect([~0], "moved"),
    ],
    ids=["all", "one task", "its shard moves"],
)
def test_a_part_that_leaves_the_fast_path_frees_its_slot_and_is_answered_by_a_message(
    leave: Callable[[Tasks, Task], object],
) -> None:
    tasks, _, freed = fast()
    request = Pull([~0], [5])
    task = tasks.ask(request)
    tasks.withdraw(tasks.submit([(3, call())]))
    assert freed == [], "the slots of a task are its own"
    leave(tasks, task)
    assert freed == [5]
    tasks.answer(reply(1, shard=0))
    assert task.done and request.got == [0] and freed == [5]


def test_an_observer_gets_each_answered_part_whatever_way_it_came() -> None:
    tasks, _, _ = fast()
    parts: list[Part] = []
    tasks.on_answered = parts.append
    tasks.ask(Pull([~0, ~1], [5]))
    tasks.answered(5)
    tasks.answer(reply(2, shard=1))
    assert [(part.address, part.command) for part in parts] == [(~0, Command.PULL), (~1, Command.PULL)]
