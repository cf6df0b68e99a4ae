"""The estimators of scikit-learn: its own checks, its own solver's weights, and a worker that is lost in `fit`."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from mpips import InputError, Run, load_model
from mpips.estimators import (
    FactorizationMachine,
    LatentDirichletAllocation,
    SparseLogisticRegression,
    sparse_logistic_regression,
)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 12)) * (rng.random((200, 12)) < 0.5)
    y = np.where(x @ rng.normal(size=12) + 0.5 + 0.5 * rng.normal(size=200) > 0, "yes", "no")
    return x, y


def test_as_liblinear_finds_it(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    with warnings.catch_warnings():
        # Versions differ in how the penalty is named.
        warnings.simplefilter("ignore")
        theirs = LogisticRegression(penalty="l1", solver="liblinear", C=2.0, tol=1e-8).fit(x, y)
    ours = SparseLogisticRegression(l1=0.5, launcher="twin").fit(csr_matrix(x), y)
    assert ours.classes_.tolist() == ["no", "yes"] and ours.n_features_in_ == 12
    assert np.allclose(ours.coef_, theirs.coef_, atol=0.02) and np.allclose(
        ours.intercept_, theirs.intercept_, atol=0.02
    )
    assert np.allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=0.01)
    assert np.mean(ours.predict(x) == theirs.predict(x)) > 0.98
    assert ours.objective_ > 0.0 and ours.n_iter_ > 1
    without = SparseLogisticRegression(fit_intercept=False, launcher="twin").fit(x, y)
    assert without.intercept_.tolist() == [0.0]


def test_scikit_learns_own_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Few passes and messages are enough for the checks, which fit 82 times.
        how = {"launcher": "twin", "settings": {"sparse_lr.passes": 2, "sparse_lr.blocks": 1}}
        found = check_estimator(SparseLogisticRegression(l1=0.05, workers=1, **how), on_fail=None)
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}


def test_scikit_learns_own_checks_of_machines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Large steps, and no steps after the last mini-batch, as sequential ones would have for the other workers.
        how = {"fm.alpha": 1.0, "consistency.model": "eventual"}
        machine = FactorizationMachine(2, passes=4, batch=50, workers=1, launcher="twin", settings=how)
        found = check_estimator(machine, on_fail=None)
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}


def test_a_machine_scores_as_its_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 6)) * (rng.random((200, 6)) < 0.5)
    y = np.where(x[:, 0] * x[:, 1] + x[:, 2] > 0, "yes", "no")
    for intercept in (True, False):
        folder = tmp_path / str(intercept)
        ours = FactorizationMachine(
            3,
            passes=30,
            batch=50,
            workers=1,
            fit_intercept=intercept,
            folder=folder,
            launcher="twin",
            settings={"fm.factor_alpha": 0.5},
        )
        scores = ours.fit(csr_matrix(x), y).decision_function(x)
        scaled = x / np.abs(x).max(axis=0)
        whole = np.hstack([scaled, np.ones((200, 1))]) if intercept else scaled
        assert np.allclose(scores, load_model(folder / "fit-1" / "run").decision_function(whole), atol=1e-5)
        assert ours.factors_.shape == (6 + intercept, 3) and ours.n_iter_ == 30
        assert np.allclose(ours.decision_function(csr_matrix(x)), scores, atol=1e-12)
        assert np.mean(ours.predict(x) == y) > 0.8


def test_a_machine_with_fields_scores_by_the_definition() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 5)) * (rng.random((200, 5)) < 0.6)
    y = np.where(x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3] > 0, "yes", "no")
    fields = [0, 1, 0, 1, 2]
    how = {"passes": 30, "batch": 50, "workers": 1, "launcher": "twin", "settings": {"fm.factor_alpha": 0.5}}
    ours = FactorizationMachine(3, fields=fields, **how).fit(x, y)
    scores = ours.decision_function(csr_matrix(x))
    whole = np.hstack([x, np.ones((200, 1))])
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    of, v = [*fields, 3], ours.factors_
    assert v.shape == (6, 4, 3)
    expected = whole @ np.append(ours.coef_[0], ours.intercept_)
    for i in range(6):
        for j in range(i):
            expected += v[i, of[j]] @ v[j, of[i]] * whole[:, i] * whole[:, j]
    assert np.allclose(scores, expected, atol=1e-5)
    assert np.array_equal(pickle.loads(pickle.dumps(ours)).decision_function(x), scores)
    assert np.mean(ours.predict(x) == y) > 0.8
    with pytest.raises(ValueError, match="fields must be 5 whole numbers"):
        FactorizationMachine(3, fields=[0, 1], **how).fit(x, y)
    for wrong in (-1, 2**32, 2**31 - 1):
        with pytest.raises(ValueError, match="fields must be from 0 to"):
            FactorizationMachine(3, fields=[0, 1, 0, 1, wrong], **how).fit(x, y)


def test_wrong_parameters(data: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="l1 must be at least 0"):
        SparseLogisticRegression(l1=-1.0, launcher="twin").fit(*data)
    model = SparseLogisticRegression(
        folder=tmp_path / "kept", settings={"sparse_lr.passes": 2}, launcher="twin"
    )
    assert model.fit(*data).n_iter_ == model.fit(*data).n_iter_ == 2
    assert Run(tmp_path / "kept" / "fit-2" / "run").status == "completed"


def test_fits_at_once_in_one_folder_do_not_share_files(
    data: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = data
    # Of numpy, as a grid of parameters has them.
    how = {"workers": np.int64(1), "settings": {"sparse_lr.passes": 3}, "launcher": "twin"}
    alone = SparseLogisticRegression(l1=0.5, **how).fit(x, y)
    inner = []

    def write(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        if not inner:
            inner.append(SparseLogisticRegression(l1=9.0, folder=tmp_path, **how))
            inner[0].fit(-x, y)

    real = sparse_logistic_regression.write
    monkeypatch.setattr(sparse_logistic_regression, "write", write)
    ours = SparseLogisticRegression(l1=0.5, folder=tmp_path, **how).fit(x, y)
    assert np.array_equal(ours.coef_, alone.coef_) and not np.array_equal(inner[0].coef_, alone.coef_)


class OfRoundedCounts(LatentDirichletAllocation):
    """Takes the fractions of scikit-learn's checks, which have no whole counts, for some."""

    def _whole(self, rows: Any) -> Any:
        whole = rows.astype(np.int64)
        whole.data = np.maximum(1, np.rint(10.0 * rows.data)).astype(np.int64)
        return whole


