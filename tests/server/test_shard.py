"""A shard: changes at the primary, repeated at the other members of the chain, give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.cluster.hash_ring import Ring
from mpips.errors import ProtocolError
from mpips.ranges import KeyRange
from mpips.server.shard import AGGREGATE, Caller, RoundAnswer, Shard, callers_of, for_caller
from mpips.storage import updates as update_module
from mpips.storage.aggregate import Summed
from mpips.storage.disk.failure import StoreFull
from mpips.storage.disk.store import Store
from mpips.storage.updates import VectorSpec, call, update
from mpips.tasks.request_dedup import RequestDedup
from mpips.transport.message import NO_ROUND, Command, Kind, Message, from_bytes, reply_to, to_bytes

WORKERS = (3, 4)


def make(number: int = 0, sent: list[tuple[int, Message]] | None = None) -> Shard:
    """Make shard `number` of two servers' ring; replies that its inbox repeats go to `sent`."""
    out = [] if sent is None else sent
    inbox = RequestDedup(lambda origin, reply: out.append((origin, reply)))
    return Shard(number, Ring.of([1, 2]), WORKERS, inbox, lambda error: {"text": str(error)})


def request(command: Command, keys: Any, rows: Any = None, **fields: Any) -> Message:
    message = Message(Kind.REQUEST, command, 3, origin=3, shard=0, namespace=1)
    message.keys = np.array(keys, np.uint64)
    if rows is not None:
        message.values = np.asarray(rows, np.float64).reshape(
            len(keys), np.size(rows) // max(len(keys), 1) or 1
        )
    message.range = KeyRange(0, 50)
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def caller_of(message: Message) -> Caller:
    return Caller(message.origin, message.time, message.acked, int(message.command))


def travelled(change: Message) -> Message:
    """What arrives of a change at the next member."""
    return from_bytes(bytearray(to_bytes(change)))


def change_of(message: Message, callers: list[Caller], command: Command | None = None) -> Message:
    change = Message(
        Kind.CHAIN,
        command or message.command,
        shard=message.shard,
        namespace=message.namespace,
        round=message.round,
    )
    change.range, change.keys, change.values = message.range, message.keys, message.values
    change.meta = message.meta
    change.after = tuple(pair for caller in callers for pair in (caller[:2], caller[2:]))
    change = travelled(change)
    assert callers_of(change) == callers
    return change


def state(shard: Shard) -> Any:
    """All that a shard's members must have in common."""
    vectors = {}
    for number, hosted in shard.vectors.items():
        rows = hosted.segment.in_slot_order()
        columns = {name: column.tobytes() for name, column in rows.state.items()}
        clock = [column.tolist() for column in hosted.clock.to_arrays()]
        vectors[number] = (rows.keys.tolist(), rows.values.tobytes(), columns, clock)
    callers = {
        origin: (acked, finished, sorted(kept))
        for origin, (acked, finished, kept) in shard.inbox.callers().items()
    }
    return shard.changes, vectors, callers


def test_a_shard_holds_its_part_of_a_vector() -> None:
    halves = [make(number) for number in (0, 1)]
    for shard in halves:
        shard.create(1, VectorSpec("v", extent=100))
    assert [shard.hosted(1).segment.ranges for shard in halves] == [[KeyRange(0, 50)], [KeyRange(50, 100)]]
    with pytest.raises(ProtocolError, match="shard 0 has no vector with namespace 2"):
        halves[0].hosted(2)
    reply = halves[1].push(request(Command.PUSH, [7], [1.0]))
    assert reply.kind is Kind.FAILURE and "not all owned" in reply.meta["text"]
    assert halves[1].changes == 1, "a change that failed has its number as well: it fails everywhere"


requests = st.tuples(
    st.sampled_from([Command.PUSH, Command.PUSH_PULL]),
    st.sets(st.integers(0, 49), max_size=6).map(sorted),
    st.integers(-3, 3),
)


