"""Messages are decoded exactly, and anything else is refused."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.errors import ProtocolError
from mpips.keys import from_pairs
from mpips.ranges import KeyRange
from mpips.transport.message import (
    DTYPES,
    INLINE,
    Command,
    Kind,
    Message,
    bodies,
    bundle,
    decode,
    encode,
    frame_bytes,
    unbundle,
)

times = st.integers(-(2**63), 2**63 - 1)
ranks = st.integers(-1, 9999)
json_like = st.dictionaries(
    st.text(max_size=8), st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text())
)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    begin = draw(st.integers(0, 2**64 - 1))
    n = draw(st.sampled_from([0, 1, 3, 100, INLINE // 8 + 1]))
    width = draw(st.integers(1, 3))
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = draw(st.sampled_from([None, (n,), (n, 2)]))
    keys = None if shape is None else np.unique(from_pairs(rng.integers(0, 2**64, shape, np.uint64)))
    rows = rng.integers(-9, 9, (n, width)).astype(dtype) if draw(st.booleans()) else None
    return Message(
        draw(st.sampled_from(Kind)), draw(st.sampled_from(Command)), draw(ranks), draw(ranks), draw(ranks),
        draw(st.integers(0, 2**32 - 1)), 7, draw(times), draw(times), draw(times),
        KeyRange(begin, draw(st.integers(begin + 1, 2**64))), keys, rows, draw(json_like),
        tuple(draw(st.lists(st.tuples(times, times), max_size=3))), bytes(range(16)),
    )  # fmt: skip


def arrive(message: Message) -> Message:
    frame, buffers = encode(message)
    assert frame_bytes(frame) == len(frame)
    got, key_bytes, value_bytes = decode(frame)
    assert sum(map(len, buffers)) == key_bytes + value_bytes
    if buffers:
        for body, buffer in zip(bodies(got), buffers, strict=True):
            body[:] = buffer
    return got


@given(messages())
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    got = arrive(message)
    for name in (
        "kind",
        "command",
        "sender",
        "origin",
        "shard",
        "epoch",
        "namespace",
        "acked",
        "time",
        "round",
    ):
        assert getattr(got, name) == getattr(message, name), name
    assert (got.range, got.meta, got.after) == (message.range, message.meta, message.after)
    assert got.signature == message.signature
    if message.keys is not None:
        assert got.keys is not None and np.array_equal(got.keys, message.keys)
        assert got.keys.dtype == message.keys.dtype and got.keys.ctypes.data % 8 == 0
    else:
        assert got.keys is None
    if message.values is not None:
        assert got.values is not None and got.values.dtype == message.values.dtype
        assert np.array_equal(got.values, message.values) and got.values.flags.aligned
    else:
        assert got.values is None


def test_large_arrays_are_not_copied() -> None:
    rows = np.zeros((INLINE, 1))
    _, buffers = encode(Message(Kind.REQUEST, Command.PUSH, values=rows))
    rows[5] = 7.0
    assert np.frombuffer(buffers[0], np.float64)[5] == 7.0


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(bytearray(raw))


@given(messages(), st.data())
def test_a_truncated_frame_is_refused(message: Message, data: st.DataObject) -> None:
    frame, _ = encode(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(ProtocolError):
        decode(frame[:cut])


def test_values_of_other_types_are_refused() -> None:
    with pytest.raises(ProtocolError, match="float16"):
        encode(Message(Kind.REQUEST, Command.PUSH, values=np.zeros((2, 1), np.float16)))


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"keys": np.arange(4, dtype=np.int32)}, "keys of type int32"),
        ({"keys": np.arange(4, dtype=">u8")}, "keys of type >u8"),
        ({"keys": np.zeros((2, 2), np.uint64)}, "keys of type uint64, 2-d"),
        ({"values": np.ones((2, 3, 4))}, "values of 3 dimensions"),
        ({"values": np.ones(())}, "values of 0 dimensions"),
        ({"values": np.ones((2, 1), ">f8")}, "values of type >f8"),
    ],
)
def test_arrays_that_cannot_be_encoded_are_refused(arrays: dict[str, np.ndarray], text: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ProtocolError, match=text):
        encode(Message(Kind.REQUEST, Command.PUSH, **arrays))


@pytest.mark.parametrize("rows", [np.ones((3, 1)), None], ids=["values", "nothing"])
def test_a_frame_that_is_too_long_is_refused(rows: np.ndarray | None) -> None:  # type: ignore[type-arg]
    frame, _ = encode(Message(Kind.REPLY, Command.PULL, values=rows))
    assert decode(frame)[0].kind is Kind.REPLY
    for more in (1, 8, 100):
        with pytest.raises(ProtocolError, match=f"its header says {len(frame)}"):
            decode(frame + bytes(more))


@pytest.mark.parametrize("shape", [(5, 0), (0, 0), (0, 7), (2, 70_000), (1, 2**20)])
def test_rows_of_any_width_travel(shape: tuple[int, int]) -> None:
    rows = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    got = arrive(Message(Kind.REQUEST, Command.PUSH, values=rows)).values
    assert got is not None and got.shape == shape and np.array_equal(got, rows)


def test_arrays_with_gaps_between_their_rows_arrive_without() -> None:
    wide = np.arange(24.0).reshape(6, 4)
    got = arrive(
        Message(Kind.REQUEST, Command.PUSH, keys=np.arange(9, dtype=np.uint64)[::2], values=wide[::2, ::3])
    )
    assert got.keys is not None and got.keys.tolist() == [0, 2, 4, 6, 8]
    assert got.values is not None and np.array_equal(got.values, wide[::2, ::3])


@given(st.lists(messages().filter(lambda message: message.payload_bytes <= 800), min_size=1, max_size=4))
def test_messages_that_travel_together_arrive_as_they_were_sent(sent: list[Message]) -> None:
    got = unbundle(arrive(bundle(sent)))
    assert [encode(each) for each in got] == [encode(each) for each in sent]
    for each in got:
        assert all(array.flags.aligned for array in (each.keys, each.values) if array is not None)


@pytest.mark.parametrize("numbers", [Kind, Command])
def test_kinds_and_commands_have_distinct_numbers(numbers: type[IntEnum]) -> None:
    assert len(numbers.__members__) == len(set(numbers))
