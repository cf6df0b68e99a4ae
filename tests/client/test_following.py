"""A model that follows a run: at each checkpoint it is what the run had then, while the run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Started, TinyData, patience

import mpips
from mpips.checkpoint import loading
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.manifest import read_manifest, step_of
from mpips.checkpoint.writing import write_shard
from mpips.cli import main
from mpips.client import following
from mpips.errors import CheckpointError, InputError, Outdated, UsageError
from mpips.rundir.claim import take
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

PROGRAM = Path(__file__).parent / "followed.py"


def sha(model: mpips.Model) -> str:
    """Return what `cluster.digest` does of the table."""
    keys, values = model.vectors()["t"]
    some = values.any(axis=1)
    record = np.empty(int(some.sum()), [("key", keys.dtype), ("row", values.dtype, (4,))])
    record["key"], record["row"] = keys[some], values[some]
    return hashlib.sha256(record.tobytes()).hexdigest()


def reported(folder: Path) -> dict[int, str]:
    """Return the digests that the run has reported, by step."""
    found = {}
    with suppress(OSError):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if "sha" in event:
                    found[event["step"]] = event["sha"]
    return found


def job_file(place: Path, **settings: Any) -> Path:
    place.mkdir(exist_ok=True)
    path = place / "followed.toml"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    path.write_text(
        f'[job]\nprogram = "{PROGRAM}"\n[checkpoint]\nevery = 1\nincremental = 4\nkeep = 2\n'
        "[followed]\n" + "\n".join(lines) + "\n"
    )
    return path


@pytest.mark.ranks
@pytest.mark.once
def test_it_is_the_run_at_each_step_while_it_prunes_is_killed_and_resumed(
    start_mpips: Callable[..., Started], tmp_path: Path
) -> None:
    job, folder = job_file(tmp_path / "job", steps=13, pause=0.1), tmp_path / "run"
    run = ("run", job, "--run-dir", folder, "--servers", "2", "--workers", "1")
    started = start_mpips(*run, cwd=tmp_path)
    began = time.monotonic()
    model: Any = None
    seen: dict[int, str] = {}
    killed = False
    while 13 not in seen:
        assert time.monotonic() - began < patience(60.0), (seen, started.stderr)
        if model is None:
            with suppress(InputError):
                model = mpips.follow(folder, program=str(PROGRAM), every=None)
        elif model.refresh() or not seen:
            seen[step_of(model.source)] = sha(model)
        if not killed and len(seen) >= 5:
            started.kill()
            killed = True
            assert not model.refresh() or sha(model)
            started = start_mpips(*run, "--resume", "latest", cwd=tmp_path)
        time.sleep(0.01)
    assert started.finish().code == 0
    told = reported(folder)
    assert seen == {step: told[step] for step in seen}
    assert len(seen) >= 8, "it has seen most of them"


def trained(run: Path, *arguments: str) -> Path:
    """Run a job on the twin; return the run's folder as that of a run that goes on, its result beside it as `x`."""
    assert main(["run", "--twin", *arguments, "--run-dir", str(run)]) == 0
    (last,) = Path("checkpoints").iterdir()
    facts = {"id": read_manifest(max(last.iterdir()))["run"], "working_directory": str(Path.cwd())}
    (run / "run.json").write_text(json.dumps(facts))
    (run / "result.json").rename(run / "x")
    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    return tmp_path


