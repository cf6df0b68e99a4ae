"""Chain replication: a server's place in the chains of its shards (paper, section 4.3).

Every change of a shard goes from its primary down the chain, member by member. The last member's word that it has
applied it comes back the same way, and only then does the primary answer whoever asked for it: so an answered
push is with every member, and what a member has applied, all before it have. Pushes that are summed over the workers
are one change (replication after aggregation).

    primary      apply the change; send it on; answer its callers once the word is back
    member       apply it; send it on; pass the word back
    last member  apply it; give the word

A member keeps what it has sent on until the word is back. When the chain changes, it sends that again to whoever comes
next now; changes are numbered, and one that was applied already is not applied again. If nobody comes next, all is
with everyone.

A learner stands behind the last member, which feeds it a copy of the shard in pieces, and all changes after it. It
gives its word for what it has received: that is applied once the copy is whole, before the learner becomes a member.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.view import NOBODY, Chain
from mpips.server.shard import Shard
from mpips.server.shard_snapshot import pack
from mpips.tasks.retransmission import Timer
from mpips.transport.message import Command, Kind, Message

Send = Callable[[int, Message], None]
Repeat = Callable[[Shard, Message], None]
PIECE = 1 << 17
"""Words of 8 bytes in a piece of a copy: 1 MiB."""
AHEAD = 4
"""Pieces on their way at once."""
MOST_CHANGES, MOST_BYTES = 256, 1 << 26
"""Changes, and bytes of them, on their way down a chain, from which on callers have to wait for them."""


class Pace:
    """Says when the next piece of a copy may be sent: so many bytes per second (0: no limit) in all."""

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._rate, self._now, self._free = rate, now, 0.0

    def may(self) -> bool:
        """Tell whether a piece may be sent now."""
        return self._rate == 0 or self._now() >= self._free

    def sent(self, size: int) -> None:
        """Note that so many bytes were."""
        if self._rate:
            self._free = max(self._free, self._now()) + size / self._rate


class Feed:
    """A copy on its way to a learner."""

    def __init__(self, parcel: NDArray[np.int64], changes: int) -> None:
        self.parcel, self.changes = parcel, changes
        self.next, self.count, self.come = 0, -(-len(parcel) // PIECE), 0


class _Release(NamedTuple):
    """What is done once a change is with everyone."""

    change: int
    action: Callable[[], None]


class Link:
    """One shard's place in its chain on this server; `shard` is None while its copy has not come."""

    def __init__(
        self,
        number: int,
        me: int,
        chain: Chain,
        shard: Shard | None,
        send: Send,
        repeat: Repeat,
        pace: Pace,
        timer: Timer | None = None,
        again: Counter[str] | None = None,
    ) -> None:
        self.number, self.me, self.chain, self.shard = number, me, chain, shard
        self._send, self._repeat, self._pace, self._timer = send, repeat, pace, timer
        self.sent: dict[int, Message] = {}
        """Changes that were sent on, and whose word is not back."""
        self._sent_bytes = 0
        self._heard = False  # whether anything came back since the last look at the timer
        self._again: Counter[str] = Counter() if again is None else again
        self._asked: dict[int, int] = {}  # question -> the last change that was sent before it
        self._questions = 0
        self.everywhere = 0
        """The last change that is with all from here on; at a learner, the last of all that it has received."""
        self.early: dict[int, Message] = {}
        """Changes that came before those they follow; at a learner, all that came."""
        self.feed: Feed | None = None
        self._releases: deque[_Release] = deque()
        self._pieces: dict[int, Message] = {}

    @property
    def primary(self) -> bool:
        """Whether this server answers for the shard."""
        return self.chain.members[0] == self.me

    @property
    def learning(self) -> bool:
        """Whether this server's copy does not count yet."""
        return self.chain.learner == self.me

    @property
    def still(self) -> bool:
        """Whether nothing is on its way down the chain."""
        return not self.sent

    @property
    def full(self) -> bool:
        """Whether so much is on its way down the chain that callers have to wait for it."""
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
        """Send the change that was just applied here down the chain, if anybody follows: `make` writes it."""
        following = self.next
        if following != NOBODY:
            assert self.shard is not None
            change = make()
            change.kind, change.shard, change.time = Kind.CHAIN, self.number, self.shard.changes
            self._pass_on(change, following)

    def after_all(self, action: Callable[[], None]) -> None:
        """Do `action` once all that was applied so far is with everyone, at once if it is."""
        assert self.shard is not None
        if self.sent:
            self._releases.append(_Release(self.shard.changes, action))
        else:
            action()

    # --- at the others -------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Take a change from the member before, or the word from the one behind."""
        if message.epoch < self.chain.since:
            return  # it was sent to another chain than this one is now, and comes again
        if message.command is Command.APPLIED:
            if message.sender == self.next:
                self._word(message.time)
        elif message.command is Command.RECEIVED:
            if message.sender == self.next:
                self._send_missing(message)
        elif message.command is Command.ASK_RECEIVED:
            if message.sender == self.previous:
                self._tell_received(message.round)
        elif message.sender == self.previous:
            self._change(message)

    def _change(self, change: Message) -> None:
        shard = self.shard
        if self.learning:
            if change.time > self.everywhere:
                self.early[change.time] = change
            self._give_word()
            return
        assert shard is not None
        again = change.time <= shard.changes
        if not again:
            self.early[change.time] = change
            self._apply()
        if again or self.next == NOBODY:
            self._give_word()

    def _apply(self) -> None:
        """Apply what came and is next, and send it on."""
        shard = self.shard
        assert shard is not None
        while (change := self.early.pop(shard.changes + 1, None)) is not None:
            self._repeat(shard, change)
            if (following := self.next) != NOBODY:
                self._pass_on(change, following)

    def _give_word(self) -> None:
        shard = self.shard
        if self.learning:
            while self.feed_known and self.everywhere + 1 in self.early:
                self.everywhere += 1
            if not self.feed_known:
                return
        elif self.next == NOBODY and shard is not None:
            self.everywhere = shard.changes
        if self.previous != NOBODY:
            word = Message(Kind.CHAIN, Command.APPLIED, shard=self.number, time=self.everywhere)
            self._send(self.previous, word)

    def _word(self, time: int) -> None:
        """All from here on have applied the changes up to `time`."""
        self.everywhere = max(self.everywhere, time)
        sent = self.sent
        while sent and next(iter(sent)) <= time:
            self._sent_bytes -= _size(sent.pop(next(iter(sent))))
            self._heard = True
        releases = self._releases
        while releases and releases[0].change <= self.everywhere:
            releases.popleft().action()
        if self.previous != NOBODY:
            self._give_word()

    def _pass_on(self, change: Message, following: int) -> None:
        self.sent[change.time] = change
        self._sent_bytes += _size(change)
        self._send(following, change)

    # --- when the chain changes ------------------------------------------------------------------

    def rewire(self, chain: Chain) -> None:
        """Take the place that a new chain gives this server, which is one of it."""
        before, self.chain = self.chain, chain
        was_primary = before.members[0] == self.me
        if was_primary and not self.primary:
            self._releases.clear()  # their callers ask the new primary
            if self.shard is not None:
                self.shard.abandon()
        if self.learning:
            self._begin_anew()
            return
        if before.learner == self.me:
            self._apply()
        self.early.clear()  # what is missing before them comes again, and they with it
        self.feed = None
        following = self.next
        if following in (NOBODY, chain.learner):
            assert self.shard is not None
            self._word(self.shard.changes)
            if following != NOBODY:
                self._start_feed()
        else:
            self.send_again()
        if self.previous != NOBODY:
            self._give_word()

    def send_again(self) -> None:
        """Send what is on its way once more: someone else comes next now."""
        self._repeat_sent(list(self.sent.values()))

    def _repeat_sent(self, changes: list[Message]) -> None:
        if (following := self.next) != NOBODY:
            if changes:
                self._again["chain"] += len(changes)
            for change in changes:
                self._send(following, change)

    # --- where messages are lost -------------------------------------------------------------------

    def probe(self, now: float) -> None:
        """Ask whoever comes next what has come of the changes that were sent, if nothing was heard for too long."""
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
            self._questions += 1
            self._asked[self._questions] = next(reversed(self.sent))
            ask = Message(Kind.CHAIN, Command.ASK_RECEIVED, shard=self.number, round=self._questions)
            self._send(self.next, ask)
        self._heard = False

    def _tell_received(self, question: int) -> None:
        come = self.everywhere if self.learning or self.shard is None else self.shard.changes
        received = Message(Kind.CHAIN, Command.RECEIVED, shard=self.number, time=come, round=question)
        received.after = tuple((time, time + 1) for time in self.early)
        self._send(self.previous, received)
        if not self.learning:
            self._give_word()

    def _send_missing(self, received: Message) -> None:
        """Send again what had not come: of what was sent before the question, since the answer knows no more."""
        last = self._asked.pop(received.round, 0)
        early = {begin for begin, _ in received.after}
        missing = [
            each
            for each in self.sent.values()
            if received.time < each.time <= last and each.time not in early
        ]
        if missing:
            self._asked.clear()  # the answers to these know nothing of what is sent again now
            self._repeat_sent(missing)

    # --- copies ------------------------------------------------------------------------------------

    def _start_feed(self) -> None:
        assert self.shard is not None
        self.feed = Feed(pack(self.shard), self.shard.changes)

    def send_pieces(self) -> None:
        """Send as much of a copy as may be on its way now."""
        feed = self.feed
        while (
            feed is not None and feed.next < feed.count and feed.next < feed.come + AHEAD and self._pace.may()
        ):
            piece = feed.parcel[feed.next * PIECE : (feed.next + 1) * PIECE]
            message = Message(
                Kind.CONTROL, Command.FEED, shard=self.number, time=feed.changes, round=feed.next
            )
            message.values, message.meta = piece, {"of": feed.count}
            self._send(self.chain.learner, message)
            self._pace.sent(piece.nbytes)
            feed.next += 1

    def fed(self, message: Message) -> None:
        """Take the learner's word that a piece has come."""
        if (
            self.feed is not None
            and message.sender == self.chain.learner
            and message.epoch >= self.chain.since
        ):
            self.feed.come += 1
            self.send_pieces()

    @property
    def feed_known(self) -> bool:
        """Whether a learner knows after which change its copy was made."""
        return bool(self._pieces) or self.shard is not None

    def piece(
        self, message: Message, make: Callable[[int], Shard], fill: Callable[[NDArray[np.int64], Shard], None]
    ) -> bool:
        """Take a piece of this learner's copy; give whether the copy is whole now."""
        if not self.learning or message.sender != self.previous or message.epoch < self.chain.since:
            return False
        if not self._pieces:
            self.everywhere = message.time
        self._pieces[message.round] = message
        self._send(message.sender, Message(Kind.CONTROL, Command.FED, shard=self.number))
        self._give_word()
        if len(self._pieces) < message.meta["of"]:
            return False
        parts = [self._pieces[number].values for number in sorted(self._pieces)]
        parcel = np.concatenate([part.reshape(-1) for part in parts if part is not None])
        self.shard = make(self.number)
        fill(parcel, self.shard)
        self._pieces.clear()
        return True

    def _begin_anew(self) -> None:
        self.shard, self.everywhere = None, 0
        self.early.clear()
        self.sent.clear()
        self._sent_bytes = 0
        self._pieces.clear()


def _size(change: Message) -> int:
    """Return the bytes of keys and values that a change carries."""
    return sum(array.nbytes for array in (change.keys, change.values) if array is not None)
