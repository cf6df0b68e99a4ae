"""The fast path at a server: the vectors of its shards that kernels serve, and the requests that they have executed.

Kernels serve pulls and pushes without Python, and at the last member of a chain the changes of its primary. Before
Python reads a shard, it records the requests that kernels have executed there, and takes over the changes that are not
acknowledged yet (`catch_up`).
"""

from __future__ import annotations

from functools import partial

from mpips.cluster.node import Node
from mpips.cluster.view import NOBODY
from mpips.server.replication import Link
from mpips.server.shard import Shard, callers_of
from mpips.tasks.request_dedup import RequestDedup
from mpips.transport.fastpath_table import COPIES, NO_PUSH, REQUESTS, VERSION, FastPathTable
from mpips.transport.key_cache import KeyCache, Known
from mpips.transport.message import NO_SIGNATURE, Command, Kind, Message
from mpips.transport.unacknowledged import FOLLOWING, KEEPS, LATEST, PRECEDING


class FastPath:
    """The shards of a node that kernels serve; `lists` are their cached key lists."""

    def __init__(self, node: Node, lists: KeyCache) -> None:
        self._node, self._lists = node, lists
        self.table = FastPathTable(len(node.view.chains), len(node.layout.places), lists)
        for serves in node.observers.serves:
            serves(self.table)

    def open(self, link: Link) -> None:
        """Let the fast path serve a shard of which this server is the primary, or the last member."""
        shard = link.shard
        if shard is None:
            return
        self.count(shard)
        if link.learning or link.chain.closing:
            return
        if link.primary:
            state = self.table.unacknowledged.links[link.number]
            state[FOLLOWING] = 1 + link.next
            # A learner acknowledges what it could not apply without the keys.
            state[KEEPS] = link.next != link.chain.learner
            self.settled(link.number, link.last)
        for namespace in shard.vectors:
            self.expose(link, namespace)
        self.listen(link)

    def expose(self, link: Link, namespace: int) -> None:
        """Update the addresses of a vector's rows; a change may have moved them."""
        assert link.shard is not None
        simple = link.shard.vectors[namespace].simple
        if simple is None or link.chain.closing:
            return
        # Kernels send no change again after a loss, and list its keys by the index of a sparse segment, if they may.
        listing = simple.rows > 0 or simple.key_index[0] != 0
        if link.next != NOBODY and (self._node.resend is not None or not listing):
            simple = simple._replace(push=NO_PUSH)
        self.table.open(link.number, namespace, simple, REQUESTS if link.primary else COPIES)

    def listen(self, link: Link) -> None:
        """Let the fast path take the changes of a shard's primary, unless Python has some that are to come later."""
        last = not link.primary and link.next == NOBODY and not link.learning
        serves = last and not link.early and self._node.resend is None
        self.table.unacknowledged.links[link.number, PRECEDING] = 1 + link.previous if serves else 0

    def settled(self, number: int, last: int) -> None:
        """Set the last change that Python has sent to a copy and that is not acknowledged, 0 if there is none."""
        self.table.unacknowledged.set_unacknowledged(number, last)

    def close(self, link: Link) -> None:
        """Record the requests that were executed at a shard, and stop serving it."""
        self.catch_up(link)
        self.table.close(link.number)

    def admitted(self, number: int, origin: int, inbox: RequestDedup) -> None:
        """Record that a request was admitted: its caller may be served, unless a request of it waits for others."""
        if inbox.parks(origin):
            # The fast path must not finish what it waits for unnoticed.
            self.table.forget(number, origin)
        elif origin >= 0:
            self.table.admitted(number, origin, inbox.latest(origin))

    def repeated(self, link: Link, change: Message) -> None:
        """Record that a change of another primary was applied."""
        shard = link.shard
        assert shard is not None
        self.count(shard)
        for caller in callers_of(change):
            self.admitted(shard.number, caller.origin, shard.inbox)
        if change.command is Command.CALL:
            self.open(link)
        else:
            self.expose(link, change.namespace)

    def catch_up(self, link: Link, through: int = LATEST) -> None:
        """Record the requests that the fast path has executed, and take over its changes up to number `through`."""
        if link.shard is not None:
            self._record(link.shard)
        if taken := self.table.take_over(link.number, through):
            answer = self._node.answer
            changes = [each.change for each in taken if each.change is not None]
            for change in changes:
                if link.shard is not None and change.keys is None and change.signature != NO_SIGNATURE:
                    self.resolve(link.shard, change)
            link.take_over(
                changes,
                [(each.number, partial(answer, each.answer.origin, each.answer)) for each in taken],
            )

    def knows(self, change: Message) -> bool:
        """Return whether the keys of a change are known: they are listed, or of a list that is cached."""
        name = change.shard, change.namespace, change.signature
        return (
            change.keys is not None or change.signature == NO_SIGNATURE or self._lists.find(*name) is not None
        )

    def resolve(self, shard: Shard, change: Message) -> None:
        """Resolve the slots of a change that names a list of keys, and its keys, or cache the list if it has keys."""
        segment = shard.hosted(change.namespace).segment
        if change.keys is None:
            known = self._lists.find(shard.number, change.namespace, change.signature)
            assert known is not None
            change.slots, change.keys = known.slots, segment.keys_of(known.slots)
        else:
            change.slots = segment.resolve(change.keys, create=True)
            self._lists.keep(shard.number, change.namespace, change.signature, Known(change.slots))

    def forget_told(self, number: int) -> None:
        """Send lists of keys to the next member of a shard's chain again: it has dropped one."""
        self._lists.untell(number)

    def _record(self, shard: Shard) -> None:
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
        """Set the number of changes on the fast path, and in the record, if the run is recorded."""
        self.table.parts[shard.number, 0, VERSION] = shard.changes
        if shard.order is not None:
            shard.order.count = shard.changes
