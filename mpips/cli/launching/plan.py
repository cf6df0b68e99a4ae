"""`mpips plan`: predict the cost of a job on another machine from short runs here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.process.argument_parser import add_command, add_set
from mpips.process.printable import one_line

if TYPE_CHECKING:
    from mpips.planning.failures import Lifetime
    from mpips.planning.model import Costs, Measured, Prediction
    from mpips.report.run_data import Run

DESCRIPTION = """\
Predict the cost of a job on other ranks and another machine: seconds of a step (a pass, a sweep), bytes, memory of a
server, time of recovery, the best split of the ranks into servers and workers. Short runs here on a few layouts
measure what the job's computation, messages and bytes cost; mpips/planning/model.py extrapolates from them.

  mpips plan jobs/sparse_lr/job.toml --nodes 16 --cores 32 --bandwidth 100Gbit
  mpips plan JOB.toml --nodes 1000 --cores 64 --bandwidth 10Gbit --latency 20us --data 5000 --keys 300 --mtbf 50000
  mpips plan JOB.toml --from runs/a runs/b runs/c       use finished runs instead of new ones
  mpips plan jobs/sparse_lr/job.toml --validate         compare predictions with runs on six other layouts here
"""

CALIBRATE = ((1, 1), (1, 2), (2, 1), (1, 3), (2, 2))
"""Servers and workers of the short runs."""
VALIDATE = ((3, 1), (3, 2), (1, 4), (2, 3), (3, 3), (3, 4))
STEPS = 12
SHOWN = 5
RECOVERY, REQUEUED = 1.0, 60.0
"""Time until a run continues after a failure that it survives, and until it restarts after another one, s."""
DISK = 500e6
"""Bytes per second that a server writes of a checkpoint."""
SIMULATED = 50_000_000
"""Approximate limit on the pieces of work that are simulated for stragglers."""
SIGMA = 0.3
"""The spread of a worker's speed in the simulation of stragglers."""
UNITS = {"bit": 1 / 8, "Kbit": 1e3 / 8, "Mbit": 1e6 / 8, "Gbit": 1e9 / 8, "B": 1.0, "MB": 1e6, "GB": 1e9}
TIMES = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def measure(units: dict[str, float]) -> Any:
    """Return an argparse type for positive numbers with a unit, as in 10Gbit or 20us."""

    def read(text: str) -> float:
        unit = next((unit for unit in sorted(units, key=len, reverse=True) if text.endswith(unit)), "")
        try:
            value = float(text.removesuffix(unit)) * units[unit]
        except (ValueError, KeyError):
            value = 0.0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"{text!r}: a number and one of {', '.join(units)}, as in 10{[*units][3]}"
            )
        return value

    return read


