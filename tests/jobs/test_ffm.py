"""Field-aware factorization machines, beside plain NumPy, finite differences and the machine that made the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import F8, run_twin

from mpips import JobError, Normal, RemoteError, Run, UsageError, VectorSpec, load_model
from mpips.cli.main import main
from mpips.data import Examples
from mpips.jobs.fm import field_kernels
from mpips.jobs.fm.training import places_of

K, FIELDS, VALUES = 2, 3, 6
FEATURES = FIELDS * VALUES
FIELD_OF = np.arange(FEATURES) // VALUES


def score(x: F8, w: F8, v: F8, normalise: bool = True) -> F8:
    """The scores of dense examples by the definition, a sum over all pairs; v[feature, field of the other, factor]."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    total = x @ w
    for i in range(len(w)):
        for j in range(i + 1, len(w)):
            total += v[i, FIELD_OF[j]] @ v[j, FIELD_OF[i]] * x[:, i] * x[:, j]
    return total


def gradients(x: F8, y: F8, w: F8, v: F8, normalise: bool = True) -> tuple[F8, F8]:
    """The gradients of the log-loss in w and v, from the same sums over pairs."""
    slope = -y / (1.0 + np.exp(y * score(x, w, v, normalise)))
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if normalise else x
    by_v = np.zeros_like(v)
    for i in range(len(w)):
        for j in range(len(w)):
            if i != j:
                by_v[i, FIELD_OF[j]] += (slope * x[:, i] * x[:, j]).sum() * v[j, FIELD_OF[i]]
    return x.T @ slope, by_v


def entries(x: F8) -> tuple[Any, Any, Any]:
    rows, cols = np.nonzero(x)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(x)))])
    return indptr, cols, x[rows, cols].astype(np.float32)


def libffm(x: F8, y: F8) -> str:
    """Lines whose entries are in descending order of the ids."""
    lines = []
    for row, label in zip(x, y, strict=True):
        cells = [f"{FIELD_OF[at]}:{at}:{np.float32(row[at])!s}" for at in np.flatnonzero(row)[::-1]]
        lines.append(" ".join([f"{label:g}", *cells]))
    return "\n".join(lines) + "\n"


def made(n: int, seed: int, real: bool = False, scale: float = 1.2) -> tuple[F8, F8, F8]:
    """Examples of one value in each field, labelled by a machine; return x, y and its scores."""
    teacher, rng = np.random.default_rng(1), np.random.default_rng([1, seed])
    w, v = teacher.normal(size=FEATURES), scale * teacher.normal(size=(FEATURES, FIELDS, K))
    x = np.zeros((n, FEATURES))
    for field in range(FIELDS):
        drawn = rng.integers(0, VALUES, n) + VALUES * field
        x[np.arange(n), drawn] = rng.normal(size=n).astype(np.float32) if real else 1.0
    truth = score(x, w, v)
    return x, np.where(rng.random(n) < 1.0 / (1.0 + np.exp(-truth)), 1.0, -1.0), truth


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("ones", [True, False])
def test_kernels_against_numpy_and_finite_differences(ones: bool, normalise: bool) -> None:
    rng = np.random.default_rng([ones, normalise])
    x = (rng.random((7, FEATURES)) < 0.3) * (1.0 if ones else rng.normal(size=(7, FEATURES)))
    x[np.arange(7), rng.integers(0, FEATURES, 7)] = 1.0
    x = x.astype(np.float32).astype(float)
    y = np.where(rng.random(7) < 0.5, 1.0, -1.0)
    has = rng.random(FEATURES) < 0.7
    w, v = (
        rng.normal(size=FEATURES).astype(np.float32),
        rng.normal(size=(FEATURES, FIELDS, K)).astype(np.float32),
    )
    v[~has] = 0
    indptr, cols, values = entries(x)
    values = values[:0] if ones else values
    fields, positions = FIELD_OF[cols].astype(np.int32), cols.astype(np.int32)
    linear = np.column_stack([w, np.zeros_like(w)])
    factors = np.ascontiguousarray(v[has].reshape(-1, FIELDS * K))
    out, steps = np.empty((FEATURES, 2), np.float32), np.empty_like(factors)
    found = field_kernels.batch_gradient(
        indptr, positions, fields, values, y.astype(np.float32), linear, places_of(has), factors, K, normalise, out,
        steps,
    )  # fmt: skip
    wide_w, wide_v = w.astype(float), v.astype(float)

    def loss(v: F8) -> float:
        return float(np.logaddexp(0.0, -y * score(x, wide_w, v, normalise)).sum())

    assert found == pytest.approx(loss(wide_v), rel=1e-5)
    by_w, by_v = gradients(x, y, wide_w, wide_v, normalise)
    assert np.allclose(out[:, 0], by_w, atol=1e-4)
    assert out[:, 1].tolist() == np.count_nonzero(x, axis=0).tolist()
    assert np.allclose(steps.reshape(-1, FIELDS, K), by_v[has], atol=1e-4)
    for place, feature in enumerate(np.flatnonzero(has)[:4]):
        for field in range(FIELDS):
            step = np.zeros_like(wide_v)
            step[feature, field, 1] = 1e-5
            slope = (loss(wide_v + step) - loss(wide_v - step)) / 2e-5
            assert steps[place, field * K + 1] == pytest.approx(slope, abs=1e-3)
    scores = np.empty(7)
    field_kernels.predict(
        indptr, positions, fields, values, linear, places_of(has), factors, K, normalise, scores
    )
    assert np.allclose(scores, score(x, wide_w, wide_v, normalise), atol=1e-5)


