"""`mpips bench idle`: the cost of idle ranks, their wake-up latency, and the cost of more ranks than cores."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import note, summarize
from mpips.bench.overhead import _idle
from mpips.errors import InputError
from mpips.process.argument_parser import MPI_LAUNCHERS
from mpips.rundir.progress import Column, share

DESCRIPTION = """\
Measure waiting ranks in two parts:

  rest            all ranks are idle for some seconds: the share of a core that each rank uses, with all its threads;
                  then, after a pause, a worker pushes one key (push), and the scheduler calls a worker (call): the
                  round-trip times, and the time until the worker received the call (heard), each minus the median of
                  those without a pause: the additional latency of an idle rank
  oversubscribed  the same work by few ranks, and by more ranks than cores, alternating: sparse_lr on the project's own
                  data, and requests of adjacent keys, the same total number; the ratio of their times

  mpips bench idle                              both parts: 2 servers and 4 workers; 1 + 2 against 3 + 4
  mpips bench idle --part rest --seconds 20 --servers 1 --workers 1
  mpips bench idle --part rest --pauses 0.002,0.02,0.2
  mpips bench idle --part oversubscribed --few 1+1 --many 4+11 --repeat 5

Every layout also has a scheduler. Processor time is read from /proc, so all ranks must be on this host.
"""

SHARE, LATE, OVERSUBSCRIBED = 0.03, 1e-3, 1.5
"""Targets: share of a core of an idle rank, its wake-up latency (s, p99), time of many ranks relative to few."""
PARTS = ("rest", "oversubscribed")
ALONE = ("ring.replicas=0",)
"""Settings of the part `oversubscribed`: without copies, which a single server would not have."""

IDLE_COLUMNS = (
    Column("role", "at rest", 10, lambda text: str(text).ljust(10)),
    Column("ranks", "ranks", 5),
    Column("median", "median of a core", 16, share),
    Column("max", "max", 7, share),
)
WAKE_COLUMNS = (
    Column("what", "trip", 10, lambda text: str(text).ljust(10)),
    Column("pause", "after ms", 8, lambda value: f"{1e3 * value:g}"),
    Column("count", "number", 6),
    Column("p50", "p50 us", 8, lambda value: f"{1e6 * value:.1f}"),
    Column("p99", "p99 us", 8, lambda value: f"{1e6 * value:.1f}"),
    Column("late_p50", "later by p50", 12, lambda value: f"{1e6 * value:.1f}"),
    Column("late_p99", "later by p99", 12, lambda value: f"{1e6 * value:.1f}"),
)
OVERSUBSCRIBED_COLUMNS = (
    Column("work", "same work", 10, lambda text: str(text).ljust(10)),
    Column("few", "few s", 8, lambda value: f"{value:.3f}"),
    Column("many", "many s", 8, lambda value: f"{value:.3f}"),
    Column("ratio", "ratio", 6, lambda value: f"{value:.2f}"),
    Column("min", "min", 6, lambda value: f"{value:.2f}"),
    Column("max", "max", 6, lambda value: f"{value:.2f}"),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("idle", DESCRIPTION, MPI_LAUNCHERS)
    least = _runs.at_least
    parser.add_argument("--part", choices=PARTS, help="only this part")
    parser.add_argument(
        "--servers", type=least(1), default=2, metavar="S", help="servers of the part rest; default 2"
    )
    parser.add_argument(
        "--workers", type=least(1), default=4, metavar="W", help="workers of the part rest; default 4"
    )
    parser.add_argument(
        "--seconds",
        type=least(0.1, float),
        default=5.0,
        metavar="T",
        help="duration of the idle time; default 5",
    )
    parser.add_argument(
        "--pauses",
        type=pauses,
        default=[0.005, 0.05, 0.5],
        metavar="T,...",
        help="pauses in s; default 0.005,0.05,0.5",
    )
    parser.add_argument(
        "--wakes",
        type=least(0.01, float),
        default=6.0,
        metavar="T",
        help="duration of the round trips after each pause, at least 10 of them; default 6",
    )
    parser.add_argument(
        "--few", type=layout, default=(1, 2), metavar="S+W", help="layout of few ranks; default 1+2"
    )
    parser.add_argument(
        "--many", type=layout, default=(3, 4), metavar="S+W", help="layout of many ranks; default 3+4"
    )
    parser.add_argument(
        "--requests",
        type=least(1),
        default=40_000,
        metavar="N",
        help="requests of the part oversubscribed; default 40,000",
    )
    parser.add_argument(
        "--batch", type=batch, default=100, metavar="B", help="keys of a request; default 100"
    )
    parser.add_argument(
        "--repeat", type=least(1), default=3, metavar="N", help="rounds of the part oversubscribed; default 3"
    )
    return parser


def pauses(text: str) -> list[float]:
    """Parse pauses: seconds, separated by commas."""
    read = _runs.at_least(1e-4, float)
    return [read(each) for each in text.split(",")]


def batch(text: str) -> int:
    """Parse the number of keys of a request, at most half of all keys."""
    count = int(_runs.at_least(1)(text))
    if count > _idle.EXTENT // 2:
        raise argparse.ArgumentTypeError(f"must be at most {_idle.EXTENT // 2}, got {text}")
    return count


def layout(text: str) -> tuple[int, int]:
    """Parse a layout: servers and workers, as in 1+2."""
    parts = text.split("+")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"must be servers+workers, as in 1+2, got {text!r}")
    return int(parts[0]), int(parts[1])


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a target was missed."""
    options = parser().parse_args(arguments)
    if sum(options.many) <= sum(options.few):
        raise InputError(
            f"--many {options.many[0]}+{options.many[1]}: must be more ranks than "
            f"--few {options.few[0]}+{options.few[1]}"
        )
    report: dict[str, Any] = {"benchmark": "idle", "conditions": _runs.conditions(), "settings": options.set}
    report["targets"] = {"share": SHARE, "late": LATE, "oversubscribed": OVERSUBSCRIBED}
    with _runs.folders(options.keep) as folder:
        job = folder / "idle.toml"
        job.write_text('[job]\nprogram = "mpips.bench.overhead._idle"\n')
        if options.part in (None, "rest"):
            report |= measure_idle(options, job, folder)
        if options.part in (None, "oversubscribed"):
            report |= measure_oversubscribed(options, job, folder)
    print(text(report))
    _runs.write_report(options.json, report)
    return 0 if all(checks(report).values()) else 1


