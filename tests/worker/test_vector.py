"""Push and pull, compared with a dictionary, on simulated clusters of any layout, under any network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import Loss, first_view, without
from mpips.consistency import bounded, sequential
from mpips.errors import InputError, RemoteError, WorkerLost
from mpips.filters.chain import Chain
from mpips.filters.filter import Coder, Content, filter_
from mpips.filters.named import chain_of
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.server.executor import MOST_UNSENT
from mpips.storage.updates import Column, VectorSpec, update
from mpips.transport.in_memory import Network, TwinVan
from mpips.transport.message import Command, Kind, Message
from mpips.transport.network_faults import random_delays
from mpips.worker.vector import Vector
from mpips.worker.worker import Answer, Context


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
        held = [each["keys"] for each in cluster.hosts.call("account")]
        assert len(keys) <= sum(held) <= len(every)

    delays = (
        random_delays(seed, delay=0.02, drop=0.1, duplicate=0.1) if lossy else random_delays(seed, delay=0.02)
    )
    simulate(schedule, Adder, servers=servers, workers=workers, seed=seed, window=window, delays=delays)


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

    delays = random_delays(seed, delay=0.05, drop=0.1 if lossy else 0.0, duplicate=0.1 if lossy else 0.0)
    return str(simulate(schedule, Gradient, servers=servers, workers=workers, seed=seed, delays=delays))


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


def test_a_key_that_was_never_pushed_reads_as_zero() -> None:
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

    simulate(schedule, Quiet, servers=3, delays=random_delays(3, delay=0.1, drop=0.1, duplicate=0.2), seed=3)


def test_namespaces_are_apart_and_spread_over_the_servers() -> None:
    def schedule(cluster: Cluster) -> None:
        one = cluster.create_vector(VectorSpec("one", "int32", 1, 100))
        two = cluster.create_vector(VectorSpec("two", "int32", 1, 100, "assign"))
        keys = np.arange(100, dtype=np.uint64)
        wait = cluster.node.wait
        wait(one.push(keys, np.full(100, 4, np.int32)))
        wait(two.push(keys, np.full(100, 9, np.int32)))
        assert wait(one.pull(keys)).sum() == 400 and wait(two.pull(keys)).sum() == 900
        held = [each["keys"] for each in cluster.hosts.call("account")]
        assert all(0 < n < 200 for n in held) and sum(held) == 200

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
        with pytest.raises(InputError, match="is not inside that of its keys"):
            vector.pull(np.array([1], np.uint64), within=KeyRange(0, 101))
        with pytest.raises(InputError, match="empty"):
            vector.pull(KeyRange(7, 7))

    on_cluster(schedule)


# What a round, an answer or an argument may be, and what becomes of it when it is not that.

SEVEN = np.array([7], np.uint64)


def pause(context: Context, seconds: float) -> None:
    """Let simulated time pass while messages move."""
    until = context.node.van.now() + seconds
    context.node.wait_until(lambda: context.node.van.now() > until)


class Rounds(Quiet):
    """Pushes to key 7 in a round, one worker late; returns what it received."""

    def push(self, round: int, late: int = -1, bad: int = -1) -> dict[str, Any]:
        if self.context.index == late:
            pause(self.context, 1.0)
        rows = np.ones((1, 1), np.float64)
        vector, spec = self.context.vectors["v"], VectorSpec("v", "float32", 1, 100)
        if self.context.index == bad:  # one that takes the vector for another: its server knows better
            vector, rows = Vector(self.context.node, spec, vector.number), rows.astype(np.float32)
        return self._hear(vector.push(SEVEN, rows, round=round))

    def mixed(self, round: int, late: int) -> dict[str, Any]:
        if self.context.index == late:
            pause(self.context, 1.0)
        vector = self.context.vectors["v"]
        ask = vector.push if self.context.index else vector.push_pull
        before = self.context.node.van.received_bytes
        answer = self._hear(ask(SEVEN, np.ones(1), round=round))
        return answer | {"received": self.context.node.van.received_bytes - before}

    def push_pull(self, keys: list[list[int]], round: int = 0) -> dict[str, Any]:
        mine = np.array(keys[self.context.index], np.uint64)
        task = self.context.vectors["v"].push_pull(mine, np.ones(len(mine)), round=round)
        answer = self._hear(task)
        return answer if "heard" in answer else {"shape": list(np.shape(task.result()))}

    def _hear(self, task: Any) -> dict[str, Any]:
        try:
            rows = self.context.node.wait(task)
        except RemoteError as error:
            return {"heard": str(error)}
        return {"rows": None if rows is None else rows.tolist()}


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("late", [0, 1, 2])
def test_all_workers_get_the_error_of_a_bad_round_and_continue(bad: int, late: int) -> None:
    def schedule(cluster: Cluster) -> Any:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100, aggregate=True))
        for said in cluster.workers.call("push", {"round": 0, "bad": bad, "late": late}):
            assert "rank 1 (server 0 on " in said["heard"] and "float32" in said["heard"]
        for round_ in (1, 0, 2):  # the number is free again
            assert cluster.workers.call("push", {"round": round_, "late": late}) == [{"rows": None}] * 3
        return cluster.node.wait(vector.pull(SEVEN)).tolist()

    assert simulate(schedule, Rounds, workers=3, seed=bad) == [9.0]


def test_a_worker_may_ask_for_rows_in_a_round_where_another_only_pushes() -> None:
    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("v", "float64", 1, 100, aggregate=True))
        return [cluster.workers.call("mixed", {"round": late, "late": late}) for late in (0, 1)]

    for round_, (asks, pushes) in enumerate(simulate(schedule, Rounds, workers=2)):
        assert asks["rows"] == [2.0 * (round_ + 1)] and pushes["rows"] is None
        assert asks["received"] - pushes["received"] == 8, "who only pushes is sent no rows"


@update("answers with two", reply_row=lambda spec: Column("float64", 2))
def _two(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    values[slots] += rows
    return np.hstack([values[slots], -values[slots]])


@pytest.mark.parametrize("keys", [[[10, 20], []], [[], [80]], [[5], [95]], [[5, 95], []]])
def test_an_answer_is_as_wide_for_a_worker_without_keys(keys: list[list[int]]) -> None:
    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("v", "float64", 1, 100, "answers with two", aggregate=True))
        return cluster.workers.call("push_pull", {"keys": keys})

    for seed in range(6):
        said = simulate(
            schedule, Rounds, servers=3, workers=2, seed=seed, delays=random_delays(seed, delay=0.01)
        )
        assert said == [{"shape": [len(mine), 2]} for mine in keys]


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3)])
def test_an_answer_that_does_not_fit_into_out_is_refused(shape: tuple[int, ...]) -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100, "answers with two"))
        keys = np.array([5, 95], np.uint64)
        with pytest.raises(InputError, match="rows of width 2 do not fit into out"):
            cluster.node.wait(vector.push_pull(keys, np.ones(2), out=np.empty(shape)))
        out = np.empty((2, 2))
        assert cluster.node.wait(vector.push_pull(keys, np.ones(2), out=out)) is out
        assert out.tolist() == [[2.0, -2.0]] * 2

    on_cluster(schedule)


@update("answers with bools")
def _bools(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    return rows > 0


@pytest.mark.parametrize("aggregate", [False, True])
def test_all_workers_get_the_error_of_an_answer_that_cannot_be_encoded(aggregate: bool) -> None:
    def schedule(cluster: Cluster) -> None:
        spec = VectorSpec("v", "float64", 1, 100, "answers with bools", aggregate=aggregate)
        cluster.create_vector(spec)
        for round_ in (0, 1):
            said = cluster.workers.call("push_pull", {"keys": [[7], [7]], "round": round_})
            assert len(said) == 2
            for each in said:
                assert "server 0" in each["heard"] and "returned bool of shape" in each["heard"]
        assert cluster.workers.call("push", {"round": 2}) == [{"rows": None}] * 2

    simulate(schedule, Rounds, workers=2)


def test_rows_of_several_values_are_pushed_and_pulled() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float32", 70_000, 100))
        rows = np.arange(140_000, dtype=np.float32).reshape(2, 70_000)
        keys = np.array([3, 97], np.uint64)
        cluster.node.wait(vector.push(keys, rows))
        assert np.array_equal(cluster.node.wait(vector.pull(keys)), rows)

    on_cluster(schedule)


def test_keys_of_any_whole_type_are_taken() -> None:
    read_only = np.array([2, 97], np.uint64)
    read_only.flags.writeable = False
    forms: list[Any] = [
        [2, 97], (2, 97), np.array([2, 97]), np.array([2, 97], np.int32), np.array([2, 97], np.uint16),
        np.array([2, 97], ">u8"), read_only, np.array([2, 0, 97, 0], np.uint64)[::2],
    ]  # fmt: skip

    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 2, 100))
        wait = cluster.node.wait
        for time, keys in enumerate(forms):
            wait(vector.push(keys, np.array([[1.0, 9, 2, 9], [3, 9, 4, 9]])[:, ::2]))
            assert (wait(vector.pull(keys)) / (time + 1)).tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert wait(vector.pull([])).shape == (0, 2)

    on_cluster(schedule)


@pytest.mark.parametrize(
    "keys", [[-1, 3], [1.0, 2.0], np.array([[1, 2]], np.uint64), np.array([-5]), [True, False], ["1"], 7]
)
def test_keys_that_are_no_list_of_whole_numbers_are_refused(keys: Any) -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        with pytest.raises(InputError, match="a one-dimensional array of integers from 0 on"):
            vector.pull(keys)
        assert not cluster.node.tasks.unfinished

    on_cluster(schedule, servers=1, workers=1)


def test_an_out_that_does_not_fit_is_refused() -> None:
    locked = np.zeros((4, 2))
    locked.flags.writeable = False

    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 2, 100))
        single = cluster.create_vector(VectorSpec("w", "float64", 1, 100))
        keys = np.arange(4, dtype=np.uint64)
        for out in (np.empty(4), np.empty((4, 2), np.int64), np.empty((9, 2)), np.empty((4, 1)), locked):
            with pytest.raises(InputError, match=r"out must be writable, float64 of shape \(4, 2\)"):
                vector.pull(keys, out=out)
        with pytest.raises(InputError, match="out must be"):
            vector.push_pull(keys, np.ones((4, 2)), out=np.empty((3, 2)))
        for out in (np.empty(4), np.empty((4, 1)), np.empty((4, 3))[:, 1]):
            out[...] = 5
            assert cluster.node.wait(single.pull(keys, out=out)) is out and not out.any()

    on_cluster(schedule)


def test_every_shard_holds_just_its_range_of_keys() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "int64", 1, 100))
        wait, view = cluster.node.wait, cluster.node.view
        keys = np.arange(100, dtype=np.uint64)
        before = cluster.hosts.call("account")
        wait(vector.push(keys, np.arange(1, 101)))
        for held, was, host in zip(cluster.hosts.call("account"), before, cluster.hosts.ranks, strict=True):
            mine = [view.ring.range(shard, 100) for shard in view.primary_of(host)]
            assert held["keys"] - was["keys"] == sum(part.span for part in mine) > 0
        for shard in range(view.ring.shards):
            part = view.ring.range(shard, 100)
            out = np.full(part.span, 7)
            assert wait(vector.pull(part, out=out)) is out
            assert out.tolist() == list(range(part.begin + 1, part.end + 1))

    on_cluster(schedule, servers=3)


@update("negative fails")
def _negative(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    if (rows < 0).any():
        raise ValueError("negative")
    values[slots] += rows


def test_arrays_may_be_used_again_once_a_push_has_failed() -> None:
    def schedule(cluster: Cluster) -> Any:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100, "negative fails"))
        high, both = np.array([99], np.uint64), np.array([1, 99], np.uint64)
        vector.push(high, np.ones(1))  # fills the window
        rows = np.array([-1.0, 5.0])
        with pytest.raises(RemoteError, match="negative"):
            cluster.node.wait(vector.push(both, rows))
        rows[:] = 1000.0
        cluster.node.wait_until(lambda: not cluster.node.tasks.unfinished)
        return cluster.node.wait(vector.pull(high))[0]

    for seed in range(6):
        delays = random_delays(seed, delay=0.05)
        seen = simulate(schedule, Quiet, servers=2, window=1, delays=delays, seed=seed)
        assert seen in (1.0, 6.0), "the other part was sent before the error was heard, or it never is"


def test_requests_go_to_the_rank_that_holds_the_shard() -> None:
    layout = Layout.of(4, LayoutSpec(servers=2, workers=1))
    view, network = first_view(layout, replicas=1), Network(4)
    node = Node(network.vans[3], layout, view, window=1)
    vector = Vector(node, VectorSpec("v", extent=100), 1)
    shard = next(shard for shard in range(view.ring.shards) if 90 in range(*view.ring.range(shard, 100)))
    owner, other = view.chains[shard].members
    key = np.array([90], np.uint64)

    def took(rank: int) -> list[tuple[int, int, int, int]]:
        found = []
        while (taken := network.take(rank)) is not None:
            message = taken[0]
            found.append((message.shard, message.origin, message.time, message.epoch))
        return found

    first = vector.push(key, np.ones(1))
    second = vector.push(key, np.ones(1))  # waits for the window
    assert took(owner) == [(shard, 3, 0, 0)] and took(other) == []
    node.adopt(without(replace(view, epoch=1), [Loss(owner, "server", "died", 0.0)]))
    assert took(other) == [(shard, 3, 0, 1)], "what is unanswered comes again, under its name"
    assert not first.done
    answer = Message(Kind.REPLY, Command.PUSH, owner, origin=3, shard=shard, time=0)
    node.take(answer)
    assert not first.done, "the former holder's word does not count any more"
    answer.sender, answer.epoch = other, 1
    node.take(answer)
    assert first.done and not second.done and took(other) == [(shard, 3, 1, 1)]
    assert took(owner) == []


def test_rounds_with_other_workers_are_given_up() -> None:
    layout = Layout.of(5, LayoutSpec(servers=2, workers=2))
    view, network = first_view(layout, replicas=1), Network(5)
    node = Node(network.vans[3], layout, view)
    summed = Vector(node, VectorSpec("v", extent=100, aggregate=True), 1)
    plain = Vector(node, VectorSpec("w", extent=100), 2)
    keys = np.array([10, 90], np.uint64)
    rounds, push = summed.push(keys, np.ones(2), round=0), plain.push(keys, np.ones(2))
    node.adopt(without(replace(view, epoch=1), [Loss(4, "worker", "died", 0.0)]))
    assert rounds.done and isinstance(rounds.error, WorkerLost)
    assert not push.done and push.error is None
    with pytest.raises(WorkerLost, match=r"set of workers has changed in epoch \d+, .*lost ranks: "):
        summed.push(keys, np.ones(2), round=1)
    assert summed.pull(keys).error is None
    node.workers_since = node.view.workers_since  # a call of the scheduler's that knows of the new workers
    assert summed.push(keys, np.ones(2), round=1).error is None


def test_a_caller_that_does_not_receive_answers_waits_for_further_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server does not fill its memory with answers: a pull of such a caller is left until some of them are taken."""
    asked: list[float] = []

    def unsent(van: TwinVan, dest: int) -> int:
        asked.append(van.now())
        return MOST_UNSENT + 1 if len(asked) < 6 else 0

    monkeypatch.setattr(TwinVan, "unsent", unsent)

    class Puller:
        def __init__(self, context: Context) -> None:
            self.context = context

        def go(self) -> Answer:
            vector, node = self.context.vectors["v"], self.context.node
            pushed = node.wait(vector.push(KeyRange(0, 3), np.ones(3)))
            assert pushed is None
            first = vector.pull(KeyRange(0, 3))
            later = vector.push(KeyRange(0, 3), np.ones(3), after=[first])  # not before that is answered
            return Answer(
                values=np.array(
                    [node.wait(first), (node.wait(later), node.wait(vector.pull(KeyRange(0, 3))))[1]]
                )
            )

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("v", "float64", 1, 3, dense=True))
        return cluster.workers.gather("go")[0][1].tolist()

    assert simulate(schedule, Puller, servers=1, workers=1) == [[1.0] * 3, [2.0] * 3]
    assert len(asked) > 6
    assert asked[5] > asked[0], "tried again later, not at once"


