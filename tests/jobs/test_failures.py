"""A rank that fails, in any role, phase and manner, ends the run on all ranks within seconds.

`Started.finish` fails a test whose command leaves a process behind, or does not end.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, Started, ended_with

pytestmark = pytest.mark.ranks

PROGRAMS = Path(__file__).parent / "programs"
JOB = PROGRAMS / "job.toml"
ONCE = pytest.mark.once  # a run's end is tried under every MPI, all that may bring it about is not
SECONDS = 20.0
"""Enough for start and end on a busy machine; a hang is longer."""


def sets(**values: Any) -> list[str]:
    """Write settings of the failing program as overrides."""
    return [part for key, value in values.items() for part in ("--set", f"failing.{key}={value}")]


def result_of(folder: Path) -> dict[str, Any]:
    """Read a run's result."""
    read = json.loads((folder / "result.json").read_text())
    assert isinstance(read, dict)
    return read


def errors(done: Finished) -> list[str]:
    """List the lines by which ranks say what is wrong."""
    return [line for line in done.stderr.splitlines() if line.startswith("mpips: error: ")]


@pytest.fixture
def job(run_ranks: Callable[..., Finished], tmp_path: Path) -> Callable[..., Finished]:
    """Run the failing program on bare ranks: one scheduler, one server, `workers` workers."""

    def run(workers: int = 1, extra: tuple[str, ...] = (), **values: Any) -> Finished:
        layout = ("--set", f"layout.workers={workers}")
        arguments = (*sets(**values), *layout, *extra, "--run-dir", tmp_path / "run")
        environ = values.pop("environ", {})
        return run_ranks(2 + workers, "-m", "mpips", JOB, *arguments, environ=environ, timeout=SECONDS)

    return run


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("at", "where"),
    [
        pytest.param("constructor", "rank 2 (worker 0 on ", marks=ONCE),
        ("load", "rank 2 (worker 0 on "),
        pytest.param("callback", "rank 2 (worker 0 on ", marks=ONCE),
        pytest.param("late_callback", "rank 2 (worker 0 on ", marks=ONCE),
        ("shutdown", "rank 2 (worker 0 on "),
        ("update", "rank 1 (server 0 on "),
        pytest.param("server_call", "rank 1 (server 0 on ", marks=ONCE),
        ("schedule", "rank 0 (scheduler 0 on "),
    ],
)
def test_an_error_ends_the_run_and_names_its_rank(
    job: Callable[..., Finished], tmp_path: Path, at: str, where: str
) -> None:
    done = job(at=at)
    said = errors(done)
    assert ended_with(done, 1)
    assert len(said) == 1
    assert said[0].startswith(f"mpips: error: {where}") and said[0].endswith(
        "): RuntimeError: as it was told"
    )
    assert done.stderr.count("Traceback (most recent call last)") == 1  # that of the rank that failed
    result = result_of(tmp_path / "run")
    assert result["status"] == "failed" and result["exit_code"] == 1
    assert result["failed_rank"].startswith(where)
    # It is named last of all, and its log tells more.
    first, rank = result["first_failure"], int(where.split()[1])
    assert (first["rank"], first["error"]) == (rank, "RuntimeError: as it was told")
    assert f"\nmpips: first to fail: {where}" in done.stderr
    logged = [json.loads(line) for line in Path(first["log"]).read_text().splitlines()]
    assert logged[0]["event"] == "start" and logged[0]["role"] in where
    failed = next(line for line in logged if line["event"] == "failed")
    assert failed["rank"] == rank and "as it was told" in failed["trace"]
    assert sorted(path.name for path in (tmp_path / "run" / "logs").iterdir()) == [
        f"rank-{number:04d}.jsonl" for number in range(3)
    ]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("at", "how", "said"),
    [
        ("call", "exit", "SystemExit: 0"),
        pytest.param("call", "interrupt", "KeyboardInterrupt", marks=ONCE),
        pytest.param("call", "memory", "MemoryError: Unable to allocate", marks=ONCE),
        pytest.param("update", "exit", "SystemExit: 0", marks=ONCE),
        pytest.param("schedule", "exit", "SystemExit: 0", marks=ONCE),
    ],
)
def test_any_exception_of_a_program_fails_the_run_in_one_line(
    job: Callable[..., Finished], tmp_path: Path, at: str, how: str, said: str
) -> None:
    done = job(at=at, how=how)
    assert ended_with(done, 1)
    assert len(errors(done)) == 1 and f"): {said}" in errors(done)[0]
    assert result_of(tmp_path / "run")["status"] == "failed"


