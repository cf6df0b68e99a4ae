"""`mpips inspect`: say what a checkpoint holds."""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Say what a checkpoint holds: the job, the step, the vectors, and each shard's keys and size.

  mpips inspect checkpoints/sparse_lr/step-000020
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "inspect",
        help="say what a checkpoint holds",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder")
    parser.set_defaults(command=command)


def command(arguments: argparse.Namespace) -> int:
    """Describe the checkpoint."""
    from pathlib import Path

    from mpips.checkpoint import describe

    print(describe(Path(arguments.checkpoint)))
    return 0
