"""Keys that are used repeatedly, as lists and as arrays, compared with a dictionary, under any network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips.errors import InputError
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import KEY_CACHE, Server
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import NO_SIGNATURE, Command, Kind, Message
from mpips.transport.network_faults import Delays, Fault, no_delay, random_delays
from mpips.worker.key_list import KeyList
from mpips.worker.worker import Answer, Context

EXTENT = 10_000
SHARED = EXTENT // 2
"""Keys from here on are pushed by all workers, those before by one each."""


@contextmanager
def servers_that_remember(most: float) -> Iterator[list[Server]]:
    """Let the simulated servers cache so many bytes of lists; return them."""
    made: list[Server] = []

    class Remembering(Server):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, key_cache=most, **options)
            made.append(self)

    with patch("mpips.rank.simulation.Server", Remembering):
        yield made


class Seen:
    """Delays that count how the requests to shards name their keys, and how often servers ask for the keys."""

    def __init__(self, delays: Delays = no_delay) -> None:
        self.delays, self.counts = delays, Counter[str]()
        self.loses = getattr(delays, "loses", False)

    def __call__(self, source: int, dest: int, message: Message) -> Sequence[float]:
        if message.kind is Kind.SEND_KEYS:
            self.counts["asked"] += 1
        elif message.kind is Kind.REQUEST and message.shard >= 0 and "call" not in message.meta:
            signed = message.signature != NO_SIGNATURE
            listed = message.keys is not None
            name = {(0, 0): "range", (0, 1): "keys", (1, 1): "both", (1, 0): "signature"}[signed, listed]
            self.counts[name] += 1
        return self.delays(source, dest, message)


class Repeater:
    """Pushes and pulls a few lists again and again; what it pulls of its own keys must be what it has pushed."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node

    def lists(self, seed: int, count: int) -> list[Any]:
        """Make lists of its own keys, then as many of those that all share; each in one of three forms."""
        vector, workers = self.context.vectors["v"], len(self.node.view.workers)
        made: list[Any] = []
        for number in range(2 * count):
            own = number < count
            rng = np.random.default_rng([seed, number, self.context.index if own else 99])
            size = int(rng.choice([1, 2, 30, 400]))
            if own:
                keys = rng.choice(SHARED // workers, size, replace=False) * workers + self.context.index
            elif rng.random() < 0.3:
                first = int(rng.integers(SHARED, EXTENT - size))
                keys = np.arange(first, first + size)
            else:
                keys = rng.choice(EXTENT - SHARED, size, replace=False) + SHARED
            keys = np.sort(keys).astype(np.uint64)
            made.append(vector.key_list(keys) if number % 3 == 0 else keys)
        return made

    def repeat(self, seed: int, steps: int, count: int) -> Answer:
        vector = self.context.vectors["v"]
        width, assigns = vector.spec.width, vector.spec.update == "assign"
        rng = np.random.default_rng([seed, self.context.index])
        lists = self.lists(seed, count)
        model = np.zeros((EXTENT, width), np.int64)
        tasks: list[Task] = []
        pulled: list[tuple[Task, Any]] = []
        for _ in range(steps):
            number = int(rng.integers(0, len(lists)))
            named = lists[number]
            keys = named.keys if isinstance(named, KeyList) else named
            if number % 3 == 1:
                named = keys.copy()  # equal keys elsewhere are the same list
            places = keys.astype(np.int64)
            own = number < count
            if rng.random() < 0.5 or not own:
                rows = rng.integers(-99, 99, (len(keys), width))
                if assigns:
                    rows[...] = 7 if not own else rows
                    model[places] = rows
                else:
                    model[places] += rows
                if own:  # a pull whose answer is lost is answered anew, perhaps after what came meanwhile
                    self.node.wait_all([task for task, _ in pulled])
                tasks.append(vector.push(named, rows, after=tasks[-1:] if assigns else ()))
            else:
                out = np.full((len(keys), width), -1) if rng.random() < 0.5 else None
                pulled.append((vector.pull(named, out=out, after=tasks), model[places]))
            if rng.random() < 0.2:
                self.node.wait_all(tasks)
        self.node.wait_all(tasks)
        for task, expected in pulled:
            assert np.array_equal(np.reshape(self.node.wait(task), expected.shape), expected)
        touched = np.flatnonzero(model.any(axis=1)).astype(np.uint64)
        return Answer({"pulls": len(pulled)}, model[touched.astype(np.int64)], touched)


def check(cluster: Cluster, spec: VectorSpec, seed: int, steps: int, count: int) -> None:
    """Let the workers repeat their lists, and compare what is there then with what they say they have pushed."""
    vector = cluster.create_vector(spec)
    said = cluster.node.wait(cluster.workers.start("repeat", {"seed": seed, "steps": steps, "count": count}))
    truth = np.zeros((EXTENT, spec.width), np.int64)
    for reply in said:
        places = reply.keys.astype(np.int64)
        if spec.update == "assign":
            truth[places] = reply.values
        else:
            truth[places] += reply.values
    assert sum(reply.meta["pulls"] for reply in said) > 0
    every = np.arange(EXTENT, dtype=np.uint64)
    assert np.array_equal(cluster.node.wait(vector.pull(every)).reshape(truth.shape), truth)


@settings(max_examples=12)
@given(
    servers=st.integers(1, 4), workers=st.integers(1, 3), seed=st.integers(0, 999), width=st.sampled_from([1, 3]),
    update=st.sampled_from(["add", "assign"]), dense=st.booleans(), window=st.integers(1, 64),
    most=st.sampled_from([0, 1500, 4000, KEY_CACHE]), lossy=st.booleans(),
)  # fmt: skip
def test_lists_that_are_named_again_and_again(
    servers: int, workers: int, seed: int, width: int, update: str, dense: bool, window: int, most: float,
    lossy: bool,
) -> None:  # fmt: skip
    spec = VectorSpec("v", "int64", width, EXTENT, update, dense=dense)
    delays = Seen(
        random_delays(seed, delay=0.02, drop=0.1, duplicate=0.1) if lossy else random_delays(seed, delay=0.02)
    )
    with servers_that_remember(most) as made:
        simulate(
            lambda cluster: check(cluster, spec, seed, 40, 3), Repeater,
            servers=servers, workers=workers, seed=seed, window=window, delays=delays,
        )  # fmt: skip
    misses = sum(server.lists.misses for server in made)
    assert (misses > 0) == (delays.counts["asked"] > 0)
    assert all(server.lists.nbytes <= most for server in made)
    if most == KEY_CACHE:
        assert sum(server.lists.hits for server in made) > 0


@pytest.mark.parametrize("most", [1500, KEY_CACHE])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("victim", [1, 2])
def test_a_server_dies_among_lists_that_it_knows(victim: int, seed: int, most: float) -> None:
    spec = VectorSpec("v", "int64", 1, EXTENT, "add", dense=seed % 2 == 0)
    lossy = random_delays(seed, delay=0.002, drop=0.05, duplicate=0.05)
    delays, observed = Seen(no_delay if seed < 2 else lossy), dict[str, Any]()

    def schedule(cluster: Cluster) -> None:
        network = observed["network"]
        network.plan(Fault("kill", victim, after_messages=network.posted + 150 + 60 * seed))
        check(cluster, spec, seed, 60, 3)

    with servers_that_remember(most) as made:
        simulate(
            schedule, Repeater, servers=3, workers=2, replicas=1, seed=seed, delays=delays, observed=observed
        )
    assert [loss.rank for loss in observed["view"].losses] == [victim]
    assert delays.counts["asked"] > 0, "who took over had not heard of the lists"
    assert sum(server.lists.misses for server in made) > 0


# --- what travels ------------------------------------------------------------------------------------


class Quiet:
    """A worker that the scheduler does not need."""

    def __init__(self, context: Context) -> None:
        self.context = context


def counted(
    schedule: Any, most: float = KEY_CACHE, servers: int = 1, delays: Delays = no_delay
) -> Counter[str]:
    seen = Seen(delays)
    with servers_that_remember(most):
        simulate(schedule, Quiet, servers=servers, workers=1, delays=seen)
    return seen.counts


KEYS = np.arange(0, EXTENT, 7, dtype=np.uint64)
ONES = np.ones(len(KEYS))


@pytest.mark.parametrize("servers", [1, 3])
def test_the_keys_of_a_list_are_sent_once(servers: int) -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        named = vector.key_list(KEYS)
        for _ in range(5):
            wait(vector.push(named, ONES))
        assert set(wait(vector.pull(named)).tolist()) == {5.0}

    shards = {1: 1, 3: 4}[servers]
    assert counted(schedule, servers=servers) == {"both": shards, "signature": 5 * shards}


def test_the_keys_of_an_array_are_sent_twice() -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        for _ in range(5):
            wait(vector.push(KEYS.copy(), ONES))
        assert set(wait(vector.pull(KEYS)).tolist()) == {5.0}

    assert counted(schedule) == {"keys": 1, "both": 1, "signature": 4}


def test_equal_arrays_have_a_table_in_common_and_keys_of_their_own() -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        lists = [KEYS.copy() for _ in range(4)]
        plans = [vector._planner.plan(each, None, False, Command.PUSH) for each in lists]
        assert plans[1].parts is plans[2].parts is plans[3].parts is not plans[0].parts
        assert all(plan.keys is each for plan, each in zip(plans, lists, strict=True))
        # An array may be written once its request is finished.
        keys = KEYS.copy()
        for _ in range(3):
            wait(vector.push(keys, ONES))
        keys[:] = keys[0] + np.arange(len(keys), dtype=np.uint64)
        wait(vector.push(keys, ONES))
        assert set(wait(vector.pull(KEYS)).tolist()) <= {3.0, 4.0}
        assert wait(vector.pull(keys)).tolist() == [3.0 * (key in KEYS) + 1.0 for key in keys]

    counted(schedule)


def test_the_keys_of_an_array_that_is_pulled_and_pushed_once_are_not_signed() -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        wait(vector.pull(KEYS))
        wait(vector.push(KEYS, ONES))
        assert set(wait(vector.pull(KEYS)).tolist()) == {1.0}
        wait(vector.push(KEYS, ONES))

    assert counted(schedule) == {"keys": 2, "both": 1, "signature": 1}


def test_as_many_lists_are_signed_as_are_remembered_though_two_commands_use_each() -> None:
    lists = [np.arange(at, EXTENT, 100, dtype=np.uint64) for at in range(8)]

    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        for _ in range(3):
            for each in lists:
                wait(vector.pull(each))
                wait(vector.push(each, np.ones(100)))

    with patch("mpips.worker.key_list.MOST_PLANS", len(lists)):
        assert counted(schedule) == {"keys": 16, "both": 8, "signature": 24}


def test_the_keys_of_a_list_are_sent_once_per_vector() -> None:
    def schedule(cluster: Cluster) -> None:
        wait = cluster.node.wait
        for name, value in (("v", 2.0), ("w", 3.0)):
            vector = cluster.create_vector(VectorSpec(name, "float64", 1, EXTENT))
            named = vector.key_list(KEYS)
            for _ in range(2):
                wait(vector.push(named, value * ONES))
            assert set(wait(vector.pull(named)).tolist()) == {2 * value}

    assert counted(schedule) == {"both": 2, "signature": 4}


def test_a_server_without_a_key_cache_is_sent_the_keys_each_time() -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        named = vector.key_list(KEYS)
        for _ in range(5):
            wait(vector.push(named, ONES))
        assert set(wait(vector.pull(named)).tolist()) == {5.0}

    assert counted(schedule, most=0) == {"both": 1 + 5, "signature": 5, "asked": 5}


def test_lists_in_turn_at_a_server_with_a_small_cache_are_evicted() -> None:
    lists = [np.arange(at, EXTENT, 100, dtype=np.uint64) for at in range(12)]

    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, EXTENT)), cluster.node.wait
        named = [vector.key_list(keys) for keys in lists]
        for _ in range(4):
            for each in named:
                wait(vector.push(each, np.ones(100)))
        for each in named:
            assert set(wait(vector.pull(each)).tolist()) == {4.0}

    assert counted(schedule, most=1e6) == {"both": 12, "signature": 48}
    counts = counted(schedule, most=4 * 1024)
    assert 12 < counts["asked"] <= 48 and counts["both"] == 12 + counts["asked"]


