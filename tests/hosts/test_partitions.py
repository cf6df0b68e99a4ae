"""The network between hosts fails while a run pushes: never two leaders, no update lost, one result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from hosts.running import HostRun

pytestmark = [pytest.mark.ranks, pytest.mark.once]


def test_of_two_hosts_that_are_cut_off_from_each_other_one_goes_on(start_run: Callable[..., HostRun]) -> None:
    run = start_run(2, "layout.servers=2", "layout.workers=2", "ring.replicas=1")
    run.hosts.cut(2)
    run.wait_for("decision", lambda: bool(run.events("lost")))
    time.sleep(0.5)
    run.hosts.mend(2)
    result = run.finish()
    assert {each["cause"] for each in result["recoveries"]} == {"hung"}


@pytest.mark.skipif(not os.environ.get("MPIPS_TEST_HOSTS"), reason="make test-hosts runs it")
def test_a_host_that_is_cut_off_from_two_others_leaves(start_run: Callable[..., HostRun]) -> None:
    run = start_run(3, "layout.servers=3", "layout.workers=3", "ring.replicas=1")
    (alone,) = [number for number in (1, 2, 3) if run.ranks()[0]["host"] == f"h{number}"]
    there = {each["rank"] for each in run.ranks() if each["host"] == f"h{alone}"}

    def excluded() -> set[int]:
        """Return the ranks that the others have excluded; a rank that is heard again before stays."""
        return {loss["rank"] for each in run.events("view") if each["leader"] for loss in each["lost"]}

    run.hosts.cut(alone)
    run.wait_for("view without these ranks", lambda: there <= excluded())
    run.hosts.mend(alone)
    result = run.finish()
    assert {each["rank"] for each in result["recoveries"]} == there