# --- rest ------------------------------------------------------------------------------------------------


def measure_idle(options: argparse.Namespace, job: Path, folder: Path) -> dict[str, Any]:
    """Run the part `rest`; return the rows of its two tables."""
    note("at rest")
    settings = [
        f"layout.servers={options.servers}", f"layout.workers={options.workers}", "_idle.part=rest",
        f"_idle.seconds={options.seconds!r}", f"_idle.pauses={options.pauses!r}", f"_idle.wakes={options.wakes!r}",
        *options.set,
    ]  # fmt: skip
    run = _runs.run(job, folder / "rest", settings, options.launcher)
    metrics = run.result["metrics"]
    return {
        "layout": run.result["layout"],
        "seconds": metrics["rest"]["seconds"],
        "rest": shares(_runs.ranks_of(run.folder), metrics["rest"]),
        "wake": lateness(metrics["trips"]),
    }


def shares(ranks: Sequence[Mapping[str, Any]], measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return median and maximum share of a core by role, from processor seconds by rank."""
    by_role: dict[str, list[float]] = {}
    for each in ranks:
        took = measured["processor"][str(each["rank"])]
        by_role.setdefault(each["role"], []).append(took / measured["seconds"])
    return [{"role": role, "ranks": len(found), **summarize(found)} for role, found in by_role.items()]


def lateness(trips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Summarize round trips (s), and the additional time after a pause, relative to the median without a pause."""
    rows = []
    for each in trips:
        took = np.array(each["ns"]) * 1e-9
        without = next(t for t in trips if t["what"] == each["what"] and not t["pause"])
        least = float(np.median(without["ns"])) * 1e-9
        p50, p99 = (float(np.quantile(took, q, method="higher")) for q in (0.5, 0.99))
        row = {"what": each["what"], "pause": each["pause"], "count": len(took), "p50": p50, "p99": p99}
        if each["pause"]:
            row |= {"late_p50": p50 - least, "late_p99": p99 - least}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["what"], row["pause"]))


