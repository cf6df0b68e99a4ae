"""`mpips query`: look up keys in a run's result or in a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.cli import own_program
from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Look up keys in the result of a run, or in a checkpoint; prints a line KEY<TAB>COUNT for each.
Without keys, they are read from the standard input, one per line.

  mpips query runs/sketch-20250101T120000Z /images/NASA-logosmall.gif /
  mpips query latest KEY
  mpips query checkpoints/sketch/step-000020 < keys.txt

RUN is a run folder, or `latest`: the one under runs/ that was started last. For a run that has not completed, the last
checkpoint is read. The counts come from the function `query(source, keys)` of the run's program. Name your own program
by --program FILE.py: the code of a program that RUN names is not run otherwise.
"""

Query = Callable[[Path, Sequence[str]], Sequence[object]]

if TYPE_CHECKING:
    from mpips.config.program import Program

    Programs = Callable[[str, Path], Program]


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
    from mpips.config.program import trusted_loader
    from mpips.rundir.order_files import named_run

    named = named_run(arguments.source)
    query, source = find(named, trusted_loader(arguments.program))
    # The bytes that were given: decoded by the locale's encoding, a key would be another key.
    given = [os.fsencode(key).decode("utf-8", "surrogateescape") for key in arguments.keys]
    keys = given or _lines(sys.stdin)
    answers = query(source, keys)
    sys.stdout.writelines(f"{key}\t{answer}\n" for key, answer in zip(keys, answers, strict=True))
    return 0


def _lines(file: Iterable[str]) -> list[str]:
    """Return the lines of a text, without a byte order mark."""
    lines = [line.rstrip("\r\n") for line in file]
    return [line.removeprefix("\ufeff") for line in lines[:1]] + lines[1:]


def find(named: Path, programs: Programs) -> tuple[Query, Path]:
    """Return the function that looks up keys, and the folder that it reads: a run's or a checkpoint's.

    Args:
        named: that folder.
        programs: loads a program by its name, relative to a folder; see `mpips.config.program.trusted_loader`.

    Raises:
        InputError: `named` is neither, or its program has no function `query`.
    """
    from mpips.checkpoint.manifest import MANIFEST, read_manifest
    from mpips.errors import InputError

    if (named / MANIFEST).is_file():
        about: dict[str, Any] = read_manifest(named)["about"]
        try:
            program, base = str(about["program"]), Path(about["job"]["job"]["base"])
        except (KeyError, TypeError):
            raise InputError(f"{named}: the checkpoint does not name its program") from None
        return programs(program, base).function("query"), named
    if not (named / "job.toml").is_file():
        raise InputError(f"{named}: is neither a run's folder nor a checkpoint's")
    return _of_run(named, programs)


def _has_model(result: dict[str, Any]) -> bool:
    """Return whether a run that did not complete has written its model: a later step has failed."""
    metrics = result.get("metrics")
    return isinstance(metrics, dict) and bool(metrics.get("model"))


def _of_run(folder: Path, programs: Programs) -> tuple[Query, Path]:
    from mpips.config.job_file import load
    from mpips.errors import InputError
    from mpips.provenance.run_json import check_outputs, latest
    from mpips.rank.prepare import checkpoints
    from mpips.rundir.folder import RunFolder

    job = load(folder / "job.toml", programs=programs)
    query = programs(job.program, job.base).function("query")
    result = RunFolder(folder).read_result()
    if result is not None and (result.get("status") == "completed" or _has_model(result)):
        check_outputs(RunFolder(folder))
        return query, folder
    found = latest(RunFolder(folder), checkpoints(job))
    if found is None:
        raise InputError(f"{folder}: the run has not completed, and has no checkpoint in {checkpoints(job)}")
    return query, found
