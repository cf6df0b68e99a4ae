"""A change of the workers changes who may succeed the leader: the new successor has the journal before it is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mpips.errors import WorkerLost
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command, Message
from mpips.transport.network_faults import Fault
from mpips.worker.worker import Context

LEADER, SERVER, WORKER, LOST, SPARE = range(5)
KEYS = np.arange(4, dtype=np.uint64)


class Worker:
    def __init__(self, context: Context) -> None:
        self.context = context

    def go(self) -> None:
        self.context.vectors["w"].push(KEYS, np.ones(4)).result()


def schedule(cluster: Cluster) -> list[float]:
    w = cluster.create_vector(VectorSpec("w"))
    for _ in range(5):
        cluster.workers.call("go")
    end = cluster.decide(lambda: cluster.node.van.now() + 0.2)
    cluster.node.wait_until(lambda: cluster.node.van.now() >= end)
    while True:
        try:
            cluster.workers.call("go")
            break
        except WorkerLost:
            cluster.regroup()
    rows: list[float] = w.pull(KEYS).result().tolist()
    return rows


@pytest.mark.parametrize("last", [SERVER, WORKER, SPARE])
def test_the_leader_dies_when_it_has_made_its_only_successor_a_worker(last: int) -> None:
    internals = Internals()
    struck: list[int] = []

    def delays(source: int, dest: int, message: Message) -> Sequence[float]:
        roles: Any = message.meta.get("roles", ()) if message.command is Command.VIEW else ()
        if roles and roles[SPARE] == "worker" and (source, dest) == (LEADER, last) and not struck:
            struck.append(dest)
            assert internals.network is not None
            internals.network.kill(LEADER)
        return (0.0,)

    found = simulate(
        schedule, Worker, servers=1, workers=2, spares=1, delays=delays, internals=internals,
        faults=[Fault("kill", LOST, at=0.1)],
    )  # fmt: skip
    assert struck and found[0] >= 12.0
    assert internals.view is not None and internals.view.leader != LEADER
