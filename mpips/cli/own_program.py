"""The option `--program` of the commands that need the program of a run, a model or a checkpoint."""

from __future__ import annotations

import argparse
import os

NEEDED = "run this program: required for a program that is not part of mpips, whose code is not run unless it is named"


def add(parser: argparse.ArgumentParser, meaning: str = NEEDED) -> None:
    """Add the option to a command; its value is for `mpips.config.program.trusted_loader`."""
    parser.add_argument(
        "--program",
        type=lambda named: os.path.abspath(named) if named.endswith(".py") else named,
        metavar="FILE.py",
        help=meaning,
    )
