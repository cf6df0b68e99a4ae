"""`mpips job`: describe the keys of the job file."""

from __future__ import annotations

import argparse
import textwrap

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Show every table and key of a program's job file, with type, default and meaning.

  mpips job                                     the tables that all programs share
  mpips job sparse_lr                           these, and the program's own table
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "job", "show the keys of a job file", DESCRIPTION, command)
    parser.add_argument("program", nargs="?", metavar="PROGRAM", help="a program's name, or its .py file")


def describe(name: str, spec: type) -> str:
    """Format the keys of one table."""
    from mpips.process.terminal.width import width
    from mpips.typed import documented

    wide = min(width(), 100)
    text = spec.__doc__ or ""
    # A dataclass without a docstring has its signature as one.
    summary = [] if text.startswith(f"{spec.__name__}(") else text.strip().splitlines()
    lines = textwrap.wrap(f"[{name}]  {summary[0] if summary else ''}", wide, subsequent_indent="    ")
    for key in documented(spec):
        default = (
            key.default
            if key.default == "required"
            else f"default {key.default}"
            if key.default
            else "not set"
        )
        named = f"  {key.name}  ({key.type}; {default})"
        lines += textwrap.wrap(named, wide, subsequent_indent="    ")
        lines += textwrap.wrap(key.doc, wide, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def command(arguments: argparse.Namespace) -> int:
    """Show the tables."""
    from pathlib import Path

    from mpips.config.job_file import TABLES
    from mpips.config.program import load_program

    tables = dict(TABLES)
    if arguments.program:
        program = load_program(arguments.program, Path.cwd())
        tables[program.name] = program.settings
    print("\n\n".join(describe(name, spec) for name, spec in tables.items()))
    return 0
