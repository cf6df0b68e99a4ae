"""`mpips bench recovery`: time from the death of a worker, or of the scheduler, until the next pass begins."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench.failures import _passes
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.launch import mpi_launcher
from mpips.rundir.folder import JsonLinesWriter, RunFolder
from mpips.rundir.progress import Column

DESCRIPTION = """\
Kill a worker, and later the scheduler, of a run that trains, and measure when the next pass begins. A spare takes the
place of each. Open MPI 5 is required.

  mpips bench recovery                          after 5 and after 200 passes, on the project's own data
  mpips bench recovery --train news20b.train.svm.xz --passes 5,50,400 --repeat 10

One run of each round has both deaths, at random instants, the second 20 passes after the first. After the death of a
worker, the next pass has begun when its replacement has its examples and begins it; after that of the scheduler, when a
worker begins a pass of its successor's. A pass that was under way when the scheduler died is completed first.
"""
APART, MORE = 20, 20
"""Passes from the death of the worker to that of the scheduler, and from this one to the end."""
WITHIN = 0.2
"""Maximum seconds from the end of a pass to the kill."""
TAIL = 4096
"""Bytes at the end of a file that are read for its last lines."""
AIMS = {"worker": 0.5, "scheduler": 0.2}
"""Seconds in which the next pass should have begun."""


@dataclass
class Death:
    """A rank that was killed; times in seconds."""

    role: str
    after: int
    """The number of passes before it."""
    rank: int = -1
    at: float = 0.0
    """Wall."""
    noticed: float | None = None
    """From the death until a rank has noticed it."""
    resumed: float | None = None
    """From the death until the next pass begins; None if the run ended before."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _runs.job_parser("recovery", DESCRIPTION)
    least = _runs.at_least
    made.add_argument("--train", action="append", metavar="FILE", help="training data; repeatable")
    made.add_argument("--servers", type=least(2), default=2, metavar="S", help="default 2")
    made.add_argument("--workers", type=least(1), default=2, metavar="W", help="default 2")
    made.add_argument(
        "--passes", type=_runs.listed(least(1)), default=[5, 200], metavar="N,...",
        help="numbers of passes after which the worker is killed; default 5,200",
    )  # fmt: skip
    made.add_argument("--repeat", type=least(1), default=3, metavar="N", help="rounds; default 3")
    made.add_argument(
        "--seed", type=least(0), default=0, metavar="S", help="seed of the random choices; default 0"
    )
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a run did not continue after a death."""
    options = parser().parse_args(arguments)
    if not survives(options.launcher):
        raise InputError("this MPI ends all ranks when one dies; Open MPI 5 with ULFM is required")
    train = _runs.absolute(options.train or [str(_runs.job_file().parent / "data" / "flights.train.tsv.xz")])
    settings = [
        f"data.train={json.dumps(train)}", f"layout.servers={options.servers}", f"layout.workers={options.workers}",
        "layout.spares=2", "ring.replicas=1", "consistency.tau=0", "_passes.epsilon=1e-300", "_passes.newton=false",
        *options.set,
    ]  # fmt: skip
    conditions = _runs.conditions()
    deaths: list[Death] = []
    with _runs.folders(options.keep) as folder:
        job = folder / "passes.toml"
        job.write_text('[job]\nprogram = "mpips.bench.failures._passes"\n')
        # Wrong options are reported before any run.
        load(job, settings)
        for number in range(options.repeat):
            for after in options.passes:
                rng = random.Random(f"recovery/{options.seed}/{number}/{after}")
                killer = Killer([Death("worker", after), Death("scheduler", after + APART)], rng)
                own = [*settings, f"_passes.passes={after + APART + MORE}"]
                run = _runs.run(job, folder / f"run-{after}-{number}", own, options.launcher, watch=killer)
                measure(killer.deaths, run.result["recoveries"], begins(run.folder))
                deaths += killer.deaths
                _runs.note(
                    f"round {number + 1} of {options.repeat}, after {after} passes: " + line(killer.deaths)
                )
    report: dict[str, Any] = {
        "benchmark": "recovery",
        "conditions": conditions,
        "train": train,
        "settings": settings,
        "deaths": [asdict(each) for each in deaths],
        "table": summary(deaths),
    }
    print(_runs.described(conditions))
    print(_runs.table(COLUMNS, report["table"]))
    _runs.write_report(options.json, report)
    return 1 if any(each.resumed is None for each in deaths) else 0


def survives(launcher: str) -> bool:
    """Return whether a run of this MPI continues when ranks die."""
    return mpi_launcher.find_starter(launcher).mpi.ulfm


class Killer:
    """Kills ranks of a run while it is watched."""

    def __init__(self, deaths: Sequence[Death], rng: random.Random) -> None:
        self.deaths, self._left, self._rng = list(deaths), list(deaths), rng

    def __call__(self, folder: Path) -> None:
        """Kill the next rank if its pass has come."""
        if not self._left or passes(folder) < self._left[0].after:
            return
        death = self._left.pop(0)
        ranks = [each for each in _runs.ranks_of(folder) if each["role"] == death.role]
        victim = self._rng.choice(ranks)
        time.sleep(self._rng.uniform(0.0, WITHIN))
        death.rank, death.at = victim["rank"], time.time()
        with suppress(ProcessLookupError):
            os.kill(victim["pid"], signal.SIGKILL)
        with JsonLinesWriter(RunFolder(folder).fault_times) as lines:
            lines.append({"rank": death.rank, "signal": "SIGKILL", "wall": death.at})


def passes(folder: Path) -> int:
    """Return the number of passes that a run has recorded."""
    with suppress(OSError), RunFolder(folder).metrics.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        for raw in reversed(file.read().splitlines()):
            with suppress(ValueError):
                recorded = json.loads(raw)
                if recorded.get("event") == "pass":
                    return int(recorded["pass"])
    return 0


def begins(folder: Path) -> list[tuple[float, int, int]]:
    """Return when each worker began a pass, from the ranks' logs: (wall, rank, the scheduler then), in order."""
    found = []
    for path in RunFolder(folder).logs.glob("rank-*.jsonl"):
        for event in map(json.loads, path.read_text().splitlines()):
            if event["event"] == _passes.BEGINS:
                found.append((float(event["wall"]), int(event["rank"]), int(event["leader"])))
    return sorted(found)


