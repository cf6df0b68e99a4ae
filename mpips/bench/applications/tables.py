"""`mpips bench tables`: speed of reading tables with named columns."""

from __future__ import annotations

import lzma
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.data import DataSpec, Source, Tally, learned, write
from mpips.process.argument_parser import program_parser
from mpips.process.interpreter import python
from mpips.rundir.progress import Column, bytes_si, seconds, si, significant

DESCRIPTION = """\
Read a generated table of 3 numeric and 5 categorical columns, as workers do before they train: first the summary of
the numbers, then the examples. Each of several readers reads its part in this process, one after the other; rows/s is
the rate of all of them, each on a core of its own. The baseline is CSV compressed by xz, which every reader
decompresses. Then 1, 2 and 4 processes decompress it at the same time, each for itself, and sharing it as the workers
of a host do: the CPU seconds of all.

  mpips bench tables                            300,000 rows, 2 readers
  mpips bench tables --rows 3e6 --readers 8
"""

COLUMNS = (
    Column("file", "file", 12),
    Column("bytes", "bytes", 8, bytes_si),
    Column("summary", "summary", 9, seconds),
    Column("examples", "examples", 9, seconds),
    Column("rate", "rows/s", 8, si),
    Column("ratio", "of .csv.xz", 10, significant(3)),
)
SHARED = (
    Column("file", "file", 12),
    Column("readers", "processes", 9),
    Column("alone", "each", 8, significant(3)),
    Column("shared", "shared", 8, significant(3)),
    Column("ratio", "ratio", 6, significant(2)),
    Column("alone_wall", "wall", 8, seconds),
    Column("shared_wall", "shared", 8, seconds),
)
READERS = 1, 2, 4
"""Numbers of processes that share a file."""
FILES = "table.csv.xz", "table.csv", "table.parquet"
SPEC: dict[str, Any] = {
    "label": "outcome",
    "positive": "yes",
    "numeric": {"age": "quantiles", "hours": "standard", "income": "log"},
}


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = program_parser("mpips bench tables", DESCRIPTION)
    parser.add_argument("--rows", type=_runs.count, default=300_000, metavar="N", help="default 300,000")
    parser.add_argument("--readers", type=_runs.at_least(1), default=2, metavar="N", help="default 2")
    parser.add_argument(
        "--repeat", type=_runs.at_least(1), default=3, metavar="N", help="default 3; the best counts"
    )
    _runs.add_json(parser)
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        note(f"writing {options.rows:,} rows")
        write_table(Path(place), options.rows)
        for name in FILES:
            note(name)
            runs = [measured(Path(place, name), options.readers) for _ in range(options.repeat)]
            rows.append(min(runs, key=lambda run: float(run["examples"])))
        note(f"{FILES[0]} by several processes")
        shared = [decompression(Path(place, FILES[0]), readers, options.repeat) for readers in READERS]
    for row in rows:
        row["ratio"] = row["rate"] / rows[0]["rate"]
    report = {
        "benchmark": "tables", "conditions": _runs.conditions(), "rows": rows, "shared": shared,
        "examples": options.rows, "readers": options.readers,
    }  # fmt: skip
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def write_table(folder: Path, rows: int) -> None:
    """Write a random table in each form."""
    random = np.random.default_rng(1)
    words = {"job": 12, "city": 500, "school": 16, "state": 50, "product": 20_000}
    texts = {
        name: np.array([f"{name}, {each}" for each in range(kinds)])[random.integers(0, kinds, rows)]
        for name, kinds in words.items()
    }
    table = {
        "age": random.integers(17, 90, rows),
        "hours": random.gamma(9.0, 4.5, rows).round(1),
        "income": np.exp(random.normal(10.0, 1.2, rows)).round(2),
        **texts,
        "outcome": np.where(random.random(rows) < 0.3, "yes", "no"),
    }
    for name in FILES[1:]:
        write(folder / name, table)
    with lzma.open(folder / FILES[0], "wb", preset=1) as packed:
        packed.write((folder / FILES[1]).read_bytes())


def measured(path: Path, readers: int) -> dict[str, Any]:
    """Read a file in as many parts as there are readers; times are those of one, on average."""
    source = Source(DataSpec(train=str(path), **SPEC))
    begin = perf_counter()
    summaries = [source.summarise(part, readers) for part in range(readers)]
    middle = perf_counter()
    source.take(learned(summaries))
    start = perf_counter()
    rows = sum(len(each) for part in range(readers) for each in source.read("train", part, readers, Tally()))
    examples = (perf_counter() - start) / readers
    return {
        "file": path.name, "bytes": path.stat().st_size, "summary": (middle - begin) / readers,
        "examples": examples, "rate": rows / examples,
    }  # fmt: skip


def decompression(path: Path, readers: int, repeat: int) -> dict[str, Any]:
    """Decompress a file by several processes, each for itself, and sharing it; the best CPU seconds of all."""
    row: dict[str, Any] = {"file": path.name, "readers": readers}
    for name in ("alone", "shared"):
        found = [_decompress(path, readers, uuid4().hex if name == "shared" else "") for _ in range(repeat)]
        row[name], row[f"{name}_wall"] = min(found)
    return row | {"ratio": row["alone"] / row["shared"]}


def _decompress(path: Path, readers: int, run: str) -> tuple[float, float]:
    """Decompress a file by several processes, which share it if `run` is not ""; return CPU and wall seconds."""
    command = [*python(), "-c", _PROGRAM, str(path), str(readers), run]
    begin = perf_counter()
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(readers)]
    used = sum(float(child.communicate()[0]) for child in children)
    return used, perf_counter() - begin


_PROGRAM = """
import sys, time
from mpips.data.stream import chunks
from mpips.rundir.unpacked import sharing
path, readers, run = sys.argv[1:]
begin = time.process_time()
with sharing(run, 100.0 if run else 0.0):
    for chunk in chunks(path, readers=int(readers)):
        pass
    print(time.process_time() - begin)
"""


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    head = f"{report['examples']:,} rows, {report['readers']} readers; seconds of one reader"
    by_all = "CPU seconds of decompression, of all processes together"
    return "\n".join(
        [
            _runs.described(report["conditions"]), head, "", _runs.table(COLUMNS, report["rows"]), "",
            by_all, "", _runs.table(SHARED, report["shared"]),
        ]
    )  # fmt: skip