@pytest.mark.parametrize("aggregate", [False, True])
def test_lists_can_be_pushed_in_rounds(aggregate: bool) -> None:
    """Also where shards have none of the keys: they take part in a round all the same."""
    spec = VectorSpec("v", "float64", 1, EXTENT, aggregate=aggregate)

    class Rounds(Quiet):
        def go(self, times: int) -> list[list[float]]:
            vector, node = self.context.vectors["v"], self.context.node
            keys = np.array([[5, 9000], [5], []][self.context.index], np.uint64)
            named, said = vector.key_list(keys), []
            for time in range(times):
                named_round = {"round": time} if aggregate else {}
                said.append(node.wait(vector.push_pull(named, np.ones(len(keys)), **named_round)).tolist())
            said.append(node.wait(vector.pull(named)).tolist())
            return said

        def called(self, times: int) -> dict[str, Any]:
            return {"said": self.go(times)}

    def schedule(cluster: Cluster) -> list[Any]:
        cluster.create_vector(spec)
        return [each["said"] for each in cluster.workers.call("called", {"times": 4})]

    for most in (0, KEY_CACHE):
        with servers_that_remember(most):
            said = simulate(schedule, Rounds, servers=3, workers=3, delays=random_delays(1, delay=0.01))
        if aggregate:
            assert said[0] == [[2.0, 1.0], [4.0, 2.0], [6.0, 3.0], [8.0, 4.0], [8.0, 4.0]]
            assert said[1] == [[2.0], [4.0], [6.0], [8.0], [8.0]]
        else:
            assert [rows[1] for rows in said[0]] == [1.0, 2.0, 3.0, 4.0, 4.0]
        assert said[2] == [[], [], [], [], []]


