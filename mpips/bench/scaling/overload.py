"""`mpips bench overload`: recovery of a run from overload, and the cost of more ranks than cores."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import at_least, note
from mpips.bench.scaling import _continuous, scale
from mpips.bench.scaling._recovery_time import rates, recovered
from mpips.rundir.progress import Column, seconds, significant

DESCRIPTION = """\
Disturb real ranks, and measure the time of recovery. Workers push and pull continuously, while
  slow     all servers run for a fiftieth of the time, for 5 s,
  stopped  one server is stopped, for less than the patience after which ranks count as hung,
  flood    one worker pushes for 5 s, with a thousand unanswered pushes at any time.
After each, the rate of rounds must be 90 % of the earlier rate within 2 s; no push may be lost or sent twice.

Then oversubscription: the same work by many more ranks than cores, with 0 copies of all keys and with 1. The copies may
cost at most 1.5 times the time and 2.2 times the bytes, and no message may be sent twice.

  mpips bench overload                          2 servers, 4 workers; then 32 ranks
  mpips bench overload --ranks 0                without oversubscription
  mpips bench overload --train a9a.svm --ranks 64
"""

QUIET, PULSE, STOPPED = 4.0, 5.0, 0.6
"""Seconds before and after each disturbance, of the slow servers and of the flood, and of the stopped server."""
FACTOR, PERIOD = 50.0, 0.1
"""A slow server runs for 1 / FACTOR of each `PERIOD` (s)."""
WITHIN, TIME, BYTES = 2.0, 1.5, 2.2
"""Time limit for the recovery of the rate, s; limits on the cost of copies, relative to none."""

COLUMNS = (
    Column("what", "disturbed", 9),
    Column("lasted", "lasted", 6, seconds),
    Column("before", "rounds/s", 8, significant(3)),
    Column("meanwhile", "during", 9, significant(3)),
    Column("after", "after", 7, significant(3)),
    Column("back", "recovered in", 12, seconds),
)
OVERSUBSCRIBED_COLUMNS = (
    Column("program", "program", 8),
    Column("ranks", "ranks", 5),
    Column("time_ratio", "time, to k = 0", 14, significant(3)),
    Column("bytes_ratio", "bytes", 6, significant(3)),
    Column("again", "sent again", 10),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("overload", DESCRIPTION)
    parser.add_argument(
        "--servers", type=at_least(2), default=2, metavar="S", help="servers, at least 2; default 2"
    )
    parser.add_argument(
        "--workers", type=at_least(2), default=4, metavar="W", help="workers, at least 2; default 4"
    )
    parser.add_argument(
        "--ranks",
        type=at_least(0),
        default=32,
        metavar="N",
        help="ranks of the oversubscribed runs; default 32; 0: none",
    )
    parser.add_argument(
        "--train",
        action="append",
        metavar="FILE",
        help="training data of the oversubscribed runs; repeatable",
    )
    parser.add_argument(
        "--passes", type=at_least(1), default=10, help="passes of the oversubscribed runs; default 10"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a run does not recover in time, or a message was lost or sent twice."""
    options = parser().parse_args(arguments)
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        report: dict[str, Any] = {
            "benchmark": "overload", "conditions": conditions, "layout": [options.servers, options.workers],
            "pulses": [measure_pulses(options, replicas, folder) for replicas in (0, 1)],
            "oversubscribed": measure_oversubscribed(options, folder) if options.ranks else [],
        }  # fmt: skip
    report["problems"] = problems(report)
    print(text(report))
    _runs.write_report(options.json, report)
    return 1 if report["problems"] else 0


# --- pulses ----------------------------------------------------------------------------------------------