@settings(max_examples=60)
@given(st.lists(requests, max_size=12), st.sampled_from(["add", "ftrl", "assign"]), st.booleans())
def test_pushes_repeated_at_another_member_make_it_the_same(
    pushes: list[tuple[Command, list[int], int]], rule: str, dense: bool
) -> None:
    primary, other = make(), make()
    for shard in (primary, other):
        shard.create(1, VectorSpec("v", extent=100, update=rule, dense=dense))
    for time, (command, keys, by) in enumerate(pushes):
        message = request(command, keys, [[by + key / 7] for key in keys], time=time, acked=max(0, time - 3))
        change = change_of(message, [caller_of(message)])
        reply = primary.push(message)
        primary.finish([caller_of(message)], reply)
        other.repeat(change, None)
    assert state(primary) == state(other)
    assert primary.changes == len(pushes)
    mine, theirs = primary.inbox.callers(), other.inbox.callers()
    for origin, (_, _, kept) in mine.items():
        for time, reply in kept.items():
            again = theirs[origin][2][time]
            assert isinstance(reply, Message) and isinstance(again, Message)
            assert to_bytes(reply) == to_bytes(again), "a request that comes again gets the same answer"


@settings(max_examples=60)
@given(
    st.lists(st.tuples(*[st.sets(st.integers(0, 49), max_size=6).map(sorted)] * 2), max_size=8),
    st.sampled_from(["add", "sgd"]),
    st.booleans(),
)
def test_rounds_repeated_at_another_member_make_it_the_same(
    rounds: list[tuple[list[int], list[int]]], rule: str, dense: bool
) -> None:
    sent: list[tuple[int, Message]] = []
    primary, other = make(), make(0, sent)
    for shard in (primary, other):
        shard.create(1, VectorSpec("v", extent=100, update=rule, dense=dense, aggregate=True))
    for time, parts in enumerate(rounds):
        hosted, messages, summed = primary.hosted(1), [], None
        for worker, keys in zip(WORKERS, parts, strict=True):
            rows = np.array([[worker + key / 3] for key in keys]).reshape(-1, 1)
            message = request(Command.PUSH_PULL, keys, rows, time=time, round=time, origin=worker)
            slots = hosted.segment.resolve(np.array(keys, np.uint64), create=True)
            summed = hosted.aggregator.add((time, 0), worker, slots, rows)
            messages.append(message)
        assert isinstance(summed, Summed)
        change = change_of(messages[0], [caller_of(each) for each in messages], Command.PUSH_PULL)
        change.keys = hosted.segment.keys_of(summed.slots)
        change.values = summed.rows.copy()
        change = travelled(change)
        callers = [caller_of(each) for each in messages]
        kept = primary.sum_up(messages[0], callers, summed.slots, summed.rows, True)
        primary.finish(callers, kept)
        other.repeat(change, None)
        assert isinstance(kept, RoundAnswer)
        for message in messages:
            expected = kept(message)
            sent.clear()
            assert other.inbox.admit(message) == [], "it was applied here too"
            ((origin, again),) = sent
            assert origin == message.origin
            assert to_bytes(again) == to_bytes(expected)
            assert again.values is not None and message.keys is not None
            rows = hosted.segment.pull(message.keys)
            assert np.array_equal(again.values, rows)
    assert state(primary) == state(other)
    if rounds:
        assert other.hosted(1).clock.get(KeyRange(0, 50), AGGREGATE) == len(rounds) - 1


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_updates", "_calls"):
        monkeypatch.setattr(update_module, name, dict(getattr(update_module, name)))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("round_", [NO_ROUND, 0])
def test_a_copy_without_memory_for_a_change_does_not_go_on_without_it(tmp_path: Path, round_: int) -> None:
    """The primary has applied it, and would have the copy's word that it is on both."""
    primary, other = make(), make()
    other.store = Store(4 << 20, tmp_path)
    for shard in (primary, other):
        shard.create(1, VectorSpec("v", aggregate=round_ != NO_ROUND))
    keys = np.arange(0, 10**12, 3 * 10**6, dtype=np.uint64)
    message = request(Command.PUSH, keys, np.ones(len(keys)), round=round_)
    change = change_of(message, [caller_of(message)])
    with pytest.raises(StoreFull, match=r"store\.memory = 4,194,304: key indexes and the like take"):
        other.repeat(change, None)
    assert primary.push(message).kind is Kind.REPLY
    assert make_full(tmp_path).push(message).kind is Kind.FAILURE, "at a primary it is an error of the push"


