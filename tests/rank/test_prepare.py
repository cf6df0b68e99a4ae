"""The checkpoint from which a start continues, by the runs and checkpoints on disk."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mpips.checkpoint import checkpoint
from mpips.checkpoint.lineage import Lineage
from mpips.config.job_file import Job, load
from mpips.errors import CheckpointError
from mpips.rank import prepare

Run = Callable[..., Path]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sparse_lr"\nname = "a"\n')
    return load(tmp_path / "job.toml")


def run(
    name: str, started: str, *, untrained: bool = False, resumed: Path | None = None, job: str = "a"
) -> Path:
    """Write a run's `run.json`, as it is at its end."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    before = (
        [] if resumed is None else [{"checkpoint": str(resumed.absolute()), "manifest_sha256": sha(resumed)}]
    )
    ended = {"status": "stopped", "code": 85, **({"before_training": True} if untrained else {})}
    facts = {"id": name, "started": started, "exit": ended, "ancestry": before, "job": {"job": {"name": job}}}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


def sha(path: Path) -> str:
    return str(json.loads((path / "manifest.json").read_text())["sha256"])


def written(step: int, by: str, started: str) -> Path:
    """Write a checkpoint of a run."""
    folder = checkpoint.begin(Path("checkpoints/a"), step)
    checkpoint.commit(folder, [], {"step": step}, {"id": by, "started": started}, Lineage(by).run)
    return folder


def latest(job: Job, run_dir: Path | str = "") -> Path | None:
    return prepare.to_resume(argparse.Namespace(resume="latest", run_dir=str(run_dir)), job)


def test_a_run_that_trained_nothing_is_continued_from_its_beginning(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = run("a-1", "2026-01-01", untrained=True)
    assert latest(job, stopped) is None
    said = f"mpips: {stopped.absolute()}: was stopped before it trained anything: from the beginning\n"
    assert capsys.readouterr().err == said
    assert latest(job) is None


def test_the_checkpoints_of_an_earlier_run_are_not_its_own(job: Job) -> None:
    run("a-1", "2026-01-01")
    earlier = written(3, "a-1", "2026-01-01")
    assert latest(job) == earlier
    run("a-2", "2026-01-02", untrained=True)
    assert latest(job) is None
    run("b-1", "2026-01-03", job="b")
    assert latest(job) is None
    later = written(1, "a-3", "2026-01-04")
    assert latest(job) == later, "of a run elsewhere"


def test_a_run_that_resumed_is_continued_from_where_it_came_from(job: Job) -> None:
    run("a-1", "2026-01-01")
    first = written(3, "a-1", "2026-01-01")
    written(4, "a-0", "2026-01-01")
    stopped = run("a-2", "2026-01-02", untrained=True, resumed=first)
    assert latest(job) == latest(job, stopped) == first.absolute()
    # The run that wrote it goes on, and keeps no more than its own newest ones.
    written(5, "a-1", "2026-01-01")
    assert checkpoint.prune(Path("checkpoints/a"), 1, Lineage("a-1")) == [first]
    said = f"there is no complete checkpoint of the run in .*, and {first.absolute()}, which it was resumed from, was "
    with pytest.raises(CheckpointError, match=said):
        latest(job, stopped)
    own = written(4, "a-2", "2026-01-02")
    assert latest(job, stopped) == own


def test_a_run_that_has_trained_is_not_started_from_its_beginning(job: Job) -> None:
    with pytest.raises(CheckpointError, match="there is no complete checkpoint of the run in"):
        latest(job, run("a-1", "2026-01-01"))
    with pytest.raises(CheckpointError, match="there is no complete checkpoint in"):
        latest(job)


def test_a_damaged_checkpoint_of_a_later_run_is_named_though_it_has_fewer_steps(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(9, "a-0", "2026-01-01")
    (old / "manifest.json").write_text("{")
    os.utime(old / "manifest.json", ns=(1, 1))
    sound = written(8, "a-1", "2026-01-02")
    later = written(3, "a-2", "2026-01-03")
    (later / "manifest.json").write_text("{")
    assert latest(job) == sound
    said = capsys.readouterr().err
    assert said == f"mpips: warning: {later}/manifest.json is damaged: it is not JSON; {sound} is used\n"


def test_a_run_is_continued_from_a_checkpoint_that_was_renamed_in_its_folder(job: Job) -> None:
    written(3, "a-1", "2026-01-01")
    best = written(4, "a-1", "2026-01-01").rename("checkpoints/a/best")
    stopped = run("a-2", "2026-01-02", untrained=True, resumed=best)
    assert latest(job, stopped) == best.absolute()
