"""The client fast path: requests that compiled code sends, and their answers; one rank that sends to itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpips.errors import ProtocolError
from mpips.jit import kernel_cache, kernel_index, numba_installed
from mpips.ranges import KeyRange
from mpips.transport import header
from mpips.transport.fastpath.client import SLOTS, ask
from mpips.transport.fastpath.table import FastPathTable
from mpips.transport.header import DETACHED, WRITTEN_THERE
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import (
    ANSWER,
    CODES,
    DTYPES,
    NO_ROUND,
    NO_SIGNATURE,
    Command,
    Kind,
    Message,
    encode,
    reply_to,
    to_bytes,
)
from mpips.transport.mpi.kernels import BUSY, FRAME, LOST
from mpips.transport.mpi.van import MPIVan
from mpips.transport.van import NO_BYTES, NO_KEYS
from mpips.worker.plan import Parts, Slice

EPOCH, SHARD, NAMESPACE = 4, 2, 9


class Asking:
    """A rank that sends requests by its client fast path to itself, and answers them."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm, self.van = comm, MPIVan(comm)
        self.van.epoch = EPOCH

    def model(self, command: Command, rows: Any, time: int, acked: int = 0) -> Message:
        """Make the message that a request would be if it were made by Python."""
        made = Message(Kind.REQUEST, command, 0, 0, SHARD, EPOCH, NAMESPACE, acked, time)
        made.range, made.signature = KeyRange(5, 99), bytes(range(16))
        made.values = rows
        return made

    def ask(
        self,
        command: Command,
        numbers: Any,
        n: int,
        first: int = 0,
        time: int = 1,
        acked: int = 0,
        keys: Any = None,
    ) -> int:
        """Send a push or a pull of `n` rows of one number each, from the first one on; list that part of `keys`."""
        rows, out = (numbers, None) if command is Command.PUSH else (None, numbers)
        slots = self.ask_all(command, [(first, first + n)], rows, out, time, acked, keys)
        return slots[0] if slots else -1

    def ask_all(
        self,
        command: Command,
        places: list[tuple[int, int]],
        rows: Any,
        out: Any,
        time: int = 1,
        acked: int = 0,
        keys: Any = None,
        round: int = NO_ROUND,
    ) -> list[int]:
        """Send parts with rows and keys at these places, each to a shard of its own; return their slots."""
        slices = [Slice(SHARD + at, KeyRange(5, 99), *each) for at, each in enumerate(places)]
        signatures = [bytes(range(16))] * len(slices) if keys is None else None
        parts = Parts(slices, keys is not None, signatures)
        raw = [NO_BYTES if each is None else each.view(np.uint8) for each in (rows, out)]
        kinds = [(0, 0) if each is None else (CODES[each.dtype], each.itemsize) for each in (rows, out)]
        (kind, _), answer = kinds
        return self.van.ask(
            parts.table, [0] * len(slices), NO_KEYS if keys is None else keys, *raw, time, acked, round, int(command),
            0, NAMESPACE, kind, 0 if rows is None else 1, *answer, False,
        )  # fmt: skip

    def receive(self) -> Message:
        for _ in range(10_000):
            message = self.van.receive()
            if message is not None:
                return message
        raise AssertionError("nothing came")

    def answer(self, request: Message, rows: Any = None, **fields: Any) -> Message:
        """Send an answer, perhaps with changes; return what is received."""
        reply = reply_to(request, rows)
        reply.sender, reply.epoch = 0, EPOCH
        for name, value in fields.items():
            setattr(reply, name, value)
        self.van.send(0, reply)
        return self.receive()


@pytest.fixture
def asking() -> Iterator[Asking]:
    comm = MPI.COMM_SELF.Dup()
    yield Asking(comm)
    comm.Free()


def same(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)


