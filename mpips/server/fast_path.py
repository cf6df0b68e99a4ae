"""The fast path at a server: the vectors of its shards that kernels serve, and the requests that they have executed.

Kernels serve pulls, and pushes to shards of which this server is the only holder, without Python. They read a shard
with copies only while all copies have all changes. Before Python reads a shard, it records the requests that kernels
have executed there (`catch_up`).
"""

from __future__ import annotations

from mpips.cluster.node import Node
from mpips.cluster.view import NOBODY
from mpips.server.replication import Link
from mpips.server.shard import Shard
from mpips.tasks.request_dedup import RequestDedup
from mpips.transport.fastpath_table import NO_PUSH, PULL, VERSION, FastPathTable
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import Command, Kind, Message


class FastPath:
    """The shards of a node that kernels serve; `lists` are their cached key lists."""

    def __init__(self, node: Node, lists: KeyCache) -> None:
        self.table = FastPathTable(len(node.view.chains), len(node.layout.places), lists)
        for serves in node.observers.serves:
            serves(self.table)

    def open(self, link: Link) -> None:
        """Let the fast path serve a shard of which this server is the primary."""
        shard = link.shard
        if shard is None:
            return
        self.count(shard)
        if link.primary and not link.chain.closing:
            for namespace in shard.vectors:
                self.expose(link, namespace)

    def expose(self, link: Link, namespace: int) -> None:
        """Update the addresses of a vector's rows; a change may have moved them."""
        assert link.shard is not None
        simple = link.shard.vectors[namespace].simple
        if simple is None:
            return
        if link.next != NOBODY:
            simple = simple._replace(push=NO_PUSH, pull=link.still)
        self.table.open(link.number, namespace, simple)

    def settled(self, number: int, still: bool) -> None:
        """Allow pulls on the fast path, if all copies of the shard have all its changes (`still`), or forbid them."""
        self.table.parts[number, :, PULL] = still

    def close(self, link: Link) -> None:
        """Record the requests that were executed at a shard, and stop serving it."""
        if link.shard is not None:
            self.catch_up(link.shard)
        self.table.close(link.number)

    def admitted(self, number: int, origin: int, inbox: RequestDedup) -> None:
        """Record that a request was admitted: its caller may be served, unless a request of it waits for others."""
        if inbox.parks(origin):
            # The fast path must not finish what it waits for unnoticed.
            self.table.forget(number, origin)
        elif origin >= 0:
            self.table.admitted(number, origin, inbox.latest(origin))

    def catch_up(self, shard: Shard) -> None:
        """Record the requests that the fast path has executed."""
        if not self.table.has_news(shard.number):
            return
        for done in self.table.finished(shard.number):
            for time, pushed in done.times:
                reply = None
                if pushed and time >= done.acked and shard.inbox.keep:
                    reply = Message(
                        Kind.REPLY, Command.PUSH, origin=done.origin, shard=shard.number, time=time
                    )
                shard.inbox.finish(done.origin, time, reply, done.acked)
        shard.changes += self.table.changes(shard.number)

    def count(self, shard: Shard) -> None:
        """Set the number of changes on the fast path, if it records those that follow."""
        if shard.order is not None:
            shard.order.count = self.table.parts[shard.number, 0, VERSION] = shard.changes
