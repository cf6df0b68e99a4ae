"""Requests to stop a run are recorded from the start of the process, each once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Started

from mpips.process.stop_signals import StopRequests

KINDS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


@pytest.fixture
def hup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("kind", [*KINDS, signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_a_stop_request_ends_what_cannot_be_stopped_otherwise_and_is_kept_from_then_on(
    hup: None, kind: signal.Signals
) -> None:
    before, ended = signal.getsignal(kind), []
    with StopRequests(ended.append) as requests:
        os.kill(os.getpid(), kind)
        assert (ended, requests.received) == ([kind], [])
        requests.record_only()
        os.kill(os.getpid(), kind)
        os.kill(os.getpid(), kind)
        assert (ended, requests.received) == ([kind], [kind, kind])
    assert signal.getsignal(kind) is before


def test_an_ignored_hangup_signal_is_no_stop_request(hup: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequests() as requests:
        requests.record_only()
        os.kill(os.getpid(), signal.SIGHUP)
        assert requests.received == []


LAUNCHER = """
import signal, sys, time
from pathlib import Path
folder, deaf, heard = Path(sys.argv[1]), int(sys.argv[2]), []
(folder / "started").touch()
while not (folder / "go").exists():  # USR1 would kill it
    time.sleep(0.01)
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
(folder / "ready").touch()
while len(heard) <= deaf:
    time.sleep(0.01)
"""

PARENT = """
import sys
from pathlib import Path
from mpips.launch import processes
from mpips.launch.mpi_launcher import Launch
processes.FIRST_INTERVAL = 0.1
launch, folder = Launch("openmpi", (sys.executable, *sys.argv[1:]), {}), Path(sys.argv[2])
tell = lambda number: (folder / "told").write_text(str(number))
sys.exit(abs(processes.LauncherProcess(launch, ready=(folder / "ready").exists, tell=tell).run()))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_request_waits_for_the_ranks_and_is_passed_on_until_they_handle_it(
    start: Callable[..., Started], tmp_path: Path, kind: signal.Signals
) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    started = start([sys.executable, "-c", PARENT, script, tmp_path, "2"])
    started.wait_for((tmp_path / "started").exists)
    started.wait_for(lambda: "mpips: waiting for the ranks to start" in started.stderr)
    started.process.send_signal(kind)
    if kind != signal.SIGUSR1:
        started.wait_for(lambda: "mpips: stopping, " in started.stderr)
    assert not (tmp_path / "told").exists()
    (tmp_path / "go").touch()
    assert started.finish(60).code == 0
    assert (tmp_path / "told").read_text() == str(int(kind))


def test_no_number_of_warnings_of_a_batch_system_kills_a_run(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    started = start([sys.executable, "-c", PARENT, script, tmp_path, "0"])
    started.wait_for((tmp_path / "started").exists)
    for kind in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU) * 2:
        started.process.send_signal(kind)
    (tmp_path / "go").touch()
    assert started.finish(60).code == 0


SLOW = """
import pathlib, time
from dataclasses import dataclass
pathlib.Path("up").touch()
time.sleep(600)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_that_still_prepares_its_run_ends_at_once(
    start_mpips: Callable[..., Started], tmp_path: Path, kind: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "slow.py"\n')
    started = start_mpips("run", "job.toml", cwd=tmp_path)
    started.wait_for((tmp_path / "up").exists)
    started.process.send_signal(kind)
    done = started.finish(30)
    assert done.code == 128 + kind
    assert done.last_line == f"mpips: stopped by {kind.name} before the run began: nothing was trained"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


JOB = Path(__file__).parents[1] / "jobs" / "programs" / "job.toml"


@pytest.mark.drawn(1)
@pytest.mark.ranks
@pytest.mark.parametrize(
    "kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.once) for kind in KINDS[1:])]
)
def test_ranks_that_only_start_handle_a_stop_request_once_they_can(
    start_mpips: Callable[..., Started], tmp_path: Path, kind: signal.Signals
) -> None:
    started = start_mpips("run", JOB, "--run-dir", tmp_path / "run", "--set", "failing.rounds=0")
    started.wait_for(lambda: "-m mpips" in started.stderr)  # the launch line
    started.process.send_signal(kind)
    done = started.finish(60)
    assert done.code == 85, done.stderr
    assert done.last_line.startswith("mpips: stopped ")
