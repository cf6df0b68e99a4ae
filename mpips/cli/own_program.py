"""The switch `--program`, of the commands that need the program of a run, a model or a checkpoint."""

from __future__ import annotations

import argparse
import os

NEEDED = (
    "run this program: needed where what is named is of a program that does not come with mpips, whose code is run "
    "only if you say so"
)


def add(parser: argparse.ArgumentParser, meaning: str = NEEDED) -> None:
    """Add the switch to a command; `mpips.config.program.vouched` takes what it gives."""
    parser.add_argument(
        "--program",
        type=lambda named: os.path.abspath(named) if named.endswith(".py") else named,
        metavar="FILE.py",
        help=meaning,
    )
