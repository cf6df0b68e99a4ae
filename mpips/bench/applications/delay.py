"""`mpips bench delay`: training time by maximal delay with a straggler, the paper's figure 13."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, note, summarize
from mpips.bench.applications import sparse_lr
from mpips.config.job_file import load
from mpips.report.charts import Bar, BarPart, bars, standalone
from mpips.report.html import Html
from mpips.rundir.progress import Column, bytes_si, seconds, share, significant

DESCRIPTION = """\
Bounded delay with a straggler (the paper's figure 13): for every tau, the time and the passes of training to 0.5 %
above the optimum, and the workers' share of waiting, while worker 0 takes three times as long for its work as the
others; with --chance every worker does so at random, as on shared machines. Runs of all tau alternate, so that a drift
of the machine's speed affects them equally.

  mpips bench delay                                   tau = 0, 1, 2, 4, 8, 16 on the project's own data
  mpips bench delay --tau 0,4,16 --slow 1             no straggler
  mpips bench delay --slow 4 --chance 0.2             each worker is slow for a fifth of its work
  mpips bench delay --slow 4 --chance 0.2 --workers 4 --slower 8     like four small machines
  mpips bench delay --train news20.train.svm.xz --optimum 1056.5146 --workers 3 --plot delay.svg
  mpips bench delay --blocks 128                      the same number of blocks for all tau, as in the paper

A delay hides the round trip of each block to the servers behind the next blocks, so it saves more with smaller blocks.
By default the job's rule determines the blocks, as in every run: it takes the fewest that keep the steps long without a
delay: features in flight cost passes, blocks messages.
Of blocks with at least 16,384 non-zeros on each worker it takes with a delay up to 1 + tau times as many.
A slow worker sleeps for the additional time, so its core is free meanwhile: some times its time on a processor, however
long its pieces of work have waited for a core.
"""

LEGEND = (("busy", "busy"), ("waiting", "waiting"))
"""The legend of the chart: (class, text)."""
COLUMNS = (
    Column("tau", "tau", 4),
    Column("seconds", "to target", 9, seconds),
    Column("range", "min - max", 15),
    Column("busy", "busy", 8, seconds),
    Column("waited", "waiting", 8, seconds),
    Column("waiting", "share", 6, share),
    Column("passes", "passes", 6, "{:g}".format),
    Column("pass_seconds", "s/pass", 8, significant(3)),
    Column("blocks", "blocks", 6, "{:g}".format),
    Column("train", "to the end", 11, seconds),
    Column("sent", "sent", 8, bytes_si),
)


def taus(text: str) -> list[int]:
    """Parse the delays: 0,1,2,4."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = [-1]
    if min(values) < 0 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f"must be different whole numbers from 0, as in 0,1,2,4; got {text}")
    return values


