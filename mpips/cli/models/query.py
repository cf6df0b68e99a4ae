"""`mpips query`: look up keys in a run's result or in a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable

from mpips.cli import own_program
from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Look up keys in the result of a run, or in a checkpoint; prints a line KEY<TAB>COUNT for each (of sketch; of sparse_lr
KEY<TAB>WEIGHT).
Without keys, they are read from the standard input, one per line.

  mpips query runs/sketch-20250101T120000Z /images/NASA-logosmall.gif /
  mpips query latest KEY
  mpips query checkpoints/sketch/step-000020 < keys.txt

RUN is a run folder, or `latest`: the one under runs/ that was started last. For a run that has not completed, the last
checkpoint is read. The answers come from the method `query` of the program's model (`mpips.Model`). Name your own
program by --program FILE.py: the code of a program that RUN names is not run otherwise.
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "query", "look up keys in a run or a checkpoint", DESCRIPTION, command, prints_data=True
    )
    parser.add_argument(
        "source", metavar="RUN|CHECKPOINT", help="a run's folder, latest, or a checkpoint's folder"
    )
    parser.add_argument("keys", nargs="*", metavar="KEY", help="a key to look up")
    own_program.add(parser)


def command(arguments: argparse.Namespace) -> int:
    """Print the counts of the keys."""
    from mpips.client.loading import load_model

    model = load_model(arguments.source, program=arguments.program)
    # The bytes that were given: decoded by the locale's encoding, a key would be another key.
    given = [os.fsencode(key).decode("utf-8", "surrogateescape") for key in arguments.keys]
    keys = given or _lines(sys.stdin)
    answers = model.query(keys)
    sys.stdout.writelines(f"{key}\t{answer}\n" for key, answer in zip(keys, answers, strict=True))
    return 0


def _lines(file: Iterable[str]) -> list[str]:
    """Return the lines of a text, without a byte order mark."""
    lines = [line.rstrip("\r\n") for line in file]
    return [line.removeprefix("\ufeff") for line in lines[:1]] + lines[1:]
