"""Batch scripts: from the facts of a job to the text for sbatch. Pure functions without any look-up.

A script has three parts. The header, `#SBATCH` lines, is parsed by Slurm with its own quoting rules: so all values
there must match a strict pattern, or are an error. The preamble assigns all other variable parts to bash variables,
quoted. The body, slurm/job.sbatch, is the same text in every script: it reads these variables and evaluates none. So no
value can become a command, and the body can be reviewed and tested once.

One pure function whose arguments are the legal options: after submitit's `_make_sbatch_string`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mpips.errors import InputError
from mpips.launch.slurm_parts import Component
from mpips.launch.slurm_site import Site, check_option, check_text, check_word

BODY = Path(__file__).parents[1] / "slurm" / "job.sbatch"
CUT = "# --- the same in every job from here on"
"""Start of the line in the body above which a rendered script replaces everything."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
GRACE, LEAST_GRACE = 120, 15
"""Seconds before the time limit at which Slurm asks a job to stop, at most and at least."""


@dataclass(frozen=True)
class Batch:
    """A job for the batch system."""

    name: str
    job: str
    """The job file's absolute path."""
    directory: str
    """The absolute path of the folder to run in."""
    python: str
    parts: tuple[Component, ...]
    site: Site = field(default_factory=Site)
    arguments: tuple[str, ...] = ()
    """Further arguments of `mpips run`."""
    time: str = ""
    """The time limit in Slurm's format; default: the partition's."""
    grace: int = GRACE
    """Seconds before the time limit at which the job is asked to stop."""
    requeue: bool = False
    restarts: int = 50
    launcher: str = "mpirun"
    outlives_nodes: bool = False
    """Whether the ranks may continue without a lost node: Slurm then does not end the job with it."""
    sweep: tuple[tuple[str, ...], ...] = ()
    """A job array: the settings of each task, `table.key=value` each."""
    at_once: int = 0
    """Largest number of tasks at once; 0: no limit."""
    fixed: int = 0
    """With a variable number of nodes: the ranks that are not workers; all others are."""
    run_dir: str = ""
    checkpoints: str = ""
    resume: str = ""
    exports: tuple[tuple[str, str], ...] = ()
    """Variables that the script exports before those of the site."""
    reproduce: bool = False
    program: str = ""
    """The program to reproduce, if it is not part of mpips."""
    note: str = ""
    """A comment line on the origin of the script."""


def body() -> str:
    """Return the constant part of the script."""
    text = BODY.read_text(encoding="utf-8")
    return text[text.index(CUT) :]


def script(batch: Batch, fixed_part: str | None = None) -> str:
    """Return the batch script of a job.

    Args:
        batch: the facts.
        fixed_part: the body; default: `body()`.

    Raises:
        InputError: a value that cannot be passed on literally; names it.
    """
    try:
        lines = ["#!/bin/bash", *header(batch), *preamble(batch)]
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(str(error)) from None
    return "\n".join(lines) + "\n\n" + (body() if fixed_part is None else fixed_part)


def header(batch: Batch) -> list[str]:
    """Return the lines that Slurm parses; ValueError for a value that does not match."""
    if not NAME.fullmatch(batch.name):
        raise ValueError(f"the job's name must be letters, digits and ._+-, got {batch.name!r}")
    if batch.note:
        check_text("the note", batch.note)
    options = _shared(batch, batch.parts[0]) + _own(batch, batch.parts[0])
    lines = [f"# {batch.note}"] if batch.note else []
    lines += [f"#SBATCH {option}" for option in options]
    for part in batch.parts[1:]:
        lines += ["#SBATCH hetjob"]
        lines += [f"#SBATCH {option}" for option in _places(batch) + _own(batch, part)]
    return lines


def _shared(batch: Batch, first: Component) -> list[str]:
    """Return the options of the whole job; the batch script runs in its first part."""
    number = "%A_%a" if batch.sweep else "%j"
    options = [f"--job-name={batch.name}", *_places(batch), f"--output={batch.name}-{number}.out"]
    options += ["--open-mode=append", "--requeue" if batch.requeue else "--no-requeue"]
    options += [f"--signal=B:USR1@{batch.grace}"]
    if batch.sweep:
        limit = f"%{batch.at_once}" if batch.at_once else ""
        options += [f"--array=0-{len(batch.sweep) - 1}{limit}"]
    return options


def _places(batch: Batch) -> list[str]:
    """Return the options on place and time; Slurm does not apply all of them to a second part."""
    site = batch.site
    options = []
    for name, value in (("partition", site.partition), ("account", site.account), ("qos", site.qos)):
        if value:
            check_word(name, value)
            options.append(f"--{name}={value}")
    seconds(batch.time)
    return [*options, f"--time={batch.time}"] if batch.time else options


