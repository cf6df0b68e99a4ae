"""Local steps: each worker's minimum by its own examples, the mean of the minima, and how many sweeps follow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, make, objective, optimum, run_twin

from mpips.jobs.sparse_lr import control, kernels, newton, quadratic
from mpips.jobs.sparse_lr.local_steps import LocalModel
from mpips.jobs.sparse_lr.overlap import OverlapWorker
from mpips.transport.network_faults import random_delays

F8 = kernels.F8
L1 = 2.0
BOUNDED = {"model": "bounded", "tau": 4}


class Part:
    """A worker's examples: its matrix by columns, `loss_terms`, columns, and `derivatives` at the margins of w."""

    def __init__(self, x: F8, y: F8, w: F8) -> None:
        self.x, self.cols = x, np.flatnonzero((x != 0.0).any(axis=0))
        rows = [np.flatnonzero(x[:, j]) for j in self.cols]
        colptr = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)
        values = np.concatenate([x[each, j] for each, j in zip(rows, self.cols, strict=True)])
        self.matrix = colptr, np.concatenate(rows).astype(np.int32), values.astype(np.float32)
        state = kernels.new_state(y.astype(np.float32))
        state[:, kernels.MARGIN] = y * (x @ w)
        kernels.refresh_odds(state)
        self.terms, self.own = np.empty((len(y), 2)), np.empty((len(self.cols), 3))
        quadratic.loss_terms(state, self.terms)
        quadratic.derivatives(*self.matrix, np.arange(len(self.cols)), self.terms, self.own)

    def minimum(self, w: F8, totals: F8, sweeps: int) -> F8:
        """Return this worker's parts of the weights after some sweeps, for all features."""
        every = np.arange(len(self.cols))
        model = LocalModel(self.matrix, self.terms, w[self.cols], L1, every, self.own, totals[self.cols])
        for piece in model.pieces * sweeps:
            piece()
        parts = np.zeros(len(w))
        parts[self.cols] = model.weights()
        return parts


def data(seed: int, n: int = 40, m: int = 9) -> tuple[F8, F8, F8]:
    rng = np.random.default_rng(seed)
    x = np.round(rng.normal(size=(n, m)) * (rng.random((n, m)) < 0.5), 3).astype(np.float32)
    w = rng.normal(size=m) * (rng.random(m) < 0.7)
    return x.astype(np.float64), np.where(rng.random(n) < 0.5, 1.0, -1.0), w


def parts_of(x: F8, y: F8, w: F8, workers: int) -> tuple[list[Part], F8]:
    parts = [Part(x[some], y[some], w) for some in np.array_split(np.arange(len(y)), workers)]
    totals = np.zeros((len(w), 3))
    for part in parts:
        totals[part.cols] += part.own
    return parts, totals


@pytest.mark.parametrize("seed", range(5))
def test_a_single_worker_finds_the_minimum_of_the_second_order_model(seed: int) -> None:
    x, y, w = data(seed)
    (part,), totals = parts_of(x, y, w, 1)
    found = part.minimum(w, totals, 500)
    odds = np.exp(y * (x @ w))
    g, h = -x.T @ (y / (1.0 + odds)), odds / (1.0 + odds) ** 2
    slopes = g + x.T @ (h * (x @ (found - w)))
    # The conditions of optimality of the model with its l1 term.
    at_zero = found == 0.0
    np.testing.assert_allclose(slopes[~at_zero], -L1 * np.sign(found[~at_zero]), atol=1e-6)
    assert (np.abs(slopes[at_zero]) <= L1 + 1e-6).all()
    assert at_zero.any()
    assert (~at_zero).any()


def test_workers_with_the_same_examples_find_what_one_finds() -> None:
    x, y, w = data(1)
    (one,), alone = parts_of(x, y, w, 1)
    part, totals = one, 3.0 * alone
    # The l1 term of three times as many examples weighs a third.
    found = np.zeros(len(w))
    for _ in range(3):
        every = np.arange(len(part.cols))
        model = LocalModel(
            part.matrix, part.terms, w[part.cols], 3.0 * L1, every, part.own, totals[part.cols]
        )
        for piece in model.pieces * 500:
            piece()
        found[part.cols] += model.weights()
    np.testing.assert_allclose(found, one.minimum(w, alone, 500), atol=1e-9)


def test_a_feature_of_one_worker_alone_gets_its_whole_step_and_zeros_stay_zeros() -> None:
    x, y, w = data(2)
    x[20:, 0] = 0.0
    w[0] = 0.0
    x[:, 1] *= 1e-6
    parts, totals = parts_of(x, y, w, 2)
    found = [part.minimum(w, totals, 3) for part in parts]
    assert found[1][0] == 0.0
    # By the curvature of all examples, whose share is the whole.
    assert totals[0, 2] == 1.0
    # With a slope below l1 all workers set it to 0, and so does their sum.
    assert abs(totals[1, 0]) < L1
    assert sum(found)[1] == 0.0


def test_features_without_curvature_stay_where_they_are() -> None:
    x, y, w = data(3)
    w *= 1e5
    parts, totals = parts_of(x, y, w, 2)
    totals[4, 1] = 0.0
    for part in parts:
        part.own[part.cols == 4, 1] = 0.0
    assert sum(part.minimum(w, totals, 2) for part in parts)[4] == pytest.approx(w[4], rel=1e-12)