SETTINGS: dict[str, Any] = {
    "fields": True, "factors": K, "batch": 25, "passes": 2, "alpha": 0.3, "factor_alpha": 0.2, "factor_beta": 0.5,
    "factor_l2": 0.1, "init": 0.3, "admit": 30,
}  # fmt: skip


def learnt(x: F8, y: F8, at: dict[str, Any]) -> tuple[F8, F8]:
    """Learn the plain way; return weights, and factors, 0 of features that are not admitted."""
    w, z, norm, seen = np.zeros((4, FEATURES))
    spec = VectorSpec("v", "float32", width=FIELDS * K, init=Normal(0.0, at["init"], seed=0))
    v = spec.initial(np.arange(FEATURES, dtype=np.uint64)).astype(float).reshape(FEATURES, FIELDS, K)
    squares = np.zeros_like(v)
    for number in range(at["passes"]):
        for begin in range(0, len(x), at["batch"]):
            mine, of = x[begin : begin + at["batch"]], y[begin : begin + at["batch"]]
            named, admitted = (mine != 0).any(0), seen >= at["admit"]
            g, by_v = gradients(mine, of, w, np.where(admitted[:, None, None], v, 0.0))
            before, norm = norm, np.sqrt(norm**2 + g**2)
            z += g - (norm - before) / at["alpha"] * w
            w = np.where(named, -z / ((1.0 + norm) / at["alpha"]), w)
            moving = named & admitted
            squares[moving] += by_v[moving] ** 2
            e = (np.sqrt(squares) + at["factor_beta"]) / at["factor_alpha"]
            v = np.where(moving[:, None, None], (e * v - by_v) / (e + at["factor_l2"]), v)
            seen += (mine != 0).sum(0) if number == 0 else 0
    return w, np.where((seen >= at["admit"])[:, None, None], v, 0.0)


def test_the_same_as_plain_numpy_on_any_layout(tmp_path: Path) -> None:
    train, test = tmp_path / "train.ffm", tmp_path / "test.txt"
    x, y, _ = made(300, 0, real=True)
    test_x, test_y, _ = made(200, 1, real=True)
    train.write_text(libffm(x, y))
    test.write_text(libffm(test_x, test_y))
    w, v = learnt(x, y, SETTINGS)
    expected = np.logaddexp(0.0, -test_y * score(test_x, w, v)).mean()
    found = [run_twin(train, servers, 1, test=test, program="fm", settings=SETTINGS) for servers in (1, 3)]
    assert found[0].sha == found[1].sha
    assert found[0].metrics["logloss"] == pytest.approx(expected, abs=1e-4)
    assert 0 < found[0].metrics["factors"] <= FEATURES


