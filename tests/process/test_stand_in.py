"""The process that stands in for a rank at its launch daemon."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Started, tagged

RANK = """
import os, signal, sys, time
from pathlib import Path
from mpips.process import stand_in, stop_signals, supervisor
received = stop_signals.receive()
stand_in.begin(sys.argv)
folder, how = Path(sys.argv[2]), sys.argv[3]
if how == "forked" and not os.fork():
    time.sleep(60)
    os._exit(0)
if how in ("released", "forked"):
    stand_in.release()
(folder / "part").write_text(str(os.getpid()))
(folder / "part").rename(folder / "pid")
while not received and not (folder / "end").exists():
    time.sleep(0.01)
(folder / "received").write_text(str(received))
if how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(7)
"""


@pytest.fixture
def begin(start: Callable[..., Started], tmp_path: Path) -> Callable[[str], tuple[Started, int]]:
    """Start a rank that has a stand-in; return the stand-in, and the rank's process id."""

    def start_rank(how: str) -> tuple[Started, int]:
        started = start([sys.executable, "-c", RANK, "--run-dir", tmp_path, how, "--claim", "ab"])
        started.wait_for((tmp_path / "pid").exists)
        return started, int((tmp_path / "pid").read_text())

    return start_rank


@pytest.mark.parametrize(("how", "code"), [("released", 7), ("bound", 7), ("killed", -signal.SIGKILL)])
def test_it_ends_as_the_rank_ends(
    begin: Callable[[str], tuple[Started, int]], tmp_path: Path, how: str, code: int
) -> None:
    started, pid = begin(how)
    assert os.getsid(pid) == pid != started.process.pid
    (tmp_path / "end").touch()
    assert started.finish(20).code == code


@pytest.mark.parametrize(("how", "reports"), [("released", False), ("bound", True), ("forked", False)])
def test_it_reports_a_rank_that_fails_before_it_is_released(
    begin: Callable[[str], tuple[Started, int]], tmp_path: Path, how: str, reports: bool
) -> None:
    started, pid = begin(how)
    os.kill(pid, signal.SIGKILL)
    assert started.process.wait(20) == -signal.SIGKILL
    found = [path.read_text() for path in tmp_path.glob(".lost-ab")]
    assert found == ([f"rank ? on {os.uname().nodename}: SIGKILL"] if reports else [])
    started.kill()


def test_it_passes_signals_on_until_the_rank_is_released(
    begin: Callable[[str], tuple[Started, int]], tmp_path: Path
) -> None:
    started, _ = begin("bound")
    started.process.send_signal(signal.SIGUSR1)
    assert started.finish(20).code == 7
    assert (tmp_path / "received").read_text() == str([signal.SIGUSR1.value])


def test_the_rank_ends_with_it_until_it_is_released(begin: Callable[[str], tuple[Started, int]]) -> None:
    started, _ = begin("bound")
    started.process.send_signal(signal.SIGKILL)
    assert started.finish(20).code == -signal.SIGKILL, "and nothing is left behind"


@pytest.mark.parametrize("how", ["released", "forked"])
def test_a_released_rank_outlives_it(
    begin: Callable[[str], tuple[Started, int]], tmp_path: Path, how: str
) -> None:
    started, pid = begin(how)
    # It holds the pipe to the stand-in open.
    child = [each for each in tagged(started.tag) if each not in (pid, started.process.pid)]
    assert len(child) == (how == "forked")
    for kind in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
        started.process.send_signal(kind)
    started.process.wait(20)
    assert sorted(tagged(started.tag)) == sorted([pid, *child])
    for each in child:
        os.kill(each, signal.SIGKILL)
    (tmp_path / "end").touch()
    started.finish(20)
    assert (tmp_path / "received").read_text() == "[]"


@pytest.mark.parametrize("first", ["the signal", "the result"])
def test_a_rank_that_hangs_when_the_run_is_over_is_killed(
    begin: Callable[[str], tuple[Started, int]], tmp_path: Path, first: str
) -> None:
    started, pid = begin("released")
    os.kill(pid, signal.SIGSTOP)
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "provisional": True}))
    if first == "the signal":
        started.process.send_signal(signal.SIGTERM)
    (tmp_path / "part").write_text(json.dumps({"status": "completed"}))
    (tmp_path / "part").rename(tmp_path / "result.json")
    if first == "the result":
        started.process.send_signal(signal.SIGTERM)
    assert started.finish(20).code == -signal.SIGKILL


DAEMON = """
import os, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2], "--run-dir", *sys.argv[3:]])
with open("/proc/self/comm", "w") as name:
    name.write(sys.argv[1])
rank.wait()
time.sleep(300)
"""


@pytest.mark.parametrize("name", ["prted", "other"])
def test_a_daemon_that_has_lost_its_launcher_is_ended_after_the_run(
    start: Callable[..., Started], tmp_path: Path, name: str
) -> None:
    short = RANK.replace("stand_in.begin", "stand_in.DAEMON_ENDS = 0.5\nstand_in.begin")
    daemon = start([sys.executable, "-c", DAEMON, name, short, tmp_path, "released"])
    daemon.wait_for((tmp_path / "pid").exists)
    (tmp_path / "result.json").write_text(json.dumps({"status": "completed"}))
    (tmp_path / "end").touch()
    if name == "other":
        daemon.wait_for(lambda: tagged(daemon.tag) == [daemon.process.pid])
        daemon.kill()
    else:
        assert daemon.finish(20).code == -signal.SIGTERM
