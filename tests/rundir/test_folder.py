"""A run's folder: unique, not confused with another run's, its files complete."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mpips.errors import ClosedError, InputError
from mpips.rundir.claim import release
from mpips.rundir.folder import JsonLinesWriter, RunFolder, write_json, write_text


def noon() -> datetime:
    return datetime(2025, 3, 1, 12, 0, 5, tzinfo=UTC)


def test_folders_of_one_second_differ(tmp_path: Path) -> None:
    names = [RunFolder.create("toy", tmp_path / "runs", noon).path.name for _ in range(3)]
    assert names == ["toy-20250301T120005Z", "toy-20250301T120005Z-2", "toy-20250301T120005Z-3"]


def test_paths(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    named = [
        folder.job,
        folder.run,
        folder.result,
        folder.metrics,
        folder.logs,
        folder.trace,
        folder.report,
        folder.log(7),
    ]
    assert [str(path.relative_to(tmp_path)) for path in named] == [
        "job.toml", "run.json", "result.json", "metrics.jsonl", "logs", "trace", "report.html", "logs/rank-0007.jsonl",
    ]  # fmt: skip


def test_a_named_folder_may_exist_but_not_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder.claim(tmp_path)
    write_json(folder.run, {})
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.claim(tmp_path)


@pytest.mark.parametrize("name", ["toy", "a/b"])
def test_a_link_that_leads_nowhere_is_no_place_for_runs(tmp_path: Path, name: str) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "gone" / "runs")
    runs = tmp_path / "runs"
    with pytest.raises(
        InputError, match=r"runs.*: the run folder cannot be made: .*/runs is a link to nothing$"
    ):
        RunFolder.create(name, runs, noon)
    with pytest.raises(InputError, match=r"the run folder cannot be made: .*/runs is a link to nothing$"):
        RunFolder.claim(runs)
    with pytest.raises(InputError, match=r"the run folder cannot be made: .*/runs is a link to nothing$"):
        RunFolder.claim(runs / "mine")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("name", ["", "runs/mine"])
def test_a_checkpoint_is_no_place_for_a_run(tmp_path: Path, name: str) -> None:
    """It would be removed with the checkpoint."""
    checkpoint = tmp_path / "step-000003"
    checkpoint.mkdir()
    RunFolder.claim(checkpoint / name / "before")
    (checkpoint / "manifest.json").touch()
    with pytest.raises(
        InputError, match=r"step-000003 is a checkpoint, which may be removed with all that is in it"
    ):
        RunFolder.claim(checkpoint / name, resume=True)
    with pytest.raises(InputError, match=r"step-000003 is a checkpoint"):
        RunFolder.create("toy", checkpoint / name, noon)


def test_resuming_renames_the_previous_result(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path / "new" / "run")
    write_json(folder.result, {"status": "stopped"})
    release(folder.path)
    again = RunFolder.claim(folder.path, resume=True)
    assert again.read_result() is None
    assert json.loads((folder.path / "result.previous.json").read_text()) == {"status": "stopped"}


def test_starts_that_fail_do_not_lose_the_result_of_one_that_completed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "run").mkdir()
    write_json(run / "run.json", {"id": "first"})
    write_json(run / "result.json", {"status": "completed", "metrics": {"auc": 0.9}})
    write_json(run / "record" / "about.json", {"of": "first"})
    for number in range(3):
        folder = RunFolder.claim(run, resume=True)
        assert folder.read_result() is None
        for name, kept in (
            ("run", {"id": "first"}),
            ("result", {"status": "completed", "metrics": {"auc": 0.9}}),
        ):
            assert json.loads((run / f"{name}.previous.json").read_text()) == kept
        write_json(folder.run, {"id": f"failed {number}"})
        write_json(folder.result, {"status": "failed"})
        write_json(run / "record" / "about.json", {"of": number})
        release(run)
    assert json.loads((run / "record.previous" / "about.json").read_text()) == {"of": "first"}
    write_json(run / "run.json", {"id": "last"})
    write_json(run / "result.json", {"status": "stopped"})
    RunFolder.claim(run, resume=True)
    assert json.loads((run / "run.previous.json").read_text()) == {"id": "last"}
    assert json.loads((run / "result.previous.json").read_text()) == {"status": "stopped"}


def test_a_damaged_run_json_is_set_aside_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe{")
    RunFolder.claim(tmp_path, resume=True)
    assert (tmp_path / "run.previous.json").read_bytes() == b"\xff\xfe{"


def test_on_a_full_disk_nothing_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setattr("mpips.rundir.folder.replacing", full)
    with pytest.raises(OSError, match="the previous run cannot be moved: No space left") as raised:
        RunFolder.claim(tmp_path, resume=True)
    assert raised.value.filename == str(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["result.json", "run.json"]


def test_only_what_ranks_have_kept_for_successors_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for start in ("a" * 32, "b" * 32):
        folder.start = start
        folder.make_shared()
        (folder.shared / "part.npz").write_text("")
    # It was being removed when its process was killed.
    (tmp_path / f".shared-{'c' * 32}.over").mkdir()
    for own in ("shared", ".shared-", ".shared-notes", f".shared-{'d' * 32}.mine"):
        (tmp_path / own).mkdir()
        (tmp_path / own / "mine").write_text("")
    folder.remove_shared()
    assert sorted(os.listdir(tmp_path)) == [".shared-", f".shared-{'d' * 32}.mine", ".shared-notes", "shared"]
    assert all(os.listdir(each) == ["mine"] for each in tmp_path.iterdir())


@pytest.mark.parametrize("name", ["logs", "trace", "record", "replay", "orders"])
def test_a_folder_whose_parts_lead_elsewhere_is_not_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path)
    with pytest.raises(InputError, match=f"{name}: is a symbolic link"):
        RunFolder.claim(tmp_path / "run")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("kept")
    folder = RunFolder.claim(tmp_path / "run")
    for path in (folder.metrics, folder.log(0)):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(tmp_path / "theirs")
        with pytest.raises(OSError, match="is a symbolic link"):
            JsonLinesWriter(path)
    folder.result.symlink_to(tmp_path / "theirs")
    write_json(folder.result, {"a": 1})
    assert (tmp_path / "theirs").read_text() == "kept" and not folder.result.is_symlink()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        with pytest.raises(InputError, match="run folder"):
            RunFolder.claim(path)
    with pytest.raises(InputError, match="cannot be made"):
        RunFolder.create("toy", file)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_numpy_and_infinite_numbers_become_json(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(
        path,
        {"n": np.int64(3), "x": np.float32(0.5), "inf": np.inf, "nan": [np.float64("nan")], "p": tmp_path},
    )
    assert json.loads(path.read_text()) == {"n": 3, "x": 0.5, "inf": None, "nan": [None], "p": str(tmp_path)}


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_a_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "x.jsonl"
    with JsonLinesWriter(path) as lines:
        lines.append({"pass": 1, "objective": np.float64(2.5)})
        lines.append({"pass": 2, "text": "two\nlines"})
        assert [json.loads(line)["pass"] for line in path.read_text().splitlines()] == [1, 2]
    lines.close()
    with pytest.raises(ClosedError):
        lines.append({})


def test_a_folder_with_a_job_file_is_not_a_runs(tmp_path: Path) -> None:
    """As with `--run-dir .`: the run's own job.toml would replace it."""
    job = tmp_path / "job.toml"
    for text in ('[job]\nprogram = "sketch"\n', "no = TOML =", ""):
        job.write_text(text)
        with pytest.raises(InputError, match=r"has a job file, job\.toml, which the run would replace"):
            RunFolder.claim(tmp_path)
        assert job.read_text() == text and sorted(tmp_path.iterdir()) == [job]
    job.write_text('[job]\nprogram = "sketch"\nname = "a"\nseed = 0\nbase = "/home/me"\n')
    assert RunFolder.claim(tmp_path).held is not None, "an earlier start has left it"


@pytest.mark.parametrize("name", ["metrics.jsonl", "logs/rank-0000.jsonl", "trace/rank-0001.bin", "record"])
def test_files_of_mpips_own_names_that_no_run_has_written_are_not_written_to(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    with pytest.raises(InputError, match=f"{name}: no run has written it, and a new one would"):
        RunFolder.claim(tmp_path)
    assert path.read_text() == "mine" and not list(tmp_path.glob(".claim-*"))


def test_other_files_in_folders_of_mpips_own_names_are_no_hindrance(tmp_path: Path) -> None:
    """As of a batch system: `#SBATCH --output=logs/%j.out`, and `--run-dir .`."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "17.out").write_text("")
    assert RunFolder.claim(tmp_path).held is not None
