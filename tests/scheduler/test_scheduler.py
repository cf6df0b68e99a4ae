"""The scheduler's groups and vectors, on a simulated cluster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips.checkpoint import checkpoint, loading
from mpips.errors import InputError, RemoteError, UsageError
from mpips.files.json_values import json_data
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.server.shard import AGGREGATE
from mpips.storage.updates import VectorSpec, call, update
from mpips.storage.vector_clock import NOTHING, RangedClock
from mpips.transport.in_memory import Deadlock
from mpips.transport.message import Command, Kind, Message
from mpips.transport.network_faults import random_delays
from mpips.worker import export
from mpips.worker.worker import Answer, Context, at_once

SEVEN = np.array([7], np.uint64)


@update("scheduler.refuses")
def refuses(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Refuse all rows."""
    raise ValueError("a row")


class Worker:
    """Whatever the tests call."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.log: list[str] = []

    def push_refused(self) -> None:
        self.context.vectors["v"].push(SEVEN, np.ones(1))

    def hang(self) -> None:
        self.node.wait_until(lambda: False)

    def pause(self, seconds: float, only: int | None = None) -> dict[str, Any]:
        """Let simulated time pass while messages move, as any pull would."""
        began = self.node.van.now()
        if only is None or only == self.context.index:
            self.node.wait_until(lambda: self.node.van.now() > began + seconds)
        return {"began": began, "ended": self.node.van.now()}

    def push_seven(self, late: int) -> dict[str, Any]:
        span = self.pause(1.0, late)
        self.node.wait(self.context.vectors["v"].push(SEVEN, np.ones(1)))
        return span | {"ended": self.node.van.now()}

    def pull_seven(self) -> dict[str, Any]:
        began = self.node.van.now()
        (seen,) = self.node.wait(self.context.vectors["v"].pull(SEVEN))
        return {"began": began, "seen": float(seen)}

    def note(self, text: str) -> dict[str, Any]:
        self.log.append(text)
        return {"log": list(self.log)}

    def number(self) -> Answer:
        return Answer(values=np.array([[1e16], [-1e16], [1.0]])[self.context.index : self.context.index + 1])

    def rounds(self, numbers: list[int], begin: int, end: int) -> None:
        vector = self.context.vectors["v"]
        for number in numbers:
            keys = np.arange(begin + self.context.index, end, 3, dtype=np.uint64)
            task = vector.push(keys, np.ones(len(keys)), within=KeyRange(begin, end), round=number)
            self.node.wait(task)


# Calls.


@pytest.mark.parametrize("seed", range(3))
def test_a_worker_that_waits_for_nothing_is_a_deadlock(seed: int) -> None:
    with pytest.raises(Deadlock):
        simulate(lambda cluster: cluster.workers.call("hang"), Worker, workers=3, seed=seed, horizon=1.0)


@pytest.mark.parametrize("lossy", [False, True])
def test_a_call_that_depends_on_another_starts_when_that_has_returned(lossy: bool) -> None:
    # The second one is at the worker long before the first is finished there.
    def schedule(cluster: Cluster) -> list[dict[str, Any]]:
        first = cluster.workers.start("pause", {"seconds": 1.0})
        second = cluster.node.tasks.submit(
            [(cluster.workers.ranks[0], request)], lambda _, reply: answers.append(reply.meta), [first]
        )
        answers.append(cluster.node.wait(first)[0].meta)
        cluster.node.wait(second)
        return answers

    answers: list[dict[str, Any]] = []
    request = Message(Kind.REQUEST, Command.CALL)
    request.meta = {"call": "pause", "args": {"seconds": 0.5}}
    delays = random_delays(1, delay=0.02, drop=0.2) if lossy else random_delays(1, delay=0.02)
    first, second = simulate(schedule, Worker, delays=delays)
    assert first["ended"] - first["began"] >= 1.0
    assert first["ended"] <= second["began"] <= first["ended"] + 0.01, "it was there, and began at once"


def test_a_dependent_call_starts_nowhere_before_the_other_is_finished_everywhere() -> None:
    def schedule(cluster: Cluster) -> tuple[Any, Any]:
        cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        pushed = cluster.workers.start("push_seven", {"late": 1})
        pulled = cluster.workers.start("pull_seven", after=[pushed])
        wait = cluster.node.wait
        return [r.meta for r in wait(pulled)], [r.meta for r in wait(pushed)]

    for seed in range(4):
        pulled, pushed = simulate(
            schedule, Worker, workers=3, seed=seed, delays=random_delays(seed, delay=0.01)
        )
        assert [each["seen"] for each in pulled] == [3.0] * 3
        assert min(each["began"] for each in pulled) >= max(each["ended"] for each in pushed)


def test_arguments_that_cannot_travel_are_raised_where_the_call_is_waited_for() -> None:
    def schedule(cluster: Cluster) -> None:
        wait = cluster.node.wait
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        number = cluster.workers.start("note", {"text": object()})
        for _ in range(3):  # more than the window of 2 has room for
            for task in [cluster.workers.start("note", {"text": object()}) for _ in range(3)]:
                with pytest.raises(UsageError, match=r"args\.text is a object, which JSON cannot represent"):
                    wait(task)
        with pytest.raises(UsageError, match=r"args\.text is a object"):
            wait(number)
        assert cluster.workers.call("note", {"text": "well"}) == [{"log": ["well"]}] * 2
        wait(vector.push(SEVEN, np.ones(1)))
        assert wait(vector.pull(SEVEN)) == [1.0] and not cluster.node.tasks.unfinished

    simulate(schedule, Worker, servers=2, workers=2, window=2)


def test_a_failing_callback_is_raised_and_dependent_tasks_still_start() -> None:
    def boom(_: Any) -> None:
        raise KeyError("mine")

    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100))
        low, high = np.array([1], np.uint64), np.array([99], np.uint64)
        failing = vector.push(low, np.ones(1)).then(boom)
        other = vector.push(high, np.ones(1))
        held = vector.pull(high, after=[failing])  # sent when the first is finished: another server
        with pytest.raises(KeyError, match="mine"):  # also where nobody waits for that task
            cluster.node.wait_until(lambda: not cluster.node.tasks.unfinished)
        cluster.node.wait(other)
        assert cluster.node.wait(held).tolist() == [1.0]
        with pytest.raises(KeyError, match="mine"):
            cluster.node.wait(failing)

    for seed in range(4):
        simulate(schedule, Worker, servers=2, seed=seed, delays=random_delays(seed, delay=0.01))


@pytest.mark.parametrize("tables", [0, 1, 3])
def test_a_call_has_a_table_for_each_member_and_no_more(tables: int) -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises(UsageError, match=f"call of note: each has {tables} tables for 2 ranks"):
            cluster.workers.call("note", each=[{"text": "a"}] * tables)
        assert cluster.workers.call("note", each=[{"text": "a"}], only=[1]) == [{"log": ["a"]}]

    simulate(schedule, Worker, workers=2)


def test_a_total_is_added_in_rank_order() -> None:
    def schedule(cluster: Cluster) -> float:
        return float(cluster.workers.total(cluster.workers.start("number"))[0, 0])

    for seed in range(6):
        delays = random_delays(seed, delay=0.1)
        assert simulate(schedule, Worker, workers=3, seed=seed, delays=delays) == (1e16 - 1e16) + 1.0


@pytest.mark.parametrize(
    ("misuse", "text"),
    [
        (
            lambda cluster, w: cluster.some([99]),
            r"cluster\.some\(\[99\]\): 99 is no rank of this run, 0 to 2",
        ),
        (lambda cluster, w: cluster.some([2, 2]), "a rank is named twice"),
        (
            lambda cluster, w: cluster.create_vector(VectorSpec("v"), expect=-1),
            "expect -1 is no number of keys",
        ),
        (lambda cluster, w: cluster.vectors["v"], "there is no vector 'v'; there are: w"),
        (lambda cluster, w: cluster.create_vector(VectorSpec("w")), "'w' exists already"),
        (lambda cluster, w: cluster.create_vector("v"), "takes a VectorSpec, as in .*, not 'v'"),
        (
            lambda cluster, w: cluster.create_vector(VectorSpec("x", dtype="float16")),
            "dtype 'float16' is none of",
        ),
        (lambda cluster, w: w.push(SEVEN, np.ones(1), round=2**70), "is not an integer of 0 to"),
        (lambda cluster, w: w.push(SEVEN, np.ones(1), round=1.5), "round 1.5 is not an integer"),
        (lambda cluster, w: w.push(SEVEN, np.ma.masked_array([1.0], [True]), round=0), "are a masked array"),
    ],
)
def test_misuse_is_one_line(misuse: Any, text: str) -> None:
    def schedule(cluster: Cluster) -> None:
        w = cluster.create_vector(VectorSpec("w", aggregate=True))
        with pytest.raises(UsageError, match=text):
            misuse(cluster, w)

    simulate(schedule, Worker)


@call("moves", reads=True)
def moves(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    return {"keys": len(segment), "moves": segment.moves}


@pytest.mark.parametrize("seed", range(5))
def test_expected_keys_fit_also_on_the_server_that_gets_more_than_its_share(seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 2**64, 2001, np.uint64)

    def schedule(cluster: Cluster) -> list[Any]:
        w = cluster.create_vector(VectorSpec("w"), expect=len(keys))
        listed = np.unique(keys)
        w.push(listed, np.ones(len(listed))).result()
        return list(cluster.servers.call("moves", vector=w))

    found = simulate(schedule, Keyed, servers=2)
    assert sum(each["keys"] for each in found) == len(keys)
    assert [each["moves"] for each in found] == [1, 1]


KEYED = {"a": [{"b": {2: 1, "2": 3}}]}


@call("keyed")
def keyed(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    return KEYED


@call("keyed_read", reads=True)
def keyed_read(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    return KEYED


class Keyed:
    """Gives and takes tables with a key that is not a string."""

    def __init__(self, context: Context) -> None:
        pass

    def take(self, **args: Any) -> None:
        pass

    def give(self) -> Any:
        return KEYED

    def answer(self) -> Any:
        return Answer({np.int64(2): 1})

    @at_once
    def give_at_once(self) -> Any:
        return {"a": {None: 1}}


HERE = __file__ + r":\d+\)"


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda cluster, w: cluster.workers.start("take", KEYED), r"the arguments of take: a\[0\]\.b has the key 2 of"),
        (lambda cluster, w: cluster.workers.start("take", each=[{3: 1}]), r"the arguments of take has the key 3 of"),
        (lambda cluster, w: cluster.notify("take", KEYED), r"the arguments of take: a\[0\]\.b has the key 2"),
        (lambda cluster, w: cluster.workers.call("give"), rf"Worker\.give \({HERE}: a\[0\]\.b has the key 2"),
        (lambda cluster, w: cluster.workers.call("answer"), rf"Worker\.answer \({HERE} has the key np.int64\(2\)"),
        (lambda cluster, w: cluster.workers.call("give_at_once"), rf"at_once \({HERE}: a has the key None of"),
        (lambda cluster, w: cluster.servers.call("keyed", vector=w), rf"result of keyed \({HERE}: a\[0\]"),
        (lambda cluster, w: cluster.servers.call("keyed_read", vector=w), rf"result of keyed_read \({HERE}: a"),
        (lambda cluster, w: cluster.decide(lambda: KEYED), r"the decided value: a\[0\]\.b has the key 2 of type int"),
    ],
)  # fmt: skip
def test_a_key_that_json_would_change_is_refused_with_its_place(act: Any, text: str) -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises((UsageError, RemoteError), match=text) as caught:
            act(cluster, cluster.create_vector(VectorSpec("w")))
        assert isinstance(caught.value, UsageError) or caught.value.is_usage

    simulate(schedule, Keyed)


def test_two_keys_that_json_writes_alike_are_refused() -> None:
    with pytest.raises(UsageError, match="state has two keys of one name"):
        json_data({"state": {2: 1, "2": 3}})


@pytest.mark.parametrize(
    "ask",
    [
        lambda cluster: cluster.vectors["v"].push(SEVEN, np.ones(1)),
        lambda cluster: cluster.workers.start("push_refused"),
        lambda cluster: cluster.servers.start("no such function", vector=cluster.vectors["v"]),
    ],
    ids=["push", "call", "function"],
)
def test_failed_tasks_of_the_scheduler_are_reported_at_the_end(ask: Callable[[Cluster], Any]) -> None:
    def do(cluster: Cluster) -> str:
        cluster.create_vector(VectorSpec("v", update="scheduler.refuses"))
        ask(cluster)
        return "completed"

    with pytest.raises(RemoteError, match=r"test_scheduler\.py:"):
        simulate(do, Worker)


# Vectors.


def test_a_second_vector_of_a_name_is_refused() -> None:
    def schedule(cluster: Cluster) -> None:
        wait = cluster.node.wait
        first = cluster.create_vector(VectorSpec("a", "float64", 1, 100))
        wait(first.push(SEVEN, np.ones(1)))
        for name in ("a", "b.c"):
            with pytest.raises(InputError, match=f"vector '{name}'"):
                cluster.create_vector(VectorSpec(name))
        second = cluster.create_vector(VectorSpec("b", "float64", 1, 100))
        assert first.number != second.number
        assert wait(first.pull(SEVEN)) == [1.0] and wait(second.pull(SEVEN)) == [0.0]

    simulate(schedule, Worker)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 10, 1 << 18])
def test_an_export_in_pieces_gives_every_row_once_in_key_order(
    monkeypatch: pytest.MonkeyPatch, dense: bool, limit: int
) -> None:
    rng = np.random.default_rng(limit)
    keys = np.flatnonzero(rng.random(100) < 0.4).astype(np.uint64)
    rows = rng.integers(0, 3, (len(keys), 2))  # many of them zero
    there = rows.any(axis=1)

    def schedule(cluster: Cluster) -> tuple[list[Any], str]:
        vector = cluster.create_vector(VectorSpec("v", "int64", 2, 100, dense=dense))
        cluster.node.wait(vector.push(keys, rows))
        found = list(cluster.export(vector))
        digest = cluster.digest(vector)
        monkeypatch.setattr(export, "EXPORT_ROWS", 1 << 18)
        assert digest == cluster.digest(vector), "whatever the pieces"
        return found, digest

    digests = set()
    for servers in (1, 3):
        monkeypatch.setattr(export, "EXPORT_ROWS", limit)
        found, digest = simulate(schedule, Worker, servers=servers)
        digests.add(digest)
        assert np.array_equal(np.concatenate([k for k, _ in found]), keys[there])
        assert np.array_equal(np.concatenate([r for _, r in found]), rows[there])
        assert max(len(k) for k, _ in found) <= limit
        assert len(found) >= len(keys) / limit
    assert len(digests) == 1


# Clocks.


def save(cluster: Cluster, folder: Path, step: int) -> Path:
    """Write the servers' shards as a checkpoint of their own."""
    path = checkpoint.begin(folder, step)
    held = cluster.shards_by_host()
    hosts = cluster.some([rank for rank, _ in held])
    hosts.call(
        "snapshot",
        {"folder": str(path)},
        each=[{"shards": each[1], "number": n} for n, each in enumerate(held)],
    )
    checkpoint.commit(path, hosts.call("written"), {"step": step})
    return path


