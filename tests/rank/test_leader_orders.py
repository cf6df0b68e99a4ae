"""Orders of `mpips ctl` when the leader dies, in simulated clusters: each is answered, and executed once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated import simulate

from mpips.cluster.registration import Registration
from mpips.config.job_file import CheckpointSpec
from mpips.rank.leader_orders import LeaderOrders
from mpips.rundir import order_files
from mpips.rundir.folder import RunFolder
from mpips.scheduler.finishing import finish
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.worker_recovery import regroup
from mpips.transport.network_faults import Fault
from mpips.worker.worker import Context, at_once

STEPS = 9
GIVEN = 3.2
"""When the order is given, in fake seconds."""


class Worker:
    """Trains a fake second for each step."""

    taus: dict[int, list[int]] = {}  # noqa: RUF012

    def __init__(self, context: Context) -> None:
        self.context = context
        Worker.taus[context.rank] = []

    def train(self) -> None:
        """Train for a fake second."""
        van = self.context.node.van
        end = van.now() + 1.0
        self.context.node.wait_until(lambda: van.now() >= end)

    @at_once
    def set_tau(self, tau: int) -> None:
        """Record it."""
        Worker.taus[self.context.rank].append(tau)


class Run:
    """A run of some steps whose leader dies; `given` has the orders, by name."""

    def __init__(
        self, folder: Path, given: dict[str, tuple[str, dict[str, Any]]], evaluates: bool = False
    ) -> None:
        self.evaluates = evaluates
        self.slow = False
        self.folder, self.given = RunFolder(folder), given
        self.checkpoints, self.answers = list[int](), dict[str, tuple[bool, str]]()
        self.leaders: list[int] = []
        self.view: Any = None
        self.why: str | None = None
        Worker.taus.clear()

    def go(self, dies: float, **how: Any) -> Run:
        """Run; the leader dies at a time."""
        observed: dict[str, Any] = {}
        job: Any = SimpleNamespace(
            checkpoint=CheckpointSpec(), program="p", tables=dict, layout=SimpleNamespace(exact_sums=False)
        )
        simulate(
            self.schedule, Worker, folder=self.folder.path, horizon=100.0, tick=0.02, schedulers=2, servers=2,
            workers=2, spares=2, replicas=1, faults=[Fault("kill", 0, at=dies)], job=job, observed=observed, **how,
        )  # fmt: skip
        self.view = observed.get("view")
        return self

    def schedule(self, cluster: Cluster) -> None:
        """Train, and execute orders."""
        van, node = cluster.node.van, cluster.node
        self.leaders.append(node.rank)
        status: Any = SimpleNamespace(ask=lambda order: None, ready=list)
        program: Any = SimpleNamespace(worker=Worker)
        if self.slow:
            cluster.orders.are_kept = lambda: False
        orders = LeaderOrders(cluster, cluster.folder, cluster.membership, status, status, program)

        def look() -> None:
            if van.now() >= GIVEN:
                for name, (verb, arguments) in list(self.given.items()):
                    self.give(name, verb, arguments)
                self.given.clear()
            orders.look()
            self.hear()
            if self.slow and van.now() >= GIVEN + 0.5:
                (self.folder.path / "orders" / "2.json").unlink(missing_ok=True)

        node.register(Registration(ticks=(look,)))
        cluster.coordinator.begin = lambda folder, step, about: self.checkpoints.append(step) or ""  # type: ignore
        with cluster.phase("train"):
            for step in range(1, 3 if self.evaluates else STEPS):
                cluster.workers.call("train")
                if cluster.due(step) and cluster.stop is None:
                    cluster.checkpoint(step, {})
                if cluster.renewed():
                    regroup(cluster)
                self.why = cluster.stop
                if self.why is not None:
                    break

        if self.evaluates:
            finish(cluster, {}, *[lambda: cluster.workers.call("train") and {}] * 4)

    def give(self, name: str, verb: str, arguments: dict[str, Any]) -> None:
        """Write an order into the folder."""
        (self.folder.path / "orders").mkdir(exist_ok=True)
        about = {"verb": verb, "arguments": arguments, "start": ""}
        order_files.create(self.folder.path / "orders" / f"{name}.json", about)

    def hear(self) -> None:
        """Read the answers, as `mpips ctl` does, which then removes both files."""
        for path in (self.folder.path / "orders").glob("*.answer.json"):
            name = path.name.removesuffix(order_files.ANSWER)
            answer = order_files.read_answer(path)
            assert answer is not None and name not in self.answers, "one answer each"
            self.answers[name] = answer
            path.with_name(f"{name}.json").unlink()
            path.unlink()


DIES = [3.21, 3.23, 3.6, 4.02, 4.5]
"""Before the order is read; taken and not answered; answered and not carried out; afterwards."""


@pytest.mark.parametrize("dies", DIES)
def test_a_spare_joins_the_workers_once(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("join", {"role": "worker"})}).go(dies)
    assert run.answers["1"][0] and run.leaders == [0, 1]
    assert len(run.view.workers) == 3


@pytest.mark.parametrize("dies", DIES)
def test_a_worker_leaves(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("leave", {"rank": 4})}).go(dies)
    assert run.answers["1"] == (True, "rank 4 will leave the workers after the present step")
    assert run.view.workers == (5,)


@pytest.mark.parametrize("dies", DIES)
def test_a_spare_joins_the_servers_once(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("join", {"role": "server"})}).go(dies)
    assert run.answers["1"][0]
    assert len(run.view.ring.servers) == 3 and len(run.view.spares) == 1


@pytest.mark.parametrize("dies", DIES)
def test_a_server_leaves(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("leave", {"rank": 3})}).go(dies)
    assert run.answers["1"] == (True, "rank 3 moves its keys to the other servers, then becomes a spare")
    assert run.view.ring.servers == (2,)


@pytest.mark.parametrize("dies", DIES)
def test_a_checkpoint_is_written(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("checkpoint", {})}).go(dies)
    assert run.answers["1"][0]
    written = set(run.checkpoints)
    assert written and written <= {4, 5}, "a second one at most, when the leader died in between"


@pytest.mark.parametrize("dies", DIES)
def test_the_delay_is_set_at_all_workers(tmp_path: Path, dies: float) -> None:
    given = {"1": ("tau", {"tau": 7}), "2": ("join", {"role": "worker"})}
    run = Run(tmp_path, given).go(dies)
    assert all(ok for ok, _ in run.answers.values()) and len(run.answers) == 2
    assert {rank: taus[-1] for rank, taus in Worker.taus.items()} == dict.fromkeys(run.view.workers, 7)


@pytest.mark.parametrize("dies", DIES)
def test_a_run_stops(tmp_path: Path, dies: float) -> None:
    run = Run(tmp_path, {"1": ("stop", {})}).go(dies)
    assert run.answers["1"][0]
    assert run.why == "mpips ctl stop"


def test_two_orders_at_once_take_two_spares(tmp_path: Path) -> None:
    join = ("join", {"role": "server"})
    run = Run(tmp_path, {"1": join, "2": join, "3": join}).go(90.0)
    assert [run.answers[name][0] for name in "123"] == [True, True, False]
    assert len(run.view.ring.servers) == 4


@pytest.mark.parametrize(
    "order",
    [("checkpoint", {}), ("join", {"role": "worker"}), ("leave", {"rank": 4}), ("tau", {"tau": 2})],
    ids=lambda order: order[0],
)
def test_orders_for_the_next_step_are_refused_after_training(
    tmp_path: Path, order: tuple[str, dict[str, Any]]
) -> None:
    run = Run(tmp_path, {"1": order, "2": ("join", {"role": "server"})}, evaluates=True).go(90.0)
    assert run.answers["1"] == (False, "training has ended: there is no further step")
    assert run.answers["2"][0] and len(run.view.ring.servers) == 3


def test_an_order_that_was_withdrawn_while_another_one_waited_is_not_carried_out(tmp_path: Path) -> None:
    join = ("join", {"role": "server"})
    run = Run(tmp_path, {"1": join, "2": join})
    run.slow = True
    run.go(90.0)
    assert list(run.answers) == ["1"] and len(run.view.ring.servers) == 3
