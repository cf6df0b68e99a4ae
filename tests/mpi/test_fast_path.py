"""A server whose fast path answers requests of several client fast paths: sums compared with numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpips.cluster.layout import Layout, Place, Role
from mpips.cluster.node import Node
from mpips.cluster.view import View, first_view
from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.server.server import KEY_CACHE, Server
from mpips.storage.updates import Column, VectorSpec, update
from mpips.tasks.task import Task
from mpips.transport.fastpath import table as table_module
from mpips.transport.fastpath.client import OPEN
from mpips.transport.message import Message
from mpips.transport.mpi import van as van_module
from mpips.transport.mpi.process_memory import discover
from mpips.transport.mpi.van import MPIVan
from mpips.worker import request as request_module
from mpips.worker.vector import Vector

MOST = 3
"""Ranks that take part: the servers are those from rank 1 on, usually one, and the others ask."""
BLOCK = 200_000
"""Keys that each caller has for itself."""
DTYPES = ("float32", "float64", "int32", "int64")


class Callers:
    """The callers, as each of them sees them."""

    def __init__(self, node: Node, specs: Sequence[VectorSpec], comm: MPI.Intracomm, servers: int) -> None:
        self.node, self._comm = node, comm
        self.vectors = [Vector(node, spec, number) for number, spec in enumerate(specs)]
        self.index = 0 if node.rank == 0 else node.rank - servers
        self.count = comm.Get_size() - servers

    def begin(self, number: int) -> int:
        """Return where this caller's block of a vector's keys begins."""
        return self.index * (self.vectors[number].spec.extent // self.count)


class Taken:
    """The requests that the server's Python was given: shard, caller and time."""

    def __init__(self, server: Server) -> None:
        self.requests: set[tuple[int, int, int]] = set()
        self._pass_on = server.node.shards
        server.node.shards = self

    def __call__(self, message: Message) -> None:
        self.requests.add((message.shard, message.origin, message.time))
        self._pass_on(message)


def roles(size: int, servers: int) -> Layout:
    kinds = [Role.SCHEDULER, *[Role.SERVER] * servers, *[Role.WORKER] * (size - 1 - servers)]
    indices = [0, *range(servers), *range(size - 1 - servers)]
    places = [Place(rank, *pair, "") for rank, pair in enumerate(zip(kinds, indices, strict=True))]
    return Layout(tuple(places))


@contextmanager
def some_ranks(most: int) -> Iterator[MPI.Intracomm | None]:
    """Return a communicator of those who take part; None to the others."""
    world = MPI.COMM_WORLD
    inside = world.Get_rank() < most
    comm = world.Split(0 if inside else MPI.UNDEFINED, world.Get_rank())
    try:
        yield comm if inside else None
    finally:
        if inside:
            comm.Free()


def together(
    specs: Sequence[VectorSpec],
    ask: Callable[[Callers], int],
    check: Callable[[Server, Taken, int], None] = lambda server, taken, asked: None,
    *,
    shards: int = 1,
    most: float = KEY_CACHE,
    servers: int = 1,
    replicas: int = 0,
    prepare: Callable[[Server], None] = lambda server: None,
    turn: Callable[[View], View] | None = None,
) -> None:
    """Let callers `ask` (and say how many requests that were), and `check` the server when they have ended.

    With `turn` all go over to another view when everything that was asked is answered, though nobody has looked.
    """
    with some_ranks(MOST + servers - 1) as comm:
        if comm is None:
            return
        beside = comm.Dup()
        layout = roles(comm.Get_size(), servers)
        view = first_view(layout, shards, replicas)
        van = MPIVan(comm, process_memory=discover(beside))
        node = Node(van, layout, view)
        assert view.ring.shards == shards or servers > 1
        if 1 <= node.rank <= servers:
            server = Server(node, key_cache=most)
            for link in server.chains:
                assert link.shard is not None
                for number, spec in enumerate(specs):
                    link.shard.create(number, spec)
                server.fast_path.open(link)
            prepare(server)
            taken = Taken(server)
            beside.Barrier()
            server.run(beside.Ibarrier().Test)
            if turn is not None:
                node.adopt(turn(view))
                server.run(beside.Ibarrier().Test)
            asked = beside.allreduce(0)
            for link in server.chains:
                assert link.shard is not None
                server.fast_path.catch_up(link)
            check(server, taken, asked)
        else:
            beside.Barrier()
            callers = Callers(node, specs, beside, servers)
            asked = ask(callers)
            if turn is not None:
                beside.Ibarrier().Wait()
                node.adopt(turn(view))
                callers.node.wait_until(lambda: not node.tasks.unfinished)
            beside.Ibarrier().Wait()
            beside.allreduce(asked)
        node.van.close()
        beside.Free()


