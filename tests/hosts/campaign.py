"""A campaign of runs on virtual hosts: each is struck, or its network is split, at a random instant.

    make campaign TRIALS=30 SEED=1 [OF=strikes|partitions] [LAUNCHER=mpirun|srun]

strikes      one of three hosts is killed, loses its power or its launch daemon, is frozen and thawed, or cut off and
             mended, while a run pushes, or trains one pass after the other
partitions   one of two or three hosts is cut off for 0.5 to 30 s, in one or in both directions, while a run pushes

Each trial is a run of its own, drawn by its seed, which is that of the first one plus its number. The run must complete
with every acknowledged push applied once, or with the bits of an undisturbed run; with one leader in each epoch and one
result; and no process of it may be left on any host. Its history is recorded, and must keep all promises
(docs/reliability.md).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import patience
from hosts.running import HostRun
from hosts.slurm_hosts import SlurmHosts, slurm_unavailable
from hosts.virtual_hosts import VirtualHosts, unavailable
from synthetic import make
from virtual import write_job

from mpips.bench._runs import conditions, described, table
from mpips.bench.failures import _processes, _pushing
from mpips.history.file import read_history
from mpips.rundir.folder import JsonLinesWriter, RunFolder
from mpips.rundir.progress import Column

STRIKES = ("kill", "power", "daemon", "freeze", "cut")
WAYS = {"both": (True, True), "sends": (True, False), "receives": (False, True)}
"""What is dropped: whether what the host sends, and what it receives."""
LATEST = 2.0
"""Seconds from the first push, or pass, to the latest fault."""
FROZEN = (0.2, 4.0)
"""For how long a host that is struck is frozen or cut off, in units of the patience: in half of all cases in vain."""
PARTED = (0.5, 30.0)
"""Seconds for which a partition lasts."""
AFTER = (0.0, 2.0)
"""Seconds from the last event to the end of the pushes."""
TRAINS = 6.0
"""Seconds, about, that a run lasts that trains."""
PAUSE = 0.01
SHOWN = 300
"""Characters that are shown of why a trial has failed."""


@dataclass(frozen=True)
class Plan:
    """One trial."""

    seed: int
    kind: str
    """One of `STRIKES`, or "partition"."""
    hosts: int
    host: int
    """The host that is struck."""
    at: float
    """Seconds after the first push, or pass."""
    lasts: float
    """Time until the host is thawed or mended: in seconds for a partition, else in units of the patience."""
    way: str
    spares: int
    trains: bool
    """Whether the run trains; else it pushes."""
    waits: bool
    """Whether the pushes go on until the others have excluded the ranks, where they must; else they end at any time."""
    after: float

    @property
    def is_mended(self) -> bool:
        """Whether the host is back after a while."""
        return self.kind in ("freeze", "cut", "partition")

    @property
    def named(self) -> str:
        """The row of the summary."""
        if self.kind == "partition":
            return f"partition {self.hosts - 1}+1, {'two ways' if self.way == 'both' else 'one way'}"
        return f"{self.kind}{', training' if self.trains else ''}"


def plan(seed: int, of: str) -> Plan:
    """Draw a trial of "strikes" or "partitions"."""
    rng = random.Random(f"{of}/{seed}")
    partition = of == "partitions"
    hosts = rng.choice((2, 3)) if partition else 3
    low, high = PARTED if partition else FROZEN
    return Plan(
        seed=seed,
        kind="partition" if partition else STRIKES[seed % len(STRIKES)],
        hosts=hosts,
        host=rng.randint(1, hosts),
        at=rng.uniform(0.0, LATEST),
        lasts=low * (high / low) ** rng.random(),
        way=rng.choice(("both", "both", "sends", "receives")),
        spares=rng.choice((0, 1)),
        trains=not partition and rng.random() < 0.25,
        waits=rng.random() < 0.75,
        after=rng.uniform(*AFTER),
    )


@dataclass
class Outcome:
    """What has become of a trial; times in seconds."""

    plan: Plan
    patience: float
    """Of heartbeats, on this machine now."""
    lost: int = 0
    doubled: int = 0
    events: int = 0
    """Of the history."""
    detection: float | None = None
    """From the fault until the last rank was noticed of those that were excluded."""
    recovery: float | None = None
    """From the fault until all that these ranks served was served again; None if they served nothing."""
    seconds: float = 0.0
    """Of the whole trial."""
    wrong: list[str] = field(default_factory=list)

    @property
    def lasts(self) -> float:
        """Seconds until the host is thawed or mended."""
        return self.plan.lasts * (1.0 if self.plan.kind == "partition" else self.patience)


class Trial:
    """One run, and what befalls it."""

    def __init__(self, planned: Plan, folder: Path, bits: str, launcher: str) -> None:
        self.plan, self._folder, self._bits, self._hosts = planned, folder, bits, HOSTS[launcher]
        # The ranks add to it where they are too many for the processors.
        self.outcome = Outcome(planned, patience(1.0) ** 0.5)
        # The ranks that may be lost, by their roles.
        self._struck: list[_processes.Injected] = []
        # Identifies the first result that was seen.
        self._first: tuple[int, int] | None = None

    def run(self) -> Outcome:
        """Run it to its end."""
        began = time.monotonic()
        planned, settings = self.plan, list(LAYOUT[self.plan.hosts])
        settings += [f"layout.spares={planned.spares}", f"heartbeat.patience={self.outcome.patience:g}"]
        self._folder.mkdir(parents=True)
        job = training_job(self._folder) if planned.trains else None
        settings += EXACT if planned.trains else []
        settings.append("trace.history=true")
        with self._hosts(planned.hosts) as hosts:
            run = HostRun(hosts, self._folder, *settings, job=job)
            try:
                run.wait_for("beginning", run.trains if planned.trains else run.pushes)
                self._befall(run, hosts)
                self._judge(run, run.end())
            except (pytest.fail.Exception, Exception) as failed:
                self.outcome.wrong.append(str(failed) or type(failed).__name__)
            finally:
                run.close()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _befall(self, run: HostRun, hosts: VirtualHosts) -> None:
        """Strike the host, mend it, and end the pushes, each at its time."""
        planned = self.plan
        time.sleep(planned.at)
        self._strike(run, hosts)
        began = time.monotonic()
        if planned.is_mended:
            # The run may end before that.
            lasts = self.outcome.lasts
            ends = lasts + planned.after if planned.waits else planned.after
            self._pass(run, began + lasts, began + ends)
            (hosts.thaw if planned.kind == "freeze" else hosts.mend)(planned.host)
            self._pass(run, began + ends, began + ends)
        else:
            if planned.waits and planned.kind != "daemon":
                gone = {each.rank for each in self._struck}
                run.wait_for("views without it", lambda: bool(run.result()) or gone <= run.excluded())
            ends = time.monotonic() + planned.after
            self._pass(run, ends, ends)
        run.enough()

    def _pass(self, run: HostRun, until: float, ends: float) -> None:
        """Wait; end the pushes when it is time, and note a result that comes meanwhile."""
        while (now := time.monotonic()) < until:
            if now > ends:
                run.enough()
            if self._first is None:
                self._first = run.identity_of_result()
            time.sleep(PAUSE)

    def _strike(self, run: HostRun, hosts: VirtualHosts) -> None:
        planned = self.plan
        number = planned.host
        for each in run.ranks():
            # Of two hosts either one may go on.
            if each["host"] == f"h{number}" or planned.hosts == 2:
                self._struck.append(
                    _processes.Injected(planned.seed, each["role"], planned.kind, each["rank"], 0.0)
                )
        daemons = [] if planned.kind != "daemon" else launch_daemons(hosts, number)
        at = time.time()
        if planned.kind in ("kill", "power"):
            (hosts.kill if planned.kind == "kill" else hosts.lose_power)(number)
        elif planned.kind == "freeze":
            hosts.freeze(number)
        elif planned.kind == "daemon":
            for pid in daemons:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            hosts.cut(number, *WAYS[planned.way])
        for each in self._struck:
            each.at = at
        with JsonLinesWriter(RunFolder(run.folder).fault_times) as lines:
            for each in self._struck:
                lines.append({"rank": each.rank, "signal": planned.kind, "wall": at})

    def _judge(self, run: HostRun, result: dict[str, Any]) -> None:
        planned, outcome = self.plan, self.outcome
        outcome.wrong += run.wrong(result)
        metrics = result.get("metrics") or {}
        outcome.lost, outcome.doubled = metrics.get("lost", 0), metrics.get("doubled", 0)
        history = read_history(RunFolder(run.folder).trace)
        outcome.events = len(history.events)
        outcome.wrong += [f"history: {': '.join(each)}" for each in history.violations()]
        if self._first not in (None, run.identity_of_result()):
            outcome.wrong.append("a second result was written")
        if planned.trains and result.get("parameters_sha256") != self._bits:
            outcome.wrong.append(f"other bits: {result.get('parameters_sha256')}")
        lost = {each["rank"]: each for each in result.get("recoveries", ())}
        struck = {each.rank for each in self._struck}
        if wrongly := sorted(set(lost) - struck) if planned.hosts == 3 else []:
            outcome.wrong.append(f"healthy ranks were excluded: {wrongly}")
        if planned.kind == "daemon" and lost:
            outcome.wrong.append(f"ranks were lost with a daemon: {sorted(lost)}")
        # `mpips run` itself is on the first host.
        if not (planned.host == 1 and planned.kind in ("kill", "power")) and (code := run.code()):
            outcome.wrong.append(f"exit code {code} of mpips run")
        self._measure(run, lost)

    def _measure(self, run: HostRun, lost: dict[int, dict[str, Any]]) -> None:
        """Determine how long it took until the ranks that were struck and lost were noticed, and replaced."""
        struck = [each for each in self._struck if each.rank in lost]
        self.outcome.detection = max((lost[each.rank]["noticed_after"] for each in struck), default=None)
        if not self.plan.trains:
            _processes.measure(struck, list(lost.values()), np.load(run.folder / _pushing.ANSWERS))
            served = (each.recovery for each in struck if each.recovery is not None)
            self.outcome.recovery = max(served, default=None)


HOSTS = {"mpirun": VirtualHosts, "srun": SlurmHosts}
LAYOUT = {
    2: ("layout.servers=2", "layout.workers=2", "ring.replicas=1"),
    3: ("layout.servers=3", "layout.workers=3", "ring.replicas=1"),
}
EXACT = ["layout.exact_sums=true"]
"""The sums of fewer workers are rounded otherwise."""


def training_job(folder: Path) -> Path:
    """Write the job of a run that trains, and its data; return its file."""
    data_set = make(folder / "data", "correlated", 400)
    return write_job(folder / "job.toml", data_set, TRAINS, servers=3, workers=3, replicas=1)


def undisturbed(folder: Path, launcher: str) -> str:
    """Train without a fault; return the hash of the parameters."""
    folder.mkdir(parents=True)
    with HOSTS[launcher](3) as hosts:
        run = HostRun(hosts, folder, *LAYOUT[3], *EXACT, job=training_job(folder))
        try:
            return str(run.end()["parameters_sha256"])
        finally:
            run.close()


def launch_daemons(hosts: VirtualHosts, number: int) -> list[int]:
    """Return the launcher's daemons on a host: mpirun itself on the first one."""
    names = ("prterun", "prted", "slurmstepd")
    return [pid for pid, line in hosts.processes(number).items() if Path(line.split(" ")[0]).name in names]


