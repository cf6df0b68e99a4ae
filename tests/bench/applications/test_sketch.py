"""`mpips bench sketch`: its measurements, and its exact counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mpips.bench.applications import sketch as bench
from mpips.data import DataSpec
from mpips.jobs.sketch import kernels, results, scan
from mpips.jobs.sketch.source import Zipf


def test_a_stream_is_counted_exactly_in_all_its_parts() -> None:
    zipf = Zipf(1.2, 5003, 200, 1, 600)
    counts = bench.exact_counts(zipf, 3)
    truth = Counter[int]()
    for part in range(3):
        for number in range(3):
            for numbers in zipf.numbers(part, 3, number):
                truth.update(numbers.tolist())
    assert counts.sum() == 5003 and dict(truth) == {int(at): int(counts[at]) for at in np.flatnonzero(counts)}


def test_errors_are_found(tmp_path: Path) -> None:
    """A table that is right, then one that misses an item, then one where a key is far too high."""
    counts = np.zeros(50, np.int32)
    counts[1:31] = np.arange(30, 0, -1)
    keys = np.arange(50, dtype=np.uint64)
    scan.scramble(keys)
    sketch = results.Sketch(np.zeros(4 * 4096, np.int64), 4, 4096, 9, False)
    for at in range(50):
        kernels.spill(
            keys[at : at + 1], counts[at : at + 1].astype(np.int64), 1, sketch.table, 4, 4096, np.uint64(9),
            np.empty((4, 1), np.uint32), np.empty(1, np.int64),
        )  # fmt: skip
    (tmp_path / "top.tsv").write_text("".join(f"{key}\t0\n" for key in keys[1:21].tolist()))
    right = bench.compare_with_exact(sketch, counts, tmp_path)
    assert (right["keys"], right["over"], right["below"], right["beyond"]) == (30, 0, 0, 0.0)
    assert right["correct_total"] and right["top"] == 20
    more = counts.copy()
    more[7] += 1
    wrong = bench.compare_with_exact(sketch, more, tmp_path)
    assert wrong["below"] == 1 and not wrong["correct_total"]
    less = counts.copy()
    less[3] -= 20
    wrong = bench.compare_with_exact(sketch, less, tmp_path)
    assert wrong["over"] == 20 and wrong["beyond"] == 1 / 30 and wrong["below"] == 0


def test_files_are_counted_exactly(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("n\tword\r\n3\tx\r\n\r\n4\ty\r\n5\tx\r\n9\t\r\n")
    spec = DataSpec(train=[str(tmp_path / "a.tsv")], column="word", weight="n")
    assert bench.count_keys(spec) == {"x": 8, "y": 4}
    (tmp_path / "b.txt").write_text("x\n\ny z\nx")
    assert bench.count_keys(DataSpec(train=[str(tmp_path / "b.txt")])) == {"x": 2, "y z": 1}


@pytest.mark.ranks
@pytest.mark.once
def test_a_small_run_reports_rate_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sketch.json"
    sizes = ["--items", "200000", "--keys", "1000", "--zipf", "1.1", "--repeat", "1"]
    assert bench.main([*sizes, "--set", "sketch.batch=30000", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["items"] == 200_000 and row["rate"] > 0 and row["queries"] > 0 and row["core"] > 0
    assert row["below"] == 0 and row["over"] <= row["bound"] and row["correct_total"]
    assert 900 < row["keys"] <= 1000 and row["top"] >= 98
    assert "Zipf 1.1" in capsys.readouterr().out
