"""The dependency graphs of the consistency models, and the executions that they admit."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from mpips.consistency import (
    Bounded,
    Consistency,
    ConsistencySpec,
    bounded,
    eventual,
    from_spec,
    push_pull,
    sequential,
    unmet,
)

times = st.integers(0, 40)


@given(times, times)
def test_bounded_waits_for_exactly_the_tasks_that_are_too_old(time: int, tau: int) -> None:
    assert set(bounded(tau)(time)) == {earlier for earlier in range(time) if earlier <= time - tau - 1}


@given(times)
def test_the_ends_of_bounded_are_sequential_and_eventual(time: int) -> None:
    assert bounded(0)(time) == sequential(time) == range(time)
    assert not eventual(time)
    assert bounded(10**9)(time) == eventual(time)


def run(model: Consistency, tasks: int, rng: random.Random) -> tuple[int, list[int]]:
    """Issue tasks in order, finish them in any order; return the most at once and that order."""
    running, order, most, time = list[int](), list[int](), 0, 0
    while time < tasks or running:
        if time < tasks and not unmet(model(time), running) and (not running or rng.random() < 0.7):
            running.append(time)
            time += 1
            most = max(most, len(running))
        elif running:
            done = running.pop(rng.randrange(len(running)))
            order.append(done)
        else:
            raise AssertionError(f"task {time} waits for tasks that nobody runs")
    return most, order


@given(st.integers(0, 6), st.randoms(use_true_random=False))
def test_at_most_tau_plus_one_tasks_run_at_once(tau: int, rng: random.Random) -> None:
    most, order = run(bounded(tau), 30, rng)
    assert most <= tau + 1
    assert sorted(order) == list(range(30))
    assert all(abs(position - time) <= 30 and time <= position + tau for position, time in enumerate(order))


def test_sequential_keeps_the_order_and_eventual_does_not() -> None:
    assert run(sequential, 20, random.Random(1)) == (1, list(range(20)))
    assert run(eventual, 20, random.Random(1))[0] > 3


def test_tau_changes_in_flight() -> None:
    model = bounded(1)
    assert unmet(model(5), [3, 4]) == [3]
    model.tau = 2
    assert unmet(model(5), [3, 4]) == []
    model.tau = 0
    assert unmet(model(5), [3, 4]) == [3, 4]
    with pytest.raises(ValueError, match="tau must be at least 0, got -1"):
        model.tau = -1
    assert model.tau == 0
    assert repr(model) == "bounded(0)"
    with pytest.raises(ValueError, match="tau"):
        bounded(-3)


def test_a_rule_of_the_users_own() -> None:
    def every_third(time: int) -> Collection[int]:
        """Wait for the tasks of the same remainder."""
        return {earlier for earlier in range(time) if earlier % 3 == time % 3}

    assert unmet(every_third(6), [1, 4, 5]) == []
    assert unmet(every_third(7), [1, 4, 5]) == [1, 4]
    assert run(every_third, 30, random.Random(2))[0] <= 3


def test_from_spec() -> None:
    assert from_spec(ConsistencySpec("sequential")) is sequential
    assert from_spec(ConsistencySpec("eventual")) is eventual
    model = from_spec(ConsistencySpec("bounded", 4))
    assert isinstance(model, Bounded)
    assert model.tau == 4
    assert from_spec(ConsistencySpec())(7) == sequential(7)


def test_pushes_and_pulls_have_delays_of_their_own() -> None:
    models = push_pull(ConsistencySpec("bounded", tau=3, pull_tau=0))
    assert models.push(10) == range(7)
    assert models.pull(10) == range(10)
    models = push_pull(ConsistencySpec("bounded", tau=3, push_tau=1))
    assert models.push(10) == range(9)
    assert models.pull(10) == range(7)
    assert push_pull(ConsistencySpec("eventual")) == (eventual, eventual)
    assert push_pull(ConsistencySpec("sequential")) == (sequential, sequential)


@pytest.mark.parametrize(
    ("table", "sequential_too"),
    [
        ({}, True),
        ({"model": "sequential"}, True),
        ({"tau": 2}, False),
        ({"pull_tau": 1}, False),
        ({"push_tau": 0}, True),
        ({"model": "eventual"}, False),
    ],
)
def test_sequential_specifications(table: dict[str, Any], sequential_too: bool) -> None:
    assert ConsistencySpec(**table).is_sequential == sequential_too


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"tau": -1}, "tau must be at least 0, got -1"),
        ({"push_tau": -2}, "push_tau must be at least 0, got -2"),
        ({"model": "sequential", "tau": 4}, 'tau is 4, but model = "sequential" has no delay: use "bounded"'),
        (
            {"model": "eventual", "pull_tau": 1},
            'pull_tau is 1, but model = "eventual" has no delay: use "bounded"',
        ),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        ConsistencySpec(**table)
