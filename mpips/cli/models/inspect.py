"""`mpips inspect`: say what a checkpoint holds."""

from __future__ import annotations

import argparse

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Say what a checkpoint holds: the job, the step, the vectors, each shard's keys and size, and which run it comes from.

  mpips inspect checkpoints/sparse_lr/step-000020
  mpips inspect checkpoints/sparse_lr/step-000020 --provenance
                                                all that is known of that run, as JSON
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "inspect", "say what a checkpoint holds", DESCRIPTION, command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder")
    parser.add_argument("--provenance", action="store_true", help="write the run's provenance as JSON")


def command(arguments: argparse.Namespace) -> int:
    """Describe the checkpoint."""
    from pathlib import Path

    from mpips.checkpoint.checkpoint import describe
    from mpips.checkpoint.manifest import read_manifest
    from mpips.errors import CheckpointError
    from mpips.process.printable import json_text, printable
    from mpips.provenance.provenance import summary

    path = Path(arguments.checkpoint)
    facts = read_manifest(path).get("provenance")
    if arguments.provenance:
        if not facts:
            raise CheckpointError(
                f"{path} has no provenance: an earlier version wrote it, or a program of one's own"
            )
        print(json_text(facts))
        return 0
    print(describe(path))
    for line in summary(facts) if facts else ["no provenance: an earlier version wrote it"]:
        print(f"  {printable(line, keep='')}")
    return 0
