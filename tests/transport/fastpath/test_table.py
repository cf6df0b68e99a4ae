"""The server fast path: what compiled code answers, as Python would, and what it leaves; one rank sends to itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpips.cluster.hash_ring import Ring
from mpips.ranges import KeyRange
from mpips.server.shard import Hosted, Shard
from mpips.storage.initial import Normal
from mpips.storage.segment import Segment, one_by_one
from mpips.storage.updates import Column, VectorSpec, update
from mpips.tasks.request_dedup import RequestDedup
from mpips.transport.fastpath.table import (
    ADD,
    ASSIGN,
    BUFFERS,
    CHANGES,
    MOST_BYTES,
    NEWS,
    NO_PUSH,
    WINDOW,
    FastPathTable,
    Finished,
    ServedRows,
)
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import KeyCache, Known, sign
from mpips.transport.message import CODES, INLINE, NO_ROUND, NO_SIGNATURE, Command, Kind, Message
from mpips.transport.mpi.kernels import BODY
from mpips.transport.mpi.van import MPIVan

EPOCH = 3
BEGIN = 100
"""The key of row 0."""
FIELDS = (
    "kind",
    "command",
    "sender",
    "origin",
    "shard",
    "epoch",
    "namespace",
    "time",
    "round",
    "range",
    "meta",
)
SHARD, NAMESPACE, ROWS = 1, 2, 12_000


class Alone:
    """A rank that sends itself requests and lets its table, which has rows of a vector, answer them."""

    def __init__(self, comm: MPI.Intracomm, dtype: str, width: int, push: int, pull: bool = True) -> None:
        self.van = MPIVan(comm)
        self.van.epoch = EPOCH
        self.lists = KeyCache(1e6)
        self.table = FastPathTable(3, 2, self.lists)
        rng = np.random.default_rng(5)
        self.values = rng.integers(-99, 99, (ROWS, width)).astype(dtype)
        address, code = self.values.ctypes.data, CODES[self.values.dtype]
        last = BEGIN + ROWS - 1
        self.served_rows = ServedRows(
            address, code, width, BEGIN, last, ROWS, push, pull, pushed=(code, width)
        )
        self.table.open(SHARD, NAMESPACE, self.served_rows)
        self.table.admitted(SHARD, 0, -1)
        self.time = 0
        self._answers: list[Message] = []

    def request(self, command: Command, named: KeyRange | bytes, rows: Any = None, **fields: Any) -> Message:
        """Make a request, of a time of its own."""
        made = Message(Kind.REQUEST, command, 0, 0, SHARD, EPOCH, NAMESPACE, values=rows)
        made.time = self.time = self.time + 1
        if isinstance(named, KeyRange):
            made.range = named
        else:
            made.signature = named
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    def serve(self, request: Message) -> Message | None:
        """Pass a request to the table; return it if it was left to Python, None if it was answered."""
        news = self.table.parts[:, 0, NEWS]
        news[:] = 0
        self.van.send(0, request)
        self.van.fast_path = self.table
        message = self._next(lambda: bool(news.any()))
        self.van.fast_path = None
        if not news.any():
            return message
        self._answers += [message] if message is not None else []
        return None

    def _next(self, enough: Callable[[], bool] = lambda: False) -> Message | None:
        for _ in range(10_000):
            message = self.van.receive()
            if message is not None or enough():
                return message
        raise AssertionError("nothing came")

    def answer(self) -> Message:
        """Receive what the table has answered."""
        message = self._answers.pop() if self._answers else self._next()
        assert message is not None
        return message

    def is_silent(self) -> bool:
        """Return whether nothing more comes."""
        return all(self.van.receive() is None for _ in range(50))


@pytest.fixture
def comm() -> Iterator[MPI.Intracomm]:
    mine = MPI.COMM_SELF.Dup()
    yield mine
    mine.Free()


def slots_of(kind: str, n: int, rng: np.random.Generator) -> Any:
    first = int(rng.integers(0, ROWS - n + 1))
    if kind == "slots":
        return rng.permutation(ROWS)[:n].astype(np.int32)
    return slice(first, first + n)


# --- what it answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["range", "run", "slots"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
def test_pushes_and_pulls_equal_those_of_numpy(
    comm: MPI.Intracomm, dtype: str, width: int, kind: str
) -> None:
    for push in (ADD, ASSIGN):
        alone = Alone(comm, dtype, width, push)
        rng, model = np.random.default_rng(1), alone.values.copy()
        for changes, n in enumerate((1, 7, 1000, ROWS), 1):
            slots = slots_of(kind, n, rng)
            named: Any = KeyRange(BEGIN + slots.start, BEGIN + slots.stop) if kind == "range" else b""
            if kind != "range":
                named = sign(np.arange(n, dtype=np.uint64))
                alone.lists.keep(SHARD, NAMESPACE, named, Known(slots))
            rows = rng.integers(-99, 99, (n, width)).astype(dtype)
            answers = []
            for request in (
                alone.request(Command.PUSH, named, rows),
                alone.request(Command.PULL, named),
            ):
                handed = alone.serve(request)
                while handed is not None:  # for want of memory, which there is the next time
                    assert n * width * rows.itemsize > INLINE
                    assert np.array_equal(alone.values, model)
                    request = alone.request(request.command, named, request.values)
                    handed = alone.serve(request)
                if request.command is Command.PUSH:
                    model[slots] = rows if push == ASSIGN else model[slots] + rows
                assert np.array_equal(alone.values, model)
                (done,) = alone.table.finished(SHARD)
                assert done == Finished(0, 0, [(request.time, request.command is Command.PUSH)])
                answers.append((request, alone.answer()))
            for request, answer in answers:
                like = Message(Kind.REPLY, request.command, 0, 0, SHARD, EPOCH, NAMESPACE, time=request.time)
                if request.command is Command.PULL:
                    like.round = changes  # after how many it was read
                assert [getattr(answer, each) for each in FIELDS] == [getattr(like, each) for each in FIELDS]
                assert answer.keys is None and answer.acked == 0 and answer.after == ()
                assert answer.signature == NO_SIGNATURE
            assert answers[0][1].values is None
            pulled = answers[1][1].values
            assert pulled is not None and pulled.dtype == dtype and np.array_equal(pulled, model[slots])
        assert alone.table.changes(SHARD) == 4 and alone.table.changes(SHARD) == 0
        assert alone.is_silent() and alone.van.pending() == 0


def test_bytes_are_counted_as_python_counts_them(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float64", 1, ADD)
    for n in (10, ROWS, ROWS, ROWS):
        for command in (Command.PUSH, Command.PULL):
            rows = np.ones((n, 1)) if command is Command.PUSH else None
            if alone.serve(alone.request(command, KeyRange(BEGIN, BEGIN + n), rows)) is None:
                alone.answer()
    assert alone.van.sent_bytes == alone.van.received_bytes > 4 * ROWS * 8


def test_a_list_that_was_used_is_marked(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float32", 1, ADD)
    names = [sign(np.array([number], np.uint64)) for number in range(16)]
    alone.lists.bound = 16 * 512
    for number, name in enumerate(names):
        alone.lists.keep(SHARD, NAMESPACE, name, Known(slice(number, number + 1)))
    assert alone.serve(alone.request(Command.PULL, names[2])) is None
    alone.lists.keep(SHARD, NAMESPACE, sign(np.array([99], np.uint64)), Known(slice(0, 1)))
    assert alone.lists.find(SHARD, NAMESPACE, names[2]) is not None
    assert alone.lists.find(SHARD, NAMESPACE, names[3]) is None
    alone.answer()


def test_messages_of_an_ignored_rank_are_dropped(comm: MPI.Intracomm) -> None:
    """Keys and values that follow its frames are not received: those of another frame would be taken for them."""
    alone = Alone(comm, "float64", 1, ADD)
    model, whole = alone.values.copy(), KeyRange(BEGIN, BEGIN + ROWS)
    while alone.serve(alone.request(Command.PUSH, whole, np.ones((ROWS, 1)))) is not None:
        pass
    alone.answer()
    alone.van._deaths.ignored[0] = True
    alone.van.fast_path = alone.table
    for n in (ROWS, ROWS // 2):
        alone.van.send(0, alone.request(Command.PUSH, KeyRange(BEGIN, BEGIN + n), np.ones((n, 1))))
    alone.van.send(0, alone.request(Command.PUSH, KeyRange(BEGIN, BEGIN + 1), np.ones((1, 1))))
    assert alone.is_silent() and np.array_equal(alone.values, model + 1)
    for n in (ROWS, ROWS // 2):
        comm.Recv(body := np.zeros(n), source=0, tag=BODY)
        assert body.all()


# --- what it leaves to Python ------------------------------------------------------------------------------

TEN = KeyRange(BEGIN, BEGIN + 10)
ONES = np.ones((10, 1), np.float32)
KNOWN = sign(np.arange(10, dtype=np.uint64))
MIXED = np.array([BEGIN, 2**63, BEGIN + 1], np.uint64)
OTHERS: dict[str, tuple[Command, Any, Any, dict[str, Any]]] = {
    "an earlier epoch": (Command.PUSH, TEN, ONES, {"epoch": EPOCH - 1}),
    "a later epoch": (Command.PULL, TEN, None, {"epoch": EPOCH + 1}),
    "a push that waits": (Command.PUSH, TEN, ONES, {"after": ((0, 1),)}),
    "a pull that waits": (Command.PULL, TEN, None, {"after": ((0, 1),)}),
    "a push with metadata": (Command.PUSH, TEN, ONES, {"meta": {"a": 1}}),
    "a round": (Command.PUSH, TEN, ONES, {"round": 0}),
    "push and pull": (Command.PUSH_PULL, TEN, ONES, {}),
    "a call": (Command.CALL, TEN, None, {}),
    "a reply": (Command.PULL, TEN, ONES, {"kind": Kind.REPLY}),
    "a key before the first": (
        Command.PUSH,
        TEN,
        ONES,
        {"keys": np.arange(BEGIN - 1, BEGIN + 9, dtype=np.uint64)},
    ),
    "a key in the middle, far beyond": (
        Command.PUSH,
        TEN,
        ONES[:3],
        {"keys": np.array([BEGIN, 2**63, BEGIN + 1], "u8")},
    ),
    "fewer rows than keys": (
        Command.PUSH,
        TEN,
        ONES[:9],
        {"keys": np.arange(BEGIN, BEGIN + 10, dtype=np.uint64)},
    ),
    "no keys": (Command.PULL, TEN, None, {"keys": np.zeros(0, np.uint64)}),
    "another shard": (Command.PULL, TEN, None, {"shard": 0}),
    "no such shard": (Command.PULL, TEN, None, {"shard": 3}),
    "a rank": (Command.PULL, TEN, None, {"shard": -1}),
    "another vector": (Command.PULL, TEN, None, {"namespace": 1}),
    "no such vector": (Command.PULL, TEN, None, {"namespace": 1000}),
    "a vector numbered backwards": (Command.PULL, TEN, None, {"namespace": 2**32 - 2}),
    "an unknown caller": (Command.PULL, TEN, None, {"origin": 1}),
    "no such caller": (Command.PULL, TEN, None, {"origin": 2}),
    "nobody": (Command.PULL, TEN, None, {"origin": -1}),
    "a time that was": (Command.PUSH, TEN, ONES, {"time": 0}),
    "before the first row": (Command.PULL, KeyRange(BEGIN - 1, BEGIN + 9), None, {}),
    "beyond the last row": (Command.PULL, KeyRange(BEGIN + ROWS - 9, BEGIN + ROWS + 1), None, {}),
    "far beyond": (Command.PULL, KeyRange(BEGIN + 1, 2**63), None, {}),
    "very far beyond": (Command.PULL, KeyRange(BEGIN, 2**64), None, {}),
    "as far as can be": (Command.PULL, KeyRange(1, 2**63), None, {"namespace": 0}),
    "only beyond": (Command.PULL, KeyRange(2**63, 2**63 + 9), None, {}),
    "no range": (Command.PULL, KeyRange(BEGIN, BEGIN), None, {}),
    "an unknown list": (Command.PULL, sign(np.arange(11, dtype=np.uint64)), None, {}),
    "a list of another vector": (Command.PULL, KNOWN, None, {"namespace": 0}),
    "rows of a width": (Command.PUSH, TEN, np.ones((10, 2), np.float32), {}),
    "rows of a type": (Command.PUSH, TEN, np.ones((10, 1), np.int32), {}),
    "rows of another size": (Command.PUSH, TEN, np.ones((10, 1), np.float64), {}),
    "too few rows": (Command.PUSH, TEN, ONES[:9], {}),
    "too many rows": (Command.PUSH, TEN, np.ones((11, 1), np.float32), {}),
    "no rows": (Command.PUSH, TEN, None, {}),
    "rows to pull": (Command.PULL, TEN, ONES, {}),
    "too few rows for a list": (Command.PUSH, KNOWN, ONES[:9], {}),
    "many rows of a type": (Command.PUSH, KeyRange(BEGIN, BEGIN + 9000), np.ones((9000, 1), np.int32), {}),
    "too many rows at once": (Command.PUSH, TEN, np.ones((9000, 1), np.float32), {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_requests_are_returned_to_python_unchanged(comm: MPI.Intracomm, name: str) -> None:
    alone = Alone(comm, "float32", 1, ADD)
    alone.table.provide(1 << 20)
    before = alone.values.copy()
    alone.lists.keep(SHARD, NAMESPACE, KNOWN, Known(slice(0, 10)))
    alone.table.open(SHARD, 0, alone.served_rows._replace(begin=0))
    assert alone.serve(alone.request(Command.PULL, TEN, time=0)) is None
    list(alone.table.finished(SHARD))
    alone.answer()
    command, keys, rows, fields = OTHERS[name]
    request = alone.request(command, keys, rows, **fields)
    handed = alone.serve(request)
    assert handed is not None
    assert [getattr(handed, each) for each in FIELDS] == [getattr(request, each) for each in FIELDS]
    assert (handed.after, handed.signature) == (request.after, request.signature)
    for one, other in ((handed.keys, request.keys), (handed.values, request.values)):
        assert (one is None) == (other is None)
        assert one is None or other is None or (one.dtype == other.dtype and np.array_equal(one, other))
    assert not alone.table.has_news(SHARD) and not alone.table.changes(SHARD)
    assert np.array_equal(alone.values, before) and alone.is_silent()
    # And it goes on as before.
    assert alone.serve(alone.request(Command.PUSH, TEN, ONES, time=7)) is None
    assert np.array_equal(alone.values[:10], before[:10] + 1)
    assert alone.answer().time == 7


def test_a_vector_may_be_open_for_some_things_only(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float32", 1, NO_PUSH)
    assert alone.serve(alone.request(Command.PUSH, TEN, ONES)) is not None
    assert alone.serve(alone.request(Command.PULL, TEN)) is None
    list(alone.table.finished(SHARD))
    alone.answer()
    alone.table.open(SHARD, NAMESPACE, alone.served_rows._replace(push=ADD, pull=False))
    assert alone.serve(alone.request(Command.PULL, TEN)) is not None
    assert alone.serve(alone.request(Command.PUSH, TEN, ONES)) is None
    list(alone.table.finished(SHARD))
    alone.answer()
    alone.table.open(SHARD, NAMESPACE, alone.served_rows._replace(begin=0, rows=0, push=ADD))  # a sparse one
    alone.lists.keep(SHARD, NAMESPACE, KNOWN, Known(slice(0, 10)))
    assert alone.serve(alone.request(Command.PULL, TEN)) is not None
    assert alone.serve(alone.request(Command.PULL, KNOWN)) is None
    alone.answer()


def test_nothing_of_a_closed_shard_nor_of_a_forgotten_caller_is_answered(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float32", 1, ADD)

    def served() -> bool:
        if alone.serve(alone.request(Command.PULL, TEN)) is not None:
            return False
        list(alone.table.finished(SHARD))
        return alone.answer().time == alone.time

    assert served()
    alone.table.forget(SHARD, 0)
    assert not served()
    alone.table.admitted(SHARD, 0, alone.time)
    assert served()
    alone.table.close(SHARD)
    assert not served()
    alone.table.admitted(SHARD, 0, alone.time)
    assert not served()
    alone.table.open(SHARD, NAMESPACE, alone.served_rows)
    assert served()


def test_finished_requests_are_recorded_within_the_window(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float32", 1, ADD)
    before = alone.values[0, 0]

    def push(**fields: Any) -> Message | None:
        rows = np.ones((1, 1), np.float32)
        handed = alone.serve(alone.request(Command.PUSH, KeyRange(BEGIN, BEGIN + 1), rows, **fields))
        if handed is None:
            alone.answer()
        return handed

    assert [push() for _ in range(WINDOW)] == [None] * WINDOW
    assert push() is not None, "nobody knows yet of those that are finished"
    assert push(acked=WINDOW - 2) is None, "what the caller has heard of need not be noted"
    (done,) = alone.table.finished(SHARD)
    assert done.acked == WINDOW - 2
    assert done.times == [(time, True) for time in (WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 2)]
    assert push() is None
    assert alone.values[0, 0] == before + WINDOW + 2 == before + alone.table.changes(SHARD)


# --- its tables ------------------------------------------------------------------------------------------


def test_memory_is_provided_once_and_within_bounds() -> None:
    table = FastPathTable(1, 1, KeyCache(0))
    assert table.provide(1000) and len(table.receive_buffer) >= 1000
    for _ in range(BUFFERS):
        assert table.provide(1000)
    sizes = table.buffers[:, 3].tolist()
    assert min(sizes) >= 1000 and not table.provide(1000), "all are large enough"
    table.buffers[1:, 0] = 1
    receive_buffer = table.receive_buffer
    assert (
        table.provide(5000)
        and len(table.receive_buffer) >= 5000
        and table.receive_buffer is not receive_buffer
    )
    assert table.provide(5000) and table.buffers[0, 3] >= 5000 and table.buffers[1:, 3].tolist() == sizes[1:]
    assert not table.provide(5000), "all that are large enough are busy, and none that is not is free"
    assert not table.provide(MOST_BYTES + 1)
    given = table.give_up(0)
    assert len(given) >= 5000 and not len(table.receive_buffer)


def test_tables_grow_and_keep_what_they_hold() -> None:
    """Callers come and go at random; a dictionary knows their highest times."""
    shards, ranks = 3, 40
    table, rng = FastPathTable(shards, ranks, KeyCache(0)), np.random.default_rng(0)
    highest: dict[tuple[int, int], int] = {}
    for _ in range(2000):
        name = (int(rng.integers(0, shards)), int(rng.integers(0, ranks)))
        draw = rng.random()
        if draw < 0.6:
            time = int(rng.integers(0, 1000))
            table.admitted(*name, time)
            highest[name] = max(time, highest.get(name, -1))
        elif draw < 0.99:
            table.forget(*name)
            highest.pop(name, None)
        else:
            table.close(name[0])
            highest = {each: time for each, time in highest.items() if each[0] != name[0]}
        known = np.argwhere(table.rows_of)
        assert {(int(s), int(o)) for s, o in known} == set(highest)
        rows = [int(table.rows_of[each]) for each in highest]
        assert len(set(rows)) == len(rows), "each has a row of its own"
        assert [int(table.callers[row, 0]) for row in rows] == list(highest.values())
    assert len(table.callers) <= 4 * shards * ranks


RESIDENT = """
import resource
from pathlib import Path
from mpips.transport.key_cache import KeyCache
from mpips.transport.fastpath.table import FastPathTable

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

