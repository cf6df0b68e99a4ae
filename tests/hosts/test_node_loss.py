"""A whole node is lost, or the launcher: the run continues without it, and nothing is left behind at its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hosts.running import HostRun
from hosts.slurm_hosts import SlurmHosts, slurm_unavailable
from synthetic import make
from virtual import write_job

pytestmark = [pytest.mark.ranks, pytest.mark.once]
longer = pytest.mark.skipif(not os.environ.get("MPIPS_TEST_HOSTS"), reason="make test-hosts runs it")
LAYOUT = ("layout.servers=3", "layout.workers=3", "ring.replicas=1")


def ranks_of(run: HostRun, number: int) -> set[int]:
    """Return the ranks of a host."""
    found = {each["rank"] for each in run.ranks() if each["host"] == f"h{number}"}
    assert found
    return found


def wait_for_views_without(run: HostRun, gone: set[int]) -> None:
    """Wait until the ranks are excluded."""
    run.wait_for(
        "views without it", lambda: gone <= {each["lost"] for each in run.events("lost")} | run.excluded()
    )


def processes(run: HostRun, number: int, name: str) -> list[int]:
    """Return the processes of a host whose command lines contain a text."""
    return [pid for pid, line in run.hosts.processes(number).items() if name in line]


def test_a_run_goes_on_without_a_node(start_run: Callable[..., HostRun]) -> None:
    run = start_run(3, *LAYOUT)
    gone = ranks_of(run, 3)
    run.hosts.kill(3)
    wait_for_views_without(run, gone)
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == gone
    assert run.code() == 0, run.output
    assert "the run continues without it" in run.output and "mpips: completed after" in run.output


@longer
@pytest.mark.parametrize(
    "lost", ["the launcher's, killed", "the launcher's, without power", "another, without power"]
)
def test_a_run_goes_on_without_any_node(start_run: Callable[..., HostRun], lost: str) -> None:
    run = start_run(3, *LAYOUT)
    number = 1 if lost.startswith("the launcher") else 3
    gone = ranks_of(run, number)
    (run.hosts.lose_power if "power" in lost else run.hosts.kill)(number)
    wait_for_views_without(run, gone)
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == gone
    assert number == 1 or run.code() == 0, run.output


@longer
@pytest.mark.usefixtures("able")
def test_a_run_of_srun_ends_that_loses_a_node_before_all_ranks_have_begun(
    starter: Any, tmp_path: Path
) -> None:
    if why := slurm_unavailable():
        pytest.skip(why)
    if not starter.mpi.ulfm:
        pytest.skip("this MPI ends all ranks when one dies")
    with SlurmHosts(3) as hosts:
        run = HostRun(hosts, tmp_path, *LAYOUT)
        try:
            run.wait_for("signs of all nodes", lambda: len(list(run.folder.glob(".starting-*-h[123]"))) == 3)
            hosts.lose_power(3)
            result = run.end()
        finally:
            run.close()
    assert (result["status"], result["error"]) == ("failed", "node h3 was lost before the run had begun")
    assert not list(run.folder.glob(".starting-*"))


@longer
@pytest.mark.parametrize("what", ["prted", "mpirun"])
def test_nobody_is_lost_with_a_daemon_or_the_launcher(start_run: Callable[..., HostRun], what: str) -> None:
    run = start_run(3, *LAYOUT)
    for pid in processes(run, 2, "prted") if what == "prted" else processes(run, 1, "prterun"):
        os.kill(pid, signal.SIGKILL)
    run.wait_for("end of the launcher", lambda: "the run continues without it" in run.output)
    assert run.finish()["recoveries"] == []
    assert run.code() == 0, run.output


@longer
def test_a_frozen_node_leaves_when_it_thaws(start_run: Callable[..., HostRun]) -> None:
    run = start_run(3, *LAYOUT)
    gone = ranks_of(run, 3)
    run.hosts.freeze(3)
    wait_for_views_without(run, gone)
    run.hosts.thaw(3)
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == gone
    assert run.code() == 0, run.output


@longer
def test_the_ranks_of_all_nodes_end_when_mpips_run_is_killed(start_run: Callable[..., HostRun]) -> None:
    run = start_run(3, *LAYOUT)
    for pid in processes(run, 1, "mpips.cli"):
        os.kill(pid, signal.SIGKILL)
    result = run.end()
    assert result["status"] == "failed" and "its launcher has ended (mpips run" in result["error"]


@longer
def test_a_death_on_the_same_host_is_noticed_at_once(start_run: Callable[..., HostRun]) -> None:
    run = start_run(3, *LAYOUT, "heartbeat.patience=10")
    leader = run.ranks()[0]
    server = next(each for each in run.ranks() if each["role"] == "server" and each["host"] != leader["host"])
    number = int(server["host"][1:])
    (pid,) = [
        pid for pid in run.hosts.processes(number) if f"NSpid:\t{pid}\t{server['pid']}\n" in status(pid)
    ]  # fmt: skip
    os.kill(pid, signal.SIGKILL)
    wait_for_views_without(run, {server["rank"]})
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == {server["rank"]}
    assert {each["cause"] for each in result["recoveries"]} == {"died"}
    assert run.code() == 0, run.output


def status(pid: int) -> str:
    """Return what the kernel knows about a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


@longer
@pytest.mark.parametrize("number", [1, 3])
def test_training_gives_the_same_bits_without_a_node(
    start_run: Callable[..., HostRun], tmp_path: Path, number: int
) -> None:
    data_set = make(tmp_path / "data", "correlated", 400)
    job = write_job(tmp_path / "job.toml", data_set, 8.0, servers=3, workers=3, replicas=1)
    # The sums of fewer workers are rounded otherwise.
    calm = start_run(3, "layout.exact_sums=true", job=job).end()
    run = start_run(3, "layout.exact_sums=true", job=job)
    gone = ranks_of(run, number)
    run.hosts.kill(number)
    result = run.end()
    assert result["status"] == "completed", result
    assert {each["rank"] for each in result["recoveries"]} == gone
    assert result["parameters_sha256"] == calm["parameters_sha256"]


@longer
@pytest.mark.parametrize("without", ["nothing", "the launcher"])
def test_a_signal_stops_the_ranks_of_all_nodes(
    start_run: Callable[..., HostRun], tmp_path: Path, without: str
) -> None:
    data_set = make(tmp_path / "data", "correlated", 400)
    job = write_job(tmp_path / "job.toml", data_set, 30.0, servers=3, workers=3, replicas=1)
    run = start_run(3, job=job)
    if without == "the launcher":
        for pid in processes(run, 1, "prterun"):
            os.kill(pid, signal.SIGKILL)
        run.wait_for("end of the launcher", lambda: "the run continues without it" in run.output)
    for pid in processes(run, 1, "mpips.cli"):
        os.kill(pid, signal.SIGUSR1)
    result = run.end()
    assert (result["status"], result["stopped_by"]) == ("stopped", "SIGUSR1")
    assert run.code() == 85, run.output