def campaign(trials: int, seed: int, of: str, folder: Path, launcher: str = "mpirun") -> list[Outcome]:
    """Run trials; print each, and keep the folders of those that fail."""
    plans = [plan(each, of) for each in range(seed, seed + trials)]
    bits = undisturbed(folder / "undisturbed", launcher) if any(each.trains for each in plans) else ""
    outcomes = []
    for each in plans:
        where = folder / f"trial-{each.seed}"
        outcome = Trial(each, where, bits, launcher).run()
        outcomes.append(outcome)
        print(line(outcome, where), flush=True)
        if outcome.wrong:
            (where / "failure").write_text("\n".join(outcome.wrong))
        else:
            shutil.rmtree(where, ignore_errors=True)
    return outcomes


def line(outcome: Outcome, folder: Path) -> str:
    """Format a trial in one line; if it has failed, more lines say why, and a file in its folder all that is known."""
    planned = outcome.plan
    told = f"trial {planned.seed}: {planned.named}, h{planned.host} after {planned.at:.2f} s"
    if planned.is_mended:
        told += f" for {outcome.lasts:.1f} s ({planned.way})"
    times = f"noticed {shown(outcome.detection)}, recovered {shown(outcome.recovery)}"
    told += f": {outcome.seconds:.1f} s, {times}; patience {outcome.patience:.1f} s"
    if outcome.wrong:
        told += f"\n  FAILED, all in {folder}/failure"
        told += "".join(f"\n  {each.splitlines()[0][:SHOWN]}" for each in outcome.wrong)
    return told


