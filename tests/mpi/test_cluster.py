"""A whole cluster on the MPI van: pushes, pulls, calls and aggregated rounds, as on its twin."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpips.cluster.departure import Stopped
from mpips.cluster.layout import Layout, LayoutSpec, Role
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.errors import RemoteError
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command
from mpips.transport.mpi.van import MPIVan
from mpips.worker.worker import CallExecutor, Context

KEYS = np.arange(0, 10_000, 7, dtype=np.uint64)


class Worker:
    """Pushes into aggregated rounds and into a vector that does not aggregate; fails when told to."""

    def __init__(self, context: Context) -> None:
        self.node, self.context = context.node, context

    def push(self, rounds: int) -> None:
        sums, plain = self.context.vectors["sums"], self.context.vectors["plain"]
        rng = np.random.default_rng(self.context.index)
        tasks = []
        for step in range(rounds):
            keys = KEYS[rng.random(len(KEYS)) < 0.5]
            tasks.append(sums.push_pull(keys, np.full(len(keys), 0.1 * (1 + self.context.index)), round=step))
            tasks.append(plain.push(keys, np.ones(len(keys))))
        self.node.wait_all(tasks)

    def fail(self) -> None:
        raise RuntimeError("as it was told")


def lead(node: Node, folder: Path) -> None:
    layout = node.layout
    workers = len(layout.workers)
    with Cluster(node, None, RunFolder(folder), io.StringIO()) as cluster:
        extent = 10_000
        cluster.create_vector(VectorSpec("sums", "float64", 1, extent, "add", aggregate=True))
        plain = cluster.create_vector(VectorSpec("plain", "float64", 1, extent, "add"))
        cluster.workers.call("push", {"rounds": 20})
        expected = np.zeros(len(KEYS))
        exact = np.zeros(len(KEYS))
        draws = [np.random.default_rng(worker) for worker in range(workers)]
        for _ in range(20):
            step = np.zeros(len(KEYS))
            for worker, rng in enumerate(draws):
                chosen = rng.random(len(KEYS)) < 0.5
                expected += chosen
                step += np.where(chosen, 0.1 * (1 + worker), 0.0)
            exact += step
        assert np.array_equal(node.wait(plain.pull(KEYS)), expected)
        assert np.array_equal(node.wait(cluster.vectors["sums"].pull(KEYS)), exact), (
            "in worker order, to the bit"
        )
        with pytest.raises(RemoteError, match=r"worker \d+ on .*: RuntimeError: as it was told"):
            cluster.workers.call("fail", only=[workers - 1])
        assert len(cluster.digest(plain)) == 64
        held = cluster.hosts.call("account")
        assert sum(each["keys"] for each in held) == 2 * np.count_nonzero(expected)


@pytest.mark.mpi(min_size=3)
def test_a_cluster(tmp_path: Path) -> None:
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
