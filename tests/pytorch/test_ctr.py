"""The job ctr, whole: beside PyTorch alone, on several layouts, and with a server that dies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import run_twin

from mpips import DataError, InputError, JobError, UsageError
from mpips.jobs.ctr import job
from mpips.jobs.ctr.clicks import generated
from mpips.jobs.ctr.job import Worker
from mpips.storage.disk.store import Store
from mpips.transport.network_faults import Fault

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch")
JOB = Path(__file__).parents[2] / "jobs" / "ctr" / "job.toml"
SMALL = ("--set", "ctr.clicks=20000", "--set", "ctr.batch=512")


def ctr(run_mpips: Any, folder: Path, *more: str) -> dict[str, Any]:
    done = run_mpips("run", JOB, "--run-dir", folder, *SMALL, *more, timeout=240)
    assert done.code == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def test_auc_is_that_of_pytorch_alone(tmp_path: Path, run_mpips: Any) -> None:
    from mpips.bench.applications.ctr import alone

    found = ctr(run_mpips, tmp_path / "run", "--twin", "--set", "ctr.clicks=60000")
    expected = alone(["ctr.clicks=60000", "ctr.batch=512"])
    assert found["metrics"]["auc"] == pytest.approx(expected["auc"], abs=0.003)
    assert found["metrics"]["loss"] == pytest.approx(expected["loss"], abs=0.003)


@pytest.mark.ranks
def test_losses_are_the_same_on_any_layout_and_after_a_death(tmp_path: Path, run_mpips: Any) -> None:
    sequential = ("--set", "consistency.tau=0", "--workers", "2")
    one = ctr(run_mpips, tmp_path / "one", *sequential)
    killed = ctr(
        run_mpips, tmp_path / "killed", *sequential, "--servers", "3",
        "--set", 'faults.kill=[{role="server", index=1, at_step=15}]',
    )  # fmt: skip
    assert len(killed["recoveries"]) == 1
    assert killed["metrics"]["curve"] == one["metrics"]["curve"]
    assert killed["parameters_sha256"] == one["parameters_sha256"]


@pytest.mark.ranks
def test_a_lost_worker_s_part_is_learned_by_the_others(tmp_path: Path, run_mpips: Any) -> None:
    lost = ctr(
        run_mpips, tmp_path / "run", "--workers", "2", "--set",
        'faults.kill=[{role = "worker", index = 1, at_step = 25}]',
    )  # fmt: skip
    assert len(lost["recoveries"]) == 1
    assert lost["metrics"]["clicks"] == 40_000
    assert lost["metrics"]["auc"] > 0.6


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clicks") / "clicks.npz"
    np.savez(path, **generated(400, 1)._asdict())
    return path


def test_losses_are_the_same_with_rows_on_disk_when_a_server_is_killed(clicks: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "program": "ctr", "settings": {"width": 128, "hidden": 8, "batch": 50}, "consistency": {"model": "sequential"},
    }  # fmt: skip
    plain = run_twin(clicks, 1, 2, **how)
    stores: list[Store] = []

    def store() -> Store:
        stores.append(Store(800_000, tmp_path))
        return stores[-1]

    lost = {"replicas": 1, "faults": [Fault("kill", 2, after_messages=200)], "store": store}
    killed = run_twin(clicks, 2, 2, **how, network=lost)
    assert killed.sha == plain.sha and killed.metrics["curve"] == plain.metrics["curve"]
    assert max(each.reads_made for each in stores) > 100


@pytest.mark.parametrize("digest", ["", "00000000"])
def test_a_worker_that_joins_learns_its_part_with_the_same_layers(
    clicks: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    workers, seen = list[Worker](), dict[str, Any]()

    class Watched(Worker):
        def __init__(self, context: Any) -> None:
            super().__init__(context)
            workers.append(self)
            if len(workers) == 3 and digest:
                self.digests["digest"] = digest

        def train(self, number: int, first: int) -> dict[str, Any]:
            if number == 0:
                seen["cluster"].orders.joining = 1
            return super().train(number, first)

    monkeypatch.setattr(job, "Worker", Watched)
    how: dict[str, Any] = {
        "program": "ctr", "settings": {"batch": 25, "passes": 3}, "network": {"spares": 1, "observed": seen},
    }  # fmt: skip
    if digest:
        with pytest.raises(JobError, match="the layers of the workers begin with different values"):
            run_twin(clicks, 1, 2, **how)
        return
    metrics = run_twin(clicks, 1, 2, **how).metrics
    assert len(workers) == 3 and metrics["clicks"] == 3 * 400
    assert metrics["curve"][2]["loss"] < metrics["curve"][0]["loss"]


def test_a_run_that_is_resumed_ends_with_the_same_losses(tmp_path: Path, run_mpips: Any) -> None:
    one = ("--twin", "--set", "consistency.tau=0")
    whole = ctr(run_mpips, tmp_path / "whole", *one)
    kept = ("--set", f"checkpoint.directory={tmp_path / 'kept'}", "--set", "checkpoint.every=1")
    ctr(run_mpips, tmp_path / "first", *one, *kept, "--set", "ctr.passes=1")
    step = next((tmp_path / "kept").rglob("step-*"))
    second = ctr(run_mpips, tmp_path / "second", *one, *kept, "--resume", step)
    assert second["metrics"]["curve"] == whole["metrics"]["curve"]


def test_settings_are_checked(tmp_path: Path, run_mpips: Any) -> None:
    for setting, text in (("ctr.batch=0", "batch"), ("ctr.hidden=-3", "hidden"), ("ctr.clicks=0", "clicks")):
        done = run_mpips("run", JOB, "--run-dir", tmp_path / "run", "--twin", "--set", setting)
        assert done.code == 2
        assert text in done.last_line


def test_workers_without_clicks_have_no_part_in_the_loss(tmp_path: Path, run_mpips: Any) -> None:
    few = ("--twin", "--workers", "3", "--set", "ctr.clicks=2", "--set", "ctr.passes=1")
    assert 0.0 < ctr(run_mpips, tmp_path / "run", *few)["metrics"]["loss"] < 5.0


def test_files_must_be_alike(tmp_path: Path, run_mpips: Any) -> None:
    random = np.random.default_rng(1)
    for name, fields in (("train", 3), ("test", 2)):
        clicks = {"ids": random.integers(0, 9, (40, fields)), "numbers": random.normal(size=(40, 2))}
        np.savez(tmp_path / f"{name}.npz", labels=random.integers(0, 2, 40), **clicks)
    files = [f"data.{name}={tmp_path / name}.npz" for name in ("train", "test")]
    done = run_mpips(
        "run", JOB, "--run-dir", tmp_path / "run", "--twin", "--set", files[0], "--set", files[1]
    )
    assert done.code == 2
    assert "test.npz: 2 fields of ids and 2 numbers, but" in done.last_line
    good = ctr(run_mpips, tmp_path / "good", "--twin", "--set", files[0])["metrics"]
    assert good["clicks"] == 80
    assert good["auc"] is None, "there are no clicks for a test"


def test_a_file_that_holds_no_clicks(tmp_path: Path) -> None:
    from mpips.jobs.ctr.clicks import load

    path = tmp_path / "clicks.npz"
    with pytest.raises(DataError, match=r"clicks\.npz: not a file of clicks"):
        load(path)
    whole = {"ids": np.ones((3, 2), int), "numbers": np.ones((3, 1)), "labels": np.array([0, 1, 1])}
    np.savez(path, **whole)
    assert load(path).labels.tolist() == [0, 1, 1]
    for name, value, text in (
        ("labels", np.array([0, 2, 1]), "labels must be 0 or 1"),
        ("labels", np.array([0, 1]), "are not of the same clicks"),
        ("ids", -np.ones((3, 2), int), "ids are integers from 0"),
        ("numbers", np.full((3, 1), np.nan), "numbers finite"),
    ):
        np.savez(path, **{**whole, name: value})
        with pytest.raises(DataError, match=text):
            load(path)


def test_a_model_scores_as_the_run_did(tmp_path: Path, run_mpips: Any) -> None:
    """Also one of a checkpoint, without MPI; `infer`, `query` and `export` take the run."""
    from mpips import load_model
    from mpips.jobs.ctr.clicks import generated
    from mpips.jobs.sparse_lr.evaluate import measures

    kept = ("--set", f"checkpoint.directory={tmp_path / 'kept'}", "--set", "checkpoint.every=1")
    folder = tmp_path / "run"
    done = ctr(run_mpips, folder, "--twin", "--set", "ctr.clicks=6000", "--set", "ctr.passes=1", *kept)
    test = generated(600, 0, 1)
    model = load_model(folder)
    scores = model.decision_function(test)
    found = measures(scores, test.labels > 0)["auc"]
    assert found == pytest.approx(done["metrics"]["auc"], rel=1e-6)
    assert np.array_equal(load_model(folder / "model.npz").decision_function(test), scores)
    # A program that loads a model keeps its random numbers and threads.
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    of_checkpoint = load_model(next((tmp_path / "kept").rglob("step-*")))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert np.array_equal(of_checkpoint.decision_function(test), scores)
    ids = np.random.default_rng(0).integers(0, 10, (3, 8))
    numbers = np.zeros((3, 4), np.float32)
    np.savez(tmp_path / "new.npz", ids=ids, numbers=numbers)
    scored = run_mpips("infer", folder, tmp_path / "new.npz", "--out", tmp_path / "scores.tsv")
    assert scored.code == 0, scored.stderr
    chances = model.predict_proba({"ids": ids, "numbers": numbers})[:, 1]
    lines = (tmp_path / "scores.tsv").read_text().splitlines()
    assert lines[0] == "example\tprobability"
    assert np.allclose([float(line.split("\t")[1]) for line in lines[1:]], chances, rtol=1e-6)
    exported = run_mpips("export", folder, "--vector", "rows", "--out", tmp_path / "rows.npz")
    assert exported.code == 0, exported.stderr
    (row,) = model.query([f"0:{ids[0, 0]}"])
    assert len(row) == 16
    for data, text in (
        ({"ids": ids[:, :7], "numbers": numbers}, "trained with 8 fields of ids and 4 numbers"),
        (np.ones(3), "data must be files .npz"),
    ):
        with pytest.raises(UsageError, match=text):
            model.predict(data)
    with pytest.raises(InputError, match="not of the form FIELD:ID"):
        model.query(["9:1"])
    with pytest.raises(InputError, match="the score of an example is not finite"):
        model.predict({"ids": ids, "numbers": np.full((3, 4), 3e38, np.float32)})
