"""A virtual cluster with a real Slurm (slurm/testing/cluster.sh), and jobs on it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import patience
from synthetic import DataSet

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "slurm" / "testing" / "cluster.sh"
SKIP = 77
NODES, CPUS = 4, 8
PATIENCE = 500.0
"""Seconds within which whatever is waited for must be there; a job takes some ten of them, and a start that comes to
nothing two minutes."""
LOOK = 0.25
REST = 3
"""Seconds that a job stays in the queue before it is started again."""
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
"""States of a job that Slurm will not start again."""


def read_facts(line: str) -> dict[str, str]:
    """Read what `scontrol --oneliner show job` says of one job."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


@dataclass
class Job:
    """A job that was submitted; `number` is Slurm's, also NUMBER_TASK for a task of an array."""

    cluster: Cluster
    number: str
    run: Path
    """The run's folder."""
    output: Path
    said: str = ""
    """What `mpips submit` wrote for people."""

    def facts(self) -> dict[str, str]:
        """Return what Slurm knows about it now."""
        return read_facts(
            self.cluster.tell("scontrol", "--oneliner", "show", "job", self.number).splitlines()[0]
        )

    def result(self) -> dict[str, Any]:
        """Read the run's result; empty while there is none."""
        try:
            return dict(json.loads((self.run / "result.json").read_text()))
        except FileNotFoundError:
            return {}

    def ranks(self) -> list[dict[str, Any]]:
        """Read which rank is what, where, as which process."""
        return list(json.loads((self.run / "run.json").read_text())["ranks"])

    def steps(self) -> int:
        """Count the passes that were finished, all starts together."""
        try:
            return (self.run / "metrics.jsonl").read_text().count('"event": "pass"')
        except FileNotFoundError:
            return 0

    def checkpoints(self) -> int:
        """Count the complete checkpoints."""
        return len(list(self.run.glob("checkpoints/step-*/manifest.json")))

    def text(self) -> str:
        """Read all that the job has written."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for(self, what: str, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until something holds; fails the test if the job is over, or too much time has passed, before."""
        deadline = time.monotonic() + patience
        while not condition():
            state = self.facts()["JobState"]
            if state in OVER and not condition():
                self.fail(f"over ({state}) before {what}")
            if time.monotonic() > deadline:
                self.fail(f"no {what} after {patience} s")
            self.cluster.hasten()
            time.sleep(LOOK)

    def finish(self, state: str = "COMPLETED", patience: float = PATIENCE) -> dict[str, Any]:
        """Wait until it is over, restarts and all; return the result. Fails the test if it ends otherwise."""
        deadline = time.monotonic() + patience
        while (now := self.facts())["JobState"] not in OVER:
            if time.monotonic() > deadline:
                self.fail(f"not over after {patience} s")
            self.cluster.hasten()
            time.sleep(LOOK)
        if now["JobState"] != state:
            self.fail(f"ended as {now['JobState']}, exit code {now['ExitCode']}")
        return self.result()

    def restarts(self) -> int:
        """Return how often Slurm has started it again."""
        return int(self.facts()["Restarts"])

    def kill(self, rank: dict[str, Any], kind: str = "KILL") -> None:
        """Send a signal to a rank, on its node."""
        self.cluster.on(rank["host"], "kill", f"-{kind}", str(rank["pid"]))

    def fail(self, why: str) -> None:
        """Fail the test with all that is known about the job."""
        shown = {
            f"output of job {self.number}": self.text(),
            "result.json": json.dumps(self.result(), indent=1),
        }
        shown["scontrol show job"] = self.cluster.ask("scontrol", "show", "job", self.number)
        shown["squeue"] = self.cluster.ask("squeue", "--long") + self.cluster.ask("sinfo", "--Node", "--long")
        for log in sorted((self.cluster.folder / "log").glob("slurm*.log")):
            shown[log.name] = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        pytest.fail(
            f"job {self.number}: {why}\n" + "\n".join(f"--- {name}\n{text}" for name, text in shown.items())
        )


