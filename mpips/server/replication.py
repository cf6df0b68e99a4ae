"""Chain replication: a server's position in the chains of its shards (paper, section 4.4).

Every change of a shard is forwarded from its primary along the chain, member by member. The last member acknowledges
it. The acknowledgement is passed back along the chain, and then the primary answers the callers. So an answered push is
on every member, and a change that a member has applied was applied by all members before it. Pushes that are summed
over the workers are one change (replication after aggregation).

    primary      apply the change; forward it; answer its callers once it is acknowledged
    member       apply it; forward it; forward the acknowledgement
    last member  apply it; acknowledge

A member keeps the changes that it has forwarded until they are acknowledged. When the chain changes, it sends them
again to its new successor. Changes are numbered, and no member applies one twice. If the last member is lost, its
predecessor is the last one, and all members have all changes.

A learner follows the last member, which sends it a copy of the shard in chunks, and all later changes. The learner
acknowledges the changes that it receives, and applies them once the copy is complete, before it becomes a member.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import starmap
from typing import NamedTuple

from mpips.cluster.view import NOBODY, Chain
from mpips.server.migration import IncomingCopy, OutgoingCopy, RateLimit, Send
from mpips.server.shard import Shard
from mpips.storage.disk.buffer import Buffer
from mpips.storage.disk.store import Store
from mpips.tasks.retransmission import Timer
from mpips.transport.message import Command, Kind, Message

Repeat = Callable[[Shard, Message], None]
MOST_CHANGES, MOST_BYTES = 256, 1 << 26
"""Numbers of unacknowledged changes, and of their bytes, at which callers have to wait for acknowledgements."""


class _Release(NamedTuple):
    """An action to do once a change is on all members."""

    change: int
    action: Callable[[], None]


class Link:
    """One shard's position in its chain on this server; `shard` is None until its copy is complete."""

    def __init__(
        self,
        number: int,
        me: int,
        chain: Chain,
        shard: Shard | None,
        send: Send,
        repeat: Repeat,
        rate_limit: RateLimit,
        timer: Timer | None = None,
        again: Counter[str] | None = None,
        settled: Callable[[int, int], None] = lambda number, last: None,
        knows: Callable[[Message], bool] = lambda change: True,
        store: Store | None = None,
    ) -> None:
        self._settled, self._knows = settled, knows
        # The last change whose keys were asked for.
        self._asked_keys = 0
        self.number, self.me, self.chain, self.shard = number, me, chain, shard
        self._send, self._repeat, self._rate_limit, self._timer = send, repeat, rate_limit, timer
        self.sent: dict[int, Message] = {}
        """Changes that were forwarded and are not acknowledged."""
        self._sent_bytes = 0
        # Whether an acknowledgement has come since the last timer check.
        self._heard = False
        self._again: Counter[str] = Counter() if again is None else again
        # By query: the last change that was sent before it.
        self._asked: dict[int, int] = {}
        self._queries = 0
        self.everywhere = 0
        """The last change on all members from here on; at a learner, the last received without a gap."""
        self.early: dict[int, Message] = {}
        """Changes received out of order; at a learner, all received ones."""
        self.outgoing: OutgoingCopy | None = None
        """The copy that this server, the last member, sends to a learner."""
        self._releases: deque[_Release] = deque()
        self._incoming = IncomingCopy(store)

    @property
    def primary(self) -> bool:
        """Whether this server is the primary."""
        return self.chain.members[0] == self.me

    @property
    def learning(self) -> bool:
        """Whether this server is the learner, whose copy does not count yet."""
        return self.chain.learner == self.me

    @property
    def replicated(self) -> bool:
        """Whether no change is unacknowledged."""
        return not self.sent

    @property
    def last(self) -> int:
        """The number of the last unacknowledged change, 0 if there is none."""
        return next(reversed(self.sent), 0)

    @property
    def full(self) -> bool:
        """Whether so much is unacknowledged that callers have to wait for it."""
        return len(self.sent) >= MOST_CHANGES or self._sent_bytes >= MOST_BYTES

    def _beside(self, step: int) -> int:
        everyone = self.chain.everyone
        at = everyone.index(self.me) + step
        return everyone[at] if 0 <= at < len(everyone) else NOBODY

    @property
    def previous(self) -> int:
        """The member before this one, or NOBODY."""
        return self._beside(-1)

    @property
    def next(self) -> int:
        """The member, or the learner, behind this one, or NOBODY."""
        return self._beside(1)

    # --- at the primary ----------------------------------------------------------------------

    def announce(self, make: Callable[[], Message]) -> None:
        """Forward the change that was just applied here, if there is a successor; `make` creates the message."""
        following = self.next
        if following != NOBODY:
            assert self.shard is not None
            change = make()
            change.kind, change.shard, change.time = Kind.CHAIN, self.number, self.shard.changes
            self._pass_on(change, following)

    def after_all(self, action: Callable[[], None]) -> None:
        """Run `action` once all changes applied so far are on all members; immediately if they are."""
        assert self.shard is not None
        if self.sent:
            self._releases.append(_Release(self.shard.changes, action))
        else:
            action()

    def take_over(
        self, changes: Iterable[Message], releases: Iterable[tuple[int, Callable[[], None]]]
    ) -> None:
        """Keep changes that were applied and forwarded elsewhere, and the actions that wait for changes, in order."""
        for change in changes:
            self.sent[change.time] = change
            self._sent_bytes += _size(change)
        self._releases.extend(starmap(_Release, releases))
        self._settled(self.number, self.last)

    # --- at the other members ------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Receive a change from the predecessor, or an acknowledgement from the successor."""
        if message.epoch < self.chain.since:
            # It was sent to an earlier chain, and is sent again.
            return
        if message.command is Command.APPLIED:
            if message.sender == self.next:
                self._acknowledged(message.time)
        elif message.command is Command.RECEIVED:
            if message.sender == self.next:
                self._send_missing(message)
        elif message.command is Command.ASK_KEYS:
            if message.sender == self.next and message.time in self.sent:
                self._again["keys"] += 1
                self._send(message.sender, self.sent[message.time])
        elif message.command is Command.ASK_RECEIVED:
            if message.sender == self.previous:
                self._report_received(message.round)
        elif message.sender == self.previous:
            self._change(message)

    def _change(self, change: Message) -> None:
        shard = self.shard
        if self.learning:
            if change.time > self.everywhere:
                self.early[change.time] = change
            self._acknowledge()
            return
        assert shard is not None
        again = change.time <= shard.changes
        if not again:
            self.early[change.time] = change
            self._apply()
        if again or self.next == NOBODY:
            self._acknowledge()

    def _apply(self) -> None:
        """Apply the received changes that are next in order, and forward them."""
        shard = self.shard
        assert shard is not None
        while (change := self.early.get(shard.changes + 1)) is not None:
            if not self._knows(change):
                self._ask_keys(change.time)
                return
            del self.early[change.time]
            self._repeat(shard, change)
            if (following := self.next) != NOBODY:
                self._pass_on(change, following)

    def _ask_keys(self, time: int) -> None:
        """Ask, once, for a change with its keys, of which only the name of their list was sent."""
        if time > self._asked_keys:
            self._asked_keys = time
            self._send(self.previous, Message(Kind.CHAIN, Command.ASK_KEYS, shard=self.number, time=time))

    def _acknowledge(self) -> None:
        shard = self.shard
        if self.learning:
            while self.copy_known and self.everywhere + 1 in self.early:
                self.everywhere += 1
            if not self.copy_known:
                return
        elif self.next == NOBODY and shard is not None:
            self.everywhere = shard.changes
        if self.previous != NOBODY:
            acknowledgement = Message(Kind.CHAIN, Command.APPLIED, shard=self.number, time=self.everywhere)
            self._send(self.previous, acknowledgement)

    def _acknowledged(self, time: int) -> None:
        """Record that all members from here on have applied the changes up to `time`."""
        self.everywhere = max(self.everywhere, time)
        sent = self.sent
        while sent and next(iter(sent)) <= time:
            self._sent_bytes -= _size(sent.pop(next(iter(sent))))
            self._heard = True
        releases = self._releases
        while releases and releases[0].change <= self.everywhere:
            releases.popleft().action()
        if not sent:
            self._settled(self.number, 0)
        if self.previous != NOBODY:
            self._acknowledge()

    def _pass_on(self, change: Message, following: int) -> None:
        self._settled(self.number, change.time)
        self.sent[change.time] = change
        self._sent_bytes += _size(change)
        self._send(following, change)

    # --- when the chain changes ------------------------------------------------------------------

    def rewire(self, chain: Chain) -> None:
        """Adopt a new chain, which includes this server."""
        before, self.chain = self.chain, chain
        self._asked_keys = 0
        was_primary = before.members[0] == self.me
        if was_primary and not self.primary:
            # Their callers ask the new primary.
            self._releases.clear()
            if self.shard is not None:
                self.shard.abandon()
        if self.learning:
            self._drop_copy()
            return
        if before.learner == self.me:
            self._apply()
        # The missing changes before them are sent again, and they too.
        self.early.clear()
        self.outgoing = None
        following = self.next
        if following in (NOBODY, chain.learner):
            assert self.shard is not None
            self._acknowledged(self.shard.changes)
            if following != NOBODY:
                self.outgoing = OutgoingCopy(self.shard)
        else:
            self.send_again()
        if self.previous != NOBODY:
            self._acknowledge()

    def send_again(self) -> None:
        """Send unacknowledged changes again, to the new successor."""
        self._repeat_sent(list(self.sent.values()))

    def _repeat_sent(self, changes: list[Message]) -> None:
        if (following := self.next) != NOBODY:
            if changes:
                self._again["chain"] += len(changes)
            for change in changes:
                self._send(following, change)

    # --- retransmission ----------------------------------------------------------------------------

    def probe(self, now: float) -> None:
        """Query the successor for the changes it has received, if no acknowledgement comes before the timeout."""
        timer = self._timer
        if timer is None:
            return
        if not self.sent or self.next == NOBODY:
            timer.stop()
            self._asked.clear()
        elif self._heard:
            timer.heard(now)
            self._asked.clear()
        elif timer.expired(now):
            self._queries += 1
            self._asked[self._queries] = next(reversed(self.sent))
            ask = Message(Kind.CHAIN, Command.ASK_RECEIVED, shard=self.number, round=self._queries)
            self._send(self.next, ask)
        self._heard = False

    def _report_received(self, query: int) -> None:
        last = self.everywhere if self.learning or self.shard is None else self.shard.changes
        received = Message(Kind.CHAIN, Command.RECEIVED, shard=self.number, time=last, round=query)
        received.after = tuple([(time, time + 1) for time in self.early])
        self._send(self.previous, received)
        if not self.learning:
            self._acknowledge()

    def _send_missing(self, received: Message) -> None:
        """Send missing changes again: only those sent before the query, since the answer does not cover later ones."""
        last = self._asked.pop(received.round, 0)
        early = {begin for begin, _ in received.after}
        missing = [
            each
            for each in self.sent.values()
            if received.time < each.time <= last and each.time not in early
        ]
        if missing:
            # Answers to earlier queries do not cover what is sent again now.
            self._asked.clear()
            self._repeat_sent(missing)

    # --- copies ------------------------------------------------------------------------------------

    def send_chunks(self) -> None:
        """Send as many chunks of a copy as may be unacknowledged, if this server sends one."""
        if self.outgoing is not None:
            self.outgoing.send_chunks(self.chain.learner, self._send, self._rate_limit)

    def chunk_received(self, message: Message) -> None:
        """Receive the learner's acknowledgement of a chunk."""
        current = message.sender == self.chain.learner and message.epoch >= self.chain.since
        if self.outgoing is not None and current:
            self.outgoing.acknowledged()
            self.send_chunks()

    @property
    def copy_known(self) -> bool:
        """Whether a learner knows the last change that its copy includes."""
        return bool(self._incoming) or self.shard is not None

    def take_chunk(
        self, message: Message, make: Callable[[int], Shard], fill: Callable[[Buffer, Shard], None]
    ) -> bool:
        """Receive a chunk of this learner's copy; return whether the copy is complete."""
        if not self.learning or message.sender != self.previous or message.epoch < self.chain.since:
            return False
        if not self._incoming:
            self.everywhere = message.time
        packed = self._incoming.add(message)
        self._send(message.sender, Message(Kind.CONTROL, Command.COPY_RECEIVED, shard=self.number))
        self._acknowledge()
        if packed is None:
            return False
        self.shard = make(self.number)
        fill(packed, self.shard)
        self._incoming.clear()
        return True

    def _drop_copy(self) -> None:
        self.shard, self.everywhere = None, 0
        self.early.clear()
        self.sent.clear()
        self._sent_bytes = 0
        self._incoming.clear()


def _size(change: Message) -> int:
    """Return the bytes of keys and values of a change."""
    return sum(array.nbytes for array in (change.keys, change.values) if array is not None)
