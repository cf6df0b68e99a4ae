"""Factorization machines, compared with plain NumPy, finite differences and the machine that made the data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint.test_damaged_checkpoints import rewrite
from conftest import ROOT, Finished
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from synthetic import F8, DataSet, Hooks, make, run_twin, svmlight

from mpips import InputError, Normal, Run, VectorSpec, load_model
from mpips.checkpoint.manifest import complete, read_manifest
from mpips.cli.main import main
from mpips.jobs.fm import kernels
from mpips.jobs.fm.model import FactorizationModel
from mpips.jobs.fm.training import places_of
from mpips.storage.disk.store import Store
from mpips.transport.network_faults import Fault, random_delays

SETTINGS: dict[str, Any] = {
    "factors": 4, "batch": 13, "passes": 2, "alpha": 0.3, "beta": 0.7, "l1": 0.2, "l2": 0.05,
    "factor_alpha": 0.2, "factor_beta": 0.5, "factor_l2": 0.1, "init": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "real")


def score(x: F8, w: F8, v: F8) -> F8:
    """The scores of dense examples by the definition: a sum over all pairs."""
    pairs = np.triu(v @ v.T, 1)
    return x @ w + np.einsum("ni,ij,nj->n", x, pairs, x)


def loss(x: F8, y: F8, w: F8, v: F8) -> float:
    return float(np.logaddexp(0.0, -y * score(x, w, v)).sum())


def gradients(x: F8, y: F8, w: F8, v: F8) -> tuple[F8, F8]:
    """The gradients in w and v, from the same sums over pairs."""
    slope = -y / (1.0 + np.exp(y * score(x, w, v)))
    return x.T @ slope, np.einsum("n,ni,nik->ik", slope, x, (x @ v)[:, None, :] - x[:, :, None] * v)


# --- Kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ones", [True, False])
@pytest.mark.parametrize("k", [1, 3, 16])
def test_kernels_against_numpy_and_finite_differences(ones: bool, k: int) -> None:
    rng = np.random.default_rng([k, ones])
    mask = rng.random((9, 6)) < 0.5
    x = mask * (1.0 if ones else rng.normal(size=mask.shape))
    x = x.astype(np.float32).astype(float)
    y = np.where(rng.random(9) < 0.5, 1.0, -1.0)
    has = np.array([True, True, False, True, False, True])
    w, v = (rng.normal(size=shape).astype(np.float32) for shape in ((6,), (6, k)))
    v[~has] = 0
    linear = np.column_stack([w, np.zeros_like(w)])
    rows, cols = np.nonzero(mask)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=9))])
    values = np.empty(0, np.float32) if ones else x[rows, cols].astype(np.float32)
    out, steps = np.empty((6, 2), np.float32), np.empty((has.sum(), k), np.float32)
    args = indptr, cols.astype(np.int32), values
    found = kernels.batch_gradient(*args, y.astype(np.float32), linear, places_of(has), v[has], out, steps)
    wide_w, wide_v = w.astype(float), v.astype(float)
    assert found == pytest.approx(loss(x, y, wide_w, wide_v), rel=1e-5)
    scores = np.empty(9)
    kernels.predict(*args, linear, places_of(has), v[has], scores)
    assert np.allclose(scores, score(x, wide_w, wide_v), atol=1e-5)
    by_w, by_v = gradients(x, y, wide_w, wide_v)
    assert np.allclose(out[:, 0], by_w, atol=1e-4) and np.allclose(steps, by_v[has], atol=1e-4)
    assert out[:, 1].tolist() == mask.sum(axis=0).tolist()
    for place, feature in enumerate(np.flatnonzero(has)):
        for f in range(k):
            step = np.zeros_like(wide_v)
            step[feature, f] = 1e-5
            slope = (loss(x, y, wide_w, wide_v + step) - loss(x, y, wide_w, wide_v - step)) / 2e-5
            assert steps[place, f] == pytest.approx(slope, abs=1e-3)


def test_an_example_of_one_feature_has_no_interaction() -> None:
    factors, scores = np.full((1, 7), 0.1, np.float32), np.empty(1)
    kernels.predict(
        np.array([0, 1]), np.zeros(1, np.int32), np.array([0.3], np.float32), np.zeros((1, 2), np.float32),
        np.zeros(1, np.int32), factors, scores,
    )  # fmt: skip
    assert scores[0] == 0.0


# --- Runs ------------------------------------------------------------------------------------------------------


def learnt(data: DataSet, workers: int, **changes: Any) -> tuple[F8, F8, F8]:
    """Learn the plain way; return weights, factors (0 of those that have none), and counts.

    With `max_rows`, features are dropped after every second mini-batch.
    """
    at = {"admit": 0, "max_rows": 0} | SETTINGS | changes
    n, admit, most = len(data.keys), at["admit"], at["max_rows"]
    w, z, norm, seen, used = np.zeros((5, n))
    spec = VectorSpec("v", "float32", width=at["factors"], init=Normal(0.0, at["init"], seed=0))
    initial = spec.initial(data.keys).astype(float)
    v, squares = initial.copy(), np.zeros((n, at["factors"]))
    parts = [np.arange(len(data.y))[worker::workers] for worker in range(workers)]
    begins = range(0, len(parts[0]), at["batch"])
    for number in range(at["passes"]):
        for batch, begin in enumerate(begins, 1):
            rows = np.concatenate([part[begin : begin + at["batch"]] for part in parts])
            x, y = data.x[rows], data.y[rows]
            named, admitted = (x != 0).any(0), seen >= admit
            g, by_v = gradients(x, y, w, np.where(admitted[:, None], v, 0.0))
            before, norm = norm, np.sqrt(norm**2 + g**2)
            z += g - (norm - before) / at["alpha"] * w
            moved = (
                -np.sign(z)
                * np.maximum(np.abs(z) - at["l1"], 0.0)
                / ((at["beta"] + norm) / at["alpha"] + at["l2"])
            )
            w = np.where(named, moved, w)
            moving = named & admitted
            squares[moving] += by_v[moving] ** 2
            e = (np.sqrt(squares) + at["factor_beta"]) / at["factor_alpha"]
            v = np.where(moving[:, None], (e * v - by_v) / (e + at["factor_l2"]), v)
            if number == 0 or most:
                seen += (x != 0).sum(0)
            used += named
            if most and (batch % 2 == 0 or batch == len(begins)) and np.count_nonzero(used) > most:
                order = np.lexsort((hashes(data.keys), used))
                dropped = order[: n - (most - most // 10)]
                for each in (w, z, norm, seen, used, squares):
                    each[dropped] = 0.0
                v[dropped] = initial[dropped]
                used /= 2.0
    return w, np.where((seen >= max(admit, 1))[:, None], v, 0.0), seen


def hashes(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The upper halves of SplitMix64's hashes, which decide between features that were used as often."""
    z = keys + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