# --- lists before their keys are there ------------------------------------------------------------------


class Other(Quiet):
    """Pushes keys that somebody else pulls."""

    def push(self, begin: int, end: int, step: int) -> None:
        vector = self.context.vectors["v"]
        keys = np.arange(begin, end, step, dtype=np.uint64)
        self.context.node.wait(vector.push(keys, keys.astype(np.float64) + 1))


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("most", [0, KEY_CACHE])
def test_a_list_that_is_pulled_before_its_keys_exist(most: float, dense: bool) -> None:
    keys = np.arange(0, 1000, 2, dtype=np.uint64)

    def schedule(cluster: Cluster) -> None:
        vector, wait = (
            cluster.create_vector(VectorSpec("v", "float64", 1, 1000, dense=dense)),
            cluster.node.wait,
        )
        named, expected = vector.key_list(keys), np.zeros(len(keys))
        for begin, end, step in [
            (0, 0, 1),
            (100, 200, 4),
            (100, 300, 2),
            (0, 1000, 3),
            (0, 1000, 1),
            (0, 0, 1),
        ]:
            if begin < end:
                cluster.workers.call("push", {"begin": begin, "end": end, "step": step})
            pushed = (keys >= begin) & (keys < end) & ((keys - np.uint64(begin)) % np.uint64(step) == 0)
            expected += np.where(pushed, keys + 1.0, 0.0)
            for _ in range(2):
                assert np.array_equal(wait(vector.pull(named)), expected)
                assert np.array_equal(wait(vector.pull(keys)), expected)

    with servers_that_remember(most):
        simulate(schedule, Other, servers=2, workers=1)


