"""`mpips bench store`: training a table that is larger than the servers' memory, compared with one in memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.config.job_file import load
from mpips.rundir.progress import Column, bytes_si, seconds, share, si, significant

DESCRIPTION = """\
One server, one worker. The worker trains rows by AdaGrad on mini-batches of ids that follow Zipf's law, by lookup and
push_grad, until the table has some times as many bytes as `[store] memory` allows, and is then measured: with all rows
in memory, with rows on disk, and with keys announced one mini-batch ahead; alternately. Target: 0.25 of the speed in
memory. The results must be the same bits. The worst case is --uniform: nothing is used more than the rest.

  mpips bench store                             rows of 64 values, 32 MB, a table of 4 times as many
  mpips bench store --width 16 --memory 64e6
  mpips bench store --skew 1.4 --folder /local/scratch
  mpips bench store --uniform
"""

TARGET = 0.25
WAYS = ("in memory", "on disk", "announced")
COLUMNS = (
    Column("way", "rows", 10),
    Column("rate", "rows/s", 8, si),
    Column("ids", "ids/s", 8, si),
    Column("batch", "mini-batch", 8, seconds),
    Column("ratio", "of memory", 8, significant(3)),
    Column("reads", "reads/s", 8, si),
    Column("hits", "hits", 6, share),
    Column("memory", "memory", 8, bytes_si),
    Column("disk", "on disk", 8, bytes_si),
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("store", DESCRIPTION)
    least = _runs.at_least
    parser.add_argument(
        "--memory", type=least(1e7, float), default=32e6, metavar="BYTES", help="default 32e6"
    )
    parser.add_argument("--times", type=least(1, float), default=4.0, metavar="X", help="default 4")
    parser.add_argument("--width", type=least(1), default=64, metavar="N", help="values per row; default 64")
    parser.add_argument("--ids", type=_runs.count, default=20_000, metavar="N", help="ids of a mini-batch")
    parser.add_argument("--skew", type=_runs.above_one, default=1.2, metavar="S", help="of Zipf's law")
    parser.add_argument("--uniform", action="store_true", help="all ids are equally frequent")
    parser.add_argument("--batches", type=least(1), default=40, metavar="N", help="measured; default 40")
    parser.add_argument("--repeat", type=least(1), default=3, metavar="N", help="rounds; default 3")
    parser.add_argument("--folder", default="", help="of the rows on disk; default $TMPDIR, or /tmp")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    options = parser().parse_args(arguments)
    rows = int(options.times * options.memory / (8 * options.width))
    settings = [
        "layout.servers=1", "layout.workers=1", "ring.replicas=0", f"_store.rows={rows}",
        f"_store.skew={options.skew!r}", f"_store.uniform={str(options.uniform).lower()}",
        f"_store.width={options.width}", f"_store.ids={options.ids}", f"_store.batches={options.batches}",
        *options.set,
    ]  # fmt: skip
    on_disk = [f"store.memory={options.memory!r}", f'store.folder="{options.folder}"']
    more = {"in memory": [], "on disk": on_disk, "announced": [*on_disk, "_store.announced=true"]}
    conditions, found = _runs.conditions(), {way: list[dict[str, Any]]() for way in WAYS}
    with _runs.folders(options.keep) as folder:
        job = folder / "store.toml"
        job.write_text('[job]\nprogram = "mpips.bench.requests._store"\n')
        load(job, [*settings, *on_disk])
        for number in range(options.repeat):
            for way in WAYS:
                note(f"round {number + 1} of {options.repeat}: {way}")
                run = _runs.run(job, folder / f"{number}-{way}", [*settings, *more[way]], options.launcher)
                found[way].append(run.result["metrics"])
    if len({each["sha"] for runs in found.values() for each in runs}) != 1:
        raise _runs.RunFailed("the results are not the same bits")
    table = []
    for way in WAYS:
        rate = median(each["rows"] / each["seconds"] for each in found[way])
        stores, work = found[way][0]["stores"], [each["work"] for each in found[way]]
        table.append(
            {
                "way": way,
                "rate": rate,
                "ids": median(each["ids"] / each["seconds"] for each in found[way]),
                "batch": median(each["seconds"] for each in found[way]) / options.batches,
                "reads": median(each["reads"] / each["seconds"] for each in work) if stores else None,
                "hits": median(each["hits"] / each["asked"] for each in work) if stores else None,
                "memory": stores[0]["memory"] if stores else None,
                "disk": stores[0]["disk"] if stores else None,
            }
        )
        table[-1]["ratio"] = rate / table[0]["rate"]
    report = {
        "benchmark": "store",
        "conditions": conditions,
        "settings": settings,
        "target": TARGET,
        "table": table,
    }
    met = "yes" if max(row["ratio"] for row in table[1:]) >= TARGET else "NO"
    print(
        f"{_runs.described(conditions)}\n{rows:,} rows of {options.width} float32 and their state, "
        f"{8 * options.width * rows / options.memory:.3g} times {options.memory:,.0f} bytes; the same bits\n\n"
        f"{_runs.table(COLUMNS, table)}\n\nat least {TARGET} of the speed in memory: {met}"
    )
    _runs.write_report(options.json, report)
    return 0
