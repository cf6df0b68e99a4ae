"""`mpips bench sparse_lr`: time to the optimum compared with single-process solvers, on the same data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, note, summarize
from mpips.bench.applications import _liblinear, _solvers
from mpips.config.job_file import Job, load
from mpips.errors import InputError
from mpips.rundir.progress import Column, bytes_si, seconds, share, significant

DESCRIPTION = """\
Training time of the block proximal method to 0.1 % above the optimum, compared with scikit-learn's liblinear L1 solver,
and with skglm, celer and snapml as far as they are installed, alternating on the same data. mpips: seconds of training
at the first pass whose objective is not above the target. The others: seconds of the fit alone, on one thread, at the
loosest tolerance that reaches the target (determined before), in a process that has compiled what it needs. Times do
not include reading the data; they order the data by columns within the fit, mpips does so while reading, so the time of
reading is shown too.

  mpips bench sparse_lr                                  the project's own data: flights, 205,119 features
  mpips bench sparse_lr --repeat 5 --json speed.json
  mpips bench sparse_lr --train news20.train.svm.xz --test news20.test.svm.xz --optimum 1056.5146
  mpips bench sparse_lr --train log.tsv --set 'data.crosses=[["site", "hour"]]' --l1 5
  mpips bench sparse_lr --set consistency.tau=4 --servers 2

The optimum is that of liblinear at tolerance 1e-6. Its computation may take minutes; it is cached in ~/.cache/mpips.
"""

FLIGHTS_OPTIMUM = 99169.717
"""The optimum of the job's own data at l1 = 1: liblinear at tolerance 1e-6 (jobs/sparse_lr/README.md)."""

