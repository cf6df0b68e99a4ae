"""The lines in which the ranks of `mpips validate` report: they may have no common file system.

Each rank writes a line when it begins a check, when it waits for the others, and when it knows its facts. So the lines
of ranks that hang, or have died, tell where they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mpips.files.json_schema import parse_json, schema_error
from mpips.process.first_rank import RANK_VARIABLES

PREFIX = "mpips-check "
WAITS = "waits for the other ranks"
_LINE = {"rank": int, "host": str, "check": str, "at?": str, "facts?": dict}


def line(rank: int, host: str, check: str, **more: Any) -> str:
    """Return the line of a rank: about what it does (`at`), or of its `facts`."""
    return f"{PREFIX}{json.dumps({'rank': rank, 'host': host, 'check': check, **more})}"


def rank_before_mpi(environ: Mapping[str, str] | None = None) -> int:
    """Return the rank that the launcher gives this process; -1 if it does not say."""
    environ = os.environ if environ is None else environ
    for name in (*RANK_VARIABLES, "SLURM_PROCID"):
        if (text := environ.get(name, "")).isdecimal():
            return int(text)
    return -1


@dataclass
class Report:
    """What one rank has reported."""

    host: str
    check: str = ""
    """The check that it began last."""
    at: str = ""
    """What it did there last; empty once it has reported the facts."""
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By check."""


def read(output: str) -> dict[int, Report]:
    """Read the lines of all ranks, in the order in which they arrived; other output is skipped.

    A launcher may not tell processes their ranks before MPI does: their first lines have rank -1, which is kept as long
    as no rank of that host has reported.

    >>> found = read("noise" + line(0, "a", "locks", at="begins") + chr(10) + line(1, "b", "locks", facts={"x": 1}))
    >>> found[0].at, found[1].facts
    ('begins', {'locks': {'x': 1}})
    """
    found: dict[int, Report] = {}
    for text in output.splitlines():
        if PREFIX not in text:
            continue
        with suppress(ValueError, RecursionError):
            said = parse_json(text.split(PREFIX, 1)[1])
            if schema_error(said, _LINE):
                continue
            report = found.setdefault(said["rank"], Report(said["host"]))
            report.host, report.check, report.at = said["host"], said["check"], said.get("at", "")
            if "facts" in said:
                report.facts[said["check"]] = said["facts"]
    numbered = {each.host for rank, each in found.items() if rank >= 0}
    if -1 in found and found[-1].host in numbered:
        del found[-1]
    return dict(sorted(found.items()))


def where(reports: Mapping[int, Report], ranks: int) -> str:
    """Return which ranks did not end, and in which check: those for which the others wait, if any does.

    >>> where(read(line(0, "a", "locks", at=WAITS) + chr(10) + line(1, "b", "locks", at="begins")), 2)
    'rank 1 on b in the check "locks"'
    >>> where({}, 3)
    'ranks 0, 1, 2 have not started'
    >>> where(read(line(-1, "a", "MPI", at="begins")), 1)
    'rank 0 has not started; processes on a have, in the check "MPI"'
    """
    absent = [rank for rank in range(ranks) if rank not in reports]
    if absent:
        unknown = reports.get(-1)
        more = f'; processes on {unknown.host} have, in the check "{unknown.check}"' if unknown else ""
        return f"{_ranks(absent)} {'has' if len(absent) == 1 else 'have'} not started{more}"
    open_ = {rank: each for rank, each in reports.items() if each.at and rank >= 0}
    held = {rank: each for rank, each in open_.items() if each.at != WAITS} or open_
    shown = [f'rank {rank} on {each.host} in the check "{each.check}"' for rank, each in held.items()]
    more = f" and {len(shown) - 3} more ranks" if len(shown) > 3 else ""
    return ", ".join(shown[:3]) + more or "all ranks have reported; their launcher has not ended"


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:4])) + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
    return f"rank{'' if len(ranks) == 1 else 's'} {shown}"
