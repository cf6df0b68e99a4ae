"""Stop requests before training, in simulated clusters: in a first load, a later one, after the leader's loss."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from simulated import simulate

from mpips.cluster.registration import Registration
from mpips.errors import CheckpointError, InputError
from mpips.scheduler.finishing import finish
from mpips.scheduler.pending_orders import PendingOrders
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.stopping import LONG, NothingTrained, leave_untrained, pass_on
from mpips.storage.updates import VectorSpec
from mpips.transport.network_faults import Fault
from mpips.worker.worker import Context

PIECES = 100
ASKED = 20.5
"""When the run is asked to stop, in fake seconds."""


class Worker:
    """Reads pieces of data, one in a fake second, and counts them."""

    read = 0

    def __init__(self, context: Context) -> None:
        self.context = context

    def load(self, pieces: int = PIECES) -> None:
        """Read, and process messages between two pieces."""
        van = self.context.node.van
        for _ in self.context.polling(range(pieces)):
            end = van.now() + 1.0
            self.context.node.wait_until(lambda end=end: van.now() >= end)  # type: ignore[misc]
            Worker.read += 1

    def train(self) -> None:
        """Train, for a fake second."""
        self.load(1)


def ask_at(cluster: Cluster, seconds: float) -> None:
    """Ask the run to stop at a time, as a signal would."""
    van = cluster.node.van

    def look() -> None:
        if van.now() >= seconds and cluster.orders.stop is None:
            cluster.orders.stop = "SIGTERM"

    look()
    cluster.node.register(Registration(ticks=(look,)))
    leave_untrained(cluster)


def run(schedule: Callable[[Cluster], Any], asked: float = ASKED, **how: Any) -> Any:
    """Run a program that is asked to stop; return what it returns, or the time at which it was left."""
    Worker.read = 0
    left: list[float] = []

    def begun(cluster: Cluster) -> Any:
        try:
            ask_at(cluster, asked)
            return schedule(cluster)
        except NothingTrained:
            left.append(cluster.node.van.now())
            raise

    try:
        return simulate(begun, Worker, horizon=500.0, tick=0.02, **how)
    except NothingTrained:
        return left[-1]


def test_a_stop_request_ends_a_load_at_the_next_piece_on_all_workers() -> None:
    def schedule(cluster: Cluster) -> None:
        with cluster.phase("load"):
            cluster.workers.call("load")

    assert run(schedule, workers=3, servers=2) == pytest.approx(ASKED, abs=0.1)
    assert Worker.read <= 3 * 21


def test_a_run_that_is_asked_before_it_begins_does_not_begin() -> None:
    began: list[bool] = []
    assert run(began.append, asked=-1.0) == pytest.approx(0.0, abs=0.1)
    assert not began


def steps(cluster: Cluster) -> tuple[int, str | None]:
    """Train steps until a stop; return their number, and why it stopped."""
    number = 0
    with cluster.phase("train"):
        while True:
            cluster.workers.call("train")
            number += 1
            if cluster.due(number):
                return number, cluster.stop


@pytest.mark.parametrize("within", ["train", "later load", "no phase"])
def test_a_stop_request_does_not_end_a_load_after_training(within: str) -> None:
    def schedule(cluster: Cluster) -> tuple[int, str | None]:
        if within == "no phase":
            cluster.workers.call("load", {"pieces": 30})
        elif within == "later load":
            with cluster.phase("train"):
                cluster.workers.call("train")
            with cluster.phase("load"):
                cluster.workers.call("load", {"pieces": 30})
        return steps(cluster)

    assert run(schedule) == (21 if within == "train" else 1, "SIGTERM")


def test_a_checkpoint_that_is_read_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpips.checkpoint import inspection

    seen: list[float] = []

    def schedule(cluster: Cluster) -> tuple[int, str | None]:
        cluster.resume = tmp_path / "step-000001"
        van = cluster.node.van

        def verify(path: Path, turn: Callable[[], object], valid: set[Path]) -> list[str]:
            while van.now() < 90.0:
                seen.append(van.now())
                turn()
                van.idle()
            return []

        monkeypatch.setattr(inspection, "verify", verify)
        monkeypatch.setattr("mpips.scheduler.resuming.read_manifest", lambda path: {})
        with cluster.phase("train"):
            cluster.restore()
            return steps(cluster)

    assert run(schedule) == pytest.approx(ASKED, abs=0.1)
    assert seen


def test_a_successor_that_repeats_a_trained_run_does_not_leave_it() -> None:
    """It is asked from its start on, and its predecessor died at 10 s, after some steps."""

    def schedule(cluster: Cluster) -> tuple[int, str | None]:
        with cluster.phase("load"):
            cluster.workers.call("load", {"pieces": 3})
        return steps(cluster)

    faults = [Fault("kill", 0, at=10.0)]
    number, why = run(schedule, asked=9.5, schedulers=2, faults=faults)
    assert why == "SIGTERM" and number >= 6


def test_a_successor_leaves_a_load_for_the_leader_that_was_lost() -> None:
    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("w"))
        with cluster.phase("load"):
            cluster.workers.call("load")

    faults = [Fault("kill", 0, at=10.0)]
    assert run(schedule, schedulers=2, faults=faults) == pytest.approx(ASKED, abs=0.1)


def test_a_checkpoint_that_another_run_has_removed_is_not_promised(tmp_path: Path) -> None:
    from mpips.checkpoint import checkpoint

    folder = checkpoint.begin(tmp_path, 1)
    checkpoint.commit(folder, [], {"step": 1})

    def schedule(cluster: Cluster) -> None:
        cluster.resume, cluster.checkpoints = folder, tmp_path / "own"
        assert cluster.last_checkpoint() == folder
        (folder / "parameters.h5").unlink()
        assert cluster.last_checkpoint() is None
        cluster.orders.stop = "SIGTERM"
        cluster.coordinator.problem = "no space"
        with pytest.raises(CheckpointError, match="the run cannot stop to be resumed: no space"):
            cluster.stopping()

    simulate(schedule, Worker)


def test_a_successor_handles_a_request_that_only_its_predecessor_got() -> None:
    """As by `mpips ctl stop`, which is answered, and so not seen by another leader."""

    def schedule(cluster: Cluster) -> tuple[int, int, str | None]:
        if cluster.node.rank == 0:
            ask_at(cluster, 9.5)
        return (cluster.node.rank, *steps(cluster))

    faults = [Fault("kill", 0, at=9.8)]
    rank, number, why = simulate(schedule, Worker, horizon=500.0, tick=0.02, schedulers=2, faults=faults)
    assert (rank, why) == (1, "SIGTERM") and number <= 11


class Ended:
    """The outcome of a run with an evaluation."""

    metrics: dict[str, Any]
    at: float
    cut_by: str | None
    stopped: bool
    leader: int


def evaluated(
    pieces: int, asked: float, save: Any = None, checkpoint: Path | None = None, **how: Any
) -> Ended:
    """Run a program that trains for a fake second, and evaluates so many pieces, a second each."""
    ended = Ended()

    def schedule(cluster: Cluster) -> None:
        ask_at(cluster, asked)
        with cluster.phase("train"):
            cluster.workers.call("train")
        cluster.last_checkpoint = lambda: checkpoint  # type: ignore[method-assign]
        finish(
            cluster, {"loss": 0.5}, lambda: {"model": cluster.workers.call("load", {"pieces": 8}) and "written"},
            lambda: {"auc": cluster.workers.call("load", {"pieces": pieces}) and 0.9},
            lambda: {"coherence": cluster.workers.call("load", {"pieces": pieces}) and 0.1}, save=save,
        )  # fmt: skip
        ended.metrics, ended.at = cluster.metrics, cluster.node.van.now()
        ended.cut_by, ended.stopped = cluster.evaluation_cut_by, cluster.stopped_early
        ended.leader = cluster.node.rank

    simulate(schedule, Worker, horizon=500.0, tick=0.02, **how)
    return ended


def test_an_evaluation_that_is_long_is_cut_short_and_the_model_is_not() -> None:
    ended = evaluated(PIECES, asked=12.5, workers=3, servers=2)
    assert ended.metrics == {"loss": 0.5, "model": "written"} and ended.cut_by == "SIGTERM"
    assert ended.at == pytest.approx(12.5 + LONG + 1.0, abs=1.0)
    assert not ended.stopped, "there is nothing to resume from"


@pytest.mark.parametrize("asked", [0.5, 3.0])
def test_a_model_that_takes_long_is_written_all_the_same(asked: float) -> None:
    ended = evaluated(PIECES, asked)
    assert ended.metrics["model"] == "written" and "auc" not in ended.metrics
    assert ended.at == pytest.approx(9.0, abs=0.5)


def test_a_short_evaluation_is_done_though_the_run_is_to_stop() -> None:
    ended = evaluated(2, asked=9.5)
    assert ended.metrics == {"loss": 0.5, "model": "written", "auc": 0.9, "coherence": 0.1}
    assert ended.cut_by is None and not ended.stopped


def test_a_run_whose_evaluation_is_cut_short_is_resumed_from_what_it_saves(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    ended = evaluated(PIECES, 12.5, save=saved.append, checkpoint=tmp_path)
    assert ended.stopped and saved == [{"loss": 0.5}]
    ended = evaluated(PIECES, 12.5, checkpoint=tmp_path)
    assert ended.stopped, "an earlier one serves as well"


@pytest.mark.parametrize("dies", [12.4, 13.0, 17.4, 17.6, 18.2])
def test_a_successor_cuts_an_evaluation_short_too(dies: float) -> None:
    ended = evaluated(PIECES, 12.5, schedulers=2, workers=2, faults=[Fault("kill", 0, at=dies)])
    assert ended.leader == 1 and ended.cut_by == "SIGTERM"
    assert ended.metrics == {"loss": 0.5, "model": "written"}
    assert ended.at < dies + 2 * LONG + 2.0


def test_a_failure_in_a_shortened_evaluation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(worker: Worker, pieces: int = PIECES) -> None:
        raise InputError("test.svm:7: wrong")

    monkeypatch.setattr(Worker, "load", fail)

    def schedule(cluster: Cluster) -> None:
        cluster.orders.stop = "SIGTERM"
        finish(cluster, {}, lambda: None, lambda: cluster.workers.call("load") and {})

    with pytest.raises(Exception, match=r"test\.svm:7"):
        simulate(schedule, Worker)


@pytest.mark.parametrize(("kind", "why"), [("SIGUSR1", "SIGUSR1"), ("SIGXCPU", "SIGXCPU"), ("SIGTERM", None)])
def test_a_warning_that_only_one_worker_has_got_stops_the_run(kind: str, why: str | None) -> None:
    """A limit of its own processor time; but a node that shuts down, and sends SIGTERM, leaves the others to go on."""
    asked: list[int] = []

    class Warned(Worker):
        def __init__(self, context: Context) -> None:
            super().__init__(context)
            pass_on(context.node, PendingOrders(), asked if context.index == 1 else [])

    def schedule(cluster: Cluster) -> tuple[int, str | None]:
        pass_on(cluster.node, cluster.orders, [])
        with cluster.phase("train"):
            for number in range(1, 6):
                cluster.workers.call("train")
                if number == 2:
                    asked.append(signal.Signals[kind])
                if cluster.due(number):
                    break
        return number, cluster.stop

    number, stop = simulate(schedule, Warned, workers=2, horizon=50.0, tick=0.02)
    assert stop == why and number == (3 if why else 5)
