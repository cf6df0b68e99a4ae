"""In an allocation: `mpips doctor` and `validate`, a run's record of it, and the placement of ranks and copies."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from virtual import Cluster, Job

pytestmark = pytest.mark.slurm
MPIPS = f"{sys.executable} -m mpips.cli"


@pytest.fixture(scope="module")
def job(warm: Cluster, write: Callable[..., Path]) -> Job:
    """Let one job on two nodes look around, and then run."""
    run = warm.home / "runs" / "seen"
    script = warm.home / "seen.sh"
    script.write_text(
        f"#!/bin/bash\n{MPIPS} doctor --json >doctor.json\necho doctor $?\n"
        f"{MPIPS} validate --launcher srun --seconds 240 --json >validate.json\necho validate $?\n"
        f"{MPIPS} run {write('seen')} --servers 2 --replicas 1 --run-dir {run}\n"
    )
    number = warm.tell(
        "sbatch", "--parsable", "--nodes=2", "--ntasks=5", "--time=9", "--output=seen.out", script.name
    ).strip()
    return Job(warm, number, run, warm.home / "seen.out")


def test_the_doctor_tells_what_fits_from_what_does_not(job: Job) -> None:
    job.finish()
    found: dict[str, Any] = json.loads((job.cluster.home / "doctor.json").read_text())
    assert "doctor 0" in job.text()
    fits = {trial["launcher"]: trial["fits"] for trial in found["slurm"]["trials"]}
    openmpi = found["mpi"]["vendor"] == "Open MPI"
    assert fits["srun"] is False
    assert fits["srun --mpi=pmix"] is openmpi and fits["srun --mpi=pmi2"] is not openmpi
    assert found["ping"]["size"] == found["ping"]["hosts"] == 2, "the MPI's own launcher"
    assert [line.split("  #")[0].strip() for line in found["use"][:2]] == [
        "mpips run JOB.toml",
        "mpips run JOB.toml --launcher srun",
    ]
    alone = next(trial for trial in found["slurm"]["trials"] if trial["launcher"] == "srun")
    assert alone["said"] == "2 worlds of one rank each"
    apart = next(line for line in found["advice"] if "without an error, by `srun`" in line)
    assert ": use `mpips run JOB.toml`" in apart


def test_two_nodes_are_accepted_under_srun(job: Job) -> None:
    job.finish()
    found: dict[str, Any] = json.loads((job.cluster.home / "validate.json").read_text())
    checks = {each["check"]: each for each in found["checks"]}
    assert "validate 0" in job.text() and found["accepted"] is True, checks
    assert len(set(found["hosts"])) == 2 and checks["nodes"]["value"].startswith("ranks on 2 of 2 nodes")
    works = {name: checks[name]["verdict"] for name in ("launcher", "atomic rename", "locks", "tiny job")}
    assert set(works.values()) == {"ok"}
    assert checks["recovery"]["facts"]["continued"] is True


def test_a_run_writes_down_where_it_was(job: Job) -> None:
    assert job.finish()["status"] == "completed"
    facts = json.loads((job.run / "run.json").read_text())
    slurm, hosts = facts["batch"]["slurm"], {rank["host"] for rank in facts["ranks"]}
    assert (slurm["job_id"], slurm["restart_count"], slurm["array_task_id"]) == (job.number, 0, None)
    assert set(slurm["nodes"]) == hosts and len(hosts) == 2
    assert len(slurm["tasks_per_node"]) == 2 and slurm["end"] is not None
    assert {path.name for path in (job.run / "logs").iterdir()} == {
        f"rank-{rank:04d}.jsonl" for rank in range(5)
    }


def test_servers_and_their_copies_are_on_different_nodes(job: Job) -> None:
    job.finish()
    done = job.cluster.mpips("layout", job.run, "--json")
    found = json.loads(done.stdout)
    hosts = {rank["rank"]: rank["host"] for rank in found["ranks"]}
    servers = {server["rank"]: server for server in found["servers"]}
    assert len({hosts[rank] for rank in servers}) == 2
    for rank, server in servers.items():
        assert set(server["copies_on"]) == set(hosts.values()) - {hosts[rank]}
    assert found["warnings"] == []
