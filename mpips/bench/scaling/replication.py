"""`mpips bench replication`: the cost of replication in bytes and time."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, note, summarize
from mpips.config.job_file import load
from mpips.process.argument_parser import Parser
from mpips.process.terminal import help_text
from mpips.rundir.progress import Column, bytes_si, seconds, significant

DESCRIPTION = """\
The cost of replication (paper, section 4.4): sparse_lr in sequential mode with k = 0, 1 (and, from 3 servers on, 2)
copies of every key on other servers. Runs of all k alternate, so that a drift of the machine's speed affects them
equally. The parameters must have the same bits for every k.

  mpips bench replication                       2 servers, 4 workers, the project's own data
  mpips bench replication --train news20.train.svm.xz --servers 3
  mpips bench replication --rounds 0            without the plain pushes

Then workers that only push the same keys: once to a vector whose servers aggregate a round's pushes and replicate the
sum, once with each push replicated separately. With n workers the copies add k / n to the traffic in the first case, k
in the second: therefore the paper replicates after aggregation.
"""

BYTES, TIME = 1.3, 1.15
"""Targets for k = 1 relative to k = 0: bytes sent, seconds of training."""

PROGRAMS = ("sparse_lr", "summed", "single")

COLUMNS = (
    Column("program", "program", 9),
    Column("replicas", "k", 2),
    Column("sent", "sent", 7, bytes_si),
    Column("bytes_ratio", "to k = 0", 8, significant(4)),
    Column("added", "added", 6, lambda value: f"{value:+.3f}"),
    Column("expected", "expected", 8, lambda value: f"{value:+.3f}"),
    Column("train", "train", 7, seconds),
    Column("range", "min - max", 15),
    Column("time_ratio", "to k = 0", 8, significant(3)),
    Column("same", "same bits", 9),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    shared = _runs.common_parser("replication", DESCRIPTION)
    parser = Parser(
        prog=shared.prog,
        usage=shared.usage,
        description=DESCRIPTION,
        formatter_class=help_text.Formatter,
        allow_abbrev=False,
        parents=[shared],
        # The defaults differ from those of the common options.
        conflict_handler="resolve",
    )
    parser.add_argument(
        "--servers", type=at_least(2), default=2, metavar="S", help="servers, at least 2; default 2"
    )
    parser.add_argument("--workers", type=at_least(1), default=4, metavar="W", help="default 4")
    parser.add_argument(
        "--rounds",
        type=at_least(0),
        default=50,
        metavar="R",
        help="rounds of plain pushes; default 50; 0: none",
    )
    parser.add_argument(
        "--keys", type=at_least(1), default=50_000, metavar="N", help="keys of a plain push; default 50,000"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if the parameters are not the same for every k."""
    options = parser().parse_args(arguments)
    own = [*_runs.overrides(options), 'consistency.model="sequential"', "consistency.tau=0"]
    # Wrong options are reported before any run.
    load(_runs.job_file(), own)
    conditions = _runs.conditions()
    copies = [0, 1, 2] if options.servers > 2 else [0, 1]
    runs: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        for number in range(options.repeat):
            note(f"round {number + 1} of {options.repeat}: sparse_lr, k = {', '.join(map(str, copies))}")
            for k in copies[:: 1 if number % 2 == 0 else -1]:
                at = folder / f"sparse_lr-{k}-{number}"
                run = _runs.run(_runs.job_file(), at, [*own, f"ring.replicas={k}"], options.launcher)
                runs.append(measured("sparse_lr", k, run))
        if options.rounds:
            note("plain pushes")
            runs += plain_pushes(options, copies, folder)
    rows = table(runs, options.workers)
    report = {
        "benchmark": "replication",
        "conditions": conditions,
        "layout": {"servers": options.servers, "workers": options.workers},
        "data": options.train or "the project's own data",
        "settings": options.set,
        "repeat": options.repeat,
        "pushes": {"rounds": options.rounds, "keys": options.keys},
        "runs": runs,
        "table": rows,
        "targets": {"replicas": 1, "bytes": BYTES, "time": TIME},
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0 if all(row["same"] == "yes" for row in rows) else 1


def plain_pushes(options: argparse.Namespace, copies: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Run workers that only push, with and without aggregation, for every number of copies."""
    job = folder / "rounds.toml"
    job.write_text('[job]\nprogram = "mpips.bench.scaling._rounds"\n')
    layout = [f"layout.servers={options.servers}", f"layout.workers={options.workers}"]
    size = [f"_rounds.rounds={options.rounds}", f"_rounds.keys={options.keys}"]
    found = []
    for program, summed in (("summed", "true"), ("single", "false")):
        for k in copies:
            settings = [*layout, *size, f"_rounds.summed={summed}", f"ring.replicas={k}"]
            found.append(
                measured(program, k, _runs.run(job, folder / f"{program}-{k}", settings, options.launcher))
            )
    return found


def measured(program: str, replicas: int, run: FinishedRun) -> dict[str, Any]:
    """Return the measurements of a run."""
    result = run.result
    return {
        "program": program,
        "replicas": replicas,
        "sent": run.sent,
        "worker_sent": result["traffic"]["worker_sent"],
        "server_sent": result["traffic"]["server_sent"],
        "train": result["seconds"]["train"],
        "seconds": result["seconds"],
        "waiting": result["waiting"],
        "metrics": result["metrics"],
        "parameters_sha256": result["parameters_sha256"],
    }


def table(runs: Sequence[Mapping[str, Any]], workers: int) -> list[dict[str, Any]]:
    """Return the medians of each program and number of copies, relative to those without copies."""
    rows: list[dict[str, Any]] = []
    for program in PROGRAMS:
        of_program = [run for run in runs if run["program"] == program]
        hashes = {run["parameters_sha256"] for run in of_program if run["replicas"] == 0}
        first: dict[str, Any] = {}
        for k in sorted({run["replicas"] for run in of_program}):
            mine = [run for run in of_program if run["replicas"] == k]
            times = summarize(run["train"] for run in mine)
            row = {"program": program, "replicas": k, "train": times["median"], "times": times}
            row["sent"] = summarize(run["sent"] for run in mine)["median"]
            row["range"] = f"{seconds(times['min'])} - {seconds(times['max'])}"
            same = len(hashes | {run["parameters_sha256"] for run in mine}) == 1
            row["same"] = "yes" if same else "NO"
            first = first or row
            row["bytes_ratio"] = row["sent"] / first["sent"]
            row["time_ratio"] = row["train"] / max(first["train"], 1e-9)
            row["added"] = row["bytes_ratio"] - 1.0
            # Pulls are part of the traffic of sparse_lr.
            if program != "sparse_lr":
                row["expected"] = k / workers if program == "summed" else float(k)
            rows.append(row)
    return rows


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    layout, rows, pushes = report["layout"], report["table"], report["pushes"]
    lines = [
        _runs.described(report["conditions"]),
        f"servers {layout['servers']}, workers {layout['workers']}; sparse_lr: medians of {report['repeat']} rounds",
    ]
    if pushes["rounds"]:
        lines.append(
            f"summed, single: every worker pushes {pushes['keys']:,} keys {pushes['rounds']} times\n"
            "expected: traffic that copies add, k / workers with aggregation, else k"
        )
    lines += ["", _runs.table(COLUMNS, rows), ""]
    one = next(row for row in rows if row["program"] == "sparse_lr" and row["replicas"] == 1)
    for name, key, target in (("bytes", "bytes_ratio", BYTES), ("time", "time_ratio", TIME)):
        held = "below" if one[key] < target else "NOT below"
        lines.append(f"sparse_lr, k = 1: {one[key]:.3f} times the {name} of k = 0, {held} {target}")
    if any(row["same"] != "yes" for row in rows):
        lines.append("the parameters do NOT have the same bits for every k")
    return "\n".join(lines)
