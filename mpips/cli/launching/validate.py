"""`mpips validate`: a cluster's acceptance check, which starts ranks on every node."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from mpips.process.argument_parser import add_command, add_launcher

if TYPE_CHECKING:
    from pathlib import Path

    from mpips.launch.checks.check import Check
    from mpips.launch.mpi_launcher import Starter

DESCRIPTION = """\
Check in at most a minute whether this machine, allocation or cluster is fit for runs. It starts ranks on every node:
do they start as one world, on all nodes, with the same software? How fast are messages between nodes, compared with
TCP and with what the interfaces state? Does the file system show files to all nodes, replace them atomically, sync and
lock them? Does a tiny training end with its known bits, also when a server is killed?

  mpips validate                                this machine
  mpips validate --folder /scratch/me           with this folder for the files
  salloc -N 4 --ntasks-per-node=2 mpips validate --launcher srun
                                                the nodes of an allocation
  mpips validate --json                         the same as JSON

Each check is ok, warn, fail, or skip, and says what mends it. A check that does not end in time fails, and says which
rank is where. The first time on a machine, kernels are compiled before that minute begins. `mpips doctor` looks at one
machine, and tries launchers and PMIs.
"""

EPILOG = """\
exit codes: 0 no check has failed; 1 a check has failed; 2 the input is wrong (reported in one line)."""

LIMIT, LEAST, MOST = 60.0, 25.0, 3600.0
"""Seconds for all checks: by default, and the bounds."""
PROBE_SHARE, RUN_SHARE = 0.6, 0.7
"""The share of the remaining time that the probe of the ranks may take, and each run."""
ENDS_AFTER = 2.0
"""Seconds from the time limit of ranks until they end themselves."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "validate", "check a cluster: nodes, wire, files, recovery", DESCRIPTION, command, EPILOG
    )
    parser.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    parser.add_argument(
        "--folder", default=".", metavar="DIR", help="where runs write; default: the working folder"
    )
    parser.add_argument(
        "--pmi", default="", metavar="NAME", help="srun's --mpi, if the choice by the MPI is wrong"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=LIMIT,
        metavar="S",
        help=f"time limit of all checks, at least {LEAST:g}; default {LIMIT:g}",
    )
    add_launcher(parser)


def command(arguments: argparse.Namespace) -> int:
    """Check, and print the outcomes; return 0 if no check has failed, else 1."""
    import os
    import sys
    import time

    from mpips.cli.launching.doctor import check_single_copy
    from mpips.errors import InputError
    from mpips.exit_codes import ExitCode
    from mpips.launch.checks.check import accepted, lines, summary
    from mpips.process.printable import json_text, printable
    from mpips.process.terminal.width import width
    from mpips.rundir.progress import line_width

    check_single_copy(os.environ, "validate")
    if not LEAST <= arguments.seconds <= MOST:
        raise InputError(f"--seconds {arguments.seconds:g}: must be from {LEAST:g} to {MOST:g}")
    if not os.path.isdir(arguments.folder):
        raise InputError(f"--folder {arguments.folder}: no such folder")
    if not os.access(arguments.folder, os.W_OK | os.X_OK):
        raise InputError(f"--folder {arguments.folder}: you cannot write there")
    wide = width() if sys.stdout.isatty() else line_width()
    checks: list[Check] = []

    def tell(check: Check) -> None:
        checks.append(check)
        if not arguments.json:
            print("\n".join(printable(line) for line in lines(check, wide)), flush=True)

    validation = Validation(arguments, tell)
    began = time.monotonic()
    validation.run()
    took = time.monotonic() - began - validation.compiled
    if arguments.json:
        print(json_text({"accepted": accepted(checks), "seconds": took, "hosts": validation.hosts,
                         "checks": [check.as_json() for check in checks]}))  # fmt: skip
    else:
        print("\n" + summary(checks, took))
    return ExitCode.COMPLETED if accepted(checks) else ExitCode.FAILED