before, table = resident(), FastPathTable(2000, 8000, KeyCache(0))
places = (3, 7999), (3, 0), (1500, 20)
for shard, origin in places:
    table.admitted(shard, origin, 5)
print(resident() - before, table.rows_of.nbytes, *(table.callers[table.rows_of[each], 0] for each in places))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system tells no memory of processes")
def test_shards_that_are_elsewhere_take_no_memory() -> None:
    """In a process of its own: one that has freed much has the C library clear arrays of up to 32 MB at once."""
    said = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    grown, nbytes, *admitted = map(int, said.split())
    assert grown < 16e6 < nbytes / 3
    assert admitted == [5, 5, 5]


def test_a_vector_of_any_number_can_be_opened_and_closed() -> None:
    table = FastPathTable(2, 1, KeyCache(0))
    served = {
        number: ServedRows(number, 0, 1, number, number + 9, 10, ADD, True) for number in (0, 3, 4, 500, 7)
    }
    for number, rows in served.items():
        table.open(1, number, rows)
        table.parts[1, number, CHANGES] = number
    for number, rows in served.items():
        assert table.parts[1, number, :CHANGES].tolist() == [1, *rows.columns()]
    assert not table.parts[0].any()
    table.open(1, 4, served[4]._replace(address=77))
    assert table.changes(1) == sum(served), "what has changed is not forgotten where rows move"
    table.close(1)
    assert not table.parts.any()


