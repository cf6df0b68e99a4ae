"""The benchmarks of the data path, as complete runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from conftest import Finished

from mpips.bench.requests import _overlap, overlap

pytestmark = [pytest.mark.ranks, pytest.mark.once]


def test_every_cell_is_measured_with_its_limit(tmp_path: Path, run_mpips: Callable[..., Finished]) -> None:
    report = tmp_path / "report.json"
    small = ["--quick", "--keys", "1,3000", "--layouts", "1+1,2+2", "--scattered", "--replicas", "0"]
    done = run_mpips("bench", "pushpull", *small, "--json", report, timeout=120, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())
    cells = [(row["layout"], row["keys"], row["mode"], row["op"]) for row in rows]
    kinds = [(mode, op) for mode in ("dense", "sparse", "cached") for op in ("push", "pull")]
    kinds.append(("rounds", "push_pull"))
    assert cells == [(at, n, *kind) for at in ("1+1", "2+2") for n in (1, 3000) for kind in kinds]
    for row in rows:
        assert 0 < row["median_s"] <= row["p99_s"] < 10 and 0 < row["limit_s"] < 10
        assert row["ratio"] == pytest.approx(row["limit_s"] / row["median_s"])
        assert (row["copies"], row["update"], row["width"]) == (0, "add", 1)
    assert "1 key: at most 2.5 times" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_wide_rows_copies_and_updates_are_measured_in_the_default_configuration(
    tmp_path: Path, run_mpips: Callable[..., Finished]
) -> None:
    # Three servers: more than one shard each, and a copy.
    report = tmp_path / "report.json"
    small = ["--quick", "--keys", "50", "--layouts", "3+2", "--width", "16", "--update", "adagrad"]
    done = run_mpips("bench", "pushpull", *small, "--json", report, timeout=120, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())
    assert {(row["copies"], row["update"], row["width"]) for row in rows} == {(1, "adagrad", 16)}
    assert [row["mode"] for row in rows] == ["dense"] * 2 + ["sparse"] * 2 + ["cached"] * 2 + ["rounds"]
    assert all(0 < row["limit_s"] < 10 for row in rows)


def test_computing_is_timed_with_and_without_a_request(
    tmp_path: Path, run_mpips: Callable[..., Finished]
) -> None:
    report = tmp_path / "report.json"
    small = ["--keys", "2000", "--repeat", "2", "--pieces", "3"]
    done = run_mpips("bench", "overlap", *small, "--json", report, timeout=120, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())["table"]
    assert [(row["mode"], row["op"], row["how"]) for row in rows] == list(
        product(("dense", "cached"), ("push", "pull"), ("in one piece", "3 pieces"))
    )
    assert all(row["alone_s"] > _overlap.LEAST / 2 and row["sync_s"] > 0 for row in rows)
    assert all(row["met"] == ("yes" if row["share"] < overlap.COST else "NO") for row in rows)
