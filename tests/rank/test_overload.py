"""Overload in simulated time: slow servers, floods of requests, and deaths under load; the cluster recovers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from queueing import Queueing

from mpips.bench.scaling._recovery_time import rates, recovered
from mpips.cluster.hash_ring import Ring
from mpips.rank.simulation import Internals, simulate
from mpips.replay.history import read_history
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.network_faults import Fault
from mpips.worker import vector
from mpips.worker.worker import Context

SERVERS, WORKERS = 3, 6
END = 4.5
PULSE = (1.0, 2.0)
WINDOW = 16
FLOOD = 400
KEYS = np.arange(48, dtype=np.uint64)
ONES = np.ones(len(KEYS), np.int64)


class Pushing:
    """Pushes and pulls until a moment, and notes when each round was answered; one may push without waiting."""

    def __init__(self, context: Context, done: list[float], floods: bool = False) -> None:
        self.context, self.done, self.floods = context, done, floods

    def go(self, until: float) -> int:
        """Push ones until the time is over; return how often."""
        vector, node = self.context.vectors["w"], self.context.node
        count = 0
        if self.floods and self.context.index == 0:
            node.wait_all([vector.push(KEYS, ONES) for _ in range(FLOOD)])
            return FLOOD
        while node.van.now() < until:
            node.wait(vector.push_pull(KEYS, ONES))
            self.done.append(node.van.now())
            count += 1
        return count


def run(
    *, pulse: tuple[float, float] = (0.0, 0.0), floods: bool = False, until: float = END, **how: Any
) -> tuple[dict[str, Any], list[float], Queueing]:
    """Run the program under load; return its result, the times of the answers, and the servers' queues."""
    internals, done = Internals(), list[float]()
    delays = Queueing(internals, range(1, 1 + SERVERS), pulse)

    def schedule(cluster: Cluster) -> dict[str, Any]:
        cluster.create_vector(VectorSpec("w", dtype="int64", extent=48, dense=True))
        pushes = sum(cluster.workers.call("go", {"until": until}))
        rows = cluster.node.wait(cluster.vectors["w"].pull(KEYS))
        return {
            "pushes": pushes,
            "rows": rows.tolist(),
            "traffic": cluster.traffic(),
            "losses": [loss.rank for loss in cluster.node.view.losses],
        }

    found = simulate(
        schedule, lambda context: Pushing(context, done, floods),
        servers=SERVERS, workers=WORKERS, delays=delays, internals=internals, window=WINDOW, **how,
    )  # fmt: skip
    return found, done, delays


@pytest.mark.parametrize("replicas", [0, 1])
@pytest.mark.parametrize("resend", [None, 0.05])
def test_the_rate_recovers_after_slow_servers(replicas: int, resend: float | None) -> None:
    """Also where timers run, as if messages could be lost, no data are sent twice."""
    found, done, _ = run(pulse=PULSE, replicas=replicas, resend=resend)
    assert found["rows"] == [found["pushes"]] * len(KEYS)
    assert found["traffic"]["sent_again"] == {}
    before, meanwhile = (np.mean(rates(done, *span)) for span in ((0.25, PULSE[0]), PULSE))
    assert meanwhile < before / 5
    assert recovered(done, PULSE) <= 2.0


@pytest.mark.parametrize("replicas", [0, 1])
def test_the_rate_recovers_after_a_server_stops_for_less_than_the_patience(replicas: int) -> None:
    fault = Fault("stop", 1, at=PULSE[0], lasting=0.6)
    found, done, _ = run(replicas=replicas, resend=0.05, faults=[fault], patience=0.75)
    assert found["rows"] == [found["pushes"]] * len(KEYS)
    assert found["traffic"]["sent_again"] == {}
    assert found["losses"] == []
    assert recovered(done, (PULSE[0], PULSE[0] + 0.6)) <= 2.0


@pytest.mark.parametrize("replicas", [0, 1])
def test_messages_in_flight_are_bounded_when_a_worker_floods(replicas: int) -> None:
    """What waits for a server is bounded by the windows, and by as many probes, however much is asked for."""
    found, _, delays = run(pulse=PULSE, floods=True, replicas=replicas, resend=0.05)
    assert found["rows"] == [found["pushes"]] * len(KEYS)
    assert found["traffic"]["sent_again"] == {}
    assert delays.most <= 2 * Ring.of(range(SERVERS)).shards * (WINDOW + WORKERS) * (1 + replicas) < FLOOD