@pytest.mark.parametrize(("workers", "admit"), [(1, 0), (3, 0), (2, 48)])
def test_the_same_as_plain_numpy(data_set: DataSet, tmp_path: Path, workers: int, admit: int) -> None:
    hooks = Hooks(checkpoints=tmp_path)
    settings = SETTINGS | {"admit": admit}
    outcome = run_twin(
        data_set, 2, workers, program="fm", settings=settings, hooks=hooks, checkpoint={"every": 1}
    )
    w, v, seen = learnt(data_set, workers, admit=admit)
    assert np.abs(v).max() > 0.5 and np.abs(w).max() > 0.1
    metrics = outcome.metrics
    margins = data_set.test_y * score(data_set.test_x, w, v)
    assert metrics["logloss"] == pytest.approx(np.logaddexp(0.0, -margins).mean(), abs=1e-4)
    if admit:
        assert 5 < metrics["factors"] <= (seen >= admit).sum() < 35
    else:
        assert metrics["factors"] == len(data_set.keys)
    assert outcome.passes("examples") == [len(data_set.y)] * 2
    objective = loss(data_set.x, data_set.y, w, v) + SETTINGS["l1"] * np.abs(w).sum()
    assert metrics["objective"] == pytest.approx(objective, rel=1e-4)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("admit", [0, 10])
