"""`mpips bench restart`: runs are killed at random times, and continue from their last checkpoint on another layout."""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench.failures import _killing
from mpips.bench.failures._killing import Campaign, Trial
from mpips.config.job_file import load
from mpips.process.argument_parser import MPI_LAUNCHERS
from mpips.rundir.progress import bytes_si

DESCRIPTION = """\
Kill runs, and continue them. Each trial trains sparse_lr with a checkpoint after every pass, sends SIGKILL to all ranks
and then to their launcher at a random time, verifies the latest checkpoint, and continues from it with other numbers of
servers and workers to the end. The objective must be that of runs without failures, within 0.1 %. With the same number
of workers before and after, the parameters must have the same bits.

  mpips bench restart                           50 trials, on a part of the project's own data
  mpips bench restart --trials 200 --seed 7
  mpips bench restart --train a9a.svm --trials 5

In every second trial the kill waits until a checkpoint is being written: a folder without a manifest exists. As root, a
last run writes its checkpoints to a file system without space for a second one: the run must complete and report it,
and the first checkpoint must remain.
"""

TOLERANCE = 1e-3
"""Maximum relative difference of the objective from that of the runs without failures."""
EXAMPLES = 4_000
"""Examples of the project's own data."""
MOST_SERVERS, MOST_WORKERS = 3, 3


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.job_parser("restart", DESCRIPTION, MPI_LAUNCHERS)
    number = _runs.at_least(0)
    parser.add_argument("--trials", type=number, default=50, metavar="N", help="default 50")
    parser.add_argument(
        "--seed", type=number, default=0, metavar="S", help="seed of the random choices; default 0"
    )
    parser.add_argument("--train", action="append", metavar="FILE", help="training data; repeatable")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the campaign; return 1 if a checkpoint was unsound, or a run did not reach the same result."""
    options = parser().parse_args(arguments)
    rng = random.Random(f"restart/{options.seed}")
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        settings = job_settings(options, folder)
        # Wrong options are reported before any run.
        load(_runs.job_file(), settings)
        campaign = Campaign(_runs.job_file(), folder, settings, options.launcher)
        campaign.measure(range(1, MOST_WORKERS + 1))
        trials = []
        for n in range(options.trials):
            trials.append(campaign.trial(n, *layouts(rng), rng, aimed=n % 2 == 1))
            compare_trial(trials[-1], campaign.objectives, campaign.hashes)
            _runs.note(f"trial {n + 1} of {options.trials}: {trial_line(trials[-1])}")
        full = campaign.full_disk()
    report = {
        "benchmark": "restart",
        "conditions": conditions,
        "seed": options.seed,
        "mpi": campaign.mpi,
        "data": options.train or f"the first {EXAMPLES:,} examples of the project's own data, l1 = 3",
        "settings": settings,
        "undisturbed": campaign.undisturbed,
        "tolerance": TOLERANCE,
        "trials": [asdict(trial) for trial in trials],
        "full_disk": full,
        "summary": summary(trials),
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 1 if report["summary"]["failures"] or full["failed"] else 0


def job_settings(options: argparse.Namespace, folder: Path) -> list[str]:
    """Return the overrides of the job file: small data, a checkpoint per pass, the same bits for any servers."""
    if options.train:
        data = [f"data.train={json.dumps(_runs.absolute(options.train))}", "data.crosses=[]"]
    else:
        part = folder / "examples.tsv"
        _killing.first_examples(_runs.job_file(), part, EXAMPLES)
        data = [f"data.train={json.dumps(str(part))}", "sparse_lr.l1=3.0"]
    steps = ["consistency.tau=0", "checkpoint.every=1", "sparse_lr.epsilon=1e-4", "sparse_lr.newton=false"]
    return [*data, "data.test=[]", *steps, *options.set]


def layouts(rng: random.Random) -> tuple[tuple[int, int], tuple[int, int]]:
    """Choose (servers, workers) of the first run, and others of the continued run."""
    every = [(s, w) for s in range(1, MOST_SERVERS + 1) for w in range(1, MOST_WORKERS + 1)]
    begun, resumed = rng.sample(every, 2)
    return begun, resumed


def compare_trial(trial: Trial, objectives: Mapping[int, float], hashes: Mapping[int, str]) -> None:
    """Judge a trial by the runs without failures with the same number of workers; `trial` is completed."""
    if trial.noted > trial.latest:
        trial.failures.append(
            f"the checkpoint of step {trial.noted} is missing, the latest is {trial.latest}"
        )
    trial.failures += trial.problems
    if trial.objective is None:
        trial.failures.append(f"it did not continue: {trial.said}")
        return
    reference = objectives[trial.resumed[1]]
    trial.excess = trial.objective / reference - 1.0
    if abs(trial.excess) > TOLERANCE:
        trial.failures.append(f"objective {trial.objective:.8g}, without failures {reference:.8g}")
    if trial.latest < 0 or trial.begun[1] == trial.resumed[1]:
        trial.same_bits = trial.sha256 == hashes[trial.resumed[1]]
        if not trial.same_bits:
            trial.failures.append("the parameters differ from those of the run without failures")


def trial_line(trial: Trial) -> str:
    """Format the outcome of a trial in one line."""
    (servers, workers), (more_servers, more_workers) = trial.begun, trial.resumed
    when = f"killed after {trial.after:.2f} s" + (", during a checkpoint" if trial.writing else "")
    source = f"from step {trial.latest}" if trial.latest >= 0 else "from the start"
    ended = "; ".join(trial.failures) or f"excess {trial.excess:+.5%}"
    return f"{servers}+{workers} {when}; {more_servers}+{more_workers} {source}: {ended}"


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Count the outcomes of all trials."""
    ended = [trial for trial in trials if trial.excess is not None]
    compared = [trial for trial in trials if trial.same_bits is not None]
    return {
        "trials": len(trials),
        "killed_while_writing": sum(trial.writing for trial in trials),
        "resumed": sum(trial.latest >= 0 for trial in trials),
        "from_the_start": sum(trial.latest < 0 for trial in trials),
        "greatest_excess": max((abs(trial.excess or 0.0) for trial in ended), default=None),
        "bits_compared": len(compared),
        "bits_same": sum(bool(trial.same_bits) for trial in compared),
        "left_behind": sum(trial.left_behind for trial in trials),
        "verify_seconds": statistics.median(trial.verify_seconds for trial in trials) if trials else None,
        "failures": sum(bool(trial.failures) for trial in trials),
    }