def test_pushes_are_reported_in_order_in_a_recorded_run(comm: MPI.Intracomm) -> None:
    alone = Alone(comm, "float32", 1, ADD)
    reported: list[Any] = []
    alone.table.observe_pushes(lambda *push: reported.append(push))
    times = []
    for command in (Command.PUSH, Command.PULL, Command.PUSH):
        rows = None if command is Command.PULL else ONES
        assert alone.serve(alone.request(command, TEN, rows)) is None
        times.append(alone.time)
        answer = alone.answer()
        assert answer.round == (1 if command is Command.PULL else NO_ROUND)
    assert reported == [(SHARD, int(Command.PUSH), [(0, time)]) for time in times[::2]]


# --- keys that a request lists ---------------------------------------------------------------------------


class Sparse(Alone):
    """A rank whose table has a shard of a sparse vector."""

    def __init__(self, comm: MPI.Intracomm, spec: VectorSpec, owned: KeyRange, expect: int) -> None:
        super().__init__(comm, spec.dtype, spec.width, ADD)
        self.shard = Shard(SHARD, Ring.__new__(Ring), (0,), RequestDedup(lambda *_: None), lambda error: {})
        self.segment = Segment(spec, [owned], expect=expect)
        self.shard.vectors[NAMESPACE] = Hosted(self.segment, (0,))
        self.expose()

    def expose(self) -> None:
        served_rows = self.shard.vectors[NAMESPACE].served_rows
        assert served_rows is not None
        self.table.open(SHARD, NAMESPACE, served_rows)