def clock(folder: Path) -> RangedClock:
    """Put the servers' clocks of a checkpoint together; no two of them may speak of one key."""
    whole = RangedClock()
    spoken: list[KeyRange] = []
    for part in loading.load_clocks(folder, "v"):
        assert part.nodes() == (AGGREGATE,)
        spoken += [keys for keys, time in part.entries(AGGREGATE) if time != NOTHING]
        whole.merge(part)
    spoken.sort()
    assert all(left.end <= right.begin for left, right in itertools.pairwise(spoken))
    return whole


def test_rounds_move_the_clock_of_their_ranges_and_survive_another_layout(tmp_path: Path) -> None:
    def train(cluster: Cluster) -> Path:
        cluster.create_vector(VectorSpec("v", "float64", 1, 100, aggregate=True))
        cluster.workers.call("rounds", {"numbers": [0, 1, 2, 3], "begin": 0, "end": 60})
        cluster.workers.call("rounds", {"numbers": [4], "begin": 20, "end": 40})
        return save(cluster, tmp_path, 1)

    def resume(cluster: Cluster) -> tuple[Path, Path]:
        cluster.create_vector(VectorSpec("v", "float64", 1, 100, aggregate=True))
        cluster.servers.call("restore", {"folder": str(first)})
        kept = save(cluster, tmp_path, 2)
        cluster.workers.call("rounds", {"numbers": [5], "begin": 0, "end": 100})
        return kept, save(cluster, tmp_path, 3)

    first = simulate(train, Worker, servers=3, workers=2)
    expected = [(KeyRange(0, 20), 3), (KeyRange(20, 40), 4), (KeyRange(40, 60), 3)]
    assert list(clock(first).entries(AGGREGATE, KeyRange(0, 60))) == expected
    assert clock(first).get(KeyRange(60, 100), AGGREGATE) == NOTHING
    for servers in (1, 2, 4):
        kept, later = simulate(resume, Worker, servers=servers, workers=2)
        assert clock(kept) == clock(first)
        assert list(clock(later).entries(AGGREGATE, KeyRange(0, 100))) == [(KeyRange(0, 100), 5)]


