"""The process that shows that a node lives until the run has begun."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Started, tagged

from mpips.launch import node_beat
from mpips.launch.node_beat import FILE

RANK = """
import os, sys, time
from pathlib import Path
from mpips.launch import node_beat
node_beat.PERIOD = 0.02
node_beat.begin(sys.argv)
folder = Path(sys.argv[2])
if sys.argv[3] == "forks" and not os.fork():
    time.sleep(60)
    os._exit(0)
(folder / "began").touch()
while not (folder / "begun").exists():
    time.sleep(0.01)
node_beat.end()
time.sleep(60)
"""


@pytest.fixture
def begin(start: Callable[..., Started], tmp_path: Path) -> Callable[..., Started]:
    """Start a rank; it is the first one of its node if `place` is 0."""

    def start_rank(place: str, how: str = "") -> Started:
        os.environ["SLURM_LOCALID"] = place
        try:
            started = start([sys.executable, "-c", RANK, "--run-dir", tmp_path, how, "--claim", "ab"])
        finally:
            del os.environ["SLURM_LOCALID"]
        started.wait_for((tmp_path / "began").exists)
        return started

    return start_rank


def sign(folder: Path) -> Path:
    """Return the file of this node."""
    return folder / FILE.format("ab", os.uname().nodename)


@pytest.mark.parametrize("how", ["", "forks"])
def test_it_renews_a_file_until_the_run_has_begun(
    begin: Callable[..., Started], tmp_path: Path, how: str
) -> None:
    started, file = begin("0", how), sign(tmp_path)
    started.wait_for(lambda: file.exists() and int(file.read_text() or 0) > 2)
    (tmp_path / "begun").touch()
    started.wait_for(lambda: not file.exists())
    started.wait_for(lambda: len(tagged(started.tag)) == 1 + (how == "forks"))


def test_it_ends_with_the_rank(begin: Callable[..., Started], tmp_path: Path) -> None:
    started, file = begin("0"), sign(tmp_path)
    started.wait_for(file.exists)
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait(20)
    started.finish(20)
    assert not file.exists() and tagged(started.tag) == []


def test_other_ranks_of_the_node_have_none(begin: Callable[..., Started], tmp_path: Path) -> None:
    started = begin("1")
    assert tagged(started.tag) == [started.process.pid] and not sign(tmp_path).exists()


def test_a_rank_goes_on_if_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setattr(os, "fork", refuse)
    before = len(os.listdir("/proc/self/fd"))
    node_beat.begin(["--run-dir", str(tmp_path), "--claim", "ab"])
    node_beat.end()
    assert len(os.listdir("/proc/self/fd")) == before
