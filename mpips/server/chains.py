"""A server's positions in the chains of its shards: its links, changes of other primaries, and copies being received.

Acknowledgements are passed on at once, since callers wait for them. Changes of other primaries wait in a queue: one is
applied after each request, and all when there is no request, so that neither kind of work starves the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.server.acknowledgements import Acknowledgements
from mpips.server.fast_path import FastPath
from mpips.server.migration import RateLimit
from mpips.server.replication import Link
from mpips.server.shard import Shard
from mpips.server.shard_functions import BUILT_IN
from mpips.server.shard_snapshot import unpack
from mpips.storage.disk.failure import StoreFailed, StoreFull
from mpips.storage.disk.store import Store
from mpips.tasks.request_dedup import RequestDedup
from mpips.transport.message import NO_SIGNATURE, Command, Message

MOST_BACKLOG = 64
"""Changes of other primaries that may be queued."""


class Chains:
    """A node's links of chains, by shard.

    `repair_bandwidth` bounds the bytes per second of copies (0: no limit). Rows are in `store`, if there is one.
    """

    def __init__(
        self,
        node: Node,
        acknowledgements: Acknowledgements,
        repair_bandwidth: float,
        fast_path: FastPath,
        store: Store | None = None,
    ) -> None:
        self._store = store
        self._node, self._acknowledgements, self._fast_path = node, acknowledgements, fast_path
        self._rate_limit = RateLimit(repair_bandwidth, node.van.now)
        self._backlog: deque[Message] = deque()
        # Shards that were reported to the leader in this view as having no unacknowledged change.
        self._drained: set[int] = set()
        self.links: dict[int, Link] = {}
        for number, chain in enumerate(node.view.chains):
            if node.rank in chain.everyone:
                # A learner has no shard until the first piece of its copy arrives.
                self._link(number, self._make(number) if node.rank in chain.members else None)

    def __iter__(self) -> Iterator[Link]:
        """Iterate over the links."""
        return iter(self.links.values())

    def primary_links(self) -> list[Link]:
        """Return the links to shards of which this server is the primary."""
        return [link for link in self.links.values() if link.primary]

    def _make(self, number: int) -> Shard:
        node = self._node

        def answer(origin: int, reply: Message) -> None:
            self.links[number].after_all(lambda: node.answer(origin, reply))

        inbox = RequestDedup(answer, node.keeps)
        shard = Shard(number, node.view.ring, node.view.workers, inbox, node.describe, self._store)
        shard.order = next((order(number) for order in node.observers.orders), None)
        return shard

    def _link(self, number: int, shard: Shard | None) -> None:
        node = self._node
        self.links[number] = Link(
            number, node.rank, node.view.chains[number], shard, self._send, self._repeat, self._rate_limit,
            node.new_timer(), node.resent, self._fast_path.settled,
            self._fast_path.knows, self._store,
        )  # fmt: skip

    def _send(self, dest: int, message: Message) -> None:
        """Send a message of a chain: a change at once, before those of the fast path; acknowledgements are bundled."""
        outbox = self._node.outbox
        if message.command is Command.APPLIED:
            outbox.send_soon(dest, message)
        else:
            outbox.send(dest, message)

    # --- messages of chains --------------------------------------------------------------------

    def take(self, link: Link, message: Message) -> None:
        """Receive a message of a chain: pass on an acknowledgement, queue a change."""
        if message.command is Command.APPLIED:
            self._pass(link, message)
            return
        self._backlog.append(message)
        if len(self._backlog) > MOST_BACKLOG:
            self.apply_queued()

    def apply_queued(self) -> bool:
        """Apply the first queued change of another primary; return whether there was one."""
        if not self._backlog:
            return False
        message = self._backlog.popleft()
        link = self.links.get(message.shard)
        if link is not None:
            self._pass(link, message)
        return True

    def _pass(self, link: Link, message: Message) -> None:
        observers = self._node.observers
        for busy in observers.busy:
            busy()
        begin = self._node.van.now()
        if message.command is Command.APPLIED:
            self._fast_path.catch_up(link, message.time)
        else:
            self._fast_path.catch_up(link)
        if message.command is Command.ASK_KEYS:
            self._fast_path.forget_forwarded(link.number)
        link.take(message)
        self._fast_path.listen(link)
        for passed_on in observers.passed_on:
            passed_on(begin, message)
        self._acknowledgements.send_due()

    # --- when they change ----------------------------------------------------------------------

    def rewire(self, view: View) -> list[int]:
        """Adopt the chains of a new view, once nothing is queued; return the shards that this server does not hold."""
        absent = []
        for number, chain in enumerate(view.chains):
            link = self.links.get(number)
            if self._node.rank not in chain.everyone:
                self.links.pop(number, None)
                absent.append(number)
            elif link is None:
                self._link(number, None)
            elif link.chain != chain:
                link.rewire(chain)
        for each in self.primary_links():
            if each.shard is not None and each.shard.order is not None:
                each.shard.order.mark(each.shard.changes)
        return absent

    def change_workers(self, workers: tuple[int, ...]) -> None:
        """Drop the rounds that wait for lost workers, or do not include new ones."""
        for link in self.links.values():
            if link.shard is not None:
                link.shard.workers = workers
                link.shard.inbox.forget_rounds()
                for hosted in link.shard.vectors.values():
                    for request in hosted.abandon(workers):
                        link.shard.inbox.forget(request)

    def report(self) -> None:
        """Report complete copies and drained shards to the leader, in a new view."""
        self._drained.clear()
        for link in self.links.values():
            if link.learning and link.shard is not None:
                self._report_to_leader(Command.COPY_COMPLETE, link)
            self._report_drained(link)

    def _report_drained(self, link: Link) -> None:
        """Report to the leader, once per view, that a closing chain has no unacknowledged change."""
        if link.chain.closing and link.primary and link.replicated and link.number not in self._drained:
            self._drained.add(link.number)
            self._report_to_leader(Command.DRAINED, link)

    def _report_to_leader(self, command: Command, link: Link) -> None:
        meta = {"shard": link.number, "since": link.chain.since}
        self._node.control(self._node.view.leader, command, meta)

    # --- copies --------------------------------------------------------------------------------

    def take_chunk(self, message: Message) -> None:
        """Receive a chunk of a copy of which this server is the learner."""
        link = self.links.get(message.shard)
        if link is not None and link.take_chunk(message, self._make, unpack):
            self._report_to_leader(Command.COPY_COMPLETE, link)

    def chunk_received(self, message: Message) -> None:
        """Receive a learner's acknowledgement of a chunk."""
        link = self.links.get(message.shard)
        if link is not None:
            link.chunk_received(message)

    def tick(self) -> None:
        """Send chunks of copies within the rate limit, report drained shards, and query silent successors."""
        now = self._node.van.now()
        for link in self.links.values():
            link.send_chunks()
            self._report_drained(link)
            link.probe(now)

    def _repeat(self, shard: Shard, change: Message) -> None:
        try:
            if change.signature != NO_SIGNATURE:
                self._fast_path.resolve(shard, change)
            shard.repeat(change, BUILT_IN.get(change.meta.get("call", "")))
        except StoreFull as error:
            # This copy would lack what the primary has applied: it ends, and others take over.
            raise StoreFailed(str(error)) from None
        self._fast_path.repeated(self.links[shard.number], change)