def listing(rng: np.random.Generator, kind: str, n: int, owned: KeyRange) -> Any:
    """Draw sorted keys: near to each other, far apart, or one run."""
    if kind == "run":
        first = int(rng.integers(0, 10**6))
        return np.arange(first, first + n, dtype=np.uint64) + np.uint64(owned.begin)
    most = 4 * n + 50_000 if kind == "near" else owned.span - 1
    drawn = np.unique(rng.integers(0, most, n, dtype=np.uint64, endpoint=True))
    return drawn + np.uint64(owned.begin)


OWNED = {
    "low": KeyRange(0, 2**62),
    "high": KeyRange(2**63 + 5, 2**64),
    "across": KeyRange(2**62, 2**63 + 2**62),
}


@pytest.mark.parametrize("where", OWNED)
@pytest.mark.parametrize("kind", ["run", "near", "far"])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 1), ("float64", 3), ("int64", 2)])
def test_listed_keys_are_found_and_get_rows_as_in_a_dict(
    comm: MPI.Intracomm, dtype: str, width: int, kind: str, where: str
) -> None:
    """Without room for new keys the request is handed over whole; when there is room again it is served."""
    owned, rng = OWNED[where], np.random.default_rng(len(kind) + width)
    alone = Sparse(comm, VectorSpec("w", dtype, width), owned, 1000)
    alone.table.provide(1 << 21)
    model: dict[int, Any] = {}
    zero, served, handed = np.zeros(width, dtype), 0, 0
    for n in (1, 40, 3000, 1, 20_000, 500, 3000, 20_000, 7):
        keys = listing(rng, kind, n, owned)
        rows = rng.integers(-9, 10, (len(keys), width)).astype(dtype)
        message = alone.serve(alone.request(Command.PUSH, owned, rows, keys=keys))
        if message is None:
            served += 1
            assert alone.answer().values is None
        else:
            handed += 1
            assert message.keys is not None and message.values is not None
            assert np.array_equal(message.keys, keys) and np.array_equal(message.values, rows)
            alone.segment.push(message.keys, message.values)
            alone.expose()
            list(alone.table.finished(SHARD))
            alone.table.admitted(SHARD, 0, alone.time)
        for key, row in zip(keys.tolist(), rows, strict=True):
            model[key] = model.get(key, zero) + row
        assert len(alone.segment) >= len(model)
        asked = np.unique(np.concatenate([keys[::2], listing(rng, kind, n, owned)]))
        # The first large answer finds no buffer; then there is one.
        pulls = (alone.serve(alone.request(Command.PULL, owned, keys=asked)) for _ in range(2))
        assert any(message is None for message in pulls)
        pulled = alone.answer().values
        assert np.array_equal(pulled, [model.get(key, zero) for key in asked.tolist()])
    keys, rows = alone.segment.items()
    assert {key: row.tolist() for key, row in zip(keys.tolist(), rows, strict=True) if row.any()} == {
        key: row.tolist() for key, row in model.items() if row.any()
    }
    assert served > 0 and handed > 0


