"""Benchmarks of replication, of joining and leaving servers, and of restarts: counts and verdicts."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished
from hypothesis import given
from hypothesis import strategies as st

from mpips.bench import _runs
from mpips.bench.failures import _killing, restart
from mpips.bench.failures._killing import Trial
from mpips.bench.scaling import _requesting, elastic, replication
from mpips.cli import main
from mpips.cluster.layout import Layout, LayoutSpec, Role
from mpips.cluster.view import (
    View,
    first_view,
    next_epoch,
    repaired,
    with_learner_joined,
    with_ring_order,
    with_server,
)
from mpips.config.job_file import load

CONDITIONS = {"cpu": "a machine", "cores": 2, "load": 0.01, "python": "3", "at": "now"}


# --- elastic -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 10**9)), max_size=20), st.floats(0, 9))
def test_requests_count_where_they_were_under_way(requests: list[tuple[float, int]], begin: float) -> None:
    notes = np.array([(0, 0, at, took) for at, took in requests], np.float64).reshape(-1, 4)
    found = elastic.latencies(notes, begin, begin + 1)
    met = [took * 1e-9 for at, took in requests if at < begin + 1 and at + took * 1e-9 >= begin]
    assert found["count"] == len(met)
    assert found["max"] == (pytest.approx(max(met)) if met else None)
    if len(met) % 2:
        assert found["p50"] == pytest.approx(sorted(met)[len(met) // 2])


def a_change(before: dict[str, int], after: dict[str, int], rank: int, *, joins: bool) -> dict[str, Any]:
    return {
        "joins": joins, "rank": rank, "begin": 1.0, "end": 1.5, "keys_before": before, "keys_after": after,
        "shards": 4, "shards_moved": [1], "keys_of_shards_moved": 300, "received": dict.fromkeys(after, 10),
    }  # fmt: skip


def test_moved_keys_are_compared_with_the_minimum() -> None:
    join = elastic.cost(a_change({"1": 450, "2": 450}, {"1": 300, "2": 310, "3": 290}, 3, joins=True), 900)
    assert (join["keys_moved"], join["keys_least"], join["bytes"]) == (290, 300, 10)
    assert join["imbalance"] == pytest.approx(310 / 300)
    shuffled = elastic.cost(
        a_change({"1": 450, "2": 450}, {"1": 500, "2": 100, "3": 300}, 3, joins=True), 900
    )
    assert shuffled["moved"] == pytest.approx(350 / 300)
    left = elastic.cost(a_change({"1": 300, "2": 600}, {"2": 900}, 1, joins=False), 900)
    assert (left["keys_moved"], left["keys_least"], left["moved"]) == (300, 300, 1.0)


def a_report(**changed: Any) -> dict[str, Any]:
    join = elastic.cost(a_change({"1": 450, "2": 450}, {"1": 300, "2": 300, "3": 300}, 3, joins=True), 900)
    departure = a_change({"1": 300, "2": 300, "3": 300}, {"2": 600, "3": 300}, 1, joins=False)
    departure |= {"begin": 2.0, "end": 2.5}
    notes = np.array([(0, 0, at, 1e6) for at in np.arange(0.0, 3.0, 0.25)])
    report = {
        "conditions": CONDITIONS, "layout": {"servers": 2, "workers": 2}, "keys": 900, "dtype": "float64",
        "batch": 4, "failed": 0, "stale": 0, "lost": 0, "doubled": 0, "errors": [], "updates": 7, "issued": 12,
        "join": join, "departure": elastic.cost(departure, 900),
        "requests": elastic.phases(notes, join, departure, 3.0),
    }  # fmt: skip
    return report | changed


def test_the_elastic_report_names_failures_and_missed_targets() -> None:
    report = a_report()
    assert [row["count"] for row in report["requests"]] == [4, 2, 2, 2, 2]
    assert elastic.good(report)
    assert "fullest < 1.15 times the mean: yes" in elastic.text(report) and "NO" not in elastic.text(report)
    for name in ("failed", "stale", "lost", "doubled"):
        assert not elastic.good(report | {name: 1})
    uneven = report | {"join": report["join"] | {"imbalance": 1.2}}
    assert not elastic.good(uneven) and "fullest < 1.15 times the mean: NO" in elastic.text(uneven)


def test_sums_on_the_servers_are_compared_key_by_key() -> None:
    counts = [np.array([1, 2, 0, 1]), np.array([0, 1, 0, 1])]
    exported = [
        (np.array([0, 1], np.uint64), np.array([[1.0], [5.0]])),
        (np.array([3], np.uint64), np.array([[1.0]])),
    ]
    assert _requesting.compare(exported, counts) == {"updates": 6, "lost": 1, "doubled": 2}
    exact = [(np.array([0, 1, 3], np.uint64), np.array([[1.0], [3.0], [2.0]]))]
    assert _requesting.compare(exact, counts) == {"updates": 6, "lost": 0, "doubled": 0}


def test_a_join_is_over_when_all_shards_are_where_the_ring_wants_them() -> None:
    view = first_view(Layout.of(5, LayoutSpec(servers=2, workers=1, spares=1)))
    assert _requesting.is_settled(view, 0)
    (spare,) = view.of(Role.SPARE)
    view, steps = repaired(with_server(next_epoch(view), spare), 0), 0
    while not _requesting.is_settled(view, 0):
        view, steps = a_step(view), steps + 1
    assert steps > 1 and view.primary_of(spare)


def a_step(view: View) -> View:
    """Let the first learner join its chain, or the first closing chain be reordered, and repair."""
    view = next_epoch(view)
    for shard, chain in enumerate(view.chains):
        if chain.learner >= 0:
            return repaired(with_learner_joined(view, shard, chain.learner, chain.since), 0)
        if chain.closing:
            return repaired(with_ring_order(view, shard, chain.since, 0), 0)
    return repaired(view, 0)


# --- replication ---------------------------------------------------------------------------------------


def a_run(program: str, replicas: int, sent: int, train: float = 1.0, sha: str = "a") -> dict[str, Any]:
    return {
        "program": program,
        "replicas": replicas,
        "sent": sent,
        "train": train,
        "parameters_sha256": sha,
    }


def test_copies_are_compared_with_no_copies() -> None:
    runs = [a_run("sparse_lr", 0, 100, t) for t in (1.0, 2.0, 3.0)]
    runs += [a_run("sparse_lr", 1, 125, t) for t in (2.0, 2.2, 9.0)]
    runs += [a_run("summed", 0, 80), a_run("summed", 1, 100), a_run("single", 0, 80), a_run("single", 1, 160)]
    rows = {(row["program"], row["replicas"]): row for row in replication.table(runs, 4)}
    one = rows["sparse_lr", 1]
    assert (one["bytes_ratio"], one["time_ratio"], one["same"]) == (1.25, pytest.approx(1.1), "yes")
    assert rows["summed", 1]["added"] == rows["summed", 1]["expected"] == 0.25
    assert rows["single", 1]["added"] == rows["single", 1]["expected"] == 1.0
    other = replication.table([*runs, a_run("sparse_lr", 1, 125, sha="b")], 4)
    assert [row["same"] for row in other if row["program"] == "sparse_lr"] == ["yes", "NO"]


def test_the_replication_report_names_missed_targets_and_other_bits() -> None:
    rows = replication.table([a_run("sparse_lr", 0, 100), a_run("sparse_lr", 1, 140, 1.1, "b")], 4)
    layout = {"servers": 2, "workers": 4}
    report = {"conditions": CONDITIONS, "layout": layout, "repeat": 1, "pushes": {"rounds": 0}, "table": rows}
    said = replication.text(report)
    assert "1.400 times the bytes of k = 0, NOT below 1.3" in said
    assert "1.100 times the time of k = 0, below 1.15" in said
    assert "the parameters do NOT have the same bits" in said


# --- restart -------------------------------------------------------------------------------------------


def a_trial(**changed: Any) -> Trial:
    trial = Trial((1, 2), (3, 2), False, noted=5, latest=5, objective=100.05, sha256="a")
    return replace(trial, failures=[], **changed)


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({}, ""),
        ({"latest": 6}, ""),
        ({"noted": 6}, "the checkpoint of step 6 is missing"),
        ({"problems": ["server-0001.h5: damaged"]}, "server-0001.h5: damaged"),
        ({"objective": None, "said": "no room"}, "it did not continue: no room"),
        ({"objective": 100.2}, "objective 100.2, without failures 100"),
        ({"objective": 99.8}, "objective 99.8, without failures 100"),
        ({"sha256": "b"}, "the parameters differ from those of the run without failures"),
        ({"sha256": "b", "begun": (1, 3)}, ""),
        ({"sha256": "b", "begun": (1, 3), "noted": -1, "latest": -1}, "the parameters differ"),
    ],
)
def test_the_outcome_of_a_restart(changed: dict[str, Any], failure: str) -> None:
    trial = a_trial(**changed)
    restart.compare_trial(trial, {2: 100.0}, {2: "a"})
    assert len(trial.failures) == bool(failure)
    assert failure in "; ".join(trial.failures) and failure in restart.trial_line(trial)
    assert restart.summary([trial])["failures"] == bool(failure)


def test_layouts_differ_and_are_repeatable() -> None:
    found = [restart.layouts(random.Random(seed)) for seed in range(50)]
    assert all(begun != resumed for begun, resumed in found)
    assert found == [restart.layouts(random.Random(seed)) for seed in range(50)]


def test_what_a_killed_run_left_is_read(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    assert _killing.last_reported(metrics) == -1
    metrics.write_text(
        '{"event": "checkpoint", "step": 2}\n{"event": "pass", "pass": 9}\n'
        '{"event": "checkpoint", "step": 3}\n{"event": "checkpoint", "st'
    )
    assert _killing.last_reported(metrics) == 3
    (tmp_path / "step-000001").mkdir()
    assert _killing.is_writing(tmp_path)
    (tmp_path / "step-000001" / "manifest.json").write_text("{}")
    assert not _killing.is_writing(tmp_path) and not _killing.is_writing(tmp_path / "no-such")


def test_ranks_and_their_launcher_are_killed() -> None:
    sleeping = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    rank, launcher = (
        subprocess.Popen(sleeping, stdout=subprocess.PIPE, process_group=0),
        subprocess.Popen(sleeping, stdout=subprocess.PIPE, process_group=0),
    )
    for process in (rank, launcher):
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
    assert _killing.is_alive(rank.pid) and _killing.is_alive(os.getpid())
    _killing.kill([rank.pid], launcher)
    assert (rank.wait(), launcher.returncode) == (-9, -9)
    assert not _killing.is_alive(rank.pid)


def test_the_jobs_own_data_is_cut(tmp_path: Path) -> None:
    asked = restart.parser().parse_args([])
    job = load(_runs.job_file(), restart.job_settings(asked, tmp_path))
    lines = Path(str(job.data.train)).read_text().splitlines()
    assert len(lines) == restart.EXAMPLES + 1 and lines[0].startswith("label\t")
    assert job.data.test == [] or job.data.test == ""
    assert (job.checkpoint.every, job.consistency.is_sequential) == (1, True)


# --- all three -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replication", "--servers", "1"], "--servers: must be at least 2, got 1"),
        (["replication", "--train", "no-such.svm"], "no such data file: no-such.svm"),
        (["replication", "--set", "sparse_lr.epsilom=1"], "unknown key"),
        (["elastic", "--keys", "0"], "--keys: must be at least 1, got 0"),
        (["elastic", "--dtype", "int8"], "--dtype: invalid choice"),
        (["restart", "--trials", "-1"], "--trials: must be at least 0"),
        (["restart", "--train", "no-such.svm"], "no such data file: no-such.svm"),
        (["restart", "--set", "sparse_lr.epsilom=1"], "unknown key"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", *arguments])
    except SystemExit as caught:
        code = caught.code  # type: ignore[assignment]
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1] and captured.out == ""


@pytest.mark.parametrize("bench", [replication, elastic, restart])
def test_help_of_each_has_examples(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(["--help"])
    assert caught.value.code == 0
    assert f"\n  mpips bench {bench.__name__.rpartition('.')[2]}" in capsys.readouterr().out


@pytest.mark.ranks
@pytest.mark.once
def test_the_whole_benchmark(tmp_path: Path, run_mpips: Callable[..., Finished]) -> None:
    report = tmp_path / "report.json"
    small = ["--keys", "3000", "--pause", "0.1", "--dtype", "float32"]
    done = run_mpips("bench", "elastic", *small, "--json", report, timeout=120, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    said = json.loads(report.read_text())
    assert said["failed"] == said["lost"] == said["doubled"] == said["stale"] == 0
    assert said["updates"] > 3000 and all(row["count"] > 0 for row in said["requests"])
    assert sum(said["join"]["keys_after"].values()) == 3000 == sum(said["departure"]["keys_after"].values())
    assert said["join"]["moved"] == pytest.approx(1.0, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
