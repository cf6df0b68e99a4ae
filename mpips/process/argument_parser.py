"""Parsers of command lines, and what several of them have in common."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from mpips.exit_codes import ExitCode
from mpips.process.printable import one_line
from mpips.process.terminal import help_text

MPI_LAUNCHERS = ("auto", "openmpi", "mpich")
LAUNCHERS = (*MPI_LAUNCHERS, "srun")
"""What can start ranks; auto: that of the MPI which mpi4py loads, or Slurm's."""


MAY_BE_EMPTY = ("--partition", "--account", "--qos")
"""Options whose value may be empty: none, instead of the site's."""


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, with the command for help; exit code 2.

    An option with an empty value is refused: mostly its variable in the shell was not set.
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse a command line, see argparse."""
        words = sys.argv[1:] if args is None else list(args)
        empty = [before for before, word in pairwise(words) if before.startswith("-") and not word]
        empty += [word[:-1] for word in words if word.startswith("--") and word.find("=") == len(word) - 1]
        for option in (each for each in empty if each not in MAY_BE_EMPTY):
            self.error(f"argument {option}: the value is empty: leave the option out, or give a value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(ExitCode.BAD_INPUT, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    meaning: str,
    description: str,
    command: Callable[[argparse.Namespace], int],
    epilog: str | None = None,
    **flags: bool,
) -> argparse.ArgumentParser:
    """Add a command of `mpips` to its command line, and return the parser of its arguments.

    `flags` say how it is run (see `mpips.cli.main`): `prints_data`, `passes_on`.
    """
    parser = subparsers.add_parser(
        name,
        help=meaning,
        description=description,
        epilog=epilog,
        formatter_class=help_text.Formatter,
        allow_abbrev=False,
        add_help=not flags.get("passes_on"),
    )
    parser.set_defaults(command=command, **flags)
    return parser


def program_parser(name: str, description: str) -> Parser:
    """Return the parser of a program of its own, such as a benchmark, without any options."""
    return Parser(
        prog=name,
        usage=f"{name} [options]",
        description=description,
        formatter_class=help_text.Formatter,
        allow_abbrev=False,
    )


def add_set(parser: argparse._ActionsContainer) -> None:
    """Add the option `--set`, by which a user overrides keys of a job file."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="override a key of the job file; repeatable",
    )


def add_layout(parser: argparse._ActionsContainer) -> None:
    """Add the options for the numbers of ranks and copies, which stand for keys of a job file, and `--set`."""
    for role, meaning in (
        ("servers", "ranks that hold parameters (layout.servers)"),
        ("workers", "ranks that compute (layout.workers)"),
        ("spares", "ranks that wait to replace a dead one (layout.spares)"),
        ("schedulers", "ranks that schedule (layout.schedulers)"),
        ("replicas", "copies of each server's keys (ring.replicas)"),
    ):
        parser.add_argument(f"--{role}", type=int, metavar="N", help=meaning)
    add_set(parser)


def add_launcher(
    parser: argparse.ArgumentParser, meaning: str = "how ranks are started", of: tuple[str, ...] = LAUNCHERS
) -> None:
    """Add the option for the launcher of the ranks, one of `of`."""
    parser.add_argument("--launcher", choices=of, default="auto", help=meaning)


def add_survive(parser: argparse._ActionsContainer) -> None:
    """Add the option for what a run survives."""
    parser.add_argument(
        "--survive",
        choices=("auto", "nodes", "ranks", "no"),
        default="auto",
        help="continue when ranks die, or also nodes and the launcher (Open MPI 5); auto: nodes if there are several, "
        "otherwise ranks where the launcher supports that",
    )