@pytest.mark.parametrize("init", [1.5, Normal(0.0, 0.1, seed=3)])
@pytest.mark.parametrize("n", [10, 5_000])
def test_keys_with_rows_are_served_though_new_ones_do_not_begin_with_0(
    comm: MPI.Intracomm, n: int, init: Any
) -> None:
    owned, rng = KeyRange(0, 2**62), np.random.default_rng(n)
    spec = VectorSpec("w", "float32", 4, init=init)
    alone = Sparse(comm, spec, owned, 10**5)
    alone.table.provide(1 << 21)
    keys = listing(rng, "far", n, owned)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    message = alone.serve(alone.request(Command.PUSH, owned, rows, keys=keys))
    assert message is not None and np.array_equal(message.values, rows) and len(alone.segment) == 0
    alone.segment.push(keys, rows)
    alone.expose()
    alone.table.admitted(SHARD, 0, alone.time)
    assert alone.serve(alone.request(Command.PUSH, owned, rows, keys=keys)) is None
    alone.answer()
    known = keys[::3].copy()
    # The first large answer finds no buffer; then there is one.
    assert any(alone.serve(alone.request(Command.PULL, owned, keys=known)) is None for _ in range(2))
    expected = spec.initial(keys) + rows + rows
    assert np.array_equal(alone.answer().values, expected[::3])
    # One key without a row, and the request is Python's, whole.
    more = np.append(known, np.uint64(keys[-1] + 1))
    for command, given in ((Command.PULL, None), (Command.PUSH, np.ones((len(more), 4), np.float32))):
        message = alone.serve(alone.request(command, owned, given, keys=more))
        assert message is not None and np.array_equal(message.keys, more)
        list(alone.table.finished(SHARD))
        alone.table.admitted(SHARD, 0, alone.time)
    assert len(alone.segment) == n and np.array_equal(alone.segment.pull(keys), expected)