def test_only_deltas_are_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints appear one by one; what cannot be read is tried again, since it may be gone for a newer one."""
    job = str(job_file(place / "job", steps=8))
    run = trained(place / "run", job, "--set", "checkpoint.keep=99", "--servers", "2")
    told, folders = reported(run), sorted((place / "checkpoints" / "followed").iterdir())
    for each in folders:
        each.rename(place / each.name)
    read: list[str] = []
    stored, made_of = loading._stored, following.made_of

    def watched(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        return stored(path, *rest)

    def failing(path: Path, program: str | None) -> mpips.Model:
        fails.pop()
        raise CheckpointError(f"{path}: gone")

    def made(path: Path, program: str | None) -> mpips.Model:
        return (failing if fails else made_of)(path, program)

    monkeypatch.setattr(loading, "_stored", watched)
    monkeypatch.setattr(following, "made_of", made)
    model: Any = None
    for number, each in enumerate(folders, 1):
        (place / each.name).rename(each)
        fails = [number] * (number % 3 == 2)
        model = model or mpips.follow(run, program=str(PROGRAM), every=0.0)
        assert sha(model) == told[number] and model.source == each and not model.refresh()
    assert read == [each.name for each in folders], "each once, and a base only as such"
    before = model.vectors()["t"][1].copy()
    folders[0].rename(place / "x")
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    fails = [1] * 9
    folders[-1].rename(place / "y")
    with pytest.raises(CheckpointError, match="gone"):
        model.refresh()
    assert np.array_equal(model._model.vectors()["t"][1], before)


def test_what_is_removed_while_it_is_read_is_given_up_for_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is read: a base may take minutes."""
    now, newest, gone = [0.0], [0], {1, 2, 4}

    def found(run: Any) -> Path:
        folder = tmp_path / f"step-{newest[0]:06d}"
        folder.mkdir(exist_ok=True)
        (folder / "manifest.json").touch()
        return folder

    def made(path: Path, program: str | None) -> mpips.Model:
        now[0] += 100.0
        if step_of(path) in gone:
            newest[0] += 1
            raise CheckpointError(f"{path}: gone")
        return mpips.Model()

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(following, "model_of", found)
    monkeypatch.setattr(following, "made_of", made)
    monkeypatch.setattr(following, "taken_at", lambda checkpoint, written: 0.0)
    newest[0] = 1
    model = following.FollowedModel(lambda: tmp_path, None, None)
    assert step_of(model.source) == 3
    newest[0] = 4
    assert model.refresh() and step_of(model.source) == 5
    gone |= set(range(6, 99))
    newest[0] = 6
    with pytest.raises(CheckpointError, match="gone"):
        model.refresh()
    assert step_of(model.source) == 5


def test_other_threads_are_answered_while_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant(mpips.Model):
        def __init__(self, value: int) -> None:
            self.value = value

        def predict(self, data: Any) -> Any:
            return self.value

    reading, done, made = threading.Event(), threading.Event(), [Constant(1), Constant(2)]

    def read(path: Path, program: str | None) -> mpips.Model:
        if len(made) == 1:
            reading.set()
            assert done.wait(patience(30.0))
        return made.pop(0)

    monkeypatch.setattr(following, "model_of", lambda run: tmp_path)
    monkeypatch.setattr(following, "made_of", read)
    monkeypatch.setattr(following, "taken_at", lambda checkpoint, written: 0.0)
    mark = tmp_path / "manifest.json"
    mark.touch()
    model = following.FollowedModel(lambda: tmp_path, None, 0.0)
    os.utime(mark, (1, 1))
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(model.predict, None)
        assert reading.wait(patience(30.0))
        assert model.predict(None) == 1
        done.set()
        assert later.result() == model.predict(None) == 2


def test_models_of_fm_and_sparse_lr_are_followed_to_their_end(place: Path, tiny_data: TinyData) -> None:
    train = str(tiny_data.train)
    settings = {"sparse_lr": 'algorithm = "ftrl"\npasses = 3', "fm": "passes = 3\nbatch = 40"}
    for program, table in settings.items():
        (place / program).mkdir()
        job = place / program / "job.toml"
        job.write_text(
            f'[job]\nprogram = "{program}"\n[data]\ntrain = "{train}"\n[{program}]\n{table}\n'
            f"[checkpoint]\nevery = 1\nincremental = 9\nkeep = 99\n"
        )
        os.chdir(place / program)
        run = trained(place / program / "run", str(job))
        model = mpips.follow(run, every=0.0)
        assert "follows" in read_manifest(model.source)
        scores, labels = model.decision_function(train), model.predict(train)
        assert (
            main(["run", "--twin", str(job), "--set", "checkpoint.incremental=0", "--set", "job.name=whole"])
            == 0
        )
        whole = mpips.load_model(Path("checkpoints", "whole", model.source.name))
        assert np.array_equal(scores, whole.decision_function(train))
        assert all(map(np.array_equal, model.vectors()["w"], whole.vectors()["w"]))
        assert np.array_equal(labels, np.where(scores > 0, 1, -1)) and model.names() == []
        (run / "x").rename(run / "result.json")
        last = mpips.load_model(run).predict_proba(train)
        assert np.array_equal(model.predict_proba(train), last) and model.source == run