def test_the_same_bits_on_any_layout_and_when_a_server_is_killed(
    data_set: DataSet, admit: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = SETTINGS | {"admit": admit}
    found = [
        run_twin(
            data_set,
            servers,
            2,
            program="fm",
            settings=settings,
            seed=servers,
            delays=random_delays(servers, delay=0.01),
        )
        for servers in (1, 3)
    ]
    for at in (150, 300, 450):
        lost = {"replicas": 1, "faults": [Fault("kill", 1 + at % 3, after_messages=at)]}
        found.append(run_twin(data_set, 3, 2, program="fm", settings=settings, network=lost))
        assert caplog.messages.pop() == "lost"
    assert len({outcome.sha for outcome in found}) == 1
    assert len({tuple(outcome.passes("mean loss")) for outcome in found}) == 1


def test_rows_on_disk_give_the_same_bits_when_a_server_is_killed(tmp_path: Path) -> None:
    """Of so many factors a server's memory holds a part."""
    data = make(tmp_path / "data", n=24, m=120)
    how: dict[str, Any] = {"program": "fm", "settings": SETTINGS | {"factors": 512}}
    plain = run_twin(data, 1, 2, **how)
    stores: list[Store] = []

    def store() -> Store:
        stores.append(Store(400_000, tmp_path))
        return stores[-1]

    lost = {"replicas": 1, "faults": [Fault("kill", 2, after_messages=100)], "store": store}
    killed = run_twin(data, 2, 2, **how, network=lost)
    assert killed.sha == plain.sha
    assert killed.passes("mean loss") == plain.passes("mean loss")
    assert max(each.reads_made for each in stores) > 100


def test_evictions_give_the_same_bits_and_hold_the_limit(data_set: DataSet, tmp_path: Path) -> None:
    settings = SETTINGS | {"admit": 5, "max_rows": 25, "batch": 5}
    how: dict[str, Any] = {"program": "fm", "settings": settings}
    hooks = Hooks(checkpoints=tmp_path)
    lost = {"replicas": 1, "faults": [Fault("kill", 2, after_messages=300)]}
    found = [
        run_twin(data_set, 1, 2, **how, checkpoint={"every": 1, "keep": 9}, hooks=hooks),
        run_twin(data_set, 3, 2, **how, delays=random_delays(3, delay=0.01)),
        run_twin(data_set, 3, 2, **how, network=lost),
        run_twin(data_set, 2, 2, **how, hooks=Hooks(resume=complete(tmp_path)[0])),
    ]
    assert len({outcome.sha for outcome in found}) == 1
    for outcome in found:
        assert max(outcome.passes("features")) <= 25 and min(outcome.passes("features")) >= 18
        assert 0 < outcome.metrics["factors"] <= outcome.metrics["features"]
    assert found[0].metrics["logloss"] < np.log(2.0)


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("workers", "admit"), [(1, 0), (2, 20)])
def test_features_that_come_again_in_a_later_pass_begin_anew(
    data_set: DataSet, tmp_path: Path, workers: int, admit: int
) -> None:
    settings = SETTINGS | {"passes": 4, "batch": 4 // workers, "admit": admit, "max_rows": 25}
    w, v, seen = learnt(data_set, workers, **settings)
    # What came again in the first pass was counted in three whole ones since.
    again = (seen > 0) & (seen <= 3 * (data_set.x != 0).sum(0))
    assert np.count_nonzero(again & (seen >= admit)) > 2
    job, run = tmp_path / "job.toml", tmp_path / "run"
    table = "\n".join(f"{name} = {value}" for name, value in settings.items())
    job.write_text(
        f'[job]\nprogram = "fm"\n[layout]\nworkers = {workers}\n[data]\ntrain = "{data_set.train}"\n'
        f'test = "{data_set.test}"\n[fm]\n{table}\n'
    )
    assert main(["run", str(job), "--twin", "--run-dir", str(run)]) == 0
    metrics, held = Run(run).metrics, load_model(run).vectors()
    assert metrics["features"] == np.count_nonzero(seen) <= 25
    margins = data_set.test_y * score(data_set.test_x, w, v)
    assert metrics["logloss"] == pytest.approx(np.logaddexp(0.0, -margins).mean(), abs=1e-4)
    named, with_factors = data_set.keys[seen > 0], seen >= max(admit, 1)
    assert np.array_equal(held["w"][0], named) and np.array_equal(held["v"][0], data_set.keys[with_factors])
    assert np.allclose(held["w"][1][:, 0], w[seen > 0], atol=1e-4)
    assert np.allclose(held["v"][1], v[with_factors], atol=1e-3)


def test_resume_gives_the_same_bits(data_set: DataSet, tmp_path: Path) -> None:
    settings = SETTINGS | {"admit": 10, "passes": 3}
    hooks = Hooks(checkpoints=tmp_path)
    how: dict[str, Any] = {"program": "fm", "settings": settings}
    whole = run_twin(data_set, 2, 2, **how, checkpoint={"every": 1, "keep": 9}, hooks=hooks)
    for servers, path in zip((1, 3), complete(tmp_path), strict=True):
        again = run_twin(data_set, servers, 2, **how, hooks=Hooks(resume=path))
        assert again.sha == whole.sha
        assert again.metrics == whole.metrics | {"model": again.metrics["model"]}
    with pytest.raises(InputError, match="was written with seed = 0, not 5"):
        run_twin(data_set, 1, 2, **how, job={"seed": 5}, hooks=Hooks(resume=complete(tmp_path)[0]))


def test_with_delay_it_learns_the_machine_that_made_the_data(tmp_path: Path) -> None:
    """10,000 examples of one category in each of 3 columns, labelled by a machine with 2 factors."""
    rng = np.random.default_rng(1)
    features, n = 30, 10_000
    w, v = 0.3 * rng.normal(size=features), 1.2 * rng.normal(size=(features, 2))
    x = np.zeros((n + 5000, features))
    for column in range(3):
        x[np.arange(len(x)), rng.integers(0, 10, len(x)) + 10 * column] = 1.0
    truth = score(x, w, v)
    y = np.where(rng.random(len(x)) < 1.0 / (1.0 + np.exp(-truth)), 1.0, -1.0)
    files, keys = [tmp_path / "train.svm", tmp_path / "test.svm"], np.arange(features, dtype=np.uint64)
    for path, rows in zip(files, (slice(0, n), slice(n, None)), strict=True):
        path.write_text(svmlight(x[rows], y[rows], keys))
    settings = {"factors": 4, "passes": 5, "batch": 100, "init": 0.1}
    outcome = run_twin(
        files[0], 2, 2, test=files[1], program="fm", settings=settings, consistency={"model": "bounded", "tau": 3},
        delays=random_delays(1, delay=0.02),
    )  # fmt: skip
    best = np.logaddexp(0.0, -y[n:] * truth[n:]).mean()
    assert best < outcome.metrics["logloss"] < best + 0.01
    alone = run_twin(files[0], 1, 1, test=files[1], settings={"algorithm": "ftrl", "batch": 100}).metrics[
        "logloss"
    ]
    assert alone > best + 0.1


def test_models_score_as_the_run_did(data_set: DataSet, tmp_path: Path) -> None:
    checkpoints, runs = tmp_path / "checkpoints", tmp_path / "job.toml"
    settings = {"factors": 4, "batch": 13, "passes": 2, "admit": 48}
    table = "\n".join(f"{name} = {value}" for name, value in settings.items())
    runs.write_text(
        f'[job]\nprogram = "fm"\n[data]\ntrain = "{data_set.train}"\ntest = "{data_set.test}"\n[fm]\n{table}\n'
        f'[checkpoint]\nevery = 2\ndirectory = "{checkpoints}"\n'
    )
    assert main(["run", str(runs), "--twin", "--run-dir", str(tmp_path / "run")]) == 0
    metrics = Run(tmp_path / "run").metrics
    dense = np.zeros((len(data_set.test_x), int(data_set.keys[-1]) + 3))
    dense[:, data_set.keys.astype(np.int64)] = data_set.test_x
    model = load_model(tmp_path / "run")
    scores = model.decision_function(dense)
    margins = data_set.test_y * scores
    assert metrics["logloss"] == pytest.approx(np.logaddexp(0.0, -margins).mean(), rel=1e-9)
    assert np.array_equal(scores, model.decision_function(str(data_set.test)))
    held = model.vectors()
    v = np.zeros((len(data_set.keys), 4))
    v[np.isin(data_set.keys, held["v"][0])] = held["v"][1]
    assert np.allclose(scores, score(data_set.test_x, held["w"][1][:, 0], v), atol=1e-5)
    key = str(data_set.keys[np.isin(data_set.keys, held["v"][0])][0])
    _, *factors = model.query([key])[0]  # type: ignore[misc]
    assert len(factors) == 4 and np.abs(factors).max() > 0 and model.query(["3000000"]) == [[0.0]]


@pytest.mark.ranks
@pytest.mark.once
def test_the_job_that_comes_with_it(run_mpips: Callable[..., Finished], tmp_path: Path) -> None:
    """It finds that flights of some columns together are late, as no linear model of the same columns does."""
    done = run_mpips(
        "run", ROOT / "jobs" / "fm" / "job.toml", "--run-dir", tmp_path / "run", "--set", "fm.passes=4"
    )
    assert done.code == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert metrics["auc"] > 0.70 and metrics["logloss"] < 0.468 and metrics["factors"] == 1682
    scored = run_mpips(
        "infer", tmp_path / "run", ROOT / "jobs/sparse_lr/data/flights.test.tsv.xz", "--out", tmp_path / "p"
    )
    assert scored.code == 0 and len((tmp_path / "p").read_text().splitlines()) > 10_000


# --- What others give it ---------------------------------------------------------------------------------------


def test_entries_of_one_place_are_added_before_they_are_scored() -> None:
    keys, factors = np.array([0, 2], np.uint64), np.array([[0.5], [4.0]], np.float32)
    model = FactorizationModel(keys, np.array([2.0, -1.0], np.float32), np.ones(2, bool), factors)
    twice = csr_matrix((np.array([1.0, 1.0, 3.0]), np.array([0, 0, 2]), np.array([0, 3])), shape=(1, 3))
    assert (
        model.decision_function(twice).tolist() == model.decision_function(twice.toarray()).tolist() == [13.0]
    )
    assert twice.nnz == 3


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"has": np.zeros(2, bool), "factors": np.empty((0, 10**15), "f4")},
            "has 1,000,000,000,000,000 factors",
        ),
        ({"factors": np.empty((2, 0), "f4")}, "it has 0 factors"),
        ({"factors": np.array([[1.0], [np.nan]], "f4")}, "is not a sound model"),
        ({"weights": np.array([1.0, np.inf], "f4")}, "is not a sound model"),
        ({"has": np.array([True, False])}, "it has factors of 2 features"),
        ({"has": np.ones(2, "i1")}, "wrong types or sizes"),
        ({"keys": np.empty((2, 0), "u8")}, "its keys are no list of keys"),
        ({"keys": np.array(3, "u8")}, "its keys are no list of keys"),
        ({"factors": np.array(1, "f4")}, "wrong types or sizes"),
    ],
)
def test_models_of_others_are_checked(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    arrays = {
        "keys": np.array([3, 4], np.uint64), "weights": np.ones(2, "f4"), "has": np.ones(2, bool),
        "factors": np.ones((2, 1), "f4"), "program": np.array("fm"),
    }  # fmt: skip
    np.savez(tmp_path / "m.npz", **arrays)
    assert load_model(tmp_path / "m.npz").query(["3"]) == [[1.0, 1.0]]
    np.savez(tmp_path / "m.npz", **(arrays | changed))
    with pytest.raises(InputError, match=text):
        load_model(tmp_path / "m.npz")


def test_checkpoints_of_others_are_checked(data_set: DataSet, tmp_path: Path) -> None:
    run_twin(
        data_set, 1, 1, program="fm", settings={"factors": 4, "passes": 2, "batch": 100},
        checkpoint={"every": 1}, hooks=Hooks(checkpoints=tmp_path),
    )  # fmt: skip
    folder = complete(tmp_path)[0]
    for changed, text in (
        ({"factors": 2**40}, "its job.fm.factors is an integer out of bounds"),
        ({"factors": 1}, "its rows have other widths"),
        ({"admit": "x"}, "its job.fm.admit is a string, and should be an integer"),
        ({"init": [1]}, "its job.fm.init is a list"),
    ):
        manifest = read_manifest(folder)
        before = dict(manifest["about"]["job"]["fm"])
        manifest["about"]["job"]["fm"] |= changed
        rewrite(folder, manifest)
        with pytest.raises(InputError, match=text):
            load_model(folder)
        manifest["about"]["job"]["fm"] = before
        rewrite(folder, manifest)
    assert load_model(folder).vectors()["v"][1].shape[1] == 4


def test_scores_that_are_not_finite_are_no_class(data_set: DataSet, tmp_path: Path) -> None:
    test = tmp_path / "test.svm"
    test.write_text(f"+1 {data_set.keys[0]}:1e25 {data_set.keys[1]}:-1e25\n-1 {data_set.keys[0]}:1\n")
    model = FactorizationModel(
        data_set.keys[:2], np.ones(2, np.float32), np.ones(2, bool), np.ones((2, 3), np.float32)
    )
    with pytest.raises(InputError, match="the score of an example is not finite"):
        model.predict(test)
    with pytest.raises(InputError, match="test: the scores of 1 of 2 examples are not finite"):
        run_twin(data_set, 1, 1, test=test, program="fm", settings={"passes": 1, "batch": 100})
