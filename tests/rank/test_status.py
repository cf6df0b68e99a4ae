"""The status of a run: the rounds that the servers have applied, also if a server does not answer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mpips import Cluster, Context, KeyRange, VectorSpec, simulate
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.rank.status import PATIENCE, Status
from mpips.rundir.order_files import Order
from mpips.storage.disk.spec import LEAST
from mpips.storage.disk.store import Store
from mpips.transport.in_memory import Network


def status_at(node: Node) -> Status:
    """Return the status at a leader of a run without waits and losses."""
    none: Any = SimpleNamespace(waiting_for=[], lines=list, total=Counter)
    return Status(node, none, none, none)


class Worker:
    """Pushes rounds of a vector, each within a range."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self, round: int, end: int) -> None:
        """Push one row for each key below `end`."""
        self.context.vectors["w"].push(
            KeyRange(0, end), np.ones(end), within=KeyRange(0, end), round=round
        ).result()


def test_it_shows_the_round_of_each_range() -> None:
    def text(status: Status) -> str:
        status.ask(Order("a", "status"))
        status.ask(Order("b", "status"))
        found: list[Order] = []
        status.node.wait_until(lambda: bool(found.extend(status.ready()) or found))
        assert [order.name for order in found] == ["a", "b"] and not status.ready()
        return status.text("lda: 1.0 s of training")

    def schedule(cluster: Cluster) -> list[str]:
        status = status_at(cluster.node)
        cluster.create_vector(VectorSpec("w", extent=1024, dense=True, aggregate=True))
        texts = [text(status)]
        for round_, end in enumerate((1024, 256)):
            cluster.workers.call("push", {"round": round_, "end": end})
            texts.append(text(status))
        return texts

    begin, even, uneven = simulate(schedule, Worker, servers=2, workers=2)
    assert begin.startswith(
        "lda: 1.0 s of training, epoch 0\n  leader: rank 0\n  servers: rank 1 (1 of 2 shards)"
    )
    assert "  applied to w: no round at rank 1, 2\n" in begin
    assert "  applied to w: round 0 at rank 1, 2\n" in even
    assert "  applied to w: round 1 (round 0 on keys [256, 512)) at rank 1; round 0 at rank 2\n" in uneven


def test_it_shows_the_rows_on_disk_of_each_server(tmp_path: Path) -> None:
    noted: list[dict[str, Any]] = []

    def schedule(cluster: Cluster) -> str:
        status = status_at(cluster.node)
        status.note = lambda event, **facts: noted.append({"event": event, **facts})
        cluster.create_vector(VectorSpec("w", width=8))
        status.ask(Order("a", "status"))
        cluster.node.wait_until(lambda: bool(status.ready()))
        return status.text("lda: 1.0 s of training")

    text = simulate(schedule, Worker, store=lambda: Store(LEAST, tmp_path))
    assert "  rows on disk of rank 1: " in text and "kB of 4.19MB in memory, 0B on disk; in " in text
    assert noted[0]["event"] == "store" and noted[0]["rank"] == 1 and noted[0]["limit"] == LEAST


def test_a_silent_server_delays_it_briefly() -> None:
    spec = LayoutSpec(servers=1, workers=1)
    layout = Layout.of(spec.size(), spec)
    network = Network(layout.size)
    node = Node(network.vans[0], layout, first_view(layout))
    status = status_at(node)
    assert not status.ready()
    status.ask(Order("a", "status"))
    assert not status.ready()
    network.time += PATIENCE
    assert [order.name for order in status.ready()] == ["a"]
    assert "applied to" not in status.text("lda")
