"""Rounds on the compiled fast path: the bits of Python, each applied once, whoever dies between two messages."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_van import KernelVan
from server_losses import between_messages, where_messages_overtake
from simulated import simulate

from mpips.cluster.node import Node
from mpips.errors import RemoteError
from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.rank import simulation
from mpips.replay.history import read_history
from mpips.scheduler.scheduler import Cluster
from mpips.server.executor import Executor
from mpips.server.server import Server
from mpips.server.update_call import UpdateCall
from mpips.storage.aggregate import Aggregator
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update
from mpips.tasks.task import Task
from mpips.transport import in_memory
from mpips.transport.network_faults import Fault, random_arrivals
from mpips.worker.key_list import KeyList
from mpips.worker.worker import Context

KEYS = 24_000
"""Keys of each vector."""


@update(
    "counted",
    columns=lambda spec: {"pushes": Column("int64")},
    push_row=lambda spec: Column("float32", 0),
    reply_row=lambda spec: Column("int32", 0),
    defaults={"rows": 0, "fails": 0.0},
)
def counted(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    """Take rows of any width, answer with rows of one more, and overwrite the argument."""
    settings["rows"] += len(rows)
    state["pushes"][slots] += 1
    values[slots, 0] += rows[:, 0] * rows[:, 1]
    answer = np.hstack([state["pushes"][slots], 100 * rows]).astype(np.int32)
    rows[:] = -1.0
    if settings["fails"] and settings["rows"] % 3 == 0:
        raise ValueError(f"after {settings['rows']} rows")
    return answer


@update("capped", defaults={})
def capped(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add, to a limit, and overwrite the argument."""
    values[slots] = np.minimum(values[slots] + rows, 12)
    rows[:] = 0


