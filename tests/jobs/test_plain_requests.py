"""Requests that compiled code answers, while servers join, leave and are killed: sums are exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "programs" / "plain.py"


@pytest.mark.drawn(1)
@pytest.mark.ranks
@pytest.mark.parametrize("what", ["moves", "is killed"])
def test_a_server_serves_plain_requests(
    tmp_path: Path, run_mpips: Callable[..., Any], starter: Any, what: str
) -> None:
    killed = what == "is killed"
    if killed and not starter.mpi.ulfm:
        pytest.skip("this MPI ends all ranks when one dies")
    (tmp_path / "plain.py").write_text(PROGRAM.read_text())
    (tmp_path / "job.toml").write_text('[job]\nprogram = "plain.py"\n')
    settings = [
        "layout.servers=2", "layout.workers=2", "layout.spares=1", "ring.virtual_servers=2",
        f"ring.replicas={int(killed)}", f"plain.kill={str(killed).lower()}",
    ]  # fmt: skip
    done = run_mpips(
        "run", tmp_path / "job.toml", "--run-dir", tmp_path / "run",
        *[part for each in settings for part in ("--set", each)],
    )  # fmt: skip
    assert done.code == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert (metrics["wrong"], metrics["stale"]) == (0, 0)
    assert metrics["pushed"] > 10
    assert metrics["epoch"] > 1
