"""Slurm's allocation, from the environment of a process, without any query.

Under mpirun inside an allocation the ranks inherit the environment of the launcher's daemons, so SLURM_PROCID and
similar variables, which would identify a rank, are not used.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mpips.process import subprocess_output
from mpips.process.first_rank import SUPERVISED

_TEXTS = {
    "job_id": "SLURM_JOB_ID",
    "job_name": "SLURM_JOB_NAME",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "cluster": "SLURM_CLUSTER_NAME",
    "partition": "SLURM_JOB_PARTITION",
    "submit_directory": "SLURM_SUBMIT_DIR",
}
MOST_NODES = 100_000
"""Largest number of nodes in a list: beyond any cluster, so that a mistyped range does not fill the memory."""
MOST_PARTS = 1024
"""Largest number of components of a heterogeneous job: beyond Slurm's own limit."""
_DIGITS = 18
LARGEST_TIME = 253_402_300_000
"""The largest time, in the year 9999: s since 1970."""
CLOCK_SKEW = 60.0
"""Seconds by which a node's clock may be behind the controller's."""
TIMEOUT = 5.0
"""Seconds for Slurm's controller to answer."""


def facts(environ: Mapping[str, str], end: float | None = None) -> dict[str, Any]:
    """Return {"slurm": facts of the allocation}; empty outside one.

    `nodes` are names, `tasks_per_node` their numbers of tasks, `restart_count` the number of requeues. `end` is the
    end of the allocation (s since 1970), if known. Facts that are missing or have an unknown format are None.
    """
    if not environ.get("SLURM_JOB_ID"):
        return {}
    found: dict[str, Any] = {name: environ.get(variable) for name, variable in _TEXTS.items()}
    found["restart_count"] = number(environ.get("SLURM_RESTART_COUNT")) or 0
    found["nodes"] = _parse_or_none(nodes, _of_all_components(environ, "SLURM_JOB_NODELIST"))
    found["tasks_per_node"] = _parse_or_none(numbers, _of_all_components(environ, "SLURM_TASKS_PER_NODE"))
    found["step_id"] = environ.get("SLURM_STEP_ID")
    found["het_size"] = number(environ.get("SLURM_HET_SIZE"))
    found["end"] = None if end is None else datetime.fromtimestamp(end, UTC).isoformat()
    return {"slurm": found}


def _of_all_components(environ: Mapping[str, str], name: str) -> str | None:
    """Return a list; in a heterogeneous job that of all components."""
    found = [environ.get(f"{name}_HET_GROUP_{group}") for group in range(parts(environ))]
    return ",".join(part for part in found if part) or environ.get(name)


def _parse_or_none(read: Any, text: str | None) -> Any:
    try:
        return None if text is None else read(text)
    except ValueError:
        return None


def number(text: str | None) -> int | None:
    """Return a count from Slurm; None if it is not a number."""
    return int(text) if text and text.isdecimal() and text.isascii() and len(text) <= _DIGITS else None


def node_count(environ: Mapping[str, str]) -> int:
    """Return the number of nodes of the allocation; 1 outside one.

    SLURM_NNODES may be the request ("2-4"), or inherited from elsewhere.
    """
    if not environ.get("SLURM_JOB_ID"):
        return 1
    listed = _parse_or_none(nodes, _of_all_components(environ, "SLURM_JOB_NODELIST"))
    counts = (number(environ.get(name)) for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES"))
    return len(listed) if listed else next((count for count in counts if count), 1)


def parts(environ: Mapping[str, str]) -> int:
    """Return the number of components of a heterogeneous job; 1 for any other."""
    return min(number(environ.get("SLURM_HET_SIZE")) or 1, MOST_PARTS)


def without_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for submitting a job: without the variables of a surrounding job, step or rank.

    sbatch passes its environment on, and the new job would inherit the old one's array, restarts and limits. The
    location of Slurm's configuration is kept.
    """
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER")
    named = ("SLURM_", "SLURMD_", "PMIX_", "PMI_", "OMPI_COMM_WORLD_", SUPERVISED)
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(named)}


def end_time(environ: Mapping[str, str], now: float) -> float | None:
    """Return the end of the allocation (s since 1970); None if it has none or it is unknown.

    An end in the past, or a start in the future, belongs to another allocation, whose environment is inherited.
    """
    end, begin = (number(environ.get(name)) for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_START_TIME"))
    begun = begin is None or now >= begin - CLOCK_SKEW
    if not environ.get("SLURM_JOB_ID") or not end or not now < end <= LARGEST_TIME or not begun:
        return None
    return float(end)


def ask_end_time(environ: Mapping[str, str], now: float, scontrol: str = "scontrol") -> float | None:
    """Return the end of the allocation; queries Slurm's controller if the environment does not have it.

    Starts a child process: call it before MPI is initialised, on one rank.
    """
    known, job = end_time(environ, now), environ.get("SLURM_JOB_ID", "")
    if known is not None or not job.isdecimal():
        return known
    try:
        answer = subprocess_output.run([scontrol, "--oneliner", "show", "job", job], TIMEOUT)
    except OSError:
        return None
    line = next((line for line in answer.stdout.splitlines() if line.startswith(f"JobId={job} ")), "")
    running = re.search(r"\sJobState=RUNNING\s", line)
    found = re.search(r"\sEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\s|$)", line) if running else None
    # Slurm writes local time.
    return datetime.fromisoformat(found[1]).timestamp() if found else None


# --- lists of nodes and of numbers ---------------------------------------------------------------


_PART = re.compile(r"(?:[\w.-]+|\[\d[\d,-]*\])+")


def nodes(text: str) -> list[str]:
    """Return the nodes of a Slurm node list: "n[1-3,07],login" is n1, n2, n3, n07, login.

    Raises:
        ValueError: it is not a node list.
    """
    found: list[str] = []
    for part in re.split(r",(?![^\[]*\])", text):
        if not _PART.fullmatch(part):
            raise ValueError(f"not a list of nodes: {text[:80]!r}")
        pieces = [
            _range(piece) if number % 2 else [piece]
            for number, piece in enumerate(re.split(r"\[(.*?)\]", part))
        ]
        if len(found) + math.prod(map(len, pieces)) > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} nodes: {text[:80]!r}")
        found += map("".join, itertools.product(*pieces))
    return found


def _range(text: str) -> list[str]:
    """Return the numbers of "1-3,07", with leading zeros kept."""
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < int(first) + MOST_NODES):
            raise ValueError(f"not a range of nodes: {part[:80]!r}")
        found += (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return found


def numbers(text: str) -> list[int]:
    """Return the numbers of a Slurm list: "2(x3),1" is 2, 2, 2, 1.

    Raises:
        ValueError: it is not such a list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d{1,6})\))?", part.strip())
        if not match:
            raise ValueError(f"not a list of numbers: {text!r}")
        times = int(match[2] or 1)
        if len(found) + times > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} numbers: {text[:80]!r}")
        found += [int(match[1])] * times
    return found
