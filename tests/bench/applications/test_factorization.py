"""`mpips bench factorization`: its single process takes the steps of the example with one worker and no delay."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import reference
from mpips.bench.applications.factorization import measured, single, text
from mpips.config.job_file import load
from mpips.config.program import load_program

EXAMPLE = Path(__file__).parents[3] / "examples" / "matrix_factorization.toml"


def test_the_single_process_learns_as_plain_numpy() -> None:
    small = {"ratings": 3000, "batch": 400, "passes": 3, "rank": 4, "rate": 0.05}
    job = load(EXAMPLE, [f"matrix_factorization.{name}={value}" for name, value in small.items()])
    module = load_program(job.program, job.base).module
    found = single(module, job)
    assert found["rmse"] == pytest.approx(reference.matrix_factorization(module, job.settings)[-1], rel=1e-5)
    assert found["rate"] * found["seconds"] == pytest.approx(3000)


def test_the_first_pass_does_not_count() -> None:
    row = measured("x", [10.0, 11.0, 13.0], 0.5, 300)
    assert (row["seconds"], row["rate"]) == (1.5, 200.0)
    conditions = {"cpu": "a machine", "cores": 2, "load": 0.01, "python": "3", "at": "now"}
    report = {"conditions": conditions, "rounds": [[row, row]], "ratios": [1.0], "ratio": 1.0}
    assert text(report).endswith("divided by those of a single process: 1.00 (rounds: 1.00)")
