"""Updates that are kernels: Python sees none of their pushes, and all is as if it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from kernel_van import KernelVan
from simulated import simulate

from mpips.errors import RemoteError
from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import Server
from mpips.server.update_call import UpdateCall
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update
from mpips.transport import in_memory
from mpips.transport.message import Command, Message
from mpips.worker.worker import Context

KEYS = 1_000_000
SIZES = 5, 300, 9_000


@update(
    "averaged",
    columns=lambda spec: {"pushes": Column("int64"), "last": Column("float32", 3, fill=1)},
    push_row=lambda spec: Column("float32", 2),
    defaults={"rate": 0.5, "most": 400},
)
@kernel("void(f8[:,::1], i8[:,::1], f4[:,::1], i4[::1], f4[:,::1], f8[::1])")
def averaged(values: Any, pushes: Any, last: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Move towards the rows; raise for a row above a limit."""
    for i in range(len(slots)):
        s = slots[i]
        if rows[i, 0] > settings[1]:
            raise ValueError("a row above the limit")
        pushes[s, 0] += 1
        last[s, 2] = last[s, 1]
        last[s, 1] = rows[i, 0]
        for j in range(2):
            values[s, j] += settings[0] * (rows[i, j] - values[s, j]) / pushes[s, 0]
            rows[i, j] = -1


def read_first(values: Any, state: Any, slots: Any) -> Any:
    return values[slots, :1]


@update("narrow", read=read_first, push_row=lambda spec: Column("float64", 2))
@kernel("void(f8[:,::1], i4[::1], f8[:,::1], f8[::1])")
def narrow(values: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add rows, of which a pull returns the first column."""
    for i in range(len(slots)):
        for j in range(2):
            values[slots[i], j] += rows[i, j]


class Worker:
    """Pushes in all ways, and returns what it was answered."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.rng = np.random.default_rng(7)

    def keys(self, count: int) -> Any:
        vector = self.context.vectors["v"]
        if vector.spec.dense and self.rng.random() < 0.3:
            first = int(self.rng.integers(0, KEYS - count))
            return KeyRange(first, first + count)
        keys = np.sort(self.rng.choice(KEYS, count, replace=False)).astype(np.uint64)
        return vector.key_list(keys) if self.rng.random() < 0.5 else keys

    def go(self, times: int) -> None:
        node, vector = self.context.node, self.context.vectors["v"]
        for _ in range(times):
            for size in SIZES:
                keys = self.keys(size)
                for _ in range(3):
                    rows = self.rng.normal(0, 9, (size, 2)).astype(np.float32)
                    node.wait(vector.push(keys, rows))

    def fail(self) -> list[Any]:
        """Push rows of which some are too large."""
        node, vector, found = self.context.node, self.context.vectors["v"], []
        keys = np.arange(6, dtype=np.uint64)
        for number in range(8):
            rows = np.full((6, 2), 20.0 * number, np.float32)
            rows[3] *= 5
            try:
                node.wait(vector.push(keys, rows))
                found.append("")
            except RemoteError as error:
                found.append(str(error).splitlines()[0])
            found.append(node.wait(vector.pull(keys)).tolist())
        return found

    def rounds(self, times: int) -> list[Any]:
        node, vector = self.context.node, self.context.vectors["v"]
        keys = np.arange(6, dtype=np.uint64)
        return [
            node.wait(vector.push_pull(keys, np.full((6, 2), 1.0 + each), round=each)).tolist()
            for each in range(times)
        ]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the servers of twins run kernels."""
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Return a list of the messages of pushes that Python is given, and of its updates of rows."""
    found: list[Any] = []
    to_shard, apply = Server._to_shard, Segment.apply

    def given(self: Server, message: Message) -> None:
        if message.command in (Command.PUSH, Command.PUSH_PULL, Command.APPLIED):
            found.append(message)
        to_shard(self, message)

    def applied(self: Segment, *rows: Any) -> Any:
        found.append(self)
        return apply(self, *rows)

    with monkeypatch.context() as patch:
        patch.setattr(Server, "_to_shard", given)
        patch.setattr(Segment, "apply", applied)
        yield found


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_python_sees_no_push_once_there_is_memory(
    replicas: int, dense: bool, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    spec = VectorSpec("v", "float64", 2, extent=KEYS, dense=dense, update="averaged")

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(spec, expect=0 if dense else 4 * KEYS)
        for times in (12, 4, 4, 4):
            found.clear()
            cluster.workers.call("go", {"times": times})
            seen.append(len(found))

    with counted(monkeypatch) as found:
        simulate(schedule, Worker, servers=1 + replicas, replicas=replicas)
    # Of 108 pushes, each to several shards, it makes memory for larger ones, or while some is still being sent.
    assert seen[0] and min(seen[1:]) <= 3 and sum(seen[1:]) < 30, seen


def digests(**how: Any) -> list[Any]:
    """Return the vector's digest after pushes, and after its settings were changed."""
    found: list[Any] = []

    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 2, extent=KEYS, update="averaged"))
        for rate in (0.5, 0.125):
            cluster.servers.call("settings", {"rate": rate}, vector=vector)
            cluster.workers.call("go", {"times": 4})
            found.append(cluster.digest(vector))

    simulate(schedule, Worker, **how)
    return found


def test_values_have_the_bits_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    python = digests(servers=1)
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    assert python[0] != python[1]
    assert digests(servers=1) == digests(servers=3, replicas=2) == python


def failures(**how: Any) -> list[Any]:
    found: list[Any] = []

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", "float64", 2, extent=6, update="averaged"))
        found.extend(cluster.workers.call("fail"))

    simulate(schedule, Worker, **how)
    return found


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_a_kernel_that_raises_is_called_once_and_its_error_answers(
    replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"servers": 1 + replicas, "replicas": replicas}
    expected = failures(**how)
    assert "a row above the limit" in str(expected)
    monkeypatch.setattr(in_memory, "TwinVan", KernelVan)
    assert failures(**how) == expected


def test_an_answer_that_is_read_from_the_state_is_made_by_python(
    compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    call = UpdateCall._call

    def noted(self: UpdateCall, *words: int) -> int:
        calls.append(words[1])
        return call(self, *words)

    monkeypatch.setattr(UpdateCall, "_call", noted)
    found: list[Any] = []

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", "float64", 2, extent=6, update="narrow", aggregate=True))
        found.extend(cluster.workers.call("rounds", {"times": 5}))

    simulate(schedule, Worker)
    assert found == [[[total] * 6 for total in (1.0, 3.0, 6.0, 10.0, 15.0)]] and calls
