"""`mpips bench overlap`: what a push or a pull costs a worker that computes meanwhile."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench.requests import _overlap
from mpips.bench.requests.pushpull import duration
from mpips.config.job_file import load
from mpips.process.argument_parser import add_launcher, program_parser
from mpips.rundir.progress import Column, share

DESCRIPTION = """\
One worker, one server. The worker waits for a push or a pull (sync); it computes, several times as long, without any
request (alone); it issues the request, computes as much, and then waits for what is left (async). All in turns. What
the request costs a worker that computes is async - alone, and the target is below 20 % of sync.

  mpips bench overlap                           10^6 keys, float32, dense and cached
  mpips bench overlap --keys 100000 --pieces 5

The computing is done in one go, during which the worker calls nothing of mpips, and in pieces with one poll between
two of them, as `node.breathe` does it (there `alone` is in pieces too, without the polls). It is plain arithmetic on
an array that stays in the core's cache.
"""

COST = 0.2
"""Target: the cost as a share of the synchronous time."""

COLUMNS = (
    Column("mode", "mode", 6),
    Column("op", "op", 4),
    Column("how", "computing", 10),
    Column("sync_s", "sync", 7, duration),
    Column("alone_s", "alone", 7, duration),
    Column("async_s", "async", 7, duration),
    Column("cost_s", "cost", 7, duration),
    Column("share", "of sync", 7, share),
    Column("met", "< 20 %", 6),
)


def parser() -> argparse.ArgumentParser:
    """Give the parser of the command line."""
    parser = program_parser("mpips bench overlap", DESCRIPTION)
    least = _runs.at_least
    parser.add_argument("--keys", type=_runs.count, default=1_000_000, metavar="N", help="default 10^6")
    parser.add_argument("--repeat", type=least(2), default=40, metavar="N", help="of everything; default 40")
    parser.add_argument(
        "--longer", type=least(0.1, float), default=4.0, metavar="X",
        help="how many times as long as a request the worker computes; default 4",
    )  # fmt: skip
    parser.add_argument(
        "--pieces", type=least(1), default=20, metavar="N", help="of the computing; default 20"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override a key of the job"
    )
    add_launcher(parser, "as of mpips run")
    parser.add_argument("--keep", metavar="DIR", help="keep the run folder here")
    parser.add_argument("--json", metavar="FILE", help="write all that was measured here too")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    asked = parser().parse_args(arguments)
    settings = [
        "layout.servers=1", "layout.workers=1", "ring.virtual_servers=1", "ring.replicas=0", "heartbeat.patience=30",
        f"_overlap.keys={asked.keys}", f"_overlap.repeats={asked.repeat}", f"_overlap.longer={asked.longer!r}",
        f"_overlap.pieces={asked.pieces}", *asked.set,
    ]  # fmt: skip
    conditions = _runs.conditions()
    with _runs.folders(asked.keep) as folder:
        job = folder / "overlap.toml"
        job.write_text('[job]\nprogram = "mpips.bench.requests._overlap"\n')
        load(job, settings)  # what is wrong is said before anything is run
        run = _runs.run(job, folder / "run", settings, asked.launcher)
        cells = json.loads((run.folder / _overlap.CELLS).read_text())
    report = {
        "benchmark": "overlap",
        "conditions": conditions,
        "layout": run.result["layout"],
        "keys": asked.keys,
        "repeat": asked.repeat,
        "pieces": asked.pieces,
        "settings": asked.set,
        "target": COST,
        "table": [row for cell in cells for row in table(cell, asked.pieces)],
    }
    print(text(report))
    _runs.write_report(asked.json, report)
    return 0


def table(cell: Mapping[str, Any], pieces: int) -> list[dict[str, Any]]:
    """Give what a request costs beside computing in one go, and in pieces.

    All are medians over the repetitions, the cost that of the differences, which a drift of the machine meets less.
    """
    times = {kind: float(np.median(cell[kind])) for kind in _overlap.KINDS}
    rows = []
    for how, suffix in (("in one go", ""), (f"{pieces} pieces", "_pieces")):
        alone, both = times[f"alone{suffix}"], times[f"async{suffix}"]
        cost = float(np.median(np.subtract(cell[f"async{suffix}"], cell[f"alone{suffix}"])))
        part = cost / times["sync"]
        rows.append(
            {
                **{name: cell[name] for name in ("mode", "op", "keys")},
                "how": how,
                "sync_s": times["sync"],
                "alone_s": alone,
                "async_s": both,
                "cost_s": cost,
                "share": part,
                "met": "yes" if part < COST else "NO",
            }
        )
    return rows


def text(report: Mapping[str, Any]) -> str:
    """Write the report for people."""
    rows = report["table"]
    met = sum(row["met"] == "yes" for row in rows)
    worst = max(rows, key=lambda row: row["share"])
    return "\n".join(
        [
            _runs.described(report["conditions"]),
            f"1 server, 1 worker; {report['keys']:,} keys of float32; medians of {report['repeat']} repetitions",
            "",
            _runs.table(COLUMNS, rows),
            "",
            f"cost below 20 % of sync: {'yes' if met == len(rows) else 'NO'}, {met} of {len(rows)}; "
            f"most {share(worst['share'])} ({worst['mode']} {worst['op']}, {worst['how']})",
        ]
    )