# --- random requests, compared with numpy ---------------------------------------------------------------


class Asking:
    """Pushes and pulls parts of a caller's own block in all ways, and computes the expected values."""

    def __init__(self, callers: Callers, number: int, seed: int) -> None:
        self.vector, self.node = callers.vectors[number], callers.node
        spec = self.vector.spec
        self.begin, self.span = callers.begin(number), spec.extent // callers.count
        self.model = np.zeros((self.span, spec.width), spec.dtype)
        self.rng = np.random.default_rng([seed, callers.index, number])
        self.lists: list[tuple[Any, Any]] = []
        self.asked = 0

    def places(self, first: int, size: int) -> Any:
        """Draw keys, relative to the block, of one of `size` places from `first` on; and how they are named."""
        spec, rng = self.vector.spec, self.rng
        how = int(rng.integers(0, 4 if spec.dense else 3))
        if how == 3:
            return np.arange(first, first + size), KeyRange(self.begin + first, self.begin + first + size)
        step = 1 if how == 0 else int(rng.integers(1, 9))
        places = np.arange(first, first + size, step)
        keys = (places + self.begin).astype(np.uint64)
        return places, self.vector.key_list(keys) if how < 2 else keys

    def size(self, most: int) -> int:
        return int(
            min(most, self.rng.choice([1, 2, 50, 3_000, 20_000, most], p=[0.3, 0.2, 0.3, 0.1, 0.08, 0.02]))
        )

    def rows(self, n: int) -> Any:
        spec = self.vector.spec
        rows = self.rng.integers(-9, 10, (n, spec.width)).astype(spec.dtype)
        shape = int(self.rng.integers(0, 3))
        if shape == 0 and spec.width == 1:
            return rows, rows[:, 0].copy()
        if shape == 1:  # not in one piece
            wide = np.zeros((n, 2 * spec.width), spec.dtype)
            wide[:, ::2] = rows
            return rows, wide[:, ::2]
        return rows, rows

    def draw(self, cut: Any) -> tuple[Any, Any]:
        """Draw which places of a piece a request is about, and how it names them: perhaps as before."""
        if self.lists and self.rng.random() < 0.5 and cut is None:
            return self.lists[int(self.rng.integers(0, len(self.lists)))]
        first, most = cut if cut is not None else (int(self.rng.integers(0, self.span)), self.span)
        drawn = self.places(first, self.size(min(most, self.span - first)))
        self.lists = [*self.lists[-7:], drawn]
        return drawn

    def push(self, count: int) -> list[Task]:
        """Push so many times at once; what is assigned, to keys of its own each time."""
        assigns = self.vector.spec.update == "assign"
        cuts = np.sort(self.rng.choice(self.span, count + 1, replace=False))
        tasks: list[Task] = []
        for number in range(count):
            cut = (int(cuts[number]), int(cuts[number + 1] - cuts[number])) if assigns else None
            places, named = self.draw(cut)
            rows, given = self.rows(len(places))
            if assigns:
                self.model[places] = rows
            else:
                self.model[places] += rows
            tasks.append(self.vector.push(named, given))
            self.asked += tasks[-1].expected
        return tasks

    def pull(self, count: int) -> None:
        spec = self.vector.spec
        pulled = []
        for _ in range(count):
            places, named = self.draw(None)
            out = None
            if self.rng.random() < 0.5:
                out = np.full((len(places), 2 * spec.width), 7, spec.dtype)
                out = out[:, ::2] if self.rng.random() < 0.3 else out[:, : spec.width].copy()
            pulled.append((places, out, self.vector.pull(named, out=out)))
            self.asked += pulled[-1][2].expected
        for places, out, task in pulled:
            result = self.node.wait(task)
            assert out is None or result is out
            assert result.dtype == spec.dtype
            assert np.array_equal(result.reshape(len(places), spec.width), self.model[places])