def share_of(text: str) -> float:
    """Parse a probability above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a probability above 0, as in 0.2; got {text}")
    return value


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the options."""
    parser = _runs.common_parser("delay", DESCRIPTION)
    parser.add_argument("--tau", type=taus, default=[0, 1, 2, 4, 8, 16], help="default 0,1,2,4,8,16")
    parser.add_argument(
        "--slow", type=at_least(1.0, float), default=3.0, help="slowdown of the straggler; default 3"
    )
    parser.add_argument("--chance", type=share_of, default=1.0, metavar="P",
                        help="each worker is slow with this probability, instead of worker 0 always")  # fmt: skip
    parser.add_argument("--spell", type=at_least(0.0, float), default=0.0, metavar="SECONDS",
                        help="with --chance: duration of being slow; default 0: one piece of work")  # fmt: skip
    parser.add_argument("--slower", type=at_least(1.0, float), default=1.0, metavar="F",
                        help="additional slowdown of every worker relative to a core, so that workers "
                        "share few cores like separate machines; default 1")  # fmt: skip
    parser.add_argument(
        "--blocks",
        type=at_least(0),
        default=0,
        metavar="B",
        help="blocks per pass; default: by the job's rule",
    )
    parser.add_argument("--l1", type=at_least(1e-12, float), default=1.0, help="default 1")
    parser.add_argument(
        "--target", type=_runs.above_one, default=1.005, help="relative to the optimum; default 1.005"
    )
    parser.add_argument("--optimum", type=at_least(0.0, float), metavar="F", help="the optimum, if known")
    parser.add_argument("--plot", metavar="FILE.svg", help="write a plot")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if a run did not reach the target."""
    options = parsed(arguments)
    _runs.check_plot(options.plot)
    settings = [f"sparse_lr.l1={options.l1!r}", *_runs.overrides(options)]
    job_file, conditions = _runs.job_file(), _runs.conditions()
    job = load(job_file, settings)
    runs: dict[int, list[FinishedRun]] = {tau: [] for tau in options.tau}
    with _runs.folders(options.keep) as folder:
        best, source = sparse_lr.find_optimum(options, job, folder)
        for number in range(options.repeat):
            note(f"round {number + 1} of {options.repeat}: tau = {', '.join(map(str, options.tau))}")
            for tau in options.tau[:: 1 if number % 2 == 0 else -1]:
                at = folder / f"tau-{tau}-{number}"
                runs[tau].append(
                    _runs.run(job_file, at, [*settings, *straggling(options, tau)], options.launcher)
                )
    target = options.target * best
    report = {
        "benchmark": "delay",
        "conditions": conditions,
        "slow": options.slow,
        "chance": options.chance,
        "spell": options.spell,
        "slower": options.slower,
        "l1": job.settings.l1,
        "optimum": best,
        "optimum_from": source,
        "target": target,
        "layout": runs[options.tau[0]][0].result["layout"],
        "runs": [measured(tau, run, target) for tau in options.tau for run in runs[tau]],
    }
    report["table"] = [summary(tau, report["runs"]) for tau in options.tau]
    print(text(report))
    _runs.write_report(options.json, report)
    if options.plot is not None:
        plot(report, options.plot)
    return 0 if all(each["seconds"] is not None for each in report["runs"]) else 1


def straggling(options: argparse.Namespace, tau: int) -> list[str]:
    """Return the settings that make workers slow, and end a run of one tau soon after the target."""
    who = range(options.workers if options.chance < 1.0 else 1)
    slow = _runs.slowed(who, options.slow, options.chance, options.spell)
    if options.slower > 1.0:
        slow += _runs.slowed(range(options.workers), options.slower)
    delay = ['consistency.model="bounded"', f"consistency.tau={tau}"]
    return [
        _runs.straggling(slow),
        *delay,
        f"sparse_lr.blocks={options.blocks}",
        f"sparse_lr.epsilon={(options.target - 1.0) / 2.0!r}",
    ]


def measured(tau: int, run: FinishedRun, target: float) -> dict[str, Any]:
    """Return the measurements of a run; None if it did not reach the target."""
    reached = run.reached(target)
    return {
        "tau": tau,
        "seconds": reached["seconds"] if reached else None,
        "passes": reached["pass"] if reached else None,
        "waiting": _runs.waiting(run, reached),
        "blocks": max(line["blocks"] for line in run.passes),
        "train": run.result["seconds"]["train"],
        "passes_train": run.result["metrics"]["passes"],
        "objective": run.result["metrics"]["objective"],
        "sent": run.sent,
    }


def summary(tau: int, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the runs of one tau; no time if one of them did not reach the target."""
    mine = [each for each in runs if each["tau"] == tau]
    keys = ("waiting", "blocks", "train", "sent")
    row = {"tau": tau} | {key: summarize(each[key] for each in mine)["median"] for key in keys}
    if any(each["seconds"] is None for each in mine):
        return row
    times = summarize(each["seconds"] for each in mine)
    passes = summarize(each["passes"] for each in mine)["median"]
    return row | {
        "seconds": times["median"],
        "range": f"{seconds(times['min'])} - {seconds(times['max'])}",
        "passes": passes,
        "pass_seconds": times["median"] / passes,
        "busy": times["median"] * (1.0 - row["waiting"]),
        "waited": times["median"] * row["waiting"],
    }


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    layout, rows = report["layout"], report["table"]
    lines = [
        _runs.described(report["conditions"]),
        f"servers {layout['servers']}, workers {layout['workers']}, {straggler(report)}; l1 = {report['l1']:g}",
        f"optimum {report['optimum']:.8g} ({report['optimum_from']}); target {report['target']:.8g} = "
        f"{report['target'] / report['optimum']:.6g} times it",
        f"medians of {len(report['runs']) // len(rows)} rounds; waiting: the workers' mean share",
        "",
        _runs.table(COLUMNS, rows),
        "",
    ]
    first = next((row for row in rows if row["tau"] == 0), None)
    later = [row for row in rows if row["tau"] > 0 and "seconds" in row]
    if first is None or "seconds" not in first or not later:
        missed = sorted({row["tau"] for row in rows if "seconds" not in row})
        return "\n".join([*lines, f"not every run reached the target: tau = {missed}"] if missed else lines)
    best = min(later, key=lambda row: row["seconds"])
    gain = first["seconds"] / best["seconds"]
    verdict = "faster than" if gain > 1.0 else "the best with a delay, but not faster than"
    lines.append(
        f"tau = {best['tau']} is {verdict} tau = 0: {gain:.2f} times; "
        f"waiting {share(first['waiting'])} there, {share(best['waiting'])} here"
    )
    return "\n".join(lines)


def straggler(report: dict[str, Any]) -> str:
    """Describe the stragglers."""
    machines = f"each {report['slower']:g} times slower than a core, " if report["slower"] > 1.0 else ""
    if report["chance"] == 1.0:
        return f"{machines}worker 0 slowed down {report['slow']:g} times"
    how_often = (
        f"for {seconds(report['spell'])} at a time" if report["spell"] else "drawn for each piece of it"
    )
    return f"{machines}each slowed down {report['slow']:g} times for {share(report['chance'])} of its work, {how_often}"


def chart(rows: Sequence[Mapping[str, Any]]) -> Html:
    """Draw bars of busy and waiting time to the target by tau, as in the paper's figure 13."""
    return bars(
        [
            Bar(f"tau = {row['tau']}", [BarPart(row["busy"], "busy"), BarPart(row["waited"], "waiting")],
                f"{seconds(row['seconds'])}, {row['passes']:g} passes")
            for row in rows
        ],
        label="busy and waiting time by delay",
        show=seconds,
    )  # fmt: skip


def plot(report: dict[str, Any], path: str) -> None:
    """Write the chart of the delays with which the target was reached."""
    reached = [row for row in report["table"] if row.get("busy") is not None]
    Path(path).write_text(standalone(chart(reached), LEGEND), encoding="utf-8")
