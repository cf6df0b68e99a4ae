"""Complete runs on disks that are full, become read-only or damage files: what remains is sound, and resumes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished
from synthetic import DataSet, make

from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import complete, latest

pytestmark = [pytest.mark.ranks, pytest.mark.once]

EVERY_PASS = ("--set", "checkpoint.every=1", "--set", "sparse_lr.epsilon=1e-9")


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "correlated", n=60, m=12)


@pytest.fixture
def job(data_set: DataSet, tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(
        f'[job]\nprogram = "sparse_lr"\nname = "made"\n[layout]\nservers = 1\nworkers = 1\n'
        f'[data]\ntrain = "{data_set.train}"\n'
    )
    return path


def mounted(folder: Path, *options: str) -> bool:
    """Mount a small file system; return whether that is possible."""
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    return os.geteuid() == 0 and not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on which about two checkpoints have room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, "size=180k"):
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def sizes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_resumed_from(
    run_mpips: Callable[..., Finished], job: Path, tmp_path: Path
) -> None:
    """As after a disk that lied about what is synced: of the right size, and full of zeros."""
    whole = tmp_path / "whole"
    done = run_mpips("run", job, "--run-dir", whole, *EVERY_PASS, "--set", "checkpoint.keep=3", cwd=tmp_path)
    assert done.code == 0, done.stderr
    *_, before, newest = complete(tmp_path / "checkpoints" / "made")
    shard = newest / "server-0000.h5"
    shard.write_bytes(bytes(shard.stat().st_size))
    resumed = ("--resume", "latest", *EVERY_PASS)
    again = run_mpips("run", job, "--run-dir", tmp_path / "run", *resumed, cwd=tmp_path)
    assert again.code == 0, again.stderr
    said = [line for line in (again.stdout + again.stderr).splitlines() if " is damaged: " in line]
    where = Path("checkpoints", "made")
    file = where / newest.name / shard.name
    why = f"{file}: damaged: its sha256 is not the manifest's"
    assert said == [f"warning: checkpoint {file.parent} is damaged: {why}"]
    assert f"resumed from {where / before.name}" in again.stdout
    assert result(tmp_path / "run")["parameters_sha256"] == result(whole)["parameters_sha256"]
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert Path(facts["ancestry"][-1]["checkpoint"]).name == before.name
    # Named, it is refused.
    refused = run_mpips("run", job, "--run-dir", tmp_path / "no", "--resume", newest, cwd=tmp_path)
    assert refused.code == 2 and "is damaged" in refused.last_line
    # Without a readable manifest it is none, which is told, too.
    last = complete(tmp_path / "checkpoints" / "made")[-1]
    (last / "manifest.json").write_text("{")
    third = run_mpips("run", job, "--run-dir", tmp_path / "third", *resumed, cwd=tmp_path)
    assert third.code == 0, third.stderr
    assert f"warning: {where / last.name / 'manifest.json'} is damaged: it is not JSON; " in third.stderr
    assert said[0] in third.stdout + third.stderr


def test_a_full_disk_keeps_a_sound_checkpoint_and_the_run_goes_on(
    run_mpips: Callable[..., Finished], job: Path, tmp_path: Path, small_disk: Path
) -> None:
    checkpoints = small_disk / "checkpoints"
    where = ("--set", f"checkpoint.directory={checkpoints}", "--set", "checkpoint.keep=8")
    done = run_mpips("run", job, "--run-dir", tmp_path / "run", *EVERY_PASS, *where, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "warning: no checkpoint was written (rank 1 (server 0 on " in done.stderr + done.stdout, sizes(
        checkpoints
    )
    assert "No space left on device" in done.stderr + done.stdout
    sound = latest(checkpoints)
    assert sound is not None and verify(sound) == []
    assert set(os.listdir(checkpoints)) == {path.name for path in complete(checkpoints)}


def test_a_disk_that_becomes_read_only_keeps_a_sound_checkpoint(
    start_mpips: Callable[..., Any],
    run_mpips: Callable[..., Finished],
    job: Path,
    tmp_path: Path,
    small_disk: Path,
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    checkpoints = small_disk / "checkpoints"
    where = ("--set", f"checkpoint.directory={checkpoints}")
    slow = ("--set", 'faults.slow=[{role="worker", factor=100}]')
    running = start_mpips("run", job, "--run-dir", tmp_path / "run", *EVERY_PASS, *where, *slow, cwd=tmp_path)
    running.wait_for(lambda: latest(checkpoints) is not None)
    # As the kernel does after an error of the disk. Files that are open to write refuse it.
    forced = ["mount", "-o", "remount,ro", small_disk]
    running.wait_for(lambda: not subprocess.run(forced, capture_output=True, check=False).returncode)
    done = running.finish()
    assert done.code == 0, done.stderr
    assert "warning: no checkpoint was written (cannot make" in done.stderr + done.stdout
    assert "Read-only file system" in done.stderr + done.stdout
    sound = latest(checkpoints)
    assert sound is not None and verify(sound) == []
    again = run_mpips("run", job, "--run-dir", tmp_path / "more", "--resume", sound, cwd=tmp_path)
    assert again.code == 0, again.stderr
    whole, more = result(tmp_path / "run"), result(tmp_path / "more")
    assert more["status"] == whole["status"] == "completed"
