"""Bad input: one line with the problem, its place and a correct value; exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished, Started, ended_with

PROGRAMS = Path(__file__).parent / "programs"
JOB = PROGRAMS / "job.toml"
SECONDS = 20.0

ONCE = (
    pytest.mark.once
)  # how ranks agree on what is wrong is tried under every MPI, all that can be wrong is not

GOOD = "+1 1:1 3:2\n-1 2:1\n+1 1:1\n-1 3:1\n"
LITTLE = "+1 1:1 3:2\n-1 2:1\n"


def complaints(done: Finished) -> list[str]:
    """List what was said, but for the launch line and the launcher's own banner."""
    return [line for line in done.stderr.splitlines() if line.startswith(("mpips: error", "mpips: failed"))]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[job]\nprogram = "failing.py"\n[layuot]\n', ":3: unknown table [layuot]; "),
        ('[job]\nprogram = "failing.py"\n[layout]\nserver = 1\n', ":4: "),
        ('[job]\nprogram = "failing.py"\n[layout]\nservers = "two"\n', ":4: "),
        ('[job]\nprogram = "failing.py"\n[layout]\nservers = 0\n', "servers is 0; a job needs at least 1"),
        ('[job]\nprogram = "failing.py"\n[failing]\nrounds = 1.5\n', ":4: "),
        ('[job]\nprogram = "failing.py"\n[failing]\nwhere = "x"\n', ":4: "),
        ('[job]\nprogram = "nothing.py"\n', "there is no file "),
        (
            '[job]\nprogram = "nothing"\n',
            "there is no program 'nothing'; built in: ctr, fm, lda, sketch, sparse_lr",
        ),
        ('[job]\nprogram = "broken.py"\n', "does not load: ZeroDivisionError"),
        ('[job]\nprogram = "leaves.py"\n', "does not load: SystemExit: 3"),
        ('[job]\nprogram = "empty.py"\n', "has no Settings and no schedule and no Worker"),
        ("[job\n", ":1: not TOML"),
        ("", "program"),
    ],
)
def test_a_job_file_is_refused_before_any_rank_starts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    from mpips.cli import main

    job = write(tmp_path / "job.toml", text)
    (tmp_path / "failing.py").symlink_to(PROGRAMS / "failing.py")
    write(tmp_path / "broken.py", "1 / 0\n")
    write(tmp_path / "leaves.py", "raise SystemExit(3)\n")
    write(tmp_path / "empty.py", "")
    run = tmp_path / "run"
    assert main(["run", str(job), "--run-dir", str(run)]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"mpips: error: {job}") and captured.err.count("\n") == 1
    assert said in captured.err
    assert not run.exists()


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("a-file", "the run folder is a file"),
        ("a-file/run", "the run folder cannot be made: Not a directory"),
        ("used", "holds a run already; name another --run-dir, or continue it by --resume latest"),
    ],
)
def test_a_run_folder_that_cannot_be_taken(
    run_mpips: Callable[..., Finished], tmp_path: Path, folder: str, said: str
) -> None:
    write(tmp_path / "a-file", "")
    old = write(tmp_path / "used" / "result.json", '{"status": "completed"}')
    done = run_mpips("run", JOB, "--run-dir", tmp_path / folder)
    assert ended_with(done, 2)
    assert done.stderr == f"mpips: error: {tmp_path / folder}: {said}\n"
    assert json.loads(old.read_text()) == {"status": "completed"}


@pytest.mark.drawn(2)
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("ranks", "arguments", "said"),
    [
        (
            2,
            [JOB],
            "this job needs 3 ranks (1 scheduler + 1 server + 1 worker), 2 were started: use `mpirun -n 3`",
        ),
        (2, ["nothing.toml"], "nothing.toml: no such job file"),
        pytest.param(2, [JOB, "--sets", "a.b=1"], "--sets", marks=ONCE),
        pytest.param(3, [JOB, "--set", "failing.round=1"], "--set failing.round=1: ", marks=ONCE),
        pytest.param(
            3, [JOB, "--resume", "latest"], "--resume latest: there is no complete checkpoint in ", marks=ONCE
        ),
        (3, [JOB, "--run-dir", "/dev/null/run"], "/dev/null/run: the run folder cannot be made"),
        (3, [JOB, "--run-dir", "."], ".: holds a run already"),
    ],
)
def test_bare_ranks_agree_on_one_line(
    run_ranks: Callable[..., Finished], tmp_path: Path, ranks: int, arguments: list[str], said: str
) -> None:
    write(tmp_path / "result.json", "{}")
    done = run_ranks(ranks, "-m", "mpips", *arguments, cwd=tmp_path, timeout=SECONDS)
    assert ended_with(done, 2)
    assert len(complaints(done)) == 1 and said in complaints(done)[0]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "result.json").read_text() == "{}"


