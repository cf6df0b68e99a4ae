"""`mpips ctl`: give an order to a running job, through its run folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Give an order to a running job and print its answer. Orders go through the run folder, so this works on any node that
sees the folder, such as a login node.

  mpips ctl latest status                       the ranks, and the rounds that each server has applied
  mpips ctl RUN stacks                          where each rank is in the program, and what it waits for
  mpips ctl RUN checkpoint                      write a checkpoint now, and continue
  mpips ctl RUN stop                            write a checkpoint and end with exit code 85; without one
                                                if nothing is trained yet
  mpips ctl RUN join server                     make a spare join as a server (or: worker)
  mpips ctl RUN leave 3                         make rank 3 transfer its keys or data, and leave
  mpips ctl RUN tau 8                           set the maximal delay tau of bounded delay
"""

EPILOG = """\
RUN is a run folder, or `latest`: the one under runs/ that was started last.
exit codes: 0 carried out; 1 refused, or no answer; 2 the input is wrong (reported in one line)."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "ctl", "give an order to a running job", DESCRIPTION, command, EPILOG)
    parser.add_argument("run", metavar="RUN", help="the run's folder, or latest")
    parser.add_argument("verb", metavar="ORDER", help="status, stacks, checkpoint, stop, join, leave or tau")
    parser.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="the role to join as, the rank to leave, or tau"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time to wait for the answer; default 10",
    )


def order(verb: str, words: Sequence[str]) -> dict[str, str | int]:
    """Read the arguments of an order; InputError in one line if they are wrong."""
    from mpips.errors import InputError
    from mpips.rundir.order_files import WANTED, check

    wanted = WANTED.get(verb, "")
    read: dict[str, str | int] = {
        wanted if wanted and not at else str(at): word for at, word in enumerate(words)
    }
    if wanted in ("rank", "tau") and words:
        try:
            read[wanted] = int(words[0])
        except ValueError:
            raise InputError(f"{verb} {words[0]!r}: {wanted} must be an integer, at least 0") from None
    check(verb, read)
    return read


def command(arguments: argparse.Namespace) -> int:
    """Send the order and print the answer; return 0 if it was carried out, else 1."""
    import sys

    from mpips.errors import InputError
    from mpips.process.printable import one_line
    from mpips.rundir.order_files import ask, named_run

    wanted = order(arguments.verb, arguments.arguments)
    if not arguments.patience > 0:
        raise InputError(f"--patience {arguments.patience:g}: must be seconds, above 0")
    run = named_run(arguments.run)
    ok, text = ask(run, arguments.verb, wanted, arguments.patience)
    if not ok and arguments.verb == "stacks":
        from mpips.rank.stacks import text_here
        from mpips.rundir.folder import RunFolder

        # The leader itself may be busy, or hang.
        if here := text_here(RunFolder(run)):
            print(here)
    print(text if ok else one_line(f"mpips: {text}"), file=sys.stdout if ok else sys.stderr)
    return 0 if ok else 1
