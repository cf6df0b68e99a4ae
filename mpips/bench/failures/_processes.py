"""Faults of real processes: ranks are killed and stopped from outside during pushes, and the recovery is timed.

One launch has several faults, one after the other, each at a random time after all copies are complete again. The
workers of `_pushing` record when each push was answered and by which primary, which gives the time when the shards of a
faulty server were served again; and when each call of the scheduler arrived, which gives the same for a scheduler or
worker.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench.failures import _pushing
from mpips.history.file import read_history
from mpips.process.host import is_gone
from mpips.rundir import order_files
from mpips.rundir.folder import JsonLinesWriter, RunFolder

SERVERS, WORKERS, SPARES, REPLICAS = 4, 2, 4, 1
PER_LAUNCH = 7
"""Number of faults of one launch."""
PAUSE = (0.2, 0.7)
"""Seconds between the recovery from one fault and the next fault."""
STOP_TIME = 1.0
"""Seconds after which a stopped rank is continued."""
PATIENCE, LONG_PATIENCE = 0.4, 3.0
"""Seconds of silence after which a rank counts as hung: in launches whose ranks are stopped, and in the others."""
ROLES = ("server", "server", "server", "scheduler", "worker")
LOSSY = ("faults.drop={probability=0.01}", "faults.duplicate={probability=0.01, seconds=0.01}")
RANK = re.compile(r"rank (\d+)")


@dataclass
class Injected:
    """One fault and its cost; times in seconds."""

    launch: int
    role: str
    act: str
    """kill or stop."""
    rank: int
    at: float
    """Wall."""
    recovery: float | None = None
    """Time until everything that the rank served is served again; None if it served nothing."""
    detection: float | None = None
    takeover: float | None = None


@dataclass
class Launched:
    """One launch with its faults."""

    number: int
    lossy: bool
    """Messages are lost and duplicated."""
    stops: bool
    """Ranks are stopped; else they are killed."""
    injected: list[Injected] = field(default_factory=list)
    updates: int = 0
    lost: int = 0
    doubled: int = 0
    survivors: int = 0
    left_behind: int = 0
    """Ranks that were continued and did not leave."""
    events: int = 0
    """Length of the history."""
    broken: list[str] = field(default_factory=list)
    """The promises that are broken in it."""
    error: str = ""


def inject_many(count: int, seed: int, folder: Path, launcher: str = "auto") -> list[Launched]:
    """Inject `count` faults, in as many launches as this needs."""
    launches: list[Launched] = []
    left = count
    while left > 0:
        number = len(launches)
        launched = inject(min(left, PER_LAUNCH), seed, number, folder / f"launch-{number}", launcher)
        launches.append(launched)
        left -= len(launched.injected)
        _runs.note(
            f"launch {number}: {len(launched.injected)} faults, "
            f"{launched.error or 'all updates present' if not launched.lost + launched.doubled else 'WRONG'}"
        )
        if launched.error:
            break
    return launches


def inject(count: int, seed: int, number: int, folder: Path, launcher: str = "auto") -> Launched:
    """Launch once and inject this number of faults."""
    rng = random.Random(f"processes/{seed}/{number}")
    launched = Launched(number, lossy=number % 2 == 1, stops=number % 4 == 2)
    job = folder.parent / "pushing.toml"
    job.parent.mkdir(parents=True, exist_ok=True)
    job.write_text('[job]\nprogram = "mpips.bench.failures._pushing"\n')
    patience = PATIENCE if launched.stops else LONG_PATIENCE
    settings = [
        f"layout.servers={SERVERS}", f"layout.workers={WORKERS}", f"layout.spares={SPARES}",
        f"ring.replicas={REPLICAS}", "ring.virtual_servers=1", f"heartbeat.patience={patience}",
        f"_pushing.seconds={10.0 + 6.0 * count}", "trace.history=true", *(LOSSY if launched.lossy else ()),
    ]  # fmt: skip
    schedule = _FaultSchedule(folder, launched, count, rng)
    try:
        run = _runs.run(job, folder, settings, launcher, watch=schedule)
    except _runs.RunFailed as failed:
        launched.error = failed.text
        return launched
    finally:
        schedule.continue_all()
    metrics = run.result["metrics"]
    launched.updates, launched.lost, launched.doubled = (
        metrics["updates"],
        metrics["lost"],
        metrics["doubled"],
    )
    launched.survivors = len(schedule.pids) - len(run.result["recoveries"])
    launched.left_behind = sum(not is_gone(schedule.pids[each.rank]) for each in launched.injected)
    history = read_history(RunFolder(folder).trace)
    launched.events = len(history.events)
    launched.broken = [": ".join(each) for each in history.violations()]
    measure(launched.injected, run.result["recoveries"], np.load(folder / _pushing.ANSWERS))
    return launched


class _FaultSchedule:
    """Injects faults into the ranks of a run while it is watched."""

    def __init__(self, folder: Path, launched: Launched, count: int, rng: random.Random) -> None:
        self._folder, self._launched, self._left, self._rng = folder, launched, count, rng
        self.pids: dict[int, int] = {}
        self._next = 0.0
        self._to_continue: list[tuple[float, int]] = []

    def __call__(self, folder: Path) -> None:
        """Do the next action if it is due."""
        now = time.time()
        for at, pid in [each for each in self._to_continue if each[0] <= now]:
            self._to_continue.remove((at, pid))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        if now < self._next or (folder / "result.json").exists():
            return
        if not self._left:
            (folder / _pushing.ENOUGH).touch()
            return
        if not self.pids:
            self.pids = {each["rank"]: each["pid"] for each in _runs.ranks_of(folder)}
            return
        if not _runs.has_event(folder, "begun"):
            return
        ok, text = order_files.ask(folder, "status", patience=2.0)
        if ok and "copied" not in text and self._last_fault_over(text, now):
            self._inject(text)
        else:
            self._next = now + 0.05

    def _last_fault_over(self, status: str, now: float) -> bool:
        """Return whether the last fault is over: the rank is excluded, or was continued in time."""
        if not self._launched.injected:
            return True
        last = self._launched.injected[-1]
        lost = any(line.strip().startswith(f"lost: rank {last.rank} ") for line in status.splitlines())
        return lost or (last.act == "stop" and now > last.at + 2 * STOP_TIME)

    def continue_all(self) -> None:
        """Continue all stopped processes."""
        for _, pid in self._to_continue:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _inject(self, status: str) -> None:
        found = choose(status, self._rng)
        if found is None:
            return
        role, rank = found
        act, pid = "stop" if self._launched.stops else "kill", self.pids[rank]
        time.sleep(self._rng.uniform(0, 0.05))
        kind = signal.SIGSTOP if act == "stop" else signal.SIGKILL
        at = time.time()
        os.kill(pid, kind)
        with JsonLinesWriter(RunFolder(self._folder).fault_times) as lines:
            lines.append({"rank": rank, "signal": kind.name, "wall": at})
        if act == "stop":
            self._to_continue.append((at + STOP_TIME, pid))
        self._launched.injected.append(Injected(self._launched.number, role, act, rank, at))
        self._left -= 1
        self._next = at + self._rng.uniform(*PAUSE) + (STOP_TIME if act == "stop" else 0.5)


def choose(status: str, rng: random.Random) -> tuple[str, int] | None:
    """Choose the rank of the next fault by the output of `mpips ctl RUN status`: (role, rank); None if it must live.

    Two servers must remain, spares included, and the first worker, which has the record of all answers.
    """
    here = {
        name.strip(): [int(rank) for rank in RANK.findall(rest)]
        for name, _, rest in (line.partition(":") for line in status.splitlines()[1:])
    }
    role, leader = rng.choice(ROLES), here["leader"][0]
    servers, workers = here["servers"], here["workers"]
    others = {"server": servers, "worker": workers[1:]}.get(role, [])
    victims = [leader] if role == "scheduler" else [rank for rank in others if rank != leader]
    if not victims:
        return None
    rank = rng.choice(victims)
    spares = [each for each in here["spares"] if each != rank]
    if rank not in workers and len({*servers, *spares} - {rank}) < 2:
        return None
    return role, rank


def measure(
    injected: Sequence[Injected], recoveries: Sequence[dict[str, Any]], answers: NDArray[Any]
) -> None:
    """Determine the duration of each fault's effect.

    `recoveries` are the result's; `answers` f8[n, 4] the workers' records: (shard, primary, issued, answered).
    """
    noticed = {each["rank"]: each["noticed_after"] for each in recoveries}
    answers = answers[np.argsort(answers[:, 3])]
    shard, primary, answered = answers[:, 0], answers[:, 1], answers[:, 3]
    for each in injected:
        each.detection = noticed.get(each.rank)
        if each.role == "server":
            firsts = []
            for of in np.unique(shard[shard >= 0]):
                mine = shard == of
                last = np.flatnonzero(mine & (answered < each.at))
                if len(last) and primary[last[-1]] == each.rank:
                    firsts += answered[mine & (answered > each.at) & (primary != each.rank)][:1].tolist()
            each.recovery = max(firsts) - each.at if firsts else None
        elif each.detection is not None:
            later = answered[(shard == _pushing.CALLS) & (answered > each.at + each.detection)]
            each.recovery = float(later[0]) - each.at if len(later) else None
        if each.recovery is not None and each.detection is not None:
            each.takeover = each.recovery - each.detection


# --- training --------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """A training run, and which rank was killed in it."""

    killed: str
    seconds: float
    sha: str
    recoveries: int
    same: bool = True
    error: str = ""


def train(folder: Path, seed: int, launcher: str = "auto") -> list[Trained]:
    """Train sparse_lr without a fault, then with a server, then with the scheduler killed: the same bits."""
    rng = random.Random(f"train/{seed}")
    data = folder / "examples.svm"
    write_examples(data, seed)
    runs: list[Trained] = []
    for role in ("none", "server", "scheduler"):
        where = folder / f"train-{role}"
        killer = _killer(role, rng.uniform(0.0, 0.3))
        settings = [
            f"data.train={json.dumps(str(data))}", "data.test=[]", "data.crosses=[]",
            "layout.servers=2", "layout.workers=2", "layout.spares=1", "ring.replicas=1",
            "consistency.tau=0", "sparse_lr.passes=60", "sparse_lr.epsilon=1e-300",
            "sparse_lr.newton=false",
        ]  # fmt: skip
        try:
            result = _runs.run(_runs.job_file(), where, settings, launcher, watch=killer).result
        except _runs.RunFailed as failed:
            runs.append(Trained(role, 0.0, "", 0, False, failed.text))
            continue
        runs.append(
            Trained(role, result["seconds"]["train"], result["parameters_sha256"], len(result["recoveries"]))
        )
        runs[-1].same = runs[-1].sha == runs[0].sha
        if role != "none" and not runs[-1].recoveries:
            runs[-1].error = "the training ended before"
    return runs


def write_examples(path: Path, seed: int) -> None:
    """Write 4,000 examples with 20 of 500 features each; the labels depend on some of them."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = rng.normal(size=500) * (rng.random(500) < 0.2)
    with path.open("w") as file:
        for _ in range(4000):
            keys = np.sort(rng.choice(500, 20, replace=False))
            label = 1 if weights[keys].sum() + rng.normal() > 0 else -1
            file.write(f"{label:+d} " + " ".join(f"{key + 1}:1" for key in keys) + "\n")


def _killer(role: str, after: float) -> Callable[[Path], None]:
    """Kill the first rank of a role, a given time (s) after the first pass."""
    due: list[float] = []

    def watch(folder: Path) -> None:
        if role == "none" or (due and due[0] < 0):
            return
        if not due and _runs.has_event(folder, "pass"):
            due.append(time.time() + after)
        if due and time.time() >= due[0]:
            due[0] = -1.0
            pid = next(each["pid"] for each in _runs.ranks_of(folder) if each["role"] == role)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    return watch


def to_json(launches: Sequence[Launched], trained: Sequence[Trained]) -> dict[str, Any]:
    """Return all measurements as JSON-able data."""
    return {"launches": [asdict(each) for each in launches], "training": [asdict(each) for each in trained]}
