"""Failed requests of a user's program are reported with their line, whether it waits for them or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

PROGRAM = """\
from dataclasses import dataclass
import threading; import numpy as np
from mpips import Cluster, Context, VectorSpec
from mpips.storage.updates import update

KEYS = np.arange(10, dtype=np.uint64)


@dataclass(frozen=True)
class Settings:
    what: str = ""


@update("picky")
def picky(values, state, slots, rows, settings):
    if rows.size and rows.min() < 0:
        raise ValueError("a negative row")
    values[slots] += rows


def schedule(cluster: Cluster, settings: Settings) -> dict:
    vector = cluster.create_vector(VectorSpec("m", "float32", extent=10, update="picky"))
    cluster.workers.call(settings.what)
    push = vector.push(KEYS, np.ones(10, np.float32))
    total = float(cluster.node.wait(vector.pull(KEYS, after=[push])).sum())
    return {"sum": total, "curve": np.arange(3), "loss": float("nan"), "odd": object()}


class Worker:
    def __init__(self, context: Context) -> None:
        self.context = context

    def pushes(self) -> dict:
        self.context.vectors["m"].push(KEYS, np.ones(10, np.float32))
        return {"n": np.int64(3)}

    def refused(self) -> None:
        self.context.vectors["m"].push(KEYS, np.full(10, -1, np.float32))  # line 38

    def unsorted(self) -> None:
        self.context.vectors["m"].push(KEYS[::-1], np.ones(10, np.float32))  # line 41

    def threads(self) -> None:
        vector, wait = self.context.vectors["m"], self.context.node.wait
        thread = threading.Thread(target=lambda: wait(vector.pull(KEYS)))
        thread.start()
        for _ in range(100):
            wait(vector.pull(KEYS))
        thread.join()
"""

pytestmark = [pytest.mark.ranks, pytest.mark.once]


@pytest.fixture
def run(tmp_path: Path, run_mpips: Callable[..., Finished]) -> Callable[[str], tuple[Finished, dict]]:
    """Run the program: its workers are told to do one thing."""
    (tmp_path / "mine.py").write_text(PROGRAM)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "mine.py"\n[layout]\nworkers = 2\n')

    def do(what: str) -> tuple[Finished, dict]:
        done = run_mpips("run", "job.toml", "--run-dir", "run", "--set", f"mine.what={what}", cwd=tmp_path)
        return done, json.loads((tmp_path / "run" / "result.json").read_text())

    return do


def test_pushes_without_a_wait_for_it_are_applied_and_metrics_are_kept(run: Callable[..., tuple]) -> None:
    done, result = run("pushes")
    assert done.code == 0, done.stderr
    assert result["metrics"] == {"sum": 30.0, "curve": [0, 1, 2], "loss": None, "odd": None}
    assert result["nulls"] == {
        "metrics.loss": "is nan",
        "metrics.odd": "is a object, which JSON cannot represent",
    }


def test_a_push_that_fails_and_without_a_wait_for_it_fails_the_run(
    run: Callable[..., tuple], tmp_path: Path
) -> None:
    done, result = run("refused")
    assert done.code == 1 and result["status"] == "failed"
    assert "rank 1 (server 0 on " in done.last_line and "ValueError: a negative row" in done.last_line
    assert f"at {tmp_path}/mine.py:38 (push of vector m)" in done.last_line
    assert str(tmp_path / "run/logs/rank-0001.jsonl") in done.last_line


def test_errors_of_a_program_name_its_line(run: Callable[..., tuple], tmp_path: Path) -> None:
    done, result = run("unsorted")
    assert done.code == 2 and result["failed_rank"] in done.last_line
    assert f"vector m: keys must be sorted and unique (at {tmp_path}/mine.py:41)" in done.last_line
    assert f"its log: {tmp_path}/run/logs/rank-000" in done.last_line
    assert done.stderr.count("Traceback (most recent call last)") == 1


def test_a_push_in_another_thread_is_an_error(run: Callable[..., tuple]) -> None:
    done, result = run("threads")
    assert done.code == 1 and result["status"] == "failed"
    assert "must run in the thread in which mpips calls the program" in done.last_line
    assert "MPI_ERR" not in done.stderr
