"""After how many orders of events small worlds find the faults that are put into the protocol on purpose.

    PYTHONPATH=tests .venv/bin/python -m bench.worlds.mutations [--seconds S] [NAME ...]

follows random orders in one world after the other, for so many seconds in each, until something is violated.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from history.mutations import MUTATIONS, applied

from mpips.bench.worlds._search import sample
from mpips.bench.worlds._settings import world

PLACES = (
    ("pushes", 1, ("kill",)),
    ("push", 2, ("kill", "pause")),
    ("rounds", 1, ("kill",)),
    ("join", 1, ("kill",)),
    ("push", 1, ("lose",)),
    ("join", 2, ("kill", "pause")),
)
"""The worlds, with the number and the kinds of faults."""


def find(mutation: str, seconds: float) -> tuple[int, str, str]:
    """Return how many orders were followed, and in which world what was violated; "" if nothing was."""
    orders = 0
    for name, faults, kinds in PLACES:
        with applied(MUTATIONS[mutation]):
            found = sample(world(name, faults, kinds), 1, seconds=seconds)
        orders += found.ends
        if found.violations:
            return orders, f"{name}, {' and '.join(kinds)}", found.violations[0].what
    return orders, "", ""


def main(arguments: Sequence[str]) -> None:
    """Print one line for each of the named mutations, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    for name in options.names or MUTATIONS:
        orders, where, what = find(name, options.seconds)
        after = f"{orders:,}" if where else f"not in {orders:,}"
        print(f"| {name} | {after} | {where} | {what} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
