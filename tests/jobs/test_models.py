"""Models of finished runs, applied without MPI: the same numbers from files, arrays and sparse matrices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoint.test_damaged_checkpoints import rewrite
from scipy.sparse import csr_matrix, random_array
from synthetic import DataSet, Hooks, job_of, make, run_twin

from mpips import InputError, JobError, Run, UsageError, load_model
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.manifest import complete, read_manifest
from mpips.checkpoint.writing import write_shard
from mpips.cli.main import main
from mpips.client.rows import rows_at_end
from mpips.config.program import load_program
from mpips.data import DataSpec, read
from mpips.jobs.lda.inference import TopicModel, load
from mpips.jobs.lda.model import export_model
from mpips.jobs.sketch.model import SketchModel
from mpips.jobs.sketch.results import Sketch
from mpips.jobs.sparse_lr import evaluate
from mpips.jobs.sparse_lr.model import LogisticModel, reading
from mpips.rundir.folder import RunFolder
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("data"), "real", n=300, m=30)


@pytest.fixture(scope="module")
def trained(data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Return a run's last checkpoint, and its outcome."""
    folder = tmp_path_factory.mktemp("checkpoints")
    outcome = run_twin(
        data,
        workers=2,
        settings={"l1": 0.5},
        checkpoint={"every": 1, "keep": 1},
        hooks=Hooks(checkpoints=folder),
    )
    return complete(folder)[-1], outcome


@pytest.fixture
def run(trained: tuple[Path, Any], data: DataSet, tmp_path: Path) -> Path:
    """Return the folder of a run, with the model's file."""
    folder = tmp_path / "run"
    folder.mkdir()
    job = job_of(
        folder, {"job": {"program": "sparse_lr", "base": str(tmp_path)}, "data": {"train": str(data.train)}}
    )
    (folder / "job.toml").write_text(job.to_toml())
    (folder / "result.json").write_text('{"status": "completed"}')
    outcome = trained[1]
    rows = [(outcome.keys, outcome.values[:, None])]
    cluster: Any = SimpleNamespace(
        folder=SimpleNamespace(path=folder), metrics={}, export=lambda _: rows,
        vectors={"w": SimpleNamespace(spec=SimpleNamespace(key_dtype=np.uint64))},
    )  # fmt: skip
    evaluate.export_model(cluster, None)
    return folder


def test_scores_are_those_of_the_run(run: Path, trained: tuple[Path, Any], data: DataSet) -> None:
    model, outcome = load_model(run), trained[1]
    dense = np.zeros((len(data.test_x), int(data.keys[-1]) + 3))
    dense[:, data.keys.astype(np.int64)] = data.test_x
    chances = model.predict_proba(dense)
    assert chances.shape == (len(dense), 2) and np.allclose(chances.sum(axis=1), 1.0)
    sparse = csr_matrix(dense)
    (batch,) = read([str(data.test)], DataSpec())
    for given in (sparse, sparse.tocoo(), dense.tolist(), str(data.test), [data.test], batch):
        assert np.array_equal(model.predict_proba(given), chances)
    found = evaluate.measures(model.decision_function(dense), data.test_y > 0)
    assert found["auc"] == outcome.metrics["auc"] and found["accuracy"] == outcome.metrics["accuracy"]
    assert found["logloss"] == pytest.approx(outcome.metrics["logloss"], rel=1e-12)
    assert np.mean(model.predict(dense) == data.test_y) == found["accuracy"]
    assert np.array_equal(model.predict(dense[:0]), [])


def test_a_checkpoint_and_a_model_file_are_models_too(
    run: Path, trained: tuple[Path, Any], data: DataSet, tmp_path: Path
) -> None:
    of_run, outcome = load_model(run), trained[1]
    moved = (run / "model.npz").rename(tmp_path / "moved.npz")
    of_file = load_model(moved)
    assert isinstance(of_run, LogisticModel) and isinstance(of_file, LogisticModel)
    assert np.array_equal(of_file.keys, outcome.keys) and np.array_equal(of_file.weights, outcome.values)
    with pytest.raises(InputError, match=r"run: holds no model\.npz"):
        load_model(run)
    of_checkpoint = load_model(trained[0])
    assert of_checkpoint.predict(str(data.test)).shape == data.test_y.shape
    # Of a run that was stopped it is the model.
    (run / "result.json").write_text('{"status": "stopped"}')
    manifest = json.loads((trained[0] / "manifest.json").read_text())
    (run / "run.json").write_text(json.dumps({"id": manifest.get("run", ""), "ancestry": [
        {"checkpoint": str(trained[0]), "manifest_sha256": _sha(trained[0])}]}))  # fmt: skip
    stopped = load_model(Run(run))
    assert isinstance(stopped, LogisticModel) and isinstance(of_checkpoint, LogisticModel)
    assert np.array_equal(stopped.weights, of_checkpoint.weights)
    keys, weights = Run(run).vector()
    assert np.array_equal(keys[weights != 0], stopped.keys)


