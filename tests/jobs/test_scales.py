"""Values of any scale, and data with little information: the optimum, or one line with the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import F8, DataSet, Outcome, objective, run_twin, svmlight

from mpips.jobs.sparse_lr import evaluate, kernels

KEYS = np.arange(1, 7, dtype=np.uint64)


def scaled(folder: Path, scale: Any, n: int = 80) -> tuple[DataSet, F8]:
    """Make six features of about 1, times `scale`; return them, and what they were multiplied by."""
    rng = np.random.default_rng(0)
    scale = np.broadcast_to(np.asarray(scale, float), (6,))
    x = rng.normal(size=(n, 6)) * (rng.random((n, 6)) < 0.5)
    y = np.where(x @ rng.normal(size=6) + 0.5 * rng.normal(size=n) > 0, 1.0, -1.0)
    x = (x * scale).astype(np.float32).astype(float)
    path = folder / "scaled.svm"
    path.write_text(svmlight(x, y, KEYS))
    return DataSet(path, path, x, y, x, y, KEYS), scale


def optimum(data: DataSet, scale: F8, l1: float) -> float:
    """F by SciPy in float64, over weights of features of about 1, each with a penalty of its own."""
    from scipy.optimize import minimize

    z, penalty = data.x / scale, l1 / scale

    def loss(halves: F8) -> tuple[float, F8]:
        margins = data.y * (z @ (halves[:6] - halves[6:]))
        slope = z.T @ (-data.y / (1.0 + np.exp(margins)))
        return (
            np.logaddexp(0.0, -margins).sum() + np.tile(penalty, 2) @ halves,
            np.concatenate([slope + penalty, penalty - slope]),
        )

    bounds = [(0.0, None)] * 12
    return float(minimize(loss, np.zeros(12), jac=True, bounds=bounds, method="L-BFGS-B", tol=1e-14).fun)


MIXED = [1e19, 1.0, 1e-3, 1e-19, 1e30, 1e-12]
NEAR_LIMITS = [3e37, 1.0, 1e-25, 1e-28, 1e5, 1e17]


@pytest.mark.parametrize(
    ("scale", "l1"),
    [
        (1e19, 1.0), (1e19, 0.0), (3e37, 1.0), (1e-19, 1.0), (1e-19, 0.0), (1e-19, 1e-20), (1e-40, 1.0),
        (MIXED, 1.0), (MIXED, 0.0), (MIXED, 1e-20), (NEAR_LIMITS, 1.0), (NEAR_LIMITS, 0.0), (1.0, 1e30),
    ],
)  # fmt: skip
def test_the_optimum_at_any_scale(tmp_path: Path, scale: Any, l1: float) -> None:
    data, by = scaled(tmp_path, scale)
    best = optimum(data, by, l1)
    outcomes: list[Outcome] = [
        run_twin(data, servers, 2, settings={"l1": l1, "epsilon": 1e-5}) for servers in (1, 3)
    ]
    for outcome in outcomes:
        assert outcome.metrics["objective"] == pytest.approx(best, rel=1e-4)
        weights = outcome.weights(KEYS)
        assert objective(weights, data.x, data.y, l1) == pytest.approx(outcome.metrics["objective"], rel=1e-5)
        assert outcome.metrics["converged"]
    assert outcomes[0].sha == outcomes[1].sha


def test_rows_of_wide_data_survive_the_loss_of_a_worker_and_a_resume(tmp_path: Path) -> None:
    from synthetic import Hooks

    from mpips.checkpoint.manifest import complete
    from mpips.transport.network_faults import Fault

    data, _ = scaled(tmp_path, MIXED)
    settings = {"l1": 1.0, "epsilon": 1e-5}
    plain = run_twin(data, 2, 2, settings=settings)
    struck = run_twin(
        data,
        2,
        2,
        settings=settings,
        network={"faults": [Fault("kill", 4, after_messages=60)], "spares": 1},
    )
    assert any(each["event"] == "workers" for each in struck.log)
    hooks = Hooks(checkpoints=tmp_path / "saved", stop_after=3)
    run_twin(data, 2, 2, settings=settings, hooks=hooks)
    saved = complete(tmp_path / "saved")[-1]
    resumed = [run_twin(data, 1, workers, settings=settings, hooks=Hooks(resume=saved)) for workers in (2, 3)]
    for outcome in (struck, *resumed):
        assert outcome.metrics["objective"] == pytest.approx(plain.metrics["objective"], rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_continues_with_workers_between_which_the_data_are_wide_or_not(
    tmp_path: Path, before: int, after: int
) -> None:
    """One of two workers has but tiny values of a feature, which it pushes as doubles; one has others, too."""
    from synthetic import Hooks

    from mpips.checkpoint.manifest import complete

    files = []
    for name, value in (("large", "1"), ("tiny", "1e-13")):
        lines = [f"{'+-'[row % 3 == 0]}1 1:{value} {2 + row % 7}:1\n" for row in range(50)]
        files.append(tmp_path / name)
        files[-1].write_text("".join(lines))
    best = run_twin(files, 1, 1).metrics["objective"]
    run_twin(files, 1, before, hooks=Hooks(checkpoints=tmp_path / "saved", stop_after=1))
    resumed = run_twin(files, 1, after, hooks=Hooks(resume=complete(tmp_path / "saved")[-1]))
    assert resumed.metrics["objective"] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-31, 1e-40])
def test_weights_beyond_float32_are_refused_with_the_feature(tmp_path: Path, scale: float) -> None:
    data, _ = scaled(tmp_path, [1.0, 1.0, scale, 1.0, 1.0, 1.0])
    with pytest.raises(
        Exception, match=r"values of feature 3 are below 1e-30.*l1 = 0: scale it, or raise l1"
    ):
        run_twin(data, 2, 2, settings={"l1": 0.0})
    run_twin(data, 2, 2, settings={"l1": 1e-9})  # it can weigh nothing


@pytest.mark.parametrize(("scale", "good"), [(1e19, True), (1e-19, True), (MIXED, False)])
def test_exact_sums_take_one_scale_or_are_refused(tmp_path: Path, scale: Any, good: bool) -> None:
    data, by = scaled(tmp_path, scale)
    exact = {"settings": {"l1": 0.0, "epsilon": 1e-5}, "layout": {"exact_sums": True}}
    if not good:
        with pytest.raises(Exception, match=r"\[layout\] exact_sums: the largest values of features go from"):
            run_twin(data, 2, 2, **exact)
        return
    outcomes = [run_twin(data, 2, workers, **exact) for workers in (1, 3)]
    assert outcomes[0].sha == outcomes[1].sha
    assert outcomes[0].metrics["objective"] == pytest.approx(optimum(data, by, 0.0), rel=1e-4)


def test_ordinary_data_is_not_wide() -> None:
    colptr = np.array([0, 2, 3, 4])
    values = np.array([0.0, -2.0, 0.0, 1e-3], np.float32)
    assert kernels.extremes(colptr, values) == (np.float32(1e-3), 2.0)
    assert kernels.extremes(np.zeros(1, np.int64), np.empty(0, np.float32)) == (1.0, 1.0)
    assert kernels.extremes(colptr, np.empty(0, np.float32)) == (1.0, 1.0)  # all are one


@pytest.mark.parametrize("algorithm", ["ftrl", "adagrad", "sgd"])
@pytest.mark.parametrize(("scale", "alpha"), [(1e19, 0.1), (3e37, 1e6), (1.0, 1e6), (MIXED, 0.1)])
def test_online_learners_report_divergence(tmp_path: Path, algorithm: str, scale: Any, alpha: float) -> None:
    data, _ = scaled(tmp_path, scale)
    settings = {"algorithm": algorithm, "alpha": alpha, "batch": 10, "passes": 2}
    with pytest.raises(
        Exception, match=r"training diverged.*diverged\.model\.npz\. Scale features"
    ) as caught:
        run_twin(data, 1, 2, settings=settings)
    assert type(caught.value).__name__ == "InputError"


# --- Little data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl", "adagrad", "sgd"])
@pytest.mark.parametrize(
    ("text", "examples"),
    [("+1 1:1\n", 1), ("+1 1:2\n+1 1:1 2:3\n+1 2:1\n", 3), ("+1\n-1\n", 2), ("+1 1:0\n-1 2:0\n", 2), ("-1 0:1\n", 1)],
)  # fmt: skip
def test_one_example_one_class_and_no_non_zeros(
    tmp_path: Path, algorithm: str, text: str, examples: int
) -> None:
    path = tmp_path / "a.svm"
    path.write_text(text)
    metrics = run_twin(path, 2, 1, test=path, settings={"algorithm": algorithm, "l1": 0.2}).metrics
    assert 0.0 < metrics["objective"] <= examples * np.log(2.0) * (1.0 + 1e-12)
    assert 0.0 <= metrics["accuracy"] <= 1.0


def test_more_workers_than_examples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.svm"
    path.write_text("+1 1:1\n-1 2:1\n")
    with pytest.raises(Exception, match=r"2 examples in .* are too few for 3 workers; use fewer workers"):
        run_twin(path, 1, 3)


# --- What is not proven ----------------------------------------------------------------------------------------------


def test_a_feature_with_one_value_far_beyond_its_others_is_solved_or_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    y = np.where(x @ rng.normal(size=6) + 0.5 * rng.normal(size=200) > 0, 1.0, -1.0)
    for outlier in (1.0, 1e3, 1e8):
        x[3, 0] = -outlier * y[3]
        path = tmp_path / f"{outlier:g}.svm"
        path.write_text(svmlight(x, y, KEYS))
        data = DataSet(path, path, x, y, x, y, KEYS)
        metrics = run_twin(data, 1, 1, settings={"l1": 0.1}).metrics
        said = evaluate.summary(metrics, 0.0)
        assert ("nothing proves that it is near the optimum" in said) == (outlier == 1e8), said
        assert metrics["converged"] == (outlier != 1e8)
        if outlier <= 1e3:
            with np.errstate(over="ignore"):
                best = optimum(data, np.array([outlier, 1, 1, 1, 1, 1]), 0.1)
            assert metrics["objective"] == pytest.approx(best, rel=1e-3)
