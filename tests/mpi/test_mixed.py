"""A cluster on the MPI van: requests that the fast path answers, mixed with requests that Python handles."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpips.cluster.departure import Stopped
from mpips.cluster.layout import Layout, LayoutSpec, Role
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.ranges import KeyRange
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec, call
from mpips.tasks.task import Task
from mpips.transport.message import Command
from mpips.transport.mpi.van import MPIVan
from mpips.worker.worker import CallExecutor, Context

EXTENT = 40_000
LISTED = np.arange(0, EXTENT, 3, dtype=np.uint64)
FEW = np.array([0, 17, 20_000, EXTENT - 1], np.uint64)
STEPS = 30


@call("test_mixed multiply")
def multiply(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Multiply all values."""
    segment.values[...] *= args["by"]
    return {}


class Worker:
    """Pushes ones to two vectors in all manners, and counts what it has pushed to whom."""

    def __init__(self, context: Context) -> None:
        self.node, self.context = context.node, context

    def mix(self, seed: int, text: str) -> dict[str, Any]:
        dense, sparse, sums = (self.context.vectors[name] for name in ("dense", "sparse", "sums"))
        rng = np.random.default_rng([seed, self.context.index])
        whole, part, named = KeyRange(0, EXTENT), KeyRange(5, 25_000), sparse.key_list(LISTED)
        counts = {"whole": 0, "part": 0, "listed": 0, "few": 0}
        tasks: list[Task] = []
        for step in range(STEPS):
            which = str(rng.choice(list(counts)))
            counts[which] += 1
            after = tasks[-1:] if rng.random() < 0.3 else ()
            if which == "whole":
                tasks.append(dense.push(whole, np.ones(EXTENT, np.int64), after=after))
            elif which == "part":
                tasks.append(dense.push(part, np.ones(part.span, np.int64), after=after))
            elif which == "listed":
                tasks.append(sparse.push(named, np.ones(len(LISTED)), after=after))
            else:
                ask = sparse.push if rng.random() < 0.5 else sparse.push_pull
                tasks.append(ask(FEW, np.ones(len(FEW)), after=after))
            if step % 5 == 4:
                tasks.append(sums.push_pull(FEW, np.ones(len(FEW)), round=100 * seed + step))
            if rng.random() < 0.2:
                tasks.append(dense.pull(part))
            if rng.random() < 0.1:
                self.node.wait_all(tasks)
        seen = self.node.wait(dense.pull(part, after=tasks))
        self.node.wait_all(tasks)
        assert seen.min() >= counts["whole"] + counts["part"], "it sees at least its own pushes"
        return counts | {"length": len(text)}


def lead(node: Node, folder: Path) -> None:
    wait, text = node.wait, "x" * 100_000
    with Cluster(node, None, RunFolder(folder), io.StringIO()) as cluster:
        dense = cluster.create_vector(VectorSpec("dense", "int64", 1, EXTENT, dense=True))
        sparse = cluster.create_vector(VectorSpec("sparse", "float64", 1, EXTENT))
        sums = cluster.create_vector(VectorSpec("sums", "float64", 1, EXTENT, aggregate=True))
        ranges, lists = np.zeros(EXTENT, np.int64), np.zeros(EXTENT)
        every = np.arange(EXTENT, dtype=np.uint64)
        for seed in range(3):
            task = cluster.workers.start("mix", {"seed": seed, "text": text})
            mine = dense.push(KeyRange(0, EXTENT), np.ones(EXTENT, np.int64))
            for reply in wait(task):
                counts = reply.meta
                ranges += counts["whole"]
                ranges[5:25_000] += counts["part"]
                lists[LISTED.astype(np.int64)] += counts["listed"]
                lists[FEW.astype(np.int64)] += counts["few"]
                assert counts["length"] == len(text)
            wait(mine)
            ranges += 1
            cluster.servers.call("test_mixed multiply", {"by": 2}, vector=dense)
            cluster.servers.call("test_mixed multiply", {"by": 3}, vector=sparse)
            ranges, lists = 2 * ranges, 3 * lists
            assert np.array_equal(wait(dense.pull(KeyRange(0, EXTENT))), ranges)
            assert np.array_equal(wait(sparse.pull(every)), lists)
            rounds = (seed + 1) * STEPS // 5 * len(cluster.workers)
            assert set(wait(sums.pull(FEW)).tolist()) == {rounds}


@pytest.mark.mpi(min_size=3)
def test_sums_are_exact_on_the_fast_path_and_in_python(tmp_path: Path) -> None:
    comm = MPI.COMM_WORLD.Dup()
    size = comm.Get_size()
    servers = (size - 1) // 2
    layout = Layout.of(size, LayoutSpec(servers=servers, workers=size - 1 - servers))
    node = Node(MPIVan(comm), layout, first_view(layout))
    try:
        if node.rank == 0:
            try:
                lead(node, tmp_path)
            finally:
                for rank in range(1, size):
                    node.control(rank, Command.STOP, {"code": 0})
        elif node.place.role is Role.SERVER:
            server = Server(node)
            server.enter()
            server.run()
        else:
            worker = CallExecutor(node, Worker, None)
            worker.enter()
            worker.run()
    except Stopped as stopped:
        assert stopped.code == 0
    assert node.departure.leave(10.0)
    node.van.close()
