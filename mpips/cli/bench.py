"""`mpips bench`: measure, beside the competition, on this machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path

from mpips.errors import InputError
from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Run a benchmark; each says what it compares and has its own --help.

  mpips bench                                   list them
  mpips bench sparse_lr                         training time beside LIBLINEAR's
  mpips bench delay                             waiting and time for several delays, with a straggler
  mpips bench faults                            updates lost or doubled while ranks die, hang, come and go
  mpips bench replication                       what copies of all keys cost
  mpips bench scale                             what each cost becomes as ranks grow in number
  mpips bench overload                          slow servers, a flood and a crowd, and how soon they are over
  mpips bench elastic                           requests while a server joins, and another leaves
  mpips bench restart                           runs that are killed as a whole, and resumed elsewhere
  mpips bench pushpull                          pushes and pulls beside bare MPI, which is their limit
  mpips bench overlap                           what a push or a pull costs a worker that computes
  mpips bench record                            what it costs to record a run, and whether it can be done again
  mpips bench idle                              what ranks at rest cost, how fast they wake, and crowds
  mpips bench filters                           bytes of training for combinations of filters
  mpips bench coding                            what each filter costs, and what it saves
  mpips bench lda                               topics of documents, beside tomotopy
  mpips bench sketch                            inserts a second into a sketch, and how far off it is
  mpips bench trace                             what it costs that a run is traced
  mpips bench paper                             the paper's evaluation, again: docs/reproduction.md
  mpips bench index                             how fast a server's key index takes and finds keys
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "bench", "measure speed on this machine", DESCRIPTION, command, passes_on=True
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one")


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
        print(DESCRIPTION + "\nbenchmarks: " + ", ".join(found))
        return 0
    if arguments.name not in found:
        raise InputError(f"there is no benchmark {arguments.name!r}; valid: {', '.join(found)}")
    return int(importlib.import_module(found[arguments.name]).main(arguments.rest) or 0)
