"""Failed requests of a program are always reported, whether it waits for them or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips import Cluster, Context, KeyRange, VectorSpec
from mpips.errors import RemoteError, ShardLost, UsageError
from mpips.rank.simulation import simulate
from mpips.storage.updates import update
from mpips.tasks.task import Task
from mpips.transport.network_faults import Fault, random_delays
from mpips.worker.worker import at_once

KEYS = np.arange(100, dtype=np.uint64)


@update("settling.refuses")
def refuses(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Raise an error for rows with a negative number, else add."""
    if rows.size and rows.min() < 0:
        raise ValueError("a negative row")
    values[slots] += rows


class Worker:
    """Pushes, and waits or not."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.pushes: list[Task] = []

    def push(self, value: float, times: int = 1) -> None:
        vector = self.context.vectors["v"]
        self.pushes = [vector.push(KEYS, np.full(100, value)) for _ in range(times)]

    def chain(self, value: float) -> None:
        vector = self.context.vectors["v"]
        first = vector.push(KEYS, np.full(100, value))
        first.then(lambda _: self.pushes.append(vector.push(KEYS, np.ones(100), after=[first])))

    def caught(self) -> str:
        task = self.context.vectors["v"].push(KEYS, np.full(100, -1.0))
        try:
            task.result()
        except RemoteError as error:
            return str(error)
        return ""

    def pulled(self) -> dict[str, Any]:
        vector, seen = self.context.vectors["v"], []
        pushed = vector.push(KEYS, np.ones(100))
        task = vector.pull(KeyRange(0, 3), after=[pushed]).then(
            lambda done: seen.append(done.result().tolist())
        )
        early = task.done
        return {"early": early, "rows": task.result().tolist(), "seen": seen, "again": task.result() is task.result(),
                "push": pushed.result()}  # fmt: skip

    def breaks(self) -> None:
        def broken(_: Task) -> None:
            raise KeyError("in a callback")

        self.context.vectors["v"].push(KEYS, np.ones(100)).then(broken)

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

    @at_once
    def soon(self, value: float) -> str:
        self.push(value)
        return "done"

    def nothing(self) -> None:
        pass


def run(do: Callable[[Cluster], Any], **how: Any) -> Any:
    """Run a program on a vector `v` whose servers refuse negative rows."""

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("v", extent=100, update="settling.refuses"))
        return do(cluster)

    return simulate(schedule, Worker, **{"servers": 2, "workers": 2, **how})


def line(text: str) -> int:
    """Return the line of this file that has a text."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, each in enumerate(lines, 1) if text in each)


PUSHED = f"{__file__}:{line('self.pushes = [vector.push')}"


def test_a_push_that_fails_and_without_a_wait_for_it_fails_its_call_and_names_its_line() -> None:
    with pytest.raises(RemoteError) as raised:
        run(lambda cluster: cluster.workers.call("push", {"value": -1.0}))
    told = str(raised.value)
    assert "ValueError: a negative row" in told and PUSHED in told
    assert "push of vector v" in told and "(worker " in told
    assert (
        f'test_settling.py", line {line("raise ValueError(")}' in raised.value.trace
    )  # the update's own line


def test_a_result_is_waited_for_and_stays() -> None:
    """A push has none; a callback gets the result of its finished task at once."""
    (found,) = run(lambda cluster: cluster.workers.call("pulled"), workers=1)
    assert found == {"early": False, "rows": [1.0] * 3, "seen": [[1.0] * 3], "again": True, "push": None}


def test_the_result_of_a_call_is_its_replies() -> None:
    replies = run(
        lambda cluster: [reply.meta for reply in cluster.workers.start("push", {"value": 1.0}).result()]
    )
    assert len(replies) == 2


def test_a_call_has_settled_when_it_returns() -> None:
    def do(cluster: Cluster) -> float:
        cluster.workers.call("push", {"value": 1.0, "times": 50}, only=[0])
        found = cluster.node.wait(cluster.vectors["v"].pull(KeyRange(0, 100)))
        return float(found.sum())

    assert run(do, delays=random_delays(3, delay=0.01)) == 5000.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), at_fault=st.booleans())
def test_what_callbacks_issue_belongs_to_the_call(seed: int, at_fault: bool) -> None:
    def do(cluster: Cluster) -> float:
        cluster.workers.call("chain", {"value": -1.0 if at_fault else 1.0}, only=[0])
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    if at_fault:
        with pytest.raises(RemoteError, match="a negative row"):
            run(do, seed=seed)
    else:
        assert run(do, seed=seed, delays=random_delays(seed, delay=0.01)) == 200.0


