"""Push and pull against a dictionary, on a simulated cluster of any layout and under any network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips.consistency import bounded, sequential
from mpips.errors import InputError, RemoteError
from mpips.ranges import KeyRange
from mpips.scheduler import Cluster
from mpips.twin import rough
from mpips.update import VectorSpec, update
from mpips.worker import Answer, Context


def random_keys(rng: np.random.Generator, extent: int, most: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    n = int(rng.integers(0, most))
    return np.unique(rng.integers(0, extent, n, np.uint64, endpoint=False))


class Adder:
    """Pushes random integer rows for random keys, and reports what it pushed."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def add(self, seed: int, pushes: int, tau: int) -> Answer:
        vector = self.context.vectors["v"]
        rng = np.random.default_rng([seed, self.context.index])
        mine: dict[int, int] = {}
        depends = bounded(tau)
        tasks = []
        for time in range(pushes):
            keys = random_keys(rng, vector.spec.extent, 50)
            rows = rng.integers(-99, 99, (len(keys), vector.spec.width))
            for key, row in zip(keys.tolist(), rows, strict=True):
                mine[key] = mine.get(key, 0) + row
            tasks.append(vector.push(keys, rows, after=[tasks[t] for t in depends(time)]))
        self.context.node.wait_all(tasks)
        keys = np.array(sorted(mine), np.uint64)
        rows = np.array([mine[k] for k in keys.tolist()], np.int64).reshape(len(keys), vector.spec.width)
        return Answer(values=rows, keys=keys)


@settings(max_examples=25)
@given(
    servers=st.integers(1, 5), workers=st.integers(1, 4), seed=st.integers(0, 999), width=st.integers(1, 3),
    extent=st.sampled_from([1, 7, 100, 10_000, 2**64]), window=st.integers(1, 8), lossy=st.booleans(),
)  # fmt: skip
def test_every_push_is_applied_once(
    servers: int, workers: int, seed: int, width: int, extent: int, window: int, lossy: bool
) -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "int64", width, extent))
        replies = cluster.node.wait(cluster.workers.start("add", {"seed": seed, "pushes": 6, "tau": 2}))
        truth: dict[int, Any] = {}
        for reply in replies:
            for key, row in zip(reply.keys.tolist(), reply.values, strict=True):
                truth[key] = truth.get(key, 0) + row
        every = np.array(sorted(truth), np.uint64)
        pulled = cluster.node.wait(vector.pull(every)).reshape(len(every), width)
        assert np.array_equal(pulled, np.array([truth[k] for k in every.tolist()]).reshape(len(every), width))
        exported = list(cluster.export(vector))
        keys = np.concatenate([k for k, _ in exported])
        assert keys.tolist() == [k for k in every.tolist() if np.any(truth[k] != 0)]
        assert cluster.servers.call("account")[0]["keys"] <= len(every)

    fate = rough(seed, delay=0.02, drop=0.1, duplicate=0.1) if lossy else rough(seed, delay=0.02)
    simulate(schedule, Adder, servers=servers, workers=workers, seed=seed, window=window, fate=fate)