def make_full(folder: Path) -> Shard:
    """Make a primary whose memory is too small for many keys."""
    shard = make()
    shard.store = Store(4 << 20, folder)
    shard.create(1, VectorSpec("v"))
    return shard


def test_calls_and_failures_are_repeated_like_any_change() -> None:
    @call("test_shard scale")
    def scale(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
        if args["by"] < 0:
            raise ValueError("negative")
        segment.values[: len(segment)] *= args["by"]
        return {"rows": len(segment)}

    primary, other = make(), make()
    for shard in (primary, other):
        shard.create(1, VectorSpec("v", extent=100))
    first = request(Command.PUSH, [4, 9], [1.0, 2.0])
    other.repeat(change_of(first, [caller_of(first)]), None)
    primary.finish([caller_of(first)], primary.push(first))
    for time, by in enumerate((3.0, -1.0, 2.0), start=1):
        message = request(Command.CALL, [], time=time)
        message.keys = None
        message.meta = {"call": "test_shard scale", "args": {"by": by}}
        reply = primary.call(message, None)
        primary.finish([caller_of(message)], reply)
        other.repeat(change_of(message, [caller_of(message)]), None)
        if by < 0:
            assert reply.kind is Kind.FAILURE and reply.meta == {"text": "negative"}
        else:
            assert reply.kind is Kind.REPLY and reply.meta == {"rows": 2}
    assert primary.hosted(1).segment.pull(np.array([4, 9], np.uint64))[:, 0].tolist() == [6.0, 12.0]
    assert state(primary) == state(other) and primary.changes == 4


@pytest.mark.usefixtures("registry")
def test_all_callers_of_a_failed_round_get_the_error_as_reply_to_their_request() -> None:
    @update("test_shard picky")
    def picky(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
        raise ValueError("no")

    sent: list[tuple[int, Message]] = []
    shard = make(0, sent)
    shard.create(1, VectorSpec("v", extent=100, update="test_shard picky", aggregate=True))
    messages = [
        request(Command.PUSH, [5], [1.0], origin=worker, time=10 + worker, round=0) for worker in WORKERS
    ]
    callers = [caller_of(each) for each in messages]
    slots = shard.hosted(1).segment.resolve(np.array([5], np.uint64), create=True)
    shard.finish(callers, shard.sum_up(messages[0], callers, slots, np.ones((1, 1)), False))
    for message in messages:
        assert shard.inbox.admit(message) == []
    assert [(origin, reply.kind, reply.origin, reply.time) for origin, reply in sent] == [
        (worker, Kind.FAILURE, worker, 10 + worker) for worker in WORKERS
    ]
    reply = reply_to(messages[0], meta={"n": 1})
    assert for_caller(callers[0], reply) is reply
    assert for_caller(callers[1], reply).meta == {"n": 1}


def test_the_state_of_the_primary_alone_is_dropped_and_sent_again() -> None:
    shard = make()
    hosted = shard.create(1, VectorSpec("v", extent=100, aggregate=True))
    waiting = request(Command.PUSH, [5], [1.0], round=0)
    (admitted,) = shard.inbox.admit(waiting)
    slots = hosted.segment.resolve(np.array([5], np.uint64), create=True)
    assert hosted.aggregator.add((0, 0), 3, slots, np.ones((1, 1))) is None
    hosted.waiting[0, 0] = {3: admitted}
    assert shard.inbox.admit(waiting) == [] and shard.inbox.unfinished() == 1
    shard.abandon()
    assert hosted.waiting == {} and hosted.aggregator.pending() == {} and shard.inbox.unfinished() == 0
    assert shard.inbox.admit(waiting) == [waiting]
    assert hosted.abandon((3, 4, 5)) == [] and hosted.aggregator.workers == (3, 4, 5)
    assert waiting.round != NO_ROUND
