"""Tests that take minutes: many interruptions at random times, and losses of every kind.

`MPIPS_SLURM_LONG=1 python -m pytest -o faulthandler_timeout=1800 tests/slurm/test_long.py`
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from virtual import LOOK, OVER, PASSES, SCRIPT, Cluster, Job

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        not os.environ.get("MPIPS_SLURM_LONG"), reason="takes minutes: MPIPS_SLURM_LONG=1 runs it"
    ),
]

TWO = ("--nodes", "2", "--time", "10", "--requeue")
TIMES = 10
LATER = 900.0
KILL_DAEMON = """
for each in /proc/[0-9]*; do
    case $(cat "$each/comm") in prted | hydra_pmi_proxy) kill -KILL "${each#/proc/}" ;; esac
done
"""


@pytest.fixture(scope="module")
def bits(warm: Cluster, write: Callable[..., Path]) -> str:
    """Return the sha256 of an undisturbed run."""
    return str(warm.submit(write("undisturbed"), *TWO).finish()["parameters_sha256"])


def test_interrupted_at_random_moments_to_the_same_bits(
    warm: Cluster, write: Callable[..., Path], bits: str
) -> None:
    """Each job is interrupted twice, anywhere between its start and its end, also before its first pass."""
    strikes = {
        "requeue": ("scontrol", "requeue"),
        "usr1": ("scancel", "--batch", "--signal=USR1"),
    }
    began = time.monotonic()
    jobs: list[Job] = []
    planned: dict[str, list[float]] = {}
    running: dict[str, float] = {}
    while time.monotonic() < began + LATER:
        if len(jobs) < TIMES:
            launcher = ("mpirun", "srun")[len(jobs) % 2]
            jobs.append(warm.submit(write(f"random{len(jobs)}", 15.0), *TWO, "--launcher", launcher))
            planned[jobs[-1].number] = [random.uniform(0.0, 20.0), random.uniform(0.0, 20.0)]
        states = {job.number: job.facts() for job in jobs}
        for job in jobs:
            if states[job.number]["JobState"] != "RUNNING":
                running.pop(job.number, None)
                continue
            since = running.setdefault(job.number, time.monotonic())
            if planned[job.number] and time.monotonic() - since > planned[job.number][0]:
                del planned[job.number][0]
                running.pop(job.number)
                kind = random.choice(list(strikes))
                print(f"job {job.number}: {kind} after {job.steps()} passes", flush=True)
                warm.ask(*strikes[kind], job.number)
        if len(jobs) == TIMES and all(state["JobState"] in OVER for state in states.values()):
            break
        warm.hasten()
        time.sleep(LOOK)
    for job in jobs:
        result = job.finish(patience=1.0)
        print(f"job {job.number}: {job.restarts()} restarts, {result['seconds']['total']:.1f} s", flush=True)
        assert result["metrics"]["passes"] == PASSES
        assert result["parameters_sha256"] == bits
    assert sum(job.restarts() for job in jobs) > TIMES // 2


@pytest.mark.parametrize(
    "role, kind, cause",
    [
        ("scheduler", "KILL", "died"),
        ("server", "KILL", "died"),
        ("worker", "KILL", "died"),
        ("server", "STOP", "hung"),
    ],
)
def test_a_run_under_mpirun_continues_after_any_loss(
    warm: Cluster, write: Callable[..., Path], bits: str, role: str, kind: str, cause: str
) -> None:
    from mpips.launch import mpi_launcher

    if not mpi_launcher.find_mpi().ulfm:
        pytest.skip("this MPI has no ULFM")
    job = warm.submit(
        write(f"{kind.lower()}-{role}", 12.0, servers=2, replicas=1, patience=6.0), *TWO, "--spares", "1"
    )
    job.wait_for("pass 3", lambda: job.steps() >= 3)
    victim = next(rank for rank in job.ranks() if rank["role"] == role)
    job.kill(victim, kind)
    result = job.finish(patience=LATER)
    print(f"{role} on {victim['host']}: {result['recoveries']}", flush=True)
    assert [(each["rank"], each["cause"]) for each in result["recoveries"]] == [(victim["rank"], cause)]
    assert job.restarts() == 0
    if role != "worker":  # whose part of the data another worker adds up with its own
        assert result["parameters_sha256"] == bits


@pytest.mark.parametrize("launcher", ["mpirun", "srun"])
def test_a_run_continues_after_a_node_loses_power(
    warm: Cluster, write: Callable[..., Path], bits: str, launcher: str
) -> None:
    """The node is gone from one moment to the next, and nobody tells Slurm; there is one copy of its keys."""
    path = write(f"power-{launcher}", 15.0, patience=6.0)
    where = ("--launcher", launcher, "--sbatch=--exclude=n1,n2")
    job = warm.submit(path, *TWO, *where, "--set", "heartbeat.give_up=20")
    job.wait_for("a checkpoint", lambda: job.checkpoints() > 0)
    began = time.monotonic()
    subprocess.run([SCRIPT, "crash", "n4", warm.folder], check=True, timeout=60)
    try:
        job.wait_for("the end of the start that lost it", lambda: job.restarts() == 1, LATER)
        print(f"{launcher}: back in the queue after {time.monotonic() - began:.1f} s", flush=True)
        down = ("sinfo", "--noheader", "--nodes=n4", "--format=%t")
        while not warm.tell(*down).startswith("down"):
            assert time.monotonic() < began + LATER
            time.sleep(1.0)
        print(f"Slurm has noticed after {time.monotonic() - began:.1f} s", flush=True)
    finally:
        subprocess.run([SCRIPT, "up", warm.folder], check=True, timeout=120)
    result = job.finish(patience=LATER)
    assert result["parameters_sha256"] == bits


def test_a_run_under_srun_goes_on_without_a_node(
    warm: Cluster, write: Callable[..., Path], bits: str
) -> None:
    """Neither the job nor its step ends with the node, and what completes is not requeued."""
    from mpips.launch import mpi_launcher

    if not mpi_launcher.find_mpi().ulfm:
        pytest.skip("this MPI has no ULFM")
    path = write("node", 15.0, servers=2, replicas=1, patience=6.0)
    job = warm.submit(path, *TWO, "--launcher", "srun", "--sbatch=--exclude=n1,n2")
    job.wait_for("a checkpoint", lambda: job.checkpoints() > 0)
    gone = {rank["rank"] for rank in job.ranks() if rank["host"] == "n4"}
    subprocess.run([SCRIPT, "crash", "n4", warm.folder], check=True, timeout=60)
    try:
        result = job.finish(patience=LATER)
        assert job.restarts() == 0
        assert {each["rank"] for each in result["recoveries"]} == gone
    finally:
        subprocess.run([SCRIPT, "up", warm.folder], check=True, timeout=120)


def test_a_launchers_daemon_that_dies_costs_a_restart_unless_the_ranks_continue(
    warm: Cluster, write: Callable[..., Path], bits: str
) -> None:
    """Open MPI's mpirun returns 0 then."""
    from mpips.launch import mpi_launcher

    job: Job = warm.submit(write("daemon", 15.0), *TWO)
    job.wait_for("a checkpoint", lambda: job.checkpoints() > 0)
    remote = next(rank["host"] for rank in job.ranks() if rank["host"] != job.ranks()[0]["host"])
    warm.on(remote, "sh", "-c", KILL_DAEMON)
    result = job.finish(patience=LATER)
    assert job.restarts() == (0 if mpi_launcher.find_mpi().ulfm else 1)
    assert result["recoveries"] == []
    assert result["parameters_sha256"] == bits
