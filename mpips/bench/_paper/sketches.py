"""Table 5: inserts per second into a sketch, and the time of recovery from a server's failure."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from statistics import median
from typing import Any

from mpips.bench import _runs
from mpips.bench._paper.experiment import Claim, Section, Setup, agreement, table
from mpips.bench.applications import sketch
from mpips.rundir.progress import seconds, si

ITEM = "Table 5"
MACHINE, CORES = 1.1e9 / 15, 64
"""The paper's average inserts per second on one of its 15 machines, and the cores of that machine."""


def measure(setup: Setup) -> dict[str, Any]:
    """Insert a Zipf stream; then again, and kill a server meanwhile."""
    report = setup.folder / "sketch.json"
    arguments = [
        "--zipf",
        "1.1",
        "--repeat",
        str(setup.repeat),
        "--launcher",
        setup.launcher,
        "--json",
        str(report),
    ]
    sketch.main(arguments)
    (row,) = json.loads(report.read_text())["rows"]
    lost = []
    for number in range(setup.repeat):
        _runs.note(f"sketch, a server killed: run {number + 1} of {setup.repeat}")
        own = [
            "layout.servers=2", "layout.workers=2", "sketch.zipf=1.1", "sketch.items=20_000_000", "data.column=''",
            "sketch.batch=200_000",
            'faults.kill=[{role="server", index=1, at_step=40}]',
        ]  # fmt: skip
        done = _runs.run(
            _runs.job_file("job.toml", "sketch"), setup.folder / f"killed-{number}", own, setup.launcher
        )
        lost += [each["seconds"] for each in done.result["recoveries"]]
    return {"row": row, "recoveries": lost, "cores": len(os.sched_getaffinity(0))}


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the measurements with the paper's figures."""
    row, cores = found["row"], found["cores"]
    recovery = median(found["recoveries"])
    core = row["rate"] / cores
    rate = f"{si(row['rate'])} ({cores} cores)"
    longest = f"the longest of {len(found['recoveries'])} {seconds(max(found['recoveries']))}"
    claims = [
        Claim("Table 5: inserts per second and machine", f"{si(MACHINE)} (64 cores)", rate,
              agreement(row["rate"], (MACHINE, 1e12))),
        Claim("Table 5: recovery of a failed node", "0.8 s", seconds(recovery), agreement(recovery, (0.0, 0.8))),
    ]  # fmt: skip
    rows = [
        ("inserts per second, in all", "1.1 B (15 machines, 960 cores)", rate),
        ("per core", f"{si(MACHINE / CORES)}", si(core)),
        ("peak (here: the fastest run)", "1.3 B", si(row["max"])),
        ("inserts", "300 B", si(row["items"])),
        ("distinct keys", "> 100 M", si(row["keys"])),
        ("recovery", "0.8 s", f"{seconds(recovery)}, {longest}"),
        ("largest overestimate", "", f"{row['over']:,} of {si(row['items'])} (bound {row['bound']:.0f})"),
        ("underestimates", "", f"{row['below']}"),
    ]  # fmt: skip
    facts = {"core": si(core), "times": f"{core / (MACHINE / CORES):.0f}", "recovery": seconds(recovery)}
    return Section(claims, table(("", "the paper", "here"), rows), facts)