class Disturber:
    """Disturbs the servers of a run after its start; `spans` has the times by disturbance (wall, s)."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[float, float]] = {}

    def __call__(self, folder: Path) -> None:
        """Do all disturbances when they are due, which takes some seconds."""
        if self.spans:
            return
        servers = [each["pid"] for each in _runs.ranks_of(folder) if each["role"] == "server"]
        if servers and _runs.has_event(folder, "begun"):
            time.sleep(QUIET)
            self.spans["slow"] = run_slowed(servers, PULSE, PERIOD / FACTOR)
            time.sleep(QUIET)
            self.spans["stopped"] = run_slowed(servers[:1], STOPPED, 0.0, STOPPED)


def run_slowed(
    pids: Sequence[int], lasting: float, runs: float, period: float = PERIOD
) -> tuple[float, float]:
    """Make processes run for only `runs` seconds of each period; return begin and end (wall, s)."""
    begin = time.time()
    try:
        while time.time() < begin + lasting:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(period - runs)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            time.sleep(runs)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    return begin, time.time()


def measure_pulses(options: argparse.Namespace, replicas: int, folder: Path) -> dict[str, Any]:
    """Run the program and disturb it; return the effect of each disturbance."""
    note(f"slow servers, a stopped server, and a flood, k = {replicas}")
    job = folder / "unceasing.toml"
    job.write_text('[job]\nprogram = "mpips.bench.scaling._continuous"\n')
    flood = 3 * QUIET + PULSE + STOPPED
    settings = [
        f"layout.servers={options.servers}", f"layout.workers={options.workers}", f"ring.replicas={replicas}",
        f"_continuous.flood_begin={flood!r}", f"_continuous.flood_end={flood + PULSE!r}",
        f"_continuous.seconds={flood + PULSE + QUIET!r}",
        *options.set,
    ]  # fmt: skip
    disturber = Disturber()
    run = _runs.run(job, folder / f"pulses-{replicas}", settings, options.launcher, disturber)
    metrics, done = run.result["metrics"], np.load(run.folder / _continuous.DONE)
    begun = metrics["begun"]
    spans = disturber.spans | {"flood": (begun + flood, begun + flood + PULSE)}
    return {
        "replicas": replicas,
        "pushes": metrics["pushes"],
        "lost": metrics["lost"],
        "sent_again": run.result["traffic"]["sent_again"],
        "losses": len(run.result["recoveries"]),
        "rows": [effect(what, span, done.tolist()) for what, span in spans.items()],
    }


def effect(what: str, span: tuple[float, float], done: Sequence[float]) -> dict[str, Any]:
    """Return the effect of a disturbance, by the times of answered rounds."""
    near = [at for at in done if span[0] - QUIET + 0.5 <= at < span[1] + QUIET]
    before, meanwhile = rates(near, span[0] - QUIET + 0.5, span[0]), rates(near, *span)
    after = rates(near, span[1], span[1] + QUIET)
    return {
        "what": what,
        "lasted": span[1] - span[0],
        "before": float(np.median(before)),
        "meanwhile": float(np.mean(meanwhile)) if meanwhile else None,
        "after": float(np.median(after)),
        "back": recovered(near, span),
    }


# --- oversubscription -------------------------------------------------------------------------------------


def measure_oversubscribed(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Do the same work with many ranks, with and without copies; return what the copies cost."""
    switches = [
        "--programs",
        "darlin,rounds",
        "--passes",
        str(options.passes),
        "--launcher",
        options.launcher,
    ]
    switches += [part for file in options.train or () for part in ("--train", file)]
    switches += [part for setting in options.set for part in ("--set", setting)]
    scale_options = scale.parser().parse_args(switches)
    found = []
    for work in scale.programs(scale_options, folder):
        without, copied = scale.run_sizes(scale_options, work, options.ranks, folder, dies=False)
        again = sum(without["sent_again"].values()) + sum(copied["sent_again"].values())
        found.append(
            {
                "program": work.name,
                "ranks": options.ranks,
                "time_ratio": copied["train"] / without["train"],
                "bytes_ratio": copied["sent"] / without["sent"],
                "again": again or "none",
                "same": copied["parameters_sha256"] == without["parameters_sha256"],
                "runs": [without, copied],
            }
        )
    return found


# --- the report -----------------------------------------------------------------------------------------


def problems(report: Mapping[str, Any]) -> list[str]:
    """Describe the violated conditions."""
    found = []
    for each in report["pulses"]:
        k = f"k = {each['replicas']}"
        found += [
            f"{k}, {row['what']}: recovered after {row['back']:.2f} s, not {WITHIN:g}"
            for row in each["rows"]
            if row["back"] > WITHIN
        ]
        for key, what in (("lost", "pushes were lost or applied twice"), ("losses", "ranks were excluded")):
            found += [f"{k}: {each[key]} {what}"] if each[key] else []
        found += [f"{k}: sent again: {each['sent_again']}"] if each["sent_again"] else []
    for each in report["oversubscribed"]:
        what = f"{each['program']}, {each['ranks']} ranks, k = 1"
        for key, most, of in (("time_ratio", TIME, "time"), ("bytes_ratio", BYTES, "bytes")):
            found += [f"{what}: {each[key]:.2f} times the {of}, not {most:g}"] if each[key] > most else []
        found += [f"{what}: {each['again']} messages were sent again"] if each["again"] != "none" else []
        found += [] if each["same"] else [f"{what}: other bits"]
    return found


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    servers, workers = report["layout"]
    lines = [_runs.described(report["conditions"])]
    for each in report["pulses"]:
        lines += [
            f"\nservers {servers}, workers {workers}, k = {each['replicas']}: {each['pushes']:,} pushes",
            _runs.table(COLUMNS, each["rows"]),
        ]
    if report["oversubscribed"]:
        lines += ["", _runs.table(OVERSUBSCRIBED_COLUMNS, report["oversubscribed"])]
    return "\n".join(
        [
            *lines,
            "",
            *(report["problems"] or ["no message was lost or sent twice; all disturbances ended in time"]),
        ]
    )
