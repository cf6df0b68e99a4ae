"""Newton steps between passes: how many passes they save, and that F never rises, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, Outcome, make, objective, optimum, run_twin

from mpips.jobs.sparse_lr import control, newton, quadratic
from mpips.jobs.sparse_lr.newton import Newton
from mpips.transport.network_faults import Fault, random_delays

SEQUENTIAL = {"model": "sequential"}
BOUNDED = {"model": "bounded", "tau": 4}


@pytest.fixture(scope="module")
def correlated(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "correlated", n=200, m=40)


@pytest.fixture(scope="module")
def best(correlated: DataSet) -> float:
    return optimum(correlated.x, correlated.y, 1.0)


def is_optimal(outcome: Outcome, data: DataSet, best: float, above: float = 1.001) -> None:
    found = objective(outcome.weights(data.keys), data.x, data.y, 1.0)
    assert outcome.metrics["objective"] == pytest.approx(found, rel=1e-9)
    assert outcome.metrics["objective"] <= above * best
    assert (np.diff(outcome.passes()) <= 1e-8 * best).all(), "the objective rose by more than its rounding"


@pytest.mark.parametrize("consistency", [SEQUENTIAL, BOUNDED])
@pytest.mark.parametrize("kkt", [True, False])
def test_steps_save_passes(correlated: DataSet, best: float, consistency: dict[str, Any], kkt: bool) -> None:
    passes = []
    for steps in (True, False):
        outcome = run_twin(
            correlated,
            2,
            3,
            consistency=consistency,
            settings={"newton": steps, "kkt": kkt, "target": 1.001 * best},
        )
        is_optimal(outcome, correlated, best)
        passes.append(outcome.metrics["passes"])
    assert passes[0] < 0.7 * passes[1]


def test_a_step_that_is_far_too_long_is_shortened_or_undone(
    correlated: DataSet, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, calls = quadratic.Model.weights, [0]

    def far(self: quadratic.Model, length: float) -> Any:
        calls[0] += 1
        w = weights(self, length)
        return w + 1000.0 * np.sign(w)

    monkeypatch.setattr(quadratic.Model, "weights", far)
    is_optimal(run_twin(correlated, 2, 3), correlated, best)
    assert calls[0] >= 3


def test_steps_become_rare_where_they_do_not_pay() -> None:
    rule, ctl, steps = Newton(), control.start(100.0), []
    for done in range(1, 40):
        ctl = ctl._replace(objectives=(*ctl.objectives, 100.0 - done))
        if rule.due(ctl):
            steps.append(done)
            ctl = rule.taken(ctl, control.Choice(ctl.objectives[-1] - 0.4, None, "kept"))
            ctl = control.corrected(ctl, 100.0 - done)
    assert steps == [3, 5, 9, 17, 25, 33]
    ctl = rule.taken(ctl, control.Choice(ctl.objectives[-1] - 0.6, None, "kept"))
    assert ctl.newton_at == len(ctl.objectives)


def test_with_a_delay_a_step_may_follow_the_first_pass() -> None:
    rule, ctl = newton.DELAYED, control.start(100.0)
    assert not rule.due(ctl)
    assert rule.due_next(ctl), "the scheduler must know ahead which pass is the last before a rest"
    ctl = rule.taken(ctl._replace(objectives=(100.0, 30.0)), control.Choice(25.0, None, "kept"))
    assert not rule.due(ctl)
    # It gained less than half as much as the pass.
    assert not rule.due_next(ctl)
    assert rule.due_next(ctl._replace(objectives=(100.0, 25.0, 20.0)))


def test_no_steps_are_taken_without_them_or_with_exact_sums(
    correlated: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a Newton step was taken")

    monkeypatch.setattr(Newton, "taken", fail)
    settings = {"passes": 6}
    run_twin(correlated, 1, 2, settings={**settings, "newton": False})
    run_twin(correlated, settings=settings, layout={"servers": 1, "workers": 2, "exact_sums": True})


@pytest.mark.parametrize("consistency", [SEQUENTIAL, BOUNDED])
@pytest.mark.parametrize("seed", range(3))
def test_a_worker_or_server_is_lost_during_a_step(
    correlated: DataSet, best: float, monkeypatch: pytest.MonkeyPatch, consistency: dict[str, Any], seed: int
) -> None:
    rng, network = np.random.default_rng(seed), []
    minimise = quadratic.minimise
    # With a delay local steps come first.
    monkeypatch.setattr(control, "start", lambda f: control.Control((f,), sweeps=0))

    def watched(calls: quadratic.Calls, effort: quadratic.Effort) -> quadratic.Minimum:
        network.append("step")
        return minimise(calls, effort)

    monkeypatch.setattr(newton.quadratic, "minimise", watched)
    at = float(rng.uniform(0.02, 0.25))
    faults = [Fault("kill", (4, 1, 5)[seed], at=at)]
    outcome = run_twin(
        correlated, 2, 3, delays=random_delays(seed, delay=0.002), seed=seed, consistency=consistency,
        network={"spares": 0, "replicas": 1, "faults": faults},
    )  # fmt: skip
    assert network
    assert outcome.metrics["objective"] <= 1.0015 * best


def test_the_weights_of_a_step_are_the_same_bits_on_any_number_of_servers(
    correlated: DataSet, tmp_path: Path
) -> None:
    outcomes = [run_twin(correlated, servers, 3) for servers in (1, 3)]
    assert len({each.sha for each in outcomes}) == 1
