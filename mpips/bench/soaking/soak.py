"""`mpips bench soak`: faults every few seconds for hours; no update is lost, and nothing grows."""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mpips.bench import _runs
from mpips.bench.soaking._leg import Leg, LegRun
from mpips.bench.soaking._samples import Held, growth, slope
from mpips.errors import InputError
from mpips.launch import mpi_launcher
from mpips.rundir.progress import Column

DESCRIPTION = """\
Run for hours while a fault happens every few seconds: ranks are killed, hung, stopped for a moment and slowed down,
servers and workers join and leave, checkpoints are written, the scheduler dies. Workers push all the time, and all
values on the servers are compared with the pushes every few seconds. The run is started several times, in legs: one
ends by an order to stop, the next one by the death of all ranks at once, and each leg continues from the last
checkpoint. In every second leg 1 % of all messages are lost, and 1 % doubled.

The memory of each rank, its open files and its files in /dev/shm are sampled, and must not grow. Judged is the
second half of each leg, without the first two minutes in each role and what they have added: the longer the legs, the
smaller the growth that is found. Memory is what is resident of the process's own pages: those of files are read once,
and shared.

  mpips bench soak --minutes 5                  try it
  mpips bench soak --hours 2 --json soak.json   2 hours; all samples are in the file

Needs Open MPI 5, whose runs continue when a rank dies, and all ranks on this machine. Exit code 1: an update was lost
or applied twice, a read was stale, a leg did not begin or end, a rank was excluded without a fault, or something grows.
"""
STEEPEST = 1.0
"""Growth of a rank's memory that is allowed, MB per hour."""
NOISE = 0.3
"""Growth within the samples of a rank that is allowed, MB: allocators return memory late."""
WARM_UP = 24
"""Samples of a rank in a role that are not judged, the first: two minutes. What was before is not compared."""
FEWEST = 60
"""Samples that are needed to judge growth: five minutes."""
MB, HOUR = 1e6, 3600.0
SIGNED = "{:+.2f}".format
ROLE_COLUMNS = (
    Column("role", "role", 8),
    Column("count", "ranks", 5),
    Column("hours", "hours", 6, "{:.2f}".format),
    Column("rss", "RSS MB", 7, "{:.1f}".format),
    Column("mb", "own MB", 7, "{:.1f}".format),
    Column("slope", "MB/h", 7, SIGNED),
    Column("growth", "MB", 7, SIGNED),
    Column("files", "files", 5, "{:+.0f}".format),
    Column("shared", "/dev/shm", 8, "{:+.0f}".format),
)
FAULT_COLUMNS = (Column("fault", "fault", 16), Column("times", "times", 6))
ENDINGS = ("stop", "kill")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _runs.job_parser("soak", DESCRIPTION)
    positive = _runs.at_least(0.01, float)
    made.add_argument("--hours", type=positive, metavar="H", help="how long")
    made.add_argument("--minutes", type=positive, metavar="M", help="how long; default 5")
    made.add_argument("--leg", type=positive, default=40.0, metavar="M", help="minutes of a leg; default 40")
    made.add_argument("--seed", type=_runs.at_least(0), default=0, metavar="S", help="default 0")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run it; return 1 if something was wrong."""
    options = parser().parse_args(arguments)
    if not mpi_launcher.find_starter(options.launcher).mpi.ulfm:
        raise InputError("soak: this MPI ends all ranks when one dies; Open MPI 5 with ULFM is required")
    seconds = (options.hours or 0.0) * HOUR + (options.minutes or 0.0) * 60.0 or 300.0
    conditions = _runs.conditions()
    print(_runs.described(conditions), flush=True)
    rng, began, legs = random.Random(f"soak/{options.seed}"), time.monotonic(), list[Leg]()
    with _runs.folders(options.keep) as folder:
        job = folder / "soaking.toml"
        job.write_text('[job]\nprogram = "mpips.bench.soaking._soaking"\n')
        while (left := began + seconds - time.monotonic()) > 0:
            last = left <= 1.5 * 60.0 * options.leg
            run = LegRun(job, folder / "run", len(legs), rng, options.set, options.launcher)
            ends = "complete" if last else ENDINGS[len(legs) % len(ENDINGS)]
            legs.append(run.run(left if last else 60.0 * options.leg, ends, _runs.note))
            print(leg_text(legs[-1]), flush=True)
            if last or legs[-1].wrong:
                break
    rows = [judged(held, middle(leg.held)) for leg in legs for held in leg.held]
    wrong = [f"leg {leg.number}: {each}" for leg in legs for each in leg.wrong] + grown(rows)
    report = {
        "benchmark": "soak",
        "conditions": conditions,
        "seed": options.seed,
        "seconds": time.monotonic() - began,
        "legs": [asdict(leg) for leg in legs],
        "growth": rows,
        "wrong": wrong,
    }
    print(text(legs, rows, wrong, report["seconds"]))
    _runs.write_report(options.json, report)
    return 1 if wrong else 0


def middle(held: Sequence[Held]) -> float:
    """Return the time of the middle of a leg's samples."""
    times = [time for each in held for time in each.times]
    return (min(times) + max(times)) / 2 if times else 0.0