@pytest.mark.parametrize("n", [10, 20_000])
@pytest.mark.parametrize("stray", ["before", "behind"])
def test_keys_of_other_shards_are_left_to_python(comm: MPI.Intracomm, stray: str, n: int) -> None:
    owned = KeyRange(1000, 2**40)
    alone = Sparse(comm, VectorSpec("w", "float32"), owned, 10**6)
    alone.table.provide(1 << 21)
    keys = np.arange(1000, 1000 + n, dtype=np.uint64)
    keys[0 if stray == "before" else -1] = 999 if stray == "before" else 2**40
    for command, rows in ((Command.PUSH, np.ones((n, 1), np.float32)), (Command.PULL, None)):
        message = alone.serve(alone.request(command, owned, rows, keys=keys))
        assert message is not None and message.keys is not None and np.array_equal(message.keys, keys)
        assert (message.values is None) is (rows is None)
    assert len(alone.segment) == 0


def test_what_lists_its_keys_counts_the_same_bytes_as_a_message(comm: MPI.Intracomm) -> None:
    alone = Sparse(comm, VectorSpec("w", "float64"), KeyRange(0, 2**64), 10**6)
    alone.table.provide(1 << 22)
    for n in (10, 50_000):
        keys, rows = np.arange(n, dtype=np.uint64), np.ones((n, 1))
        before = alone.van.received_bytes
        assert alone.serve(alone.request(Command.PUSH, KeyRange(0, 2**64), rows, keys=keys)) is None
        alone.answer()
        # The request, and its answer, which is a header.
        assert alone.van.received_bytes - before == HEADER_BYTES + 16 * n + HEADER_BYTES