def text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    counts, full = report["summary"], report["full_disk"]
    undisturbed = ", ".join(
        f"{each['workers']} workers {each['objective']:.8g}" for each in report["undisturbed"]
    )
    lines = [
        _runs.described(report["conditions"]),
        f"{report['mpi']}; without failures: {undisturbed}",
        f"trials {counts['trials']}, of which {counts['killed_while_writing']} were killed while a checkpoint was "
        f"being written; continued from a checkpoint {counts['resumed']}, from the start {counts['from_the_start']}",
    ]
    if counts["greatest_excess"] is not None:
        lines.append(
            f"objectives are within {counts['greatest_excess']:.5%} of the runs without failures (target "
            f"{report['tolerance']:.1%}); same bits {counts['bits_same']} of {counts['bits_compared']} compared"
        )
    for n, trial in enumerate(report["trials"]):
        lines += [f"  trial {n + 1} FAILED: {failure}" for failure in trial["failures"]]
    lines.append(f"failures: {counts['failures']}")
    if full["skipped"]:
        lines.append(f"full disk: skipped ({full['skipped']})")
    else:
        verdict = f"FAILED: {full['failed']}" if full["failed"] else "completed with a warning"
        lines.append(
            f"full disk of {bytes_si(full['size'])}, a checkpoint being {bytes_si(full['checkpoint'])}: {verdict}; "
            f"checkpoints abandoned {full['given_up']}, sound ones remaining {full['sound']}"
        )
    return "\n".join(lines)
