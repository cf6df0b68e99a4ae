"""Probe of launchers: which of them fits the MPI that mpi4py loads, by starting two ranks with each.

A launcher and an MPI with different PMIs mostly succeed, as N worlds of one rank each that all do the same work,
without an error. So each starts `mpips.launch.checks.ping`, and the worlds that its ranks report are counted.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from mpips.files.json_schema import NUMBER, parse_json, schema_error
from mpips.launch import slurm_env
from mpips.process import interpreter, subprocess_output

TIMEOUT = 30.0
"""Seconds for two ranks to start, communicate and end."""
REPORT_PREFIX = "mpips-ping "
"""Prefix of the line with the report of each world's first rank."""
FITS = {"openmpi": ("pmix", "pmi2"), "mpich": ("pmi2", "cray_shasta", "pmix")}
"""MPI plugins of srun to try with an MPI, most likely first."""

_WORLD = {
    "size": int, "hosts?": int, "thread_level?": str, "latency_seconds?": NUMBER, "bytes_per_second?": NUMBER,
    "ulfm?": bool,
}  # fmt: skip
"""The form of a report."""


@dataclass(frozen=True)
class Trial:
    """The outcome of starting two ranks."""

    launcher: str
    """As on the command line: mpirun, "srun --mpi=pmix"."""
    fits: bool
    """Whether they were one world."""
    said: str
    """A description of the worlds, or the error."""
    found: Mapping[str, Any]
    """The report of the ping; empty if there is none."""

    def facts(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return asdict(self)


def outcome(launcher: str, output: str, code: int | None, stderr: str = "") -> Trial:
    """Return the outcome of a start of two ranks, from their output.

    Args:
        launcher: how they were started.
        output: stdout of the ranks and the launcher.
        code: the launcher's exit code; None if it did not end in time.
        stderr: stderr of both.
    """
    worlds = []
    for line in output.splitlines():
        if REPORT_PREFIX in line:
            with suppress(ValueError):
                world = parse_json(line.split(REPORT_PREFIX, 1)[1])
                if not schema_error(world, _WORLD):
                    worlds.append(world)
    last = worlds[-1] if worlds else {}
    if last.get("size") == 2:
        hosts = last.get("hosts", 1)
        where = f"on {hosts} nodes" if hosts > 1 else "on one node"
        return Trial(launcher, True, f"one world of 2 ranks {where}", last)
    if worlds:
        return Trial(launcher, False, f"{len(worlds)} worlds of one rank each", last)
    if code is None:
        return Trial(launcher, False, "no end in time", {})
    lines = [line.strip(" -*=\t") for line in stderr.splitlines()]
    said = " ".join(dict.fromkeys(line for line in lines if line))
    return Trial(launcher, False, f"exit code {code}: {said[:300] or 'no output'}", {})


def start(
    launcher: str, command: Sequence[str], environ: Mapping[str, str], timeout: float = TIMEOUT
) -> Trial:
    """Start two ranks by a command line, and return the outcome within `timeout` seconds."""
    try:
        answer = subprocess_output.run(command, timeout, environ=environ, launcher=True)
    except OSError as error:
        return Trial(launcher, False, f"cannot be started: {error.strerror}", {})
    return outcome(launcher, answer.stdout, answer.code, answer.stderr)


def plugins(srun: str) -> list[str]:
    """List srun's plugins for MPI (`srun --mpi=list`); empty if the call fails."""
    try:
        answer = subprocess_output.run([srun, "--mpi=list"], 10.0)
    except OSError:
        return []
    words = re.findall(
        r"[a-z][a-z0-9_]+", re.sub(r"(?m)^.*(types are|available):?", "", answer.stdout + answer.stderr)
    )
    return list(dict.fromkeys(words))


def worth_trying(kind: str, known: Sequence[str]) -> list[str]:
    """Return the plugins to try with an MPI, of those `known` to srun; "" is srun's default, which the site can set."""
    likely = [name for name in FITS.get(kind, ()) if name in known or not known]
    return ["", *likely]


def try_all(kind: str, environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Try srun with each plugin that may fit an MPI of that kind; {} outside an allocation, or without srun.

    Returns the existing `plugins`, and the `trials`.
    """
    environ = os.environ if environ is None else environ
    srun = shutil.which("srun", path=environ.get("PATH"))
    if srun is None or not environ.get("SLURM_JOB_ID"):
        return {}
    known = plugins(srun)
    nodes = min(2, slurm_env.node_count(environ))
    trials = []
    for name in worth_trying(kind, known):
        chosen = [f"--mpi={name}"] if name else []
        command = [
            srun,
            *chosen,
            f"--nodes={nodes}",
            "--ntasks=2",
            "--overlap",
            "--kill-on-bad-exit=1",
            "--quiet",
        ]
        program = [*interpreter.python(), "-m", "mpips.launch.checks.ping", "-"]
        trials.append(start(" ".join(["srun", *chosen]), [*command, *program], environ).facts())
    return {"plugins": known, "trials": trials}


def lines_to_use(
    kind: str, mpirun_fits: bool, trials: Sequence[Mapping[str, Any]], survives: bool
) -> list[str]:
    """Return the commands that start a job here, the best first.

    Args:
        kind: that of the MPI; `mpips run` has a default plugin for it.
        mpirun_fits: whether the MPI's own launcher gave one world.
        trials: the outcomes of srun.
        survives: whether ranks under mpirun survive the death of another.
    """
    lines = []
    named = [str(trial["launcher"]) for trial in trials if trial["fits"]]
    plugin = next((name.partition("--mpi=")[2] for name in named if "--mpi=" in name), "")
    by_srun = next((name for name in named if "--mpi=" in name), named[0] if named else "")
    if mpirun_fits:
        lines.append("mpips run JOB.toml" + ("    # continues when a rank dies" if survives else ""))
    if by_srun:
        pmi = f" --pmi {plugin}" if plugin and plugin != FITS[kind][0] else ""
        lines.append(f"mpips run JOB.toml --launcher srun{pmi}")
        lines.append(
            f"{by_srun} --distribution=cyclic --kill-on-bad-exit=1 --ntasks=N python -P -m mpips JOB.toml"
        )
    return lines