# Requests that are refused.

KEYS = np.arange(100, dtype=np.uint64)


class Wrong(Quiet):
    """Makes requests that cannot be."""

    def wrong(self, how: str) -> None:
        vectors, ones = self.context.vectors, np.ones(100)
        asks: dict[str, Callable[[], Any]] = {
            "unsorted": lambda: vectors["v"].push(KEYS[::-1], ones),
            "rows": lambda: vectors["v"].push(KEYS, ones[:7]),
            "type": lambda: vectors["v"].push(KEYS, ones.astype(np.float32)),
            "listed": lambda: vectors["v"].push(KEYS, [1] * 100),  # type: ignore[arg-type]
            "width": lambda: vectors["v"].push_pull(KEYS, np.ones((100, 2))),
            "outside": lambda: vectors["v"].pull(KEYS + np.uint64(1)),
            "unknown": lambda: vectors["w"].pull(KEYS),
            "range": lambda: vectors["v"].pull(KeyRange(50, 101)),
            "keys": lambda: vectors["v"].pull(KEYS.astype(float)),  # type: ignore[arg-type]
            "out": lambda: vectors["v"].pull(KEYS, out=np.ones(99)),
            "round": lambda: vectors["sums"].push(KEYS, ones),
        }
        asks[how]()


def line(text: str) -> int:
    """Return the line of this file that has a text."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, each in enumerate(lines, 1) if text in each)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("unsorted", "vector v: keys must be sorted and unique"),
        ("rows", "vector v: 7 rows for 100 keys"),
        ("type", "vector v: rows of float32, but its update 'add' takes float64"),
        ("listed", "vector v: rows of int64"),
        ("width", r"vector v: rows of shape \(100, 2\), but its update 'add' takes \(100, 1\)"),
        ("outside", r"vector v: keys 1 to 100 are not all in \[0, 100\)"),
        ("unknown", "there is no vector 'w'; there are: sums, v"),
        ("range", r"vector v: the range \[50, 101\) is not inside"),
        ("keys", "vector v: keys must be a one-dimensional array"),
        ("out", "vector v: out must be writable, float64 of shape"),
        ("round", "vector sums aggregates: a push must name its round"),
    ],
)
def test_invalid_requests_are_refused_with_the_line_that_made_them(how: str, why: str) -> None:
    def do(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("v", extent=100))
        cluster.create_vector(VectorSpec("sums", extent=100, aggregate=True))
        cluster.workers.call("wrong", {"how": how})

    with pytest.raises(RemoteError, match=rf"rank 2 \(worker 0 on .*\): {why}") as raised:
        simulate(do, Wrong)
    said = raised.value
    place = line(f'"{how}": lambda')
    assert said.is_input and said.is_usage and f"(at {__file__}:{place})" in said.text


@dataclass(frozen=True)
class Which:
    change: str = ""


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one": lambda rows: rows[:1], "flat": lambda rows: rows[:, 0], "wider": lambda rows: np.hstack([rows, rows]),
    "float32": lambda rows: rows.astype(np.float32),
}  # fmt: skip


@filter_("test_changes_rows", Which)
def changes_rows(settings: Which) -> Coder:
    def decode(content: Content) -> Content:
        return content._replace(values=CHANGES[settings.change](content.values))

    return Coder(lambda state, content, about: (state, content._replace(note=b"x")), decode)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("servers", [1, 2])
def test_an_answer_whose_rows_a_filter_has_changed_is_refused(change: str, servers: int) -> None:
    keys = np.array([1, 3, 5], np.uint64)

    def pull(cluster: Cluster) -> Any:
        vector = cluster.create_vector(VectorSpec("w", extent=10))
        return vector.pull(keys).result()

    pulls = [{"name": "test_changes_rows", "change": change}]
    with pytest.raises(InputError, match=r"a filter of \[filters\] pull changes rows"):
        simulate(pull, lambda context: None, servers=servers, filters=lambda: (Chain(), chain_of(pulls)))