def test_it_learns_the_machine_that_made_the_data(tmp_path: Path) -> None:
    """With as many factors as the machine; one that does not tell fields apart cannot express it."""
    train, test = tmp_path / "train.ffm", tmp_path / "test.ffm"
    x, y, _ = made(50_000, 0, scale=2.0)
    test_x, test_y, truth = made(20_000, 1, scale=2.0)
    train.write_text(libffm(x, y))
    test.write_text(libffm(test_x, test_y))
    best = np.logaddexp(0.0, -test_y * truth).mean()
    losses = []
    for settings in ({"fields": True, "factors": K}, {"factors": K}):
        more = {"passes": 5, "batch": 250, "init": 0.2, "factor_alpha": 0.3, "alpha": 0.3}
        tau = {"model": "bounded", "tau": 2}
        outcome = run_twin(train, 1, 1, test=test, program="fm", settings=more | settings, consistency=tau)
        losses.append(outcome.metrics["logloss"])
    assert best - 0.001 < losses[0] < best + 0.002 < losses[1]


def test_models_of_tables_score_as_the_run_did(tmp_path: Path) -> None:
    """Columns are fields, and crosses are; rows of columns have the fields that a table of the same columns has."""
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, 4, (300, 3))
    y = np.where((drawn[:, 0] + drawn[:, 1]) % 2 == 0, 1, -1)
    names = "label,a,b,c\n"
    rows = "".join(f"{label},{a},{b},{c}\n" for label, (a, b, c) in zip(y, drawn, strict=True))
    runs = {}
    for name, head in (
        ("csv", '\nlabel = "label"\ncrosses = [["a", "c"]]'),
        ("tsv", '\nseparator = ","\ncrosses = [[0, 2]]'),
    ):
        data = tmp_path / f"data.{name}"
        data.write_text(names + rows)
        job = tmp_path / f"{name}.toml"
        job.write_text(
            f'[job]\nprogram = "fm"\n[data]\ntrain = "{data}"\ntest = "{data}"{head}\n'
            "[fm]\nfields = true\nfactors = 3\nbatch = 25\npasses = 9\nfactor_alpha = 0.5\ninit = 0.3\n"
        )
        assert main(["run", str(job), "--twin", "--run-dir", str(tmp_path / name)]) == 0
        runs[name] = Run(tmp_path / name).metrics
        model = load_model(tmp_path / name)
        scores = model.decision_function(str(data))
        assert runs[name]["logloss"] == pytest.approx(np.logaddexp(0.0, -y * scores).mean(), rel=1e-6)
        assert runs[name]["logloss"] < 0.55
        # A column of ones of a table, and the cross.
        fields = 5 if name == "csv" else 4
        assert model.vectors()["v"][1].shape[1] == 3 * fields
        with pytest.raises(UsageError, match="tells fields apart"):
            model.decision_function(np.ones((2, 3)))
    frame = {name: [str(each) for each in column] for name, column in zip("abc", drawn.T, strict=True)}
    table = load_model(tmp_path / "csv")
    assert np.allclose(table.decision_function(frame), table.decision_function(str(tmp_path / "data.csv")))


def test_mistakes_are_named(tmp_path: Path) -> None:
    wide, plain = tmp_path / "wide.ffm", tmp_path / "plain.svm"
    wide.write_text("1 40:1:1 0:2:1\n")
    plain.write_text("1 1:1\n")
    with pytest.raises((JobError, RemoteError), match=r"41 fields.* set fm.factors to 6 or less"):
        run_twin(wide, program="fm", settings=SETTINGS | {"factors": 8})
    with pytest.raises(RemoteError, match=r"plain.svm: lines of svmlight have no fields"):
        run_twin(plain, program="fm", settings=SETTINGS)


def test_a_field_that_was_not_in_training_is_left_out() -> None:
    one = np.array([1.0], np.float32)
    more = Examples(one, np.array([0, 2]), np.array([0, 1], np.uint64), None, np.array([0, 7], np.int32))
    scores, linear = np.empty(1), np.ones((2, 2), np.float32)
    factors, assigned = np.ones((2, 4), np.float32), np.arange(2, dtype=np.int32)
    field_kernels.predict(
        more.indptr, assigned, more.fields, one[:0], linear, assigned, factors, 2, False, scores
    )
    assert scores[0] == 2.0
