"""`mpips bench faults`: random faults in random runs, whose histories are checked."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench.failures import _processes, _trial
from mpips.errors import InputError
from mpips.launch import mpi_launcher
from mpips.rundir.progress import Column

DESCRIPTION = """\
Inject random faults into runs, and check that all promises are kept.

Trials simulate clusters on the in-memory twin, in simulated time: random layouts and random pushes, pulls, rounds of
aggregated pushes and server calls, while ranks and whole hosts are killed, stopped, suspended and continued, the
network is split, messages are dropped, duplicated and delayed, clocks drift and jump, servers and workers join and
leave, and checkpoints are written. Every push, pull, round, call and view is recorded, and the history is checked
(docs/reliability.md). With --processes, ranks of real runs are killed and stopped too (Open MPI 5), their histories
are checked, recoveries are timed, and training with a death must give the same bits.

  mpips bench faults                            a thousand trials on the twin
  mpips bench faults --trials 100000 --at-once 2   a hundred thousand, two at once
  mpips bench faults --trials 0 --processes 100 a hundred faults of real processes
  mpips bench faults --only 4711                repeat one trial, and print its events
"""
SHOWN = 10
"""Maximum number of failed trials that are printed."""
CHUNK = 8
"""Trials that a process takes at once."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = _runs.parser("faults", DESCRIPTION)
    number = _runs.at_least(0)
    parser.add_argument("--trials", type=number, default=1000, metavar="N", help="on the twin; default 1000")
    parser.add_argument(
        "--seed", type=number, default=0, metavar="S", help="seed of the first trial; default 0"
    )
    parser.add_argument(
        "--processes", type=number, default=0, metavar="M", help="faults of real processes; default 0"
    )
    parser.add_argument(
        "--at-once", type=_runs.at_least(1), default=1, metavar="P", help="trials at once; default 1"
    )
    parser.add_argument("--only", type=number, metavar="SEED", help="repeat this trial alone, verbosely")
    _runs.add_json(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign; return 1 if a promise was broken, or a run did not end."""
    options = parser().parse_args(argv)
    if options.only is not None:
        return repeat(options.only)
    if options.processes and not mpi_launcher.find_starter(options.launcher).mpi.ulfm:
        raise InputError(
            f"--processes {options.processes}: this MPI ends all ranks when one dies; Open MPI 5 with ULFM is required"
        )
    conditions = _runs.conditions()
    print(_runs.described(conditions))
    report: dict[str, Any] = {"benchmark": "faults", "conditions": conditions, "seed": options.seed}
    good = True
    if options.trials:
        report["twin"] = on_twin(options.trials, options.seed, options.at_once)
        good &= not report["twin"]["failed"]
    if options.processes:
        with _runs.folders(options.keep) as folder:
            report["processes"] = on_processes(options.processes, options.seed, folder, options.launcher)
        good &= report["processes"]["good"]
    _runs.write_report(options.json, report)
    return 0 if good else 1


def repeat(seed: int) -> int:
    """Run one trial, and print its events."""
    print(f"trial {seed}: {_trial.plan(seed).text()}")
    log: list[str] = []
    outcome = _trial.run(seed, log.append)
    for line in log:
        print(f"  {line}")
    for name, count in sorted(outcome.faults.items()):
        print(f"  {count:5d} x {name}")
    print(f"  {outcome.updates} updates acknowledged, {outcome.survivors} of {outcome.ranks} ranks remain")
    print(outcome.text() or "the history keeps all promises")
    return 0 if outcome.ok else 1


# --- on the twin -----------------------------------------------------------------------------------------


def on_twin(count: int, seed: int, at_once: int = 1) -> dict[str, Any]:
    """Run trials on the twin, `at_once` in processes of their own; print the outcomes, and return them, JSON-able."""
    began = time.perf_counter()
    outcomes: list[_trial.Outcome] = []
    for outcome in _outcomes(range(seed, seed + count), at_once):
        each = outcome.seed
        outcomes.append(outcome)
        if not outcome.ok and sum(not one.ok for one in outcomes) <= SHOWN:
            print(
                f"trial {each}: {outcome.text()[:300]}\n  repeat it: mpips bench faults --only {each}",
                flush=True,
            )
    summary = summed(outcomes) | {"seconds": time.perf_counter() - began}
    print(twin_text(summary))
    return summary


def _outcomes(seeds: range, at_once: int) -> Iterator[_trial.Outcome]:
    """Yield the outcomes of trials in the order of their seeds."""
    if at_once == 1:
        yield from map(_trial.run, seeds)
        return
    # A fork would copy what this process is doing.
    with ProcessPoolExecutor(at_once, get_context("spawn")) as pool:
        yield from pool.map(_trial.run, seeds, chunksize=CHUNK)


def summed(outcomes: Sequence[_trial.Outcome]) -> dict[str, Any]:
    """Add up trials."""
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults += outcome.faults
    return {
        "trials": len(outcomes),
        "survived": sum(outcome.ok for outcome in outcomes),
        "failed": [outcome.seed for outcome in outcomes if not outcome.ok],
        "faults": dict(sorted(faults.items())),
        "ranks": sum(outcome.ranks for outcome in outcomes),
        "surviving_ranks": sum(outcome.survivors for outcome in outcomes),
        "updates": sum(outcome.updates for outcome in outcomes),
        "uninformed": sum(outcome.uninformed for outcome in outcomes),
        "events": sum(outcome.events for outcome in outcomes),
        "violations": dict(
            sorted(Counter(each.promise for one in outcomes for each in one.violations).items())
        ),
    }


def twin_text(summary: dict[str, Any]) -> str:
    """Format the outcomes of the trials on the twin."""
    rows = [{"fault": name, "count": count} for name, count in summary["faults"].items()]
    columns = (Column("fault", "injected", 12), Column("count", "times", 8, "{:,}".format))
    return "\n".join(
        [
            "",
            f"on the in-memory twin, {summary['seconds']:.1f} s",
            _runs.table(columns, rows),
            f"trials survived: {summary['survived']} of {summary['trials']}; "
            f"ranks at the end: {summary['surviving_ranks']:,} of {summary['ranks']:,}; "
            f"continued, and not informed of their exclusion: {summary['uninformed']}",
            f"updates acknowledged: {summary['updates']:,}; events: {summary['events']:,}; "
            f"violations: {summary['violations'] or 'none'}",
        ]
    )


# --- on real processes -----------------------------------------------------------------------------------


def on_processes(count: int, seed: int, folder: Path, launcher: str) -> dict[str, Any]:
    """Inject faults into real ranks, and train with deaths; print the outcomes; return them as JSON-able data."""
    launches = _processes.inject_many(count, seed, folder, launcher)
    trained = _processes.train(folder, seed, launcher)
    injected = [each for launched in launches for each in launched.injected]
    table = [
        {"injected": f"{role}, {act}", "times": len(mine)} | times(mine)
        for act in ("kill", "stop")
        for role in ("server", "worker", "scheduler")
        if (mine := [each for each in injected if (each.role, each.act) == (role, act)])
    ]
    errors = [f"launch {each.number}: {each.error}" for each in launches if each.error]
    errors += [f"launch {each.number}: {text}" for each in launches for text in each.broken]
    errors += [f"training, {each.killed} killed: {each.error}" for each in trained if each.error]
    facts = {
        "faults": len(injected),
        "lossy_launches": sum(each.lossy for each in launches),
        "survivors": sum(each.survivors for each in launches),
        "updates": sum(each.updates for each in launches),
        "lost": sum(each.lost for each in launches),
        "doubled": sum(each.doubled for each in launches),
        "left_behind": sum(each.left_behind for each in launches),
        "events": sum(each.events for each in launches),
        "same_bits": all(each.same for each in trained),
        "errors": errors,
        "table": table,
        **_processes.to_json(launches, trained),
    }
    wrong = errors or facts["lost"] or facts["doubled"] or facts["left_behind"] or not facts["same_bits"]
    facts["good"] = not wrong
    print(processes_text(facts))
    return facts


FIGURES = ("recovery", "detection", "takeover")


def times(injected: Iterable[_processes.Injected]) -> dict[str, float]:
    """Return median, 99th percentile and maximum of each time of some faults (s), without those that had no effect."""
    found: dict[str, float] = {}
    injected = list(injected)
    for figure in FIGURES:
        values = [value for each in injected if (value := getattr(each, figure)) is not None]
        if values:
            found[f"{figure}_median"] = float(np.median(values))
            found[f"{figure}_p99"] = float(np.percentile(values, 99))
            found[f"{figure}_max"] = max(values)
    return found


def processes_text(facts: dict[str, Any]) -> str:
    """Format the outcomes of the faults of real processes."""
    seconds = "{:.3f}".format
    columns = [Column("injected", "injected", 10), Column("times", "times", 5)]
    for figure in FIGURES:
        columns += [
            Column(f"{figure}_median", f"{figure} (s)", 8, seconds),
            Column(f"{figure}_p99", "p99", 6, seconds),
            Column(f"{figure}_max", "max", 6, seconds),
        ]
    training = "; ".join(
        f"{each['killed']} killed: {each['seconds']:.2f} s, {'same bits' if each['same'] else 'OTHER BITS'}"
        for each in facts["training"]
    )
    return "\n".join(
        [
            "",
            f"on real processes: {facts['faults']} faults in {len(facts['launches'])} launches, "
            f"{facts['lossy_launches']} of which lose and duplicate 1 % of all messages",
            _runs.table(columns, facts["table"]),
            f"updates acknowledged: {facts['updates']:,}; lost: {facts['lost']}; applied twice: {facts['doubled']}; "
            f"events of the histories: {facts['events']:,}; "
            f"continued ranks that did not leave: {facts['left_behind']}; ranks at the end: {facts['survivors']}",
            f"training: {training}",
            *facts["errors"],
        ]
    )
