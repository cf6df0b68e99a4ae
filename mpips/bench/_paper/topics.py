"""Figure 14: LDA on more machines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._paper.experiment import SLOWER, Claim, Picture, Section, Setup, agreement, machines, table
from mpips.report.charts import Series, lines
from mpips.rundir.progress import seconds, share, si

ITEM = "Figure 14"
WORKERS = (1, 2, 3, 6)
"""The numbers of workers: the last is six times the first, as in the paper."""
TOPICS, SWEEPS, TAU = 100, 40, 1


def measure(setup: Setup) -> dict[str, Any]:
    """Sample the same topics with increasing numbers of workers."""
    runs = []
    for workers in WORKERS:
        _runs.note(f"LDA: {workers} workers")
        own = [
            f"layout.workers={workers}", "layout.servers=1", f"lda.topics={TOPICS}", f"lda.sweeps={SWEEPS}",
            f"consistency.tau={TAU}", machines(workers, stragglers=False), *corpus(setup),
        ]  # fmt: skip
        done = _runs.run(
            _runs.job_file("job.toml", "lda"), setup.folder / f"lda-{workers}", own, setup.launcher
        )
        sweeps = _runs.events(done.folder, "sweep")
        course = [[each["seconds"], each["log_likelihood_per_token"]] for each in sweeps]
        runs.append({"workers": workers, "course": course, "waiting": done.result["waiting"]})
    return {"tokens": done.result["metrics"]["tokens"], "corpus": name(setup), "runs": runs}


def corpus(setup: Setup) -> list[str]:
    """Return the settings of the documents: the project's own, or those of the command line."""
    if not setup.corpus:
        return []
    return [f"data.train={json.dumps([*setup.corpus])}", 'data.vocab=""']


def name(setup: Setup) -> str:
    """Name the documents."""
    return ", ".join(Path(each).name for each in setup.corpus) or "reuters395.ldac.gz"


def reached(course: list[list[float]], level: float) -> float:
    """Return the seconds until a run reached a likelihood, which it does."""
    return next(at for at, value in course if value >= level)


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the measurements with the paper's figures."""
    runs = found["runs"]
    level = min(run["course"][-1][1] for run in runs)
    times = {run["workers"]: reached(run["course"], level) for run in runs}
    first = times[runs[0]["workers"]]
    gain = first / times[runs[-1]["workers"]]
    cells = [
        (
            f"{run['workers']}",
            seconds(times[run["workers"]]),
            f"{first / times[run['workers']]:.2f}",
            share(run["waiting"]),
            f"{run['course'][-1][1]:.4f}",
        )
        for run in runs
    ]
    picture = Picture(
        lines(
            [Series(f"{run['workers']} workers", run["course"], colour) for colour, run in enumerate(runs)],
            label="log-likelihood against time",
            x="seconds",
            y="log-likelihood per token",
            show_y="{:.2f}".format,
        ),
        f"Log-likelihood per token against time, by workers; {si(found['tokens'])} tokens, {TOPICS} topics.",
        [(f"k{colour}", f"{run['workers']} workers") for colour, run in enumerate(runs)],
    )
    facts = {
        "corpus": found["corpus"], "tokens": si(found["tokens"]), "topics": TOPICS, "tau": TAU, "gain": f"{gain:.2g}",
        "slower": f"{SLOWER:g}", "waiting": share(runs[-1]["waiting"]),
    }  # fmt: skip
    claim = Claim(
        "Fig. 14: LDA on six times the machines",
        "4 times faster",
        f"{gain:.2g} times",
        agreement(gain, (3.0, 6.0)),
    )
    head = ("workers", f"to {level:.4f}", "times faster", "waiting", f"after {SWEEPS} sweeps")
    return Section([claim], table(head, cells), facts, {"fig14": picture})
