"""Tests that run inside MPI ranks: tests/test_mpi_sizes.py starts them at several sizes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave these tests alone outside of ranks."""
    return None if config.getoption("--with-mpi") else True


@pytest.fixture(autouse=True)
def _in_step() -> Iterator[None]:
    """Begin no test before all ranks have ended the one before: their messages must not meet."""
    yield
    from mpi4py import MPI

    MPI.COMM_WORLD.Barrier()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End all ranks when a test fails on one, since the others may wait for it forever."""
    if report.failed:
        from mpi4py import MPI

        rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
        print(
            f"rank {rank} of {size}: {report.nodeid} failed\n{report.longreprtext}",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(0.5)  # a launcher that is told of an abort may not pass on what it has not read yet
        MPI.COMM_WORLD.Abort(1)


def pytest_configure(config: pytest.Config) -> None:
    """Return each rank a root of its own for temporary folders: tidying a common one, ranks get in each other's way."""
    if not config.getoption("--with-mpi"):
        return
    root = tempfile.mkdtemp(prefix="mpips-rank-")
    os.environ["PYTEST_DEBUG_TEMPROOT"] = root
    config.add_cleanup(lambda: shutil.rmtree(root, ignore_errors=True))
