"""The network of a simulated cluster is split: never two leaders in one epoch, one result, every push exactly once."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from mpips.errors import WorkerLost
from mpips.membership import specification
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.network_faults import Fault, Split, no_delay, random_delays
from mpips.worker.worker import Context

EXTENT = 200
CALLS = 12


class Worker:
    """Adds 1 to keys of its own; each call has keys of its own too, so nothing is added twice."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node

    def go(self, number: int) -> dict[str, Any]:
        plain = self.context.vectors["plain"]
        keys = np.arange(number, EXTENT, CALLS, dtype=np.uint64)
        self.node.wait_all([plain.push(keys, np.ones((len(keys), 1), np.int64)) for _ in range(3)])
        return {}


def train(cluster: Cluster) -> dict[int, int]:
    """Let the workers push in some calls, a while apart; return all values."""
    create(cluster)
    number = 0
    while number < CALLS:
        end = cluster.decide(lambda: cluster.node.van.now() + 0.15)
        cluster.node.wait_until(lambda end=end: cluster.node.van.now() >= end)  # type: ignore[misc]
        try:
            cluster.workers.call("go", {"number": number})
        except WorkerLost:
            cluster.regroup()
            continue
        number += 1
    found: dict[int, int] = {}
    for keys, values in cluster.export(cluster.vectors["plain"]):
        found.update(zip(keys.tolist(), values[:, 0].tolist(), strict=True))
    return found


def create(cluster: Cluster) -> None:
    while "plain" not in cluster.vectors:
        try:
            cluster.create_vector(VectorSpec("plain", "int64", 1, EXTENT))
        except WorkerLost:
            cluster.regroup()


def check(internals: Internals, workers: int) -> None:
    """Check that there was one result, with every push once, and that the views are a behaviour, in this order."""
    assert not specification.wrong_in(specification.published(*each, 1) for each in internals.published)
    epochs = [view.epoch for view, _ in internals.published]
    assert epochs == sorted(epochs)
    (values,) = internals.results
    view = internals.view
    assert view is not None
    lost = [loss for loss in view.losses if loss.role == "worker"]
    for key in range(EXTENT):
        assert values[key] == 3 * workers or (lost and 3 <= values[key] <= 6 * workers), key
    assert internals.network is not None
    assert not internals.network._alive, "somebody has not left"


SCHEDULER, SERVERS, WORKERS = 0, (1, 2, 3), (4, 5)


def hosts(count: int) -> list[str]:
    """Place ranks as launchers do: one after another on each host."""
    return [f"h{rank % count}" for rank in range(6)]


BOTH, SENDS, RECEIVES = (True, True), (True, False), (False, True)
"""Directions in which messages of the ranks that are cut off are kept back."""


@pytest.mark.parametrize(
    ("lasting", "directions", "count", "cut"),
    [
        *(
            (3.0, each, *where)
            for each in (BOTH, SENDS, RECEIVES)
            for where in ((3, 0), (3, 1), (2, 0), (2, 1))
        ),
        *((0.4, each, 3, 0) for each in (BOTH, SENDS)),
        *((30.0, each, *where) for each in (BOTH, RECEIVES) for where in ((3, 0), (2, 0))),
    ],
)
def test_at_most_one_side_goes_on(
    lasting: float, directions: tuple[bool, bool], count: int, cut: int
) -> None:
    there = hosts(count)
    ranks = frozenset(rank for rank, host in enumerate(there) if host == f"h{cut}")
    internals = Internals()
    simulate(
        train, Worker, servers=3, workers=2, replicas=1, hosts=there, internals=internals, tick=0.01,
        faults=[Split(ranks, at=0.5, lasting=lasting, sends=directions[0], receives=directions[1])],
    )  # fmt: skip
    check(internals, 2)
    if lasting < 0.75:
        assert internals.view is not None and not internals.view.losses, "a short failure costs no rank"


def one_run(seed: int) -> None:
    """Split a random cluster at random, a few times."""
    rng = random.Random(seed)
    count = rng.randint(2, 4)
    schedulers, servers, spares = rng.randint(1, 2), rng.randint(2, 4), rng.randint(0, 2)
    workers = rng.randint(count, count + 1)  # some on each host
    size = schedulers + servers + workers + spares
    there = [f"h{rank % count}" for rank in range(size)]
    faults: list[Fault | Split] = []
    at = 0.2
    for _ in range(rng.randint(1, 3)):
        at += rng.random()
        lasting = rng.choice([0.3, 0.8, 1.5, 4.0])
        cut = set(rng.sample(range(count), rng.randint(1, count - 1)))
        ranks = frozenset(rank for rank in range(size) if rank % count in cut)
        sends, receives = rng.choice([(True, True), (True, True), (True, False), (False, True)])
        faults.append(Split(ranks, at=at, lasting=lasting, sends=sends, receives=receives))
        at += lasting
    delays = rng.choice([no_delay, random_delays(seed, delay=0.002)])
    internals = Internals()
    simulate(
        train, Worker, servers=servers, workers=workers, spares=spares, schedulers=schedulers, replicas=1,
        hosts=there, internals=internals, tick=0.01, faults=faults, delays=delays, seed=seed, horizon=90.0,
    )  # fmt: skip
    check(internals, workers)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_split_and_when(seed: int) -> None:
    one_run(seed)


def test_a_worker_that_is_cut_off_for_good_leaves() -> None:
    internals = Internals()
    alone = WORKERS[1]
    simulate(
        train, Worker, servers=3, workers=2, replicas=1, hosts=hosts(3), internals=internals, tick=0.01,
        faults=[Split(frozenset({alone}), at=0.5)],
    )  # fmt: skip
    check(internals, 2)
    assert alone in internals.left