# --- oversubscribed --------------------------------------------------------------------------------------


def measure_oversubscribed(options: argparse.Namespace, job: Path, folder: Path) -> dict[str, Any]:
    """Run the part `oversubscribed`; return the rows of its table, and the times."""
    requests = [f"_idle.requests={options.requests}", f"_idle.batch={options.batch}", "_idle.part=ask"]
    works: dict[str, tuple[Path, list[str]]] = {
        "sparse_lr": (_runs.job_file(), []),
        "requests": (job, requests),
    }
    layouts = {"few": options.few, "many": options.many}
    times: dict[str, dict[str, list[float]]] = {work: {"few": [], "many": []} for work in works}
    processor: dict[str, list[float]] = {"few": [], "many": []}
    for number in range(options.repeat):
        for work, (file, settings) in works.items():
            note(
                f"{work} by {options.few} and {options.many} servers and workers, {number + 1} of {options.repeat}"
            )
            for size in ("few", "many") if number % 2 == 0 else ("many", "few"):
                servers, workers = layouts[size]
                sized = [
                    f"layout.servers={servers}",
                    f"layout.workers={workers}",
                    *ALONE,
                    *settings,
                    *options.set,
                ]
                run = _runs.run(file, folder / f"{work}-{size}-{number}", sized, options.launcher)
                times[work][size].append(run.result["seconds"]["train"])
                taken = run.result["metrics"].get("processor")
                processor[size] += [] if taken is None else [taken]
    return {
        "layouts": {size: {"servers": s, "workers": w} for size, (s, w) in layouts.items()},
        "requests": options.requests,
        "batch": options.batch,
        "times": times,
        "processor": processor,
        "oversubscribed": [compare_times(work, **both) for work, both in times.items()],
    }


def compare_times(work: str, few: Sequence[float], many: Sequence[float]) -> dict[str, Any]:
    """Compare the times of many ranks with those of few: medians, and the ratio of each round."""
    ratios = summarize(b / a for a, b in zip(few, many, strict=True))
    return {
        "work": work,
        "few": summarize(few)["median"],
        "many": summarize(many)["median"],
        "ratio": ratios["median"],
        "min": ratios["min"],
        "max": ratios["max"],
    }


# --- the report ------------------------------------------------------------------------------------------


def checks(report: Mapping[str, Any]) -> dict[str, bool]:
    """Compare the measurements with the targets."""
    found = {}
    if "rest" in report:
        found["each idle rank < 3 % of a core"] = all(row["max"] < SHARE for row in report["rest"])
        late = [row["late_p99"] for row in report["wake"] if row["what"] == "heard" and row["pause"]]
        found["additional latency < 1 ms (p99)"] = max(late) < LATE
    if "oversubscribed" in report:
        found["many <= 1.5 times few"] = all(
            row["ratio"] <= OVERSUBSCRIBED for row in report["oversubscribed"]
        )
    return found


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    lines = [_runs.described(report["conditions"])]
    if "rest" in report:
        size = report["layout"]
        lines += [
            f"servers {size['servers']}, workers {size['workers']}, and a scheduler; idle for "
            f"{report['seconds']:.1f} s",
            "",
            _runs.table(IDLE_COLUMNS, report["rest"]),
            "",
            _runs.table(WAKE_COLUMNS, report["wake"]),
            "",
        ]
    if "oversubscribed" in report:
        few, many = (report["layouts"][size] for size in ("few", "many"))
        lines += [
            f"few: {few['servers']} + {few['workers']} servers and workers; many: {many['servers']} + "
            f"{many['workers']}; {report['requests']:,} requests of {report['batch']} keys",
            "",
            _runs.table(OVERSUBSCRIBED_COLUMNS, report["oversubscribed"]),
            "",
        ]
    lines.append("; ".join(f"{name}: {'yes' if held else 'NO'}" for name, held in checks(report).items()))
    return "\n".join(lines)