def measure(
    deaths: Iterable[Death], recoveries: Iterable[dict[str, Any]], begun: Sequence[tuple[float, int, int]]
) -> None:
    """Determine when each death was noticed, and when the next pass began; arguments as `begins` and the result."""
    noticed = {each["rank"]: each["noticed_after"] for each in recoveries}
    for death in deaths:
        before = {rank for wall, rank, _ in begun if wall < death.at}
        later = (
            wall - death.at
            for wall, rank, leader in begun
            if wall > death.at and (leader != death.rank if death.role == "scheduler" else rank not in before)
        )
        death.noticed, death.resumed = noticed.get(death.rank), next(later, None)


def line(deaths: Iterable[Death]) -> str:
    """Format the deaths of a run."""
    shown = (
        (each.role, "no next pass" if each.resumed is None else f"{each.resumed:.3f} s") for each in deaths
    )
    return ", ".join(f"{role} {text}" for role, text in shown)


def summary(deaths: Sequence[Death]) -> list[dict[str, Any]]:
    """Return the times of each role and number of passes."""
    rows = []
    for role, after in sorted({(each.role, each.after) for each in deaths}, reverse=True):
        mine = [each for each in deaths if (each.role, each.after) == (role, after)]
        row: dict[str, Any] = {"killed": role, "after": after, "times": len(mine), "aim": AIMS[role]}
        for figure in ("noticed", "resumed"):
            values = [value for each in mine if (value := getattr(each, figure)) is not None]
            if values:
                row[f"{figure}_p50"], row[f"{figure}_p95"] = np.percentile(values, (50, 95)).tolist()
                row[f"{figure}_max"] = max(values)
        rows.append(row)
    return rows


_SECONDS = "{:.3f}".format
COLUMNS = (
    Column("killed", "killed", 9),
    Column("after", "passes", 6),
    Column("times", "times", 5),
    Column("noticed_p50", "noticed p50 (s)", 8, _SECONDS),
    Column("resumed_p50", "next pass p50 (s)", 8, _SECONDS),
    Column("resumed_p95", "p95", 6, _SECONDS),
    Column("resumed_max", "max", 6, _SECONDS),
    Column("aim", "aim", 5, "< {:g}".format),
)