@ONCE
def test_bad_input_that_a_worker_finds_is_one_line(job: Callable[..., Finished], tmp_path: Path) -> None:
    done = job(at="load", how="input")
    assert ended_with(done, 2)
    assert errors(done) == ["mpips: error: some.svm, line 3: as it was told"]
    assert "Traceback" not in done.stderr
    assert result_of(tmp_path / "run")["exit_code"] == 2
    assert not list((tmp_path / "run").glob(".claim-*"))


def test_a_scheduler_may_fail_while_workers_wait_for_each_other(job: Callable[..., Finished]) -> None:
    done = job(workers=2, at="round")
    assert ended_with(done, 1)
    assert "rank 0 (scheduler 0 on " in errors(done)[0]


def test_one_of_two_workers_fails_while_the_other_waits_for_it(job: Callable[..., Finished]) -> None:
    done = job(workers=2, at="call", index=1)
    assert ended_with(done, 1)
    assert "rank 3 (worker 1 on " in errors(done)[0]


@pytest.mark.parametrize(("rank", "how"), [(0, "exit"), (1, "raise"), (2, "interrupt")])
def test_a_program_that_one_rank_cannot_load(
    run_ranks: Callable[..., Finished], tmp_path: Path, rank: int, how: str
) -> None:
    arguments = ("-m", "mpips", JOB, "--run-dir", tmp_path)
    done = run_ranks(3, *arguments, environ={"FAIL_IMPORT": f"{rank}:{how}"}, timeout=SECONDS)
    assert len(errors(done)) == 1
    assert ended_with(done, 1 if how == "interrupt" else 2)
    assert ("Traceback" in done.stderr) is (how == "interrupt")
    assert result_of(tmp_path)["status"] == "failed"


@pytest.mark.drawn(2)
@pytest.mark.parametrize("role", ["scheduler", "server", "worker"])
def test_a_rank_that_is_killed_takes_the_run_with_it_unless_it_is_to_survive(
    run_mpips: Callable[..., Finished], starter: Any, tmp_path: Path, role: str
) -> None:
    when = "at_step=2" if role == "worker" else "at_seconds=0.3"
    done = run_mpips(
        "run",
        JOB,
        "--survive=no",
        "--run-dir",
        tmp_path,
        "--set",
        f"faults.kill=[{{role='{role}', {when}}}]",
        *sets(rounds=0),
        timeout=SECONDS,
    )
    assert ended_with(done, 1)
    assert done.last_line.startswith("mpips: failed: ") and str(tmp_path) in done.last_line
    rank = {"scheduler": 0, "server": 1, "worker": 2}[role]
    result = result_of(tmp_path)
    assert result["status"] == "failed"
    if "first_failure" in result or starter.kind == "openmpi":  # on a busy machine nobody sees it under MPICH
        first = result["first_failure"]
        assert first["error"] == "ended by SIGKILL"
        # MPICH's launcher kills all other ranks at once: on a busy machine one of them may be seen to end first.
        assert first["rank"] == rank or starter.kind != "openmpi"
        assert f"; first to fail: rank {first['rank']} (" in done.last_line
        assert "ended by SIGKILL" in done.last_line