def _sha(checkpoint: Path) -> str:
    from mpips import read_manifest

    return str(read_manifest(checkpoint)["sha256"])


def test_an_error_comes_before_any_output(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.svm").write_text("+1 1:x\n")
    assert main(["infer", str(run), str(tmp_path / "bad.svm")]) == 2
    assert capsys.readouterr().out == ""


def test_the_commands(run: Path, data: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(run)
    assert isinstance(model, LogisticModel)
    assert main(["infer", str(run), str(data.test), "--out", str(tmp_path / "p.tsv")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'p.tsv'}: {len(data.test_y)} examples\n"
    found = np.loadtxt(tmp_path / "p.tsv", skiprows=1)
    assert np.allclose(found[:, 1], model.predict_proba(data.test)[:, 1], rtol=1e-8)
    assert main(["infer", str(run)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0] == f"{len(model.keys)} weights that are not 0; the largest:"
    key, weight = first[1].split("\t")
    assert main(["query", str(run), key, "1000000"]) == 0
    assert capsys.readouterr().out == f"{key}\t{weight}\n1000000\t0.0\n"
    assert main(["query", str(run), "-1"]) == 2
    assert "'-1' is not a key of this model: a whole number below 2**64" in capsys.readouterr().err
    assert main(["export", str(run), "--out", str(tmp_path / "w.tsv")]) == 0
    exported = [line.split("\t") for line in (tmp_path / "w.tsv").read_text().splitlines()]
    assert [int(each[0]) for each in exported] == model.keys.tolist()
    assert [float(each[1]) for each in exported] == model.weights.tolist()
    assert main(["export", str(run), "--vector", "v", "--out", str(tmp_path / "v.tsv")]) == 2
    assert "and no checkpoint in" in capsys.readouterr().err


def test_wrong_data_are_refused_in_a_line(data: DataSet) -> None:
    model = LogisticModel(np.array([1, 5], np.uint64), np.array([1.0, -2.0]))
    for wrong, said in (
        (np.ones(3), "data must have 2 dimensions, and numbers; not 1"),
        (np.array([["a"]]), "not 2, and <U1"),
        (np.array([[np.nan]]), "not finite"),
        (csr_matrix([[np.inf]]), "not finite"),
        (np.array([[0.0, 1e39, 1.0, 0.0, 0.0, 1e39]]), "not finite in 32-bit"),
        (csr_matrix([[0.0, 1e39]]), "not finite in 32-bit"),
        (csr_matrix([[1j]]), "not complex128"),
        (np.ma.masked_array([[0.0, 1.0]], [[False, True]]), "data are a masked array"),
        (SimpleNamespace(columns=["a"]), "was not trained on tables"),
    ):
        with pytest.raises(UsageError, match=said):
            model.predict(wrong)
    with pytest.raises(InputError, match="no such file"):
        model.predict("none.svm")
    with pytest.raises(InputError, match=r"keys of 64 bits, and the data of 128"):
        LogisticModel(model.keys, model.weights)._places(
            np.zeros(1, np.dtype([("high", "<u8"), ("low", "<u8")]))
        )
    with pytest.raises(UsageError, match="LogisticModel has no `transform`; it has: predict, predict_proba"):
        model.transform(np.ones((1, 2)))


def test_dense_matrices_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpips.jobs.sparse_lr.model.MOST_CELLS", 70)
    x = random_array((50, 20), density=0.3, rng=1).toarray().astype(np.float32).astype(float)
    w = np.linspace(-1, 1, 20)
    model = LogisticModel(np.arange(20, dtype=np.uint64), w)
    assert np.allclose(model.decision_function(x), x @ w)


@pytest.mark.parametrize(
    "changed",
    [
        {"values": np.ones(3)},
        {"values": np.ones(2, "f4")},
        {"values": np.array([1.0, np.nan])},
        {"keys": np.array([3, 3], "u8")},
        {"keys": np.array(3, "u8")},
        {"keys": np.array("x")},
        {"keys": np.empty((2, 0), "u8")},
        {"keys": np.empty((2, 0), "f4")},
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    arrays = {"keys": np.array([3, 4], np.uint64), "values": np.ones(2), "program": np.array("sparse_lr")}
    np.savez(tmp_path / "m.npz", **arrays)
    assert load_model(tmp_path / "m.npz").query(["3"]) == [1.0]
    np.savez(tmp_path / "m.npz", **(arrays | changed))
    with pytest.raises(InputError, match=r"m\.npz: is (not a model|damaged|not a sound model)"):
        load_model(tmp_path / "m.npz")


def test_data_settings_of_others_are_checked() -> None:
    for wrong in ({"missing": 3}, {"crosses": 3}, {"numeric": 3}, {"new": 1}):
        with pytest.raises(ValueError, match=r"must be|unknown key"):
            reading({"data": wrong})


@pytest.mark.parametrize("keys", [None, [2, 1], [1, 1], [1.0, 2.0]])
def test_vectors_that_others_have_left_are_checked(tmp_path: Path, keys: Any) -> None:
    import h5py

    (tmp_path / "result.json").write_text('{"status": "completed"}')
    with h5py.File(tmp_path / "vectors.h5", "w") as file:
        if keys is None:
            file["w"] = 5
        else:
            file["w/keys"] = np.array(keys, "u8" if type(keys[0]) is int else "f8")
            file["w/values"] = np.ones((2, 1))
    with pytest.raises(InputError, match=r"vectors\.h5: is damaged"):
        rows_at_end(RunFolder(tmp_path), "w")


OWN = """
from dataclasses import dataclass
from mpips import Model

@dataclass(frozen=True)
class Settings:
    factor: float = 2.0

def schedule(cluster, settings):
    return {}

class Worker:
    pass

class Scaled(Model):
    def __init__(self, factor):
        self.factor = factor

    def predict(self, data):
        return self.factor * data

def load_model(source, job):
    return Scaled(job["scaled"]["factor"])
"""


def test_a_program_of_ones_own_has_a_model_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(OWN)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "scaled.py"\n[scaled]\nfactor = 3.0\n')
    with pytest.raises(JobError, match="--program"):
        load_model(tmp_path)
    model = load_model(tmp_path, program=str(tmp_path / "scaled.py"))
    assert model.predict(np.ones(2)).tolist() == [3.0, 3.0]


WORDS = ["church", "peace", "pope", "yeltsin"]
ROWS = np.array([[3, 0, 0], [0, 4, 1], [5, 0, 0], [0, 6, 2]], np.int32)


@pytest.fixture
def topics(tmp_path: Path) -> TopicModel:
    pieces = [(np.arange(4, dtype=np.uint64), ROWS)]
    export_model(tmp_path / "model.h5", pieces, np.array([0.1, 0.2, 0.3]), 0.01, 4, WORDS)
    found = load_model(tmp_path / "model.h5")
    assert isinstance(found, TopicModel)
    return found


def test_topics_of_documents(topics: TopicModel, tmp_path: Path) -> None:
    counts = np.array([[2, 0, 1, 0], [0, 0, 0, 0], [0, 3, 0, 4]])
    shares = topics.transform(counts)
    assert shares.shape == (3, 3) and np.allclose(shares.sum(axis=1), 1.0)
    assert topics.predict(counts).tolist() == [0, 2, 2]
    assert np.allclose(shares[1], [1 / 6, 1 / 3, 1 / 2], atol=1e-5)
    (tmp_path / "new.ldac").write_text("2 0:2 2:1\n0\n2 1:3 3:4\n")
    texts = ["Church church\npope", "", "Peace peace peace yeltsin yeltsin yeltsin yeltsin"]
    for found in (topics.transform(csr_matrix(counts)), topics.transform(tmp_path / "new.ldac"),
                  topics.transform(texts=texts), topics.transform([str(tmp_path / "new.ldac")])):  # fmt: skip
        assert np.allclose(found, shares)
    assert topics.top_words(2) == [["pope", "church"], ["yeltsin", "peace"], ["yeltsin", "peace"]]
    keys, rows = topics.vectors()["words"]
    assert keys.tolist() == np.flatnonzero(ROWS.reshape(-1)).tolist() and rows[:, 0].tolist() == [
        3,
        4,
        1,
        5,
        6,
        2,
    ]
    for wrong, said in (
        (np.ones((1, 5)), "the counts are of 5 words, and the vocabulary has 4"),
        (np.full((1, 4), 0.5), "counts must be whole numbers"),
        (np.full((1, 4), -1), "counts must be whole numbers"),
        (np.ones(4), "not 1, and float64"),
        (np.ma.masked_array(np.ones((1, 4)), [[False, False, True, False]]), "counts are a masked array"),
        (None, r"takes documents, or texts=\[...\]"),
    ):
        with pytest.raises(UsageError, match=said):
            topics.transform(wrong)
    with pytest.raises(UsageError, match="texts is a list of documents"):
        topics.transform(texts="one")


def test_topics_of_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("church pope church pope\npeace yeltsin peace yeltsin\n" * 5)
    (tmp_path / "vocab").write_text("\n".join(WORDS) + "\n")
    data = {"vocab": str(tmp_path / "vocab")}
    hooks = Hooks(checkpoints=tmp_path / "saved")
    run_twin(tmp_path / "train.txt", program="lda", settings={"topics": 3, "sweeps": 4}, data=data, hooks=hooks,
             checkpoint={"every": 4})  # fmt: skip
    (saved,) = complete(tmp_path / "saved")
    model = load_model(saved)
    assert isinstance(model, TopicModel) and model.topics.words == WORDS
    assert int(model.topics.n_k.sum()) == int(model.topics.counts.sum()) == 40
    assert model.transform(texts=["church church", "peace"]).shape == (2, 3)
    assert load(saved, {}).topics.words is None
    manifest = read_manifest(saved)
    for part, changed, text in (
        ("facts", {"vocabulary": None}, "about.facts.vocabulary is null, and should be an integer"),
        ("facts", {"topics": 2**40}, "about.facts.topics is an integer out of bounds"),
        ("facts", {"vocabulary": 2**31 - 1}, "declares 2,147,483,647 words, and has rows of"),
        ("state", {"alpha": [[1.0]] * 3}, r"about.state.alpha\[0\] is a list, and should be"),
        ("state", {"alpha": [-1.0] * 3}, "is damaged: alpha and beta must be above 0"),
        ("state", {"beta": {}}, "about.state.beta is a table, and should be"),
    ):
        about = manifest["about"] | {part: manifest["about"][part] | changed}
        rewrite(saved, manifest | {"about": about})
        with pytest.raises(InputError, match=text):
            load(saved, {})


def test_counts_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = load_program("sketch", Path())
    table = np.arange(32, dtype=np.int64)
    Sketch(table, 2, 16, 7, False).save(tmp_path)
    model = load_model(tmp_path / "sketch.npz")
    assert isinstance(model, SketchModel) and program.name == "sketch"
    counts = model.predict([3, 5])
    assert counts.dtype == np.int64
    assert model.query(["3", "5"]) == model.predict(np.array([3, 5])).tolist() == counts.tolist()
    with pytest.raises(InputError, match="'x' is not a key of this sketch"):
        model.predict(["x"])
    with pytest.raises(UsageError, match=r"predict takes several keys, as in \['35'\]"):
        model.predict("35")
    (tmp_path / "keys").write_bytes(b"3\r\n5\n")
    assert main(["infer", str(tmp_path / "sketch.npz"), str(tmp_path / "keys")]) == 0
    assert capsys.readouterr().out == f"3\t{counts[0]}\n5\t{counts[1]}\n"
    assert main(["infer", str(tmp_path / "sketch.npz")]) == 0
    assert capsys.readouterr().out == "depth 2, width 16, of numbers: 120 counted\n"
    texts = SketchModel(Sketch(table, 2, 16, 7, True))
    assert texts.predict(["\udcff", b"\xff"]).tolist() == texts.predict([b"\xff"] * 2).tolist()


def test_the_last_run_without_a_model_is_not_passed_over(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs", "good").symlink_to(run)
    Path("runs", "typo").mkdir()
    Path("runs", "typo", "run.json").write_text('{"started": "2999-01-01T00:00:00+00:00"}')
    with pytest.raises(
        InputError, match=r"latest is runs/typo, which has no model.*; name a run: .* runs/good"
    ):
        load_model("latest")


@pytest.mark.parametrize("program", ["sparse_lr", "sketch", "lda", "fm"])
def test_checkpoints_with_rows_of_another_kind_are_no_models(tmp_path: Path, program: str) -> None:
    """As those of another version, or of a stranger: keys of 128 bits, other numbers, or none in a row."""
    name = {"sketch": "table", "lda": "words"}.get(program, "w")
    facts = {"depth": 2, "width": 8, "seed": 0, "keys": "text", "vocabulary": 3, "topics": 2}
    job = {"job": {"base": "/", "seed": 0, "program": program}}
    about = {"program": program, "job": job, "facts": facts, "state": {"alpha": [0.1, 0.1], "beta": 0.1}}
    for number, spec in enumerate((VectorSpec(name, "int32", 3), VectorSpec(name, "int64", key_bits=128))):
        folder = begin(tmp_path, number)
        commit(folder, [write_shard(folder, 0, {name: Segment(spec)})], about)
        with pytest.raises(InputError, match=f"vector '{name}' has the "):
            load_model(folder)
    manifest = read_manifest(folder)
    manifest["files"][0]["vectors"][name]["spec"]["width"] = 0
    rewrite(folder, manifest)
    with pytest.raises(InputError, match=r"spec\.width is an integer out of bounds"):
        load_model(folder)


def test_a_document_that_is_not_utf8_is_refused_alone(topics: TopicModel) -> None:
    assert len(topics.score_lines(["church pope", "", "peace\rpope"])) == 3
    for text in ("pope \udcff", "\ud800"):
        with pytest.raises(InputError, match=r"^is not UTF-8 text; convert it"):
            topics.score_lines(["church pope", text])
