"""A part of the fault campaign on the twin: no update is lost or applied twice, whatever the faults."""

from __future__ import annotations

import pytest

from mpips.bench.failures import _trial, faults

SEEDS = 40
SLICE = 20


@pytest.mark.parametrize("first", range(0, SEEDS, SLICE))
def test_every_update_is_there_once_whatever_happens(first: int) -> None:
    outcomes = [_trial.run(seed) for seed in range(first, first + SLICE)]
    assert not [f"{outcome.seed}: {outcome.error}" for outcome in outcomes if not outcome.ok]
    summary = faults.summed(outcomes)
    assert (summary["lost"], summary["doubled"], summary["survived"]) == (0, 0, SLICE)
    assert summary["updates"] > 1000
    kinds = {name.partition(" ")[0] for name in summary["faults"]}
    assert kinds >= {"kill", "stop", "join", "leave", "drop", "duplicate", "delay"}
    assert summary["surviving_ranks"] < summary["ranks"]


# A part of a round waited for another request while the workers changed. A worker had left, and the scheduler died
# before it heard so.
@pytest.mark.parametrize("seed", [20293, 30207])
def test_what_trials_have_found_does_not_happen_again(seed: int) -> None:
    assert not _trial.run(seed).error


def test_a_trial_is_the_same_whenever_it_is_repeated() -> None:
    logs: list[list[str]] = [[], []]
    first, second = (_trial.run(7, log.append) for log in logs)
    assert first == second and logs[0] == logs[1]