def test_a_rank_that_just_leaves_takes_the_run_with_it(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    done = run_mpips("run", JOB, "--run-dir", tmp_path, *sets(at="call", how="leave"), timeout=SECONDS)
    assert ended_with(done, 1)
    assert result_of(tmp_path)["status"] == "failed"


def started(start_mpips: Callable[..., Started], folder: Path, *more: str, **values: Any) -> Started:
    """Start an endless job; return it once it is training."""
    up = folder / "up"
    run = start_mpips("run", JOB, "--run-dir", folder / "run", *sets(rounds=0, up=up, **values), *more)
    run.wait_for(up.exists)
    return run


@pytest.mark.drawn(2)
@pytest.mark.parametrize("victim", ["rank 2", "launcher", "mpips run"])
def test_a_kill_from_outside_ends_everything(
    start_mpips: Callable[..., Started], tmp_path: Path, victim: str
) -> None:
    run = started(start_mpips, tmp_path)
    ranks = json.loads((tmp_path / "run" / "run.json").read_text())["ranks"]
    children = f"/proc/{run.process.pid}/task/{run.process.pid}/children"
    pid = {
        "rank 2": ranks[2]["pid"],
        "launcher": int(Path(children).read_text().split()[0]),
        "mpips run": run.process.pid,
    }[victim]
    os.kill(pid, signal.SIGKILL)
    done = run.finish(SECONDS)
    assert done.code == (-9 if victim == "mpips run" else 1)
    if victim != "mpips run":
        assert done.last_line.startswith("mpips: failed: ")
        assert result_of(tmp_path / "run")["status"] == "failed"


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "kind", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=ONCE), pytest.param(signal.SIGHUP, marks=ONCE)]
)
def test_a_signal_stops_the_run_with_exit_code_85(
    start_mpips: Callable[..., Started], tmp_path: Path, kind: signal.Signals
) -> None:
    run = started(start_mpips, tmp_path)
    run.process.send_signal(kind)
    done = run.finish(SECONDS)
    assert done.code == 85
    assert done.last_line.startswith("mpips: stopped")
    result = result_of(tmp_path / "run")
    assert (result["status"], result["exit_code"], result["stopped_by"]) == ("stopped", 85, kind.name)
    assert f"stopped with a checkpoint ({kind.name})" in done.last_line and not list(
        (tmp_path / "run").glob(".stop-*")
    )


def test_the_second_stop_request_ends_a_run_that_does_not_handle_it(
    start_mpips: Callable[..., Started], tmp_path: Path
) -> None:
    up = tmp_path / "up"
    run = start_mpips("run", JOB, "--run-dir", tmp_path / "run", *sets(at="hang", rounds=0, up=up))
    run.wait_for(up.exists)
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda: "repeat to kill" in run.stderr)
    run.process.send_signal(signal.SIGINT)
    done = run.finish(SECONDS)
    assert ended_with(done, 1)
    assert result_of(tmp_path / "run")["status"] == "failed"


def test_a_worker_that_receives_nothing_does_not_keep_the_others_from_ending(
    job: Callable[..., Finished], tmp_path: Path
) -> None:
    done = job(workers=2, at="deaf")
    assert done.code != 0
    assert result_of(tmp_path / "run")["error"].endswith("RuntimeError: as it was told")


