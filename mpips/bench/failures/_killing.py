"""Runs that are killed as a whole, like a node that loses power, and go on elsewhere: see `restart`.

The ranks are launched without `mpips run` in between, as a batch system does. All of them get SIGKILL within
microseconds, by the process ids of `run.json`, and after them the launcher with its process group.
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
from mpips.checkpoint.checkpoint import verify
from mpips.checkpoint.manifest import MANIFEST, complete, folders, latest, read_manifest, step_of
from mpips.config.job_file import load
from mpips.launch import mpi_launcher
from mpips.launch.processes import end_with_parent

LONGEST = 300.0
"""Seconds after which a run that has not ended is taken for hung."""
PATIENCE = 2.0
"""Seconds for a checkpoint to be begun that an aimed strike waits for."""
WRITES = 0.02
"""Seconds, at most, from the moment when a checkpoint is seen to be written to the strike that is aimed at it."""
POLL = 0.0005
GONE = 5.0
"""Seconds within which killed processes must be gone."""
SHARED = re.compile(r"(/dev/shm/\S+)")
NOTED = '"event": "checkpoint"'
WARNING = "no checkpoint was written"


def first_examples(job_file: Path, part: Path, count: int) -> None:
    """Write the first examples of a job's own data, delimited lines under a heading, to a file."""
    job = load(job_file)
    train = job.data.train
    file = job.resolve(train if isinstance(train, str) else train[0])
    with lzma.open(file, "rt") as source, part.open("w") as target:
        target.writelines(islice(source, count + 1))


@dataclass
class Trial:
    """A run that was killed, and the one that went on; layouts are (servers, workers)."""

    begun: tuple[int, int]
    resumed: tuple[int, int]
    aimed: bool
    """Struck when a checkpoint was being written, if one was begun in time."""
    after: float = 0.0
    """Seconds from the moment when the process ids were known to the strike."""
    writing: bool = False
    """Whether a checkpoint was being written: a folder without a manifest is left."""
    early: int = 0
    """How many runs had ended before they were to be struck, and were begun again."""
    noted: int = -1
    """The step of the last checkpoint that the run called complete; -1: none."""
    latest: int = -1
    """The step of the latest checkpoint that is complete."""
    bytes: int = 0
    problems: list[str] = field(default_factory=list)
    """What `verify` found wrong with it."""
    verify_seconds: float = 0.0
    left_behind: int = 0
    """Processes that were still there seconds after."""
    resume_seconds: float = 0.0
    objective: float | None = None
    sha256: str = ""
    passes: int = 0
    said: str = ""
    """The last line of the run that was to go on, if it failed."""
    excess: float | None = None
    same_bits: bool | None = None
    failures: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """A run that has ended: its exit code, its result if it wrote one, and what it said."""

    code: int
    result: dict[str, Any] | None
    said: str
    seconds: float


