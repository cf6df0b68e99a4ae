"""A run of mpips on virtual hosts, started by Open MPI's `mpirun` on the first one."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TAG, patience
from hosts.virtual_hosts import VirtualHosts

from mpips.bench.failures import _pushing
from mpips.launch import mpi_launcher

PASSED_ON = ("PATH", "PYTHONPATH", "PYTHONFAULTHANDLER", TAG, *mpi_launcher.THREADS)


class HostRun:
    """A run of the program that pushes to every shard continuously, until `enough`."""

    def __init__(
        self,
        hosts: VirtualHosts,
        folder: Path,
        starter: mpi_launcher.Starter,
        ranks: int,
        *settings: str,
        program: Sequence[str] = ("-m", "mpips"),
    ) -> None:
        self.hosts, self.folder = hosts, folder / "run"
        job = folder / "pushing.toml"
        job.write_text('[job]\nprogram = "mpips.bench.failures._pushing"\n')
        sets = [part for each in ("_pushing.seconds=600", *settings) for part in ("--set", each)]
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMI", "PRTE_"))},
            **mpi_launcher.launch_environment("openmpi", {}, root=True),
            "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", TAG: secrets.token_hex(8), "HOME": str(folder),
        }  # fmt: skip
        where = ",".join(f"h{number}:{ranks}" for number in hosts.numbers)
        line = [starter.path, "-n", str(ranks), "--host", where, "--map-by", "node:OVERSUBSCRIBE"]
        line += ["--bind-to", "none", "--with-ft", "ulfm", "--mca", "mpi_yield_when_idle", "1"]
        line += [word for name in PASSED_ON for word in ("-x", name)]
        line += ["--mca", "mpi_add_procs_cutoff", str(ranks)]
        line += [sys.executable, *program, str(job), "--run-dir", str(self.folder), *sets]
        self._output = folder / "output"
        with self._output.open("wb") as out:
            self._launcher = hosts.start(1, line, environ, folder, out)

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

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the events of all ranks' logs of some names, in order."""
        found = []
        for path in self.folder.glob("logs/rank-*.jsonl"):
            for line in path.read_text().splitlines():
                with suppress(ValueError):
                    event = json.loads(line)
                    if event["event"] in names:
                        found.append(event)
        return sorted(found, key=lambda event: float(event["wall"]))

    def result(self) -> dict[str, Any]:
        """Return the result; {} if there is none yet."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.folder / "result.json").read_text()))
        return {}

    def finish(self) -> dict[str, Any]:
        """Let the run end; return its result once nothing of it is left. No update may be lost or doubled."""
        (self.folder / _pushing.ENOUGH).touch()
        self.wait_for("result", lambda: bool(self.result()))
        self.wait_for("end of all ranks", lambda: not self._left())
        result = self.result()
        if result["status"] != "completed":
            self.fail(f"the run has {result['status']}")
        assert (result["metrics"]["lost"], result["metrics"]["doubled"]) == (0, 0)
        assert result["metrics"]["updates"] > 0
        leaders: dict[int, set[int]] = {}
        for event in self.events("view"):
            leaders.setdefault(event["epoch"], set()).add(event["leader"])
        assert all(len(each) == 1 for each in leaders.values()), leaders
        return result

    def _left(self) -> list[str]:
        """List the ranks that are left on any host; a launcher may wait for a host without power."""
        found: list[str] = []
        for number in self.hosts.numbers:
            with suppress(OSError, IndexError):
                found += [
                    line
                    for line in self.hosts.processes(number).values()
                    if line.startswith(sys.executable) and str(self.folder) in line
                ]
        return found

    def fail(self, why: str) -> None:
        """Fail the test with all that is known about the run."""
        told = [f"{each['wall']:.2f} {each}" for each in self.events(*INTERESTING)]
        outputs = sorted(self._output.parent.glob("output*"))
        text = "".join(path.read_text(errors="replace")[-3000:] for path in outputs)
        shown: Sequence[str] = (text, *told, *self._left())
        pytest.fail(f"{why}; result {self.result()}\n" + "\n".join(shown))

    def close(self) -> None:
        """Forget the launcher, which ends with its host."""
        self._launcher.close()


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
)
