"""A run that is asked to stop while it reads its data ends untrained, and can be started again.

The data takes minutes to read, so that no test depends on the machine's speed.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, Started

pytestmark = pytest.mark.ranks
MEMBER, MEMBERS = 1 << 25, 256
LINES = {"examples": b"+1 1:1\n-1 2:1\n", "comments": b"# nothing to learn from\n"}
SECONDS = 30.0
"""Enough for the end of a run; the data would be read for longer, and then trained on."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Write a job whose data can be chosen."""
    (tmp_path / "small.svm").write_bytes(LINES["examples"] * 8)
    path = tmp_path / "job.toml"
    path.write_text(
        '[job]\nprogram = "sparse_lr"\nname = "read"\n[sparse_lr]\npasses = 1\n'
        '[layout]\nservers = 1\nworkers = 2\n[data]\ntrain = "small.svm"\n'
    )
    return path


def endless(folder: Path, lines: bytes) -> Path:
    """Write a small file that is gigabytes once it is unpacked."""
    member = gzip.compress(lines * (MEMBER // len(lines)), 1)
    path = folder / "large.svm.gz"
    with path.open("wb") as file:
        for _ in range(MEMBERS):
            file.write(member)
    return path


def reads(run: Path, data: Path) -> bool:
    """Return whether every worker of a run has opened its data."""
    try:
        ranks = json.loads((run / "run.json").read_text())["ranks"]
        pids = [rank["pid"] for rank in ranks if rank["role"] == "worker"]
        return all(
            any(os.readlink(each) == str(data) for each in Path(f"/proc/{pid}/fd").iterdir()) for pid in pids
        )
    except OSError:
        return False


def result_of(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


@pytest.mark.drawn(1)
@pytest.mark.parametrize("lines", LINES)
def test_one_signal_ends_a_load_and_the_run_is_started_again(
    start_mpips: Callable[..., Started],
    run_mpips: Callable[..., Finished],
    job: Path,
    tmp_path: Path,
    lines: str,
) -> None:
    data, run = endless(tmp_path, LINES[lines]), tmp_path / "run"
    running = start_mpips("run", job, "--run-dir", run, "--set", f"data.train={data}", cwd=tmp_path)
    running.wait_for(lambda: reads(run, data))
    running.process.send_signal(signal.SIGTERM)
    done = running.finish(SECONDS)
    again = f"--run-dir {run} --resume latest"
    assert done.code == 85, done.stderr
    assert done.last_line.lstrip("\0") == (  # mpirun writes one after an abort
        "mpips: stopped before anything was trained (SIGTERM); there is no checkpoint; "
        f"start it again with: {again}; run folder: {run}"
    )
    result = result_of(run)
    assert (result["status"], result["exit_code"], result["checkpoint"]) == ("stopped", 85, None)
    assert result["before_training"] is True and result["seconds"]["train"] == 0
    assert not (tmp_path / "checkpoints").exists()

    done = run_mpips("run", job, *again.split(), cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert f"mpips: {run}: was stopped before it trained anything: from the beginning" in done.stderr
    assert "before_training" not in result_of(run)
    done = run_mpips("run", job, *again.split(), cwd=tmp_path)
    assert done.code == 2 and "there is no complete checkpoint of the run in" in done.last_line
