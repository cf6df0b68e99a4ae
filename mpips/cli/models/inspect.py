"""`mpips inspect`: show the contents of a checkpoint."""

from __future__ import annotations

import argparse

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Show the contents of a checkpoint: the job, the step, the vectors, each shard's keys and size, and which run wrote it.

  mpips inspect checkpoints/sparse_lr/step-000020
  mpips inspect checkpoints/sparse_lr/step-000020 --provenance
                                                the provenance of that run as JSON
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "inspect", "show the contents of a checkpoint", DESCRIPTION, command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint's folder")
    parser.add_argument("--provenance", action="store_true", help="print the run's provenance as JSON")


def command(arguments: argparse.Namespace) -> int:
    """Describe the checkpoint."""
    from pathlib import Path

    from mpips.checkpoint.inspection import describe
    from mpips.checkpoint.manifest import read_manifest
    from mpips.errors import CheckpointError
    from mpips.process.printable import json_text, printable
    from mpips.provenance.run_json import summary

    path = Path(arguments.checkpoint)
    facts = read_manifest(path).get("provenance")
    if arguments.provenance:
        if not facts:
            raise CheckpointError(
                f"{path} has no provenance: it was written by an earlier version, or by another program"
            )
        print(json_text(facts))
        return 0
    print(describe(path))
    for line in summary(facts) if facts else ["no provenance: written by an earlier version"]:
        print(f"  {printable(line, keep='')}")
    return 0
