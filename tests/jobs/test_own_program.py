"""A user's program beside the job file: its update, server function, kernels and consistency model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import run_twin

from mpips.config.job_file import load
from mpips.errors import JobError, RemoteError
from mpips.transport.network_faults import random_delays

PROGRAM = Path(__file__).parent / "programs" / "own.py"


def own(tmp_path: Path, **how: Any) -> Any:
    data = tmp_path / "none.svm"
    data.write_text("+1 1:1\n")
    return run_twin(data, program=str(PROGRAM), **how)


def test_its_update_and_its_call_run_on_the_servers(tmp_path: Path) -> None:
    outcomes = [own(tmp_path, servers=servers, settings={"rate": 0.25, "steps": 4}) for servers in (1, 3)]
    for outcome in outcomes:
        assert outcome.metrics["keys"] == 34 and outcome.metrics["pushes"] == 34 * 4
    keys = np.arange(0, 100, 3, dtype="<u8")
    record = np.empty(34, [("key", "<u8"), ("row", "<f8")])
    record["key"], record["row"] = keys, 1.0 - 0.75**4
    assert {outcome.sha for outcome in outcomes} == {hashlib.sha256(record.tobytes()).hexdigest()}


def test_its_update_that_raises_is_an_error_of_that_server(tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match=r"server \d on .*: ValueError: a row above 1.5") as caught:
        own(tmp_path, servers=2, workers=2, settings={"refuse": 1.5})
    assert caught.value.rank in (1, 2)
    assert "running_average" in caught.value.trace


def test_tau_is_raised_and_lowered_in_flight(tmp_path: Path) -> None:
    outcome = own(
        tmp_path, servers=2, workers=2, delays=random_delays(1, delay=0.005),
        settings={"steps": 400, "taus": [6, 1]},
    )  # fmt: skip
    for ahead in outcome.metrics["ahead"]:
        raised = next(at for at, n in enumerate(ahead) if n > 0)
        assert 0 < raised < 200
        assert 2 < max(ahead) <= 6
        lowered = max(at for at, n in enumerate(ahead) if n > 1)
        assert raised < lowered < 399
        assert max(ahead[lowered + 1 :]) == 1


def test_a_consistency_model_of_its_own(tmp_path: Path) -> None:
    outcome = own(
        tmp_path, workers=1, delays=random_delays(1, delay=0.5), settings={"steps": 40, "model": "fives"}
    )
    (ahead,) = outcome.metrics["ahead"]
    assert all(n <= time % 5 for time, n in enumerate(ahead))
    assert max(ahead) == 4


def test_without_its_kernels_it_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text("import kernels_that_are_not_there\n")
    (tmp_path / "job.toml").write_text('[job]\nprogram = "alone.py"\n')
    with pytest.raises(JobError, match=r"'alone\.py' does not load: ModuleNotFoundError"):
        load(tmp_path / "job.toml")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job file with the program and its kernels beside it."""
    for name in ("own.py", "own_kernels.py"):
        (tmp_path / name).write_text((PROGRAM.parent / name).read_text())
    path = tmp_path / "job.toml"
    path.write_text(
        '[job]\nprogram = "own.py"\n[layout]\nservers = 2\nworkers = 2\n[own]\nrate = 0.25\nsteps = 5\n'
    )
    return path


@pytest.mark.ranks
@pytest.mark.once
def test_a_whole_run_from_anywhere(
    job: Path, tmp_path_factory: pytest.TempPathFactory, run_mpips: Callable[..., Any]
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run_mpips("run", job, "--run-dir", "run", cwd=elsewhere)
    assert done.code == 0, done.stderr
    result = json.loads((elsewhere / "run" / "result.json").read_text())
    assert result["program"] == "own.py" and result["metrics"]["pushes"] == 34 * 2 * 5


@pytest.mark.ranks
@pytest.mark.once
def test_a_whole_run_whose_update_raises(job: Path, tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    done = run_mpips("run", job, "--set", "own.refuse=1.5", "--run-dir", "run", cwd=tmp_path)
    assert done.code == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "failed"
    assert "ValueError: a row above 1.5" in result["error"] and "server" in result["failed_rank"]