def _own(batch: Batch, part: Component) -> list[str]:
    """Return the options of one part: its nodes and tasks."""
    options = [f"--nodes={part.nodes}-{part.most}" if part.most > part.nodes else f"--nodes={part.nodes}"]
    options += [f"--ntasks={part.ranks}"] if part.ranks else []
    # A requeued job keeps its first number of tasks, for which fewer nodes have no room: so where the number of nodes
    # varies, Slurm gets the number of processors only.
    varies = part.most > part.nodes
    each = part.per_node * part.cpus_per_task
    options += [f"--mincpus={each}" if varies else f"--ntasks-per-node={part.per_node}"]
    options += [f"--cpus-per-task={part.cpus_per_task}"] if part.cpus_per_task > 1 else []
    options += ["--no-kill"] if batch.outlives_nodes else []
    for option in (*batch.site.options, *part.options):
        check_option("an option of sbatch", option)
        options.append(option)
    return options


def preamble(batch: Batch) -> list[str]:
    """Return the assignments of all variables that the body reads; ValueError for control characters."""
    site, width = batch.site, len(batch.sweep[0]) if batch.sweep else 0
    varies = batch.parts[0].ranks == 0
    values = {
        "NAME": batch.name,
        "DIRECTORY": batch.directory,
        "PYTHON": batch.python,
        "LAUNCHER": {"mpirun": "auto", "srun": "srun"}[batch.launcher],
        "PMI": site.pmi if batch.launcher == "srun" else "",
        "MODULE_PATHS": " ".join(site.module_paths),
        "MODULES": " ".join(site.modules),
        "SETUP": site.setup,
        "RUN_DIR": batch.run_dir,
        "CHECKPOINTS": batch.checkpoints,
        "RESUME": batch.resume,
        "PER_NODE": str(batch.parts[0].per_node) if varies else "",
        "FIXED": str(batch.fixed) if varies else "",
        "SWEEP_WIDTH": str(width or ""),
        "REQUEUE": "1" if batch.requeue else "0",
        "RESTARTS": str(batch.restarts),
        "REPRODUCE": "1" if batch.reproduce else "0",
        "PROGRAM": batch.program,
    }
    lines = ["# shellcheck disable=SC2016,SC2054,SC2088 # values, which stand for nothing else"]
    lines += [f"MPIPS_{name}={quoted(name.lower(), value)}" for name, value in values.items() if value]
    exports = [f"{name}={value}" for name, value in (*batch.exports, *site.environment.items())]
    lines += _array("MPIPS_EXPORTS", exports)
    lines += _array("MPIPS_SWEEP", [setting for task in batch.sweep for setting in task])
    named = [f"MPIPS_{name}" for name, value in values.items() if not value]
    named += [] if exports else ["MPIPS_EXPORTS"]
    named += [] if batch.sweep else ["MPIPS_SWEEP"]
    # Otherwise the environment that sbatch passes on would apply.
    lines += [f"unset {' '.join(named)}"]
    arguments = [quoted("the job file's path", batch.job)]
    arguments += [quoted("an argument", argument) for argument in batch.arguments]
    return [*lines, f"set -- {' '.join(arguments)}"]


def _array(name: str, values: Sequence[str]) -> list[str]:
    return [f"{name}=(", *(f"    {quoted(name, value)}" for value in values), ")"] if values else []


def quoted(name: str, value: str) -> str:
    """Quote a value for bash; ValueError if it has control characters, which are invisible in a script."""
    check_text(name, value)
    return shlex.quote(value)


def seconds(limit: str) -> int | None:
    """Parse a time limit in Slurm's format: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None if there is none.

    Raises:
        ValueError: it has another format.
    """
    if not limit or limit in ("UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,4}))?(?::(\d{1,4}))?", limit, re.ASCII)
    if found is None:
        raise ValueError(
            f"--time {limit!r}: write minutes, H:M:S or D-H:M:S, as in 90, 02:00:00 or 1-12:00:00"
        )
    days, *rest = found.groups()
    numbers = [int(part) for part in rest if part is not None]
    # M, M:S or H:M:S.
    if days is None:
        numbers = [0, *numbers] if len(numbers) < 3 else numbers
    hours, minutes, last = [*numbers, 0, 0][:3]
    total = int(days or 0) * 86400 + hours * 3600 + minutes * 60 + last
    if total == 0:
        raise ValueError(f"--time {limit!r}: the time must be more than 0")
    return total


def grace_before(limit: str, wanted: int | None = None) -> int:
    """Return the seconds before the time limit at which a job is asked to stop: enough to write a checkpoint.

    Raises:
        ValueError: `wanted` leaves no time to run, or is not valid for sbatch.
    """
    whole = seconds(limit)
    if wanted is None:
        return GRACE if whole is None else max(LEAST_GRACE, min(GRACE, whole // 4))
    if not 1 <= wanted <= 65535:
        raise ValueError(f"--grace {wanted}: give seconds, from 1 to 65535")
    if whole is not None and wanted >= whole:
        raise ValueError(f"--grace {wanted}: the time limit is {whole} s, which leaves no time to run")
    return wanted
