"""`mpips report`: write an HTML page about one run, or a comparison of several."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from mpips.process.argument_parser import add_command
from mpips.process.printable import one_line
from mpips.provenance import output_file

DESCRIPTION = """\
Write an HTML page about one run, or a comparison of several: convergence, time breakdown, traffic, failures,
provenance. The page is a single file and needs no network. A run that has not ended can be reported too. For a traced
run (--set trace.on=true) the page shows the time breakdown of each rank, and what it waited for.

  mpips report latest                           writes RUN/report.html
  mpips report runs/a runs/b runs/c             compares them, in ./report.html
  mpips report runs/a runs/b -o /tmp/ab.html
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "report", "write a page about one run, or compare several", DESCRIPTION, command
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or latest")
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="the page to write; default RUN/report.html, or ./report.html for several runs",
    )
    output_file.add_force(parser)


def command(arguments: argparse.Namespace) -> int:
    """Write the page, and print its path."""
    from mpips.provenance.run_json import altered_outputs
    from mpips.report.report import HEAD, page
    from mpips.report.run_data import check, read, with_trace
    from mpips.rundir.folder import write_text
    from mpips.rundir.order_files import named_run

    named = [named_run(each) for each in arguments.runs]
    runs = [with_trace(check(read(path))) for path in named]
    altered = (f"warning: {each}" for run in runs for each in altered_outputs(run.folder))
    for each in (*filter(None, (run.warning for run in runs)), *altered):
        print(f"mpips: {one_line(each)}", file=sys.stderr)
    out = Path(arguments.out or (runs[0].folder.report if len(runs) == 1 else "report.html"))
    output_file.check(out, force=arguments.force, own=re.escape(HEAD.encode()))
    with output_file.naming_errors(out):
        write_text(out, page(runs))
    print(out)
    return 0