@update("halved", columns=lambda spec: {"largest": Column("float32", 2)}, defaults={"factor": 0.5})
@kernel("void(f4[:,::1], f4[:,::1], i4[::1], f4[:,::1], f8[::1])")
def halved(values: Any, largest: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add the half, remember the largest, and overwrite the argument."""
    for i in range(len(slots)):
        for j in range(values.shape[1]):
            largest[slots[i], j] = max(largest[slots[i], j], rows[i, j])
            values[slots[i], j] += settings[0] * rows[i, j]
            rows[i, j] = 7


SPECS = (
    VectorSpec("dense", "float32", extent=KEYS, dense=True, aggregate=True),
    VectorSpec("sparse", "float64", 2, update="adagrad", aggregate=True),
    VectorSpec("whole", "int64", aggregate=True),
    VectorSpec("wide", "float32", 3, extent=KEYS, dense=True, update="ftrl", aggregate=True),
    VectorSpec("last", "int32", extent=KEYS, dense=True, update="assign", aggregate=True),
    VectorSpec("counted", "float64", update="counted", aggregate=True),
    VectorSpec("ranges", extent=KEYS, dense=True, update="counted", aggregate=True),
    VectorSpec("halved", "float32", 2, update="halved", aggregate=True),
    VectorSpec("halves", "float32", 2, extent=KEYS, dense=True, update="halved", aggregate=True),
    VectorSpec("capped", "float32", 2, extent=KEYS, dense=True, update="capped", aggregate=True),
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the servers of twins run kernels."""
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    monkeypatch.setattr(KernelVan, "handled", 0)


class Worker:
    """Takes part in rounds of all manners, and knows to the bit what must be there."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.ranks = self.node.view.workers
        self.me = self.ranks.index(self.node.rank)
        self.segments = [Segment(spec) for spec in SPECS]
        self.sums = [Aggregator(each, range(len(self.ranks))) for each in self.segments]
        self.rounds = [0] * len(SPECS)
        rng = np.random.default_rng(7)
        self.keys = [
            np.arange(KEYS, dtype=np.uint64)
            if spec.dense
            else np.unique(rng.integers(0, 2**64 - 1, KEYS, np.uint64))
            for spec in SPECS
        ]
        self.lists: dict[tuple[int, bytes], KeyList] = {}
        self.drawn: list[list[list[Any]]] = [[] for _ in SPECS]

    def go(self, seed: int, count: int) -> dict[str, Any]:
        # All workers draw the same numbers.
        rng = random.Random(f"rounds/{seed}")
        for _ in range(count):
            chosen = rng.sample(range(len(SPECS)), rng.choice((1, 1, 2, len(SPECS))))
            done = [self.round(rng, at) for at in chosen]
            for task, rows in done:
                answer = self.node.wait(task)
                if rows is not None:
                    assert np.array_equal(answer.reshape(rows.shape), rows), task.what
        for at, (spec, segment, keys) in enumerate(zip(SPECS, self.segments, self.keys, strict=True)):
            rows = self.node.wait(self.context.vectors[spec.name].pull(keys))
            assert np.array_equal(rows.reshape(len(keys), spec.width), segment.pull(keys)), (spec.name, at)
        return {"bits": [segment.values[: len(segment)].tobytes().hex()[:64] for segment in self.segments]}

    def draw(self, rng: random.Random, at: int) -> list[Any]:
        """Draw the keys of each worker."""
        keys, workers = self.keys[at], len(self.ranks)
        if self.drawn[at] and rng.random() < 0.5:
            return rng.choice(self.drawn[at])
        count = rng.choice((1, 5, 300, 9000))
        kind = rng.choice(
            ("range", "range", "same", "own", "some") if SPECS[at].dense else ("same", "own", "some")
        )
        if kind == "range":
            first = rng.randrange(KEYS - count)
            return [KeyRange(first, first + count)] * workers
        places = [np.sort(np.array(rng.sample(range(len(keys)), count))) for _ in range(workers)]
        if kind == "same":
            places = [places[0]] * workers
        if kind == "some":
            places[rng.randrange(workers)] = np.empty(0, np.int64)
        drawn = [keys[each] for each in places]
        self.drawn[at].append(drawn)
        return drawn

    def round(self, rng: random.Random, at: int) -> tuple[Task, Any]:
        """Push this worker's part of a round; return the task, and what it must be answered."""
        spec, segment, number = SPECS[at], self.segments[at], self.rounds[at]
        self.rounds[at] += 1
        drawn, listed = self.draw(rng, at), rng.random() < 0.5
        pulls = [rng.random() < 0.8 for _ in self.ranks]
        waits = [rng.random() < 0.04 for _ in self.ranks]
        parts, row, answered = [], segment.push_row, None
        width = row.width or rng.choice((2, 3))
        for each in drawn:
            rows = np.random.default_rng(rng.randrange(2**32)).normal(
                0, 9, (each.span if isinstance(each, KeyRange) else len(each), width)
            )
            parts.append(rows.astype(row.dtype))
        summed = None
        for worker, (keys, rows) in enumerate(zip(drawn, parts, strict=True)):
            slots = segment.resolve(
                self.keys[at][keys.begin : keys.end] if isinstance(keys, KeyRange) else keys, True
            )
            summed = self.sums[at].add(number, worker, slots, rows.copy())
        assert summed is not None
        if len(summed.rows):
            answered = segment.push_slots(summed.slots, summed.rows, spec.update == "counted")
        keys, rows = drawn[self.me], parts[self.me]
        vector = self.context.vectors[spec.name]
        answer = segment.pull(self.keys[at][keys.begin : keys.end] if isinstance(keys, KeyRange) else keys)
        if answered is not None:
            answer = answered[summed.places[self.me]]
        if not isinstance(keys, KeyRange) and listed:
            name = at, keys.tobytes()
            if name not in self.lists:
                self.lists[name] = vector.key_list(keys)
            keys = self.lists[name]
        # A part that depends on another request takes Python's way.
        after = [vector.pull(self.keys[at][:3])] if waits[self.me] else []
        if pulls[self.me]:
            return vector.push_pull(keys, rows, round=number, after=after), answer
        return vector.push(keys, rows, round=number, after=after), None


def run(seed: int, count: int = 12, **how: Any) -> tuple[int, list[str]]:
    """Run some rounds of all workers; return how many messages were posted, and the beginnings of the values."""
    observed: dict[str, Any] = {}
    bits: list[str] = []

    def schedule(cluster: Cluster) -> None:
        for spec in SPECS:
            cluster.create_vector(spec)
        for part in range(2):
            bits[:] = cluster.workers.call("go", {"seed": 10 * seed + part, "count": count})[0]["bits"]

    simulate(schedule, Worker, observed=observed, seed=seed, patience=0.12, detection=0.01, tick=0.004, **how)
    return int(observed["network"].posted), bits


@pytest.mark.parametrize("servers, replicas", [(1, 0), (2, 0), (2, 1), (3, 2)])
def test_kernels_handle_most_rounds_with_the_bits_of_python(
    servers: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Server] = []
    completed: list[int] = []
    complete = Executor._complete

    class Known(Server):
        def __init__(self, node: Node, *more: Any, **named: Any) -> None:
            super().__init__(node, *more, **named)
            made.append(self)

    def counted(self: Executor, *round_: Any) -> Any:
        completed.append(1)
        return complete(self, *round_)

    monkeypatch.setattr(simulation, "Server", Known)
    monkeypatch.setattr(Executor, "_complete", counted)
    how = {"servers": servers, "workers": 1 + servers, "replicas": replicas}
    _, python = run(1, 20, **how)
    clocks, alone = clocks_of(made), len(completed)
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    made.clear()
    completed.clear()
    _, bits = run(1, 20, **how)
    assert bits == python and clocks_of(made) == clocks
    assert len(completed) < 0.8 * alone, (len(completed), alone)


def clocks_of(servers: list[Server]) -> dict[tuple[int, int, int], list[list[Any]]]:
    """Return the vectors' clocks of each server's shards."""
    found = {}
    for server in servers:
        for link in server.chains:
            assert link.shard is not None
            server.fast_path.record(link.shard)
            for namespace, hosted in link.shard.vectors.items():
                arrays = [each.tolist() for each in hosted.clock.to_arrays()]
                found[server.node.rank, link.number, namespace] = arrays
    return found


def test_a_recorded_run_is_replayed_to_the_same_bits(tmp_path: Path, compiled: None) -> None:
    how = {"servers": 2, "workers": 2}
    _, first = run(1, record=tmp_path / "record", replicas=1, **how)
    assert KernelVan.handled
    read_history(tmp_path / "record").save(tmp_path / "replay")
    _, again = run(1, replay=tmp_path / "replay", **how)
    assert again == first


@pytest.mark.parametrize("seed", range(2))
def test_parts_that_arrive_late_are_summed_by_python(
    seed: int, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelVan, "late", 0.2)
    monkeypatch.setattr(KernelVan, "given_up", 0)
    run(seed, servers=2, workers=2, replicas=1)
    assert KernelVan.given_up
    run(seed, servers=2, workers=2, replicas=1, faults=[Fault("kill", 1 + seed, after_messages=300)])


@pytest.mark.drawn(2)
@pytest.mark.parametrize("act", ["kill", "stop", pytest.param("pause", marks=pytest.mark.long)])
@pytest.mark.parametrize("part, replicas", [(0, 1), (1, 1), (0, 2), (1, 2)])
def test_a_server_is_lost_between_any_two_messages(
    part: int, replicas: int, act: str, compiled: None
) -> None:
    most, _ = run(part, servers=1 + replicas, workers=2, replicas=replicas)
    rng = random.Random(f"{part}/{act}")
    for how in between_messages(act, rng, 1 + replicas, most, replicas):
        run(part, workers=2, **how)


@pytest.mark.parametrize("seed", range(2))
def test_a_server_is_lost_with_its_messages_where_they_overtake_each_other(seed: int, compiled: None) -> None:
    for how in where_messages_overtake(seed, 2):
        run(seed, workers=3, **how)


class Pusher:
    """Pushes its part of a round."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self, number: int) -> None:
        self.context.vectors["v"].push(KeyRange(0, 10), np.ones(10), round=number)


def test_a_server_names_the_missing_workers_of_a_round_on_the_fast_path(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: dict[int, Server] = {}
    seen: list[Any] = []

    class Known(Server):
        def __init__(self, node: Node, *more: Any, **named: Any) -> None:
            super().__init__(node, *more, **named)
            servers[node.rank] = self

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", extent=10, dense=True, aggregate=True))
        for number in range(3):
            cluster.workers.call("push", {"number": number})
        task = cluster.workers.start("push", {"number": 3}, only=[0])
        until = cluster.node.van.now() + 1.0
        cluster.node.wait_until(lambda: cluster.node.van.now() >= until)
        seen.append(list(servers[1].fast_path.table.rounds.waiting(0)))
        seen.append(servers[1].unfinished_rounds())
        cluster.workers.call("push", {"number": 3}, only=[1])
        cluster.node.wait(task)
        seen.append(servers[1].unfinished_rounds())

    monkeypatch.setattr(simulation, "Server", Known)
    simulate(schedule, Pusher, workers=2)
    assert seen == [
        [(1, (3, 0), [2])],
        {(0, 1, (3, 0)): "round 3 of vector v: no push from rank 3 (worker 1)"},
        {},
    ]


class Counter:
    """Takes part in rounds, one after the other."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self) -> None:
        vector, keys = self.context.vectors["v"], np.arange(0, 1000, 100, dtype=np.uint64)
        listed = vector.key_list(keys)
        for number in range(8):
            answer = self.context.node.wait(vector.push_pull(listed, np.ones(10), round=number))
            assert (answer == 2 * (number + 1)).all(), answer


@pytest.mark.parametrize("rank", [1, 2])
def test_a_part_is_answered_with_the_rows_of_its_round_whichever_rank_dies(rank: int, compiled: None) -> None:
    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", extent=1000, aggregate=True))
        cluster.workers.call("go", {})

    for after in range(40, 140, 2):
        faults, arrives = [Fault("kill", rank, after_messages=after)], random_arrivals(after, after % 2)
        how = {"faults": faults, "arrives": arrives, "patience": 0.12, "detection": 0.01}
        simulate(schedule, Counter, servers=2, workers=2, replicas=1, seed=after, tick=0.004, **how)
    assert KernelVan.handled > 1000


class Stubborn:
    """Pushes rows for which the update sometimes raises, one request after the other."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self, rounds: bool) -> dict[str, Any]:
        vector, found = self.context.vectors["v"], []
        for number in range(14):
            keys = np.arange(self.context.index, 2 + number % 4, dtype=np.uint64)
            rows = np.full((len(keys), 2), 1.0 + number, np.float32)
            about = {"round": number} if rounds else {}
            push = vector.push_pull if number % 3 and rounds else vector.push
            try:
                answer = self.context.node.wait(push(keys, rows, **about))
                found.append(None if answer is None else answer.tolist())
            except RemoteError as error:
                found.append(str(error).splitlines()[0].rpartition("ValueError")[2])
        values = self.context.node.wait(vector.pull(np.arange(6, dtype=np.uint64)))
        return {"found": [*found, values.tolist()]}


def stubborn(rounds: bool, **how: Any) -> list[Any]:
    """Return what each worker was answered."""
    found: list[Any] = []

    def schedule(cluster: Cluster) -> None:
        settings = {"fails": 1.0}
        # All keys are in one shard.
        spec = VectorSpec("v", extent=1000, update="counted", aggregate=rounds, settings=settings)
        cluster.create_vector(spec)
        found.append(cluster.workers.call("go", {"rounds": rounds}))

    fast = {"patience": 0.12, "detection": 0.01, "tick": 0.004}
    simulate(schedule, Stubborn, workers=1 + rounds, **fast, **how)
    return found


@pytest.mark.parametrize("rounds", [False, True])
def test_update_that_raises_is_called_once_and_its_error_answers_whichever_server_dies(
    rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []
    take_error = UpdateCall.take_error

    def counted(self: UpdateCall) -> BaseException | None:
        error = take_error(self)
        raised.extend([] if error is None else [error])
        return error

    monkeypatch.setattr(UpdateCall, "take_error", counted)
    expected = stubborn(rounds)
    assert ": after 30 rows" in str(expected) and not raised
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    assert stubborn(rounds) == expected
    for after in range(30, 150, 10):
        fault = Fault("kill", 1 + after // 10 % 2, after_messages=after)
        arrives = random_arrivals(after, after % 20 / 10)
        assert stubborn(rounds, servers=2, replicas=1, faults=[fault], arrives=arrives) == expected
    assert len(raised) > 10
