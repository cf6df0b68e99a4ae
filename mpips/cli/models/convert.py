"""`mpips convert`: convert data to another format."""

from __future__ import annotations

import argparse

from mpips.process.argument_parser import add_command
from mpips.process.printable import one_line
from mpips.provenance import output_file

DESCRIPTION = """\
Convert data between the formats that mpips reads, from svmlight, categories, CSV, Parquet or HDF5 to
svmlight or HDF5. The name of OUT gives the format (.svm, also .svm.gz, .svm.xz, .svm.bz2, .svm.zst; .h5).

  mpips convert train.svm.xz train.h5           parse once, load fast afterwards
  mpips convert part-*.tsv.gz clicks.h5 --set 'crosses=[["site", "device"]]'     hash columns once
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "convert", "convert data between formats", DESCRIPTION, command)
    parser.add_argument("source", nargs="+", metavar="IN", help="the files to read, in this order")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of [data], as in a job file; repeatable",
    )
    output_file.add_force(parser)


def command(arguments: argparse.Namespace) -> int:
    """Convert the files."""
    import sys

    from mpips import typed
    from mpips.config.overrides import override_value
    from mpips.data.convert import convert
    from mpips.data.spec import DataSpec
    from mpips.errors import JobError

    # The rest of the rule is in `convert`, which other programs call too.
    output_file.check(arguments.target, arguments.source, force=True)
    settings = (setting.partition("=") for setting in arguments.set)
    try:
        spec = typed.build(
            DataSpec, {key.strip(): override_value(value) for key, _, value in settings}, ("data",)
        )
    except typed.InvalidValue as error:
        raise JobError(f"--set {typed.dotted(error.path[1:])}: {error}") from error
    tally = convert(arguments.source, arguments.target, spec, arguments.force)
    print(f"{arguments.target}: {tally.examples} examples")
    for line, _, _ in tally.remarks():
        print(f"mpips: {one_line(line)}", file=sys.stderr)
    return 0
