"""`mpips verify`: check the integrity of checkpoints."""

from __future__ import annotations

import argparse

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Check every byte of checkpoints, and report for each whether it is sound; problems are listed by file.
A folder of checkpoints stands for all of them. The exit code is 0 if all are sound, 1 if one is not, 2 if there is
none.

  mpips verify checkpoints/sparse_lr/step-000020
  mpips verify checkpoints/sparse_lr
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "verify", "check the integrity of checkpoints", DESCRIPTION, command)
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT", help="a checkpoint's folder")


def command(arguments: argparse.Namespace) -> int:
    """Check the checkpoints; print one line for each, and one for each problem."""
    from pathlib import Path

    from mpips.checkpoint.inspection import verify
    from mpips.checkpoint.manifest import check_present, folders, read_manifest
    from mpips.process.printable import one_line

    damaged = 0
    for given in map(Path, arguments.checkpoint):
        check_present(given)
        for path in folders(given) or [given]:
            problems, shown = verify(path), one_line(path)
            damaged += bool(problems)
            if problems:
                lines = map(one_line, problems)
                print(f"{shown}: NOT sound, problems {len(problems)}", *lines, sep="\n  ")
            else:
                entries = read_manifest(path)["files"]
                size = sum(entry["bytes"] for entry in entries)
                print(f"{shown}: sound, files {len(entries)}, {size / 1e6:,.1f} MB")
    return 1 if damaged else 0