def ask_anything(seed: int, rounds: int) -> Callable[[Callers], int]:
    def ask(callers: Callers) -> int:
        asking = [Asking(callers, number, seed) for number in range(len(callers.vectors))]
        rng = np.random.default_rng([seed, callers.index])
        for _ in range(rounds):
            pushed = [each.push(int(rng.choice([1, 5, 100]))) for each in asking]
            for each, tasks in zip(asking, pushed, strict=True):
                callers.node.wait_all(tasks)
                each.pull(int(rng.choice([1, 5, 100])))
        return sum(each.asked for each in asking)

    return ask


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "sparse"])
@pytest.mark.parametrize(("shards", "most"), [(1, KEY_CACHE), (3, KEY_CACHE), (1, 4000)])
def test_random_requests_in_any_order_are_applied_once(dense: bool, shards: int, most: float) -> None:
    extent = BLOCK * (min(MPI.COMM_WORLD.Get_size(), MOST) - 1)
    specs = [
        VectorSpec(f"{dtype}-{width}-{update}", dtype, width, extent, update, dense=dense)
        for dtype, width, update in [
            ("float32", 1, "add"), ("float64", 3, "add"), ("int32", 3, "assign"), ("int64", 1, "add"),
        ]
    ]  # fmt: skip

    def check(server: Server, taken: Taken, asked: int) -> None:
        by_fast_path = asked - len(taken.requests)
        assert by_fast_path > (asked / 4 if dense else asked / 20 if most == KEY_CACHE else 0)
        if most < KEY_CACHE:
            assert server.lists.misses > 0
        else:
            # One may be named again while its many keys are still arriving, or wait for another request: more of them
            # on a busy machine (57 of 1,070).
            assert server.lists.misses <= asked / 8

    together(specs, ask_anything(shards + dense, 2), check, shards=shards, most=most)


@pytest.mark.mpi(min_size=5)
def test_shards_with_copies_are_served_on_the_fast_path() -> None:
    """Pushes go to all copies, and pulls see them, whichever path they take."""
    extent = BLOCK * (MPI.COMM_WORLD.Get_size() - 2)
    specs = [
        VectorSpec("added", "float32", 1, extent),
        VectorSpec("assigned", "int64", 3, extent, "assign"),
    ]
    served = []

    def prepare(server: Server) -> None:
        server.fast_path.table.served = served.append

    def check(server: Server, taken: Taken, asked: int) -> None:
        assert all(link.next >= 0 and link.replicated for link in server.chains.primary_links())
        # How many depends on how often lists are new, or have waited for others.
        assert served

    together(specs, ask_anything(11, 2), check, shards=3, servers=2, replicas=1, prepare=prepare)


