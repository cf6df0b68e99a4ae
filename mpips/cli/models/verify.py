"""`mpips verify`: check the integrity of checkpoints, and of runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mpips.process.argument_parser import add_command

if TYPE_CHECKING:
    from pathlib import Path

    from mpips.rundir.folder import RunFolder

DESCRIPTION = """\
Check every byte of checkpoints, and report for each whether it is sound; problems are listed by file.
A folder of checkpoints stands for all of them. Of a run that has ended, its job, result and outputs are compared with
their hashes in its run.json. With --history, what its ranks have recorded of each push, pull, round, call and view
([trace] history = true) is checked against the promises of docs/reliability.md instead. The exit code is 0 if all are
sound, 1 if one is not, 2 if there is none.

  mpips verify checkpoints/sparse_lr/step-000020
  mpips verify checkpoints/sparse_lr
  mpips verify runs/NAME                        or latest
  mpips verify runs/NAME --history
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "verify", "check the integrity of checkpoints and runs", DESCRIPTION, command
    )
    parser.add_argument("checkpoint", nargs="+", metavar="CHECKPOINT|RUN",
                        help="a checkpoint's folder, a run's folder, or latest")  # fmt: skip
    parser.add_argument("--history", action="store_true", help="check the recorded histories of runs instead")


def command(arguments: argparse.Namespace) -> int:
    """Check the checkpoints and runs; print one line for each, and one for each problem."""
    from pathlib import Path

    from mpips.checkpoint.inspection import verify
    from mpips.checkpoint.manifest import check_present, folders, read_manifest
    from mpips.rundir.folder import RunFolder
    from mpips.rundir.order_files import named_run

    damaged, valid = 0, set[Path]()
    for given in arguments.checkpoint:
        named = Path(given) if Path(given).exists() else named_run(given)
        run = RunFolder(named)
        if arguments.history:
            damaged += _print_history(given if given != "latest" else named, run)
            continue
        if run.run.exists():
            damaged += _print_outcome(given if given != "latest" else named, *_run(run))
            continue
        check_present(named)
        for path in folders(named) or [named]:
            problems = verify(path, valid=valid)
            entries = [] if problems else read_manifest(path)["files"]
            damaged += _print_outcome(path, problems, [entry["bytes"] for entry in entries])
    return 1 if damaged else 0


def _run(run: RunFolder) -> tuple[list[str], list[int]]:
    """Return what is wrong with the files of a run that has ended, and their sizes. InputError if none has a hash."""
    from mpips.errors import InputError
    from mpips.provenance.run_json import altered_outputs, listed_outputs

    facts = run.read_run() or {}
    outputs = listed_outputs(run)
    if not outputs:
        how = facts.get("exit", {}).get("status") or "has not ended, or was killed"
        raise InputError(f"{run.path}: its run.json has no hashes of outputs (the run: {how})")
    missing = [
        f"{run.path / each['name']}: is missing" for each in outputs if not _is_there(run, each["name"])
    ]
    return [*altered_outputs(run), *missing], [each.get("bytes", 0) for each in outputs]


def _is_there(run: RunFolder, name: str) -> bool:
    import os

    return os.path.lexists(run.path / name)


def _print_outcome(path: str | Path, problems: list[str], sizes: list[int]) -> bool:
    """Print what was found; return whether there are problems."""
    from mpips.process.printable import one_line

    if problems:
        print(f"{one_line(path)}: NOT sound, problems {len(problems)}", *map(one_line, problems), sep="\n  ")
    else:
        print(f"{one_line(path)}: sound, files {len(sizes)}, {sum(sizes) / 1e6:,.1f} MB")
    return bool(problems)


def _print_history(path: str | Path, run: RunFolder) -> bool:
    """Check a run's history, and print the outcome; return whether a promise was broken."""
    from mpips.history.check import MOST
    from mpips.history.file import read_history
    from mpips.process.printable import one_line

    history = read_history(run.trace)
    found = history.violations()
    if history.bad:
        print(f"warning: {one_line(run.trace)}: ignored lines that are no events: {history.bad}")
    if found:
        texts = (one_line(f"{each.promise}: {each.text}") for each in found)
        more = " or more" if len(found) == MOST else ""
        print(f"{one_line(path)}: promises broken {len(found)}{more}", *texts, sep="\n  ")
    else:
        print(
            f"{one_line(path)}: all promises kept, ranks {len(history.clocks)}, events {len(history.events):,}"
        )
    return bool(found)
