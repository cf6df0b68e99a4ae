"""The command line: finds the command, runs it, and reports wrong input in one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from mpips.cli import bench, completion
from mpips.cli.interruption import Interruption
from mpips.cli.launching import doctor, job, layout, plan, render, run, submit, validate
from mpips.cli.models import convert, export, infer, inspect, query, verify
from mpips.cli.runs import crate, ctl, diff, report, reproduce, trace
from mpips.errors import InputError, has_no_room, needs_no_traceback
from mpips.exit_codes import ExitCode
from mpips.process import standard_streams
from mpips.process.argument_parser import Parser
from mpips.process.interpreter import check_working_folder, forget_working_folder
from mpips.process.printable import one_line
from mpips.process.terminal import help_text

COMMANDS = (
    run, render, submit, ctl, report, trace, reproduce, diff, doctor, validate, layout, plan, job, inspect, verify,
    export, infer, query, crate, convert, bench, completion,
)  # fmt: skip
"""Each has `add(subparsers)`, which sets `command`: parsed arguments in, exit code out."""

DESCRIPTION = """\
The parameter server as an ordinary MPI job.

  mpips run jobs/sparse_lr/job.toml             train on this machine's cores
  mpips run JOB.toml --servers 2 --workers 4 --set consistency.tau=4
  mpips reproduce latest                        repeat a recorded run, and compare the bits
  mpips ctl latest stop                         checkpoint the running job, and end it
  mpips trace latest                            time breakdown of a traced run
  mpips doctor                                  check this machine: MPI, launcher, speed
  mpips validate                                check a cluster: nodes, wire, files, recovery
  mpips job sparse_lr                           all keys of its job file

On a cluster the ranks can also be started without `mpips run`:

  srun --mpi=pmix -n 7 python -P -m mpips JOB.toml --set layout.servers=2 --set layout.workers=4
"""

EPILOG = """\
exit codes: 0 completed, also if ranks died during the run; 85 stopped, with a checkpoint if anything was trained,
continue with --resume latest; 2 the input is wrong (reported in one line); 74 the output could not be written; 128 + a
signal's number: the signal arrived before the run started; anything else: failed.
`mpips COMMAND --help` describes each command."""


def parser() -> argparse.ArgumentParser:
    """Build the command line's parser."""
    root = Parser(
        prog="mpips",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=help_text.Formatter,
        allow_abbrev=False,
    )
    root.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = root.add_subparsers(metavar="COMMAND", title="commands")
    for command in COMMANDS:
        command.add(subparsers)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code. Without `argv`: the command line of this process."""
    if argv is not None:
        return _run(argv, nullcontext())
    interruption = Interruption()
    standard_streams.prepare(escape=True, raises=True)
    forget_working_folder()
    try:
        return _main(interruption)
    except BaseException:
        if not interruption.code:
            raise
    # Without the end of the interpreter: what was interrupted may be in a state that it cannot be deleted in.
    os._exit(interruption.code)


def _main(interruption: Interruption) -> int:
    try:
        return standard_streams.flushed_exit_code(_run(sys.argv[1:], interruption.while_running()))
    except SystemExit as left:
        if left.code:
            raise
        return standard_streams.flushed_exit_code(0)
    except OSError:
        if not standard_streams.output_failed():
            raise
        return standard_streams.flushed_exit_code(1)


def _run(argv: Sequence[str], running: AbstractContextManager[None]) -> int:
    root = parser()
    arguments, rest = root.parse_known_args(argv)
    if arguments.version:
        from importlib.metadata import version

        print(f"mpips {version('mpips')}")
        return 0
    if rest and not getattr(arguments, "passes_on", False):
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    if not hasattr(arguments, "command"):
        root.print_help()
        return ExitCode.BAD_INPUT
    arguments.root = root
    if getattr(arguments, "passes_on", False):
        arguments.rest = rest
    if getattr(arguments, "prints_data", False):
        standard_streams.pass_data_unescaped()
    try:
        check_working_folder()
        with running:
            return int(arguments.command(arguments))
    except InputError as error:
        return _report_error(str(error), ExitCode.BAD_INPUT)
    except OSError as error:
        # Without a file name, or a full disk, the error is not about the user's input.
        if standard_streams.output_failed() or not needs_no_traceback(error):
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        code = ExitCode.UNWRITABLE if has_no_room(error) else ExitCode.BAD_INPUT
        return _report_error(f"{where}{error.strerror or error}", code)


def _report_error(what: str, code: ExitCode) -> int:
    print(f"mpips: error: {one_line(what)}", file=sys.stderr)
    return code
