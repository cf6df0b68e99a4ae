"""Request deduplication: each request starts once, and a repeated one is answered from the kept reply."""

from __future__ import annotations

from tasks.test_task import Wire, call

from mpips.errors import JournalLost
from mpips.tasks.caller import Tasks
from mpips.tasks.request_dedup import RequestDedup
from mpips.tasks.task import remote_error
from mpips.transport.message import Command, Kind, Message


def test_a_repeated_request_is_answered_from_the_reply_that_was_kept() -> None:
    sent: list[Message] = []
    inbox = RequestDedup(lambda dest, message: sent.append(message))
    request = Message(Kind.REQUEST, Command.CALL, sender=3, origin=3)
    assert inbox.admit(request) == [request]
    assert inbox.admit(request) == [] and sent == [] and inbox.unfinished() == 1
    inbox.finish(3, 0, Message(Kind.REPLY, Command.CALL, meta={"n": 1}))
    for _ in range(2):  # the first reply was lost as well
        assert inbox.admit(request) == [] and inbox.unfinished() == 0
    assert [message.meta for message in sent] == [{"n": 1}] * 2
    assert inbox.admit(Message(Kind.REQUEST, Command.CALL, sender=3, origin=3, time=1, acked=1)) != []
    assert inbox.admit(request) == [] and len(sent) == 3, "the caller has it: it was acknowledged"
    lost = sent[2]
    assert (lost.kind, lost.origin, lost.time) == (Kind.FAILURE, 3, 0) and "journal is lost" in lost.meta[
        "text"
    ]
    tasks = Tasks(lambda dest, message: None)
    tasks.answer(lost)  # a caller that has the answer does not mind
    assert isinstance(remote_error(lost), JournalLost), "another is told why it will never have it"


def test_after_abandon_repeated_requests_are_new() -> None:
    inbox = RequestDedup(lambda origin, message: None)
    first, second, third = (
        Message(Kind.REQUEST, Command.CALL, origin=3, time=time, after=((0, 1),) if time == 2 else ())
        for time in range(3)
    )
    assert inbox.admit(first) == [first] and inbox.admit(second) == [second] and inbox.admit(third) == []
    inbox.forget(second)
    assert inbox.admit(second) == [second] and inbox.admit(second) == []
    inbox.abandon()
    assert inbox.unfinished() == 0
    assert inbox.admit(third) == [] and inbox.admit(first) == [first]
    assert inbox.finish(3, 0) == [third], "it waits for the same as before"
    assert inbox.callers()[3] == (0, [0], {})


def test_parts_of_rounds_that_wait_for_others_can_be_forgotten() -> None:
    inbox = RequestDedup(lambda origin, message: None)
    first, part, plain = (
        Message(Kind.REQUEST, Command.PUSH, origin=3, time=time, after=((0, 1),) if time else ())
        for time in range(3)
    )
    part.round = 7
    assert inbox.admit(first) == [first] and inbox.admit(part) == [] and inbox.admit(plain) == []
    inbox.forget_rounds()
    assert inbox.finish(3, 0) == [plain]


def test_a_read_that_is_repeated_is_executed_again() -> None:
    inbox = RequestDedup(lambda origin, message: None)
    pull = Message(Kind.REQUEST, Command.PULL, origin=3)
    for _ in range(2):
        assert inbox.admit(pull) == [pull] and inbox.admit(pull) == []
        inbox.finish(3, 0)


def test_the_memory_for_finished_requests_is_bounded() -> None:
    wire = Wire(1, window=4)
    for _ in range(500):
        wire.tasks.submit([(1, call())])
        wire.settle()
    state = wire.inboxes[1]._callers[0]
    assert len(state.finished) <= 64 and len(state.kept) <= 4
    assert not state.parked and not state.running
