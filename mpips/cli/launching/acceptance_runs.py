"""The runs of `mpips validate`: a tiny training with known bits, undisturbed, and with a server that is killed."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpips.cluster.layout import Cause
from mpips.config.toml_text import toml_value
from mpips.exit_codes import ExitCode
from mpips.launch.checks.check import Check, Verdict
from mpips.launch.processes import GRACE, ORPHAN_GRACE
from mpips.process import interpreter, subprocess_output
from mpips.rundir.folder import RunFolder, write_text

RANKS = 4
"""A scheduler, two servers with a copy each, and a worker."""
KNOWN_BITS = "b07ca1f3d42dcdf06ff5e08d4b140e231057325430dc9ebdbe821ad76bd40348"
"""SHA-256 of the parameters that the training ends with, on x86-64."""
KILLED_AT = 24
"""The change of server 1 before which it is killed."""
LEAST = 5.0
"""Seconds below which no run can be expected to end."""
STACKS = 2.0
"""Seconds in which ranks that hang are asked where they are."""
AFTER_TERM = (0.5, GRACE + ORPHAN_GRACE + 1.0)
"""Seconds after each SIGTERM: the first asks `mpips run` to stop, the second one to end all ranks, also hung ones."""
ENDING = STACKS + sum(AFTER_TERM) + 0.5
"""Seconds that a run takes to be ended at its time limit, at most."""
_JOB = """\
[job]
name = "validate"
program = "sparse_lr"
[layout]
servers = 2
workers = 1
[ring]
replicas = 1
[data]
train = "examples.svm"
[sparse_lr]
l1 = 1.0
passes = 4
"""


def write_job(folder: Path) -> Path:
    """Write the job file and its data, which are the same everywhere."""
    draw = random.Random(1)
    rows = []
    for _ in range(400):
        keys = sorted(draw.sample(range(1, 101), 6))
        score = sum(1.0 if key % 3 == 0 else -0.5 for key in keys) + draw.random() - 0.5
        rows.append(f"{'+1' if score > 0 else '-1'} " + " ".join(f"{key}:1" for key in keys))
    write_text(folder / "examples.svm", "\n".join(rows) + "\n")
    write_text(folder / "job.toml", _JOB)
    return folder / "job.toml"


class Ended:
    """A run that has ended, or did not end in time.

    Args:
        folder: the run's folder.
        code: the exit code of `mpips run`; None if it did not end in time.
        said: its output.
        hung: where its ranks were at the deadline.
    """

    def __init__(self, folder: Path, code: int | None, said: str, hung: str = "") -> None:
        self.code, self.hung = code, hung
        run = RunFolder(folder)
        self.result: dict[str, Any] = run.read_result() or {}
        self._struck = run.fault_times.exists()
        self.last = next(
            (line for line in reversed(said.splitlines()) if line.startswith("mpips: ")), said[-200:]
        )

    @property
    def bits(self) -> str:
        """The SHA-256 of the parameters; "" without a complete run."""
        return str(self.result.get("parameters_sha256", "")) if self.code == 0 else ""

    @property
    def deaths(self) -> list[dict[str, Any]]:
        """The deaths that it has survived."""
        return list(self.result.get("recoveries") or [])

    @property
    def ended_by_death(self) -> bool:
        """Whether an injected death has ended it.

        If nobody has seen which rank was the first to end, as with launchers that kill all others at once, that the
        fault has happened is enough.
        """
        first = self.result.get("first_failure")
        return self.code not in (0, None, ExitCode.BAD_INPUT) and (
            self._struck if first is None else first.get("cause") == Cause.DIED
        )

    @property
    def problem(self) -> str:
        """Why it has not completed, in one line; "" if it has."""
        if self.code == 0:
            return ""
        if self.code is None:
            return "no end in time" + (f": {self.hung}" if self.hung else "")
        last = re.sub(r"; run folder: .*", "", self.last.removeprefix("mpips: ").removeprefix("failed: "))
        return last[:300] or f"exit code {self.code}"


def start(job: Path, run: str, options: Sequence[str], seconds: float) -> Ended | None:
    """Run the job by `mpips run` in the folder `run` beside it, for at most so many seconds, and `ENDING` to end it.

    Returns None if the time is too short for a run.
    """
    folder = job.parent / run
    if seconds < LEAST:
        return None
    command = [*interpreter.python(), "-m", "mpips.cli", "run", str(job), "--run-dir", str(folder), *options]
    command += ["--set", f"checkpoint.directory={toml_value(str(folder / 'checkpoints'))}"]
    hung: list[str] = []
    environ = {**os.environ, "MPIPS_PROGRESS": "plain"}
    answer = subprocess_output.run(
        command,
        seconds,
        environ=environ,
        at_deadline=lambda: hung.append(stacks(folder, STACKS)),
        after_term=AFTER_TERM,
    )
    return Ended(folder, answer.code, answer.stdout + "\n" + answer.stderr, "".join(hung))


def stacks(folder: Path, seconds: float) -> str:
    """Return in one line where the ranks of a run are, as `mpips ctl RUN stacks` does; "" if it is not known."""
    from mpips.rank.stacks import text_here
    from mpips.rundir.order_files import ask

    run = RunFolder(folder)
    if run.read_run() is None:
        return "its ranks have not started together"
    known, text = ask(folder, "stacks", {}, seconds)
    return "; ".join(
        line for line in (text if known else text_here(run)).splitlines() if line.startswith("rank")
    )


def judge_job(ended: Ended, twin: Callable[[], str], known: str = KNOWN_BITS) -> Check:
    """Return the outcome of the undisturbed run; `twin` returns the bits that one process of this machine has."""
    name, against = "tiny job", f"the known bits {known[:8]}"
    if ended.problem:
        return Check(name, Verdict.FAIL, ended.problem, "a completed run", "see the lines of mpips above it, and "
                     "repeat it alone: mpips run JOB.toml, with a job of yours")  # fmt: skip
    facts = {"parameters_sha256": ended.bits, "seconds": ended.result.get("seconds", {}).get("total")}
    if ended.bits == known:
        return Check(name, Verdict.OK, f"completed with the bits {ended.bits[:8]}", against, facts=facts)
    here = twin()
    if not here:
        value = f"completed with the bits {ended.bits[:8]}; not compared: the run in one process did not end"
        mend = "repeat it on an idle node, or with a longer --seconds; and alone: mpips run JOB.toml --twin"
        return Check(name, Verdict.WARN, value, against, mend, facts)
    if ended.bits == here:
        mend = (
            "nothing, if all nodes are of this kind: their processor or libm rounds otherwise, but all alike"
        )
        return Check(name, Verdict.WARN, f"completed with the bits {ended.bits[:8]}, as this machine alone has them",
                     against, mend, facts)  # fmt: skip
    mend = (
        "the nodes compute different results: compare their processors (lscpu) and libm, or use nodes of one kind "
        "(Slurm: --constraint), for runs that can be repeated"
    )
    value = f"completed with the bits {ended.bits[:8]}; this machine alone has {here[:8]}"
    return Check(name, Verdict.FAIL, value, against, mend, facts)


def judge_recovery(ended: Ended, resumed: Ended | None, bits: str) -> Check:
    """Return the outcome of the run whose server was killed, and of its continuation if it has ended then.

    `bits` are those of the undisturbed run; `resumed` is None also if there was no time for it.
    """
    name, against = "recovery", f"the bits of the undisturbed run {bits[:8]}"
    if ended.code == 0:
        if not ended.deaths:
            return Check(name, Verdict.FAIL, "the killed server was not noticed", "one recovery",
                         "report it, with result.json: this is a fault of mpips")  # fmt: skip
        took = ended.deaths[0].get("seconds")
        facts = {"continued": True, "seconds": took, "noticed_after": ended.deaths[0].get("noticed_after")}
        value = (
            f"a killed server was replaced after {took:.2f} s, the run completed"
            if took
            else "the run completed"
        )
        return _same(Check(name, Verdict.OK, value, against, facts=facts), ended.bits, bits)
    if ended.code is None:
        mend = "a death must end the run or be survived: `mpips doctor` tests both; see docs/recovery.md"
        return Check(name, Verdict.FAIL, ended.problem, "an end, or a recovery, in time", mend)
    if not ended.ended_by_death:
        mend = "see the lines of mpips above it: this is not the death of the server that was to be killed"
        return Check(name, Verdict.FAIL, ended.problem, "an end by the death, or a recovery", mend)
    if resumed is None:
        value = "a killed server ended the run; no time left for --resume latest"
        return Check(name, Verdict.SKIP, value, mend="a longer --seconds")
    if resumed.problem:
        mend = "repeat `mpips run JOB.toml --resume latest`: see docs/recovery.md"
        return Check(
            name, Verdict.FAIL, f"the death ended the run; --resume latest: {resumed.problem}", against, mend
        )
    mend = (
        "a death ends the run here, which --resume latest continues: Open MPI 5 with ULFM, under mpirun or mpips run, "
        "lets the other ranks continue"
    )
    value = "a killed server ended the run, and --resume latest completed it"
    return _same(Check(name, Verdict.WARN, value, against, mend, {"continued": False}), resumed.bits, bits)


def _same(check: Check, found: str, bits: str) -> Check:
    """Return the check, or a failed one if the bits are not those of the undisturbed run."""
    if found == bits:
        return check
    mend = (
        "a recovery must not change results: do the nodes have the same processors and libm? Else report it"
    )
    return Check(
        check.name,
        Verdict.FAIL,
        f"{check.value}, with the bits {found[:8]}",
        check.against,
        mend,
        check.facts,
    )