class Campaign:
    """Runs of one job, undisturbed and killed."""

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
        """Run undisturbed, with every number of workers: what killed runs are to come to, and how long they take."""
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
        """Run, kill, verify, and go on with another layout to the end."""
        trial = Trial(begun, resumed, aimed)
        at = self._folder / f"trial-{n}"
        delay = rng.uniform(0.0, self._lasts)
        lag = rng.uniform(0.0, WRITES)
        while not self._killed(trial, at / f"killed-{trial.early}", delay, lag):
            trial.early, delay = trial.early + 1, delay / 2
        last = at / f"killed-{trial.early}"
        checkpoints = last / "checkpoints"
        trial.writing = any(not (path / MANIFEST).exists() for path in folders(checkpoints))
        trial.noted = last_noted(last / "metrics.jsonl")
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
                ended.said.strip().splitlines()[-1] if ended.said.strip() else f"exit code {ended.code}"
            )
        return trial

    def _killed(self, trial: Trial, at: Path, delay: float, lag: float) -> bool:
        """Run until the strike, `lag` after a checkpoint is begun if it is aimed; give whether the run was going on."""
        process = self._start(at, trial.begun, at / "checkpoints", resume=False)
        pids: list[int] = []
        try:
            if not wait_for(lambda: process.poll() is not None or bool(pids_of(at)), LONGEST, 0.005):
                raise _runs.RunFailed(f"a run did not begin within {LONGEST:g} s; it said: {said(at)[-300:]}")
            pids = pids_of(at)
            known = time.monotonic()
            wait_for(lambda: process.poll() is not None, delay, 0.005)
            segments = shared_memory(pids)
            if trial.aimed:
                checkpoints = at / "checkpoints"
                wait_for(lambda: process.poll() is not None or is_writing(checkpoints), PATIENCE)
                time.sleep(lag)
            struck = process.poll() is None and not (at / "result.json").exists()
        finally:
            kill(pids, process)
        trial.after = time.monotonic() - known
        wait_for(lambda: not any(map(is_alive, pids)), GONE)
        trial.left_behind += sum(map(is_alive, pids))
        if struck:
            for segment in segments:
                segment.unlink(missing_ok=True)
        elif (at / "result.json").exists():
            result = json.loads((at / "result.json").read_text())
            if result["status"] != "completed":
                raise _runs.RunFailed(f"a run failed before it was struck: {result.get('error')}")
        return struck

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
        return Ended(process.returncode, result, said(at), time.monotonic() - began)

    def _start(
        self, at: Path, layout: tuple[int, int], checkpoints: Path, resume: bool
    ) -> subprocess.Popen[bytes]:
        """Launch the ranks of a run in its folder, in a process group of their launcher's own."""
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
        scratch = at / "tmp"  # the launcher's own files, which nobody else would remove
        scratch.mkdir()
        with (at / "said.txt").open("wb") as out:
            return subprocess.Popen(
                planned.line,
                env={**planned.environment(), "TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=end_with_parent,
            )

    # --- a full disk -------------------------------------------------------------------------------

    def full_disk(self) -> dict[str, Any]:
        """Run with room for one checkpoint only: it must go on, say so, and leave the one that there is."""
        size, mounted = max(each["checkpoint_bytes"] for each in self.undisturbed), self._folder / "full"
        found: dict[str, Any] = {"skipped": "", "failed": "", "size": size * 8 // 5, "checkpoint": size}
        mounted.mkdir()
        why = mount(mounted, found["size"])
        if why:
            return found | {"skipped": why}
        try:
            ended = self._finish(self._folder / "full-disk", (1, 2), mounted / "checkpoints", resume=False)
            sound = [path for path in complete(mounted / "checkpoints") if not verify(path)]
            torn = [path for path in folders(mounted / "checkpoints") if not (path / MANIFEST).exists()]
        finally:
            subprocess.run(["umount", str(mounted)], check=False)
        found |= {"given_up": ended.said.count(WARNING), "sound": len(sound), "torn": len(torn)}
        found["warning"] = next((line for line in ended.said.splitlines() if WARNING in line), "")
        result = ended.result or {}
        if result.get("status") != "completed":
            found["failed"] = (
                f"it ended with exit code {ended.code}: {result.get('error', ended.said[-300:])}"
            )
        elif result["parameters_sha256"] != self.hashes[2]:
            found["failed"] = "the parameters are not the undisturbed run's"
        elif not found["given_up"]:
            found["failed"] = "no checkpoint was given up"
        elif not sound:
            found["failed"] = "no sound checkpoint was left"
        return found


# --- processes and files -----------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], patience: float, pause: float = POLL) -> bool:
    """Wait until something holds; give whether it does within so many seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
    return True


def pids_of(run: Path) -> list[int]:
    """Give the process ids of a run's ranks; none while they are not known."""
    with suppress(OSError, ValueError, KeyError):
        return [int(each["pid"]) for each in json.loads((run / "run.json").read_text())["ranks"]]
    return []


def kill(pids: Iterable[int], launcher: subprocess.Popen[bytes]) -> None:
    """Kill ranks, all at once, and then their launcher with its process group; none of it need be there."""
    for pid in [pid for pid in pids if is_alive(pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if launcher.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()


def is_alive(pid: int) -> bool:
    """Tell whether a process of this interpreter's kind is there and no zombie."""
    try:
        ends = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        return not ends and Path(os.readlink(f"/proc/{pid}/exe")) == Path(sys.executable).resolve()
    except OSError:
        return False


def shared_memory(pids: Iterable[int]) -> set[Path]:
    """Give the files of shared memory that processes have mapped: killed ones do not remove theirs."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            found |= set(SHARED.findall(Path(f"/proc/{pid}/maps").read_text()))
    return {Path(name) for name in found}


def is_writing(checkpoints: Path) -> bool:
    """Tell whether a checkpoint is being written."""
    with suppress(OSError):
        return any(not (path / MANIFEST).exists() for path in folders(checkpoints))
    return False


def last_noted(metrics: Path) -> int:
    """Give the step of the last checkpoint that a run called complete, -1 if there is none."""
    steps = [-1]
    with suppress(OSError):
        for line in metrics.read_text().splitlines():
            if NOTED in line:
                with suppress(ValueError):
                    steps.append(int(json.loads(line)["step"]))
    return max(steps)


def size_of(checkpoint: Path) -> int:
    """Give the bytes of a checkpoint."""
    return sum(int(entry["bytes"]) for entry in read_manifest(checkpoint)["files"])


def said(run: Path) -> str:
    """Give all that a run has said."""
    return (run / "said.txt").read_text(errors="replace")


def mount(folder: Path, size: int) -> str:
    """Mount a file system of so many bytes; give why that is not possible, or nothing."""
    if os.geteuid() != 0:
        return "only root can mount a small file system"
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"mount: {error.strerror}"
    return done.stderr.strip() if done.returncode else ""