# --- what a list is not -----------------------------------------------------------------------------------


def test_a_list_is_a_copy_of_its_own() -> None:
    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, 100)), cluster.node.wait
        keys = np.array([3, 50, 97], np.uint64)
        named = vector.key_list(keys)
        keys[:] = 9
        assert len(named) == 3 and named.keys.tolist() == [3, 50, 97]
        with pytest.raises(ValueError, match="read-only"):
            named.keys[0] = 1
        wait(vector.push(named, np.ones(3)))
        assert wait(vector.pull(np.arange(100, dtype=np.uint64))).nonzero()[0].tolist() == [3, 50, 97]
        for form in ([3, 50, 97], np.array([3, 50, 97], np.int32)):
            assert wait(vector.pull(vector.key_list(form))).tolist() == [1.0, 1.0, 1.0]

    counted(schedule, servers=2)


def test_an_array_whose_keys_change_in_between_is_another_list() -> None:
    """It is taken for what it says, though the few keys that are looked at first are the same."""

    def schedule(cluster: Cluster) -> None:
        vector, wait = cluster.create_vector(VectorSpec("v", "float64", 1, 1000)), cluster.node.wait
        keys, expected = np.arange(0, 1000, 10, dtype=np.uint64), np.zeros(1000)
        for time in range(8):
            keys[5] = 51 + time
            wait(vector.push(keys, np.ones(100)))
            expected[keys.astype(np.int64)] += 1
            assert np.array_equal(wait(vector.pull(keys)), expected[keys.astype(np.int64)])
        assert np.array_equal(wait(vector.pull(np.arange(1000, dtype=np.uint64))), expected)

    assert counted(schedule)["both"] >= 7