@pytest.mark.parametrize(
    ("step", "state", "what"),
    [
        (1, {"deep": {"blob": b"x"}}, r"state\.deep\.blob is a bytes"),
        (1, None, "state None is not a dict"),
        (1.5, {}, "step 1.5 is not an integer"),
        (-1, {}, "step -1 is not an integer, at least 0"),
    ],
)
def test_a_checkpoint_that_could_not_be_read_back_is_refused_where_it_is_asked_for(
    step: Any, state: Any, what: str
) -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises(UsageError, match=what):
            cluster.checkpoint(step, state)

    simulate(schedule, Worker)


def test_rounds_of_different_ranges_with_one_number_are_separate() -> None:
    # Two blocks take the same round number at once, as when a number counts passes over the blocks.
    class Blocks(Worker):
        def both(self) -> None:
            vector = self.context.vectors["v"]
            blocks = [KeyRange(0, 30), KeyRange(30, 100)]
            if self.context.index:
                blocks.reverse()
            keys = {block: np.array([block.begin + 1], np.uint64) for block in blocks}
            one = np.full(1, 1.0 + self.context.index)
            self.node.wait_all([vector.push(keys[b], one, within=b, round=0) for b in blocks])

    def schedule(cluster: Cluster) -> list[float]:
        vector = cluster.create_vector(VectorSpec("v", "float64", 1, 100, aggregate=True))
        cluster.workers.call("both")
        found: list[float] = cluster.node.wait(vector.pull(np.array([1, 31], np.uint64))).tolist()
        return found

    assert simulate(schedule, Blocks, servers=1, workers=2) == [3.0, 3.0]


def test_training_in_several_phases_adds_up() -> None:
    def schedule(cluster: Cluster) -> tuple[list[float], float]:
        def spend(seconds: float) -> float:
            until = cluster.node.van.now() + seconds
            cluster.node.wait_until(lambda: cluster.node.van.now() >= until)
            return cluster.trained

        found = []
        for _ in range(2):
            with cluster.phase("train"):
                found.append(spend(1.0))
            # This is no training.
            found.append(spend(2.0))
        return found, cluster.seconds["train"]

    found, seconds = simulate(schedule, lambda context: None)
    assert found == pytest.approx([1.0, 1.0, 2.0, 2.0], abs=0.01) and seconds == pytest.approx(2.0, abs=0.01)
