"""A complete traced run: the file of every rank, the events, the table, and the same result as without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyData

from mpips.tracing.analysis import summary
from mpips.tracing.one_clock import read
from mpips.tracing.trace_file import What


@pytest.mark.ranks
@pytest.mark.once
def test_a_traced_run(tmp_path: Path, tiny_data: TinyData, run_mpips: Callable[..., Any]) -> None:
    job, folder = tmp_path / "job.toml", tmp_path / "run"
    job.write_text(
        f'[job]\nprogram = "sparse_lr"\n[layout]\nservers = 2\nworkers = 2\n'
        f'[data]\ntrain = "{tiny_data.train}"\ntest = "{tiny_data.test}"\n'
        f'[checkpoint]\nevery = 2\ndirectory = "{tmp_path}/checkpoints"\n[filters]\npush = ["zstd"]\n'
        "[sparse_lr]\npasses = 4\n[trace]\non = true\n"
    )
    done = run_mpips("run", job, "--run-dir", folder)
    assert done.code == 0, done.stderr
    traces = read(folder)
    assert [(trace.role, trace.index) for trace in traces] == [
        ("scheduler", 0), ("server", 0), ("server", 1), ("worker", 0), ("worker", 1),
    ]  # fmt: skip
    assert all(len(trace.of(What.LEAVE)) == 1 and trace.dropped == 0 for trace in traces)
    assert len(traces[1].of(What.WRITE)) >= 1  # files of checkpoints
    result = json.loads((folder / "result.json").read_text())
    reported = summary(folder, "train")
    assert reported["seconds"] == pytest.approx(
        result["seconds"]["train"] + result["seconds"]["checkpoint"], rel=0.2, abs=0.1
    )
    for rank in reported["ranks"]:
        assert sum(rank["uses"].values()) == pytest.approx(rank["seconds"], rel=1e-3)
    assert all(rank["uses"]["compute"] > 0 for rank in reported["ranks"][3:])
    shown = run_mpips("trace", folder)
    assert shown.code == 0, shown.stderr
    assert "4 worker 1" in shown.stdout and "longest waits:" in shown.stdout
    assert (folder / "trace" / "trace.json.gz").stat().st_size > 1000
