"""`mpips bench worlds`: all orders of events of a few ranks, by the real code, with up to two faults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mpips.bench import _runs
from mpips.bench.worlds._search import Found, sample, search, shortest
from mpips.bench.worlds._settings import SPEC, WORLDS, world
from mpips.bench.worlds._world import World
from mpips.process.argument_parser import program_parser
from mpips.rundir.progress import Column, seconds

DESCRIPTION = """\
Run the real code of two servers, a worker, a spare and the scheduler in one process, event by event, in all orders of
events: messages arrive, are lost, ranks are killed, or pause. In each order every push must be applied once and be
there if it was acknowledged, no pull may be stale, the views must be a behaviour of the specification, so that a shard
has one primary in an epoch, and nothing may hang.

For each world, all orders are tried with each of --kinds of faults, or as many as --seconds allow; then random orders
with --faults faults of all kinds, for as long. Of orders that only differ by events that commute, not all are tried.
Worlds:

  push     a push, and a pull that depends on it
  pushes   two pushes at the same time, a pull, another push, another pull
  rounds   two rounds of aggregated pushes, which are answered ahead of their copies
  join     a push and a pull while the spare becomes a server, and gets shards of the others

  mpips bench worlds                                                 some minutes
  mpips bench worlds --worlds push --in-order --kinds kill --seconds 3600
"""
KINDS = ("kill", "pause", "lose")
NONE = "none"
MOST_STATES = 300_000
"""States that are searched for a shorter order of events that violates something."""
COLUMNS = (
    Column("world", "world", 6),
    Column("faults", "faults", 12),
    Column("how", "orders", 10),
    Column("states", "states", 10, "{:,}".format),
    Column("transitions", "transitions", 11, "{:,}".format),
    Column("ends", "followed", 10, "{:,}".format),
    Column("orders", "contained", 9, "{:.1e}".format),
    Column("executed", "executed", 8, "{:,}".format),
    Column("seconds", "time", 7, seconds),
    Column("violations", "violations", 10),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = program_parser("mpips bench worlds", DESCRIPTION)
    names = _runs.listed(_runs.one_of(WORLDS))
    made.add_argument(
        "--worlds",
        type=names,
        default=list(WORLDS),
        metavar="NAMES",
        help=f"of {', '.join(WORLDS)}; default all",
    )
    made.add_argument(
        "--seconds",
        type=_runs.at_least(0.1, float),
        default=20.0,
        metavar="S",
        help="for each row; default 20",
    )
    made.add_argument(
        "--kinds",
        type=_runs.listed(_kinds),
        default=[NONE, *KINDS],
        metavar="KINDS",
        help=f"faults of all orders: {NONE}, {', '.join(KINDS)}, or several joined by + (as many, each of any of "
        "these kinds); default none and one of each",
    )
    made.add_argument(
        "--victims",
        type=_runs.listed(_runs.one_of(map(str, range(SPEC.size())))),
        default=[],
        metavar="RANKS",
        help="that are killed or pause: 0 the scheduler, 1 and 2 servers, 3 the worker, 4 the spare; default any",
    )
    made.add_argument(
        "--in-order",
        action="store_true",
        help="messages of one rank to another arrive as they were sent; default in any order",
    )
    made.add_argument(
        "--whole", action="store_true", help="also try events that commute with all others in each order"
    )
    made.add_argument(
        "--faults", type=_runs.at_least(0), default=2, metavar="N", help="of random orders; default 2"
    )
    made.add_argument(
        "--seed", type=_runs.at_least(0), default=0, metavar="S", help="of random orders; default 0"
    )
    _runs.add_json(made)
    return made


def _kinds(text: str) -> str:
    """Read the kinds of the faults of one search."""
    for kind in text.split("+") if text != NONE else ():
        _runs.one_of(KINDS)(kind)
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Search the worlds; return 1 if anything is violated."""
    options = parser().parse_args(argv)
    conditions = _runs.conditions()
    print(_runs.described(conditions))
    victims = [int(rank) for rank in options.victims]
    rows: list[dict[str, Any]] = []
    for name in options.worlds:
        for kinds in options.kinds:
            each = () if kinds == NONE else tuple(kinds.split("+"))
            made = world(name, len(each), each, options.in_order, victims)
            found = search(made, seconds=options.seconds, reduces=not options.whole)
            rows.append(row(name, kinds, "all" if found.complete else "some", found))
            tell(made, name, found)
        made = world(name, options.faults, KINDS, options.in_order, victims)
        found = sample(made, options.seed, seconds=options.seconds)
        rows.append(row(name, f"{options.faults} of all", "all" if found.complete else "random", found))
        tell(made, name, found)
    print(text(rows))
    _runs.write_report(options.json, {"benchmark": "worlds", "conditions": conditions, "rows": rows})
    return 1 if any(each["violations"] for each in rows) else 0


def row(name: str, faults: str, how: str, found: Found) -> dict[str, Any]:
    """Return the figures of one search."""
    return {
        "world": name, "faults": faults, "how": how, "states": found.states, "transitions": found.transitions,
        "ends": found.ends, "orders": float(max(found.orders, found.ends)), "executed": found.executed,
        "seconds": found.seconds, "violations": len(found.violations),
    }  # fmt: skip


def tell(made: World, name: str, found: Found) -> None:
    """Print the order of events that violates something, as short as can be found."""
    for violation in found.violations:
        steps = shortest(made, len(violation.steps), MOST_STATES) or violation.steps
        print(f"{name}: {violation.what}, after {violation.after:,} tries; by these {len(steps)} events:")
        for step in steps:
            print(f"    {made.text(step)!r},")


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Format the figures; `contained` counts the orders that the states and transitions stand for."""
    followed, contained = sum(each["ends"] for each in rows), sum(each["orders"] for each in rows)
    bad = sum(each["violations"] for each in rows)
    return "\n".join(
        [
            "",
            _runs.table(COLUMNS, rows),
            f"orders of events: {followed:,} followed, {contained:.1e} contained at least; violations: {bad}",
        ]
    )
