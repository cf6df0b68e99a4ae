"""Checkpoint and resume of complete jobs: the same bits as an uninterrupted run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, Hooks, Outcome, make, objective, optimum, run_twin, svmlight

from mpips.checkpoint import checkpoint, inspection
from mpips.checkpoint.manifest import complete, read_manifest, step_of
from mpips.errors import CheckpointError, MpipsError, RemoteError
from mpips.scheduler.resuming import changed_settings
from mpips.transport.network_faults import random_delays

EVERY = {"every": 2, "keep": 50}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "correlated", n=60, m=12)


@pytest.fixture(scope="module")
def written(data_set: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """The checkpoints of a run on 2 servers and 2 workers, and what it came to."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, run_twin(data_set, 2, 2, hooks=Hooks(checkpoints=folder), checkpoint=EVERY)


def resumed(
    data_set: DataSet, path: Path, folder: Path, servers: int = 2, workers: int = 2, **tables: Any
) -> Outcome:
    return run_twin(data_set, servers, workers, hooks=Hooks(resume=path, checkpoints=folder), **tables)


def test_writing_checkpoints_changes_nothing(data_set: DataSet, written: tuple[Path, Outcome]) -> None:
    folder, outcome = written
    plain = run_twin(data_set, 2, 2)
    assert plain.sha == outcome.sha and plain.passes() == outcome.passes()
    steps = [step_of(path) for path in complete(folder)]
    assert steps == list(range(2, outcome.metrics["passes"], 2))
    reported = [event["step"] for event in outcome.log if event["event"] == "checkpoint"]
    assert reported == steps


def test_checkpoints_that_cannot_be_written_are_reported(data_set: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_twin(data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path / "file" / "in"), checkpoint=EVERY)
    reported = [event for event in outcome.log if event["event"] == "no checkpoint"]
    assert len(reported) == len(range(2, outcome.metrics["passes"], 2))
    assert all("Not a directory" in event["why"] for event in reported)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("servers", [1, 3, pytest.param(5, marks=pytest.mark.long)])
def test_resume_gives_the_same_bits_on_any_number_of_servers(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path, servers: int
) -> None:
    folder, outcome = written
    steps = complete(folder)
    for path in (steps[0], steps[-1]):
        again = resumed(data_set, path, tmp_path, servers, delays=random_delays(servers, delay=0.002))
        assert again.sha == outcome.sha
        assert again.metrics == outcome.metrics | {"model": again.metrics["model"]}
        assert again.passes() == outcome.passes()[step_of(path) :]
        assert again.passes("pass")[0] == step_of(path) + 1


def test_resume_from_a_resumed_run(data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path) -> None:
    """From 2 servers to 3 to 1: checkpoints of checkpoints, whose shards lie otherwise each time."""
    folder, outcome = written
    second = resumed(data_set, complete(folder)[0], tmp_path / "a", 3, checkpoint={"every": 3, "keep": 50})
    third = resumed(data_set, complete(tmp_path / "a")[-1], tmp_path / "b", 1)
    assert {second.sha, third.sha} == {outcome.sha}


@pytest.mark.parametrize("workers", [1, 3, pytest.param(4, marks=pytest.mark.long)])
def test_resume_on_other_workers_reaches_the_optimum(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path, workers: int
) -> None:
    folder, outcome = written
    path = complete(folder)[1]
    again = resumed(data_set, path, tmp_path, 3, workers)
    weights = again.weights(data_set.keys)
    assert again.metrics["objective"] <= 1.001 * optimum(data_set.x, data_set.y, 1.0)
    assert again.metrics["objective"] == pytest.approx(
        objective(weights, data_set.x, data_set.y, 1.0), rel=1e-9
    )
    before = outcome.passes()[step_of(path) - 1]
    assert again.passes()[0] <= before * (1 + 1e-9), "it goes on where the checkpoint was, not at 0"


def test_a_run_that_is_asked_to_stop_continues_to_the_same_bits(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path
) -> None:
    _, outcome = written
    stopped = run_twin(data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=5))
    assert stopped.stopped and stopped.metrics["passes"] == 5
    (path,) = complete(tmp_path)
    assert step_of(path) == 5
    again = resumed(data_set, path, tmp_path, 3)
    assert not again.stopped
    assert again.sha == outcome.sha