COLUMNS = (
    Column("what", "", 32, lambda text: str(text).ljust(32)),
    Column("median", "median", 9),
    Column("min", "min", 9),
    Column("max", "max", 9),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if mpips did not reach the target."""
    parser = _runs.common_parser("sparse_lr", DESCRIPTION)
    parser.add_argument("--l1", type=at_least(1e-12, float), default=1.0, help="default 1")
    parser.add_argument(
        "--target", type=_runs.above_one, default=1.001, help="relative to the optimum; default 1.001"
    )
    parser.add_argument("--optimum", type=at_least(0.0, float), metavar="F", help="the optimum, if known")
    options = parser.parse_args(arguments)
    _liblinear.check_installed()
    settings = [f"sparse_lr.l1={options.l1!r}", *_runs.overrides(options)]
    job_file = _runs.job_file()
    job = load(job_file, settings)
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        data = folder / "data.npz"
        note("reading the data for liblinear")
        size = _liblinear.write_data(job.data, job.base, data)
        best, source = known_optimum(options.optimum, job, bool(options.train or options.set), data)
        target = options.target * best
        runs: list[FinishedRun] = []
        with ExitStack() as processes:
            fits, solvers = start_solvers(processes, data, job.settings.l1, target)
            for number in range(options.repeat):
                note(f"round {number + 1} of {options.repeat}")
                turns = ["mpips", *solvers]
                for turn in turns[:: 1 if number % 2 == 0 else -1]:
                    if turn == "mpips":
                        runs.append(_runs.run(job_file, folder / f"run-{number}", settings, options.launcher))
                    else:
                        solvers[turn]["fits"].append(fits[turn](solvers[turn]["tolerance"]))
        data.unlink()
    report = {
        "benchmark": "sparse_lr",
        "conditions": conditions,
        "data": size,
        "l1": job.settings.l1,
        "optimum": best,
        "optimum_from": source,
        "target": target,
        "layout": runs[0].result["layout"],
        "solvers": solvers,
        "mpips": [measured(run, target) for run in runs],
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0 if all(each["seconds"] is not None for each in report["mpips"]) else 1


def start_solvers(
    processes: ExitStack, data: Path, l1: float, target: float
) -> tuple[dict[str, _liblinear.Fit], dict[str, dict[str, Any]]]:
    """Start the installed solvers that reach the target; return their fits, and for each its tolerance, and no fits."""
    fits: dict[str, _liblinear.Fit] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in _solvers.installed():
        note(f"searching the loosest tolerance of {name} that reaches the target")
        fits[name] = processes.enter_context(_liblinear.fits(data, l1, name))
        try:
            tolerance = _liblinear.loosest_tolerance(fits[name], target, name)
        except InputError as error:
            if name == "liblinear":
                raise
            note(f"{name} is left out: {error}")
            continue
        found[name] = {"tolerance": tolerance, "fits": []}
    return fits, found


def known_optimum(given: float | None, job: Job, own_data: bool, data: Path) -> tuple[float, str]:
    """Return the optimum, and its source."""
    if given is not None:
        return given, "given"
    if not own_data and job.settings.l1 == 1.0:
        return FLIGHTS_OPTIMUM, "liblinear, tolerance 1e-06, known for this data"
    note("computing the optimum by liblinear; this may take minutes, once")
    return _liblinear.optimum(data, job.settings.l1)


def find_optimum(options: argparse.Namespace, job: Job, folder: Path) -> tuple[float, str]:
    """Return the optimum, and its source; it is computed in a folder unless it is known."""
    own_data = bool(options.train or options.set)
    data = folder / "data.npz"
    if options.optimum is None and (own_data or job.settings.l1 != 1.0):
        _liblinear.check_installed()
        _liblinear.write_data(job.data, job.base, data)
    found = known_optimum(options.optimum, job, own_data, data)
    data.unlink(missing_ok=True)
    return found


def measured(run: FinishedRun, target: float) -> dict[str, Any]:
    """Return the measurements of a run; None if it did not reach the target."""
    reached = run.reached(target)
    return {
        "seconds": reached["seconds"] if reached else None,
        "passes": reached["pass"] if reached else None,
        "seconds_load": run.result["seconds"]["load"],
        "seconds_train": run.result["seconds"]["train"],
        "passes_train": run.result["metrics"]["passes"],
        "objective": run.result["metrics"]["objective"],
        "nonzeros": run.result["metrics"]["nonzeros"],
        "sent": run.sent,
        "waiting": _runs.waiting(run),
        "auc": run.result["metrics"]["auc"],
    }


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    size, runs, solvers = report["data"], report["mpips"], report["solvers"]
    layout, best, target = report["layout"], report["optimum"], report["target"]
    rows: list[dict[str, Any]] = []

    def add(what: str, values: list[Any], show: Any) -> None:
        values = [value for value in values if value is not None]
        rows.append({"what": what} | ({k: show(v) for k, v in summarize(values).items()} if values else {}))

    def of(key: str) -> list[Any]:
        return [each[key] for each in runs]

    add("mpips, to the target", of("seconds"), seconds)
    for name, each in solvers.items():
        add(f"{name}, to the target", [fit["seconds"] for fit in each["fits"]], seconds)
    add("mpips, to convergence", of("seconds_train"), seconds)
    add("mpips, reading the data", of("seconds_load"), seconds)
    add("mpips, passes to the target", of("passes"), "{:g}".format)
    add("mpips, passes to convergence", of("passes_train"), "{:g}".format)
    add("mpips, bytes sent", of("sent"), bytes_si)
    add("mpips, workers' waiting", of("waiting"), share)
    add("mpips, final objective/optimum", [each / best for each in of("objective")], significant(7))
    for name, each in solvers.items():
        add(f"{name}, objective/optimum", [fit["objective"] / best for fit in each["fits"]], significant(7))
    tolerances = ", ".join(f"{name} {each['tolerance']:.2g}" for name, each in solvers.items())
    lines = [
        _runs.described(report["conditions"]),
        f"data: {size['examples']:,} examples, {size['features']:,} features, {size['nonzeros']:,} non-zeros; "
        f"l1 = {report['l1']:g}",
        f"optimum {best:.8g} ({report['optimum_from']}); target {target:.8g} = {target / best:.6g} times it",
        f"mpips: servers {layout['servers']}, workers {layout['workers']}; the others: one thread, tolerance "
        f"{tolerances}; {len(runs)} alternating rounds",
        "",
        _runs.table(COLUMNS, rows),
        "",
    ]
    times = [value for value in of("seconds") if value is not None]
    if len(times) < len(runs):
        lines.append(f"mpips did not reach the target in {len(runs) - len(times)} of {len(runs)} runs")
    else:
        own = summarize(times)["median"]
        for name, each in solvers.items():
            ratio = own / summarize(fit["seconds"] for fit in each["fits"])["median"]
            lines.append(f"mpips takes {ratio:.2f} times {name}'s time to the target (medians)")
    return "\n".join(lines)