def judged(held: Held, begin: float) -> dict[str, Any]:
    """Return the growth of a rank from a time on, while no role is new to it, unless there are too few samples."""
    runs = held.warm(WARM_UP, begin)
    judged = sorted(at for run in runs for at in run)
    row: dict[str, Any] = {"rank": held.rank, "samples": len(judged)}
    if len(judged) < FEWEST:
        return row
    (role, _), *_ = Counter(held.roles[at] for at in judged).most_common(1)
    last = judged[-1]
    return row | {
        "role": role,
        "hours": (held.times[last] - held.times[judged[0]]) / HOUR,
        "rss": held.rss[last] / MB,
        "mb": held.anonymous[last] / MB,
        "slope": HOUR
        * slope([([held.times[at] for at in run], of(held.anonymous, run, MB)) for run in runs]),
        "growth": max(growth(of(held.anonymous, run, MB)) for run in runs),
        "files": max(growth(of(held.files, run)) for run in runs),
        "shared": max(growth(of(held.shared, run)) for run in runs),
    }


def of(values: Sequence[int], run: Sequence[int], unit: float = 1.0) -> list[float]:
    """Return the values of a run of samples, in a unit."""
    return [values[at] / unit for at in run]


def grown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Describe what grows: a line for each rank and role."""
    found = []
    for row in rows:
        if "slope" not in row:
            continue
        name = f"rank {row['rank']} ({row['role']})"
        if row["slope"] > STEEPEST and row["growth"] > NOISE:
            found.append(f"{name}: memory grows by {row['slope']:.1f} MB/h ({row['growth']:+.2f} MB)")
        if row["files"] >= 1:
            found.append(f"{name}: {row['files']:+.0f} open files")
        if row["shared"] >= 1:
            found.append(f"{name}: {row['shared']:+.0f} files in /dev/shm")
    return found


def leg_text(leg: Leg) -> str:
    """Describe a leg in one line, and what was wrong in more."""
    faults = sum(leg.faults.values())
    told = (
        f"leg {leg.number}: {leg.seconds:.0f} s, faults {faults}, ranks lost {leg.recovered}, checks {leg.checks}, "
        f"updates {leg.updates:,}, lost {leg.lost}, doubled {leg.doubled}, stale {leg.stale}; ended by {leg.ended}"
    )
    return "\n".join([told, *(f"  WRONG: {each}" for each in leg.wrong)])


def text(legs: Sequence[Leg], rows: Sequence[dict[str, Any]], wrong: Sequence[str], seconds: float) -> str:
    """Format the outcome."""
    faults: Counter[str] = Counter()
    for leg in legs:
        faults.update(leg.faults)
    counted = [{"fault": name, "times": count} for name, count in sorted(faults.items())]
    of_roles = []
    for role in sorted({row["role"] for row in rows if "role" in row}):
        mine = [row for row in rows if row.get("role") == role]
        of_roles.append(
            {
                "role": role,
                "count": len(mine),
                "hours": sum(row["hours"] for row in mine),
                **{
                    name: max(row[name] for row in mine)
                    for name in ("rss", "mb", "slope", "growth", "files", "shared")
                },
            }
        )
    lines = [
        "",
        f"{seconds / 60:.0f} minutes, {sum(faults.values())} faults in {len(legs)} legs",
        _runs.table(FAULT_COLUMNS, counted),
        f"checks of all values: {sum(leg.checks for leg in legs)}; updates: {legs[-1].updates if legs else 0:,}; "
        f"lost {sum(leg.lost for leg in legs)}, doubled {sum(leg.doubled for leg in legs)}, "
        f"stale {sum(leg.stale for leg in legs)}",
        "",
        "largest growth of any rank in a role, in the second half of a leg",
        _runs.table(ROLE_COLUMNS, of_roles) if of_roles else "too short to judge",
        *(f"WRONG: {each}" for each in wrong),
        "nothing was wrong" if not wrong else f"{len(wrong)} violations",
    ]
    return "\n".join(lines)
