"""`mpips verify` and `mpips export`: one line per checkpoint, and numbers that are read back with the same bits."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.loading import load_range
from mpips.checkpoint.writing import write_shard
from mpips.cli.models import export, verify
from mpips.errors import CheckpointError, InputError
from mpips.ranges import ALL, KeyRange
from mpips.rank.ending import ResultFile
from mpips.rundir.folder import RunFolder, write_json, write_text
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

RNG = np.random.default_rng(3)
KEYS = np.unique(RNG.integers(0, 2**64, 300, dtype=np.uint64))
KEYS[-1] = 2**64 - 1


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    verify.add(commands)
    export.add(commands)
    arguments = parser.parse_args(argv)
    return int(arguments.command(arguments))


def write(directory: Path, step: int, *specs: VectorSpec) -> Path:
    """Write a checkpoint of random rows on two servers."""
    folder = begin(directory, step)
    files = []
    for server, mine in enumerate((KeyRange(0, 2**63), KeyRange(2**63, 2**64))):
        segments = {}
        for spec in specs:
            segments[spec.name] = Segment(spec, [mine])
            keys = KEYS[(mine.begin <= KEYS) & (mine.end - 1 >= KEYS)]
            rows = RNG.standard_normal((len(keys), spec.width))
            rows *= 1e9 if spec.dtype == "int64" else 10.0 ** RNG.integers(-30, 30, (len(keys), 1))
            segments[spec.name].push(keys, rows.astype(spec.dtype))
        files.append(write_shard(folder, server, segments))
    commit(folder, files)
    return folder


W, WIDE = VectorSpec("w"), VectorSpec("wide", "float32", width=3)


def test_verify_prints_a_line_per_checkpoint_and_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(tmp_path, 1, W), write(tmp_path, 2, W, WIDE)
    assert run("verify", str(one), str(two)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{one}: sound, files 3, 0.0 MB", f"{two}: sound, files 3, 0.1 MB"]
    content = bytearray((two / "server-0001.h5").read_bytes())
    content[len(content) // 2] ^= 4
    (two / "server-0001.h5").write_bytes(content)
    (two / "server-0000.h5").unlink()
    assert run("verify", str(tmp_path)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{one}: sound, files 3, 0.0 MB", f"{two}: NOT sound, problems 2"]
    assert "server-0000.h5: No such file" in lines[2] and "server-0001.h5: damaged" in lines[3]
    (tmp_path / "step-000003").mkdir()
    assert run("verify", str(tmp_path / "step-000003")) == 1
    assert "is not a complete checkpoint" in capsys.readouterr().out


@pytest.fixture
def ended(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that has ended in order."""
    folder = RunFolder(tmp_path / "run")
    write_text(folder.job, '[job]\nprogram = "sketch"\n')
    write_json(folder.run, {"id": "0123"})
    (folder.path / "model.npz").write_bytes(b"model")
    assert ResultFile(None, folder, recorded=True).end({"status": "completed", "exit_code": 0}) == 0
    return folder


def test_verify_compares_a_run_with_its_hashes(ended: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", str(ended.path)) == 0
    assert capsys.readouterr().out == f"{ended.path}: sound, files 3, 0.0 MB\n"
    for name in ("result.json", "job.toml", "model.npz"):
        path = ended.path / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"e", b"f", 1))
        assert run("verify", str(ended.path)) == 1
        first, second = capsys.readouterr().out.splitlines()
        assert first == f"{ended.path}: NOT sound, problems 1"
        assert second.startswith(f"  {path}: is not what the run has written: its sha256 is ")
        path.unlink()
        assert run("verify", str(ended.path)) == 1
        assert capsys.readouterr().out.endswith(f"  {path}: is missing\n")
        path.write_bytes(before)
    assert run("verify", str(ended.path)) == 0


def test_verify_of_a_run_without_hashes(ended: RunFolder) -> None:
    write_json(ended.run, {"id": "0123", "exit": {"status": "failed"}})
    with pytest.raises(InputError, match=r"its run.json has no hashes of outputs \(the run: failed\)"):
        run("verify", str(ended.path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "there is no checkpoint {0}/nowhere; in {0}: step-000001"),
        ("step-000007", "there is no checkpoint {0}/step-000007; in {0}: step-000001"),
        ("file", "{0}/file is not a checkpoint: it is not a folder"),
        ("folder", "{0}/folder is not a checkpoint, and holds none"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_bad_input(tmp_path: Path, name: str, said: str) -> None:
    write(tmp_path, 1, W)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as raised:
        run("verify", str(tmp_path / name))
    assert str(raised.value).startswith(said.format(tmp_path))


@pytest.mark.parametrize("spec", [W, WIDE, VectorSpec("counts", "int64")], ids=lambda spec: spec.name)
def test_what_was_exported_is_read_back_to_the_same_bits(tmp_path: Path, spec: VectorSpec) -> None:
    folder = write(tmp_path, 1, spec)
    rows = load_range(folder, spec.name, [ALL])
    assert run("export", str(folder), "--out", str(tmp_path / "out.npz")) == 0
    with np.load(tmp_path / "out.npz") as found:
        assert found["keys"].tobytes() == rows.keys.tobytes()
        assert found["values"].tobytes() == rows.values.tobytes() and found["values"].dtype == spec.dtype
    assert run("export", str(folder), "--vector", spec.name, "--out", str(tmp_path / "out.tsv")) == 0
    lines = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert [int(line[0]) for line in lines] == KEYS.tolist()
    values = np.array([line[1:] for line in lines]).astype(spec.dtype)
    assert values.tobytes() == rows.values.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "out.tsv", "step-000001"]


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, W, WIDE)
    for wrong, text in (
        (["--out", "w.csv"], r"--out w\.csv: the name must end in \.npz or \.tsv"),
        (["--out", "w.npz"], r"choose a vector by --vector NAME; it has: w, wide"),
        (["--out", "w.npz", "--vector", "v"], r"has no vector 'v'; it has: w, wide"),
        (
            ["--out", str(tmp_path / "none" / "w.tsv"), "--vector", "w"],
            r"w\.tsv: cannot be written: No such file",
        ),
    ):
        with pytest.raises(InputError, match=text):
            run("export", str(folder), *wrong)
    with pytest.raises(
        CheckpointError, match=r"is a folder of checkpoints: name one of them; in .*: step-000001"
    ):
        run("export", str(tmp_path), "--out", "w.npz")
