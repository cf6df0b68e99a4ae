"""Compiled pushes to shards with copies: each is applied once, whichever rank dies between any two messages."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from kernel_van import KernelVan
from server_losses import between_messages, where_messages_overtake
from simulated import simulate

from mpips.bench.failures import _trial
from mpips.cluster.node import Node
from mpips.jit.kernel import kernel
from mpips.keys import from_pairs
from mpips.ranges import KeyRange
from mpips.rank import simulation
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import Server
from mpips.server.shard import Shard
from mpips.storage.updates import Column, VectorSpec, update
from mpips.tasks.task import Task
from mpips.transport import in_memory
from mpips.transport.in_memory import TwinVan
from mpips.transport.message import NO_SIGNATURE, Command, Kind, Message
from mpips.transport.network_faults import Fault, random_arrivals
from mpips.worker.key_list import KeyList
from mpips.worker.vector import Vector
from mpips.worker.worker import Context

BLOCK = 40_000
"""Keys of each worker."""


@update("multiplied", push_row=lambda spec: Column("float32", 2), defaults={})
def multiplied(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add the product of two numbers, and overwrite the argument."""
    values[slots] += rows[:, :1] * rows[:, 1:]
    rows[:] = 0


@update(
    "tripled",
    columns=lambda spec: {"pushes": Column("int32")},
    push_row=lambda spec: Column("float32", 2),
    defaults={"factor": 3},
)
@kernel("void(f8[:,::1], i4[:,::1], i4[::1], f4[:,::1], f8[::1])")
def tripled(values: Any, pushes: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add three times the product of two numbers, count, and overwrite the argument."""
    for i in range(len(slots)):
        values[slots[i], 0] += settings[0] * rows[i, 0] * rows[i, 1]
        pushes[slots[i], 0] += 1
        rows[i, 0] = rows[i, 1] = 0


SPECS = (
    VectorSpec("dense", "float64", extent=4 * BLOCK, dense=True),
    VectorSpec("sparse", "int64", extent=4 * BLOCK),
    VectorSpec("wide", "int32", 3, extent=4 * BLOCK, update="assign"),
    VectorSpec("products", "float64", extent=4 * BLOCK, update="multiplied"),
    VectorSpec("kernel", "float64", extent=4 * BLOCK, update="tripled"),
    VectorSpec("all", "float64", extent=4 * BLOCK, dense=True, update="tripled"),
    VectorSpec("pairs", "float32", key_bits=128),
)


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the servers of twins run kernels."""
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    monkeypatch.setattr(KernelVan, "handled", 0)


class Worker:
    """Pushes to keys of its own and pulls them, in all ways, and computes the expected values."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.begin = BLOCK * self.node.view.workers.index(self.node.rank)
        self.models = [np.full((BLOCK, spec.width), spec.init, spec.dtype) for spec in SPECS]
        self.lists: list[list[tuple[Any, KeyList]]] = [[] for _ in SPECS]

    def go(self, seed: int, count: int) -> dict[str, Any]:
        rng = random.Random(f"{seed}/{self.node.rank}")
        for _ in range(count):
            tasks = [self.push(rng) for _ in range(rng.choice((1, 1, 3, 8)))]
            pulls = [self.pull(rng) for _ in range(rng.randrange(2))] if rng.random() < 0.3 else []
            self.node.wait_all(tasks + pulls)
            self.check(rng)
        for at in range(len(SPECS)):
            self.compare(
                at, slice(0, BLOCK), self.node.wait(self.vector(at).pull(self.keys(at, np.arange(BLOCK))))
            )
        return {}

    def vector(self, at: int) -> Vector:
        return self.context.vectors[SPECS[at].name]

    def keys(self, at: int, places: Any) -> Any:
        """The keys at places in the model; those of 128 bits have upper halves far apart, for all servers."""
        keys = (places + self.begin).astype(np.uint64)
        if SPECS[at].key_bits == 64:
            return keys
        return from_pairs(np.stack([keys << np.uint64(46), keys], axis=1))

    def draw(self, rng: random.Random, at: int) -> tuple[Any, Any]:
        """Draw keys, as places in the model and as an argument of a push or pull."""
        if self.lists[at] and rng.random() < 0.5:
            return rng.choice(self.lists[at])
        count = rng.choice((1, 5, 300, 9000))
        if SPECS[at].dense and rng.random() < 0.5:
            first = rng.randrange(BLOCK - count)
            return slice(first, first + count), KeyRange(self.begin + first, self.begin + first + count)
        places = np.sort(np.array(rng.sample(range(BLOCK), count)))
        keys = self.keys(at, places)
        if rng.random() < 0.5:
            return places, keys
        listed = self.vector(at).key_list(keys)
        self.lists[at].append((places, listed))
        return places, listed

    def push(self, rng: random.Random) -> Task:
        at = rng.randrange(len(SPECS))
        places, keys = self.draw(rng, at)
        return self.vector(at).push(keys, self.rows(at, places, rng.randint(1, 9)))

    def rows(self, at: int, places: Any, number: int) -> Any:
        """Return rows to push, after they were added to the model."""
        model, update = self.models[at], SPECS[at].update
        rows = np.full(model[places].shape, number, model.dtype)
        if update == "assign":
            # Two assignments in any order are the same.
            rows[:] = np.arange(BLOCK, dtype=model.dtype)[places][:, None]
            model[places] = rows
        elif update in ("multiplied", "tripled"):
            model[places] += 3 * rows
            rows = np.hstack([rows, np.full_like(rows, 3 if update == "multiplied" else 1)]).astype(
                np.float32
            )
        else:
            model[places] += rows
        return rows

    def pull(self, rng: random.Random) -> Task:
        at = rng.randrange(len(SPECS))
        return self.vector(at).pull(self.draw(rng, at)[1])

    def check(self, rng: random.Random) -> None:
        at = rng.randrange(len(SPECS))
        places, keys = self.draw(rng, at)
        if rng.random() < 0.1:
            # Repeated, it must be answered with the same rows.
            rows = self.rows(at, places, 1)
            self.compare(at, places, self.node.wait(self.vector(at).push_pull(keys, rows)))
            return
        self.compare(at, places, self.node.wait(self.vector(at).pull(keys)))

    def compare(self, at: int, places: Any, rows: Any) -> None:
        model = self.models[at][places]
        assert np.array_equal(rows.reshape(model.shape), model), SPECS[at].name


def run(seed: int, **how: Any) -> int:
    """Run some pushes and pulls of two workers; return how many messages were posted."""
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        for spec in SPECS:
            cluster.create_vector(spec)
        for part in range(2):
            cluster.workers.call("go", {"seed": 10 * seed + part, "count": 10})

    simulate(schedule, Worker, observed=observed, seed=seed, patience=0.12, detection=0.01, tick=0.004, **how)
    return int(observed["network"].posted)


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[int, Server]:
    """Return the servers that are made, by rank."""
    found: dict[int, Server] = {}

    class Known(Server):
        def __init__(self, node: Node, *more: Any, **named: Any) -> None:
            super().__init__(node, *more, **named)
            found[node.rank] = self

    monkeypatch.setattr(simulation, "Server", Known)
    return found


def members(servers: dict[int, Server]) -> dict[tuple[int, int], list[list[bytes]]]:
    """Return keys, values and state of each shard and vector, at all its members."""
    found: dict[tuple[int, int], list[list[bytes]]] = {}
    for server in servers.values():
        for link in server.chains:
            assert link.shard is not None
            for namespace, hosted in link.shard.vectors.items():
                rows = hosted.segment.export_state()
                arrays = rows.keys, rows.values, *rows.state.values()
                found.setdefault((link.number, namespace), []).append([each.tobytes() for each in arrays])
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_all_members_have_the_same_rows(
    replicas: int, compiled: bool, servers: dict[int, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(in_memory, "TwinVan", TwinVan)
    run(1, servers=replicas + 1, workers=2, replicas=replicas)
    found = members(servers)
    assert all(len(each) == 1 + replicas for each in found.values())
    differing = {
        SPECS[vector - 1].name for (_, vector), each in found.items() if any(one != each[0] for one in each)
    }
    assert not differing


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_kernels_handle_most_messages(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated: list[int] = []
    repeat = Shard.repeat

    def counted(self: Shard, *change: Any) -> None:
        repeated.append(self.number)
        repeat(self, *change)

    # Python handles pushes of 128-bit keys to shards with copies.
    monkeypatch.setitem(globals(), "SPECS", SPECS[:-1])
    monkeypatch.setattr(Shard, "repeat", counted)
    posted = run(1, servers=replicas + 1, workers=2, replicas=replicas)
    by_python = len(repeated)
    assert KernelVan.handled > posted / 5, (KernelVan.handled, posted)
    repeated.clear()
    monkeypatch.setattr(in_memory, "TwinVan", TwinVan)
    run(1, servers=replicas + 1, workers=2, replicas=replicas)
    assert by_python < 0.75 * len(repeated), (by_python, len(repeated))


def test_lists_of_keys_whose_rows_have_initial_values_get_to_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SPECS", (VectorSpec("v", "float64", extent=4 * BLOCK, init=0.5),))
    run(1, servers=2, workers=2, replicas=1)
    assert KernelVan.handled > 0


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_copy_that_has_dropped_a_list_asks_for_its_keys(replicas: int, servers: dict[int, Server]) -> None:
    asked: list[Message] = []

    def dropping(source: int, dest: int, message: Message) -> tuple[float]:
        """Let a copy drop lists before it receives the name of one."""
        named = message.kind is Kind.CHAIN and message.keys is None and message.signature != NO_SIGNATURE
        if named and message.time % 3 == 0:
            servers[dest].lists.forget(message.shard)
        if message.command is Command.ASK_KEYS:
            asked.append(message)
        return (0.0,)

    how = {"servers": 1 + replicas, "workers": 2, "replicas": replicas}
    run(1, delays=dropping, **how)
    assert len(asked) > 2
    for number in range(4):
        faults = [Fault("kill", 1 + number % (1 + replicas), after_messages=100 + 70 * number)]
        run(number, delays=dropping, faults=faults, **how)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_keys_and_values_that_arrive_late_are_applied_by_python(
    seed: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelVan, "late", 0.4)
    monkeypatch.setattr(KernelVan, "given_up", 0)
    how = {"servers": 1 + replicas, "workers": 2, "replicas": replicas}
    run(seed, **how)
    assert KernelVan.given_up
    run(seed, faults=[Fault("kill", replicas + seed, after_messages=300)], **how)


@pytest.mark.parametrize("act", ["kill", "stop", pytest.param("pause", marks=pytest.mark.long)])
@pytest.mark.parametrize("part, replicas", [(0, 1), (1, 1), (0, 2), (1, 2)])
def test_a_server_is_lost_between_any_two_messages(part: int, replicas: int, act: str) -> None:
    most = run(part, servers=1 + replicas, workers=2, replicas=replicas)
    rng = random.Random(f"{part}/{act}")
    for how in between_messages(act, rng, 1 + replicas, most, replicas):
        run(part, workers=2, **how)


@pytest.mark.parametrize("seed", range(2))
def test_a_server_is_lost_with_its_messages_where_they_overtake_each_other(seed: int) -> None:
    for how in where_messages_overtake(seed, 3):
        run(seed, workers=2, **how)


def test_every_update_of_the_fault_campaign_is_there_once() -> None:
    outcomes = [_trial.run(seed) for seed in range(10)]
    assert not [f"{outcome.seed}: {outcome.error}" for outcome in outcomes if not outcome.ok]
    assert KernelVan.handled > 50


class Counter:
    """Pushes and pulls at once, one request after the other."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self) -> None:
        vector, keys = self.context.vectors["v"], np.arange(0, 1000, 100, dtype=np.uint64)
        for number in range(6):
            answer = self.context.node.wait(vector.push_pull(keys, np.ones(10)))
            assert (answer == number + 1).all(), answer


@pytest.mark.parametrize("rank", [1, 2])
def test_a_push_that_also_pulls_is_answered_with_its_rows_whichever_rank_dies(rank: int) -> None:
    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", extent=1000))
        cluster.workers.call("go", {})

    for after in range(30, 90, 2):
        faults, arrives = [Fault("kill", rank, after_messages=after)], random_arrivals(after, after % 2)
        how = {"faults": faults, "arrives": arrives, "patience": 0.12, "detection": 0.01}
        simulate(schedule, Counter, servers=2, replicas=1, seed=after, tick=0.004, **how)


@update("any_width", push_row=lambda spec: Column("float32", 0), reply_row=lambda spec: Column("float32", 0))
def any_width(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    """Add the first number of rows that have any."""
    if rows.shape[1]:
        values[slots] += rows[:, :1]
    return values[slots].astype(np.float32)


class Asker:
    """Pushes rows of width 2 and of width 0 by turns, for long lists of keys that differ between workers."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self) -> None:
        vector, node = self.context.vectors["v"], self.context.node
        keys = np.arange(node.rank % 3, 60_000, 4, dtype=np.uint64)
        for number in range(6):
            rows = np.ones((len(keys), 2 if number % 2 == 0 else 0), np.float32)
            node.wait(vector.push_pull(keys, rows, round=number))


def test_changes_of_keys_without_values_do_not_shift_what_follows_them() -> None:
    def schedule(cluster: Cluster) -> float:
        spec = VectorSpec("v", "float64", extent=60_000, update="any_width", aggregate=True)
        vector = cluster.create_vector(spec)
        cluster.workers.call("go")
        return sum(float(values.sum()) for _, values in cluster.export(vector))

    assert simulate(schedule, Asker, servers=2, workers=2, replicas=1) == 2 * 3 * 15_000
    assert KernelVan.handled > 0
