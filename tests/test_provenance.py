"""Provenance: what bears on a run, and nothing that gives anything away."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy

from mpips import provenance
from mpips.config import load
from mpips.folder import RunFolder


@dataclass(frozen=True)
class Settings:
    """A program without keys."""


@dataclass(frozen=True)
class Program:
    """What `load` needs of a program."""

    name: str = "toy"
    settings: type = Settings


def test_secrets_stay_out() -> None:
    environ = {
        "SLURM_JOB_ID": "7", "OMPI_COMM_WORLD_RANK": "0", "OMP_NUM_THREADS": "1", "MPIPS_PROGRESS": "plain",
        "SLURM_JWT": "x", "PMIX_SERVER_URI4": "x", "PMI_AUTH": "x", "MY_TOKEN": "x", "HOME": "x", "MPIPS_SECRET": "x",
    }  # fmt: skip
    assert list(provenance.relevant(environ)) == [
        "MPIPS_PROGRESS",
        "OMPI_COMM_WORLD_RANK",
        "OMP_NUM_THREADS",
        "SLURM_JOB_ID",
    ]


def test_versions_are_those_installed() -> None:
    assert provenance.versions(["numpy", "no-such-package"]) == {"numpy": numpy.__version__}


def test_source_state_follows_the_tree(tmp_path: Path) -> None:
    assert provenance.source_state(tmp_path) is None
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "x").write_text("1")
    for command in (["init", "-q"], ["add", "x"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, env=environ)
    clean = provenance.source_state(tmp_path)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "x").write_text("2")
    assert provenance.source_state(tmp_path) == {**clean, "dirty": True}


def test_run_json_names_job_and_ranks(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[job]\nprogram = "toy"\n')
    job = load(path, (), lambda name, base: Program())
    folder = RunFolder(tmp_path)
    ranks = [{"rank": 0, "role": "scheduler", "host": "n1", "pid": 42}]
    provenance.write_run(
        folder, provenance.collect(job, ["mpips", "job.toml"], {"OMP_NUM_THREADS": "1"}), ranks, mpi="MPI X"
    )
    written = json.loads(folder.run.read_text())
    assert written["ranks"] == ranks
    assert written["argv"] == ["mpips", "job.toml"]
    assert written["job_digest"] == job.digest()
    assert written["environment"] == {"OMP_NUM_THREADS": "1"}
    assert written["mpi"] == "MPI X"
    assert written["started"].endswith("+00:00")