class Gradient:
    """Pushes float rows into aggregated rounds; each worker has its own keys."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def rounds(self, count: int, tau: int) -> dict[str, Any]:
        vector, node = self.context.vectors["v"], self.context.node
        depends = bounded(tau)
        tasks: list[Any] = []
        for time in range(count):
            rng = np.random.default_rng([self.context.index, time])
            begin = 1000 * (time % 10)
            within = KeyRange(begin, begin + 1000)
            keys = random_keys(rng, 1000, 400) + np.uint64(begin)
            rows = rng.standard_normal((len(keys), 1)) * 10.0 ** rng.integers(-9, 9)
            node.wait_all(tasks[t] for t in depends(time))
            tasks.append(vector.push_pull(keys, rows, within=within, round=time))
        answers = node.wait_all(tasks)
        return {"sum": float(sum(np.abs(a).sum() for a in answers if a is not None))}


def gradient_digest(servers: int, workers: int, seed: int, tau: int = 0, lossy: bool = False) -> str:
    def schedule(cluster: Cluster) -> str:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 10_000, "add", aggregate=True))
        cluster.workers.call("rounds", {"count": 30, "tau": tau})
        return cluster.digest(vector)

    fate = rough(seed, delay=0.05, drop=0.1 if lossy else 0.0, duplicate=0.1 if lossy else 0.0)
    return str(simulate(schedule, Gradient, servers=servers, workers=workers, seed=seed, fate=fate))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_aggregated_sums_are_the_same_bits_for_any_servers_and_any_network(workers: int) -> None:
    digests = {
        gradient_digest(servers, workers, seed, lossy=lossy)
        for servers, seed, lossy in [(1, 1, False), (1, 2, True), (2, 3, False), (3, 4, True), (5, 5, False)]
    }
    assert len(digests) == 1
    assert digests != {gradient_digest(1, workers + 1, 1)}


class Quiet:
    """A worker that the scheduler does not need."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def raises(self, kind: str) -> None:
        raise InputError("line 7 is bad") if kind == "input" else RuntimeError("broken")

    def echo(self, keys: Any, values: Any, factor: int) -> Answer:
        return Answer({"n": len(keys)}, values * factor)


def on_cluster(schedule: Any, servers: int = 2, workers: int = 2) -> Any:
    return simulate(schedule, Quiet, servers=servers, workers=workers)


def test_dense_ranges() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("d", "float32", 2, 1000, "add", dense=True))
        wait = cluster.node.wait
        rows = np.arange(2000, dtype=np.float32).reshape(1000, 2)
        wait(vector.push(KeyRange(0, 1000), rows))
        wait(vector.push(KeyRange(100, 900), rows[:800]))
        expected = rows.copy()
        expected[100:900] += rows[:800]
        assert np.array_equal(wait(vector.pull(KeyRange(0, 1000))), expected)
        out = np.empty((50, 2), np.float32)
        assert wait(vector.pull(KeyRange(325, 375), out=out)) is out
        assert np.array_equal(out, expected[325:375])
        assert np.array_equal(wait(vector.pull(np.array([3, 999], np.uint64))), expected[[3, 999]])

    on_cluster(schedule, servers=3)


def test_a_key_that_nobody_pushed_reads_as_zero() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float32", 1))
        keys = np.array([5, 2**63, 2**64 - 1], np.uint64)
        cluster.node.wait(vector.push(keys[1:2], np.array([2.5], np.float32)))
        out = np.full(3, 7, np.float32)
        assert cluster.node.wait(vector.pull(keys, out=out)).tolist() == [0.0, 2.5, 0.0]
        assert cluster.node.wait(vector.pull(keys[:0])).shape == (0,)

    on_cluster(schedule)


def test_a_pull_sees_the_pushes_that_it_depends_on() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "int64", 1, 1000))
        keys = np.arange(0, 1000, 3, dtype=np.uint64)
        tasks: list[Any] = []
        for time in range(20):
            after = [tasks[t] for t in sequential(time)]
            tasks.append(vector.push(keys, np.ones(len(keys), np.int64), after=after))
        pull = vector.pull(keys, after=tasks)
        assert set(cluster.node.wait(pull).tolist()) == {20}

    simulate(schedule, Quiet, servers=3, fate=rough(3, delay=0.1, drop=0.1, duplicate=0.2), seed=3)


def test_namespaces_are_apart_and_one_server_can_be_asked_alone() -> None:
    def schedule(cluster: Cluster) -> None:
        one = cluster.create_vector(VectorSpec("one", "int32", 1, 100))
        two = cluster.create_vector(VectorSpec("two", "int32", 1, 100, "assign"))
        keys = np.arange(100, dtype=np.uint64)
        wait = cluster.node.wait
        wait(one.push(keys, np.full(100, 4, np.int32)))
        wait(two.push(keys, np.full(100, 9, np.int32)))
        assert wait(one.pull(keys)).sum() == 400 and wait(two.pull(keys)).sum() == 900
        parts = [wait(one.pull(keys, to=server)) for server in cluster.servers.ranks]
        assert all(0 < part.sum() < 400 for part in parts) and sum(parts).sum() == 400

    on_cluster(schedule)


