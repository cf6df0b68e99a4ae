"""Passes that overlap: reports of one model, steps in the order of passes, the optimum whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import DataSet, Hooks, Outcome, make, objective, optimum, run_twin

from mpips.checkpoint.manifest import complete, step_of
from mpips.jobs.sparse_lr import control, newton, overlapped_darlin, proximal
from mpips.jobs.sparse_lr.blocks import Blocks
from mpips.jobs.sparse_lr.overlap import Passes
from mpips.jobs.sparse_lr.overlapped_darlin import OverlappedDarlin
from mpips.scheduler.group import Group
from mpips.transport.network_faults import Fault, random_delays

L1 = 1.0


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "binary", n=80, m=24)


@pytest.fixture(scope="module")
def best(data_set: DataSet) -> float:
    return optimum(data_set.x, data_set.y, L1)


def run(data_set: DataSet, tau: int = 2, servers: int = 2, workers: int = 3, **more: Any) -> Outcome:
    return run_twin(data_set, servers, workers, consistency={"model": "bounded", "tau": tau}, **more)


def is_optimal(outcome: Outcome, data_set: DataSet, best: float) -> None:
    weights = outcome.weights(data_set.keys)
    assert outcome.metrics["objective"] <= 1.001 * best
    assert outcome.metrics["objective"] == pytest.approx(
        objective(weights, data_set.x, data_set.y, L1), rel=1e-9
    )
    assert (np.diff(outcome.passes()) <= 1e-8 * best).all(), "the objective rose by more than its rounding"


def without_rests(patch: pytest.MonkeyPatch) -> None:
    """Let passes overlap for as long as nothing but a search or a Newton step requires all workers."""
    patch.setattr(newton, "DELAYED", newton.DELAYED._replace(first=newton.NEVER.first))
    searched = control.searched
    patch.setattr(control, "searched", lambda *args: searched(*args)._replace(patient=1 << 20))


@pytest.mark.parametrize(("servers", "tau", "seed"), [(1, 1, 0), (3, 2, 1)])
def test_each_report_is_of_the_model_after_its_pass(
    data_set: DataSet, best: float, monkeypatch: pytest.MonkeyPatch, servers: int, tau: int, seed: int
) -> None:
    """Steps of the next pass have been applied by then on servers, and have arrived at workers."""
    without_rests(monkeypatch)
    follow, early, reports = OverlappedDarlin._follow, [0], []

    def checked(self: OverlappedDarlin, running: Any) -> None:
        before = len(self.control.objectives)
        w = np.zeros(len(data_set.keys))
        follow(self, running)
        for keys, rows in saved_weights():
            w[np.searchsorted(data_set.keys, keys)] = rows
        reported = self.control.objectives[before]
        found = objective(w, data_set.x, data_set.y, L1)
        reports.append((reported, found))

    segments: list[Any] = []
    history = proximal._history

    def watched(segment: Any) -> Any:
        if all(segment is not each for each in segments):
            segments.append(segment)
        return history(segment)

    def saved_weights() -> list[Any]:
        found = []
        for segment in segments:
            slots, rows = segment.notes["history"]
            early[0] += int((rows[:, -1] != segment.values[slots, 0]).sum())
            found.append((segment.keys_of(slots), rows[:, -1]))
        return found

    monkeypatch.setattr(proximal, "_history", watched)
    monkeypatch.setattr(OverlappedDarlin, "_follow", checked)
    delays = random_delays(seed, delay=0.002)
    # With fewer blocks than twice those in flight, no pass overlaps another.
    outcome = run(data_set, tau, servers, delays=delays, seed=seed, settings={"blocks": 8})
    is_optimal(outcome, data_set, best)
    assert len(reports) > 3
    assert early[0], "no step of a next pass was early"
    for reported, found in reports:
        # A pass that has increased F is not reported with the higher one.
        assert reported == pytest.approx(found, rel=1e-9) or reported < found
    assert sum(reported == pytest.approx(found, rel=1e-9) for reported, found in reports) > len(reports) / 2


def test_passes_end_together_only_for_what_needs_it(
    data_set: DataSet, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    start = Group.start

    def heard(self: Group, function: str, *args: Any, **named: Any) -> Any:
        calls.append(function)
        return start(self, function, *args, **named)

    monkeypatch.setattr(Group, "start", heard)
    # Steps between passes need all workers, too.
    outcome = run(data_set, settings={"newton": False})
    is_optimal(outcome, data_set, best)
    assert calls.count("report_of") == outcome.metrics["passes"]
    assert 0 < calls.count("end_at") < outcome.metrics["passes"]


@pytest.mark.parametrize("seed", range(2))
def test_passes_that_increase_the_objective_are_shortened_or_undone(
    data_set: DataSet, best: float, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    without_rests(monkeypatch)
    monkeypatch.setattr(control, "THETA_START", control.THETA_LOW)
    monkeypatch.setattr(control, "start", lambda f: control.Control((f,), theta=1e-9))
    rises: list[int] = []
    end = OverlappedDarlin._end

    def ended(self: OverlappedDarlin) -> bool:
        rises.append(self.good)
        assert self.cluster.durations.under_way == 2
        return end(self)

    monkeypatch.setattr(OverlappedDarlin, "_end", ended)
    gradient = Blocks.gradient

    def bold(self: Blocks, cols: Any, theta: float) -> Any:
        keys, rows = gradient(self, cols, theta)
        rows[:, 1] *= np.float32(0.15)
        return keys, rows

    monkeypatch.setattr(Blocks, "gradient", bold)
    outcome = run(data_set, seed=seed, delays=random_delays(seed, delay=0.001))
    # With such steps the run may settle early.
    is_optimal(outcome, data_set, 1.02 * best)
    assert 2 in rises, "no pass increased the objective while the next one ran"


@pytest.mark.parametrize("seed", range(4))
def test_a_rank_is_lost_at_any_instant(
    data_set: DataSet, best: float, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    without_rests(monkeypatch)
    rng = np.random.default_rng(seed)
    network: dict[str, Any] = {"spares": int(rng.integers(2)), "schedulers": 2, "replicas": 1}
    first = 4 if seed % 2 else 0  # a worker, or any
    victim = int(rng.integers(first, 7))
    faults = [Fault("kill", victim, at=float(rng.uniform(0.02, 0.2)))]
    outcome = run(
        data_set, delays=random_delays(seed, delay=0.002), seed=seed, network={**network, "faults": faults},
        layout={"schedulers": 2, "servers": 2, "workers": 3, "spares": network["spares"]},
    )  # fmt: skip
    assert outcome.metrics["objective"] <= 1.001 * best
    weights = outcome.weights(data_set.keys)
    assert outcome.metrics["objective"] == pytest.approx(
        objective(weights, data_set.x, data_set.y, L1), rel=1e-9
    )


def test_checkpoints_are_of_the_passes_that_the_job_names(
    data_set: DataSet, best: float, tmp_path: Path
) -> None:
    plain = run(data_set, hooks=Hooks(checkpoints=tmp_path), checkpoint={"every": 3, "keep": 50})
    steps = [step_of(path) for path in complete(tmp_path)]
    assert steps == list(range(3, plain.metrics["passes"], 3))
    again = run(data_set, 4, 1, 2, hooks=Hooks(resume=complete(tmp_path)[0], checkpoints=tmp_path / "b"))
    is_optimal(again, data_set, best)
    assert again.passes("pass")[0] == 4
    stopped = run(data_set, hooks=Hooks(checkpoints=tmp_path / "c", stop_after=2))
    (path,) = complete(tmp_path / "c")
    assert step_of(path) == stopped.metrics["passes"] in (2, 3)


@pytest.mark.parametrize("first", [False, True])
def test_blocks_that_meet_the_last_ones_of_a_pass_are_not_the_first_of_the_next(first: bool) -> None:
    darlin = object.__new__(OverlappedDarlin)
    darlin.tau, darlin.rng = 2, np.random.default_rng(0)
    darlin.begins = np.arange(0, 100, 10, dtype=np.uint64)
    darlin.data = type("Data", (), {"extent": 100})()  # type: ignore[assignment]
    cut = np.arange(0, 100, 5, dtype=np.uint64)
    before = overlapped_darlin.Running(1, None, None, 1.0, cut, [0, 7, 19])  # type: ignore[arg-type]
    for _ in range(20):
        order = darlin._order(None if first else before)
        assert sorted(order) == list(range(10))
        assert first or not {0, 3, 9} & set(order[:2])


class RecordedBlocks:
    """Notes the order of applied steps and of saved passes."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def apply(self, cols: Any, reply: Any) -> None:
        self.log.append(reply)

    def note_pass(self) -> None:
        self.log.append("saved")


def test_steps_are_applied_pass_by_pass_in_whatever_order_they_arrive() -> None:
    blocks = RecordedBlocks()
    passes = Passes(blocks)  # type: ignore[arg-type]
    cols = np.arange(1)

    def add(time: int) -> None:
        passes.add(time, None, None, cols)  # type: ignore[arg-type]

    add(0)
    add(1)
    passes.begin()
    add(2)
    passes.arrived(0, cols, "b")  # type: ignore[arg-type]
    passes.arrived(1, cols, "c")  # type: ignore[arg-type]
    assert blocks.log == ["b"]
    passes.arrived(0, cols, "a")  # type: ignore[arg-type]
    assert blocks.log == ["b", "a", "saved", "c"]
    passes.begin()
    assert blocks.log[-1] == "saved", "a pass without blocks in flight is complete at once"
