"""Simulated runs on failing nodes, compared with Daly's formula and with simple cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.planning.failures import FailingRun, lifetime, simulate_once, young_interval

MORTAL = FailingRun(36_000.0, 100, 360_000.0, survives=False, recovery=60.0, checkpoint=20.0, every=400.0)


def daly(run: FailingRun) -> float:
    """The expected end of a run that goes back to its checkpoints (Daly 2006, equation 13; recoveries may fail too)."""
    mean = run.mtbf / run.nodes
    segments = run.seconds / run.every
    return mean * math.exp(run.recovery / mean) * math.expm1((run.every + run.checkpoint) / mean) * segments


@pytest.mark.parametrize("every", [100.0, 400.0, 1200.0, 3600.0])
@pytest.mark.parametrize("mtbf", [90_000.0, 360_000.0])
def test_the_mean_run_time_is_that_of_dalys_formula(every: float, mtbf: float) -> None:
    run = MORTAL._replace(every=every, mtbf=mtbf)
    ends = [simulate_once(run, np.random.default_rng([1, number])) for number in range(150)]
    failures, seconds, _ = np.array(ends).T
    error = 4 * seconds.std() / math.sqrt(len(seconds))
    assert abs(seconds.mean() + run.checkpoint - daly(run)) < error  # that counts a checkpoint at the end too
    assert failures.mean() == pytest.approx(seconds.mean() * run.nodes / run.mtbf, rel=0.05)


def test_youngs_interval_is_nearly_the_best() -> None:
    chosen = young_interval(MORTAL)
    assert chosen == pytest.approx(math.sqrt(2 * 20.0 * 3600.0))
    ends = {each: lifetime(MORTAL._replace(every=each)).seconds for each in (chosen / 5, chosen, chosen * 5)}
    assert min(ends, key=lambda each: ends[each]) == chosen


def test_a_run_that_survives_pays_for_each_failure_once() -> None:
    run = FailingRun(36_000.0, 100, 360_000.0, survives=True, recovery=2.0)
    for number in range(50):
        failures, end, _ = simulate_once(run, np.random.default_rng(number))
        assert end <= 36_000.0 + 2.0 * failures + 1e-6  # less where one falls into the recovery of another
    found = lifetime(run)
    assert found.failures == pytest.approx(10.0, rel=0.1)
    assert found.seconds == pytest.approx(36_020.0, abs=2.0)
    assert found.seconds < found.most < 36_050.0


def test_without_failures_there_are_only_the_checkpoints() -> None:
    never = MORTAL._replace(mtbf=1e15)
    found = lifetime(never)
    assert (found.failures, found.seconds) == (
        0.0,
        pytest.approx(36_000.0 + 89 * 20.0),
    )  # none at the very end
    assert found.most == found.seconds


def test_a_run_that_fails_faster_than_it_recovers_never_ends() -> None:
    assert lifetime(FailingRun(100.0, 1000, 1000.0, False, 60.0, 2.0, 10.0)).seconds == math.inf


def test_a_short_run_may_take_much_longer_than_its_work() -> None:
    run = FailingRun(0.5, 1000, 3.6e4, survives=False, recovery=60.0, checkpoint=1.0, every=math.inf)
    ends = [simulate_once(run, np.random.default_rng(number))[1] for number in range(400)]
    assert 60.0 < max(ends) < 1000.0
    assert min(ends) == 0.5


@pytest.mark.parametrize("mtbf", [1e-300, 1.0, 3600.0])
def test_a_hopeless_run_is_given_up_soon(mtbf: float) -> None:
    failures, end, events = simulate_once(
        FailingRun(1e9, 100_000, mtbf, False, 60.0, 1.0, 10.0), np.random.default_rng(0)
    )
    assert (end, events) == (math.inf, 200_000)
    assert failures >= 60_000


@settings(max_examples=50)
@given(st.floats(1, 1e5), st.integers(1, 1000), st.floats(1e3, 1e9), st.booleans(), st.integers(0, 2**32))
def test_a_run_never_ends_early_and_is_determined_by_its_seed(
    seconds: float, nodes: int, mtbf: float, survives: bool, seed: int
) -> None:
    run = FailingRun(seconds, nodes, mtbf, survives, 1.0, 0.5, seconds / 7)
    ends = [simulate_once(run, np.random.default_rng(seed)) for _ in range(2)]
    assert ends[0] == ends[1]
    assert ends[0][1] >= seconds * (1 - 1e-9)
