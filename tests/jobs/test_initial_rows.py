"""Initial values over MPI, with compiled requests: every read returns them, on any layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "initial.py"


@pytest.mark.ranks
@pytest.mark.once
def test_all_requests_read_them(tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    (tmp_path / "initial.py").write_text(PROGRAM.read_text())
    (tmp_path / "job.toml").write_text('[job]\nprogram = "initial.py"\n')
    found = []
    for servers, replicas in ((1, 0), (2, 0), (2, 1)):
        run = tmp_path / f"run-{servers}-{replicas}"
        sizes = ["--servers", str(servers), "--replicas", str(replicas)]
        done = run_mpips("run", tmp_path / "job.toml", "--run-dir", run, *sizes)
        assert done.code == 0, done.stderr
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        assert metrics["wrong"] == []
        found.append(metrics["digests"])
    assert found[0] == found[1] == found[2] and len(set(found[0])) == 3