# --- updates with settings and state ---------------------------------------------------------------------

GRADIENTS: dict[str, dict[str, Any]] = {
    "sgd": {"rate": 0.3, "l1": 0.1, "l2": 0.2},
    "adagrad": {"alpha": 0.4, "beta": 0.9, "l1": 0.1},
    "ftrl": {"alpha": 0.4, "beta": 0.9, "l1": 0.1, "l2": 0.2},
    "adam": {"alpha": 0.05, "beta1": 0.8, "beta2": 0.9, "decay": 0.1},
}


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize(("dtype", "width"), [("float32", 1), ("float64", 3)])
@pytest.mark.parametrize("update", GRADIENTS)
def test_updates_have_the_bits_that_they_have_in_python(
    comm: MPI.Intracomm, update: str, dtype: str, width: int, dense: bool
) -> None:
    """Values and state, for ranges, cached and listed keys; the settings are changed on the way."""
    owned, rng = KeyRange(0, 30_000), np.random.default_rng(3)
    spec = VectorSpec("w", dtype, width, owned.end, update, GRADIENTS[update], dense=dense)
    alone, twin = Sparse(comm, spec, owned, 40_000), Segment(spec, [owned], expect=40_000)
    alone.table.provide(1 << 21)
    for number, n in enumerate((1, 50, 4000, 20_000, 7, 20_000)):
        keys = np.sort(rng.choice(owned.end, n, replace=False)).astype(np.uint64)
        rows = rng.normal(size=(n, width)).astype(dtype)
        named: Any = owned
        fields: dict[str, Any] = {"keys": keys}
        if dense and number % 3 == 1:
            named, fields = KeyRange(100, 100 + n), {}
            keys = np.arange(100, 100 + n, dtype=np.uint64)
        elif number % 3 == 2:
            named, fields = sign(keys), {}
            known = Known(alone.segment.resolve(keys, create=True))
            alone.lists.keep(SHARD, NAMESPACE, named, known)
        if number == 4:
            for segment in (alone.segment, twin):
                segment.settings["l2" if update != "adam" else "alpha"] = 0.7
            alone.expose()
        assert alone.serve(alone.request(Command.PUSH, named, rows.copy(), **fields)) is None
        assert alone.answer().values is None
        twin.push(keys, rows.copy())
    mine, other = alone.segment.export_state(), twin.export_state()
    assert mine.keys.tolist() == other.keys.tolist()
    assert mine.values.tobytes() == other.values.tobytes() and mine.values.any()
    assert set(mine.state) == set(other.state)
    for name, column in mine.state.items():
        assert column.tobytes() == other.state[name].tobytes()


