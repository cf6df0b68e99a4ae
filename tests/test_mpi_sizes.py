"""The in-process MPI tests of tests/mpi at several sizes, started by the launcher of this interpreter's MPI."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable

import pytest
from conftest import ROOT, Started

from mpips.launch import mpi_launcher

PYTEST = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--with-mpi"]


def pytest_on_ranks(start: Callable[..., Started], ranks: int, where: str) -> tuple[int, str]:
    """Run pytest on so many ranks; returns the exit code and all that was written."""
    planned = mpi_launcher.plan(mpi_launcher.find_starter(), ranks, [sys.executable, *PYTEST, where])
    environ = {**planned.added, "RANKS_ASKED_FOR": str(ranks)}
    finished = start(planned.line, cwd=ROOT, environ=environ).finish(timeout=180)
    return finished.code, finished.stdout + finished.stderr


@pytest.mark.ranks
@pytest.mark.parametrize("ranks", [1, 2, pytest.param(3, marks=pytest.mark.once), 5])
def test_all_pass_on_every_rank(start: Callable[..., Started], ranks: int) -> None:
    code, said = pytest_on_ranks(start, ranks, "tests/mpi")
    passed = [int(number) for number in re.findall(r"(\d+) passed", said)]
    assert code == 0, said
    assert len(passed) == ranks, said
    assert min(passed) > 0, said


@pytest.mark.ranks
def test_a_failure_on_one_rank_ends_all(start: Callable[..., Started]) -> None:
    code, said = pytest_on_ranks(start, 2, "tests/mpi/failing.py")
    assert code != 0, said
    assert "rank 1 of 2: " in said, said
    assert "only rank 1 fails" in said, said
