"""`mpips bench checkpoint`: bytes and seconds of deltas, compared with whole checkpoints."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.loading import HeldRows, load_range
from mpips.checkpoint.manifest import Entry, read_manifest
from mpips.checkpoint.shard_writer import ShardWriter
from mpips.checkpoint.writing import save, write_shard
from mpips.errors import CheckpointError
from mpips.process.argument_parser import program_parser
from mpips.ranges import ALL
from mpips.rundir.progress import Column, seconds, si, significant
from mpips.storage.segment import Rows, Segment
from mpips.storage.updates import VectorSpec

DESCRIPTION = """\
A server with a table of embeddings, float32 with AdaGrad's state, in this process. Between two checkpoints keys are
pushed that are drawn by Zipf's law. Of each interval a whole checkpoint and a delta are written and read; what is read
is compared bit by bit. Seconds are medians of the intervals.

  whole, delta  bytes of a checkpoint, and their ratio
  write         seconds: of a whole checkpoint without deltas; of a base, which others follow; of a delta
  read          seconds: of a whole checkpoint; of the last delta after its base; of what a follower reads of a delta

  mpips bench checkpoint                        1 million rows of 16 numbers, 1 million pushes between two checkpoints
  mpips bench checkpoint --rows 100000 --pushes 50000 --exponent 1.2 --json checkpoint.json
"""

INTERVALS = 5
COLUMNS = (
    Column("exponent", "Zipf", 5, significant(3)),
    Column("pushes", "pushes", 6, si),
    Column("changed", "changed", 7, si),
    Column("whole", "whole", 6, si),
    Column("delta", "delta", 6, si),
    Column("ratio", "whole/delta", 6, significant(3)),
    Column("write_whole", "write whole", 6, seconds),
    Column("write_base", "base", 6, seconds),
    Column("write_delta", "delta", 6, seconds),
    Column("read_whole", "read whole", 6, seconds),
    Column("read_delta", "base+deltas", 6, seconds),
    Column("follow", "follower", 6, seconds),
)
T = TypeVar("T")


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = program_parser("mpips bench checkpoint", DESCRIPTION)
    number = _runs.at_least(1)
    parser.add_argument("--rows", type=number, default=1_000_000, metavar="N", help="default 1,000,000")
    parser.add_argument("--width", type=number, default=16, metavar="N", help="numbers of a row; default 16")
    parser.add_argument("--pushes", type=number, default=1_000_000, metavar="N",
                        help="keys that are drawn between two checkpoints; default 1,000,000")  # fmt: skip
    parser.add_argument("--exponent", action="append", type=_runs.at_least(0, float), metavar="S",
                        help="of Zipf's law, repeatable; default 1.1 and 1.3")  # fmt: skip
    parser.add_argument("--seed", type=_runs.at_least(0), default=1, metavar="N", help="default 1")
    _runs.add_json(parser)
    options = parser.parse_args(arguments)
    conditions, rows = _runs.conditions(), []
    for exponent in options.exponent or [1.1, 1.3]:
        note(f"Zipf's law with exponent {exponent:g}")
        with tempfile.TemporaryDirectory(prefix="mpips-bench-") as place:
            rows.append(measured(Path(place), options, exponent))
    report = {"benchmark": "checkpoint", "conditions": conditions, "rows": rows}
    report |= {name: getattr(options, name) for name in ("width", "seed")} | {"table": options.rows}
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def zipf(rows: int, exponent: float, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw ranks from 0 to rows - 1 with probabilities proportional to (rank + 1)^-exponent; return each once."""
    sums = np.cumsum(np.arange(1, rows + 1) ** -exponent)
    return np.unique(np.searchsorted(sums, rng.random(count) * sums[-1]))


def measured(place: Path, options: Any, exponent: float) -> dict[str, Any]:
    """Write and read a base and some deltas, and whole checkpoints beside them."""
    rng = np.random.default_rng(options.seed)
    keys = rng.permutation(np.unique(rng.integers(0, 2**64, options.rows, np.uint64)))
    segment = Segment(VectorSpec("table", "float32", options.width, update="adagrad"), expect=len(keys))
    writer, held, timed = ShardWriter(), HeldRows(), Timed()
    name: str | None = None
    whole, delta, changed = 0, 0, []
    for step in range(INTERVALS + 1):
        some = zipf(len(keys), exponent, options.pushes, rng) if step else np.arange(len(keys))
        pushed = np.sort(keys[some])
        segment.push(pushed, rng.standard_normal((len(pushed), options.width), np.float32))
        parts = {"table": save(segment)}
        full = begin(place / "whole", step)
        entry = timed("write_whole", lambda: write_shard(full, 0, parts, {}))  # noqa: B023
        commit(full, [entry], {"step": step})
        folder = begin(place / "deltas", step)
        kind = "write_delta" if step else "write_base"
        mine: Entry = timed(kind, lambda: writer.write(folder, 0, parts, {}, name))  # noqa: B023
        follows = (
            {"checkpoint": name, "sha256": read_manifest(folder.with_name(name))["sha256"]} if name else None
        )
        commit(folder, [mine], {"step": step}, follows=follows)
        wanted = timed("read_whole", lambda: load_range(full, "table", [ALL]))  # noqa: B023
        with held.used():
            found = timed("follow" if step else "", lambda: load_range(folder, "table", [ALL]))  # noqa: B023
        check(wanted, found)
        if step:
            whole, delta = whole + entry["bytes"], delta + mine["bytes"]
            changed.append(mine["vectors"]["table"]["rows"])
        name = folder.name
    check(wanted, timed("read_delta", lambda: load_range(folder, "table", [ALL])))
    sizes = {"whole": whole // INTERVALS, "delta": delta // INTERVALS, "ratio": whole / delta}
    row = {"exponent": exponent, "pushes": options.pushes, "changed": int(np.mean(changed)), **sizes}
    return row | {kind: median(each) for kind, each in timed.seconds.items() if kind}


class Timed:
    """Calls functions, and keeps the seconds of each kind of call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, kind: str, function: Callable[[], T]) -> T:
        """Return the function's result."""
        start = perf_counter()
        result = function()
        self.seconds.setdefault(kind, []).append(perf_counter() - start)
        return result


def check(wanted: Rows, found: Rows) -> None:
    """Raise CheckpointError unless two readings have the same bits."""
    columns = [(wanted.keys, found.keys), (wanted.values, found.values)]
    columns += [(column, found.state[name]) for name, column in wanted.state.items()]
    if any(a.tobytes() != b.tobytes() for a, b in columns):
        raise CheckpointError("the deltas are not what the whole checkpoint is")


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    return "\n".join(
        [
            _runs.described(report["conditions"]),
            f"{report['table']:,} rows of {report['width']} float32 and as much state; bytes and seconds of one",
            "",
            _runs.table(COLUMNS, report["rows"]),
        ]
    )