SIZES = (1, 100, 8192, 8193, 100_000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_push_arrives_as_if_python_had_sent_it(asking: Asking, dtype: Any) -> None:
    for time, n in enumerate(SIZES):
        numbers = np.arange(n + 10).astype(dtype)
        slot = asking.ask(Command.PUSH, numbers, n, first=7, time=time, acked=time // 2)
        arrived, model = asking.receive(), asking.model(Command.PUSH, None, time, time // 2)
        assert same(arrived.values, numbers[7 : 7 + n].reshape(n, 1))
        arrived.values = None
        assert arrived == model
        assert asking.answer(arrived) is ANSWER and asking.van.slot == slot
    assert asking.van.pending() == 0


@pytest.mark.parametrize("command", [Command.PUSH, Command.PULL])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_listed_keys_arrive_as_if_python_had_sent_them(asking: Asking, dtype: Any, command: Command) -> None:
    for time, n in enumerate((1, 100, 2730, 2731, 4096, 4097, 100_000)):
        numbers, keys = np.arange(n + 10).astype(dtype), np.arange(n + 10, dtype=np.uint64) * 3
        slot = asking.ask(command, numbers, n, first=7, time=time, keys=keys)
        arrived = asking.receive()
        rows = numbers[7 : 7 + n].reshape(n, 1) if command is Command.PUSH else None
        model = asking.model(command, rows, time)
        model.signature, model.keys = NO_SIGNATURE, keys[7 : 7 + n]
        assert to_bytes(arrived) == to_bytes(model)
        answer = None if command is Command.PUSH else np.ones((n, 1), dtype)
        assert asking.answer(arrived, answer) is ANSWER and asking.van.slot == slot
        assert command is Command.PUSH or (numbers[7 : 7 + n] == 1).all()
    assert asking.van.pending() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_answer_to_a_pull_goes_to_its_place(asking: Asking, dtype: Any) -> None:
    for time, n in enumerate(SIZES):
        out, rows = np.full(n + 10, 99).astype(dtype), np.arange(n).astype(dtype)
        slot = asking.ask(Command.PULL, out, n, first=3, time=time)
        arrived = asking.receive()
        assert arrived == asking.model(Command.PULL, None, time)
        assert asking.answer(arrived, rows.reshape(n, 1)) is ANSWER and asking.van.slot == slot
        expected = np.full(n + 10, 99).astype(dtype)
        expected[3 : 3 + n] = rows
        assert same(out, expected)


@pytest.mark.parametrize("listed", [False, True])
def test_a_part_of_a_round_arrives_as_if_python_had_sent_it_and_is_answered_in_place(
    asking: Asking, listed: bool
) -> None:
    for time, n in enumerate((0, *SIZES) if listed else SIZES):
        rows, out = np.arange(n + 10, dtype=np.float64), np.zeros(n + 10)
        keys = np.arange(n + 10, dtype=np.uint64) * 3
        model = asking.model(Command.PUSH_PULL, rows[7 : 7 + n].reshape(n, 1), time)
        model.round = 5
        if listed:
            model.signature, model.keys = NO_SIGNATURE, keys[7 : 7 + n]
        (slot,) = asking.ask_all(
            Command.PUSH_PULL, [(7, 7 + n)], rows, out, time, 0, keys if listed else None, 5
        )
        arrived = asking.receive()
        assert to_bytes(arrived) == to_bytes(model)
        assert asking.answer(arrived, np.full((n, 1), 3.0)) is ANSWER and asking.van.slot == slot
        assert out.sum() == 3 * n and (out[7 : 7 + n] == 3).all()


def test_one_call_sends_all_parts_and_those_without_keys_in_rounds_only(asking: Asking) -> None:
    rows, keys = np.arange(30.0), np.arange(30, dtype=np.uint64)
    places = [(0, 10), (10, 10), (10, 30)]
    for round_, sent in ((NO_ROUND, [0, 2]), (5, [0, 1, 2])):
        slots = asking.ask_all(Command.PUSH, places, rows, None, 3, keys=keys, round=round_)
        assert len(set(slots)) == len(sent) and min(slots) >= 0
        arrived = [asking.receive() for _ in sent]
        for part, slot, message in zip(sent, slots, arrived, strict=True):
            mine = slice(*places[part])
            model = asking.model(Command.PUSH, rows[mine].reshape(-1, 1), 3)
            model.shard, model.round = SHARD + part, round_
            model.signature, model.keys = NO_SIGNATURE, keys[mine]
            assert to_bytes(message) == to_bytes(model)
            assert asking.answer(message) is ANSWER and asking.van.slot == slot


@pytest.mark.parametrize("n", [10, 20_000])
def test_answers_find_their_requests_in_any_order(asking: Asking, n: int) -> None:
    outs = [np.zeros(n) for _ in range(8)]
    slots = [asking.ask(Command.PULL, out, n, time=time) for time, out in enumerate(outs)]
    assert len(set(slots)) == 8
    asked = [asking.receive() for _ in outs]
    assert [each.time for each in asked] == list(range(8))
    for number in np.random.default_rng(0).permutation(8).tolist():
        assert asking.answer(asked[number], np.full((n, 1), float(number))) is ANSWER
        assert asking.van.slot == slots[number]
    assert [set(out.tolist()) for out in outs] == [{float(number)} for number in range(8)]


OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "another time": (np.ones((10, 1)), {"time": 2}),
    "another shard": (np.ones((10, 1)), {"shard": SHARD + 1}),
    "a failure": (None, {"kind": Kind.FAILURE, "meta": {"text": "no"}}),
    "that the keys are to be sent": (None, {"kind": Kind.SEND_KEYS}),
    "ahead of a word": (np.ones((10, 1)), {"acked": 1}),
    "words for others": (np.ones((10, 1)), {"after": ((1, 1),)}),
    "metadata": (np.ones((10, 1)), {"meta": {"a": 1}}),
    "keys": (np.ones((10, 1)), {"keys": np.arange(10, dtype=np.uint64)}),
    "no rows": (None, {}),
    "rows of another type": (np.ones((10, 1), np.int64), {}),
    "fewer rows": (np.ones((9, 1)), {}),
    "more rows": (np.ones((11, 1)), {}),
    "many more rows": (np.ones((20_000, 1)), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_answers_are_for_python(asking: Asking, name: str) -> None:
    rows, fields = OTHERS[name]
    out = np.zeros(10)
    slot = asking.ask(Command.PULL, out, 10)
    request = asking.receive()
    reply = asking.answer(request, rows, **fields)
    assert reply is not ANSWER and same(reply.values, rows) and not out.any()
    for field, value in fields.items():
        assert same(reply.keys, value) if field == "keys" else getattr(reply, field) == value
    assert asking.answer(request, np.ones((10, 1))) is ANSWER and asking.van.slot == slot, "it is still due"
    assert out.all()


def test_a_push_is_not_answered_with_rows(asking: Asking) -> None:
    asking.ask(Command.PUSH, np.ones(10), 10)
    request = asking.receive()
    rows = np.full((10, 1), 2.0)
    assert same(asking.answer(request, rows).values, rows)
    assert asking.answer(request) is ANSWER


def test_an_answer_comes_once_and_not_when_it_is_withdrawn(asking: Asking) -> None:
    out = np.zeros(10)
    first = asking.ask(Command.PULL, out, 10, time=1)
    request = asking.receive()
    assert asking.answer(request, np.ones((10, 1))) is ANSWER
    assert same(asking.answer(request, np.full((10, 1), 2.0)).values, np.full((10, 1), 2.0))
    slot = asking.ask(Command.PULL, out, 10, time=2)
    request = asking.receive()
    asking.van.withdraw(slot)
    assert asking.answer(request, np.full((10, 1), 3.0)) is not ANSWER
    assert first >= 0 and set(out.tolist()) == {1.0}


def test_no_more_is_asked_than_there_are_slots(asking: Asking) -> None:
    numbers = np.ones(10)
    slots = [asking.ask(Command.PUSH, numbers, 10, time=time) for time in range(SLOTS)]
    assert sorted(slots) == list(range(SLOTS))
    asked = [asking.receive() for _ in slots]
    assert asking.ask(Command.PUSH, numbers, 10, time=99) == -1
    assert asking.answer(asked[17]) is ANSWER and asking.van.slot == slots[17]
    assert asking.ask(Command.PUSH, numbers, 10, time=99) == slots[17]
    assert asking.receive().time == 99
    assert asking.ask(Command.PUSH, numbers, 10, time=100) == -1


def test_a_server_and_requests_to_a_lost_rank_do_not_use_the_client_fast_path(asking: Asking) -> None:
    asking.van.fast_path = FastPathTable(1, 1, KeyCache(0))
    assert asking.ask(Command.PUSH, np.ones(1), 1) == -1
    asking.van.fast_path = None
    assert asking.ask(Command.PUSH, np.ones(1), 1) >= 0
    assert asking.receive().signature != NO_SIGNATURE
    asking.van.exclude(0)
    assert asking.ask(Command.PUSH, np.ones(1), 1) == -1
    assert all(asking.van.receive() is None for _ in range(20))


def test_what_a_server_sends_to_a_lost_rank_is_not_pending_though_it_is_frozen(asking: Asking) -> None:
    table, rows = FastPathTable(1, 1, KeyCache(0)), np.ones(1 << 20)
    asking.van.fast_path = table
    request = asking.comm.Isend(rows, 0, 99)
    table.slots[3] = BUSY, request.handle, 0
    asking.van.fast_path = None
    assert asking.van.pending() == 1
    asking.van.exclude(0)
    assert asking.van.pending() == 0 and table.slots[3, 0] == LOST
    asking.comm.Recv(np.empty_like(rows), 0, 99)


@pytest.mark.parametrize("value", ["0", "1"])
def test_numba_disable_jit_leaves_all_messages_to_python(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    asking = Asking(asking.comm)
    assert asking.van.compiled == (value == "0")
    assert (asking.ask(Command.PUSH, np.ones(1), 1) >= 0) == asking.van.compiled
    asking.van.send(0, asking.model(Command.PUSH, np.ones(1), 7))
    assert [asking.receive().time for _ in range(2 if asking.van.compiled else 1)][-1] == 7


def test_arrays_of_the_client_fast_path_are_kept_alive_until_sent(asking: Asking) -> None:
    """The caller may drop its array: what MPI still reads, or writes into, is kept."""
    for time in range(3 * SLOTS):
        asking.ask(Command.PUSH, np.full(20_000, float(time)), 20_000, time=time)
        request = asking.receive()
        assert request.values is not None and set(request.values.ravel().tolist()) == {float(time)}
        assert asking.answer(request) is ANSWER
    assert asking.van.pending() == 0


@pytest.mark.parametrize("by", [-1, 1])
def test_an_answer_of_another_epoch_is_accepted(asking: Asking, by: int) -> None:
    """The view may have changed on either side meanwhile; whoever was asked answers."""
    out = np.zeros(10)
    slot = asking.ask(Command.PULL, out, 10)
    request = asking.receive()
    rows = np.full((10, 1), 3.0)
    assert asking.answer(request, rows, epoch=EPOCH + by) is ANSWER
    assert asking.van.slot == slot and (out == 3).all()


def raw_answer(request: Message, rows: Any, flags: int = 0, cut: int = 0, n: int | None = None) -> bytearray:
    """Write the answer to a request by hand: with other flags, cut off, or another number of rows in its header."""
    reply = reply_to(request, rows)
    reply.sender, reply.epoch = 0, EPOCH
    frame, _ = encode(reply)
    frame[header.FLAGS] |= flags
    if n is not None:
        np.frombuffer(frame, header.HEADER, 1)["rows"] = np.uint64(n % 2**64)
    return frame[: len(frame) - cut]


@pytest.mark.parametrize("n", [10, 20_000])
@pytest.mark.parametrize(
    ("of", "how"),
    [
        (10, {"cut": 8}),
        (10, {"cut": 80}),
        (10, {"flags": DETACHED}),
        (10, {"flags": WRITTEN_THERE}),
        (0, {"flags": WRITTEN_THERE, "n": 10}),
        (0, {"flags": WRITTEN_THERE, "n": 20_000}),
        (0, {"n": 10}),
        (0, {"n": 20_000}),
        (0, {"n": 2**61 + 10}),
        (0, {"n": -10}),
        (10, {"cut": 195}),
    ],
)
def test_an_answer_that_is_not_of_its_size_is_not_copied(
    asking: Asking, n: int, of: int, how: dict[str, Any]
) -> None:
    """Nothing beyond a frame is read, and nothing is written but what was asked for, whatever a header says."""
    out = np.zeros(n)
    slot = asking.ask(Command.PULL, out, n)
    request = asking.receive()
    frame = raw_answer(request, np.ones((of, 1)), **how)
    sent = asking.van._comm.Isend((frame, MPI.BYTE), 0, FRAME)  # type: ignore[union-attr]
    for _ in range(1000):
        try:
            assert asking.van.receive() is None
        except ProtocolError:
            break
    sent.Wait()
    assert not out.any()
    assert asking.answer(request, np.ones((n, 1))) is ANSWER and asking.van.slot == slot, "it is still due"
    assert out.all()


def test_kernels_are_compiled_again_when_the_header_changes() -> None:
    stat = os.stat(header.__file__)
    source = ask.__code__.co_filename  # type: ignore[attr-defined]
    folder = kernel_cache.choose(os.path.dirname(source)).folder
    assert folder is not None
    index = kernel_index.current(
        kernel_index.path_of(folder, source, numba_installed.key()), os.path.dirname(source)
    )
    assert index is not None
    assert (stat.st_mtime_ns, stat.st_size) in [(mtime, size) for _, mtime, size in index.stamps]
