"""`mpips bench tables`: each form of the table has all rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpips.bench.applications import tables


def test_a_small_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    assert (
        tables.main(["--rows", "500", "--readers", "3", "--repeat", "1", "--json", str(tmp_path / "t.json")])
        == 0
    )
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert [row["file"] for row in rows] == list(tables.FILES) and rows[0]["ratio"] == 1.0
    assert all(row["rate"] * row["examples"] == pytest.approx(500) for row in rows)
    assert "table.parquet" in capsys.readouterr().out