def test_update_of_the_users_is_called_for_rows_of_its_own_and_no_others(comm: MPI.Intracomm) -> None:
    spec = VectorSpec("w", "int64", update="test_numpy_update")
    alone = Sparse(comm, spec, KeyRange(0, 2**64), 100)
    alone.table.provide(1 << 12)
    keys, rows = np.arange(5, dtype=np.uint64), np.full((5, 3), 2.0)
    assert alone.serve(alone.request(Command.PUSH, KeyRange(0, 2**64), rows, keys=keys)) is None
    assert alone.answer().values is None
    for other in (rows.astype(np.float32), rows[:4], np.ones((5, 1), np.int64)):
        assert alone.serve(alone.request(Command.PUSH, KeyRange(0, 2**64), other, keys=keys)) is not None
    assert alone.serve(alone.request(Command.PULL, KeyRange(0, 2**64), keys=keys)) is None
    assert alone.answer().values.tolist() == [[-6]] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize("command", [Command.PUSH, Command.PULL])
def test_list_is_cached_when_its_keys_come_with_its_signature_if_all_have_rows(
    comm: MPI.Intracomm, command: Command
) -> None:
    alone = Sparse(comm, VectorSpec("w", "int64"), KeyRange(0, 2**64), 100)
    alone.table.provide(1 << 12)
    keys = np.array([3, 5, 1000], np.uint64)
    rows = np.ones((3, 1), np.int64) if command is Command.PUSH else None
    if command is Command.PULL:
        assert alone.serve(alone.request(command, sign(keys), keys=keys)) is not None, "Python keeps the keys"
        alone.segment.resolve(keys, create=True)
        alone.expose()
    assert alone.serve(alone.request(command, sign(keys), rows, keys=keys)) is None
    alone.answer()
    for _ in range(2):
        assert alone.serve(alone.request(command, sign(keys), rows)) is None
        alone.answer()
    known = alone.lists.find(SHARD, NAMESPACE, sign(keys))
    assert known is not None and known.keys is None
    assert one_by_one(known.slots).tolist() == [0, 1, 2]


@update("test_numpy_update", push_row=lambda spec: Column("float64", 3), defaults={})
def numpy_update(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    values[slots, 0] -= rows.sum(axis=1).astype(values.dtype)
