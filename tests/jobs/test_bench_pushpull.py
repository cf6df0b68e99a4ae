"""The benchmarks of the data path, as whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from conftest import Finished

from mpips.bench.requests import _overlap, overlap

pytestmark = [pytest.mark.ranks, pytest.mark.once]


def test_every_cell_is_measured_beside_its_limit(tmp_path: Path, run_mpips: Callable[..., Finished]) -> None:
    report = tmp_path / "report.json"
    small = ["--quick", "--keys", "1,3000", "--layouts", "1+1,2+2", "--scattered"]
    done = run_mpips("bench", "pushpull", *small, "--json", report, timeout=120, cwd=tmp_path)
    assert done.code == 0, done.stdout + done.stderr
    rows = json.loads(report.read_text())
    cells = [(row["layout"], row["keys"], row["mode"], row["op"]) for row in rows]
    modes, ops = ("dense", "sparse", "cached"), ("push", "pull")
    assert cells == list(product(("1+1", "2+2"), (1, 3000), modes, ops))
    for row in rows:
        assert set(row) == {"layout", "mode", "op", "keys", "median_s", "p99_s", "limit_s", "ratio"}
        assert 0 < row["median_s"] <= row["p99_s"] < 10 and 0 < row["limit_s"] < 10
        assert row["ratio"] == pytest.approx(row["limit_s"] / row["median_s"])
    assert "1 key: at most 2.5 times" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


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
