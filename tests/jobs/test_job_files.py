"""The job files of this project run to their end, with good results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

JOBS: dict[str, tuple[list[str], Callable[[dict[str, Any]], bool]]] = {
    "sparse_lr/job.toml": (["sparse_lr.passes=6"], lambda of: of["auc"] > 0.7),
    "sparse_lr/ftrl.toml": ([], lambda of: 0.70 < of["auc"] < 0.75 and of["examples"] == 250_000),
    "lda/job.toml": (["lda.sweeps=5"], lambda of: -9.0 < of["log_likelihood_per_token"] < -8.0),
    "sketch/job.toml": ([], lambda of: of["inserts"] == 30_969),
}
"""By file: overrides that shorten it, and a check of its metrics."""

BITS = {"sparse_lr/job.toml": "0b16289b11d69d0b495ae4b8a9ae392e3e032294e943997930ab57859abab9f8"}
"""By file: `parameters_sha256` with these overrides. A change of it is a change of results, and needs a reason."""


def test_every_job_file_of_the_project_is_tested() -> None:
    found = {f"{path.parent.name}/{path.name}" for path in ROOT.glob("jobs/*/*.toml")}
    # That of ctr needs PyTorch (tests/pytorch); that of fm is run by test_fm.py.
    assert found == {*JOBS, "ctr/job.toml", "fm/job.toml"}


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize("name", JOBS)
def test_a_job_file_runs_to_its_end(name: str, run_mpips: Callable[..., Any], tmp_path: Path) -> None:
    overrides, good = JOBS[name]
    switches = [part for override in overrides for part in ("--set", override)]
    done = run_mpips("run", ROOT / "jobs" / name, "--run-dir", tmp_path / "run", *switches, timeout=180)
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "completed" and good(result["metrics"]), result["metrics"]
    # glibc has another exp, with other last bits, for processors without FMA.
    if name in BITS and " fma " in Path("/proc/cpuinfo").read_text():
        assert result["parameters_sha256"] == BITS[name]
