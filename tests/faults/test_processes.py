"""Real ranks are killed, stopped and resumed under Open MPI with ULFM; without it, a death ends the run.

`Started.finish` fails a test whose command leaves a process behind.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, Started, patience

from mpips.bench import _runs
from mpips.bench.failures import _processes, _pushing
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import complete
from mpips.history.events import Viewed
from mpips.history.file import read_history
from mpips.process.host import is_gone
from mpips.rundir import order_files

pytestmark = pytest.mark.ranks

SECONDS = 40.0
"""Enough on a busy machine; a hang is longer."""


@pytest.fixture
def survives(starter: Any) -> None:
    """Skip where the death of one rank ends all."""
    if not starter.mpi.ulfm:
        pytest.skip("this MPI ends all ranks when one dies")


@pytest.fixture
def ends(starter: Any) -> None:
    """Skip where ranks survive the deaths of others."""
    if starter.mpi.ulfm:
        pytest.skip("under this MPI ranks outlive each other")


def beats(seconds: float) -> str:
    """Set how long a rank may be silent: longer on a busy machine, where a healthy one may be."""
    return f"heartbeat.patience={patience(seconds):g}"


class Run:
    """A run under way."""

    def __init__(self, started: Started, folder: Path) -> None:
        self.started, self.folder = started, folder
        self._ranks: list[dict[str, Any]] = []

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """Its ranks at the start."""
        if not self._ranks:
            with suppress(OSError, ValueError):
                self._ranks = json.loads((self.folder / "run.json").read_text())["ranks"]
        return self._ranks

    def pid(self, role: str, index: int = 0) -> int:
        return next(int(r["pid"]) for r in self.ranks if (r["role"], r["index"]) == (role, index))

    def has(self, event: str) -> bool:
        """Return whether it has logged an event."""
        try:
            return f'"event": "{event}"' in (self.folder / "metrics.jsonl").read_text()
        except OSError:
            return False

    def status(self) -> str:
        return order_files.ask(self.folder, "status")[1]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.started.wait_for(condition, SECONDS)

    def result(self, done: Finished) -> dict[str, Any]:
        assert done.code == 0, done.stderr
        read: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        assert read["status"] == "completed"
        return read


@pytest.fixture
def pushing(start_mpips: Callable[..., Started], tmp_path: Path) -> Callable[..., Run]:
    """Start the program that pushes all the time, and wait until it does."""

    def begin(*settings: str) -> Run:
        job = tmp_path / "pushing.toml"
        job.write_text('[job]\nprogram = "mpips.bench.failures._pushing"\n')
        sets = [
            part
            for each in ("_pushing.seconds=600", "layout.workers=2", beats(1.0), *settings)
            for part in ("--set", each)
        ]
        run = Run(start_mpips("run", job, "--run-dir", tmp_path / "run", *sets), tmp_path / "run")
        run.wait_for(lambda: bool(run.ranks) and run.has("begun"))
        return run

    return begin


def ended(run: Run, lost: Sequence[str]) -> dict[str, Any]:
    """Let a run that pushes end, and make sure that it has lost ranks of these roles, and nothing else."""
    (run.folder / _pushing.ENOUGH).touch()
    result = run.result(run.started.finish(SECONDS))
    assert [each["role"] for each in result["recoveries"]] == list(lost)
    metrics = result["metrics"]
    assert (metrics["lost"], metrics["doubled"]) == (0, 0) and metrics["updates"] > 0
    return result


def noticed(run: Run, count: int = 1) -> Callable[[], bool]:
    """Return a condition: so many ranks are out, and no copy is under way any more."""

    def look() -> bool:
        said = run.status()
        return said.count("lost: ") == count and "copied" not in said

    return look


@pytest.mark.drawn(3)
@pytest.mark.parametrize("role", ["server", "worker", "scheduler"])
@pytest.mark.parametrize("spares", [0, 1])
def test_a_killed_rank_costs_no_update(
    survives: None, pushing: Callable[..., Run], role: str, spares: int
) -> None:
    run = pushing(f"layout.spares={spares}", "layout.servers=2", "ring.replicas=1")
    os.kill(run.pid(role), signal.SIGKILL)
    run.wait_for(noticed(run))
    result = ended(run, [role])
    assert result["recoveries"][0]["cause"] == "died"
    assert result["metrics"]["workers_lost"] == (role == "worker")


@pytest.mark.drawn(1)
@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_a_stopped_rank_is_given_up_and_leaves_when_it_wakes(
    survives: None, pushing: Callable[..., Run], role: str
) -> None:
    run = pushing("layout.spares=1", "layout.servers=2", "ring.replicas=1", beats(0.5))
    pid = run.pid(role)
    os.kill(pid, signal.SIGSTOP)
    run.wait_for(noticed(run))
    os.kill(pid, signal.SIGCONT)
    run.wait_for(lambda: is_gone(pid))
    assert ended(run, [role])["recoveries"][0]["cause"] == "hung"


@pytest.mark.once
def test_a_scheduler_that_is_cut_off_is_excluded_and_all_promises_are_kept(
    survives: None, pushing: Callable[..., Run]
) -> None:
    # Ranks wait longer where they share processors, and twice as long for a host that may have half of the votes.
    split = f"faults.split=[{{at_seconds={patience(1.0):g}, seconds={patience(3.0):g}, ranks=[0]}}]"
    layout = ("layout.spares=2", "layout.servers=2", "ring.replicas=1")
    run = pushing(*layout, beats(0.3), split, "trace.history=true")
    pid = run.pid("scheduler")
    run.wait_for(noticed(run))
    run.wait_for(lambda: is_gone(pid))
    assert ended(run, ["scheduler"])["recoveries"][0]["cause"] == "hung"
    history = read_history(run.folder / "trace")
    assert history.violations() == [] and len(history.clocks) == 7
    (successor,) = {event.leader for event in history.events if isinstance(event, Viewed)}
    assert successor != 0


@pytest.mark.drawn(1)
@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_a_stopped_rank_that_is_needed_ends_the_run(
    pushing: Callable[..., Run], starter: Any, role: str
) -> None:
    if role == "scheduler" and starter.mpi.ulfm:
        pytest.skip("under this MPI the scheduler is succeeded")
    give_up = patience(1.5)
    run = pushing("layout.servers=1", "layout.workers=1", f"heartbeat.give_up={give_up:g}")
    rank = next(each["rank"] for each in run.ranks if each["role"] == role)
    os.kill(run.pid(role), signal.SIGSTOP)
    done = run.started.finish(SECONDS)
    assert done.code == 1
    result = json.loads((run.folder / "result.json").read_text())
    assert f"rank {rank} ({role} 0): no heartbeat for {give_up:g} s" in result["error"]
    assert "--resume latest" in result["error"]


def test_two_servers_at_once_with_two_copies(survives: None, pushing: Callable[..., Run]) -> None:
    run = pushing("layout.servers=3", "ring.replicas=2")
    for index in (0, 2):
        os.kill(run.pid("server", index), signal.SIGKILL)
    run.wait_for(noticed(run, 2))
    ended(run, ["server", "server"])


def test_a_server_that_dies_while_another_joins(survives: None, pushing: Callable[..., Run]) -> None:
    run = pushing("layout.spares=1", "layout.servers=2", "ring.replicas=1")
    ok, text = order_files.ask(run.folder, "join", {"role": "server"})
    os.kill(run.pid("server", 1), signal.SIGKILL)
    assert ok, text
    run.wait_for(noticed(run))
    assert "servers: " in run.status() and run.status().count("shards)") == 2
    ended(run, ["server"])


# --- training --------------------------------------------------------------------------------------------

PASSES = 25


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "examples.svm"
    _processes.write_examples(path, 1)
    return path


@pytest.fixture
def training(start_mpips: Callable[..., Started], tmp_path: Path, examples: Path) -> Callable[..., Run]:
    """Start to train, with a checkpoint after every pass."""

    def begin(name: str, *more: str, workers: int = 2, spares: int = 1) -> Run:
        settings = [
            beats(1.0), f"data.train={examples}", "data.test=[]", "data.crosses=[]", "consistency.tau=0",
            "layout.servers=2", f"layout.workers={workers}", f"layout.spares={spares}",
            f"sparse_lr.passes={PASSES}", "sparse_lr.epsilon=1e-300", "sparse_lr.newton=false",
            "checkpoint.every=1", "checkpoint.keep=100",
            f"checkpoint.directory={tmp_path / 'checkpoints'}",
        ]  # fmt: skip
        sets = [part for each in settings for part in ("--set", each)]
        arguments = ("run", _runs.job_file(), "--run-dir", tmp_path / name, *sets, *more)
        return Run(start_mpips(*arguments), tmp_path / name)

    return begin


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """The parameters of a run without faults; computed once."""
    return {}


@pytest.mark.drawn(1)
@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_training_gives_the_same_bits_when_a_rank_dies_in_a_checkpoint(
    survives: None,
    training: Callable[..., Run],
    undisturbed: dict[str, str],
    tmp_path: Path,
    role: str,
) -> None:
    if not undisturbed:
        calm = training("calm", spares=0)
        undisturbed["sha"] = calm.result(calm.started.finish(SECONDS))["parameters_sha256"]
        for path in complete(tmp_path / "checkpoints"):
            path.rename(path.with_name(f"old-{path.name}"))
    run = training("struck", "--set", "ring.replicas=1")
    folder = tmp_path / "checkpoints"
    run.wait_for(lambda: bool(run.ranks) and any("step" in path.name for path in listed(folder)))
    os.kill(run.pid(role), signal.SIGKILL)
    result = run.result(run.started.finish(SECONDS))
    assert [each["role"] for each in result["recoveries"]] == [role]
    assert result["parameters_sha256"] == undisturbed["sha"]
    assert result["metrics"]["passes"] == PASSES
    written = complete(folder)
    assert written
    assert not [problem for path in written for problem in verify(path)]


def listed(folder: Path) -> list[Path]:
    """List what begins with a step's name, finished or not."""
    return [path for path in folder.glob("*step*") if not path.name.startswith("old-")]


def test_without_ulfm_a_death_ends_the_run_which_continues_from_its_checkpoint(
    ends: None, training: Callable[..., Run], tmp_path: Path
) -> None:
    run = training("struck", spares=0)
    run.wait_for(lambda: bool(run.ranks) and bool(complete(tmp_path / "checkpoints")))
    began = time.monotonic()
    os.kill(run.pid("worker", 1), signal.SIGKILL)
    done = run.started.finish(10.0)
    assert done.code not in (0, 85), f"{time.monotonic() - began:.1f} s after the kill"
    assert "--resume latest" in done.stderr
    again = training("again", "--resume", "latest", workers=1, spares=0)
    result = again.result(again.started.finish(SECONDS))
    assert result["metrics"]["passes"] == PASSES
