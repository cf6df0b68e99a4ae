"""`mpips convert` and `mpips inspect` with a job: converted data train to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from synthetic import DataSet, Hooks, make, run_twin

from mpips.checkpoint.manifest import complete, step_of
from mpips.cli.main import main


@pytest.fixture(scope="module", params=["binary", "real"])
def data_set(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), request.param)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("target", ["train.h5", "again.svm", "again.svm.gz", "again.svm.xz"])
@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_what_was_converted_trains_to_the_same_bits(
    data_set: DataSet, tmp_path: Path, target: str, algorithm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(data_set.train), str(tmp_path / target)]) == 0
    assert "200 examples" in capsys.readouterr().out
    settings = {"algorithm": algorithm}
    plain = run_twin(data_set.train, 1, 3, settings=settings)
    assert run_twin(tmp_path / target, 2, 3, settings=settings).sha == plain.sha


def test_conversion_to_hdf5_and_back_keeps_the_bits_of_training(data_set: DataSet, tmp_path: Path) -> None:
    for source, target in (
        (data_set.train, "a.h5"),
        (tmp_path / "a.h5", "b.svm"),
        (tmp_path / "b.svm", "c.h5"),
    ):
        assert main(["convert", str(source), str(tmp_path / target)]) == 0
    assert run_twin(tmp_path / "c.h5", 2, 2).sha == run_twin(data_set.train, 2, 2).sha


def test_columns_are_hashed_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [f"{rng.integers(0, 2)}\ta{rng.integers(0, 9)}\tb{rng.integers(0, 9)}" for _ in range(200)]
    (tmp_path / "clicks.tsv").write_text("label\ta\tb\n" + "\n".join(rows) + "\n")
    crosses = 'crosses=[["a", "b"]]'
    assert main(["convert", str(tmp_path / "clicks.tsv"), str(tmp_path / "c.h5"), "--set", crosses]) == 0
    plain = run_twin(tmp_path / "clicks.tsv", 2, 2, data={"crosses": [["a", "b"]]}, settings={"l1": 0.5})
    assert run_twin(tmp_path / "c.h5", 1, 2, settings={"l1": 0.5}).sha == plain.sha
    assert len(plain.keys) > 10


def test_inspect_shows_program_step_vectors_and_shards(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = run_twin(data_set, 3, 2, hooks=Hooks(checkpoints=tmp_path), checkpoint={"every": 3, "keep": 9})
    path = complete(tmp_path)[-1]
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: complete, ") and "shards 3, worker states 2" in lines[0]
    facts = dict(line.strip().partition(": ")[::2] for line in lines[1:])
    assert facts["program"] == "sparse_lr" and facts["step"] == str(step_of(path)) and facts["servers"] == "3"
    assert "update block_proximal, " in facts["vector w"] and ", l1 = 1.0" in facts["vector w"]
    held = [facts[f"server-000{server}.h5"] for server in range(3)]
    assert all(", w " in text and ", w.history " in text for text in held)
    assert outcome.metrics["passes"] > 3


def test_a_checkpoint_reads_with_nothing_but_h5py(data_set: DataSet, tmp_path: Path) -> None:
    """The view shows w of all shards as one: the weights, when the checkpoint is that of the last pass but one."""
    stopped = run_twin(data_set, 3, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=3))
    (path,) = complete(tmp_path)
    with h5py.File(path / "parameters.h5") as file:
        keys, values = file["w/keys"][()], file["w/values"][()]
    kept = values[:, 0] != 0
    assert np.array_equal(keys[kept], stopped.keys)
    assert np.array_equal(values[kept, 0], stopped.values)


@pytest.mark.ranks
@pytest.mark.once
def test_convert_run_and_inspect_as_commands(tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    data_set = make(tmp_path / "data", "real")
    assert run_mpips("convert", data_set.train, "train.h5", cwd=tmp_path).code == 0
    (tmp_path / "job.toml").write_text(
        '[job]\nprogram = "sparse_lr"\n[layout]\nservers = 2\nworkers = 2\n[data]\ntrain = "train.h5"\n'
        '[checkpoint]\nevery = 4\ndirectory = "kept"\n'
    )
    done = run_mpips("run", "job.toml", "--run-dir", "run", cwd=tmp_path)
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters_sha256"] == run_twin(data_set.train, 1, 2).sha
    shown = run_mpips("inspect", complete(tmp_path / "kept")[-1])
    assert shown.code == 0 and "shards 2, worker states 2" in shown.stdout
    bad = run_mpips("inspect", tmp_path / "data")
    assert bad.code == 2 and bad.stderr.count("\n") == 1