def test_the_program_of_the_page(place: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "deltas.md").read_text()
    scope: dict[str, Any] = {}
    exec(page.rpartition("```python\n")[2].rpartition("```")[0], scope)
    items = Segment(VectorSpec("items", "float32", width=2))
    items.push(np.array([5, 7], np.uint64), np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    folder = begin(place, 1)
    commit(folder, [write_shard(folder, 0, {"items": items})], {"step": 1})
    assert scope["load_model"](folder, {}).query(["7", "5"]) == [[3.0, 4.0], [1.0, 2.0]]


def run_of(runs: Path, name: str, started: str, job: str = "a") -> Path:
    """Make the folder of a run without checkpoints."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "job.toml").write_text(f'[job]\nname = "{job}"\nprogram = "{PROGRAM}"\n')
    (folder / "run.json").write_text(json.dumps({"started": f"2026-12-01T{started}Z"}))
    return folder


def test_latest_follows_later_runs_of_its_job_once_they_have_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = {run_of(tmp_path, "one", "01:00:00")}
    (first,) = ready
    monkeypatch.setattr(following, "has_model", lambda folder: folder.path in ready)
    latest = following._Latest(tmp_path)
    assert latest() == first
    ready.add(run_of(tmp_path, "of-another-job", "02:00:00", job="b"))
    ready.add(run_of(tmp_path, "older", "00:30:00"))
    second, third = run_of(tmp_path, "two", "03:00:00"), run_of(tmp_path, "three", "04:00:00")
    assert latest() == first, "the newer ones have no checkpoint"
    ready.add(second)
    assert latest() == second
    shutil.rmtree(third)
    assert latest() == second, "the folder is gone"
    # The first one is resumed in its folder.
    (first / "run.json").write_text(json.dumps({"started": "2026-12-01T05:00:00Z"}))
    assert latest() == first


def saved(run: Path, step: int, taken: float) -> None:
    """Write a checkpoint of the followed program's table, with `step` in it."""
    segment = Segment(VectorSpec("t", "float32"))
    segment.push(np.array([1], np.uint64), np.array([step], np.float32))
    folder = begin(run / "checkpoints", step)
    about = {"step": step, "taken": taken, "program": str(PROGRAM), "job": {"job": {"base": str(run)}}}
    commit(folder, [write_shard(folder, 0, {"t": segment})], about)


def test_a_model_that_is_too_far_behind_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, "run", "01:00:00")
    now = [1000.0]
    monkeypatch.setattr(following, "time", SimpleNamespace(monotonic=time.monotonic, time=lambda: now[0]))
    monkeypatch.setattr(
        following, "model_of", lambda folder: max((run / "checkpoints").iterdir()) if not done else run
    )
    done: list[bool] = []
    saved(run, 1, 990.0)
    model = mpips.follow(run, program=str(PROGRAM), every=None, max_lag=30.0)
    assert model.lag == 10.0 and model.vectors()["t"][1].tolist() == [[1.0]]
    saved(run, 2, 995.0)
    assert model.vectors()["t"][1].tolist() == [[1.0]], "the one before is not too old"
    now[0] = 1021.0
    assert model.vectors()["t"][1].tolist() == [[2.0]] and model.lag == 26.0
    now[0] = 1026.5
    with pytest.raises(
        Outdated, match=r"is 31\.5 s behind the run, and at most 30 s are allowed: .*step-000002"
    ):
        model.vectors()
    assert model.ended == "the run was killed, or its hosts are gone"
    with pytest.raises(Outdated, match=r"step-000002; the run was killed, or its hosts are gone: resume it"):
        model.vectors()
    (run / "result.json").write_text('{"status": "failed"}')
    assert model.ended == "the run has failed"
    held = take(run)
    assert model.ended == ""
    with pytest.raises(Outdated, match=r"step-000002$"):
        model.vectors()
    held.path.unlink()
    now[0] = 900.0
    assert model.lag == 0.0, "the leader's clock is ahead"
    now[0] = 2000.0
    done.append(True)
    (run / "result.json").write_text('{"status": "completed"}')
    monkeypatch.setattr(following, "made_of", lambda path, program: mpips.Model())
    assert model.vectors() == {} and model.lag == 0.0, "a run that has completed goes on no more"


def test_a_checkpoint_without_the_time_is_as_old_as_its_manifest(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    commit(folder, [], {"step": 1})
    assert following.taken_at(folder, 5 * 10**9) == 5.0


def test_what_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        mpips.follow(tmp_path / "no")
    with pytest.raises(InputError, match=r"is no run's folder: it has no job\.toml"):
        mpips.follow(tmp_path)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sparse_lr"\n')
    with pytest.raises(UsageError, match=r"every -1\.0 is no number of seconds"):
        mpips.follow(tmp_path, every=-1.0)
    with pytest.raises(UsageError, match=r"max_lag nan is no number of seconds"):
        mpips.follow(tmp_path, max_lag=float("nan"))
    with pytest.raises(InputError, match=r"has no model or checkpoint: result\.json"):
        mpips.follow(tmp_path)