@ONCE
def test_a_thread_that_never_ends_does_not_keep_the_run(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    done = run_mpips(
        "run", JOB, "--run-dir", tmp_path, *sets(at="call", how="thread", rounds=1), timeout=SECONDS
    )
    assert done.code == 0
    assert result_of(tmp_path)["status"] == "completed"


@ONCE
def test_an_error_under_mpips_run_is_its_last_line(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    done = run_mpips("run", JOB, "--run-dir", tmp_path, *sets(at="load", how="input"), timeout=SECONDS)
    assert ended_with(done, 2)
    # Where the start takes long, a line says what it waits for.
    lines = [line for line in done.stderr.splitlines()[1:] if line != "mpips: waiting for the ranks to start"]
    assert lines == [f"mpips: failed: some.svm, line 3: as it was told; run folder: {tmp_path}"]


@ONCE
def test_a_reader_that_leaves_does_not_end_the_run(start: Callable[..., Started], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mpips.cli",
        "run",
        JOB,
        "--run-dir",
        tmp_path / "run",
        *sets(rounds=100),
    ]
    script = 'set -o pipefail; "$@" 2>&1 | head -n 1'
    done = start(["bash", "-c", script, "bash", *command]).finish(SECONDS)
    assert done.code == 0
    assert done.stdout.count("\n") == 1
    assert result_of(tmp_path / "run")["metrics"] == {"rounds": 100}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 32 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", folder]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@ONCE
@pytest.mark.parametrize(
    ("taken", "what"), [(8, ".claim-1"), (7, "the run folder cannot be written"), (2, "metrics.jsonl")]
)
def test_a_full_disk_is_named(
    run_ranks: Callable[..., Finished], small_disk: Path, taken: int, what: str
) -> None:
    (small_disk / "run").mkdir()
    (small_disk / "fill").write_bytes(b"x" * 4096 * taken)
    arguments = ("-m", "mpips", JOB, "--run-dir", small_disk / "run", *sets(rounds=2000))
    done = run_ranks(3, *arguments, timeout=SECONDS)
    assert ended_with(done, 74)
    assert what != ".claim-1" or not list((small_disk / "run").iterdir())
    assert len(errors(done)) == 1
    assert errors(done)[0].count(str(small_disk)) == 1
    assert str(small_disk / "run") in errors(done)[0] and what in errors(done)[0]
    assert "No space left on device" in errors(done)[0]
    assert "Traceback" not in done.stderr


@ONCE
@pytest.mark.parametrize("where", ["/dev/null", "file", "file/deeper"])
def test_a_folder_for_checkpoints_that_is_none_is_refused_at_the_start(
    run_mpips: Callable[..., Finished], tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / where
    settings = (f"checkpoint.directory={folder}", "--run-dir", tmp_path / "run")
    done = run_mpips("run", JOB, "--set", *settings, *sets(rounds=3), timeout=SECONDS)
    assert ended_with(done, 2)
    assert f"checkpoints cannot be written to {folder}: " in done.last_line
    assert "is not a folder" in done.last_line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "taken", [8, pytest.param(7, marks=ONCE), pytest.param(6, marks=ONCE), pytest.param(2, marks=ONCE)]
)
def test_mpips_run_passes_on_that_the_disk_is_full(
    run_mpips: Callable[..., Finished], small_disk: Path, taken: int
) -> None:
    (small_disk / "run").mkdir()
    (small_disk / "fill").write_bytes(b"x" * 4096 * taken)
    done = run_mpips("run", JOB, "--run-dir", small_disk / "run", *sets(rounds=2000), timeout=SECONDS)
    assert ended_with(done, 74)
    assert "No space left on device" in done.last_line and "left no result.json" not in done.stderr
    assert not list((small_disk / "run").glob(".claim-*"))
    assert "Traceback" not in done.stderr


@ONCE
def test_several_schedulers_spares_and_groups_start_and_leave(
    run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    layout = ("--schedulers", "2", "--spares", "1", "--set", "layout.workers={train = 1, query = 1}")
    done = run_mpips("run", JOB, "--run-dir", tmp_path, *layout, *sets(at="groups"), timeout=SECONDS)
    assert done.code == 0, done.stderr
    result = result_of(tmp_path)
    assert result["layout"]["ranks"] == 6
    assert result["metrics"]["groups"] == {"train": 1, "query": 1, "all": 2}


@ONCE
def test_lost_and_doubled_messages_change_nothing(job: Callable[..., Finished], tmp_path: Path) -> None:
    faults = ("--set", "faults.drop={probability=0.1}", "--set", "faults.duplicate={probability=0.2}")
    done = job(extra=faults)
    assert done.code == 0, done.stderr
    assert result_of(tmp_path / "run")["status"] == "completed"


@ONCE
def test_bare_ranks_that_are_asked_to_stop_abandon_compilation(
    start_ranks: Callable[..., Started], run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    """It would take a minute, and what comes after it would end at once."""
    cache, run = tmp_path / "cache", tmp_path / "run"
    cache.mkdir(mode=0o700)
    ranks = start_ranks(
        3, "-m", "mpips", JOB, "--run-dir", run, *sets(), environ={"NUMBA_CACHE_DIR": str(cache)}
    )
    ranks.wait_for(lambda: "compiling kernels" in ranks.stderr)
    ranks.process.send_signal(signal.SIGUSR1)
    done = ranks.finish(SECONDS)
    assert ended_with(done, 85)
    result = result_of(run)
    assert (result["status"], result["stopped_by"], result["before_training"]) == ("stopped", "SIGUSR1", True)
    assert len(list(cache.rglob("*.nbc"))) < 50, "of some 400"
    assert not list(run.glob(".claim-*"))
    done = run_mpips("run", JOB, "--run-dir", run, "--resume", "latest", *sets(), timeout=SECONDS)
    assert done.code == 0, done.stderr


def test_bare_ranks_that_are_asked_to_stop_pass_85_on(
    start_ranks: Callable[..., Started], tmp_path: Path
) -> None:
    up = tmp_path / "up"
    run = start_ranks(3, "-m", "mpips", JOB, "--run-dir", tmp_path / "run", *sets(rounds=0, up=up))
    run.wait_for(up.exists)
    run.process.send_signal(signal.SIGUSR1)
    done = run.finish(SECONDS)
    assert ended_with(done, 85)
    assert result_of(tmp_path / "run")["status"] == "stopped"
    assert not list((tmp_path / "run").glob(".claim-*"))
