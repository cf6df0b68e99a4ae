"""A whole node is lost: the run continues, if its ranks do not depend on the launcher once they have started."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts.running import HostRun

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.once,
    pytest.mark.skipif(not os.environ.get("MPIPS_TEST_HOSTS"), reason="make test-hosts runs it"),
]
DETACHED = str(Path(__file__).with_name("detached.py"))


@pytest.mark.parametrize("lost", ["the launcher's, killed", "another, killed", "another, without power"])
def test_a_run_goes_on_without_a_node(start_run: Callable[..., HostRun], lost: str) -> None:
    run = start_run(3, 7, "layout.servers=3", "layout.workers=3", "ring.replicas=1", program=(DETACHED,))
    there = {each["rank"]: each["host"] for each in run.ranks()}
    number = 1 if lost.startswith("the launcher") else 3
    gone = {rank for rank, host in there.items() if host == f"h{number}"}
    assert gone
    (run.hosts.lose_power if "power" in lost else run.hosts.kill)(number)
    run.wait_for("views without it", lambda: gone <= {each["lost"] for each in run.events("lost")})
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == gone