@pytest.mark.ranks
@pytest.mark.once
def test_a_job_that_cannot_start_reports_it_in_its_folder(
    run_ranks: Callable[..., Finished], tmp_path: Path
) -> None:
    done = run_ranks(2, "-m", "mpips", JOB, "--run-dir", tmp_path, timeout=SECONDS)
    assert ended_with(done, 2)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 2)
    assert result["error"] in complaints(done)[0]


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize("by", ["mpips run", "the MPI's launcher"])
def test_of_two_starts_at_once_in_one_folder_one_runs(
    start_mpips: Callable[..., Started], start_ranks: Callable[..., Started], tmp_path: Path, by: str
) -> None:
    arguments = [JOB, "--run-dir", tmp_path / "run"]
    both = [
        start_mpips("run", *arguments) if by == "mpips run" else start_ranks(3, "-m", "mpips", *arguments)
        for _ in range(2)
    ]
    done = sorted((each.finish(2 * SECONDS) for each in both), key=lambda each: each.code)
    assert [each.code for each in done] == [0, 2], [each.stderr for each in done]
    assert len(complaints(done[1])) == 1 and "run: " in complaints(done[1])[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"


@pytest.mark.ranks
def test_worlds_of_one_rank_are_detected(tmp_path: Path) -> None:
    # What a launcher that this MPI does not know sets, and nothing that this one would look for.
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "PRTE_"))
    } | {"SLURM_STEP_NUM_TASKS": "4", "PYTHONPATH": str(PROGRAMS.parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "mpips", JOB, "--run-dir", tmp_path / "run"],
        env=environ, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "srun started 4 ranks (SLURM_STEP_NUM_TASKS), but MPI sees a world of 1" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.drawn(2)
@pytest.mark.ranks
@pytest.mark.parametrize(
    ("files", "workers", "said"),
    [
        pytest.param(
            {"train.svm": GOOD + "2 1:1\n"}, 1, "train.svm:5: label '2' is not one of -1, 0, +1", marks=ONCE
        ),
        ({"train.svm": GOOD + "+1 2:nan\n"}, 2, "train.svm:5: value in '2:nan' is not finite"),
        pytest.param(
            {"train.svm": GOOD + "+1 3:1 2:1\n"},
            1,
            "train.svm:5: id in '2:1' is not above the one before it",
            marks=ONCE,
        ),
        pytest.param({"train.svm": ""}, 1, "train.svm: is empty", marks=ONCE),
        pytest.param({"train.svm": LITTLE}, 3, "are too few for 3 workers; use fewer workers", marks=ONCE),
        pytest.param(
            {"train.svm": GOOD, "train2.svm": "# none\n"}, 2, "worker 1 has no examples: ", marks=ONCE
        ),
        pytest.param({"other.svm": GOOD}, 1, "no such file: data/train*.svm (looked for ", marks=ONCE),
    ],
)
def test_bad_data_ends_the_run_with_one_line(
    run_ranks: Callable[..., Finished], tmp_path: Path, files: dict[str, str], workers: int, said: str
) -> None:
    for name, text in files.items():
        write(tmp_path / "data" / name, text)
    job = write(
        tmp_path / "job.toml",
        '[job]\nprogram = "sparse_lr"\n[data]\ntrain = "data/train*.svm"\n[sparse_lr]\nalgorithm = "ftrl"\n',
    )
    folder = tmp_path / "run"
    arguments = ("--set", f"layout.workers={workers}", "--run-dir", folder)
    done = run_ranks(2 + workers, "-m", "mpips", job, *arguments, timeout=2 * SECONDS)
    assert ended_with(done, 2)
    assert len(complaints(done)) == 1 and said in complaints(done)[0]
    assert "Traceback" not in done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 2)
    assert said in result["error"]


@pytest.mark.ranks
@pytest.mark.once
def test_paths_may_be_relative_and_hold_spaces_and_quotes(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    home = tmp_path / 'it\'s a "job" = 1'
    write(home / "da ta" / "train.svm", GOOD)
    (home / "pro gram.py").symlink_to(PROGRAMS / "failing.py")
    write(home / "job.toml", '[job]\nprogram = "pro gram.py"\nname = "tiny"\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_mpips(
        "run", f"../{home.name}/job.toml", "--run-dir", "my 'run'", cwd=elsewhere, timeout=SECONDS
    )
    assert done.code == 0, done.stderr
    assert json.loads((elsewhere / "my 'run'" / "result.json").read_text())["status"] == "completed"
