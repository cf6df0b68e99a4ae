"""A snapshot restores a shard: rows, slots, notes, clocks, and the replies that were kept."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from server.test_shard import WORKERS, caller_of, make, request, state

from mpips.ranges import KeyRange
from mpips.server.shard import RoundAnswer, Shard
from mpips.server.shard_snapshot import pack, unpack
from mpips.storage.updates import VectorSpec
from mpips.transport.message import NO_ROUND, Command, Kind, Message, to_bytes

keys_of_a_push = st.sets(st.integers(0, 49), min_size=1, max_size=8).map(sorted)
specs = st.builds(
    VectorSpec,
    st.just("v"),
    st.sampled_from(["float32", "float64"]),
    st.integers(1, 3),
    st.just(100),
    st.sampled_from(["add", "ftrl", "adagrad"]),
    dense=st.booleans(),
    aggregate=st.booleans(),
)


def push(shard: Shard, number: int, keys: list[int], time: int, command: Command, round_: int) -> None:
    """Apply a push, or a round of one for all workers, and keep its reply."""
    hosted = shard.hosted(number)
    spec = hosted.segment.spec
    rows = np.random.default_rng(time).standard_normal((len(keys), spec.width)).astype(spec.dtype)
    if round_ == NO_ROUND:
        message = request(command, keys, time=time, namespace=number)
        message.values = rows
        shard.finish([caller_of(message)], shard.push(message))
        return
    messages = [
        request(command, keys, time=time, namespace=number, round=round_, origin=worker) for worker in WORKERS
    ]
    slots = hosted.segment.resolve(np.array(keys, np.uint64), create=True)
    callers = [caller_of(each) for each in messages]
    shard.finish(callers, shard.sum_up(messages[0], callers, slots, rows, command is Command.PUSH_PULL))


@st.composite
def shards(draw: st.DrawFn) -> tuple[Shard, list[Message]]:
    """A shard with some vectors and some history, and the requests whose replies it keeps."""
    shard = make()
    asked: list[Message] = []
    for number in range(1, 1 + draw(st.integers(0, 3))):
        spec = draw(specs)
        hosted = shard.create(number, spec)
        for _ in range(draw(st.integers(0, 6))):
            time, keys = len(asked), draw(keys_of_a_push)
            command = draw(st.sampled_from([Command.PUSH, Command.PUSH_PULL]))
            round_ = time if spec.aggregate else NO_ROUND
            push(shard, number, keys, time, command, round_)
            asked.append(request(command, keys, time=time, namespace=number, round=round_))
        slots = np.flatnonzero(np.random.default_rng(number).random(len(hosted.segment)) < 0.5)
        hosted.segment.notes["tau"] = (slots.astype(np.int32), np.ones((len(slots), 2)))
        if hosted.segment.settings:
            hosted.segment.settings["alpha"] = draw(st.floats(0.01, 1.0))
    acked = draw(st.integers(0, len(asked)))
    shard.inbox.finish(9, 77, None, 70)
    shard.inbox.finish(3, len(asked), None, acked)
    return shard, asked


def again(shard: Shard, sent: list[tuple[int, Message]], asked: list[Message]) -> list[bytes | None]:
    """What each request is answered when it comes once more."""
    said = []
    for message in asked:
        sent.clear()
        assert shard.inbox.admit(message) == [], "it is not applied again"
        said.append(to_bytes(sent[0][1]) if sent else None)
    return said


@settings(max_examples=80)
@given(shards())
def test_an_unpacked_snapshot_equals_the_packed_shard(made: tuple[Shard, list[Message]]) -> None:
    shard, asked = made
    sent: list[tuple[int, Message]] = []
    copied = make(0, sent)
    packed = pack(shard)
    assert len(packed) % 8 == 0
    unpack(packed, copied)
    assert state(copied) == state(shard)
    for number, hosted in shard.vectors.items():
        segment, other = hosted.segment, copied.hosted(number).segment
        assert other.spec == segment.spec and other.settings == segment.settings
        assert other.ranges == segment.ranges
        assert other.notes.keys() == segment.notes.keys()
        for name, (slots, rows) in segment.notes.items():
            assert np.array_equal(other.notes[name][0], slots) and np.array_equal(other.notes[name][1], rows)
        every = KeyRange(0, 50)
        assert np.array_equal(other.pull(every), segment.pull(every))
    shard.inbox._send = lambda origin, reply: sent.append((origin, reply))
    assert again(copied, sent, asked) == again(shard, sent, asked)
    twice = pack(copied)
    assert np.array_equal(twice.read(0, len(twice)), packed.read(0, len(packed))), (
        "and packs as the same again"
    )


@settings(max_examples=40)
@given(shards(), st.data())
def test_a_copy_continues_as_the_original_does(
    made: tuple[Shard, list[Message]], data: st.DataObject
) -> None:
    shard, asked = made
    copied = make()
    unpack(pack(shard), copied)
    if not shard.vectors:
        return
    for more in range(3):
        number = data.draw(st.sampled_from(sorted(shard.vectors)))
        keys = data.draw(keys_of_a_push)
        aggregate = shard.hosted(number).segment.spec.aggregate
        for each in (shard, copied):
            time = len(asked) + 1 + more
            push(each, number, keys, time, Command.PUSH_PULL, time if aggregate else NO_ROUND)
    assert state(copied) == state(shard)


def test_one_answer_of_a_round_is_sent_once_for_all_its_callers() -> None:
    shard, copied = make(), make()
    shard.create(1, VectorSpec("v", extent=100, aggregate=True))
    push(shard, 1, list(range(50)), 0, Command.PUSH_PULL, 0)
    one = len(pack(shard))
    kept = {id(each) for _, _, replies in shard.inbox.callers().values() for each in replies.values()}
    assert len(kept) == 1 and len(shard.inbox.callers()) == len(WORKERS)
    for time in (1, 2, 3):
        push(shard, 1, list(range(50)), time, Command.PUSH_PULL, time)
    assert len(pack(shard)) - one < 8 * (3 * 2 * 50 + 200), "rows and slots of each round once"
    unpack(pack(shard), copied)
    found: dict[int, set[int]] = {}
    for _, _, replies in copied.inbox.callers().values():
        for time, answer in replies.items():
            assert isinstance(answer, RoundAnswer)
            found.setdefault(time, set()).add(id(answer))
    assert {time: len(ids) for time, ids in found.items()} == dict.fromkeys(range(4), 1)


def test_a_failure_that_is_kept_travels_too() -> None:
    sent: list[tuple[int, Message]] = []
    shard, copied = make(), make(0, sent)
    shard.create(1, VectorSpec("v", extent=100))
    bad = request(Command.PUSH, [70], [1.0])
    shard.finish([caller_of(bad)], shard.push(bad))
    unpack(pack(shard), copied)
    assert copied.inbox.admit(bad) == []
    ((_, reply),) = sent
    assert reply.kind is Kind.FAILURE and "not all owned" in reply.meta["text"]
    assert copied.changes == 1


def test_large_rows_are_packed_whole() -> None:
    shard, copied = make(), make()
    rows: Any = np.arange(50 * 3000, dtype=np.float64).reshape(50, 3000)
    shard.create(1, VectorSpec("v", width=3000, extent=100, dense=True))
    message = request(Command.PUSH_PULL, range(50), rows)
    shard.finish([caller_of(message)], shard.push(message))
    unpack(pack(shard), copied)
    assert np.array_equal(copied.hosted(1).segment.pull(KeyRange(0, 50)), rows)
    (reply,) = copied.inbox.callers()[3][2].values()
    assert isinstance(reply, Message) and reply.values is not None and np.array_equal(reply.values, rows)


def test_what_a_caller_has_acknowledged_is_packed_though_nothing_since_is_finished() -> None:
    shard, copied = make(), make()
    shard.inbox.finish(3, 5, Message(Kind.REPLY, Command.PUSH, origin=3, time=5))
    shard.inbox.acknowledge(3, 6)
    assert shard.inbox.callers()[3] == (6, [], {})
    unpack(pack(shard), copied)
    assert copied.inbox.has_finished(3, 5)
