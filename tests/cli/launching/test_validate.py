"""`mpips validate`: the whole command on real ranks, ranks that hang, and the verdicts about its runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from conftest import Finished, Started, patience, send

from mpips.cli import main
from mpips.cli.launching import acceptance_runs
from mpips.cli.launching.acceptance_runs import KNOWN_BITS, Ended, judge_job, judge_recovery
from mpips.cli.launching.validate import Validation
from mpips.launch import mpi_launcher
from mpips.launch.checks.check import Check, Verdict
from mpips.process import subprocess_output

if TYPE_CHECKING:
    from argparse import Namespace

CHECKS = ["kernel folder", "launcher", "nodes", "software", "latency", "bandwidth",
          "visibility", "atomic rename", "fsync", "locks", "tiny job", "recovery"]  # fmt: skip


@pytest.mark.ranks
@pytest.mark.once
def test_a_machine_on_which_all_works_is_accepted(
    run_mpips: Callable[..., Finished], tmp_path: Path, starter: mpi_launcher.Starter
) -> None:
    done = run_mpips("validate", "--json", "--seconds", "600", "--folder", tmp_path, timeout=100.0)
    found = json.loads(done.stdout)
    checks = {each["check"]: each for each in found["checks"]}
    assert done.code == 0 and found["accepted"] is True, done.stdout
    assert list(checks) == CHECKS and found["hosts"] == found["hosts"][:1] * 4
    # How fast a machine is that others use, too, is not for a test to say.
    slow = {"kernel folder", "latency", "bandwidth", "visibility", "fsync"}
    recovers = "ok" if starter.mpi.ulfm else "warn"
    assert {name: each["verdict"] for name, each in checks.items() if name not in slow} == {
        name: recovers if name == "recovery" else "ok" for name in CHECKS if name not in slow
    }
    assert checks["tiny job"]["facts"]["parameters_sha256"] == KNOWN_BITS
    assert checks["recovery"]["facts"]["continued"] is starter.mpi.ulfm
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def ranks_of(started: Started) -> list[int]:
    """List the processes that check."""
    ranks = []
    for pid in started.living():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"mpips.launch.checks.ranks" in words and b"-n" not in words and b"python" in words[0]:
            ranks.append(pid)
    return ranks


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.long
def test_a_rank_that_hangs_is_named_and_nothing_is_left(
    start_mpips: Callable[..., Started], tmp_path: Path
) -> None:
    started = start_mpips(
        "validate", "--json", "--seconds", f"{max(25.0, patience(8.0)):.0f}", "--folder", tmp_path
    )
    started.wait_for(lambda: len(ranks_of(started)) >= 4)
    stopped = ranks_of(started)[-1:]
    send(stopped, signal.SIGSTOP)
    done = started.finish()
    checks = {each["check"]: each for each in json.loads(done.stdout)["checks"]}
    failed = [each for each in checks.values() if each["verdict"] == "fail"]
    assert done.code == 1 and len(failed) == 1
    assert "no end within" in failed[0]["value"] and "rank" in failed[0]["value"] and failed[0]["mend"]
    assert checks["tiny job"]["verdict"] == checks["recovery"]["verdict"] == "skip"
    assert list(tmp_path.iterdir()) == []


def processes_about(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if bytes(folder) in words:
            found.append(words.replace(b"\0", b" ").decode())
    return found


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.long
def test_a_run_whose_ranks_all_hang_leaves_no_process(tmp_path: Path) -> None:
    roles = (("scheduler", 0), ("server", 0), ("server", 1), ("worker", 0))
    stops = ", ".join(f'{{role="{role}", index={index}, at_seconds=0.1}}' for role, index in roles)
    job = acceptance_runs.write_job(tmp_path)
    done = acceptance_runs.start(
        job, "hangs", ["--set", f"faults.stop=[{stops}]"], patience(acceptance_runs.LEAST)
    )
    assert done is not None and done.bits == ""
    assert processes_about(tmp_path) == []


# The verdicts about the runs.


def ended(
    tmp_path: Path, code: int | None, hung: str = "", said: str = "", struck: bool = False, **result: Any
) -> Ended:
    folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    if struck:
        (folder / "strikes.jsonl").write_text('{"rank": 2, "signal": "SIGKILL", "wall": 1.0}\n')
    if result:
        (folder / "result.json").write_text(json.dumps({"status": "completed", "exit_code": code, **result}))
    return Ended(folder, code, said, hung)


def refuse() -> str:
    raise AssertionError("the twin is not needed")


def test_known_bits_are_accepted_and_others_only_if_all_nodes_have_them(tmp_path: Path) -> None:
    known = judge_job(ended(tmp_path, 0, parameters_sha256=KNOWN_BITS), refuse)
    assert (known.verdict, known.mend) == (Verdict.OK, "")
    other = ended(tmp_path, 0, parameters_sha256="f" * 64)
    alike = judge_job(other, lambda: "f" * 64)
    assert alike.verdict is Verdict.WARN and "processor or libm" in alike.mend
    mixed = judge_job(other, lambda: KNOWN_BITS)
    assert mixed.verdict is Verdict.FAIL and "the nodes compute different results" in mixed.mend
    alone = judge_job(other, lambda: "")
    assert alone.verdict is Verdict.WARN and "not compared: the run in one process did not end" in alone.value


def test_a_job_that_fails_or_hangs_says_why(tmp_path: Path) -> None:
    said = "a line\nmpips: failed: rank 2 on n1: no memory; run folder: /x/y\n"
    failed = judge_job(ended(tmp_path, 1, said=said), refuse)
    assert (failed.verdict, failed.value) == (Verdict.FAIL, "rank 2 on n1: no memory")
    hangs = judge_job(ended(tmp_path, None, "rank 3 (worker 0) does not answer"), refuse)
    assert hangs.value == "no end in time: rank 3 (worker 0) does not answer"


def test_recoveries_are_compared_with_the_undisturbed_run(tmp_path: Path) -> None:
    death = {"rank": 2, "role": "server", "cause": "died", "at": 1.0, "seconds": 0.05, "noticed_after": 0.01}
    bits = {"parameters_sha256": KNOWN_BITS}
    went_on = ended(tmp_path, 0, recoveries=[death], **bits)
    found = judge_recovery(went_on, None, KNOWN_BITS)
    assert found.verdict is Verdict.OK and "replaced after 0.05 s" in found.value
    assert judge_recovery(went_on, None, "0" * 64).verdict is Verdict.FAIL, "other bits"
    assert (
        judge_recovery(ended(tmp_path, 0, **bits), None, KNOWN_BITS).value
        == "the killed server was not noticed"
    )
    again = ended(tmp_path, 0, **bits)
    for died in (ended(tmp_path, 1, first_failure=first_failure("died")), ended(tmp_path, 1, struck=True)):
        resumed = judge_recovery(died, again, KNOWN_BITS)
        assert resumed.verdict is Verdict.WARN and "ULFM" in resumed.mend
        refused = ended(tmp_path, 1, said="mpips: error: no")
        assert judge_recovery(died, refused, KNOWN_BITS).verdict is Verdict.FAIL
        assert judge_recovery(died, None, KNOWN_BITS).verdict is Verdict.SKIP, "no time left"
    assert judge_recovery(ended(tmp_path, None), None, KNOWN_BITS).verdict is Verdict.FAIL


def first_failure(cause: str | None) -> dict[str, Any]:
    return {"rank": 2, "role": "server 1", "host": "n1", "wall": 1.0, "error": "no", "cause": cause}


def test_a_run_that_another_fault_ended_is_not_taken_for_one_that_a_death_ended(tmp_path: Path) -> None:
    for code, struck, result in (
        (2, False, {}),
        (2, True, {}),
        (74, False, {}),
        (1, True, {"first_failure": first_failure(None)}),
        (1, False, {"first_failure": first_failure("hung")}),
    ):
        other = ended(tmp_path, code, said="mpips: failed: the disk is full", struck=struck, **result)
        found = judge_recovery(other, None, KNOWN_BITS)
        assert (found.verdict, found.value) == (Verdict.FAIL, "the disk is full")


class Runs:
    """Stands for the runs of a validation: the fake time that each takes, and how it ends."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, takes: dict[str, float], **code: int
    ) -> None:
        self.time, self.given, self.checks = 0.0, list[tuple[str, float]](), list[Check]()
        self._takes, self._code, self._folder = takes, code, tmp_path
        monkeypatch.setattr(acceptance_runs, "start", self.start)
        monkeypatch.setattr("time.monotonic", lambda: self.time)

    def start(self, job: Path, run: str, options: list[str], seconds: float) -> Ended | None:
        if seconds < acceptance_runs.LEAST:
            return None
        self.given.append((run, seconds))
        hangs = self._takes[run] > seconds
        self.time += seconds + acceptance_runs.ENDING if hangs else self._takes[run]
        code = self._code.get(run, 0)
        bits = {} if hangs or code else {"parameters_sha256": KNOWN_BITS}
        return ended(self._folder, None if hangs else code, **bits)

    def verdicts(self, seconds: float) -> dict[str, str]:
        arguments = SimpleNamespace(launcher="auto", pmi="", seconds=seconds)
        validation = Validation(cast("Namespace", arguments), self.checks.append)
        validation._deadline = seconds
        validation._train(self._folder / "job.toml")
        return {each.name: f"{each.verdict}: {each.value}" for each in self.checks}