def test_scikit_learns_own_checks_of_topics() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(OfRoundedCounts(2, sweeps=1, workers=1, launcher="twin"), on_fail=None)
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}


def test_topics_of_counts() -> None:
    rng = np.random.default_rng(5)
    of = rng.integers(0, 2, 60)
    counts = np.array([rng.multinomial(20, np.repeat([1 - each, each], 4) / 4) for each in of])
    model = LatentDirichletAllocation(2, sweeps=30, launcher="twin", random_state=3)
    shares = model.fit_transform(csr_matrix(counts))
    assert shares.shape == (60, 2) and np.allclose(shares.sum(axis=1), 1.0)
    assert len(set(zip(of.tolist(), shares.argmax(axis=1).tolist(), strict=True))) == 2
    assert model.components_.shape == (2, 8)
    assert model.components_.sum() == pytest.approx(counts.sum() + 16 * 0.01)
    assert model.n_iter_ == 30 and model.log_likelihood_ < 0.0
    assert np.array_equal(model.transform(counts), shares)
    for wrong, said in (
        (counts * 0.5, "counts of words must be whole numbers"),
        (counts * 0, "no document has a word"),
        (counts - 1, "Negative values in data"),
    ):
        with pytest.raises(ValueError, match=said):
            model.fit(wrong)


@pytest.mark.ranks
@pytest.mark.once
def test_a_fit_survives_a_killed_worker(data: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    x, y = data
    kill = {"faults.kill": [{"role": "worker", "index": 1, "at_step": 30}]}
    ours = SparseLogisticRegression(l1=0.5, workers=2, settings=kill, folder=tmp_path).fit(x, y)
    (loss,) = Run(tmp_path / "fit-1" / "run").result["recoveries"]
    assert loss["role"] == "worker"
    alone = SparseLogisticRegression(l1=0.5, workers=1, launcher="twin").fit(x, y)
    assert np.allclose(ours.coef_, alone.coef_, atol=0.02)


def test_what_settings_say_and_the_callers_matrix_is_left_as_it_is() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(60, 3))
    how: dict[str, Any] = {"passes": 1, "workers": 1, "launcher": "twin"}
    machine = FactorizationMachine(4, settings={"fm.factors": 1}, **how).fit(x, x[:, 0] > 0)
    assert machine.factors_.shape == (4, 1)
    counts = csr_matrix((np.ones(4), np.array([1, 0, 0, 1]), np.array([0, 3, 4])), shape=(2, 2))
    LatentDirichletAllocation(2, sweeps=1, workers=1, launcher="twin").fit(counts)
    assert counts.indices.tolist() == [1, 0, 0, 1] and counts.nnz == 4


def test_scores_that_are_not_finite_are_no_class() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(60, 3))
    machine = FactorizationMachine(2, passes=1, workers=1, launcher="twin").fit(x * 1e-200, x[:, 0] > 0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="the score of a row is not finite"):
        machine.predict(x * 1e-200)
