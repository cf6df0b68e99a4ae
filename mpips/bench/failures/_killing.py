"""Runs whose ranks are all killed, as by a power failure, and that continue on another layout: see `restart`.

The ranks are launched without `mpips run`, as by a batch system. All of them get SIGKILL within microseconds, by the
process ids of `run.json`, then the launcher with its process group.
"""

from __future__ import annotations

import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import MANIFEST, complete, folders, latest, read_manifest, step_of
from mpips.config.job_file import load
from mpips.launch import mpi_launcher
from mpips.process import dependent

LONGEST = 300.0
"""Seconds after which a run that has not ended counts as hung."""
PATIENCE = 2.0
"""Time limit for a checkpoint to begin, for which an aimed kill waits, s."""
LONGEST_DELAY = 0.02
"""Maximum time from the detection of a checkpoint being written to the kill aimed at it, s."""
POLL = 0.0005
GONE = 5.0
"""Time limit for killed processes to end, s."""
SHARED = re.compile(r"(/dev/shm/\S+)")
REPORTED_EVENT = '"event": "checkpoint"'
WARNING = "no checkpoint was written"


def first_examples(job_file: Path, part: Path, count: int) -> None:
    """Write the first examples of a job's own data, delimited lines after a header, to a file."""
    job = load(job_file)
    train = job.data.train
    file = job.resolve(train if isinstance(train, str) else train[0])
    with lzma.open(file, "rt") as source, part.open("w") as target:
        target.writelines(islice(source, count + 1))


@dataclass
class Trial:
    """A run that was killed, and the one that continued; layouts are (servers, workers)."""

    begun: tuple[int, int]
    resumed: tuple[int, int]
    aimed: bool
    """Killed while a checkpoint was being written, if one began in time."""
    after: float = 0.0
    """Seconds from the time when the process ids were known to the kill."""
    writing: bool = False
    """Whether a checkpoint was being written: a folder without a manifest remains."""
    early: int = 0
    """The number of runs that ended before the kill, and were repeated."""
    noted: int = -1
    """The step of the last checkpoint that the run reported as complete; -1: none."""
    latest: int = -1
    """The step of the latest complete checkpoint."""
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    """The problems that `verify` found in it."""
    verify_seconds: float = 0.0
    left_behind: int = 0
    """Processes that existed after the time limit."""
    resume_seconds: float = 0.0
    objective: float | None = None
    sha256: str = ""
    passes: int = 0
    said: str = ""
    """The last line of the continued run, if it failed."""
    excess: float | None = None
    same_bits: bool | None = None
    failures: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """A run that has ended: its exit code, its result if it wrote one, and its output."""

    code: int
    result: dict[str, Any] | None
    output: str
    seconds: float


