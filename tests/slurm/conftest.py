"""A real Slurm with several nodes on this machine (slurm/testing/cluster.sh), and jobs on it.

Where there can be no such cluster, all of these tests skip, with the reason. Nothing outlives them: the cluster goes
down when the pipe that it is held by closes, however this process ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import DataSet, make
from virtual import CPUS, NODES, SCRIPT, SKIP, Cluster, environment, write_job


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return the cluster; skips if there can be none here."""
    with tempfile.TemporaryDirectory(prefix="mpips-slurm-", ignore_cleanup_errors=True) as named:
        Path(named).chmod(0o755)  # for munge, whose socket is for everybody
        folder = Path(named) / "c"  # short: there are sockets below it
        with (Path(named) / "said").open("w+") as said:
            holder = subprocess.Popen(
                [SCRIPT, "hold", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
                env={**os.environ, "MPIPS_SLURM_NODES": str(NODES), "MPIPS_SLURM_CPUS": str(CPUS)},
                start_new_session=True,
            )  # fmt: skip
            assert holder.stdin is not None and holder.stdout is not None
            try:
                if holder.stdout.readline() != "up\n":
                    code = holder.wait(60)
                    said.seek(0)
                    words = said.read().strip() or "cluster.sh said nothing"
                    if code == SKIP:
                        pytest.skip(words.splitlines()[-1].removeprefix("cluster.sh: "))
                    pytest.fail(f"cluster.sh ended with exit code {code}: {words}")
                yield Cluster(folder, tmp_path_factory.mktemp("home"), environment(folder))
            finally:
                holder.stdin.close()
                holder.wait(60)
                holder.stdout.close()


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Return data on which some ten passes take some tenths of a second."""
    return make(tmp_path_factory.mktemp("made"), "correlated", 400)


@pytest.fixture(scope="session")
def write(cluster: Cluster, data_set: DataSet) -> Callable[..., Path]:
    """Write a job file: `write(NAME, SECONDS, ...)`."""

    def write_it(name: str, seconds: float = 0.0, **how: Any) -> Path:
        return write_job(cluster.home / f"{name}.toml", data_set, seconds, **how)

    return write_it


@pytest.fixture(scope="session")
def warm(cluster: Cluster, write: Callable[..., Path]) -> Cluster:
    """Return the cluster with all kernels compiled: jobs have time limits."""
    subprocess.run(
        [sys.executable, "-m", "mpips", "--warm-up", write("warm")], env=cluster.environ, cwd=cluster.home,
        check=True, timeout=600,
    )  # fmt: skip
    return cluster
