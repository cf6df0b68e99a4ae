"""The fast path at a server: the vectors of its shards that kernels serve, and the requests that they have executed.

Kernels serve pulls and pushes without Python, and behind the primary of a chain the changes of it. Before
Python reads a shard, it records the requests that kernels have executed there, and takes over the changes that are not
acknowledged yet (`catch_up`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial

from mpips.cluster.node import Node
from mpips.cluster.view import NOBODY
from mpips.server.replication import Link
from mpips.server.shard import AGGREGATE, Round, RoundAnswer, Shard, callers_of
from mpips.tasks.request_dedup import Kept, RequestDedup
from mpips.transport.fastpath.table import (
    AGGREGATES,
    COPIES,
    NO_PUSH,
    OPEN,
    PUSH,
    REQUESTS,
    VERSION,
    FastPathTable,
)
from mpips.transport.fastpath.unacknowledged import (
    BACK,
    EVERYWHERE,
    FOLLOWING,
    KEEPS_LISTS,
    LATEST,
    PRECEDING,
)
from mpips.transport.key_cache import KeyCache, Known
from mpips.transport.message import NO_SIGNATURE, Command, Kind, Message


class FastPath:
    """The shards of a node that kernels serve; `lists` are their cached key lists."""

    def __init__(self, node: Node, lists: KeyCache) -> None:
        self._node, self._lists = node, lists
        self.table = FastPathTable(len(node.view.chains), len(node.layout.places), lists)
        self.set_workers()
        for serves in node.observers.serves:
            serves(self.table)

    def set_workers(self) -> None:
        """Set the workers of the present view: rounds are the sums of their pushes."""
        self.table.rounds.set_workers(self._node.view.workers, self._node.keeps)

    def open(self, link: Link) -> None:
        """Let the fast path serve a shard of which this server is a member."""
        shard = link.shard
        if shard is None:
            return
        if shard.renumbered:
            self._lists.forget(shard.number)
            shard.renumbered = False
        self.count(shard)
        if link.learning or link.chain.closing:
            return
        state = self.table.unacknowledged.links[link.number]
        state[FOLLOWING], state[BACK] = 1 + link.next, 1 + link.previous
        # A learner acknowledges what it could not apply without the keys.
        state[KEEPS_LISTS] = link.next != link.chain.learner
        self.settled(link.number, link.last)
        for namespace in shard.vectors:
            self.expose(link, namespace)
        self.listen(link)

    def expose(self, link: Link, namespace: int) -> None:
        """Update the addresses of a vector's rows; a change may have moved them."""
        assert link.shard is not None
        served = link.shard.vectors[namespace].served_rows
        if served is None or link.chain.closing:
            return
        # Kernels send no change again after a loss, and list its keys by the index of a sparse segment, if they may.
        listing = served.rows > 0 or served.key_index[0] != 0
        if link.next != NOBODY and (self._node.resend is not None or not listing):
            served = served._replace(push=NO_PUSH)
        self.table.open(link.number, namespace, served, REQUESTS if link.primary else COPIES)

    def listen(self, link: Link) -> None:
        """Let the fast path take the changes of a shard's primary, unless Python has some that are to come later."""
        behind = not link.primary and not link.learning
        serves = behind and not link.early and self._node.resend is None
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
            self.record(link.shard)
        acknowledged = int(self.table.unacknowledged.links[link.number, EVERYWHERE])
        link.everywhere = max(link.everywhere, acknowledged)
        if taken := self.table.take_over(link.number, through):
            answer = self._node.answer
            changes = [each.change for each in taken if each.change is not None]
            for change in changes:
                if link.shard is not None and change.keys is None and change.signature != NO_SIGNATURE:
                    self.resolve(link.shard, change)
            link.take_over(
                changes,
                [
                    (each.number, partial(answer, reply.origin, reply))
                    for each in taken
                    for reply in each.answers
                ],
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

    def forget_forwarded(self, number: int) -> None:
        """Send lists of keys to the next member of a shard's chain again: it has dropped one."""
        self._lists.forget_forwarded(number)

    def record(self, shard: Shard) -> None:
        """Record the requests that the fast path has executed at a shard: their answers, changes and clocks."""
        if not self.table.has_news(shard.number):
            return
        answers = dict(self._kept(shard))
        for done in self.table.finished(shard.number):
            for time, pushed in done.times:
                reply: Kept | None = None
                if pushed and time >= done.acked and shard.inbox.keep:
                    reply = answers.get((done.origin, time)) or Message(
                        Kind.REPLY, Command.PUSH, origin=done.origin, shard=shard.number, time=time
                    )
                shard.inbox.finish(done.origin, time, reply, done.acked)
        for namespace, reached, round_ in self.table.rounds.reached(shard.number):
            shard.hosted(namespace).segment.advance(reached, AGGREGATE, round_)
        shard.changes += self.table.changes(shard.number)

    def _kept(self, shard: Shard) -> Iterator[tuple[tuple[int, int], Kept]]:
        """Yield the answers with rows to the pushes of rounds, by the requests' origin and time."""
        for kept in self.table.rounds.kept(shard.number):
            if isinstance(kept, Message):
                yield (kept.origin, kept.time), kept
                continue
            segment = shard.hosted(kept.namespace).segment
            answer = RoundAnswer(segment, kept.slots, kept.rows)
            for caller in kept.callers:
                yield caller, answer

    # Rounds.

    def sums(self, link: Link, namespace: int) -> bool:
        """Return whether the fast path sums the rounds of a vector, as long as nothing is missing for it."""
        part = self.table.parts[link.number, namespace]
        serves = self._node.van.compiled and self._node.plain
        return serves and bool(part[OPEN] == REQUESTS and part[AGGREGATES] and part[PUSH] != NO_PUSH)

    def mark(self, shard: Shard, namespace: int, round_: Round, by: int = 1) -> None:
        """Record that Python has parts of one more, or one less, round."""
        self.table.rounds.mark(shard.number, namespace, *round_, by)

    def mark_all(self, links: Iterable[Link]) -> None:
        """Record which rounds Python has parts of, after it has dropped some."""
        self.table.rounds.marks[:] = 0
        for shard in (link.shard for link in links if link.shard is not None):
            for namespace, hosted in shard.vectors.items():
                for round_ in (*hosted.waiting, *hosted.broken):
                    self.mark(shard, namespace, round_)

    def waiting(self, shard: Shard) -> Iterator[tuple[int, Round, Collection[int]]]:
        """Yield the incomplete rounds of a shard: vector, round, and the workers whose parts have arrived."""
        yield from self.table.rounds.waiting(shard.number)
        for namespace, hosted in shard.vectors.items():
            for round_, there in hosted.waiting.items():
                yield namespace, round_, there

    def take_parts(self, shard: Shard, namespace: int = -1, round_: Round = (0, 0)) -> list[Message]:
        """Take over the waiting parts of a round, or of all rounds of a shard."""
        rounds = self.table.rounds
        parts = (
            rounds.take_all(shard.number)
            if namespace < 0
            else rounds.take_round(shard.number, namespace, *round_)
        )
        for part in parts:
            if part.keys is None and part.signature != NO_SIGNATURE:
                known = self._lists.find(shard.number, part.namespace, part.signature)
                assert known is not None
                part.slots = known.slots
        return parts

    def count(self, shard: Shard) -> None:
        """Set the number of changes on the fast path, and in the record, if the run is recorded."""
        self.table.parts[shard.number, 0, VERSION] = shard.changes
        if shard.order is not None:
            shard.order.count = shard.changes