@update("added_and_counted", columns=lambda spec: {"pushes": Column("int64")})
@kernel("void(i8[:,::1], i8[:,::1], i4[::1], i8[:,::1], f8[::1])")
def added_and_counted(values: Any, pushes: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add rows, and count them."""
    for i in range(len(slots)):
        values[slots[i], 0] += rows[i, 0]
        pushes[slots[i], 0] += 1


@pytest.mark.mpi(min_size=5)
@pytest.mark.parametrize("size, servers", [(1, 2), (1000, 2), (60_000, 2), (1000, 3)])
def test_pushes_to_shards_with_copies_are_applied_and_copied_without_python(size: int, servers: int) -> None:
    """All servers have all shards."""
    extent, rounds = BLOCK * (MPI.COMM_WORLD.Get_size() - 2), 30
    specs = [
        VectorSpec("dense", "float64", 1, extent, dense=True),
        VectorSpec("sparse", "int64", 1, extent),
        VectorSpec("kernel", "int64", 1, extent, update="added_and_counted"),
    ]

    def ask(callers: Callers) -> int:
        node, asked = callers.node, 0
        for number, vector in enumerate(callers.vectors):
            keys = np.arange(size, dtype=np.uint64) * np.uint64(3) + np.uint64(callers.begin(number))
            named = vector.key_list(keys) if number else KeyRange(callers.begin(0), callers.begin(0) + size)
            rows = np.arange(size).astype(vector.spec.dtype)
            for time in range(1, rounds + 1):
                tasks = [vector.push(named, rows), vector.pull(named)]
                pulled = [node.wait(task) for task in tasks][1]
                assert np.isin(pulled, [(time - 1) * rows, time * rows]).all()
                assert np.array_equal(node.wait(vector.pull(named)), time * rows)
                asked += 3 * tasks[0].expected
        return asked

    served: list[int] = []

    def prepare(server: Server) -> None:
        server.fast_path.table.served = served.append

    def check(server: Server, taken: Taken, asked: int) -> None:
        # Of `asked` requests to all servers, a third are pushes, which their copies count too. What follows its frame
        # is received by Python if it takes long.
        most = asked / 5 if size == 1 else asked
        assert len(taken.requests) < most, (len(taken.requests), sum(served), asked)
        shards = [link.shard for link in server.chains if link.shard is not None]
        states = [shard.vectors[2].segment.export_state().state for shard in shards]
        pushes = np.concatenate([state["pushes"].ravel() for state in states])
        assert len(pushes) and (pushes == rounds).all()

    together(specs, ask, check, servers=servers, replicas=servers - 1, prepare=prepare)


# --- particular cases ----------------------------------------------------------------------------

SUMS = VectorSpec("sums", "int64", 1, 1000, dense=True)


def deaf(node: Node, seconds: float) -> None:
    """Let the server execute what it has received, without receiving its answers."""
    until = node.van.now() + seconds
    while node.van.now() < until:
        MPI.COMM_WORLD.Iprobe()


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_requests_repeated_in_another_view_are_applied_once(ahead: int) -> None:
    """The answers are on their way when the workers change, upon which all that is unanswered is sent again."""
    keys, rows = KeyRange(0, 1000), np.ones(1000, np.int64)

    def ask(callers: Callers) -> int:
        node, vector = callers.node, callers.vectors[0]
        for _ in range(ahead):
            node.wait(vector.push(keys, rows))
        for _ in range(10):
            vector.push(keys, rows)
        deaf(node, 0.05)
        assert len(node.tasks.unfinished) == 10
        return ahead + 10

    def check(server: Server, taken: Taken, asked: int) -> None:
        (shard,) = server.shards
        assert set(shard.vectors[0].segment.values.ravel().tolist()) == {asked}
        assert shard.changes == asked

    def turn(view: View) -> View:
        return replace(view, epoch=1, workers_since=1)

    together([SUMS], ask, check, turn=turn)


@pytest.mark.mpi(min_size=2)
def test_lists_are_sent_with_keys_again_when_the_vector_has_forgotten_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_module, "MOST_SIGNATURES", 1)

    def ask(callers: Callers) -> int:
        node, vector = callers.node, callers.vectors[0]
        begin = callers.begin(0)
        lists = [vector.key_list(np.arange(begin + at, begin + 300, 7, dtype=np.uint64)) for at in range(5)]
        for time in range(3):
            for each in lists:
                node.wait(vector.push(each, np.ones(len(each), np.int64)))
            for each in lists:
                assert set(node.wait(vector.pull(each)).tolist()) == {time + 1}
        return 0

    together([SUMS], ask)


@pytest.mark.mpi(min_size=2)
def test_messages_larger_than_mpi_sends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It travels in pieces, however it is asked for."""
    monkeypatch.setattr(van_module, "_PIECE", 1 << 16)
    monkeypatch.setattr(table_module, "MOST_BYTES", 1 << 16)
    spec = VectorSpec("wide", "float64", 1, 200_000, dense=True)

    def ask(callers: Callers) -> int:
        node, vector = callers.node, callers.vectors[0]
        for size in (1000, 8_192, 8_193, 50_000):
            keys = KeyRange(callers.begin(0), callers.begin(0) + size)
            rows = np.arange(size, dtype=np.float64)
            before = node.wait(vector.pull(keys, out=np.full(size, -1.0)))
            for _ in range(3):
                node.wait(vector.push(keys, rows))
            assert np.array_equal(node.wait(vector.pull(keys, out=np.full(size, -1.0))), before + 3 * rows)
        return 0

    together([spec], ask)


@pytest.mark.mpi(min_size=2)
def test_large_answers_are_written_where_they_are_wanted() -> None:
    """Without `out` the server writes into memory of the caller's, which stays as it is while somebody holds it."""
    size = 100_000

    def ask(callers: Callers) -> int:
        vector, node = callers.vectors[0], callers.node
        begin = callers.begin(0)
        keys = KeyRange(begin, begin + size)
        van = node.van
        assert isinstance(van, MPIVan)
        held = []
        for time in range(1, 9):
            node.wait(vector.push(keys, np.full(size, time, np.float32)))
            held.append(node.wait(vector.pull(keys)))
        for time, rows in enumerate(held, 1):
            assert rows.shape == (size,)
            assert (rows == time * (time + 1) / 2).all()
        assert van._fast_client.asked[:, OPEN].any() == van.process_memory.has(1)
        narrow = node.wait(vector.pull(KeyRange(begin, begin + 10)))
        assert (narrow == 36).all()
        return 17

    together([VectorSpec("v", "float32", extent=2 * BLOCK, dense=True)], ask)


@pytest.mark.mpi(min_size=2)
def test_without_access_to_memory_answers_are_messages() -> None:
    size = 100_000

    def forget(server: Server) -> None:
        van = server.node.van
        assert isinstance(van, MPIVan)
        van.process_memory.pids[van.process_memory.pids != 0] = 2**22 + 1  # no process has that number

    def ask(callers: Callers) -> int:
        vector, node, begin = callers.vectors[0], callers.node, callers.begin(0)
        keys = KeyRange(begin, begin + size)
        node.wait(vector.push(keys, np.ones(size, np.float64)))
        for _ in range(3):
            assert (node.wait(vector.pull(keys)) == 1).all()
        return 4

    together([VectorSpec("v", "float64", extent=2 * BLOCK, dense=True)], ask, prepare=forget)


@update(
    "added_once_and_twice",
    push_row=lambda spec: Column("float32", 2),
    reply_row=lambda spec: Column("float32", 0),
    defaults={},
)
def added_once_and_twice(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    """Add the first column of float32 rows, and answer with other rows: float32[n, 3]."""
    values[slots] += rows[:, :1]
    return np.hstack([values[slots], 2 * values[slots], rows[:, 1:]]).astype(np.float32)


@pytest.mark.mpi(min_size=5)
@pytest.mark.parametrize("size", [1, 1000, 60_000])
def test_rounds_are_summed_and_copied_without_python(size: int) -> None:
    """All callers but the first are workers; each has keys that only it and its neighbour push."""
    span, rounds = 3 * size, 20
    specs = [
        VectorSpec("dense", "float64", 1, span, dense=True, aggregate=True),
        VectorSpec("sparse", "int64", 1, 2 * MPI.COMM_WORLD.Get_size() * size, aggregate=True),
        VectorSpec(
            "own",
            "float64",
            1,
            2 * MPI.COMM_WORLD.Get_size() * size,
            update="added_once_and_twice",
            aggregate=True,
        ),
    ]

    def ask(callers: Callers) -> int:
        node, asked = callers.node, 0
        if callers.index == 0:
            return 0
        workers = callers.count - 1
        for number, vector in enumerate(callers.vectors):
            first = size * callers.index if number else 0
            keys = np.arange(first, first + 2 * size, dtype=np.uint64)
            named = vector.key_list(keys) if number else KeyRange(0, span)
            rows = np.full(2 * size if number else span, callers.index, vector.spec.dtype)
            own = vector.spec.name == "own"
            total = np.full(len(rows), workers * (workers + 1) // 2)
            if number:
                total[:size] = max(0, callers.index - 1) + callers.index
                total[size:] = callers.index + (callers.index + 1 if callers.index < workers else 0)
            out = None if own else np.empty_like(rows)
            if own:
                rows = np.stack([rows, 3 * rows], axis=1).astype(np.float32)
            for time in range(rounds):
                task = vector.push_pull(named, rows, round=time, out=out)
                expected = (time + 1) * total
                if own:
                    expected = np.stack([expected, 2 * expected, 3 * total], axis=1)
                assert np.array_equal(node.wait(task), expected)
                asked += task.expected
            assert np.array_equal(node.wait(vector.pull(named)), rounds * total)
        return asked

    def check(server: Server, taken: Taken, asked: int) -> None:
        # Copies count the rounds, too. Keys and values are received by Python if they take long.
        most = asked / 3 if size == 1 else asked
        assert len(taken.requests) < most, (len(taken.requests), asked)

    together(specs, ask, check, servers=2, replicas=1)
