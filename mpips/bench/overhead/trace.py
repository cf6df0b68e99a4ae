"""`mpips bench trace`: the cost of tracing a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import at_least, note
from mpips.bench.overhead import _tracing
from mpips.bench.requests.pushpull import duration
from mpips.config.job_file import load
from mpips.rundir.progress import Column, bytes_si, significant

DESCRIPTION = """\
The cost of tracing: training by sparse_lr, and loops in which a worker waits for one small request after another, where
a trace costs most. Runs with and without a trace alternate, each first in every other round. The target is below 2 %.

  mpips bench trace                             the project's own data, 5 rounds
  mpips bench trace --repeat 15 --requests 3000
  mpips bench trace --set trace.limit=2e6

The time of a request in a loop is the lower quartile of a run's blocks, which other load on the machine hardly changes.
The ratio is the median over the rounds of traced to untraced time, as for training.
"""

TARGET = 1.02
"""Maximum time relative to a run that is not traced."""
TRAINING = "sparse_lr, training"

COLUMNS = (
    Column("what", "", 30, lambda text: str(text).ljust(30)),
    Column("off", "off", 8, duration),
    Column("on", "on", 8, duration),
    Column("ratio", "ratio", 6, significant(4)),
    Column("range", "of rounds", 15),
    Column("bytes", "trace/rank/s", 12, bytes_si),
    Column("met", "< 1.02", 6),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("trace", DESCRIPTION, repeat=5)
    parser.add_argument(
        "--requests", type=at_least(1), default=1000, metavar="N", help="requests of a block; default 1000"
    )
    parser.add_argument(
        "--blocks", type=at_least(1), default=40, metavar="N", help="blocks of a loop; default 40"
    )
    options = parser.parse_args(arguments)
    own = _runs.overrides(options)
    # Wrong options are reported before any run.
    load(_runs.job_file(), own)
    conditions = _runs.conditions()
    times: dict[str, dict[str, list[float]]] = {}
    written: dict[str, list[float]] = {}
    with _runs.folders(options.keep) as folder:
        job = folder / "loops.toml"
        job.write_text('[job]\nprogram = "mpips.bench.overhead._tracing"\n')
        loops = [
            "layout.servers=1", "layout.workers=1", f"_tracing.blocks={options.blocks}",
            f"_tracing.requests={options.requests}", *options.set,
        ]  # fmt: skip
        for number in range(options.repeat):
            note(f"round {number + 1} of {options.repeat}")
            for how in ("off", "on")[:: 1 if number % 2 == 0 else -1]:
                switch = f"trace.on={'true' if how == 'on' else 'false'}"
                run = _runs.run(
                    _runs.job_file(), folder / f"train-{how}-{number}", [*own, switch], options.launcher
                )
                _add(times, TRAINING, how, float(run.result["seconds"]["train"]))
                _measure(written, TRAINING, run)
                run = _runs.run(job, folder / f"loops-{how}-{number}", [*loops, switch], options.launcher)
                for loop, seconds in json.loads((run.folder / _tracing.CELLS).read_text()).items():
                    _add(times, loop, how, float(np.quantile(seconds, 0.25)))
                    _measure(written, loop, run)
    report = {
        "benchmark": "trace",
        "conditions": conditions,
        "repeat": options.repeat,
        "settings": options.set,
        "target": TARGET,
        "seconds": times,
        "table": table(times, written),
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def _add(times: dict[str, dict[str, list[float]]], what: str, how: str, seconds: float) -> None:
    times.setdefault(what, {}).setdefault(how, []).append(seconds)


def _measure(written: dict[str, list[float]], what: str, run: _runs.FinishedRun) -> None:
    """Record the bytes that a rank wrote per second of a run, if it was traced."""
    size = trace_bytes(run.folder)
    if size:
        written.setdefault(what, []).append(size / max(float(run.result["seconds"]["total"]), 1e-9))


def trace_bytes(folder: Path) -> float:
    """Return the mean bytes that a rank of a run has written."""
    sizes = [path.stat().st_size for path in (folder / "trace").glob("rank-*.bin")]
    return sum(sizes) / len(sizes) if sizes else 0.0


def table(
    times: Mapping[str, Mapping[str, Sequence[float]]], written: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Return the times without and with a trace, and the median of the rounds' ratios."""
    rows = []
    for what, by in times.items():
        size = median(written[what]) if what in written else None
        rows.append({"what": what, "bytes": size, **_runs.overhead(by["off"], by["on"], TARGET)})
    return rows


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    lines = [
        _runs.described(report["conditions"]),
        f"{report['repeat']} rounds; ratio: median of the rounds' traced to untraced, minimum and maximum",
        "",
        _runs.table(COLUMNS, report["table"]),
    ]
    return "\n".join(lines)
