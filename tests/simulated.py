"""A whole cluster on the in-memory twin: the real scheduler, servers and workers, in one process and fake time."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpips.folder import RunFolder
from mpips.layout import Layout, LayoutSpec
from mpips.membership import first_view
from mpips.message import Command
from mpips.node import Node, Stopped
from mpips.scheduler import Cluster
from mpips.server import Server
from mpips.twin import Fate, Network, TwinVan, calm
from mpips.worker import Context, Workshop


def simulate(
    schedule: Callable[[Cluster], Any],
    worker: Callable[[Context], Any],
    *,
    servers: int = 1,
    workers: int = 1,
    fate: Fate = calm,
    seed: int = 0,
    job: Any = None,
    window: int = 64,
    resend: float | None = None,
    horizon: float = 60.0,
    folder: Path | None = None,
) -> Any:
    """Run `schedule(cluster)` with workers made by `worker(context)`; give its result once all have left.

    Unanswered requests are sent again after `resend` seconds. By default they are not, as on MPI, unless `fate`
    is a `rough` one that loses messages. Fake time ends at `horizon`.
    """
    if resend is None and getattr(fate, "loses", False):
        resend = 0.05
    layout = Layout.of(1 + servers + workers, LayoutSpec(servers=servers, workers=workers))
    view = first_view(layout)

    def node(van: TwinVan) -> Node:
        return Node(van, layout, view, window=window, resend=resend)

    def lead(van: TwinVan) -> Any:
        me = node(van)
        with (
            tempfile.TemporaryDirectory() as place,
            Cluster(me, job, RunFolder(folder or place), io.StringIO()) as cluster,
        ):
            try:
                return schedule(cluster)
            finally:
                for rank in range(1, layout.size):
                    me.control(rank, Command.STOP, {"code": 0})
                assert me.leave()

    def follow(van: TwinVan) -> int:
        me = node(van)
        try:
            if me.place.role.value == "server":
                Server(me).run()
            else:
                Workshop(me, worker, job).run()
        except Stopped as stopped:
            assert me.leave()
            return stopped.code
        raise AssertionError("a loop ended by itself")

    return Network(layout.size, fate, seed).run([lead] + [follow] * (layout.size - 1), horizon)[0]
