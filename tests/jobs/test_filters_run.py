"""Complete jobs with filters: held rows survive a checkpoint, and a filter that a rank lacks is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "held.py"
FILTERS = """
[filters]
push = [{name = "significant", threshold = 40.0}, {name = "scaled", by = 4.0}, {name = "zstd", least = 0}]
pull = ["zeros", "lz4"]
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "held.py").write_text(PROGRAM.read_text())
    text = f'[job]\nprogram = "held.py"\n[checkpoint]\ndirectory = "{tmp_path}/checkpoints"\n{FILTERS}'
    (tmp_path / "job.toml").write_text(text)
    return tmp_path / "job.toml"


def reported(done: Any, folder: Path) -> dict[str, Any]:
    assert done.code == 0, done.stderr
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.ranks
@pytest.mark.once
def test_held_rows_survive_a_checkpoint(job: Path, run_mpips: Callable[..., Any]) -> None:
    first, second = job.parent / "first", job.parent / "second"
    sizes = ("--servers", "2", "--workers", "3")
    steps = ("--set", "held.steps=2", "--set", "held.flush=false", "--set", "checkpoint.every=2")
    begun = reported(run_mpips("run", job, "--run-dir", first, *sizes, *steps), first)
    assert begun["metrics"]["held"] == begun["metrics"]["wrong"] > 100
    traffic = begun["traffic"]
    assert set(traffic["per_filter"]) == {"significant", "scaled", "zstd", "zeros", "lz4", "key_caching"}
    saved = traffic["per_filter"]["significant"]["worker"]
    assert 0 < saved["wire"] < saved["raw"] and traffic["worker_raw"] > traffic["worker_sent"]
    again = run_mpips(
        "run", job, "--run-dir", second, "--servers", "3", "--workers", "2", "--resume", "latest"
    )
    assert reported(again, second)["metrics"]["wrong"] == 0


@pytest.mark.ranks
@pytest.mark.once
def test_a_rank_without_a_filter_is_refused(job: Path, run_mpips: Callable[..., Any]) -> None:
    done = run_mpips("run", job, "--run-dir", job.parent / "run", environ={"HELD_LACKS": "1"})
    assert done.code == 2
    assert "filter 'scaled' is not available: it needs something that is not here" in done.stderr
    assert "Traceback" not in done.stderr
