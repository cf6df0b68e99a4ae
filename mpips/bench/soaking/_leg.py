"""One start of a soak, a *leg*: a run of `_soaking` into which a fault is injected every few seconds. See `soak`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

from mpips.bench import _runs
from mpips.bench.failures import _processes
from mpips.bench.failures._killing import GONE, began, kill, shared_memory, wait_for
from mpips.bench.soaking import _soaking
from mpips.bench.soaking._samples import Held
from mpips.exit_codes import ExitCode
from mpips.process import dependent
from mpips.process.interpreter import python
from mpips.rundir import order_files

SERVERS, WORKERS, SPARES, REPLICAS = 3, 3, 8, 1
PATIENCE = 2.0
"""Seconds of silence after which a rank counts as hung, before it is multiplied where cores are few."""
PAUSE = (1.0, 4.0)
"""Seconds between two faults."""
SAMPLED_EVERY = 5.0
BRIEF = (0.05, 0.4)
"""How long a paused rank is stopped, in units of the patience: it must not be lost."""
HUNG = 12.0
"""Seconds for which a hung rank is stopped, at most: until it is excluded."""
SLOW = (20, 0.02, 0.03)
"""A slow rank: how often it is stopped, for how long, and how long it runs in between, s."""
BEGINS, ENDS = 300.0, 300.0
"""Seconds within which a leg must begin to push, and end: beside other work, 15 ranks on 2 cores need minutes."""
CHECKPOINTED_EVERY = 10
"""Seconds between two checkpoints that the run writes by itself."""
LEAST_SPARES = 1
"""Spares that faults leave, for orders to join."""
EXPENDING = ("kill server", "kill worker", "kill scheduler", "hang server", "hang worker")
"""Faults that cost a rank."""
OTHERS = (
    "pause server", "pause worker", "pause scheduler", "pause all", "slow server", "slow worker",
    "checkpoint", "status", "join server", "leave server", "join worker", "leave worker",
)  # fmt: skip


@dataclass
class Leg:
    """What happened in one leg."""

    number: int
    seconds: float = 0.0
    ended: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    """Orders that the run has refused, such as to join without a spare."""
    checks: int = 0
    updates: int = 0
    lost: int = 0
    doubled: int = 0
    stale: int = 0
    recovered: int = 0
    """Ranks that were lost, as the run says."""
    held: list[Held] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class LegRun:
    """Runs one leg; see the module."""

    def __init__(
        self, job: Path, run: Path, number: int, rng: random.Random, settings: Sequence[str], launcher: str
    ) -> None:
        self.leg, self._run, self._rng = Leg(number), run, rng
        self._metrics, self._read = run / "metrics.jsonl", 0
        self._pids: dict[int, int] = {}
        # When they began: an id is another process's later, which must not be stopped, killed or sampled.
        self._since: dict[int, int | None] = {}
        self._roles: dict[int, str] = {}
        self._held: dict[int, Held] = {}
        self._segments: set[Path] = set()
        self._stopped: dict[int, Timer] = {}
        # Ranks that were hung or killed, and must be lost.
        self._expended: set[int] = set()
        self._sampled = self._next = self._began = 0.0
        self._lasts = 1.0
        command = [
            *python(),
            "-m",
            "mpips.cli",
            "run",
            str(job),
            "--run-dir",
            str(run),
            "--launcher",
            launcher,
        ]
        command += ["--resume", "latest"] if number else []
        lossy = _processes.LOSSY if number % 2 else ()
        for setting in [
            f"layout.servers={SERVERS}", f"layout.workers={WORKERS}", f"layout.spares={SPARES}",
            f"ring.replicas={REPLICAS}", f"heartbeat.patience={PATIENCE}", f"_soaking.leg={number}",
            f"checkpoint.every_seconds={CHECKPOINTED_EVERY}", *lossy, *settings,
            f"checkpoint.directory={json.dumps(str(run.parent / 'checkpoints'))}",
        ]:  # fmt: skip
            command += ["--set", setting]
        self._output = run.parent / f"output-{number}"
        self._command = command

    def run(self, seconds: float, ends: str, say: Callable[[str], None]) -> Leg:
        """Run for some time; `ends`: "stop", "kill" or "complete"."""
        leg, began = self.leg, time.monotonic()
        leg.ended, self._began, self._lasts = ends, began, seconds
        with self._output.open("wb") as out:
            process = subprocess.Popen(
                dependent.line(self._command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            if self._waits(process, self._begins, BEGINS, "begin to push"):
                self._disturb(process, began + seconds, say)
                self._end(process, ends)
        finally:
            self._continue_all()
            self._kill_all(process)
        leg.seconds = time.monotonic() - began
        self._collect()
        return leg

    # --- its course --------------------------------------------------------------------------------

    def _waits(
        self, process: subprocess.Popen[bytes], condition: Callable[[], bool], seconds: float, what: str
    ) -> bool:
        deadline = time.monotonic() + seconds
        while not condition():
            if process.poll() is not None or time.monotonic() > deadline:
                self.leg.wrong.append(f"it did not {what}: {self._last_line()}")
                return False
            time.sleep(0.05)
        return True

    def _begins(self) -> bool:
        ranks = _runs.ranks_of(self._run)
        self._pids = {each["rank"]: each["pid"] for each in ranks}
        self._since = {rank: began(pid) for rank, pid in self._pids.items()}
        return any(each["leg"] == self.leg.number for each in self._checks())

    def _disturb(self, process: subprocess.Popen[bytes], until: float, say: Callable[[str], None]) -> None:
        self._next = time.monotonic() + self._rng.uniform(*PAUSE)
        while (now := time.monotonic()) < until:
            if process.poll() is not None:
                self.leg.wrong.append(f"it ended by itself: {self._last_line()}")
                return
            if now >= self._sampled + SAMPLED_EVERY:
                self._sample(now)
                say(self.progress())
            if now >= self._next:
                self._inject()
                self._next = time.monotonic() + self._rng.uniform(*PAUSE)
            time.sleep(0.05)

    def _end(self, process: subprocess.Popen[bytes], ends: str) -> None:
        self._continue_all()
        if process.poll() is not None:
            return
        if ends == "kill":
            # The next leg continues from the last checkpoint.
            self._kill_all(process)
            return
        if ends == "stop":
            self._order("stop", {})
        else:
            (self._run / _soaking.ENOUGH).touch()
        wanted = ExitCode.STOPPED if ends == "stop" else ExitCode.COMPLETED
        try:
            code = process.wait(ENDS)
        except subprocess.TimeoutExpired:
            self.leg.wrong.append(f"it did not end within {ENDS:g} s after the order to {ends}")
            return
        if code != wanted:
            self.leg.wrong.append(f"it ended with exit code {code}, not {wanted}: {self._last_line()}")
        wait_for(lambda: not self._alive(), GONE)
        left = [f"process {pid} of rank {rank}" for rank, pid in self._alive().items()]
        if not self._expended:
            # Killed processes do not remove their files.
            left += [str(path) for path in sorted(self._segments) if path.exists()]
        self.leg.wrong += [f"left behind: {each}" for each in left]

    def _collect(self) -> None:
        leg = self.leg
        checks = [each for each in self._checks() if each["leg"] == leg.number]
        if checks:
            last = checks[-1]
            leg.checks, leg.updates = last["checks"], last["updates"]
            leg.lost, leg.doubled, leg.stale = last["lost"], last["doubled"], last["stale"]
        for name in ("lost", "doubled", "stale"):
            if getattr(leg, name):
                leg.wrong.append(f"updates that are {name}: {getattr(leg, name)}")
        if not checks:
            leg.wrong.append("no check was made")
        with suppress(OSError, ValueError):
            result = json.loads((self._run / "result.json").read_text())
            leg.recovered = len(result.get("recoveries", ()))
            healthy = sorted({each["rank"] for each in result.get("recoveries", ())} - self._expended)
            if healthy and leg.ended != "kill":
                leg.wrong.append(f"healthy ranks were excluded: {healthy}")
        leg.held += [each for each in self._held.values() if each.times]

    # --- faults -----------------------------------------------------------------------------------

    def _inject(self) -> None:
        """Inject one random fault, if it is possible now."""
        status = self._order("status", {})
        if not status:
            return
        here = self._roles_in(status)
        spares = len(here["spares"])
        settled = "copied" not in status and self._expended <= self._lost_in(status)
        kinds = list(OTHERS)
        # Evenly over the leg.
        due = (time.monotonic() - self._began) / self._lasts * SPARES
        if settled and spares > LEAST_SPARES and len(self._expended) < due:
            kinds += EXPENDING * 2
        kind = self._rng.choice(kinds)
        act, _, role = kind.partition(" ")
        if act in ("checkpoint", "status"):
            self._order(act, {})
        elif act == "join":
            self._order("join", {"role": role})
        elif act == "leave":
            ranks = [rank for rank in here[f"{role}s"] if rank not in here["leader"]]
            if len(here[f"{role}s"]) <= REPLICAS + 1 or not ranks:
                return
            self._order("leave", {"rank": self._rng.choice(ranks)})
        else:
            ranks = self._victims(here, role)
            if not ranks:
                return
            self._signal(act, ranks)
        self.leg.faults[kind] = self.leg.faults.get(kind, 0) + 1

    def _victims(self, here: dict[str, list[int]], role: str) -> list[int]:
        if role == "all":
            return sorted({rank for ranks in here.values() for rank in ranks} - self._expended)
        ranks = here["leader"] if role == "scheduler" else here[f"{role}s"]
        ranks = [rank for rank in ranks if role == "scheduler" or rank not in here["leader"]]
        ranks = [rank for rank in ranks if rank not in self._expended and rank not in self._stopped]
        if role != "scheduler" and len(here[f"{role}s"]) < 2:
            return []
        return [self._rng.choice(ranks)] if ranks else []

    def _signal(self, act: str, ranks: Sequence[int]) -> None:
        if act == "kill":
            self._expended.update(ranks)
            for rank in ranks:
                self._send(rank, signal.SIGKILL)
        elif act == "hang":
            self._expended.update(ranks)
            for rank in ranks:
                self._stop(rank, HUNG)
        elif act == "pause":
            lasts = PATIENCE * self._rng.uniform(*BRIEF)
            for rank in ranks:
                self._stop(rank, lasts)
        else:
            times, stopped, runs = SLOW
            for _ in range(times):
                for rank in ranks:
                    self._send(rank, signal.SIGSTOP)
                time.sleep(stopped)
                for rank in ranks:
                    self._send(rank, signal.SIGCONT)
                time.sleep(runs)

    def _send(self, rank: int, number: int) -> None:
        if self._is_alive(rank):
            with suppress(ProcessLookupError):
                os.kill(self._pids[rank], number)

    def _is_alive(self, rank: int) -> bool:
        since = began(self._pids[rank])
        return since is not None and since == self._since[rank]

    def _alive(self) -> dict[int, int]:
        """Return the process ids of the ranks that have not ended."""
        return {rank: pid for rank, pid in self._pids.items() if self._is_alive(rank)}

    def _stop(self, rank: int, seconds: float) -> None:
        """Stop a rank, and continue it later."""

        def go_on() -> None:
            self._send(rank, signal.SIGCONT)
            self._stopped.pop(rank, None)

        if rank in self._stopped:
            return
        self._stopped[rank] = timer = Timer(seconds, go_on)
        self._send(rank, signal.SIGSTOP)
        timer.start()

    def _continue_all(self) -> None:
        for rank, timer in list(self._stopped.items()):
            timer.cancel()
            self._send(rank, signal.SIGCONT)
        self._stopped.clear()

    def _order(self, verb: str, words: dict[str, str | int]) -> str:
        """Give an order; return its answer, "" if it was refused."""
        ok, text = order_files.ask(self._run, verb, words, patience=2.0 * PATIENCE)
        self.leg.refused += not ok
        return text if ok else ""

    def _roles_in(self, status: str) -> dict[str, list[int]]:
        here = {
            name.strip(): [int(rank) for rank in _processes.RANK.findall(rest)]
            for name, _, rest in (line.partition(":") for line in status.splitlines()[1:6])
        }
        here = {name: here.get(name, []) for name in ("leader", "servers", "workers", "spares")}
        self._roles = {rank: name for name, ranks in here.items() if name != "leader" for rank in ranks}
        self._roles |= dict.fromkeys(here["leader"], "leader")
        return here

    @staticmethod
    def _lost_in(status: str) -> set[int]:
        lines = (line.strip() for line in status.splitlines())
        return {int(line.split()[2]) for line in lines if line.startswith("lost: rank ")}

    # --- samples ----------------------------------------------------------------------------------

    def _sample(self, now: float) -> None:
        self._sampled = now
        for rank, role in self._roles.items():
            if rank not in self._expended and rank not in self._stopped and self._is_alive(rank):
                self._held.setdefault(rank, Held(rank)).add(now, role, self._pids[rank])
        self._segments |= shared_memory(self._alive().values())

    def progress(self) -> str:
        """Describe the leg so far in one line."""
        checks = [each for each in self._checks() if each["leg"] == self.leg.number]
        found = checks[-1] if checks else {}
        faults = sum(self.leg.faults.values())
        return (
            f"leg {self.leg.number}: faults {faults}, ranks lost {len(self._expended)}, checks "
            f"{found.get('checks', 0)}, updates {found.get('updates', 0):,}, lost {found.get('lost', 0)}, doubled "
            f"{found.get('doubled', 0)}, stale {found.get('stale', 0)}"
        )

    def _checks(self) -> list[dict[str, Any]]:
        with suppress(OSError, ValueError):
            return _runs.events(self._run, "check")
        return []

    def _last_line(self) -> str:
        with suppress(OSError):
            lines = self._output.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "no output"
        return "no output"

    def _kill_all(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left of the leg, and remove its files in /dev/shm."""
        kill(self._alive().values(), process)
        for path in self._segments:
            path.unlink(missing_ok=True)
