"""Every MPI: both launchers on two nodes, ranks in separate worlds, a rank that dies."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from virtual import PASSES, Cluster, Job

from mpips.launch import mpi_launcher

pytestmark = pytest.mark.slurm
AT = ("--nodes", "2", "--time", "5")


@pytest.fixture(scope="module")
def jobs(warm: Cluster, write: Callable[..., Path]) -> dict[str, Job]:
    """Submit what needs no hand while it runs, all at once.

    Slurm's pmi2 takes the first 1024 bytes of a request for all of it, and those of MPICH are longer at times
    (github.com/pmodels/mpich/issues/6924). Such a start ends after two minutes, and the job starts again: hence
    `--requeue` for all of srun's jobs, and how often they start is not asserted.
    """
    two, slow = write("two"), write("dying", 12.0)
    alone = write("alone")
    program = f"{sys.executable} -m mpips {alone} --run-dir {warm.home / 'runs' / 'alone'}"
    number = warm.tell(
        "sbatch", "--parsable", "--nodes=2", "--ntasks=2", "--output=alone.out", f"--wrap=srun {program}"
    ).strip()
    return {
        "mpirun": warm.submit(two, *AT),
        "srun": warm.submit(two, *AT, "--launcher", "srun", "--requeue"),
        "dying": warm.submit(slow, *AT, "--launcher", "srun", "--requeue"),
        "alone": Job(warm, number, warm.home / "runs" / "alone", warm.home / "alone.out"),
    }


def test_a_rank_that_dies_under_srun_has_the_job_start_again_unless_the_others_continue(
    jobs: dict[str, Job],
) -> None:
    job = jobs["dying"]
    job.wait_for("a checkpoint", lambda: job.checkpoints() > 0)
    worker = next(rank for rank in job.ranks() if rank["role"] == "worker")
    job.kill(worker)
    result = job.finish()
    assert result["status"] == "completed" and result["metrics"]["passes"] == PASSES
    if mpi_launcher.find_mpi().ulfm:
        assert [(each["rank"], each["cause"]) for each in result["recoveries"]] == [(worker["rank"], "died")]
        assert job.restarts() == 0
        return
    text = job.text()
    # MPICH may crash in a send to the dead rank before srun ends the sender. Then that one may be said to be the first.
    crashed = "ended by Segmentation fault" in text and f"task {worker['rank']}: Killed" in text
    said = "ended by Killed" in text or crashed
    if not said or text.count(": requeued, to continue") != max(job.restarts(), 1):
        job.fail(f"started again {job.restarts()} times, which is not what it says")
    assert result["parameters_sha256"] == jobs["mpirun"].finish()["parameters_sha256"]


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_both_launchers_start_one_world_on_two_nodes(jobs: dict[str, Job], launcher: str) -> None:
    job = jobs[launcher]
    result = job.finish()
    assert result["status"] == "completed"
    assert result["parameters_sha256"] == jobs["mpirun"].finish()["parameters_sha256"]
    ranks = job.ranks()
    assert [rank["role"] for rank in ranks] == ["scheduler", "server", "worker", "worker"]
    assert len({rank["host"] for rank in ranks}) == 2
    assert "completed" in job.text() and job.facts()["ExitCode"] == "0:0"


def test_ranks_that_srun_has_not_connected_end_with_an_error(jobs: dict[str, Job]) -> None:
    job = jobs["alone"]
    job.finish("FAILED")
    assert "--mpi=" in job.text(), "they say what would have been right"
    assert not (job.run / "result.json").exists()
