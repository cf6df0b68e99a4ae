"""Clocks that are set, drift, or stand still: no healthy rank is lost, no deadline is missed or taken early."""

from __future__ import annotations

import time

import pytest

from mpips.bench._runs import process_messages
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault, Jump
from mpips.transport.time_of_day import TimeOfDay, since_boot

RANKS, HOUR, LASTS = 4, 3600.0, 2.0


def run(internals: Internals, **how: object) -> float:
    """Wait for a deadline in a program; return when it was over, in simulated seconds."""

    def schedule(cluster: Cluster) -> float:
        end = cluster.decide(lambda: cluster.node.van.wall() + LASTS)
        while not cluster.decide(lambda: cluster.node.van.wall() >= end):
            cluster.workers.call("go")
            process_messages(cluster.node, 0.02)
        assert internals.network is not None
        return internals.network.time

    class Worker:
        def __init__(self, context: object) -> None:
            pass

        def go(self) -> None:
            pass

    found: float = simulate(
        schedule, Worker, servers=1, workers=1, spares=1, patience=0.2, internals=internals, **how  # type: ignore[arg-type]
    )  # fmt: skip
    return found


def lost(internals: Internals) -> tuple[object, ...]:
    assert internals.view is not None
    return internals.view.losses


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_no_deadline_is_missed_or_taken_early_when_clocks_are_set(seconds: float) -> None:
    internals = Internals()
    over = run(internals, faults=[Jump(rank, seconds, at=0.3 + 0.1 * rank) for rank in range(RANKS)])
    assert LASTS <= over < LASTS + 0.1 and not lost(internals)


@pytest.mark.parametrize("fast", range(RANKS))
def test_a_clock_that_is_a_tenth_fast_or_slow_costs_no_rank(fast: int) -> None:
    internals = Internals()
    rates = {rank: 1.1 if rank == fast else 0.9 for rank in range(RANKS)}
    over = run(internals, rates=rates)
    assert LASTS / 1.1 <= over < LASTS / 0.9 + 0.1 and not lost(internals)


def test_a_suspension_shorter_than_the_patience_costs_no_rank_and_counts() -> None:
    internals = Internals()
    faults = [Fault("suspend", rank, at=0.5, lasting=0.15) for rank in range(RANKS)]
    over = run(internals, faults=faults)
    assert LASTS <= over < LASTS + 0.1 and not lost(internals)


def test_all_machines_are_suspended_for_an_hour() -> None:
    internals = Internals()
    faults = [Fault("suspend", rank, at=0.5, lasting=HOUR) for rank in range(RANKS)]
    over = run(internals, faults=faults, horizon=HOUR + 10)
    assert HOUR < over < HOUR + 1 and not lost(internals)


def test_the_time_of_day_is_that_of_the_host_at_the_start() -> None:
    before = time.time()
    wall = TimeOfDay()
    assert before <= wall() + 1e-3 and wall() <= time.time() + 1e-3
    first = since_boot()
    assert since_boot() >= first