@dataclass(frozen=True)
class Cluster:
    """The cluster: `folder` is its own, and jobs are submitted from `home`."""

    folder: Path
    home: Path
    environ: dict[str, str]

    def ask(self, *command: str) -> str:
        """Run a command of Slurm's; return what it said, even if it fails."""
        done = subprocess.run(
            command, env=self.environ, cwd=self.home, text=True, check=False, timeout=patience(60),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.stdout

    def tell(self, *command: str) -> str:
        """Run a command of Slurm's that must do what it is asked to; once more if the controller was too busy."""
        for last in (False, True):
            done = subprocess.run(
                command, env=self.environ, cwd=self.home, text=True, check=False, timeout=patience(60),
                capture_output=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            if done.returncode == 0:
                break
            if last:
                pytest.fail(f"{shlex.join(command)}: {done.stdout}{done.stderr}")
            time.sleep(1.0)
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """Return what Slurm knows about each job now."""
        reported = self.ask("scontrol", "--oneliner", "show", "job")
        return [read_facts(line) for line in reported.splitlines() if line.startswith("JobId=")]

    def over(self) -> set[str]:
        """Return the numbers of the jobs that are over."""
        return {job["JobId"] for job in self.jobs() if job["JobState"] in OVER}

    def hasten(self) -> None:
        """Spare jobs that were put back into the queue most of the two minutes that Slurm has them wait.

        Not all: nodes refuse a job that starts again in the second in which it was ended there.
        """
        for job in self.jobs():
            if job["JobState"] != "PENDING" or job["Reason"] != "BeginTime":
                continue
            eligible = datetime.fromisoformat(job["EligibleTime"]).timestamp()  # Slurm writes local time
            if eligible - time.time() > 2 * REST:
                self.ask("scontrol", "update", f"jobid={job['JobId']}", f"starttime=now+{REST}")

    def on(self, node: str, *command: str) -> None:
        """Run a command on a node."""
        inside = self.process_of(node)
        spaces = ["nsenter", "--target", str(inside), "--pid", "--mount", "--uts"]
        done = subprocess.run([*spaces, *command], text=True, capture_output=True, check=False, timeout=30)
        if done.returncode:
            pytest.fail(f"{shlex.join(command)} on {node}: {done.stderr}")

    def process_of(self, node: str) -> int:
        """Return the number, here, of a node's first process."""
        outside = int((self.folder / f"{node}.pid").read_text())
        return int(Path(f"/proc/{outside}/task/{outside}/children").read_text().split()[0])

    def mpips(self, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `mpips ARGUMENTS`, as one does on a login node."""
        return subprocess.run(
            [sys.executable, "-m", "mpips.cli", *map(str, arguments)], env=self.environ, cwd=cwd or self.home,
            text=True, capture_output=True, check=False, timeout=patience(60), stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def submit(self, job: Path, *options: str | Path, cwd: Path | None = None) -> Job:
        """Submit a job by `mpips submit`."""
        done = self.mpips("submit", job, *options, cwd=cwd)
        if done.returncode or not re.fullmatch(r"\d+\n", done.stdout):
            pytest.fail(f"mpips submit {job} {options}: {done.stdout}{done.stderr}")
        folder, number = cwd or self.home, done.stdout.strip()
        name = re.search(r"^name = \"(.*)\"$", job.read_text(), re.M)
        stem = f"{name[1] if name else 'sparse_lr'}-{number}"
        return Job(self, number, folder / "runs" / stem, folder / f"{stem}.out", done.stderr)

    def task(self, job: Job, index: int) -> Job:
        """Return one task of a job array."""
        number = f"{job.number}_{index}"
        tail = f"_{index}"
        return Job(
            self, number, Path(f"{job.run}{tail}"), job.output.with_name(f"{job.output.stem}{tail}.out")
        )


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of who uses the cluster: nothing of an MPI or a Slurm around this process."""
    reported = subprocess.run(
        ["bash", "-c", '. "$1" && env -0', "_", folder / "env.sh"], capture_output=True, text=True, check=True
    ).stdout
    given = dict(line.split("=", 1) for line in reported.split("\0") if "=" in line)
    inherited = {
        name: value
        for name, value in given.items()
        if not name.startswith(("OMPI_COMM", "PMI", "PRTE_", "MPIPS_", "SLURM_", "SBATCH_"))
        or name == "SLURM_CONF"
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    # No site file of this user's, nor progress for a terminal.
    return {**inherited, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "XDG_CONFIG_HOME": str(folder)}


PASSES = 24
JOB = """\
[job]
program = "sparse_lr"
name = "{name}"
[layout]
servers = {servers}
workers = {workers}
[ring]
replicas = {replicas}
[heartbeat]
patience = {patience}
[checkpoint]
every = 3
[data]
train = {train}
test = {test}
[sparse_lr]
epsilon = 1e-12
newton = false
passes = {passes}
blocks = 10
[faults]
delay = {{probability = 1.0, seconds = {delay}}}
"""
"""Messages that come late make a run long, and leave the processors to others; the bits stay the same. They
would not if a worker that gets no processor for a while were taken for dead: hence the patience."""


def write_job(
    path: Path,
    data_set: DataSet,
    seconds: float = 0.0,
    servers: int = 1,
    workers: int = 2,
    replicas: int = 0,
    patience: float = 60.0,
) -> Path:
    """Write a job file, named as the job is; its passes take `seconds` in all, about."""
    text = JOB.format(
        name=path.stem, servers=servers, workers=workers, replicas=replicas, passes=PASSES, patience=patience,
        train=json.dumps(str(data_set.train)), test=json.dumps(str(data_set.test)), delay=seconds / PASSES / 45,
    )  # fmt: skip
    path.write_text(text)
    return path
