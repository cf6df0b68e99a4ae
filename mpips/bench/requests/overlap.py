"""`mpips bench overlap`: the cost of a push or a pull for a worker that computes meanwhile."""

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
from mpips.rundir.progress import Column, share

DESCRIPTION = """\
One worker, one server. The worker waits for a push or a pull (sync); it computes, several times as long, without a
request (alone); it issues the request, computes the same, and waits for the request (async). The three alternate. The
cost of the request for a computing worker is async - alone; the target is below 20 % of sync.

  mpips bench overlap                           10^6 keys, float32, dense and cached
  mpips bench overlap --keys 100000 --pieces 5

The computation is done in one piece, without calls of mpips, and in several pieces with a poll between two of them, as
by `context.polling` (there `alone` is in pieces too, without polls). It is arithmetic on an array in the core's cache.
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
    """Return the parser of the command line."""
    parser = _runs.job_parser("overlap", DESCRIPTION)
    least = _runs.at_least
    parser.add_argument("--keys", type=_runs.count, default=1_000_000, metavar="N", help="default 10^6")
    parser.add_argument("--repeat", type=least(2), default=40, metavar="N", help="repetitions; default 40")
    parser.add_argument(
        "--longer", type=least(0.1, float), default=4.0, metavar="X",
        help="duration of the computation relative to a request; default 4",
    )  # fmt: skip
    parser.add_argument(
        "--pieces", type=least(1), default=20, metavar="N", help="pieces of the computation; default 20"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    options = parser().parse_args(arguments)
    settings = [
        "layout.servers=1", "layout.workers=1", "ring.virtual_servers=1", "ring.replicas=0", "heartbeat.patience=30",
        f"_overlap.keys={options.keys}", f"_overlap.repeats={options.repeat}", f"_overlap.longer={options.longer!r}",
        f"_overlap.pieces={options.pieces}", *options.set,
    ]  # fmt: skip
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        job = folder / "overlap.toml"
        job.write_text('[job]\nprogram = "mpips.bench.requests._overlap"\n')
        # Wrong options are reported before any run.
        load(job, settings)
        run = _runs.run(job, folder / "run", settings, options.launcher)
        cells = json.loads((run.folder / _overlap.CELLS).read_text())
    report = {
        "benchmark": "overlap",
        "conditions": conditions,
        "layout": run.result["layout"],
        "keys": options.keys,
        "repeat": options.repeat,
        "pieces": options.pieces,
        "settings": options.set,
        "target": COST,
        "table": [row for cell in cells for row in table(cell, options.pieces)],
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def table(cell: Mapping[str, Any], pieces: int) -> list[dict[str, Any]]:
    """Return the cost of a request during a computation in one piece, and in several.

    All are medians over the repetitions; the cost is the median difference, which a drift of the machine affects less.
    """
    times = {kind: float(np.median(cell[kind])) for kind in _overlap.KINDS}
    rows = []
    for how, suffix in (("in one piece", ""), (f"{pieces} pieces", "_pieces")):
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
    """Format the report as text."""
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
            f"maximum {share(worst['share'])} ({worst['mode']} {worst['op']}, {worst['how']})",
        ]
    )