def positive(kind: Any) -> Any:
    """Return an argparse type for numbers above 0."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
        return value

    return read


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(
        subparsers, "plan", "predict the cost of a job on another machine", DESCRIPTION, command
    )
    number, real = positive(int), positive(float)
    parser.add_argument("job", metavar="JOB.toml", help="the job file")
    add_set(parser)
    parser.add_argument(
        "--nodes", type=number, default=1, metavar="N", help="nodes of the machine; default 1"
    )
    parser.add_argument(
        "--cores", type=number, default=32, metavar="C", help="cores, and ranks, of a node; default 32"
    )
    parser.add_argument(
        "--bandwidth", type=measure(UNITS), default=12.5e9, metavar="B", help="of a node; default 100Gbit"
    )
    parser.add_argument(
        "--latency", type=measure(TIMES), default=2e-6, metavar="T", help="one way; default 2us"
    )
    parser.add_argument("--servers", type=number, metavar="S", help="servers; default: the best number")
    parser.add_argument(
        "--data", type=real, default=1.0, metavar="X", help="amount of data, relative to the job's"
    )
    parser.add_argument(
        "--keys", type=real, default=1.0, metavar="X", help="number of keys, relative to the job's"
    )
    parser.add_argument(
        "--steps", type=number, default=100, metavar="N", help="steps of the whole run; default 100"
    )
    parser.add_argument(
        "--mtbf", type=real, default=50_000.0, metavar="H", help="hours between a node's failures"
    )
    parser.add_argument(
        "--straggle", type=real, default=SIGMA, metavar="SIGMA", help=f"spread of speeds; default {SIGMA}"
    )
    parser.add_argument(
        "--from", nargs="+", dest="runs", metavar="RUN", help="finished runs to estimate the costs from"
    )
    parser.add_argument(
        "--validate", action="store_true", help="compare predictions with runs here on other layouts"
    )


def command(arguments: argparse.Namespace) -> int:
    """Estimate the costs, and predict."""
    from mpips.bench import _runs
    from mpips.cluster.layout import MOST
    from mpips.config.overrides import override_of, with_options
    from mpips.errors import InputError
    from mpips.planning.model import fit_costs
    from mpips.report.run_data import read

    with_options(arguments.set, {"layout.servers": ("--servers", arguments.servers)})
    for what, count in (
        ("--nodes times --cores", arguments.nodes * arguments.cores),
        ("--servers", arguments.servers or 0),
    ):
        if count > MOST:
            raise InputError(f"{what} is {count}; a job has at most {MOST:,} ranks of a role")
    for each in arguments.set:
        table, key, *_ = override_of(each)[0]
        if table == "layout" and (
            key in ("workers", "spares") or (key == "servers" and not arguments.servers)
        ):
            raise InputError(f"--set {each}: a plan gets its ranks from --nodes, --cores and --servers")
    with _runs.folders(None) as folder:
        if arguments.runs:
            runs = [read(Path(run)) for run in arguments.runs]
        else:
            runs = [_short_run(arguments, folder, layout) for layout in CALIBRATE]
        for each in filter(None, (run.warning for run in runs)):
            print(f"mpips: {one_line(each)}", file=sys.stderr)
        costs = fit_costs([measured(run) for run in runs])
        print(describe_costs(costs))
        if arguments.validate:
            return validate(arguments, costs, folder)
    print(plan(arguments, costs))
    return 0


def _short_run(arguments: argparse.Namespace, folder: Path, layout: tuple[int, int]) -> Run:
    """Run a few steps of the job here."""
    from mpips.bench import _runs
    from mpips.config.job_file import load
    from mpips.errors import InputError
    from mpips.report.run_data import read

    job = load(arguments.job, arguments.set)
    key = next((key for key in ("passes", "sweeps") if hasattr(job.settings, key)), None)
    if key is None:
        raise InputError(
            f"program {job.program!r} has no setting `passes` or `sweeps` to limit a run: use --from RUN..."
        )
    servers, workers = layout
    _runs.note(f"{servers} servers, {workers} workers: {STEPS} steps")
    sizes = [f"layout.servers={servers}", f"layout.workers={workers}", "layout.spares=0", "ring.replicas=0"]
    at = folder / f"{servers}-{workers}"
    _runs.run(Path(arguments.job), at, [*arguments.set, *sizes, f"{job.table}.{key}={STEPS}"])
    return read(at)


def measured(run: Run) -> Measured:
    """Read the measurements of a finished run. InputError if it does not have them."""
    from mpips.errors import InputError
    from mpips.files.json_schema import is_number
    from mpips.planning.model import Measured, RankCounts
    from mpips.report.run_data import STEPS as NAMES
    from mpips.report.run_data import check

    steps = [
        line
        for line in run.events
        if is_number(line.get("seconds")) and any(is_number(line.get(name)) for name in NAMES)
    ]
    ranks = run.result.get("ranks", [])
    if len(steps) < 3 or not ranks:
        raise InputError(f"{run.folder.path}: a plan needs a run of at least 3 steps")
    check(run, _needed(), "plan")
    if not {"server", "worker"} <= {each["role"] for each in ranks}:
        raise InputError(f"{run.folder.path}: a plan needs a run with servers and workers")
    layout, tau = run.result["layout"], run.job["consistency"].get("tau", 0)

    def all_of(role: str, key: str) -> list[float]:
        return [float(each[key]) for each in ranks if each["role"] == role]

    return Measured(
        layout=RankCounts(layout["servers"], layout["workers"], run.job["ring"]["replicas"], tau),
        cores=int(run.about["cores"]),
        rounds=sum(line["blocks"] if is_number(line.get("blocks")) else 1 for line in steps) / len(steps),
        seconds=(steps[-1]["seconds"] - steps[0]["seconds"]) / (len(steps) - 1),
        worker_bytes=sum(all_of("worker", "sent")) / len(steps),
        server_bytes=sum(all_of("server", "sent")) / len(steps),
        server_memory=max(all_of("server", "memory")),
        load=float(run.result["seconds"]["load"]),
    )


def _needed() -> dict[str, Any]:
    """Return the form of the data that a plan reads, by file."""
    from mpips.files.json_schema import NUMBER, Each

    return {
        "job.toml": {"consistency": {"tau?": int}, "ring": {"replicas": int}},
        "run.json": {"cores": int},
        "result.json": {
            "layout": {"servers": int, "workers": int},
            "seconds": {"load": NUMBER},
            "ranks": Each({"role": str, "sent": NUMBER, "memory": NUMBER}),
        },
    }


def describe_costs(costs: Costs) -> str:
    """Describe the estimated costs."""
    from mpips.rundir.progress import bytes_si, si

    return (
        f"a step: {si(costs.compute, 's')} of one core; {costs.message * 1e6:.3g} us a message, "
        f"{costs.byte * 1e9:.3g} ns a byte, {costs.round * 1e6:.3g} us a round ({costs.rounds:.3g} rounds)\n"
        f"workers send {bytes_si(costs.worker_bytes)} x W^{1 - costs.decay:.2f} in a step; the fit reproduces these "
        f"runs within {100 * costs.error:.0f} %"
    )


def plan(arguments: argparse.Namespace, costs: Costs) -> str:
    """Format the plan for the machine of the command line."""
    from mpips.bench._runs import table
    from mpips.config.job_file import load
    from mpips.planning.failures import FailingRun, lifetime, young_interval
    from mpips.planning.model import Machine, RankCounts, best, predict, straggling
    from mpips.rundir.progress import seconds, share

    job = load(arguments.job, arguments.set)
    tau = 0 if job.consistency.is_sequential else job.consistency.tau
    costs = costs.scaled(arguments.data, arguments.keys)
    machine = Machine(arguments.cores, arguments.nodes, arguments.bandwidth, arguments.latency)
    ranks = machine.cores * machine.nodes
    layout = RankCounts(arguments.servers or 1, ranks - 1 - (arguments.servers or 1), job.ring.replicas, tau)
    found = [predict(costs, machine, layout)] if arguments.servers else best(costs, machine, ranks, layout)
    chosen = found[0]
    slow = straggling(
        chosen.layout.workers, tau, (chosen.compute + chosen.messages) / max(costs.rounds, 1),
        (chosen.seconds - chosen.compute - chosen.messages) / max(costs.rounds, 1), arguments.straggle,
        rounds=min(max(SIMULATED // chosen.layout.workers, 20), 400),
    )  # fmt: skip
    whole = arguments.steps * chosen.seconds * slow.longer
    mtbf_seconds = arguments.mtbf * 3600
    survived = FailingRun(
        whole, machine.nodes, mtbf_seconds, survives=True, recovery=RECOVERY + chosen.reread
    )
    writing = 1 + chosen.server_memory / DISK
    restarted = FailingRun(whole, machine.nodes, mtbf_seconds, False, REQUEUED + chosen.reread, writing)
    restarted = restarted._replace(every=young_interval(restarted))
    surviving, restarting = lifetime(survived), lifetime(restarted)
    lines = [
        f"{machine.nodes} nodes of {machine.cores} cores: {ranks} ranks, the best splits first",
        table(_columns(), [_row(each) for each in found[:SHOWN]]),
        "",
        f"with workers whose speed varies by {share(arguments.straggle)}: {slow.longer:.2f} times as long, "
        f"{share(slow.waiting)} of a worker's time waiting",
        f"{arguments.steps} steps: {seconds(whole)} without failures of nodes",
        f"if the run survives failures: {_describe_lifetime(surviving)}",
        f"if it restarts from a checkpoint, one every {seconds(restarted.every)}: {_describe_lifetime(restarting)}",
        f"a lost server's keys are served after 30ms, and have all copies again after {seconds(chosen.recovery)}; "
        f"a lost worker's data is read again in {seconds(chosen.reread)}",
    ]
    return "\n".join(lines)


def _describe_lifetime(found: Lifetime) -> str:
    """Describe the effect of failures on a run."""
    from mpips.rundir.progress import seconds

    if found.seconds == float("inf"):
        return "nodes fail so often that it makes no progress"
    times = f"{seconds(found.seconds)} on average, 95 % of such runs within {seconds(found.most)}"
    return f"{times}; {found.failures:.2g} failures"


def _columns() -> Sequence[Any]:
    from mpips.rundir.progress import Column, bytes_si, seconds

    return (
        Column("servers", "servers", 7),
        Column("workers", "workers", 7),
        Column("seconds", "step", 8, seconds),
        Column("compute", "compute", 8, seconds),
        Column("messages", "messages", 8, seconds),
        Column("bytes", "bytes", 8, seconds),
        Column("rounds", "rounds", 8, seconds),
        Column("network", "network", 8, seconds),
        Column("worker", "sent, worker", 8, bytes_si),
        Column("server", "sent, server", 8, bytes_si),
        Column("memory", "server holds", 8, bytes_si),
    )


def _row(each: Prediction) -> dict[str, Any]:
    layout = each.layout
    return {
        "servers": layout.servers,
        "workers": layout.workers,
        "seconds": each.seconds,
        "compute": each.compute,
        "messages": each.messages,
        "bytes": each.bytes,
        "rounds": each.rounds,
        "network": each.network,
        "worker": each.worker_sent / layout.workers,
        "server": each.server_sent / layout.servers,
        "memory": each.server_memory,
    }


def validate(arguments: argparse.Namespace, costs: Costs, folder: Path) -> int:
    """Compare predictions with runs here; return 1 if the error of any is above 25 %."""
    from mpips.bench._runs import table
    from mpips.planning.model import Machine, RankCounts, predict
    from mpips.rundir.progress import Column, bytes_si, seconds

    rows, worst = [], 0.0
    for servers, workers in VALIDATE:
        real = measured(_short_run(arguments, folder, (servers, workers)))
        planned = predict(costs, Machine(real.cores), RankCounts(servers, workers, 0, real.layout.tau))
        sent, planned_bytes = real.worker_bytes + real.server_bytes, planned.worker_sent + planned.server_sent
        error, bytes_error = planned.seconds / real.seconds - 1, planned_bytes / sent - 1
        worst = max(worst, abs(error), abs(bytes_error))
        rows.append({"servers": servers, "workers": workers, "planned": planned.seconds, "real": real.seconds,
                     "off": error, "planned_bytes": planned_bytes, "sent": sent, "off_bytes": bytes_error})  # fmt: skip
    signed = "{:+.0%}".format
    columns = (
        Column("servers", "servers", 7),
        Column("workers", "workers", 7),
        Column("planned", "step, planned", 8, seconds),
        Column("real", "measured", 8, seconds),
        Column("off", "error", 6, signed),
        Column("planned_bytes", "bytes, planned", 8, bytes_si),
        Column("sent", "measured", 8, bytes_si),
        Column("off_bytes", "error", 6, signed),
    )
    print(table(columns, rows))
    print(f"largest error {100 * worst:.0f} %")
    return int(worst > 0.25)
