"""The first failure, from the ranks' logs, the launcher's messages, and the rank that was seen to end first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cluster.layout import Cause
from mpips.provenance.first_failure import (
    DOUBT,
    Failure,
    FirstExitWatch,
    LocalRanks,
    first,
    is_gone,
    oom_kills,
    ranks_ended_by_signal,
    sentence,
)
from mpips.rundir.folder import JsonLinesWriter, RunFolder

DIED: dict[str, Any] = {"cause": Cause.DIED, "error": Cause.DIED.text}

START = 1_700_000_000.0
ROLES = ("scheduler", "server", "worker", "worker", "worker")
PRTE = """
--------------------------------------------------------------------------
prterun noticed that process rank 3 with PID 17945 on node n2 exited on
signal 9 (Killed).
--------------------------------------------------------------------------
"""
HYDRA = """
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 18146 RUNNING AT vm
=   EXIT CODE: 9
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
"""
SRUN = """
srun: error: n2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=3.0
srun: error: n1: tasks 0,2: Terminated
srun: error: n1: task 1: Exited with exit code 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run of five ranks on two hosts."""
    made = RunFolder(tmp_path)
    ranks = [
        {"rank": rank, "role": role, "index": max(0, rank - 2), "host": f"n{rank % 2 + 1}", "pid": 100 + rank}
        for rank, role in enumerate(ROLES)
    ]
    started = datetime.fromtimestamp(START, UTC).isoformat()
    made.run.write_text(json.dumps({"started": started, "ranks": ranks}))
    return made


def log(folder: RunFolder, rank: int, event: str, after: float, **facts: Any) -> None:
    with JsonLinesWriter(folder.log(rank)) as lines:
        lines.append({"wall": START + after, "rank": rank, "event": event, **facts})


def test_a_run_without_logged_failures_has_no_first_failure(folder: RunFolder) -> None:
    assert first(folder) is None
    log(folder, 0, "start", 1)
    log(folder, 2, "lost", 2, lost=1, **DIED)  # it was survived
    assert first(folder) is None
    assert first(RunFolder(folder.path / "none")) is None


def test_the_earliest_error_counts_whichever_rank_logged_it(folder: RunFolder) -> None:
    log(folder, 4, "failed", 5, error="late")
    log(folder, 2, "failed", 3, error="ValueError: early")
    log(folder, 1, "failed", 1, error="MPI_ERR_PROC_FAILED", follows=True)
    log(folder, 0, "lost", 4, lost=2, **DIED, fatal=True)
    found = first(folder, PRTE)
    assert found == Failure(2, "worker 0", "n1", START + 3, "ValueError: early")
    assert found.text == "rank 2 (worker 0 on n1): ValueError: early"
    assert found.facts(folder)["log"] == str(folder.log(2))


def test_what_an_earlier_run_in_the_same_folder_left_does_not_count(folder: RunFolder) -> None:
    log(folder, 2, "failed", -1, error="of the run before")
    assert first(folder) is None
    log(folder, 3, "failed", 1, error="of this one")
    found = first(folder)
    assert found is not None and found.rank == 3


def test_a_death_comes_before_what_follows_from_it(folder: RunFolder) -> None:
    log(folder, 0, "failed", 1, error="rank 1 died, and no other server holds a copy", follows=True)
    assert first(folder) == Failure(
        0, "scheduler 0", "n1", START + 1, "rank 1 died, and no other server holds a copy"
    )
    log(folder, 0, "lost", 2, lost=1, **DIED, fatal=True)
    assert first(folder) == Failure(1, "server 0", "n2", START + 2, Cause.DIED.text, cause=Cause.DIED)


def test_the_launcher_knows_signals_and_deaths_that_no_rank_detects(folder: RunFolder) -> None:
    assert first(folder, PRTE) is not None
    log(folder, 2, "lost", 2, lost=3, **DIED, fatal=True)
    assert first(folder, PRTE) == Failure(
        3, "worker 1", "n2", START + 2, "ended by SIGKILL", cause=Cause.DIED
    )
    log(folder, 1, "failed", 1, error="RuntimeError: before")
    found = first(folder, PRTE)
    assert found is not None and found.error == "RuntimeError: before"


def test_of_ranks_of_one_host_the_one_that_ended_first_counts(folder: RunFolder) -> None:
    both = "srun: error: n1: task 1: Segmentation fault\nsrun: error: n1: task 3: Killed\n"
    found = first(folder, both, first_ended=[3])
    assert found is not None and found.rank == 1, "on another host one may have ended before"
    assert found.error == f"ended by Segmentation fault ({DOUBT})"
    found = first(folder, HYDRA, first_ended=[3])
    assert found is not None and (found.rank, found.error) == (3, f"ended by SIGSEGV ({DOUBT})")
    run = json.loads(folder.run.read_text())
    run["ranks"] = [each | {"host": "n1"} for each in run["ranks"]]
    folder.run.write_text(json.dumps(run))
    found = first(folder, both, first_ended=[3])
    assert found is not None and (found.rank, found.error) == (3, "ended by Killed")
    found = first(folder, both, first_ended=[1, 3])
    assert found is not None and found.rank == 1


def test_lines_that_are_torn_or_odd_are_passed_over(folder: RunFolder) -> None:
    folder.logs.mkdir()
    folder.log(1).write_bytes(
        b'{"wall": 2e9, "event": "failed", "err\n[]\n\xff\n{"rank": 1}\n{"wall": "x"}\n'
    )
    log(folder, 99, "failed", 1, error="no such rank")
    log(folder, 2, "failed", 7, error="oh")
    found = first(folder)
    assert found is not None and found.rank == 2


def test_what_launchers_say() -> None:
    assert ranks_ended_by_signal(PRTE) == {3: "ended by SIGKILL"}
    assert ranks_ended_by_signal(SRUN) == {3: "ended by Killed"}
    assert ranks_ended_by_signal(HYDRA, first_ended=[2]) == {2: "ended by SIGSEGV"}
    assert ranks_ended_by_signal(HYDRA, first_ended=[2, 4]) == ranks_ended_by_signal(HYDRA) == {}, (
        "it names any, and kills all at once"
    )
    assert ranks_ended_by_signal(
        "srun: error: n2: task 0: Out Of Memory\nsrun: error: n1: task 4: Killed"
    ) == {
        0: "ended by Out Of Memory",
        4: "ended by Killed",
    }
    assert ranks_ended_by_signal("all is well") == {}
    assert ranks_ended_by_signal("srun: error: n1: tasks 2,4-5: Segmentation fault") == {
        2: "ended by Segmentation fault"
    }
    limit = "slurmstepd: error: *** STEP 6.0 ON n1 CANCELLED AT 2026-11-22T15:19:24 DUE TO TIME LIMIT ***"
    assert ranks_ended_by_signal(limit + SRUN) == {}


@given(st.text(max_size=60))
def test_any_output_of_a_launcher_is_parsed_without_an_error(text: str) -> None:
    assert all(
        words.startswith("ended by ")
        for words in ranks_ended_by_signal(HYDRA + text + PRTE, first_ended=[0]).values()
    )


def test_a_sentence_leaves_out_what_is_known(folder: RunFolder) -> None:
    facts = Failure(2, "worker 0", "n1", START, "ValueError: x").facts(folder)
    assert sentence(facts) == "rank 2 (worker 0 on n1), 2023-11-14 22:13:20 UTC: ValueError: x"
    assert sentence(facts, "rank 2: ValueError: x") == "rank 2 (worker 0 on n1), 2023-11-14 22:13:20 UTC"
    log(folder, 2, "start", 0)
    facts = Failure(2, "worker 0", "n1", START, "ValueError: x").facts(folder)
    assert sentence(facts).endswith(f"; its log: {folder.log(2)}")


def test_peers_that_are_gone_are_missed_and_one_rank_of_a_host_reports_it() -> None:
    with subprocess.Popen(["sleep", "60"]) as lives, subprocess.Popen(["sleep", "60"]) as dies:
        processes = [(os.getpid(), "a"), (lives.pid, "a"), (dies.pid, "a"), (1 << 22, "b")]
        peers = LocalRanks(0, processes)
        assert peers.missing() == []
        dies.kill()
        os.waitid(os.P_PID, dies.pid, os.WEXITED | os.WNOWAIT)
        assert peers.missing() == [2], "also while nobody has asked how it ended"
        dies.wait()
        assert peers.missing() == [2] and not is_gone(lives.pid)
        lives.kill()
    assert peers.reports([1, 2])
    assert not LocalRanks(1, processes).reports([2])
    assert LocalRanks(1, processes).reports([0, 2])
    assert LocalRanks(3, processes).missing() == []


def test_oom_kills_are_read_from_the_control_group(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    group = tmp_path / "sys/fs/cgroup/slurm/job_7"
    group.mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0/user/task_3\n")
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert oom_kills(tmp_path) == 2
    assert oom_kills(tmp_path / "none") is None
    (group / "memory.events").write_text("low 0\n")
    assert oom_kills(tmp_path) is None


def test_the_watch_records_which_rank_ends_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (
        subprocess.Popen(["sleep", "60"]) as one,
        subprocess.Popen(["sleep", "60"]) as two,
        FirstExitWatch(folder) as watch,
    ):
        ranks = [
            {"rank": rank, "pid": p.pid, "host": os.uname().nodename} for rank, p in enumerate((one, two))
        ]
        folder.run.write_text(json.dumps({"ranks": [*ranks, {"rank": 2, "pid": 1, "host": "elsewhere"}]}))
        deadline = time.monotonic() + 30
        while not watch.watching and time.monotonic() < deadline:
            time.sleep(0.01)
        two.send_signal(signal.SIGKILL)
        two.wait()
        while not watch.first_ended and time.monotonic() < deadline:
            time.sleep(0.01)
        one.kill()
    assert watch.first_ended == (1,)


def test_a_watch_without_ranks_ends_with_its_context(tmp_path: Path) -> None:
    with FirstExitWatch(RunFolder(tmp_path)) as watch:
        pass
    assert watch.first_ended == () and not watch.is_alive()
