"""`mpips bench`: run the benchmarks on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
from pathlib import Path

from mpips.errors import InputError
from mpips.process.argument_parser import add_command
from mpips.process.terminal.help_text import fitted

DESCRIPTION = """\
Run a benchmark. Each has its own --help.

  mpips bench                                   list the benchmarks
  mpips bench sparse_lr                         training time compared with LIBLINEAR
  mpips bench ftrl                              speed of online learning, reading included
  mpips bench fm                                factorization machines, compared with one process
  mpips bench memory                            a worker's memory compared with its data
  mpips bench delay                             waiting and training time for several delays, with a straggler
  mpips bench faults                            updates lost or applied twice while ranks die, hang, join and leave
  mpips bench worlds                            all orders of events of a few ranks, with up to two faults
  mpips bench soak                              hours of faults: no update is lost, and no rank's memory grows
  mpips bench recovery                          time from a death until the next pass of a training begins
  mpips bench replication                       cost of copies of all keys
  mpips bench scale                             each cost as a function of the number of ranks
  mpips bench overload                          recovery from slow servers and floods, and more ranks than cores
  mpips bench elastic                           latency of requests while a server joins and another leaves
  mpips bench restart                           runs that are killed and resumed on another layout
  mpips bench pushpull                          pushes and pulls compared with plain MPI, the upper limit
  mpips bench overlap                           cost of a push or a pull for a worker that computes
  mpips bench record                            cost of recording a run, and whether it can be reproduced
  mpips bench checkpoint                        bytes and time of deltas, compared with whole checkpoints
  mpips bench idle                              cost of idle ranks, their wake-up latency, and more ranks than cores
  mpips bench filters                           bytes of training for combinations of filters
  mpips bench coding                            cost and savings of each filter
  mpips bench lda                               topics of documents, compared with tomotopy
  mpips bench sketch                            inserts per second into a sketch, and its errors
  mpips bench ctr                               clicks per second with PyTorch, beside PyTorch alone
  mpips bench tables                            speed of reading CSV and Parquet
  mpips bench factorization                     matrix factorization, compared with a single process
  mpips bench trace                             cost of tracing a run
  mpips bench paper                             the paper's evaluation: docs/reproduction.md
  mpips bench index                             speed of a server's key index
  mpips bench store                             a table larger than memory, compared with one in memory
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "bench", "measure speed on this machine", DESCRIPTION, command, passes_on=True
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the benchmark to run")


def modules() -> dict[str, str]:
    """Find the benchmarks, without importing them: the dotted module of each name."""
    package = importlib.util.find_spec("mpips.bench")
    found = {}
    for place in (package.submodule_search_locations or []) if package else []:
        for file in (*Path(place).glob("[!_]*.py"), *Path(place).glob("[!_]*/[!_]*.py")):
            found[file.stem] = ".".join(("mpips.bench", *file.relative_to(place).with_suffix("").parts))
    return dict(sorted(found.items()))


def command(arguments: argparse.Namespace) -> int:
    """Run one benchmark with the arguments that follow its name, or list them all."""
    found = modules()
    if arguments.name is None:
        if unknown := [each for each in arguments.rest if each not in ("-h", "--help")]:
            raise InputError(f"bench: unrecognized arguments: {' '.join(unknown)}")
        listed = f"{DESCRIPTION}\nbenchmarks: {', '.join(found)}"
        print(*fitted(listed, shutil.get_terminal_size((120, 24)).columns), sep="\n")
        return 0
    if arguments.name not in found:
        raise InputError(f"there is no benchmark {arguments.name!r}; valid: {', '.join(found)}")
    return int(importlib.import_module(found[arguments.name]).main(arguments.rest) or 0)
