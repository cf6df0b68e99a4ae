"""`mpips bench record`: the cost of recording a run, and whether recorded runs can be reproduced."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import at_least, note
from mpips.bench.requests.pushpull import duration
from mpips.process import interpreter
from mpips.rundir.progress import Column, bytes_si, significant

DESCRIPTION = """\
The cost of recording the order in which messages take effect: training of the jobs of mpips, in alternating runs with
and without a record, each first in every other round. The target is below 3 %.

  mpips bench record                            5 rounds
  mpips bench record --repeat 15 --jobs darlin,lda
  mpips bench record --repeat 0 --again 20      instead: asynchronous runs, with stragglers and deaths, reproduced
  mpips bench record --repeat 0 --again 20 --python /elsewhere/bin/python
                                                the same, reproduced with another environment's MPI

Ratio: the median over the rounds of recorded to unrecorded time.
"""

TARGET = 1.03
"""Maximum time relative to a run that is not recorded."""
BOUNDED = "consistency.model=bounded"
JOBS: dict[str, tuple[str, str, list[str]]] = {
    "darlin": ("sparse_lr", "job.toml", [BOUNDED, "consistency.tau=4"]),
    "ftrl": ("sparse_lr", "ftrl.toml", ["sparse_lr.passes=3"]),
    "lda": ("lda", "job.toml", [BOUNDED, "consistency.tau=2", "lda.sweeps=60"]),
    "sketch": ("sketch", "job.toml", ["sketch.zipf=1.1", "sketch.items=20_000_000", "sketch.batch=200_000"]),
}
"""By name: a program, its job file, and settings."""

COLUMNS = (
    Column("job", "job", 8, lambda text: str(text).ljust(8)),
    Column("off", "off", 8, duration),
    Column("on", "on", 8, duration),
    Column("ratio", "ratio", 6, significant(4)),
    Column("range", "of rounds", 15),
    Column("bytes", "record", 9, bytes_si),
    Column("rate", "bytes/s", 9, bytes_si),
    Column("met", "< 1.03", 6),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("record", DESCRIPTION, repeat=5)
    parser.add_argument("--jobs", type=_runs.listed(_runs.one_of(JOBS)), default=list(JOBS), metavar="NAMES",
                        help=f"of {', '.join(JOBS)}; default all")  # fmt: skip
    parser.add_argument("--again", type=at_least(0), default=0, metavar="N",
                        help="runs that are recorded and reproduced; default 0")  # fmt: skip
    parser.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="the Python that reproduces them"
    )
    next(each for each in parser._actions if each.dest == "repeat").type = at_least(0)
    options = parser.parse_args(arguments)
    report: dict[str, Any] = {"benchmark": "record", "conditions": _runs.conditions(), "target": TARGET}
    with _runs.folders(options.keep) as folder:
        if options.repeat:
            report["table"] = costs(options, folder)
        if options.again:
            report["again"] = [again(options, folder, number) for number in range(options.again)]
    print(text(report))
    _runs.write_report(options.json, report)
    return 0 if all(each["same"] for each in report.get("again", [])) else 1


def costs(options: Any, folder: Path) -> list[dict[str, Any]]:
    """Measure each job without and with a record."""
    rows = []
    for name in options.jobs:
        times: dict[str, list[float]] = {"off": [], "on": []}
        size, seconds = 0, 0.0
        program, file, settings = JOBS[name]
        for number in range(options.repeat):
            note(f"{name}: round {number + 1} of {options.repeat}")
            for how in ("off", "on")[:: 1 if number % 2 == 0 else -1]:
                switch = f"record.on={'true' if how == 'on' else 'false'}"
                layout = [f"layout.servers={options.servers}", f"layout.workers={options.workers}"]
                own = [*settings, *layout, *options.set, switch]
                done = _runs.run(
                    _runs.job_file(file, program), folder / f"{name}-{how}-{number}", own, options.launcher
                )
                times[how].append(float(done.result["seconds"]["train"]))
                if how == "on":
                    size, seconds = done.result["record"]["bytes"], float(done.result["seconds"]["total"])
        cost = _runs.overhead(times["off"], times["on"], TARGET)
        rows.append({"job": name, "seconds": times, "bytes": size, "rate": size / max(seconds, 1e-9), **cost})
    return rows


def trial(number: int) -> tuple[str, list[str]]:
    """Choose the run of a number: a job, its delay, its straggler, and for every other run a death."""
    name = list(JOBS)[number % len(JOBS)]
    tau = (1, 2, 4, 8, 16)[number % 5]
    model = (
        ["consistency.model=eventual", "consistency.tau=0"]
        if number % 3 == 2
        else [BOUNDED, f"consistency.tau={tau}"]
    )
    sets = [*model, "layout.servers=2", "layout.workers=3"]
    sets.append(f'faults.slow=[{{role="worker",index={number % 3},factor={2 + number % 3}.0}}]')
    role, index, step = (("server", 0, 40), ("worker", 1, 30), ("scheduler", 0, 8))[number // 2 % 3]
    if number % 2:
        sets += ["layout.schedulers=2"] if role == "scheduler" else []
        sets.append(f'faults.kill=[{{role="{role}",index={index},at_step={step}}}]')
    return name, sets


def again(options: Any, folder: Path, number: int) -> dict[str, Any]:
    """Record a run, and reproduce it; return whether it gave the same bits."""
    name, sets = trial(number)
    program, file, settings = JOBS[name]
    note(f"run {number + 1} of {options.again}: {name} {' '.join(sets)}")
    place = folder / f"first-{number}"
    first = _runs.run(
        _runs.job_file(file, program),
        place,
        [*settings, *sets, *options.set, "record.on=true"],
        options.launcher,
    )
    command = [
        *interpreter.python(options.python),
        "-m",
        "mpips.cli",
        "reproduce",
        str(place),
        "--run-dir",
        f"{place}-again",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    note(last)
    return {
        "run": name,
        "settings": sets,
        "recoveries": len(first.result["recoveries"]),
        "same": done.returncode == 0,
        "said": last,
    }


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    lines = [_runs.described(report["conditions"])]
    if "table" in report:
        lines += ["", _runs.table(COLUMNS, report["table"])]
    if "again" in report:
        runs = report["again"]
        died = sum(bool(each["recoveries"]) for each in runs)
        lines += [
            "",
            f"{sum(each['same'] for each in runs)} of {len(runs)} runs ({died} with deaths) gave the same bits",
        ]
        lines += [f"  {each['run']}: {each['said']}" for each in runs if not each["same"]]
    return "\n".join(lines)