def test_with_delay_a_resumed_run_reaches_the_optimum(data_set: DataSet, tmp_path: Path) -> None:
    bounded = {"model": "bounded", "tau": 4}
    run_twin(
        data_set, 2, 2, hooks=Hooks(checkpoints=tmp_path), checkpoint=EVERY, consistency=bounded,
        delays=random_delays(3, delay=0.003, drop=0.02, duplicate=0.05),
    )  # fmt: skip
    again = resumed(data_set, complete(tmp_path)[1], tmp_path / "b", 1, 3, consistency=bounded)
    assert again.metrics["objective"] <= 1.001 * optimum(data_set.x, data_set.y, 1.0)


def test_only_the_newest_are_kept(data_set: DataSet, tmp_path: Path) -> None:
    outcome = run_twin(data_set, 2, 2, hooks=Hooks(checkpoints=tmp_path), checkpoint={"every": 1, "keep": 3})
    last = outcome.metrics["passes"] - 1
    assert [step_of(path) for path in complete(tmp_path)] == [last - 2, last - 1, last]
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in complete(tmp_path)]


def test_a_shorter_run_keeps_its_checkpoints_in_a_shared_folder(data_set: DataSet, tmp_path: Path) -> None:
    run_twin(data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=6), checkpoint=EVERY)
    longer = complete(tmp_path)
    stopped = run_twin(
        data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=3), checkpoint={"every": 1, "keep": 2}
    )
    reported = [Path(event["folder"]) for event in stopped.log if event["event"] == "checkpoint"]
    assert [step_of(path) for path in reported] == [1, 2, 3]
    assert set(complete(tmp_path)) == {*longer, *reported[1:]}
    assert not any(inspection.verify(path) for path in complete(tmp_path))


def test_a_resumed_run_removes_what_it_went_on_from(data_set: DataSet, tmp_path: Path) -> None:
    longer = {"settings": {"epsilon": 1e-9}}
    run_twin(data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=6), checkpoint=EVERY, **longer)
    two, four, six = complete(tmp_path)
    again = resumed(data_set, four, tmp_path, 2, checkpoint={"every": 1, "keep": 3}, **longer)
    assert again.sha == run_twin(data_set, 1, 2, **longer).sha
    last = again.metrics["passes"] - 1
    assert not two.exists() and not four.exists()
    assert [step_of(path) for path in complete(tmp_path)] == [6, last - 2, last - 1, last]
    assert not inspection.verify(six), "it went on from an earlier one: this is another run's"


def test_a_checkpoint_counts_though_an_old_one_cannot_be_removed(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, lineage: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("mpips.checkpoint.checkpoint._remove", refuse)
    done = run_twin(
        data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path, stop_after=3), checkpoint={"every": 1, "keep": 1}
    )
    assert [event["step"] for event in done.log if event["event"] == "checkpoint"] == [1, 2, 3]
    assert done.stopped and [step_of(path) for path in complete(tmp_path)] == [1, 2, 3]


def test_a_checkpoint_is_described_by_job_step_vectors_and_files(written: tuple[Path, Outcome]) -> None:
    folder, _ = written
    path = complete(folder)[0]
    text = inspection.describe(path)
    lines = text.splitlines()
    assert lines[0].startswith(f"{path}: complete") and "shards 2, worker states 2" in lines[0]
    assert "  program: sparse_lr" in lines and "  step: 2" in lines
    assert any(
        line.startswith("  vector w: 12 keys, float64, sparse, update block_proximal") for line in lines
    )
    assert sum("server-" in line for line in lines) == 2
    assert not inspection.verify(path)


# --- What cannot be resumed --------------------------------------------------------------------------------