class Validation:
    """The checks, one after the other; each is passed to `tell` when its outcome is known."""

    def __init__(self, arguments: argparse.Namespace, tell: Callable[[Check], None]) -> None:
        self._arguments, self._tell = arguments, tell
        self.hosts: list[str] = []
        """The hosts of the ranks."""
        self.compiled = 0.0
        """Seconds for kernels, which are compiled once for a machine."""
        self._deadline = 0.0

    def run(self) -> None:
        """Do all checks."""
        import os
        import tempfile
        from pathlib import Path

        from mpips.cli.launching import acceptance_runs
        from mpips.errors import InputError
        from mpips.launch import mpi_launcher
        from mpips.launch.checks import machine
        from mpips.launch.checks.check import Check, Verdict
        from mpips.launch.slurm_env import number
        from mpips.process.terminal.doing import doing

        self._tell(machine.kernel_folder(machine.kernel_folder_facts()))
        try:
            with doing("validate: loading the MPI of mpi4py, to find its launcher"):
                starter = mpi_launcher.find_starter(self._arguments.launcher)
        except InputError as error:
            against = "a launcher of the MPI that mpi4py loads"
            self._tell(
                Check("launcher", Verdict.FAIL, str(error), against, "`mpips doctor` shows what there is")
            )
            return
        nodes = mpi_launcher.node_count(os.environ)
        ranks = max(acceptance_runs.RANKS, nodes)
        tasks = number(os.environ.get("SLURM_NTASKS")) or ranks
        if starter.kind == "srun" and tasks < ranks:
            raise InputError(
                f"validate starts {ranks} ranks, and this allocation has {tasks} tasks: "
                f"salloc -N {nodes} --ntasks={ranks}"
            )
        folder = Path(self._arguments.folder).absolute()
        with tempfile.TemporaryDirectory(
            prefix=".mpips-validate-", dir=folder, ignore_cleanup_errors=True
        ) as made:
            job = acceptance_runs.write_job(Path(made))
            self._compile(job)
            if self._probe(starter, ranks, nodes, Path(made)):
                self._train(job)
            else:
                self._skip("not run", "mend what has failed above", "tiny job", "recovery")

    def _compile(self, job: Path) -> None:
        import time

        from mpips.cli.launching.run import compile_kernels
        from mpips.config.job_file import load

        began = time.monotonic()
        compile_kernels(load(str(job), []), str(job), [])
        self.compiled = time.monotonic() - began
        self._deadline = time.monotonic() + self._arguments.seconds

    def _left(self, share: float) -> float:
        """Return the time limit (s) of what begins now: a share of what is left, with time to end it if it hangs."""
        import time

        from mpips.cli.launching.acceptance_runs import ENDING

        left = self._deadline - time.monotonic()
        return min(share * left, left - ENDING)

    def _skip(self, value: str, mend: str, *names: str) -> None:
        from mpips.launch.checks.check import Check, Verdict

        for name in names:
            self._tell(Check(name, Verdict.SKIP, value, mend=mend))

    def _note(self, text: str) -> None:
        import sys

        print(f"mpips: validate: {text}", file=sys.stderr, flush=True)

    def _probe(self, starter: Starter, ranks: int, nodes: int, folder: Path) -> bool:
        """Check what ranks on all nodes find; return whether a run can be started."""
        from mpips.launch import mpi_launcher
        from mpips.launch.checks import reports, world
        from mpips.process import interpreter

        seconds = self._left(PROBE_SHARE)
        where = f"{nodes} node{'' if nodes == 1 else 's'} and {folder.parent}"
        self._note(f"{ranks} ranks check {where}, at most {seconds:.0f} s")
        program = [
            *interpreter.python(),
            "-m",
            "mpips.launch.checks.ranks",
            str(folder),
            str(seconds + ENDS_AFTER),
        ]
        planned = mpi_launcher.plan(starter, ranks, program, pmi=self._arguments.pmi)
        answer = planned.run(seconds)
        found = reports.read(answer.stdout)
        self.hosts = [each.host for each in found.values()]
        started = world.Started(
            starter, str(planned), ranks, nodes, seconds, str(folder.parent), answer.code, answer.stderr
        )
        checks = world.judge(found, answer.stdout, started)
        for check in checks:
            self._tell(check)
        failed = {check.name for check in checks if check.verdict == "fail"}
        return not failed & {"launcher", "nodes", "software", "visibility", "ranks"}

    def _train(self, job: Path) -> None:
        """Run the tiny job, undisturbed and with a server that is killed."""
        from mpips.cli.launching import acceptance_runs as runs

        given = self._arguments
        options = ["--launcher", given.launcher, *(["--pmi", given.pmi] if given.pmi else [])]

        def twin() -> str:
            alone = runs.start(job, "twin", ["--twin"], self._left(RUN_SHARE))
            return "" if alone is None else alone.bits

        seconds = self._left(RUN_SHARE)
        self._note(f"a tiny job runs, at most {max(seconds, 0.0):.0f} s")
        plain = runs.start(job, "plain", options, seconds)
        if plain is None:
            self._skip("no time left", "a longer --seconds", "tiny job", "recovery")
            return
        self._tell(runs.judge_job(plain, twin))
        if not plain.bits:
            self._skip("not run", "mend what has failed above", "recovery")
            return
        seconds = self._left(RUN_SHARE)
        self._note(f"it runs again, and a server is killed, at most {max(seconds, 0.0):.0f} s")
        kill = f'faults.kill=[{{role="server", index=1, at_step={runs.KILLED_AT}}}]'
        struck = runs.start(job, "struck", [*options, "--set", kill, "--set", "checkpoint.every=1"], seconds)
        if struck is None:
            self._skip("no time left", "a longer --seconds", "recovery")
            return
        resumed = None
        if struck.ended_by_death:
            resumed = runs.start(job, "struck", [*options, "--resume", "latest"], self._left(1.0))
        self._tell(runs.judge_recovery(struck, resumed, plain.bits))
