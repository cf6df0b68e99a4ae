"""Parts of the data move from slow workers to fast ones, with `[layout] hand_over`, by their measured seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import DataSet, Hooks, Outcome, make, objective, optimum, run_twin

from mpips import Workload
from mpips.checkpoint.checkpoint import complete
from mpips.jobs.sparse_lr.block_worker import BlockWorker
from mpips.jobs.sparse_lr.pace import WAIT, WORTH, Pace
from mpips.transport.network_faults import Fault

SEQUENTIAL = {"model": "sequential"}
BOUNDED = {"model": "bounded", "tau": 4}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "correlated", n=160, m=40)


def slow_workers(monkeypatch: pytest.MonkeyPatch, factors: dict[int, float]) -> None:
    """Let workers report a time of work that is proportional to their examples; `factors` by rank."""
    report = BlockWorker.report

    def timed(self: Any) -> dict[str, Any]:
        each = factors.get(self.context.rank, 1.0) * len(self.blocks.state)
        self.fake = getattr(self, "fake", 0.0) + each
        return report(self) | {"worked": self.fake}

    monkeypatch.setattr(BlockWorker, "report", timed)


def moves(outcome: Outcome) -> list[dict[str, Any]]:
    return [event for event in outcome.log if event["event"] == "moved"]


def is_optimal(outcome: Outcome, data: DataSet) -> None:
    weights = outcome.weights(data.keys)
    assert outcome.metrics["objective"] <= 1.001 * optimum(data.x, data.y, 1.0)
    assert outcome.metrics["objective"] == pytest.approx(objective(weights, data.x, data.y, 1.0), rel=1e-9)


@pytest.mark.parametrize("consistency", [SEQUENTIAL, BOUNDED])
def test_a_worker_that_is_always_slower_gets_fewer_parts(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, consistency: dict[str, Any]
) -> None:
    # Rank 0 is the scheduler, rank 1 the server.
    slow_workers(monkeypatch, {2: 3.0})
    outcome = run_twin(data_set, 1, 2, consistency=consistency, layout={"hand_over": True, "workers": 2})
    is_optimal(outcome, data_set)
    (moved,) = moves(outcome)
    assert moved["shares"] == [4, 12] and moved["parts"] == 4
    names = [event["event"] for event in outcome.log]
    assert names[: names.index("moved")].count("pass") <= 2 * WAIT + 2


def test_without_hand_over_and_at_the_same_speed_no_part_moves(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_workers(monkeypatch, {3: 1.1})
    assert not moves(run_twin(data_set, 1, 3, layout={"hand_over": True, "workers": 3}))
    slow_workers(monkeypatch, {3: 5.0})
    assert not moves(run_twin(data_set, 1, 3))


def test_with_exact_sums_the_bits_stay(data_set: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_twin(data_set, 1, 2, layout={"exact_sums": True, "workers": 2})
    slow_workers(monkeypatch, {2: 3.0})
    moved = run_twin(data_set, 1, 2, layout={"exact_sums": True, "hand_over": True, "workers": 2})
    assert moves(moved) and moved.sha == plain.sha


@pytest.mark.parametrize("at", [0.05, 0.1, 0.2])
def test_a_successor_of_the_scheduler_moves_the_same_parts(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    slow_workers(monkeypatch, {3: 3.0})
    layout = {"hand_over": True, "workers": 2, "schedulers": 2, "servers": 1}
    plain = run_twin(data_set, 1, 2, layout=layout, network={"schedulers": 2})
    faults = {"schedulers": 2, "faults": [Fault("kill", 0, at=at)]}
    outcome = run_twin(data_set, 1, 2, layout=layout, network=faults)
    assert outcome.sha == plain.sha and outcome.passes() == plain.passes()
    assert [each["shares"] for each in moves(plain)] == [[4, 12]]


def test_a_resumed_run_keeps_the_shares(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow_workers(monkeypatch, {2: 3.0})
    how: dict[str, Any] = {
        "layout": {"hand_over": True, "workers": 2},
        "checkpoint": {"every": 8, "keep": 50},
    }
    run_twin(data_set, 1, 2, hooks=Hooks(checkpoints=tmp_path), **how)
    resume = Hooks(resume=complete(tmp_path)[-1], checkpoints=tmp_path / "b")
    outcome = run_twin(data_set, 1, 2, hooks=resume, **how)
    is_optimal(outcome, data_set)
    assert not moves(outcome)


def test_a_worker_whose_parts_all_move_has_no_examples(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(self: Pace, table: Workload, cost: float = 0.0) -> list[tuple[int, int]]:
        return [(part.number, 2) for part in table.of(3)]

    monkeypatch.setattr(Pace, "plan", plan)
    outcome = run_twin(data_set, 1, 2, layout={"hand_over": True, "workers": 2})
    assert moves(outcome)[0]["shares"] == [16, 0]
    is_optimal(outcome, data_set)


def test_parts_move_when_that_would_have_saved_what_it_costs() -> None:
    table, pace = Workload(parts=8, workers=[10, 11]), Pace()
    for passes in range(4):
        pace.note({10: 3.0 * passes, 11: 1.0 * passes})
    # Of 9 s of the slow worker, 4.5 s: half of its parts.
    assert not pace.plan(table, cost=4.6)
    assert pace.plan(table, cost=4.4) == [(6, 11), (4, 11)]


@settings(deadline=None)
@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6),
    st.integers(1, 12),
    st.lists(st.integers(0, 5), max_size=8),
)
def test_a_plan_shortens_a_pass_and_leaves_each_worker_a_part(
    seconds: list[float], parts_each: int, given_away: list[int]
) -> None:
    workers = list(range(10, 10 + len(seconds)))
    table = Workload(parts_each * len(workers), workers)
    for number, to in enumerate(given_away):
        holder = table.parts[number % len(table.parts)].worker
        if len(table.of(holder)) > 1:
            table.give(number % len(table.parts), workers[to % len(workers)])
    speed = dict(zip(workers, seconds, strict=True))
    pace = Pace()

    def times() -> dict[int, float]:
        return {worker: len(table.of(worker)) * speed[worker] for worker in workers}

    before = times()
    for passes in range(WAIT + 1):
        assert not pace.plan(table)
        pace.note({worker: passes * before[worker] for worker in workers})
    plan = pace.plan(table)
    for part, worker in plan:
        assert table.parts[part].worker != worker
        table.give(part, worker)
    assert all(table.of(worker) for worker in workers)
    if plan:
        assert max(times().values()) <= WORTH * max(before.values()) * (1.0 + 1e-9)
    pace.restart()
    assert not pace.plan(table)