def test_runs_that_hang_end_within_the_time_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = Runs(monkeypatch, tmp_path, {"plain": 1e9})
    assert first.verdicts(60.0) == {"tiny job": "fail: no end in time", "recovery": "skip: not run"}
    assert first.time <= 60.0
    second = Runs(monkeypatch, tmp_path, {"plain": 5.0, "struck": 1e9})
    assert second.verdicts(25.0)["recovery"] == "fail: no end in time" and second.time <= 25.0
    third = Runs(monkeypatch, tmp_path, {"plain": 5.0})
    assert third.verdicts(20.0)["recovery"] == "skip: no time left" and third.time == 5.0
    fourth = Runs(monkeypatch, tmp_path, {})
    assert set(fourth.verdicts(15.0).values()) == {"skip: no time left"}


def test_recovery_is_not_judged_without_the_bits_of_the_undisturbed_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = Runs(monkeypatch, tmp_path, {"plain": 5.0, "struck": 5.0}, plain=1)
    assert runs.verdicts(60.0)["recovery"] == "skip: not run"
    assert [run for run, _ in runs.given] == ["plain"]


def test_the_stacks_of_a_run_that_hangs_are_asked_for_before_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], seconds: float, **how: Any) -> subprocess_output.Output:
        how["at_deadline"]()
        return subprocess_output.Output(None, "", "")

    monkeypatch.setattr(subprocess_output, "run", run)
    found = acceptance_runs.start(acceptance_runs.write_job(tmp_path), "run", [], 5.0)
    assert found is not None and found.problem == "no end in time: its ranks have not started together"


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--seconds", "1"], "--seconds 1: must be from 25 to 3600"),
        (["--seconds", "nan"], "--seconds nan: must be from 25 to 3600"),
        (["--folder", "/no/such"], "--folder /no/such: no such folder"),
    ],
)
def test_wrong_input_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], error: str) -> None:
    assert main(["validate", *arguments]) == 2
    assert capsys.readouterr().err == f"mpips: error: {error}\n"


def test_an_allocation_with_too_few_tasks_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"JOB_ID": "7", "NTASKS": "2", "NNODES": "2", "JOB_NODELIST": "n[1-2]"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    mpi = mpi_launcher.Mpi("openmpi", "Open MPI", "5.0.11", "3.1", "", "")
    monkeypatch.setattr(mpi_launcher, "find_starter", lambda _: mpi_launcher.Starter("srun", "srun", mpi))
    assert main(["validate", "--launcher", "srun"]) == 2
    assert (
        "starts 4 ranks, and this allocation has 2 tasks: salloc -N 2 --ntasks=4" in capsys.readouterr().err
    )


def test_a_machine_without_mpi_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mpips.errors import InputError

    def find(_: str) -> None:
        raise InputError("mpi4py loads no MPI")

    monkeypatch.setattr(mpi_launcher, "find_starter", find)
    assert main(["validate", "--folder", str(tmp_path)]) == 1
    assert "fail  launcher        mpi4py loads no MPI; compared with:" in capsys.readouterr().out