class Campaign:
    """Runs of one job, without failures and killed."""

    def __init__(self, job: Path, folder: Path, settings: Sequence[str], launcher: str = "auto") -> None:
        self._job, self._folder, self._settings, self._launcher = job, folder, list(settings), launcher
        self._starter = mpi_launcher.find_starter(launcher)
        mpi = self._starter.mpi
        self.mpi = f"{mpi.vendor} {mpi.version}"
        self.undisturbed: list[dict[str, Any]] = []
        self.objectives: dict[int, float] = {}
        self.hashes: dict[int, str] = {}
        self._lasts = 1.0

    def measure(self, workers: Iterable[int]) -> None:
        """Run without failures, with every number of workers: the reference of killed runs, and their duration."""
        for number in workers:
            seen: dict[str, float] = {}

            def watch(folder: Path, seen: dict[str, float] = seen) -> None:
                for name in ("run.json", "result.json"):
                    if name not in seen and (folder / name).exists():
                        seen[name] = time.monotonic()

            settings = [*self._settings, "layout.servers=1", f"layout.workers={number}"]
            at = self._folder / f"undisturbed-{number}"
            run = _runs.run(self._job, at, settings, self._launcher, watch=watch)
            lasts = seen.get("result.json", time.monotonic()) - seen["run.json"]
            metrics, sha = run.result["metrics"], run.result["parameters_sha256"]
            self.objectives[number], self.hashes[number] = metrics["objective"], sha
            self._lasts = lasts if number == 1 else min(self._lasts, lasts)
            newest = latest(at / "checkpoints")
            self.undisturbed.append(
                {
                    "workers": number,
                    "objective": metrics["objective"],
                    "passes": metrics["passes"],
                    "parameters_sha256": sha,
                    "seconds": run.result["seconds"],
                    "lasts": lasts,
                    "checkpoint_bytes": size_of(newest) if newest else 0,
                }
            )

    # --- one trial ---------------------------------------------------------------------------------

    def trial(
        self, n: int, begun: tuple[int, int], resumed: tuple[int, int], rng: random.Random, *, aimed: bool
    ) -> Trial:
        """Run, kill, verify, and continue with another layout to the end."""
        trial = Trial(begun, resumed, aimed)
        at = self._folder / f"trial-{n}"
        delay = rng.uniform(0.0, self._lasts)
        lag = rng.uniform(0.0, LONGEST_DELAY)
        while not self._killed(trial, at / f"killed-{trial.early}", delay, lag):
            trial.early, delay = trial.early + 1, delay / 2
        last = at / f"killed-{trial.early}"
        checkpoints = last / "checkpoints"
        trial.writing = any(not (path / MANIFEST).exists() for path in folders(checkpoints))
        trial.noted = last_reported(last / "metrics.jsonl")
        found = latest(checkpoints)
        if found is not None:
            trial.latest, trial.bytes = step_of(found), size_of(found)
            began = time.monotonic()
            trial.problems = verify(found)
            trial.verify_seconds = time.monotonic() - began
        ended = self._finish(at / "resumed", resumed, checkpoints, resume=found is not None)
        trial.resume_seconds = ended.seconds
        if ended.result is not None and ended.result.get("status") == "completed":
            trial.objective = float(ended.result["metrics"]["objective"])
            trial.passes = int(ended.result["metrics"]["passes"])
            trial.sha256 = ended.result["parameters_sha256"]
        else:
            trial.said = (
                ended.output.strip().splitlines()[-1] if ended.output.strip() else f"exit code {ended.code}"
            )
        return trial

    def _killed(self, trial: Trial, at: Path, delay: float, lag: float) -> bool:
        """Run until the kill, `lag` after a checkpoint begins if it is aimed; return whether the run had not ended."""
        process = self._start(at, trial.begun, at / "checkpoints", resume=False)
        pids: list[int] = []
        try:
            if not wait_for(lambda: process.poll() is not None or bool(pids_of(at)), LONGEST, 0.005):
                raise _runs.RunFailed(
                    f"a run did not start within {LONGEST:g} s; its output: {output(at)[-300:]}"
                )
            pids = pids_of(at)
            known = time.monotonic()
            wait_for(lambda: process.poll() is not None, delay, 0.005)
            segments = shared_memory(pids)
            if trial.aimed:
                checkpoints = at / "checkpoints"
                wait_for(lambda: process.poll() is not None or is_writing(checkpoints), PATIENCE)
                time.sleep(lag)
            killed = process.poll() is None and not (at / "result.json").exists()
        finally:
            kill(pids, process)
        trial.after = time.monotonic() - known
        wait_for(lambda: not any(map(is_alive, pids)), GONE)
        trial.left_behind += sum(map(is_alive, pids))
        if killed:
            for segment in segments:
                segment.unlink(missing_ok=True)
        elif (at / "result.json").exists():
            result = json.loads((at / "result.json").read_text())
            if result["status"] != "completed":
                raise _runs.RunFailed(f"a run failed before it was killed: {result.get('error')}")
        return killed

    def _finish(self, at: Path, layout: tuple[int, int], checkpoints: Path, *, resume: bool) -> Ended:
        """Run to the end, from the latest checkpoint or from the start."""
        began = time.monotonic()
        process = self._start(at, layout, checkpoints, resume)
        try:
            wait_for(lambda: process.poll() is not None, LONGEST, 0.01)
        finally:
            pids = pids_of(at)
            kill(pids, process)
        result = None
        with suppress(OSError, ValueError):
            result = json.loads((at / "result.json").read_text())
        return Ended(process.returncode, result, output(at), time.monotonic() - began)

    def _start(
        self, at: Path, layout: tuple[int, int], checkpoints: Path, resume: bool
    ) -> subprocess.Popen[bytes]:
        """Launch the ranks of a run in its folder, in a new process group of the launcher."""
        servers, workers = layout
        settings = [
            *self._settings, f"layout.servers={servers}", f"layout.workers={workers}",
            f"checkpoint.directory={json.dumps(str(checkpoints))}",
        ]  # fmt: skip
        job = load(self._job, settings)
        arguments = [part for setting in settings for part in ("--set", setting)] + ["--run-dir", str(at)]
        arguments += ["--resume", "latest"] if resume else []
        survive = mpi_launcher.survival("auto", self._starter)
        planned = mpi_launcher.plan(
            self._starter, job.layout.size(), mpi_launcher.rank_command(self._job, arguments), survive=survive
        )
        at.mkdir(parents=True)
        # The launcher's files, which nothing else removes.
        scratch = at / "tmp"
        scratch.mkdir()
        with (at / "output.txt").open("wb") as out:
            return subprocess.Popen(
                dependent.line(planned.line),
                env={**planned.environment(), "TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    # --- a full disk -------------------------------------------------------------------------------

    def full_disk(self) -> dict[str, Any]:
        """Run with space for only one checkpoint: the run must continue, report it, and keep the checkpoint."""
        size, mount_point = max(each["checkpoint_bytes"] for each in self.undisturbed), self._folder / "full"
        found: dict[str, Any] = {"skipped": "", "failed": "", "size": size * 8 // 5, "checkpoint": size}
        mount_point.mkdir()
        why = mount(mount_point, found["size"])
        if why:
            return found | {"skipped": why}
        try:
            ended = self._finish(
                self._folder / "full-disk", (1, 2), mount_point / "checkpoints", resume=False
            )
            sound = [path for path in complete(mount_point / "checkpoints") if not verify(path)]
            incomplete = [
                path for path in folders(mount_point / "checkpoints") if not (path / MANIFEST).exists()
            ]
        finally:
            subprocess.run(["umount", str(mount_point)], check=False)
        found |= {"given_up": ended.output.count(WARNING), "sound": len(sound), "torn": len(incomplete)}
        found["warning"] = next((line for line in ended.output.splitlines() if WARNING in line), "")
        result = ended.result or {}
        if result.get("status") != "completed":
            found["failed"] = (
                f"it ended with exit code {ended.code}: {result.get('error', ended.output[-300:])}"
            )
        elif result["parameters_sha256"] != self.hashes[2]:
            found["failed"] = "the parameters differ from those of the run without failures"
        elif not found["given_up"]:
            found["failed"] = "no checkpoint was abandoned"
        elif not sound:
            found["failed"] = "no sound checkpoint remains"
        return found


# --- processes and files -----------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], patience: float, pause: float = POLL) -> bool:
    """Wait until a condition holds; return whether it does within the time limit (s)."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
    return True


def pids_of(run: Path) -> list[int]:
    """Return the process ids of a run's ranks; empty while they are not known."""
    return [int(each["pid"]) for each in _runs.ranks_of(run)]


def kill(pids: Iterable[int], launcher: subprocess.Popen[bytes]) -> None:
    """Kill all ranks, then their launcher with its process group; some may have ended."""
    for pid in [pid for pid in pids if is_alive(pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if launcher.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def is_alive(pid: int) -> bool:
    """Return whether a process of this interpreter exists and is not a zombie."""
    return began(pid) is not None


def began(pid: int) -> int | None:
    """Return when a process of this interpreter began, clock ticks since the boot; None if there is none, or a zombie.

    The system gives the ids of processes that have ended to others, after minutes where many are started.
    """
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        mine = Path(os.readlink(f"/proc/{pid}/exe")) == Path(sys.executable).resolve()
        return int(facts[18]) if mine and state not in "ZX" else None
    except OSError:
        return None


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Return the shared memory files that processes have mapped: killed processes do not remove theirs."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found |= set(SHARED.findall(Path(f"/proc/{pid}/maps").read_text()))
    return {Path(name) for name in found}


def is_writing(checkpoints: Path) -> bool:
    """Return whether a checkpoint is being written."""
    with suppress(OSError):
        return any(not (path / MANIFEST).exists() for path in folders(checkpoints))
    return False


def last_reported(metrics: Path) -> int:
    """Return the step of the last checkpoint that a run reported as complete, -1 if there is none."""
    steps = [-1]
    with suppress(OSError):
        for line in metrics.read_text().splitlines():
            if REPORTED_EVENT in line:
                with suppress(ValueError):
                    steps.append(int(json.loads(line)["step"]))
    return max(steps)


def size_of(checkpoint: Path) -> int:
    """Return the size of a checkpoint in bytes."""
    return sum(int(entry["bytes"]) for entry in read_manifest(checkpoint)["files"])


def output(run: Path) -> str:
    """Return the output of a run."""
    return (run / "output.txt").read_text(errors="replace")


def mount(folder: Path, size: int) -> str:
    """Mount a file system of a given size in bytes; return the reason why it is impossible, or ""."""
    if os.geteuid() != 0:
        return "only root can mount a small file system"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"mount: {error.strerror}"
    return done.stderr.strip() if done.returncode else ""
