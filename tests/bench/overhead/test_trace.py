"""`mpips bench trace`: its evaluation of the times of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpips.bench.overhead import trace


def test_the_median_of_the_rounds_decides() -> None:
    times = {
        "a loop": {"off": [1.0, 2.0, 4.0], "on": [1.5, 2.02, 4.04]},
        "another": {"off": [1.0], "on": [1.05]},
    }
    first, second = trace.table(times, {"a loop": [3e3, 1e3, 2e3]})
    assert first["ratio"] == pytest.approx(1.01) and first["range"] == "1.010 - 1.500"
    assert (first["met"], second["met"]) == ("yes", "NO")
    assert (first["bytes"], second["bytes"]) == (2e3, None)
    said = trace.text({"conditions": CONDITIONS, "repeat": 3, "table": [first, second]})
    assert "a loop" in said and "1.010" in said and "2.00kB" in said


CONDITIONS = {"cpu": "some", "cores": 2, "load": 0.0}


def test_the_bytes_of_a_rank(tmp_path: Path) -> None:
    assert trace.trace_bytes(tmp_path) == 0.0
    (tmp_path / "trace").mkdir()
    for rank, size in enumerate((1000, 3000)):
        (tmp_path / "trace" / f"rank-{rank:04d}.bin").write_bytes(bytes(size))
    assert trace.trace_bytes(tmp_path) == 2000.0