def test_a_failure_that_the_program_has_handled_does_not_fail_the_call() -> None:
    told = run(lambda cluster: cluster.workers.call("caught", only=[0]))
    assert "a negative row" in told[0] and f":{line('np.full(100, -1.0)')}" in told[0]


def test_a_callback_that_fails_without_a_wait_fails_the_call() -> None:
    with pytest.raises(RemoteError, match="in a callback"):
        run(lambda cluster: cluster.workers.call("breaks"))


def test_a_call_that_runs_at_once_answers_when_its_pushes_are_applied_or_have_failed() -> None:
    def do(cluster: Cluster) -> Any:
        said = cluster.workers.call("soon", {"value": 2.0})
        return said, float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    assert run(do, delays=random_delays(5, delay=0.01)) == (["done", "done"], 400.0)
    with pytest.raises(RemoteError) as raised:
        run(lambda cluster: cluster.workers.call("soon", {"value": -2.0}))
    assert PUSHED in str(raised.value)


def test_a_failure_of_an_immediate_call_does_not_fail_the_present_call() -> None:
    def do(cluster: Cluster) -> Any:
        long = cluster.workers.start("push", {"value": 1.0, "times": 100})
        with pytest.raises(RemoteError, match="a negative row"):
            cluster.workers.call("soon", {"value": -1.0})
        cluster.node.wait(long)
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    assert run(do, delays=random_delays(7, delay=0.01)) == 100 * 100 * 2.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda cluster: cluster.vectors["v"].push(KEYS, np.full(100, -1.0)),
        lambda cluster: cluster.workers.start("push", {"value": -1.0}),
        lambda cluster: cluster.servers.start("no such function", vector=cluster.vectors["v"]),
    ],
    ids=["push", "call", "function"],
)
def test_failed_tasks_of_the_scheduler_are_reported_at_the_end(ask: Callable[[Cluster], Any]) -> None:
    def do(cluster: Cluster) -> str:
        ask(cluster)
        return "completed"

    with pytest.raises(RemoteError, match=r"test_settling\.py:"):
        run(do)


def test_a_call_after_one_that_failed_is_its_own() -> None:
    def do(cluster: Cluster) -> Any:
        with pytest.raises(RemoteError):
            cluster.workers.call("push", {"value": -1.0, "times": 5})
        return cluster.workers.call("nothing")

    assert run(do) == [{}, {}]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("unsorted", "vector v: keys must be sorted and unique"),
        ("rows", "vector v: 7 rows for 100 keys"),
        ("type", "vector v: rows of float32, but its update 'settling.refuses' takes float64"),
        ("listed", "vector v: rows of int64"),
        ("width", r"vector v: rows of shape \(100, 2\), but its update 'settling.refuses' takes \(100, 1\)"),
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
        cluster.create_vector(VectorSpec("sums", extent=100, aggregate=True))
        cluster.workers.call("wrong", {"how": how})

    with pytest.raises(RemoteError, match=rf"rank 2 \(worker 0 on .*\): {why}") as raised:
        run(do, workers=1, servers=1)
    said = raised.value
    place = line(f'"{how}": lambda')
    assert said.is_input and said.is_usage and f"(at {__file__}:{place})" in said.text


def test_the_scheduler_gets_the_same_error() -> None:
    with pytest.raises(UsageError, match="there is no vector 'w'; there are: v"):
        run(lambda cluster: cluster.vectors["w"])
    with pytest.raises(UsageError, match="'v' exists already"):
        run(lambda cluster: cluster.create_vector(VectorSpec("v")))
    with pytest.raises(UsageError, match="dtype 'float16' is none of"):
        run(lambda cluster: cluster.create_vector(VectorSpec("x", dtype="float16")))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), after=st.integers(20, 400))
def test_a_server_that_dies_meanwhile_loses_no_push_without_a_wait_for_it(seed: int, after: int) -> None:
    def do(cluster: Cluster) -> float:
        for _ in range(3):
            cluster.workers.call("push", {"value": 1.0, "times": 10})
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    faults = [Fault("kill", 2, after_messages=after)]
    delays = random_delays(seed, delay=0.002)
    assert run(do, servers=3, replicas=1, seed=seed, delays=delays, faults=faults) == 2 * 3 * 10 * 100


def test_a_server_without_a_replacement_ends_what_waits_for_it() -> None:
    with pytest.raises(ShardLost):
        run(
            lambda cluster: cluster.workers.call("push", {"value": 1.0, "times": 200}),
            servers=2,
            delays=random_delays(1, delay=0.01),
            faults=[Fault("kill", 2, after_messages=60)],
        )