@pytest.mark.parametrize(
    ("keys", "within", "text"),
    [
        ([3, 3], None, "sorted and unique"),
        ([4, 2], None, "sorted and unique"),
        ([99, 100], None, "not all in"),
        ([1, 50], KeyRange(0, 50), "not all in"),
        ([1], KeyRange(0, 101), "is not inside that of its keys"),
        ([-1, 3], None, "a one-dimensional array of integers from 0 on"),
        ([1.5], None, "a one-dimensional array of integers from 0 on"),
        (np.array([[1, 2]], np.uint64), None, "a one-dimensional array of integers from 0 on"),
    ],
)
def test_lists_that_are_refused(keys: Any, within: KeyRange | None, text: str) -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        with pytest.raises(InputError, match=text) as caught:
            vector.key_list(keys, within)
        assert "vector v: " in str(caught.value) and "\n" not in str(caught.value)

    counted(schedule)


def test_a_list_that_was_made_for_something_else_is_refused() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        other = cluster.create_vector(VectorSpec("w", "float64", 1, 100))
        keys, rows = np.array([3, 50], np.uint64), np.ones(2)
        named = vector.key_list(keys, KeyRange(0, 60))
        for wrong in (
            lambda: other.pull(named),
            lambda: other.push(named, rows),
            lambda: vector.push(named, rows, within=KeyRange(0, 100)),
            lambda: vector.pull(named, within=KeyRange(0, 61)),
        ):
            with pytest.raises(InputError, match="the key list was made for vector"):
                wrong()
        with pytest.raises(InputError, match="3 rows for 2 keys"):
            vector.push(named, np.ones(3))
        with pytest.raises(InputError, match="out must be"):
            vector.pull(named, out=np.ones(3))
        assert not cluster.node.tasks.unfinished
        cluster.node.wait(vector.push(named, rows, within=KeyRange(0, 60)))
        assert cluster.node.wait(vector.pull(named)).tolist() == [1.0, 1.0]

    counted(schedule)
