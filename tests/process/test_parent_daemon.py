"""A rank whose launcher has died ends, and logs the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Started

from mpips.process import parent_daemon

JOB = Path(__file__).parents[1] / "jobs" / "programs" / "job.toml"

RANK = """
import os, sys, time
from pathlib import Path
from mpips.process import parent_daemon
folder = Path(sys.argv[1])
def write(name, text):
    (folder / "part").write_text(text)
    (folder / "part").rename(folder / name)
def end(who):
    write("ended", who)
    os._exit(0)
parent_daemon.watch(end)
write("daemon", repr(parent_daemon.daemon()))
time.sleep(300)
"""

DAEMON = """
import os, subprocess, sys
subprocess.run(sys.argv[1:], env={**os.environ, "PMIX_RANK": "3", "PMIX_NAMESPACE": "job-1@1"})
"""


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_the_daemon_is_found_and_missed(
    start: Callable[..., Started], tmp_path: Path, wrapped: bool, nested: bool
) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    wrapper = ["bash", "-c", '"$@"; exit $?', "bash"] if wrapped else []
    line = [sys.executable, "-c", DAEMON, *wrapper, sys.executable, script, tmp_path]
    started = start(line, environ={"PMIX_RANK": "3", "PMIX_NAMESPACE": "job-0@1"} if nested else {})
    started.wait_for((tmp_path / "daemon").exists)
    pid, name = json.loads((tmp_path / "daemon").read_text().translate({40: "[", 41: "]", 39: '"'}))
    assert pid == started.process.pid and name in Path(f"/proc/{pid}/comm").read_text()
    os.kill(pid, signal.SIGKILL)
    assert started.finish(30).code == -signal.SIGKILL, "and nothing is left behind"
    assert (tmp_path / "ended").read_text() == f"{name}, process {pid}"


def test_a_rank_without_launcher_variables_has_no_daemon() -> None:
    assert parent_daemon.daemon({"PATH": "/bin"}) is None
    reported = {"PMI_RANK": "0"}
    assert parent_daemon.daemon(reported) == (os.getppid(), parent_daemon._name(os.getppid()))


def test_a_rank_on_its_own_is_not_watched() -> None:
    code = (
        "from mpips.process import parent_daemon; import threading; "
        "parent_daemon.watch(print); print(threading.active_count())"
    )
    environ = {name: value for name, value in os.environ.items() if name not in parent_daemon.RANK_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "1\n"


def test_a_daemon_that_cannot_be_seen_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_daemon, "is_gone", lambda pid: True)  # as with hidepid
    monkeypatch.setattr(parent_daemon, "LOOK", 0.0)
    ended: list[str] = []
    parent_daemon._wait(os.getppid() + 1, "wrapped", ended.append)
    assert ended == []
    mine, looks = os.getppid(), iter([True] * 3)
    monkeypatch.setattr(parent_daemon.os, "getppid", lambda: mine if next(looks, False) else 1)
    parent_daemon._wait(mine, "own", ended.append)
    assert ended == [f"own, process {mine}"] and next(looks, None) is None


@pytest.mark.ranks
def test_ranks_end_when_their_launcher_was_killed(
    start_ranks: Callable[..., Started], starter: Any, tmp_path: Path
) -> None:
    folder, up = tmp_path / "run", tmp_path / "up"
    settings = ("--set", "failing.rounds=0", "--set", f"failing.up={up}")
    run = start_ranks(3, "-m", "mpips", JOB, "--run-dir", folder, *settings)
    run.wait_for(up.exists)
    run.process.kill()
    run.finish(30)
    if starter.mpi.kind == "mpich":
        return  # its proxy kills the ranks before any of them can speak
    for rank in range(3):
        last = json.loads((folder / "logs" / f"rank-{rank:04d}.jsonl").read_text().splitlines()[-1])
        assert last["event"] == "failed" and last["error"].startswith("its launcher has ended (")
    assert "its launcher has ended (" in json.loads((folder / "result.json").read_text())["error"]
