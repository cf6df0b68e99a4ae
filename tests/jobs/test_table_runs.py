"""Whole runs of sparse_lr on tables with named columns: as scikit-learn scores them, on any layout, and resumed."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Hooks, Outcome, run_twin

from mpips import load_model
from mpips.checkpoint.manifest import complete, read_manifest
from mpips.data import DataSpec, Source, Tally, concatenate, learned
from mpips.data.tables import Encoding
from mpips.errors import DataError, InputError, MpipsError
from mpips.jobs.sparse_lr.assignment import Assignment
from mpips.jobs.sparse_lr.model import LogisticModel
from mpips.transport.network_faults import Fault

pytest.importorskip("pyarrow")

COLUMNS = {
    "label": "bought",
    "positive": "yes",
    "numeric": {"age": "quantiles", "income": "log"},
    "ignore": ["id"],
    "crosses": [["city", "job"]],
}
JOBS = ["clerk", "nurse, night", 'the "boss"', "dev\nops"]


def write(path: Path, rows: int, seed: int, order: int = 1) -> Path:
    random = np.random.default_rng(seed)
    age, income = random.integers(18, 80, rows), np.exp(random.normal(10, 1, rows)).round(2)
    city, job = random.integers(0, 30, rows), random.integers(0, 4, rows)
    z = -0.004 * (age - 45) ** 2 + 0.8 * (np.log(income) - 10) + job - 1 + np.sin(city)
    bought = np.where(random.random(rows) < 1 / (1 + np.exp(-z)), "yes", "no")
    ages = ["" if hidden else str(each) for each, hidden in zip(age, random.random(rows) < 0.05, strict=True)]
    table = {
        "id": range(rows), "age": ages, "city": [f"city {each}" for each in city], "bought": bought,
        "job": [JOBS[each] for each in job], "income": income,
    }  # fmt: skip
    names = list(table)[::order]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        out.writerows(zip(*(table[name] for name in names), strict=True))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return write(folder / "train.csv", 1_500, 1), write(folder / "test.csv", 800, 2, order=-1)


def run(
    files: tuple[Path, Path], servers: int = 1, workers: int = 2, hooks: Hooks | None = None, **how: Any
) -> Outcome:
    data = {**COLUMNS, **how.pop("data", {})}
    return run_twin(files[0], servers, workers, test=files[1], data=data, hooks=hooks, **how)


def test_as_scikit_learn_on_the_same_encoding(files: tuple[Path, Path]) -> None:
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss, roc_auc_score

    source = Source(DataSpec(train=str(files[0]), test=str(files[1]), **COLUMNS))  # type: ignore[arg-type]
    source.take(learned([source.summarise(0, 1)]))
    train, test = (concatenate(source.read(which, 0, 1, Tally())) for which in ("train", "test"))
    keys = np.unique(train.keys)
    matrices = []
    for part in (train, test):
        known = np.isin(part.keys, keys)
        at = np.minimum(np.searchsorted(keys, part.keys), len(keys) - 1)
        cells = np.where(known, part.values, 0), at.astype(np.int32), part.indptr.astype(np.int32)
        matrices.append(csr_array(cells, shape=(len(part), len(keys))))
    model = LogisticRegression(penalty="l1", solver="liblinear", C=1.0, fit_intercept=False, tol=1e-6)
    with warnings.catch_warnings():
        # The name of the penalty depends on the version.
        warnings.simplefilter("ignore")
        scores = model.fit(matrices[0], train.labels).decision_function(matrices[1])
    outcome = run(files)
    assert outcome.metrics["auc"] == pytest.approx(roc_auc_score(test.labels, scores), abs=2e-3)
    assert outcome.metrics["auc"] > 0.7
    expected = log_loss(test.labels, 1 / (1 + np.exp(-scores)))
    assert outcome.metrics["logloss"] == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_the_same_bits_on_any_number_of_servers_and_with_exact_sums_of_workers(
    files: tuple[Path, Path], algorithm: str
) -> None:
    settings = {"algorithm": algorithm, "batch": 100}
    assert len({run(files, servers, settings=settings).sha for servers in (1, 3)}) == 1
    if algorithm == "darlin":
        exact = {"exact_sums": True}
        assert len({run(files, 1, workers, layout=exact).sha for workers in (1, 2, 3)}) == 1


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_a_resumed_run_keeps_the_encoding(files: tuple[Path, Path], tmp_path: Path, algorithm: str) -> None:
    settings = {"algorithm": algorithm, "batch": 100, "passes": 4}
    whole = run(files, settings=settings)
    hooks = Hooks(checkpoints=tmp_path, stop_after=2)
    run(files, hooks=hooks, settings=settings, checkpoint={"every": 1})
    newest = complete(tmp_path)[0]
    kept = read_manifest(newest)["about"]["state"]["encoding"]
    assert [each["name"] for each in kept["numeric"]] == ["age", "income"]
    assert run(files, 2, settings=settings, hooks=Hooks(resume=newest)).sha == whole.sha
    if algorithm == "darlin":
        # It refuses other training data.
        return
    # A model means its own encoding, whatever the data are by now.
    other = write(tmp_path / "other.csv", 700, 3), files[1]
    again = run(
        other,
        settings=settings,
        hooks=Hooks(resume=newest, checkpoints=tmp_path / "b"),
        checkpoint={"every": 1},
    )
    assert (
        read_manifest(complete(tmp_path / "b")[0])["about"]["state"]["encoding"] == kept
        and again.metrics["auc"] > 0.6
    )


def test_the_model_file_has_the_encoding(files: tuple[Path, Path]) -> None:
    source = Source(DataSpec(train=str(files[0]), **COLUMNS))  # type: ignore[arg-type]
    assert run(files).encoding == learned([source.summarise(part, 3) for part in range(3)])


def test_a_test_file_without_a_column_is_refused_before_training(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    lines = files[1].read_text().replace("income,", "wage,", 1)
    (tmp_path / "test.csv").write_text(lines)
    with pytest.raises(MpipsError, match=r"test\.csv: has no column 'income', which the training data have"):
        run((files[0], tmp_path / "test.csv"))


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl", "adagrad", "sgd", "fm"])
def test_a_positive_label_that_no_example_has_is_refused(files: tuple[Path, Path], algorithm: str) -> None:
    own: dict[str, Any] = {"program": "fm"} if algorithm == "fm" else {"settings": {"algorithm": algorithm}}
    with pytest.raises(
        InputError, match=r"positive = 'Yes': no example in .*train\.csv.* has this label, column 'bought'"
    ):
        run(files, 1, 2, data=COLUMNS | {"positive": "Yes"}, **own)


def test_a_model_scores_frames_and_files_without_labels(files: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run(files, checkpoint={"every": 1}, hooks=Hooks(checkpoints=tmp_path / "saved"))
    model = load_model(complete(tmp_path / "saved")[-1])
    with (files[1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    frame = {name: [row[name] for row in rows] for name in rows[0] if name != "bought"}
    frame["income"] = [float(each) for each in frame["income"]]  # type: ignore[misc]
    frame["age"] = [int(each) if each else None for each in frame["age"]]  # type: ignore[misc]
    chances = model.predict_proba(frame)
    assert np.allclose(model.predict_proba(files[1]), chances)
    assert np.mean(chances[:, 1] > 0.5) == pytest.approx(np.mean(model.predict(frame) == 1))
    bought = np.array([row["bought"] == "yes" for row in rows])
    assert np.mean((chances[:, 1] > 0.5) == bought) == pytest.approx(outcome.metrics["accuracy"], abs=0.01)


def test_a_frame_is_scored_whatever_the_form_of_the_training_data(files: tuple[Path, Path]) -> None:
    spec = DataSpec(train=str(files[0]), format="csv", on_error="skip", **COLUMNS)  # type: ignore[arg-type]
    source = Source(spec)
    table = learned([source.summarise(0, 1)])
    assert table is not None
    model = LogisticModel(np.empty(0, np.uint64), np.empty(0), spec, Encoding.of_table(table, "here"))
    frame: dict[str, list[Any]] = {
        "age": [40, None],
        "city": ["a", "b"],
        "job": ["c", None],
        "income": [1.0, 2.0],
    }
    assert model.decision_function(frame).tolist() == [0.0, 0.0]
    with pytest.raises(DataError, match="row 2: column 'income' has a number that is not finite"):
        model.decision_function(frame | {"income": [1.0, float("inf")]})


def test_a_worker_is_lost_while_the_encoding_is_learned(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []
    learnt = Assignment._learned

    def watched(self: Assignment) -> Any:
        tries.append(len(self.cluster.workers))
        return learnt(self)

    monkeypatch.setattr(Assignment, "_learned", watched)
    expected = run(files, settings={"passes": 1}).encoding
    for after in range(2, 12, 2):
        tries.clear()
        network = {"faults": [Fault("kill", 3, after_messages=after)], "spares": 0}
        assert run(files, settings={"passes": 1}, network=network).encoding == expected
        if tries == [2, 1]:
            return
    raise AssertionError("no worker was lost meanwhile")


@pytest.mark.parametrize("size", [400, 2_000])
def test_the_parts_of_a_lost_worker_are_read_again_from_row_groups(
    files: tuple[Path, Path], tmp_path: Path, size: int
) -> None:
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    table = arrow_csv.read_csv(files[0], parse_options=arrow_csv.ParseOptions(newlines_in_values=True))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=size)
    where = tmp_path / "a.parquet", files[1]
    network = {"faults": [Fault("kill", 3, after_messages=100)], "spares": 0}
    found, whole = run(where, workers=3, network=network), run(where, workers=3)
    assert [event["gone"] for event in found.log if event["event"] == "workers"] == [[3]]
    assert found.metrics["objective"] == pytest.approx(whole.metrics["objective"], rel=2e-3)