def report(excess: float, found: float, outcome: str = "kept") -> control.PassReport:
    proposal = control.Proposal(found, excess, np.empty((0, 2)))
    return control.PassReport(proposal, control.Choice(found, None, outcome), 0.0, 10)


def test_sweeps_follow_the_length_of_the_last_step() -> None:
    rule, ctl = newton.DELAYED, control.start(100.0)._replace(objectives=(100.0, 90.0))
    assert rule.due_next(control.start(1.0)), "the first pass has a step already"
    assert ctl.sweeps == 1
    right = rule.taken_locally(ctl, report(0.1, 80.0))
    assert (right.sweeps, right.objectives) == (2, (100.0, 80.0))
    found = [
        [rule.taken_locally(ctl._replace(sweeps=sweeps), report(excess, 80.0)).sweeps for sweeps in (1, 4, 9)]
        for excess in (0.1, -0.3, -0.6)
    ]
    assert found == [[2, 6, 9], [1, 4, 9], [1, 2, 4]]


@pytest.mark.parametrize(
    ("sweeps", "before", "outcome", "following"),
    [
        (2, 100.0, "kept", 3),
        (2, 80.2, "kept", 0),
        (3, 80.2, "kept", 4),
        (2, 100.0, "undone", 0),
        (9, 1e3, "kept", 0),
    ],
)
def test_newton_steps_follow_where_few_sweeps_gain_little_or_the_most_do_not_pay(
    sweeps: int, before: float, outcome: str, following: int
) -> None:
    ctl = control.start(before)._replace(objectives=(before, 80.1), sweeps=sweeps)
    now = newton.DELAYED.taken_locally(ctl, report(0.1, 80.0, outcome))
    assert (now.sweeps, now.newton_at, now.newton_wait) == (following, 2, 1)


@pytest.fixture(scope="module")
def correlated(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "correlated", n=60, m=12)


@pytest.fixture(scope="module")
def best(correlated: DataSet) -> float:
    return optimum(correlated.x, correlated.y, 1.0)


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that has an entry for each local step of each worker."""
    steps, weights = [], LocalModel.weights

    def noted(self: LocalModel) -> Any:
        steps.append(1)
        return weights(self)

    patch.setattr(LocalModel, "weights", noted)
    return steps


def test_a_delay_takes_local_steps_first_and_without_one_there_are_none(
    correlated: DataSet, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = counted(monkeypatch)
    run_twin(correlated, 1, 2, settings={"passes": 4})
    assert not steps
    outcome = run_twin(correlated, 2, 3, consistency=BOUNDED, settings={"target": 1.001 * best})
    assert len(steps) >= 3
    found = objective(outcome.weights(correlated.keys), correlated.x, correlated.y, 1.0)
    assert outcome.metrics["objective"] == pytest.approx(found, rel=1e-9)
    assert found <= 1.001 * best
    assert (np.diff(outcome.passes()) <= 1e-8 * best).all()


def test_a_local_step_that_is_far_too_long_is_undone_and_newton_steps_follow(
    correlated: DataSet, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, newton_steps, minimise = LocalModel.weights, [], quadratic.minimise

    def far(self: LocalModel) -> Any:
        return 30.0 * weights(self)

    def watched(*args: Any) -> Any:
        newton_steps.append(1)
        return minimise(*args)

    monkeypatch.setattr(LocalModel, "weights", far)
    monkeypatch.setattr(quadratic, "minimise", watched)
    outcome = run_twin(correlated, 2, 3, consistency=BOUNDED, settings={"target": 1.001 * best})
    assert newton_steps
    assert outcome.metrics["objective"] <= 1.001 * best
    assert (np.diff(outcome.passes()) <= 1e-8 * best).all()


@pytest.mark.parametrize(("lost", "calls"), [("worker", 2), ("worker", 5), ("scheduler", 2)])
def test_a_rank_is_lost_in_the_middle_of_a_local_step(
    correlated: DataSet, best: float, monkeypatch: pytest.MonkeyPatch, lost: str, calls: int
) -> None:
    steps, derivatives, begun = counted(monkeypatch), OverlapWorker._derivatives, []

    def fatal(self: OverlapWorker, *args: Any) -> Any:
        node = self.context.node
        begun.append(node.rank)
        if len(begun) == calls:
            network = node.van._network  # type: ignore[attr-defined]
            network.kill(node.rank if lost == "worker" else 0)
        return derivatives(self, *args)

    monkeypatch.setattr(OverlapWorker, "_derivatives", fatal)
    outcome = run_twin(
        correlated, 2, 3, delays=random_delays(calls, delay=0.002), seed=calls, consistency=BOUNDED,
        settings={"target": 1.0015 * best},
        network={"spares": 0, "replicas": 1, "schedulers": 2},
        layout={"schedulers": 2, "servers": 2, "workers": 3},
    )  # fmt: skip
    assert len(begun) > calls
    assert (begun[calls - 1] in begun[calls:]) == (lost == "scheduler")
    assert steps
    assert outcome.metrics["objective"] <= 1.0015 * best
