"""`mpips bench checkpoint`: its measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpips.bench.overhead import checkpoint


def test_a_small_run_reports_bytes_and_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "checkpoint.json"
    how = ["--rows", "20000", "--pushes", "4000", "--exponent", "1.2", "--json", str(file)]
    assert checkpoint.main(how) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["ratio"] == pytest.approx(row["whole"] / row["delta"], rel=0.01) and row["ratio"] > 6
    assert all(row[column.key] > 0 for column in checkpoint.COLUMNS)
    assert "whole/delta" in capsys.readouterr().out


def test_ranks_follow_zipfs_law() -> None:
    counts = np.zeros(50)
    rng = np.random.default_rng(0)
    for _ in range(4000):
        counts[checkpoint.zipf(50, 1.0, 1, rng)] += 1
    expected = 4000 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()
    assert abs(counts[:5] - expected[:5]).max() < 5 * np.sqrt(expected[0])