def refusal(data_set: DataSet, path: Path, folder: Path, workers: int = 2, **tables: Any) -> str:
    with pytest.raises(MpipsError) as caught:
        resumed(data_set, path, folder, 2, workers, **tables)
    error = caught.value
    assert isinstance(error, CheckpointError) or (isinstance(error, RemoteError) and error.is_input)
    assert "\n" not in str(error)
    return str(error)


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_damaged_checkpoint_is_refused(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path
) -> None:
    source = complete(written[0])[0]
    for file in ("server-0001.h5", "worker-0000.h5", "manifest.json"):
        path = copied(source, tmp_path / file)
        raw = bytearray((path / file).read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        (path / file).write_bytes(raw)
        assert file in refusal(data_set, path, tmp_path / "c")
    path = copied(source, tmp_path / "cut")
    (path / "server-0000.h5").write_bytes((path / "server-0000.h5").read_bytes()[:-100])
    assert "server-0000.h5" in refusal(data_set, path, tmp_path / "c")
    path = copied(source, tmp_path / "gone")
    (path / "server-0000.h5").unlink()
    assert "server-0000.h5" in refusal(data_set, path, tmp_path / "c")
    path = copied(source, tmp_path / "torn")
    (path / "manifest.json").unlink()
    assert "manifest" in refusal(data_set, path, tmp_path / "c")
    assert str(tmp_path / "nowhere") in refusal(data_set, tmp_path / "nowhere", tmp_path / "c")


@pytest.mark.parametrize("workers", [2, 3])
def test_other_data_is_refused(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path, workers: int
) -> None:
    path = complete(written[0])[0]
    other = make(tmp_path / "fewer", "correlated", n=50, m=12)
    assert "written with training data" in refusal(other, path, tmp_path / "c", workers)
    other = make(tmp_path / "wider", "correlated", n=60, m=15)
    assert "written with training data" in refusal(other, path, tmp_path / "c", workers)
    rows = svmlight(data_set.x, -data_set.y, data_set.keys)
    (tmp_path / "flipped.svm").write_text(rows)
    flipped = DataSet(
        tmp_path / "flipped.svm",
        data_set.test,
        data_set.x,
        -data_set.y,
        data_set.test_x,
        data_set.test_y,
        data_set.keys,
    )
    assert "written with training data" in refusal(flipped, path, tmp_path / "c", workers)


def test_the_same_data_cut_into_other_parts_is_refused(
    data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """Each worker's margins are those of its own examples; as many workers may still have others."""
    lines = data_set.train.read_text().splitlines(keepends=True)
    files = [tmp_path / "a.svm", tmp_path / "b.svm"]
    files[0].write_text("".join(lines[:30]))
    files[1].write_text("".join(lines[30:]))
    path = complete(written[0])[0]
    with pytest.raises(RemoteError, match="written with other training data, or parts") as caught:
        run_twin(files, 2, 2, hooks=Hooks(resume=path, checkpoints=tmp_path / "c"))
    assert caught.value.is_input
    again = run_twin(files, 1, 1, hooks=Hooks(resume=path, checkpoints=tmp_path / "c"))
    assert again.metrics["objective"] <= 1.001 * optimum(data_set.x, data_set.y, 1.0)


def test_another_penalty_is_refused(data_set: DataSet, written: tuple[Path, Outcome], tmp_path: Path) -> None:
    path = complete(written[0])[0]
    assert "written with l1 = 1.0, not 0.5" in refusal(data_set, path, tmp_path, settings={"l1": 0.5})
    assert "algorithm = darlin, not ftrl" in refusal(data_set, path, tmp_path, settings={"algorithm": "ftrl"})


def test_another_setting_of_an_update_is_refused_and_of_the_program_is_told(
    data_set: DataSet, tmp_path: Path
) -> None:

    run_twin(data_set, 1, 1, hooks=Hooks(checkpoints=tmp_path, stop_after=2))
    (path,) = complete(tmp_path)
    about = read_manifest(path)["about"]
    about["facts"] = {}

    class Job:
        table = "sparse_lr"

        def __init__(self, **settings: Any) -> None:
            self.settings = settings

        def tables(self) -> dict[str, Any]:
            return {"sparse_lr": about["job"]["sparse_lr"] | self.settings}

    specs = {"w": {"settings": {"alpha": about["job"]["sparse_lr"]["alpha"], "passes": 77}}}
    with pytest.raises(CheckpointError, match=r"written with \[sparse_lr\] alpha = 0\.1, .* not 0\.5"):
        changed_settings(path, about, specs, Job(alpha=0.5))
    assert changed_settings(path, about, specs, Job(passes=5)) == ["[sparse_lr] passes = 5, was 0"]
    assert changed_settings(path, about, specs, Job()) == []


def test_another_program_is_refused(written: tuple[Path, Outcome], data_set: DataSet, tmp_path: Path) -> None:
    path = copied(complete(written[0])[0], tmp_path / "other")
    manifest = read_manifest(path)
    files = [entry for entry in manifest["files"] if entry["kind"] != "view"]
    checkpoint.commit(path, files, manifest["about"] | {"program": "lda"})
    assert "is of program 'lda', not 'sparse_lr'" in refusal(data_set, path, tmp_path / "c")


# --- Whole runs --------------------------------------------------------------------------------------------


@pytest.fixture
def job(data_set: DataSet, tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(
        f'[job]\nprogram = "sparse_lr"\nname = "made"\n[layout]\nservers = 2\nworkers = 2\n'
        f'[data]\ntrain = "{data_set.train}"\n'
    )
    return path


def result(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return read


@pytest.mark.ranks
def test_a_signal_stops_the_run_and_resume_ends_with_the_same_bits(
    written: tuple[Path, Outcome],
    job: Path,
    tmp_path: Path,
    start_mpips: Callable[..., Any],
    run_mpips: Callable[..., Any],
) -> None:
    run = tmp_path / "one"
    slow = ["--set", 'faults.slow=[{role="worker", factor=200}]']  # so that there is a while to be stopped in
    running = start_mpips("run", job, "--run-dir", run, *slow, cwd=tmp_path)

    def passed() -> bool:
        log = run / "metrics.jsonl"
        return log.exists() and log.read_text().count('"pass"') >= 2

    running.wait_for(passed)
    running.process.send_signal(signal.SIGUSR1)
    done = running.finish()
    assert done.code == 85, done.stderr
    stopped = result(run)
    assert stopped["status"] == "stopped"
    assert stopped["metrics"]["passes"] < written[1].metrics["passes"]
    (path,) = complete(tmp_path / "checkpoints" / "made")
    assert step_of(path) == stopped["metrics"]["passes"]
    assert stopped["checkpoint"] == str(path)
    assert f"resume from {path} with: --run-dir {run} --resume latest" in done.stderr

    shown = run_mpips("inspect", path)
    assert shown.code == 0 and shown.stdout.startswith(f"{path}: complete")

    again = run_mpips("run", job, "--run-dir", run, "--resume", "latest", "--servers", "3", cwd=tmp_path)
    assert again.code == 0, again.stderr
    finished = result(run)
    assert finished["status"] == "completed"
    assert finished["parameters_sha256"] == written[1].sha
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    passes = [event for event in log if event["event"] == "pass"]
    assert [event["pass"] for event in passes] == list(range(1, written[1].metrics["passes"] + 1))
    assert [event["objective"] for event in passes] == written[1].passes()
    assert np.all(np.diff([event["seconds"] for event in passes]) >= 0), (
        "seconds of training so far, all told"
    )


@pytest.mark.ranks
@pytest.mark.once
def test_resume_from_a_missing_or_damaged_checkpoint_is_one_line_and_exit_2(
    job: Path, written: tuple[Path, Outcome], tmp_path: Path, run_mpips: Callable[..., Any]
) -> None:
    done = run_mpips("run", job, "--resume", "latest", "--run-dir", "none", cwd=tmp_path)
    assert done.code == 2
    assert "there is no complete checkpoint" in done.last_line
    path = copied(complete(written[0])[0], tmp_path / "torn")
    (path / "server-0001.h5").write_bytes(b"no HDF5")
    done = run_mpips("run", job, "--resume", path, "--run-dir", "torn-run", cwd=tmp_path)
    assert done.code == 2
    assert "server-0001.h5" in done.last_line
    done = run_mpips("inspect", tmp_path / "nowhere")
    assert done.code == 2
    assert done.stderr.count("\n") == 1
