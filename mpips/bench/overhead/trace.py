"""`mpips bench trace`: what it costs that a run is traced."""

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
What it costs that each rank writes down where its time goes: training by sparse_lr, and loops in which a worker waits
for one small request after another, which is where a trace costs most. Runs with and without a trace alternate, each
first in every other round. The target is below 2 %.

  mpips bench trace                             the project's own data, 5 rounds
  mpips bench trace --repeat 15 --requests 3000
  mpips bench trace --set trace.limit=2e6

Of a loop, what a request takes is that of a run's lower quartile of blocks, so that whatever else the machine does in
between hardly counts; then, as of the training, the median over the rounds of traced to untraced.
"""

TARGET = 1.02
"""Times the time of a run that is not traced."""
TRAINING = "sparse_lr, training"

COLUMNS = (
    Column("what", "", 30, lambda text: str(text).ljust(30)),
    Column("off", "off", 8, duration),
    Column("on", "on", 8, duration),
    Column("ratio", "ratio", 6, significant(4)),
    Column("range", "of the rounds", 15),
    Column("bytes", "trace/rank/s", 12, bytes_si),
    Column("met", "< 1.02", 6),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.switches("trace", DESCRIPTION, repeat=5)
    parser.add_argument(
        "--requests", type=at_least(1), default=1000, metavar="N", help="of a block; default 1000"
    )
    parser.add_argument("--blocks", type=at_least(1), default=40, metavar="N", help="of a loop; default 40")
    asked = parser.parse_args(arguments)
    own = _runs.overrides(asked)
    load(_runs.job_file(), own)  # what is wrong is said before anything is run
    conditions = _runs.conditions()
    times: dict[str, dict[str, list[float]]] = {}
    written: dict[str, list[float]] = {}
    with _runs.folders(asked.keep) as folder:
        job = folder / "loops.toml"
        job.write_text('[job]\nprogram = "mpips.bench.overhead._tracing"\n')
        loops = [
            "layout.servers=1", "layout.workers=1", f"_tracing.blocks={asked.blocks}",
            f"_tracing.requests={asked.requests}", *asked.set,
        ]  # fmt: skip
        for number in range(asked.repeat):
            note(f"round {number + 1} of {asked.repeat}")
            for how in ("off", "on")[:: 1 if number % 2 == 0 else -1]:
                switch = f"trace.on={'true' if how == 'on' else 'false'}"
                run = _runs.run(
                    _runs.job_file(), folder / f"train-{how}-{number}", [*own, switch], asked.launcher
                )
                _add(times, TRAINING, how, float(run.result["seconds"]["train"]))
                _measure(written, TRAINING, run)
                run = _runs.run(job, folder / f"loops-{how}-{number}", [*loops, switch], asked.launcher)
                for loop, seconds in json.loads((run.folder / _tracing.CELLS).read_text()).items():
                    _add(times, loop, how, float(np.quantile(seconds, 0.25)))
                    _measure(written, loop, run)
    report = {
        "benchmark": "trace",
        "conditions": conditions,
        "repeat": asked.repeat,
        "settings": asked.set,
        "target": TARGET,
        "seconds": times,
        "table": table(times, written),
    }
    print(text(report))
    _runs.write_report(asked.json, report)
    return 0


def _add(times: dict[str, dict[str, list[float]]], what: str, how: str, seconds: float) -> None:
    times.setdefault(what, {}).setdefault(how, []).append(seconds)


def _measure(written: dict[str, list[float]], what: str, run: _runs.Run) -> None:
    """Note how many bytes a rank has written in a second of a run, if it was traced."""
    size = trace_bytes(run.folder)
    if size:
        written.setdefault(what, []).append(size / max(float(run.result["seconds"]["total"]), 1e-9))


def trace_bytes(folder: Path) -> float:
    """Give the bytes that a rank of a run has written, on average."""
    sizes = [path.stat().st_size for path in (folder / "trace").glob("rank-*.bin")]
    return sum(sizes) / len(sizes) if sizes else 0.0


def table(
    times: Mapping[str, Mapping[str, Sequence[float]]], written: Mapping[str, Sequence[float]]
) -> list[dict[str, Any]]:
    """Give times without and with a trace, and the median of the rounds' ratios."""
    rows = []
    for what, by in times.items():
        size = median(written[what]) if what in written else None
        rows.append({"what": what, "bytes": size, **_runs.overhead(by["off"], by["on"], TARGET)})
    return rows


def text(report: Mapping[str, Any]) -> str:
    """Write the report for people."""
    lines = [
        _runs.described(report["conditions"]),
        f"{report['repeat']} rounds; ratio: median of the rounds' traced to untraced, least and most of them",
        "",
        _runs.table(COLUMNS, report["table"]),
    ]
    return "\n".join(lines)