def test_calls_carry_arrays_and_name_ranks() -> None:
    def schedule(cluster: Cluster) -> None:
        task = cluster.workers.start(
            "echo",
            each=[{"factor": 2}, {"factor": 3}],
            keys=np.arange(4, dtype=np.uint64),
            values=np.ones((4, 1)),
        )
        replies = cluster.node.wait(task)
        assert [r.meta["n"] for r in replies] == [4, 4]
        assert [r.values.sum() for r in replies] == [8.0, 12.0]
        one = cluster.workers.start(
            "echo", {"factor": 1}, only=[1], keys=np.arange(1, dtype=np.uint64), values=np.ones((1, 1))
        )
        assert [reply.sender for reply in cluster.node.wait(one)] == [cluster.workers.ranks[1]]

    on_cluster(schedule)


def test_bad_arguments_are_refused_before_they_are_sent() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        for keys, rows, text in [
            ([3, 3], 2, "sorted and unique"),
            ([4, 2], 2, "sorted and unique"),
            ([99, 100], 2, "not all in"),
            ([1, 2], 3, "3 rows for 2 keys"),
        ]:
            with pytest.raises(InputError, match=text):
                vector.push(np.array(keys, np.uint64), np.zeros(rows))
        with pytest.raises(InputError, match="end at 100"):
            vector.pull(np.array([1], np.uint64), within=KeyRange(0, 101))
        with pytest.raises(InputError, match="empty"):
            vector.pull(KeyRange(7, 7))

    on_cluster(schedule)


@update("fails when negative")
def _picky(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    if (rows < 0).any():
        raise ValueError("a negative row")
    values[slots] += rows


@pytest.mark.parametrize("aggregate", [False, True])
def test_an_update_that_raises_reaches_the_pusher_and_the_server_stays_up(aggregate: bool) -> None:
    def schedule(cluster: Cluster) -> None:
        spec = VectorSpec("v", "float64", 1, 100, "fails when negative", aggregate=aggregate)
        cluster.create_vector(spec)
        with pytest.raises(
            RemoteError, match=r"rank 1 \(server 0 on .*\): ValueError: a negative row"
        ) as caught:
            cluster.workers.call("push", {"value": -1.0, "round": 0})
        assert "_picky" in caught.value.trace and not caught.value.is_input
        cluster.workers.call("push", {"value": 2.0, "round": 1})
        (total,) = cluster.node.wait(cluster.vectors["v"].pull(np.array([7], np.uint64)))
        assert total == 4.0

    class Pusher(Quiet):
        def push(self, value: float, round: int) -> None:
            vector = self.context.vectors["v"]
            self.context.node.wait(vector.push(np.array([7], np.uint64), np.array([value]), round=round))

    simulate(schedule, Pusher, servers=1, workers=2)


def test_errors_of_a_call_name_the_rank_and_keep_their_kind() -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises(RemoteError, match="RuntimeError: broken") as caught:
            cluster.workers.call("raises", {"kind": "other"})
        assert caught.value.rank in cluster.workers.ranks and not caught.value.is_input
        with pytest.raises(RemoteError, match="line 7 is bad") as caught:
            cluster.workers.call("raises", {"kind": "input"}, only=[1])
        assert caught.value.rank == cluster.workers.ranks[1] and caught.value.is_input
        with pytest.raises(RemoteError, match="no method '_private'"):
            cluster.workers.call("_private")
        with pytest.raises(RemoteError, match="no vector number 9"):
            vector = cluster.create_vector(VectorSpec("v"))
            vector.number = 9
            cluster.node.wait(vector.pull(np.array([1], np.uint64)))

    on_cluster(schedule)
