"""Virtual hosts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import patience
from hosts.running import HostRun
from hosts.virtual_hosts import VirtualHosts, unavailable


@pytest.fixture(scope="session")
def able() -> None:
    """Skip where there can be no virtual hosts."""
    if why := unavailable():
        pytest.skip(why)


@pytest.fixture
def hosts(able: None) -> Iterator[Callable[[int], VirtualHosts]]:
    """Make virtual hosts, which end with the test."""
    made: list[VirtualHosts] = []

    def make(count: int) -> VirtualHosts:
        made.append(VirtualHosts(count))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def start_run(
    hosts: Callable[[int], VirtualHosts], starter: Any, tmp_path: Path
) -> Iterator[Callable[..., HostRun]]:
    """Start runs on so many virtual hosts, each in a folder of its own, and wait until they push or train."""
    if not starter.mpi.ulfm:
        pytest.skip("this MPI ends all ranks when one dies")
    made: list[HostRun] = []

    def start(count: int, *settings: str, job: Path | None = None) -> HostRun:
        beats = f"heartbeat.patience={patience(1.0):g}"
        folder = tmp_path / f"start-{len(made)}"
        folder.mkdir()
        run = HostRun(hosts(count), folder, beats, *settings, job=job)
        made.append(run)
        run.wait_for("pushes" if job is None else "passes", run.pushes if job is None else run.trains)
        return run

    yield start
    for each in made:
        each.close()
