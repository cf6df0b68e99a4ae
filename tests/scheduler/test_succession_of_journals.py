"""Whoever becomes the next successor of a leader has the journal: before it is one, or before the program goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from mpips.errors import WorkerLost
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command, Kind, Message
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


def test_a_successor_that_continues_from_a_snapshot_dies_soon_after() -> None:
    internals = Internals()
    first, second = SPARE - 1, SPARE
    issued: list[int] = []

    def many(cluster: Cluster) -> tuple[list[float], str]:
        w = cluster.create_vector(VectorSpec("w"))
        label = cluster.decide(lambda: f"of rank {cluster.node.rank}")
        done = 0
        while done < 20:
            later = cluster.compact(partial(dict, done=done))
            if later is not None:
                done = later["done"]
            if done == 2:
                cluster.decide(lambda: "two")
            cluster.workers.call("go")
            done += 1
            if done == 12 and cluster.node.rank == LEADER:
                assert internals.network is not None
                internals.network.kill(LEADER)
                cluster.node.van.idle()
        return w.pull(KEYS).result().tolist(), label

    def delays(source: int, dest: int, message: Message) -> Sequence[float]:
        if source != first or internals.nodes[first].view.leader != first:
            return (0.0,)
        if message.kind is Kind.REQUEST and message.command is Command.CALL:
            issued.append(internals.journals[second].log.decided)
            if len(issued) == 3:
                assert internals.network is not None
                internals.network.kill(first)
        # What goes to the next one in succession arrives late.
        return (0.5 if dest == second and message.command in (Command.LOG, Command.BUNDLE) else 0.0,)

    rows, label = simulate(
        many, Worker, servers=1, workers=1, spares=2, replicas=0, delays=delays, internals=internals,
        compacted_every=4, horizon=20,
    )  # fmt: skip
    assert internals.view is not None and internals.view.leader == second
    assert label == f"of rank {LEADER}" and rows == [20.0] * len(KEYS)
    assert issued and min(issued) == 3, "the next one has the snapshot, and the decisions that it replaces"
