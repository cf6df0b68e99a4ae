"""`mpips reproduce`: its inputs are checked before anything is started, and differences are reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.writing import write_shard
from mpips.cli.main import main
from mpips.cli.runs.reproduce import check_origin, compare_results, same_inputs
from mpips.files import fingerprint
from mpips.provenance import input_hashes
from mpips.provenance.input_hashes import Inputs
from mpips.provenance.run_json import ancestry
from mpips.rundir.folder import RunFolder, write_json
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

JOB = """[job]
program = "sparse_lr"
[data]
train = "{}/*.svm"
[record]
on = true
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Make a small file of data, and one that is too large to be hashed whole in passing."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.svm").write_text("+1 1:1\n" * 10)
    (tmp_path / "data" / "b.svm").write_text("+1 1:1\n" * 400_000)
    return tmp_path / "data"


@pytest.fixture
def recorded(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Make the folder of a recorded run, with the fields that describe its inputs."""
    monkeypatch.setattr(input_hashes, "QUICK_LIMIT", 2**20)
    return record(tmp_path / "run", data, "quick")


def record(at: Path, data: Path, how: str) -> RunFolder:
    folder = RunFolder(at)
    at.mkdir()
    folder.job.write_text(JOB.format(data))
    files = sorted(data.glob("*.svm"))
    known = Inputs(lambda: [("train", path) for path in files], how)
    known.start()
    write_json(folder.run, {"inputs": known.finish(None)})
    about = {"resume": None, "inputs": {str(path): path.stat().st_size for path in files}}
    folder.record.mkdir()
    write_json(folder.record / "about.json", about)
    write_json(folder.result, {"status": "completed", "parameters_sha256": "ab"})
    return folder


def refused(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(folder.path.parent.iterdir())
    assert main(["reproduce", str(folder.path), "--run-dir", str(folder.path.parent / "again")]) == 2
    assert sorted(folder.path.parent.iterdir()) == before, "nothing was started"
    *others, line = capsys.readouterr().err.splitlines()
    assert others == []
    return line


def kinds(folder: RunFolder) -> list[str]:
    return [fingerprint.hash_kind(each) for each in json.loads(folder.run.read_text())["inputs"]]


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a record to the run's folder."""
    from mpips.launch import mpi_launcher
    from mpips.replay import history

    monkeypatch.setattr(history, "read_history", lambda folder: None)
    monkeypatch.setattr(mpi_launcher, "find_starter", lambda named: None)


@pytest.mark.usefixtures("sound")
@pytest.mark.parametrize(("name", "kind"), [("a.svm", "sha256"), ("b.svm", "sample_sha256")])
def test_a_file_of_the_same_size_with_other_contents_is_refused(
    recorded: RunFolder, data: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {Path(each["path"]).name: each for each in json.loads(recorded.run.read_text())["inputs"]}[
        name
    ][kind]
    path = data / name
    path.write_text(path.read_text().replace("+1", "-1", 1))
    found = fingerprint.fingerprint(path, 2**20)[kind]
    assert refused(recorded, capsys) == (
        f"mpips: error: {path}: had {kind} {expected} when the run was recorded, and has {found}"
    )


@pytest.mark.usefixtures("sound")
def test_a_file_of_another_size_or_one_more_is_refused(
    recorded: RunFolder, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "c.svm").write_text("+1 1:1\n")
    assert "c.svm: did not exist when the run was recorded" in refused(recorded, capsys)
    (data / "c.svm").unlink()
    (data / "a.svm").write_text("")
    assert "a.svm: had 70 bytes when the run was recorded, and has none" in refused(recorded, capsys)


@pytest.mark.usefixtures("sound")
def test_a_checkpoint_that_is_not_the_one_of_the_start_is_refused(
    recorded: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def written(program: str) -> Path:
        folder = begin(tmp_path / "checkpoints", 1)
        commit(folder, [write_shard(folder, 0, {"w": Segment(VectorSpec("w"))})], {"program": program})
        return folder

    folder = written("a")
    about = json.loads((recorded.record / "about.json").read_text())
    write_json(recorded.record / "about.json", about | {"resume": str(folder)})
    facts = json.loads(recorded.run.read_text())
    write_json(recorded.run, facts | {"ancestry": ancestry(folder)})
    check_origin(recorded, folder)
    with (folder / "server-0000.h5").open("r+b") as file:
        file.seek(600)
        file.write(b"?")
    assert "damaged: its sha256 is not the manifest's: the run continued from" in refused(recorded, capsys)
    shutil.rmtree(folder)
    assert "the checkpoint that the run continued from is missing" in refused(recorded, capsys)
    assert written("b") == folder
    assert "is another checkpoint than the one that the run continued from" in refused(recorded, capsys)


def test_inputs_without_a_recorded_hash_are_compared_by_size_only(
    tmp_path: Path, data: Path, recorded: RunFolder
) -> None:
    assert kinds(recorded) == ["sha256", "sample_sha256"]
    sizes = {str(path): path.stat().st_size for path in data.iterdir()}
    told = same_inputs(recorded, sizes)
    assert told == "the inputs are the recorded ones: 1 by sha256, 1 by sample_sha256"
    bare = record(tmp_path / "bare", data, "none")
    path = data / "a.svm"
    path.write_text(path.read_text().replace("+1", "-1", 1))
    assert kinds(bare) == ["", ""]
    assert same_inputs(bare, sizes) == "the inputs are the recorded ones: 2 by size only"
    write_json(bare.run, json.loads(bare.run.read_text()) | {"inputs": 5})
    assert same_inputs(bare, sizes) == "the inputs are the recorded ones: 2 by size only"
    bare.run.unlink()
    assert same_inputs(bare, {}) == "the run read no files"


def test_the_hash_of_a_file_that_changed_during_the_run_is_not_compared(
    data: Path, recorded: RunFolder
) -> None:
    facts = json.loads(recorded.run.read_text())
    facts["inputs"][0] |= {"changed": True, "sha256": "00"}
    write_json(recorded.run, facts)
    assert "1 by sample_sha256, 1 by size only" in same_inputs(
        recorded, dict.fromkeys(map(str, data.iterdir()), 0)
    )


def test_an_input_that_cannot_be_read_counts_as_changed(data: Path) -> None:
    facts = {"path": str(data / "gone"), "sha256": "00"}
    assert input_hashes.first_altered([{"path": str(data)}, facts]) == (
        facts["path"], "sha256", "00", "cannot be read: No such file or directory",
    )  # fmt: skip


# --- the end ---------------------------------------------------------------------------------------------


def ended(at: Path, sha: str, **arrays: Any) -> RunFolder:
    """Make the folder of a run that has ended, with a model."""
    at.mkdir()
    folder = RunFolder(at)
    folder.job.write_text('[job]\nprogram = "toy"\n')
    write_json(folder.result, {"status": "completed", "parameters_sha256": sha})
    if arrays:
        np.savez(at / "model.npz", **arrays)
    return folder


def verdict(before: RunFolder, now: RunFolder) -> tuple[int, str]:
    recorded = before.read_result()
    assert recorded is not None
    return compare_results(before, recorded, now, 0)


def test_equal_bits_are_reported(tmp_path: Path) -> None:
    code, line = verdict(ended(tmp_path / "a", "ab"), ended(tmp_path / "b", "ab"))
    assert (code, line) == (0, f"mpips: the same bits: parameters_sha256 is ab; run folder: {tmp_path / 'b'}")


def test_different_bits_are_reported_with_first_key_and_difference(tmp_path: Path) -> None:
    before = ended(tmp_path / "a", "ab", keys=np.array([3, 5, 9]), values=np.array([1.0, 0.1, 2.0]))
    now = ended(tmp_path / "b", "cd", keys=np.array([3, 5, 11]), values=np.array([1.0, 0.35, 2.0]))
    code, line = verdict(before, now)
    assert (code, "\n" in line) == (1, False)
    assert line.startswith("mpips: other bits: parameters_sha256 was ab, and is cd; ")
    assert "; model.npz: values differ first at key 5: 0.1 and 0.35; " in line
    assert "; |difference| max 2, mean 1.41667 over 3 keys; " in line


def test_parameters_that_cannot_be_compared_are_reported(tmp_path: Path) -> None:
    values, same = np.array([1.0]), np.array([7.0])
    before = ended(tmp_path / "a", "ab", values=values)
    assert "no model file" in verdict(before, ended(tmp_path / "b", "cd"))[1]
    assert "model.npz is the same in both" in verdict(before, ended(tmp_path / "c", "cd", values=values))[1]
    (tmp_path / "d").mkdir()
    wide = ended(tmp_path / "e", "cd", values=np.ones((1, 2)))
    assert "values; rows of 1 numbers and of 2" in verdict(before, wide)[1]
    both = ended(tmp_path / "f", "ab", alone=same, z=same), ended(tmp_path / "g", "cd", z=same + 1)
    assert "z differ first at key 0: 7.0 and 8.0" in verdict(*both)[1]
    (tmp_path / "g" / "model.npz").write_bytes(b"no model")
    assert "they cannot be compared: " in verdict(*both)[1]


def test_a_run_that_failed_is_not_compared(tmp_path: Path) -> None:
    now = ended(tmp_path / "b", "ab")
    write_json(now.result, {"status": "failed", "error": "rank 3: boom", "exit_code": 1})
    code, line = verdict(ended(tmp_path / "a", "ab"), now)
    assert code == 1 and "boom" in line