def shown(value: float | None) -> str:
    """Format a time (s)."""
    return "-" if value is None else f"{value:.2f}"


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Summarize the trials of each kind."""
    rows = []
    for kind in sorted({each.plan.named for each in outcomes}):
        mine = [each for each in outcomes if each.plan.named == kind]
        row: dict[str, Any] = {
            "kind": kind,
            "trials": len(mine),
            "completed": sum(not each.wrong for each in mine),
            "lost": sum(each.lost for each in mine),
            "doubled": sum(each.doubled for each in mine),
            "events": sum(each.events for each in mine),
        }
        for figure in ("detection", "recovery"):
            values = [value for each in mine if (value := getattr(each, figure)) is not None]
            if values:
                row[f"{figure}_p50"], row[f"{figure}_p95"] = np.percentile(values, (50, 95)).tolist()
        rows.append(row)
    return rows


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Format the summary."""
    seconds = "{:.2f}".format
    counts = [Column(name, name, 6, str) for name in ("trials", "completed", "lost", "doubled", "events")]
    times = [
        Column(f"{figure}_{part}", f"{figure} {part} (s)", 8, seconds)
        for figure in ("detection", "recovery")
        for part in ("p50", "p95")
    ]
    return table([Column("kind", "kind", 8), *counts, *times], rows)


def main() -> int:
    """Run the campaign of the command line; return 1 if a trial has failed."""
    parser = argparse.ArgumentParser(
        prog="campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--of", choices=("strikes", "partitions"), default="strikes")
    parser.add_argument("--launcher", choices=[*HOSTS], default="mpirun")
    parser.add_argument("--folder", type=Path, help="a new folder; default: a temporary one")
    options = parser.parse_args()
    if why := unavailable() or (slurm_unavailable() if options.launcher == "srun" else ""):
        print(why, file=sys.stderr)
        return 1
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="mpips-campaign-"))).absolute()
    before = conditions()
    outcomes = campaign(options.trials, options.seed, options.of, folder, options.launcher)
    print(f"\n{described(before)}; {conditions()['load']:.1f} after the end\n{text(summary(outcomes))}")
    failed = [each.plan.seed for each in outcomes if each.wrong]
    if not failed:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"failed: {json.dumps(failed)}" + (f", in {folder}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
