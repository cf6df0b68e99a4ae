"""The time limit of a run: when to stop, computed, in simulated clusters, and once with real ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished
from hypothesis import given
from hypothesis import strategies as st
from simulated import simulate

from mpips.config.job_file import CheckpointSpec
from mpips.errors import StopOverdue
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.stopping import enforce, watch
from mpips.scheduler.time_limit import MOST, Durations, end_of, reserve
from mpips.transport.network_faults import Fault
from mpips.worker.worker import Context

seconds = st.floats(0, 1e6)


@dataclass(frozen=True)
class Job:
    """The part of a job that the time limit uses."""

    time_limit: float = 0.0
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)


@pytest.mark.parametrize(
    ("limit", "allocation", "end"),
    [(0, None, None), (50, None, 150), (0, 400, 400), (50, 400, 150), (500, 400, 400)],
)
def test_the_end_is_that_of_limit_or_allocation(
    limit: float, allocation: float | None, end: float | None
) -> None:
    assert end_of(Job(limit), 100, allocation) == end  # type: ignore[arg-type]
    assert end_of(Job(limit, CheckpointSpec(before_end=0)), 100, allocation) is None  # type: ignore[arg-type]


def test_the_reserve_covers_the_last_steps_and_the_longest_checkpoint() -> None:
    durations = Durations()
    assert (durations.step, durations.checkpoint) == (0, 0)
    for now in (100, 130, 132, 135):
        durations.stepped(now)
    assert durations.step == 30, "what was before the first step's end is not a step"
    for now in range(136, 144):
        durations.stepped(now)
    assert durations.step == 1, "the slow one is long ago"
    durations.saved(4)
    durations.saved(2)
    assert durations.checkpoint == 4
    assert reserve(60, 3600, durations) == 60 + 1 + 8
    assert reserve(60, 100, durations) == 25 + 1 + 8
    durations.under_way = 2
    assert reserve(60, 3600, durations) == 60 + 2 + 8


@given(seconds, seconds, st.lists(seconds, max_size=12), st.lists(seconds, max_size=3))
def test_there_is_always_time_for_a_step_and_two_checkpoints(
    before_end: float, whole: float, steps: list[float], checkpoints: list[float]
) -> None:
    durations, now = Durations(), 0.0
    durations.stepped(now)
    for step in steps:
        now += step
        durations.stepped(now)
    for each in checkpoints:
        durations.saved(each)
    left = reserve(before_end, whole, durations)
    assert left == pytest.approx(
        min(before_end, MOST * whole) + max(steps[-8:], default=0) + 2 * max(checkpoints, default=0)
    )


class Worker:
    """Sleeps in simulated time."""

    def __init__(self, context: Context) -> None:
        self.node = context.node

    def work(self, seconds: float) -> None:
        end = self.node.van.now() + seconds
        self.node.wait_until(lambda: self.node.van.now() >= end)


def run(end: float, step: float, **how: Any) -> tuple[int, float, str | None]:
    """Run steps until it is told to stop; return how many they were, when, and why."""
    how.setdefault("job", Job(checkpoint=CheckpointSpec(before_end=8.0)))

    def schedule(cluster: Cluster) -> tuple[int, float, str | None]:
        started = cluster.decide(lambda: 0.0)
        watch(cluster, started, cluster.decide(lambda: end))
        for number in range(1, 100):
            cluster.workers.call("work", {"seconds": step})
            if cluster.due(number):
                break
        return number, cluster.node.van.wall(), cluster.stop

    found: tuple[int, float, str | None] = simulate(schedule, Worker, horizon=200.0, **how)
    return found


def test_a_run_stops_before_its_end_with_time_for_one_more_step() -> None:
    steps, at, why = run(end=40.0, step=3.0)
    assert (steps, why) == (10, "the end of its time, 11 s before it")  # asked at 29, in the tenth step
    assert 30 <= at < 31
    slow, at, _ = run(end=40.0, step=6.0)
    assert slow == 5 and 30 <= at < 31


def test_the_reserve_is_at_most_a_quarter_of_a_short_time() -> None:
    steps, at, _ = run(end=8.0, step=1.0)
    assert steps == 5 and at < 6, "of 8 s a quarter is kept, and a step"


def test_a_successor_stops_as_its_predecessor_would_have() -> None:
    faults = [Fault("kill", 0, at=10.0)]
    steps, at, why = run(end=40.0, step=3.0, schedulers=2, faults=faults)
    assert steps == 10 and 30 <= at < 31.5
    assert why is not None and why.startswith("the end of its time")


@pytest.mark.parametrize(
    ("grace", "end", "at"), [(5.0, None, 25.0), (0.0, 40.0, 35.0), (5.0, 24.0, 20.0), (0.0, None, 70.0)]
)
def test_a_run_that_cannot_stop_in_time_reports_it_and_ends(
    grace: float, end: float | None, at: float
) -> None:
    """It is asked at 20 s, in a step that takes until 70 s."""

    def schedule(cluster: Cluster) -> tuple[float, str]:
        van = cluster.node.van

        def ask() -> None:
            if van.wall() >= 20.0 and cluster.orders.stop is None:
                cluster.orders.stop = "SIGUSR1"

        cluster.node.on_tick.append(ask)
        enforce(cluster, end)
        said = ""
        try:
            cluster.workers.call("work", {"seconds": 70.0})
        except StopOverdue as error:
            said = str(error)
        cluster.orders.stop = None
        return van.wall(), said

    job = Job(checkpoint=CheckpointSpec(grace=grace))
    ended, said = simulate(schedule, Worker, tick=0.02, horizon=200.0, job=job)
    assert ended == pytest.approx(at, abs=0.1)
    if at < 70:
        assert said.startswith("asked to stop by SIGUSR1") and "no answer from rank 2 (worker 0)" in said
    else:
        assert said == ""


@pytest.mark.ranks
@pytest.mark.once
def test_a_run_with_a_limit_ends_as_stopped_and_continues(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    job = Path(__file__).parents[1] / "jobs" / "programs" / "job.toml"
    limit = ("--set", "job.time_limit=3", "--set", "failing.rounds=0", "--run-dir", tmp_path / "run")
    done = run_mpips("run", job, *limit, cwd=tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert done.code == 85, done.stderr
    assert (result["status"], result["exit_code"]) == ("stopped", 85)
    assert result["stopped_by"].startswith("the end of its time")
