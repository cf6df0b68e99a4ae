"""A run of mpips on virtual hosts, started by `mpips run` on the first one."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import TAG, patience
from hosts.slurm_hosts import DAEMONS, SlurmHosts
from hosts.virtual_hosts import VirtualHosts

from mpips.bench.failures import _pushing
from mpips.launch import mpi_launcher
from mpips.membership import specification
from mpips.process.interpreter import python


class HostRun:
    """A run of a job; by default of the program that pushes to every shard continuously, until `enough`."""

    def __init__(self, hosts: VirtualHosts, folder: Path, *settings: str, job: Path | None = None) -> None:
        self.hosts, self.folder = hosts, folder / "run"
        if job is None:
            job, settings = folder / "pushing.toml", ("_pushing.seconds=600", *settings)
            job.write_text('[job]\nprogram = "mpips.bench.failures._pushing"\n')
        named = folder / "hosts"
        named.write_text("".join(f"h{number} slots=64\n" for number in hosts.numbers))
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "PRTE_"))},
            mpi_launcher.HOST_FILE: str(named), "PYTHONFAULTHANDLER": "1", TAG: secrets.token_hex(8),
            "HOME": str(folder),
        }  # fmt: skip
        sets = [part for each in settings for part in ("--set", each)]
        line = [*python(), "-m", "mpips.cli", "run", str(job), "--run-dir", str(self.folder), *sets]
        if isinstance(hosts, SlurmHosts):
            line = [*hosts.allocation(), *line, "--launcher", "srun"]
        self._output = folder / "output"
        with self._output.open("wb") as out:
            self._command = hosts.start(1, line, environ, folder, out)

    def wait_for(self, what: str, condition: Callable[[], bool], seconds: float = 40.0) -> None:
        """Wait until something holds; fails the test if it takes too long."""
        deadline = time.monotonic() + patience(seconds)
        while not condition():
            if time.monotonic() > deadline:
                self.fail(f"no {what}")
            time.sleep(0.05)

    def ranks(self) -> list[dict[str, Any]]:
        """Return the ranks at the start."""
        with suppress(OSError, ValueError):
            return list(json.loads((self.folder / "run.json").read_text())["ranks"])
        return []

    def pushes(self) -> bool:
        """Return whether the workers push."""
        with suppress(OSError):
            return '"event": "begun"' in (self.folder / "metrics.jsonl").read_text()
        return False

    def trains(self) -> bool:
        """Return whether it has finished some passes."""
        with suppress(OSError):
            return (self.folder / "metrics.jsonl").read_text().count("\n") >= 3
        return False

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the events of all ranks' logs of some names, in order."""
        found = [event for event in self.logged() if event["event"] in names]
        return sorted(found, key=lambda event: float(event["wall"]))

    def logged(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of all ranks' logs, rank by rank."""
        for path in self.folder.glob("logs/rank-*.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    yield json.loads(line)

    def result(self) -> dict[str, Any]:
        """Return the result; {} if there is none yet."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder / "result.json").read_text()))
        return {}

    def identity_of_result(self) -> tuple[int, int] | None:
        """Identify the file with the result: when another one is written, it is another file."""
        with suppress(OSError):
            found = (self.folder / "result.json").stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def excluded(self) -> set[int]:
        """Return the ranks that views exclude."""
        return {loss["rank"] for each in self.events("view") for loss in each["lost"]}

    def end(self) -> dict[str, Any]:
        """Return the result, once there is one and nothing of the run is left on any host."""
        self.wait_for("result", lambda: bool(self.result()))
        # The daemons of a launcher whose host has no power any more notice that by their keepalives.
        self.wait_for("end of all processes", lambda: not self.left(), 60.0)
        return self.result()

    def code(self) -> int:
        """Return the exit code of `mpips run`, whose host must not be lost."""
        self._command.settimeout(patience(20.0))
        return int(self._command.recv(16) or 255)

    @property
    def output(self) -> str:
        """What `mpips run` has printed."""
        return self._output.read_text(errors="replace")

    def finish(self) -> dict[str, Any]:
        """Let the run end; return its result. No update may be lost or doubled."""
        self.enough()
        result = self.end()
        if wrong := self.wrong(result):
            self.fail("; ".join(wrong))
        return result

    def enough(self) -> None:
        """End the pushes."""
        (self.folder / _pushing.ENOUGH).touch()

    def wrong(self, result: dict[str, Any]) -> list[str]:
        """List what is wrong with a run that has ended."""
        if result["status"] != "completed":
            return [f"the run has {result['status']}"]
        found = []
        metrics = result["metrics"]
        if "updates" in metrics and (
            (metrics["lost"], metrics["doubled"]) != (0, 0) or not metrics["updates"]
        ):
            found.append(f"updates: {metrics}")
        return found + specification.wrong_in(self.logged())

    def left(self) -> list[str]:
        """List the processes that are left on any host, without those of Slurm."""
        found: list[str] = []
        for number in self.hosts.numbers:
            with suppress(OSError, IndexError):
                found += self.hosts.processes(number).values()
        # A step whose srun is lost ends when Slurm notices.
        return [each for each in found if Path(each.split(" ")[0]).name.rstrip(":") not in DAEMONS]

    def fail(self, why: str) -> None:
        """Fail the test with all that is known about the run."""
        told = [f"{each['wall']:.2f} {each}" for each in self.events(*INTERESTING)]
        files = sorted(self.folder.glob("output/*"))
        texts = [self.output[-3000:], *(path.read_text(errors="replace")[-3000:] for path in files)]
        shown: Sequence[str] = (*texts, *told, *self.left())
        pytest.fail(f"{why}; result {self.result()}\n" + "\n".join(shown))

    def close(self) -> None:
        """Forget the command, which ends with its host."""
        self._command.close()


INTERESTING = (
    "lost",
    "view",
    "frozen",
    "thawed",
    "propose",
    "denied",
    "waits for votes",
    "fenced",
    "failed",
    "kept",
    "detached",
    "orphaned",
)
