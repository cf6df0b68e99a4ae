"""`mpips crate`: export a run as an RO-Crate."""

from __future__ import annotations

import argparse

from mpips.cli import own_program
from mpips.process.argument_parser import add_command
from mpips.provenance import output_file

DESCRIPTION = """\
Write a run that has ended as an RO-Crate (a Process Run Crate), a format of catalogues and archives. It contains the
job, the provenance, the metrics, the result and the model; inputs, checkpoints and large outputs are given by their
hashes. The person is named only by --agent; user names and home folders are removed from the run's files.

  mpips crate latest                            writes NAME.crate.zip
  mpips crate runs/NAME -o NAME-crate           a folder
  mpips crate latest --program mine.py          with the program, if it is not part of mpips
  mpips crate latest --agent "Ada Lovelace" --orcid 0000-0002-1825-0097 --license CC-BY-4.0
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "crate", "export a run as an RO-Crate", DESCRIPTION, command)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or latest")
    parser.add_argument("-o", "--out", metavar="DIR|ZIP", help="the crate to write; default NAME.crate.zip")
    parser.add_argument("--title", default="", help="the crate's name")
    parser.add_argument("--license", default="", metavar="URL|SPDX", help="the license of the crate")
    parser.add_argument("--agent", default="", metavar="NAME", help="who ran it")
    parser.add_argument("--orcid", default="", metavar="ID", help="their ORCID, 0000-0002-1825-0097")
    parser.add_argument("--affiliation", default="", metavar="NAME", help="their organization")
    parser.add_argument(
        "--limit",
        type=float,
        default=100e6,
        metavar="BYTES",
        help="larger outputs are given by their hash, and not copied; default 100e6",
    )
    parser.add_argument(
        "--personal", action="store_true", help="keep user names and home folders in the run's files"
    )
    own_program.add(
        parser,
        "include this program, if it is the one that ran; other files outside of RUN are not included",
    )


def command(arguments: argparse.Namespace) -> int:
    """Write the crate."""
    import re
    from pathlib import Path

    from mpips.errors import InputError
    from mpips.report.ro_crate import Agent, export
    from mpips.rundir.order_files import named_run

    orcid = arguments.orcid.removeprefix("https://orcid.org/")
    if orcid and not re.fullmatch(r"(\d{4}-){3}\d{3}[\dX]", orcid):
        raise InputError(f"--orcid {arguments.orcid}: write it as 0000-0002-1825-0097")
    if (orcid or arguments.affiliation) and not arguments.agent:
        raise InputError("--orcid and --affiliation need --agent")
    if not arguments.limit >= 0:
        raise InputError(f"--limit {arguments.limit:g}: must be bytes, at least 0")
    run = named_run(arguments.run)
    target = Path(arguments.out or f"{run.absolute().name}.crate.zip")
    with output_file.naming_errors(target):
        count = export(
            run,
            target,
            agent=Agent(arguments.agent, orcid, arguments.affiliation) if arguments.agent else None,
            license=arguments.license,
            title=arguments.title,
            limit=arguments.limit,
            personal=arguments.personal,
            program=Path(arguments.program) if arguments.program else None,
        )
    print(f"{target}: an RO-Crate, files {count}")
    return 0
