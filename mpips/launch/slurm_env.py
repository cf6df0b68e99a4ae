"""What Slurm tells a process about the allocation it is in: read from the environment, without asking anybody.

Under mpirun inside an allocation the ranks inherit what Slurm told the launcher's daemons, so nothing here says which
rank this is: SLURM_PROCID and its like are not looked at.
"""

from __future__ import annotations

import itertools
import math
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

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
"""Nodes that a list may name; there is no larger cluster, and a mistyped range must not fill the memory."""
SKEW = 60.0
"""Seconds by which a node's clock may be behind the controller's."""
PATIENCE = 5.0
"""Seconds for Slurm's controller to answer."""


def facts(environ: Mapping[str, str], end: float | None = None) -> dict[str, Any]:
    """Return {"slurm": what bears on a run}: nothing at all outside an allocation.

    `nodes` are names, `tasks_per_node` numbers beside them, `restart_count` how often the job was requeued. `end` is
    when the allocation ends (s since 1970), where that is known. What Slurm did not say, or
    says in a way that is not known here, is None.
    """
    if not environ.get("SLURM_JOB_ID"):
        return {}
    found: dict[str, Any] = {name: environ.get(variable) for name, variable in _TEXTS.items()}
    found["restart_count"] = number(environ.get("SLURM_RESTART_COUNT")) or 0
    found["nodes"] = _tried(nodes, _all(environ, "SLURM_JOB_NODELIST"))
    found["tasks_per_node"] = _tried(numbers, _all(environ, "SLURM_TASKS_PER_NODE"))
    found["step_id"] = environ.get("SLURM_STEP_ID")
    found["het_size"] = number(environ.get("SLURM_HET_SIZE"))
    found["end"] = None if end is None else datetime.fromtimestamp(end, UTC).isoformat()
    return {"slurm": found}


def _all(environ: Mapping[str, str], name: str) -> str | None:
    """Return a list, in a heterogeneous job that of all components."""
    groups = range(number(environ.get("SLURM_HET_SIZE")) or 0)
    parts = [environ.get(f"{name}_HET_GROUP_{group}") for group in groups]
    return ",".join(part for part in parts if part) or environ.get(name)


def _tried(read: Any, text: str | None) -> Any:
    try:
        return None if text is None else read(text)
    except ValueError:
        return None


def number(text: str | None) -> int | None:
    """Return a count that Slurm has written; None where it is none."""
    return int(text) if text and text.isdecimal() and text.isascii() else None


def node_count(environ: Mapping[str, str]) -> int:
    """Return how many nodes the allocation has; 1 outside one.

    SLURM_NNODES may be what was asked for ("2-4"), or be left from elsewhere.
    """
    if not environ.get("SLURM_JOB_ID"):
        return 1
    listed = _tried(nodes, _all(environ, "SLURM_JOB_NODELIST"))
    counts = (number(environ.get(name)) for name in ("SLURM_JOB_NUM_NODES", "SLURM_NNODES"))
    return len(listed) if listed else next((count for count in counts if count), 1)


def parts(environ: Mapping[str, str]) -> int:
    """Return how many components a heterogeneous job has; 1 for any other."""
    return number(environ.get("SLURM_HET_SIZE")) or 1


def without(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment to submit a job from: without what tells of a job, a step or a rank around it.

    sbatch passes its environment on, and the new job would take the old one's array, restarts and limits for its own.
    Where Slurm's configuration is stays.
    """
    kept = ("SLURM_CONF", "SLURM_CONF_SERVER")
    named = ("SLURM_", "SLURMD_", "PMIX_", "PMI_", "OMPI_COMM_WORLD_", "MPIPS_JUDGED")
    return {name: value for name, value in environ.items() if name in kept or not name.startswith(named)}


def end_time(environ: Mapping[str, str], now: float) -> float | None:
    """Return when the allocation ends (s since 1970); None where it does not, or Slurm does not say.

    An end that is over, or a time that is not within it, is another allocation's, whose environment is left.
    """
    end, begin = (number(environ.get(name)) for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_START_TIME"))
    if not environ.get("SLURM_JOB_ID") or not end or now >= end or (begin is not None and now < begin - SKEW):
        return None
    return float(end)


def ask_end_time(environ: Mapping[str, str], now: float, scontrol: str = "scontrol") -> float | None:
    """Return when the allocation ends; asks Slurm's controller where the environment does not say.

    Starts a child process: call it before MPI is initialised, on one rank.
    """
    told, job = end_time(environ, now), environ.get("SLURM_JOB_ID", "")
    if told is not None or not job.isdecimal():
        return told
    try:
        done = subprocess.run(
            [scontrol, "--oneliner", "show", "job", job],
            capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    line = next((line for line in done.stdout.splitlines() if line.startswith(f"JobId={job} ")), "")
    running = re.search(r"\sJobState=RUNNING\s", line)
    found = re.search(r"\sEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\s|$)", line) if running else None
    return datetime.fromisoformat(found[1]).timestamp() if found else None  # Slurm writes local time


# --- lists of nodes and of numbers ---------------------------------------------------------------


_PART = re.compile(r"(?:[\w.-]+|\[\d[\d,-]*\])+")


def nodes(text: str) -> list[str]:
    """Return the nodes of a list as Slurm writes them: "n[1-3,07],login" is n1, n2, n3, n07, login.

    Raises:
        ValueError: it is no such list.
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
    """Return the numbers of "1-3,07", as they are written."""
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < int(first) + MOST_NODES):
            raise ValueError(f"not a range of nodes: {part[:80]!r}")
        found += (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return found


def numbers(text: str) -> list[int]:
    """Return the numbers of a list as Slurm writes them: "2(x3),1" is 2, 2, 2, 1.

    Raises:
        ValueError: it is no such list.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d{1,6})\))?", part.strip())
        if not match:
            raise ValueError(f"not a list of numbers: {text!r}")
        found += [int(match[1])] * int(match[2] or 1)
    return found
