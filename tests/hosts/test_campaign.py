"""Campaigns are drawn by their seeds, and a short one is survived."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest
from hosts import campaign
from hosts.campaign import Outcome
from hosts.slurm_hosts import slurm_unavailable


@pytest.mark.parametrize("of", ["strikes", "partitions"])
def test_a_trial_is_drawn_by_its_seed(of: str) -> None:
    plans = [campaign.plan(seed, of) for seed in range(100)]
    assert plans == [campaign.plan(seed, of) for seed in range(100)]
    assert {each.host for each in plans} == {1, 2, 3} and all(1 <= each.host <= each.hosts for each in plans)
    assert {each.kind for each in plans} == ({"partition"} if of == "partitions" else {*campaign.STRIKES})
    assert {each.way for each in plans} == {*campaign.WAYS}


def test_the_summary_has_a_row_for_each_kind() -> None:
    kills = [Outcome(campaign.plan(seed, "strikes"), 1.0, detection=0.1 * seed) for seed in (0, 5, 10)]
    kills[0].wrong, kills[0].lost = ["lost an update"], 1
    rows = campaign.summary([*kills, Outcome(campaign.plan(1, "strikes"), 1.0)])
    by_kind = {each["kind"]: each for each in rows}
    kinds = [each for each in by_kind if each.startswith("kill")]
    assert sum(by_kind[each]["trials"] for each in kinds) == 3
    assert (
        sum(by_kind[each]["completed"] for each in kinds) == 2
        and sum(by_kind[each]["lost"] for each in kinds) == 1
    )
    said = campaign.text(rows)
    assert "detection p50 (s)" in said and "power" in said
    assert "FAILED" in campaign.line(kills[0], Path("there")) and "FAILED" not in campaign.line(
        kills[1], Path()
    )


@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize(
    ("of", "launcher", "trials"),
    [("strikes", "mpirun", 5), ("strikes", "srun", 2), ("partitions", "mpirun", 2)],
)
@pytest.mark.skipif(not os.environ.get("MPIPS_TEST_HOSTS"), reason="make test-hosts runs it")
def test_a_few_trials(able: None, starter: Any, tmp_path: Path, of: str, launcher: str, trials: int) -> None:
    if not starter.mpi.ulfm:
        pytest.skip("this MPI ends all ranks when one dies")
    if launcher == "srun" and (why := slurm_unavailable()):
        pytest.skip(why)
    outcomes = campaign.campaign(trials, secrets.randbelow(10**6), of, tmp_path / "trials", launcher)
    assert not [each.wrong for each in outcomes if each.wrong]