class Hurrying:
    """Pushes without ever waiting, also from callbacks; notes how much was waiting to be sent."""

    def __init__(self, context: Context, most: list[int]) -> None:
        self.context, self.most = context, most

    def go(self) -> int:
        vector, tasks = self.context.vectors["w"], self.context.node.tasks
        again: list[Task] = []
        for number in range(FLOOD):
            task = vector.push(KEYS, ONES)
            self.most.append(tasks.queued)
            if number % 8 == 0:
                task.then(lambda _: again.append(vector.push(KEYS, ONES)))
        return FLOOD + FLOOD // 8


@pytest.mark.parametrize("replicas", [0, 1])
def test_a_worker_that_never_waits_is_slowed_down_and_its_replay_is_the_same(
    replicas: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vector, "MOST_QUEUED", 50)
    most: list[int] = []

    def schedule(cluster: Cluster) -> tuple[int, list[int]]:
        cluster.create_vector(VectorSpec("w", dtype="int64", extent=48, dense=True))
        pushes = sum(cluster.workers.call("go"))
        return pushes, cluster.node.wait(cluster.vectors["w"].pull(KEYS)).tolist()

    def run(replicas: int, **how: Any) -> list[int]:
        internals = Internals()
        delays = Queueing(internals, range(1, 1 + SERVERS), (0.0, 0.0))
        most.clear()
        pushes, rows = simulate(
            schedule, lambda context: Hurrying(context, most), servers=SERVERS, workers=2,
            delays=delays, internals=internals, window=WINDOW, replicas=replicas, **how,
        )  # fmt: skip
        assert rows == [pushes] * len(KEYS)
        assert 50 < max(most) <= 50 + 3 * Ring.of(range(SERVERS)).shards, (
            "a callback adds a push for each answer"
        )
        return sorted(most)

    queued = run(replicas, record=tmp_path)
    read_history(tmp_path).save(tmp_path / "replay")
    assert run(0, replay=tmp_path / "replay") == queued
    if replicas:
        run(replicas, faults=[Fault("kill", 1, at=0.1)])


def test_the_bytes_of_rows_in_flight_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "MOST_BYTES", 3 * ONES.nbytes)
    most: list[int] = []

    class Heavy:
        def __init__(self, context: Context) -> None:
            self.context = context

        def go(self) -> None:
            for _ in range(20):
                self.context.vectors["w"].push(KEYS, ONES)
                most.append(self.context.node.tasks.nbytes)

    def schedule(cluster: Cluster) -> list[int]:
        cluster.create_vector(VectorSpec("w", dtype="int64", extent=48, dense=True))
        cluster.workers.call("go")
        return cluster.node.wait(cluster.vectors["w"].pull(KEYS)).tolist()

    assert simulate(schedule, Heavy, servers=2, workers=1) == [20] * len(KEYS)
    assert max(most) == 4 * ONES.nbytes


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost_or_doubled_when_servers_die_under_load(seed: int) -> None:
    rng = random.Random(f"overload/{seed}")
    begin = rng.uniform(0.2, 0.5)
    pulse = (begin, begin + rng.uniform(0.2, 0.5))
    victim, at = rng.randint(1, SERVERS), begin + rng.uniform(-0.1, 0.6)
    found, _, _ = run(
        pulse=pulse, until=1.2, floods=rng.random() < 0.5, replicas=1, seed=seed,
        resend=rng.choice((None, 0.05)), faults=[Fault("kill", victim, at=at)],
    )  # fmt: skip
    assert found["rows"] == [found["pushes"]] * len(KEYS)
    assert found["losses"] == [victim]


def test_the_windows_of_a_pulse_are_counted() -> None:
    steady = np.arange(0.005, 3.0, 0.01)
    assert recovered(steady, (1.0, 1.0)) == 0.0
    held = [at for at in steady if not 1.0 <= at < 2.0]
    assert rates(held, 0.5, 2.5) == [100.0] * 2 + [0.0] * 4 + [100.0] * 2
    assert recovered(held, (1.0, 1.5)) == 0.5
    assert recovered(held, (1.0, 4.0)) == recovered([], (1.0, 2.0)) == float("inf")
