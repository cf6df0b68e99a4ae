"""`mpips bench index`: its measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mpips.bench.requests import index
from mpips.errors import InputError


def test_a_small_run_reports_every_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "index.json"
    assert index.main(["--keys", "2000", "--keys", "500", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["keys"], row["list"]) for row in rows] == [(2000, 1000), (2000, 2000), (500, 500)]
    assert all(
        row[name] > 0 for row in rows for name in ("grow", "insert", "find", "again", "bytes", "pause")
    )
    assert all(row["ratio"] == row["find"] / row["searchsorted"] for row in rows)
    assert "searchsorted" in capsys.readouterr().out


def test_keys_are_different_and_lists_sorted() -> None:
    keys = index.draw_keys(5000, np.random.default_rng(3))
    assert len(np.unique(keys)) == 5000
    assert keys.tolist() == index.draw_keys(5000, np.random.default_rng(3)).tolist()
    cut = index.lists(keys, 999)
    assert [len(each) for each in cut] == [999] * 5 + [5]
    assert all((each[1:] > each[:-1]).all() for each in cut)


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="one index holds at most"):
        index.main(["--keys", str(2**31)])
    with pytest.raises(SystemExit):
        index.main(["--keys", "0"])
    assert "must be at least 1" in capsys.readouterr().err
