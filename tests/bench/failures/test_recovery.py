"""The benchmark of recoveries: whom it kills when, and when the next pass has begun."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from mpips.bench import _runs
from mpips.bench.failures import _passes, recovery
from mpips.bench.failures.recovery import Death, Killer, begins, measure, passes, summary
from mpips.errors import InputError


def run_folder(folder: Path, done: int) -> Path:
    """Write the files of a run that has recorded some passes."""
    lines = [{"event": "pass", "pass": number} for number in range(1, done + 1)]
    text = "".join(f"{json.dumps(each)}\n" for each in [*lines, {"event": "workers"}])
    (folder / "metrics.jsonl").write_text(text + '{"event": "pa')
    return folder


def test_the_number_of_passes_is_that_of_the_last_complete_line(tmp_path: Path) -> None:
    assert passes(tmp_path) == 0
    assert passes(run_folder(tmp_path, 0)) == 0
    assert passes(run_folder(tmp_path, 777)) == 777


def test_each_rank_is_killed_after_its_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    ranks = [
        {"rank": rank, "role": role, "pid": 100 + rank}
        for rank, role in enumerate(("scheduler", "server", "worker"))
    ]
    monkeypatch.setattr(_runs, "ranks_of", lambda folder: ranks)
    monkeypatch.setattr(os, "kill", lambda *what: killed.append(what))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    killer = Killer([Death("worker", 5), Death("scheduler", 25)], random.Random(0))
    for done in (4, 5, 6, 24):
        killer(run_folder(tmp_path, done))
    assert killed == [(102, signal.SIGKILL)]
    for done in (25, 60):
        killer(run_folder(tmp_path, done))
    assert killed == [(102, signal.SIGKILL), (100, signal.SIGKILL)]
    assert [each.rank for each in killer.deaths] == [2, 0]
    strikes = [json.loads(line) for line in (tmp_path / "strikes.jsonl").read_text().splitlines()]
    assert [each["rank"] for each in strikes] == [2, 0]


def test_the_next_pass_is_that_of_the_replacement_or_of_the_successor(tmp_path: Path) -> None:
    events = [(1.0, 3, 0), (1.1, 4, 0), (2.1, 4, 0), (2.6, 5, 0), (2.7, 4, 0), (9.1, 5, 0), (9.4, 4, 6)]
    (tmp_path / "logs").mkdir()
    for rank in (3, 4, 5):
        lines = [
            {"wall": wall, "rank": rank, "event": _passes.BEGINS, "leader": leader}
            for wall, of, leader in events
            if of == rank
        ]
        text = "".join(f"{json.dumps(each)}\n" for each in [{"event": "view"}, *lines])
        (tmp_path / f"logs/rank-{rank:04d}.jsonl").write_text(text)
    assert begins(tmp_path) == events
    deaths = [Death("worker", 5, 3, 2.0), Death("scheduler", 25, 0, 9.0), Death("scheduler", 45, 6, 9.5)]
    measure(deaths, [{"rank": 3, "noticed_after": 0.01}], events)
    assert [each.noticed for each in deaths] == [0.01, None, None]
    assert deaths[0].resumed == pytest.approx(0.6) and deaths[1].resumed == pytest.approx(0.4)
    assert deaths[2].resumed is None
    rows = summary(deaths)
    assert [(row["killed"], row["after"], row["times"]) for row in rows] == [
        ("worker", 5, 1), ("scheduler", 45, 1), ("scheduler", 25, 1),
    ]  # fmt: skip
    assert rows[0]["resumed_p50"] == pytest.approx(0.6) and "resumed_p50" not in rows[1]
    assert _runs.table(recovery.COLUMNS, rows)


def test_another_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "survives", lambda launcher: False)
    with pytest.raises(InputError, match="Open MPI 5 with ULFM is required"):
        recovery.main([])
