"""The journal: the inputs of the scheduler's program, replicated so that another rank can continue it.

A program's `schedule` is an ordinary function with two kinds of input only: the replies to its tasks, and decisions (is
a checkpoint due? who are the workers now?), which depend on time, signals and deaths. Given the same replies and
decisions, a repeated execution takes the same steps (state machine replication). So the leader sends both to its next
successors, and the one that takes over runs the function from its start: the journal supplies the recorded inputs at
once, without messages; after its last entry the run continues normally. Requests of the old leader without a recorded
reply are sent again, under the same ids (origin, time), and callees that have executed them repeat their kept reply.

Replies are sent to the successors without waiting, since each callee keeps them until they have arrived (`stable`). A
decision must have arrived before the program continues. A successor waits, too, before it goes on from the last one, or
from a snapshot: its predecessor may have died before all had it, and if this rank died as well, the next one could
decide otherwise.

A long run would make the journal long, and its replay slow. So a program may have a *restart point*, which it passes in
each turn of its main loop, and where it can give its whole state (`compact`). From time to time the leader replaces the
inputs between the first pass of that point and the present one by this state, a *snapshot* (log compaction, as in
Ongaro and Ousterhout, 2014, section 7):

    inputs before the first pass | inputs of all turns so far         | inputs since
    kept                         | replaced by one entry, a snapshot  | kept, until the next snapshot

A successor runs the program from its start to the restart point, takes the snapshot's state there, and continues with
the inputs since.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.errors import UsageError
from mpips.transport.message import Command, Kind, Message

T = TypeVar("T")
ACKNOWLEDGED_EVERY = 16
"""Number of entries after which a successor acknowledges."""
COMPACTED_EVERY = 256
"""Number of entries after which a program that passes its restart point gives a snapshot."""
ASKED_EVERY = 0.05
"""Seconds between two questions to a successor how many entries it has."""
FOREVER = 1 << 62


class Place(NamedTuple):
    """A place in the program: the time of its next task, and the numbers of its next decision and of its next entry."""

    time: int
    decision: int
    entry: int


class Snapshot(NamedTuple):
    """The program's `state` at the place `at`; it replaces the inputs since the place `since`."""

    state: Any
    since: Place
    at: Place


def has_decisions(entry: Message) -> bool:
    """Return whether an entry is a decision, or a snapshot, which may replace some."""
    return not entry.meta.keys().isdisjoint(("decision", "snapshot"))


class Log:
    """Entries of a journal, in order, and the inputs in them."""

    def __init__(self) -> None:
        self.entries: list[Message] = []
        self.count = 0
        """The number of the next entry; also entries that a snapshot has replaced have numbers."""
        self.replies: dict[tuple[int, int], Message] = {}
        """By (time, address)."""
        self.decisions: dict[int, Any] = {}
        """By number."""
        self.decided = 0
        """The number of the next decision."""
        self.snapshot: Snapshot | None = None

    def take(self, entry: Message) -> None:
        """Append an entry. A snapshot may come before the entries that it replaces, which are not needed then."""
        self.count = entry.meta["number"] + 1
        if "snapshot" in entry.meta:
            state, since, at = entry.meta["snapshot"]
            self._compact(Snapshot(state, Place(*since), Place(*at)))
        elif "decision" in entry.meta:
            self.decisions[self.decided] = entry.meta["decision"]
            self.decided += 1
        else:
            kind, command, sender, shard, namespace, address = entry.meta["of"]
            reply = Message(Kind(kind), Command(command), sender, shard=shard, namespace=namespace)
            reply.time, reply.round, reply.meta = entry.time, entry.round, entry.meta["meta"]
            reply.keys, reply.values = entry.keys, entry.values
            self.replies[entry.time, address] = reply
        self.entries.append(entry)

    def _compact(self, snapshot: Snapshot) -> None:
        """Drop the inputs that a snapshot replaces."""
        since = snapshot.since
        del self.entries[since.entry :]
        self.replies = {of: reply for of, reply in self.replies.items() if of[0] < since.time}
        self.decisions = {
            number: value for number, value in self.decisions.items() if number < since.decision
        }
        self.decided, self.snapshot = snapshot.at.decision, snapshot

    def follows(self, entry: Message) -> bool:
        """Return whether an entry can be appended now."""
        number: int = entry.meta["number"]
        if number <= self.count or "snapshot" not in entry.meta:
            return number == self.count
        return Place(*entry.meta["snapshot"][1]).entry <= self.count

    def before(self, time: int, decision: int) -> Place | None:
        """Return the place with this time and number of a decision; None if entries from before come after others."""
        count, decided = 0, 0
        for number, entry in enumerate(self.entries):
            if "decision" in entry.meta:
                decided += 1
                is_before = decided <= decision
            else:
                is_before = entry.time < time
            if is_before:
                if count < number:
                    return None
                count += 1
        return Place(time, decision, count)

    def holds(self, of: tuple[int, int]) -> bool:
        """Return whether the reply to (time, address) is here, or replaced by a snapshot."""
        snapshot = self.snapshot
        return of in self.replies or (
            snapshot is not None and snapshot.since.time <= of[0] < snapshot.at.time
        )


class Journal:
    """The journal of one rank: the leader's own, or a successor's copy.

    `copies` is the number of successors that it is sent to. A snapshot replaces `compacted_every` entries or more.
    """

    def __init__(self, node: Node, copies: int = 1, compacted_every: int = COMPACTED_EVERY) -> None:
        self.node, self._copies, self._compacted_every = node, copies, compacted_every
        self.log = Log()
        """The valid entries."""
        # Those from the present leader; the same once it has sent at least as many as the log of the old one had.
        self._received = self.log
        # The number of entries when this leader began to lead.
        self._base = 0
        self._early: dict[int, Message] = {}
        self._source = -1
        self._leading = False
        # The number of the program's next decision.
        self._decided = 0
        # Where the program was when it first passed its restart point.
        self._since: Place | None = None
        # The number of entries that each successor has acknowledged.
        self._followers: dict[int, int] = {}
        # (entries, the time below which all replies are among them).
        self._marks: deque[tuple[int, int]] = deque()
        self._stable = 0
        node.register(
            Registration(
                controls={Command.LOG: self._entry, Command.LOGGED: self._logged}, views=(self._follow,)
            )
        )

    # --- at the leader -----------------------------------------------------------------------

    def lead(self) -> None:
        """Become the scheduler: issue tasks with its origin, and take known replies from the journal."""
        node = self.node
        self._leading, self._base = True, self.log.count
        for entry in self.log.entries:
            entry.meta["base"] = self._base
        tasks = node.call_as(node.view.origin)
        if self._is_kept:
            tasks.take_replies(self.log.replies)
            tasks.stable, tasks.on_journaled = self._stable_time, self._note
            self._follow(node.view, node.view)

    @property
    def _is_kept(self) -> bool:
        """Whether another rank may continue the program."""
        return self.node.van.survives and not self.node.policy.is_replay

    @property
    def replaying(self) -> bool:
        """Whether the journal has inputs that the program has not reached yet."""
        ahead = self.log.snapshot is not None and self._since is None
        return ahead or bool(self.node.tasks.known_replies) or self._decided < self.log.decided

    def decide(self, make: Callable[[], T]) -> T:
        """Return the next decision: the recorded one, or `make()`, once the successors have it.

        It must be JSON-able.
        """
        number = self._decided
        self._decided += 1
        if number < self.log.decided:
            known: T = self.log.decisions[number]
            if self._decided == self.log.decided and self._is_kept:
                # The leader that made it may have died before all its successors had it.
                self._await_followers(self._end_of_decisions())
            return known
        value = self.node.policy.decide(number, make)
        for decided in self.node.observers.decided:
            decided(number, value)
        if self._is_kept:
            self._add(Message(Kind.CONTROL, Command.LOG, meta={"decision": value}))
            self._await_followers(self.log.count)
        return value

    def _end_of_decisions(self) -> int:
        """Return the number of entries up to the last decision, or to the snapshot that replaces it."""
        numbers = (each.meta["number"] for each in reversed(self.log.entries) if has_decisions(each))
        return 1 + next(numbers, -1)

    def _await_followers(self, count: int) -> None:
        """Wait until all successors that have copies have so many entries."""
        self.node.wait_until(lambda: all(has >= count for has in self._followers.values()), "its successors")

    def compact(self, state: Callable[[], Any], since: int = 0) -> Any:
        """Pass the restart point, where `state()` is the program's whole state, JSON-able.

        Return None; on a successor, the state from which the program must continue, if there is a snapshot. There is
        none of a place where tasks issued at `since` or later are unfinished; the program has given up earlier ones.
        """
        if not self._is_kept:
            return None
        tasks, snapshot = self.node.tasks, self.log.snapshot
        here = (tasks.time, self._decided)
        if snapshot is not None and self._since is None:
            return self._continue(snapshot, here)
        if tasks.ahead.count or any(time >= since for time in tasks.unfinished) or tasks.unhandled(since):
            return None
        if self._since is None:
            self._since = self.log.before(*here)
        elif not self.replaying and self._is_long():
            made = Snapshot(state(), self._since, Place(*here, self.log.count))
            self._add(Message(Kind.CONTROL, Command.LOG, meta={"snapshot": made}))
        return None

    def _continue(self, snapshot: Snapshot, here: tuple[int, int]) -> Any:
        """Return the state of a snapshot if the program is where it passed the restart point first; otherwise None."""
        since, at = snapshot.since, snapshot.at
        if here[0] > since.time or here[1] > since.decision:
            raise UsageError(
                "the program has reached its restart point by other steps than on the scheduler before: `schedule` "
                "must be deterministic, and call `compact` at one place"
            )
        if here != (since.time, since.decision):
            return None
        tasks = self.node.tasks
        tasks.continue_at(at.time)
        # Of tasks that the program had given up.
        for of in [each for each in tasks.known_replies if each[0] < at.time]:
            del tasks.known_replies[of]
        self._decided, self._since = at.decision, since
        if self._decided == self.log.decided:
            # As after the last decision: the snapshot replaces it.
            self._await_followers(self._end_of_decisions())
        return snapshot.state

    def _is_long(self) -> bool:
        """Return whether there are many entries that a snapshot would replace."""
        kept, snapshot = self._since, self.log.snapshot
        assert kept is not None
        since = kept if snapshot is None else snapshot.at
        return self.log.count - since.entry >= self._compacted_every

    def _note(self, address: int, reply: Message) -> None:
        if (reply.time, address) in self.log.replies or reply.command is Command.EXPORT:
            return
        entry = Message(Kind.CONTROL, Command.LOG, keys=reply.keys, values=reply.values)
        entry.time, entry.round = reply.time, reply.round
        entry.meta = {
            "of": [int(reply.kind), int(reply.command), reply.sender, reply.shard, reply.namespace, address],
            "meta": reply.meta,
        }
        self._add(entry)
        self._marks.append((self.log.count, next(iter(self.node.tasks.unfinished), 0)))

    def _add(self, entry: Message) -> None:
        entry.meta["number"], entry.meta["base"] = self.log.count, self._base
        self.log.take(entry)
        for rank in self._followers:
            self.node.outbox.send_soon(rank, entry)

    def _follow(self, before: View, view: View) -> None:
        """Send all entries to a new successor."""
        if not self._leading:
            return
        followers = self._successors(view)
        self._followers = {rank: has for rank, has in self._followers.items() if rank in followers}
        self._send_all_to(followers)

    def _successors(self, view: View) -> list[int]:
        """Return the ranks that have copies of the journal in a view."""
        return [rank for rank in view.succession() if rank != self.node.rank][: self._copies]

    def _send_all_to(self, followers: Iterable[int]) -> None:
        """Send all entries to those of some successors that have none."""
        for rank in [rank for rank in followers if rank not in self._followers]:
            self._followers[rank] = 0
            for entry in self.log.entries:
                self.node.outbox.send_soon(rank, entry)

    def secure(self, view: View) -> None:
        """Wait until those that succeed this leader in a view have all entries: before the view is made.

        Else there would be no journal if the leader died then: a former successor may be a worker in that view.
        """
        if not self._leading or not self._is_kept:
            return
        asked_at = -math.inf

        def has_all() -> bool:
            nonlocal asked_at
            alive = self.node.view.roles
            wanted = [rank for rank in self._successors(view) if alive[rank] is not None]
            self._send_all_to(wanted)
            missing = [rank for rank in wanted if self._followers[rank] < self.log.count]
            if missing and self.node.van.now() - asked_at > ASKED_EVERY:
                asked_at = self.node.van.now()
                self.node.outbox.flush()
                for rank in missing:
                    self.node.control(rank, Command.LOGGED, {})
            return not missing

        self.node.wait_until(has_all, "its next successors")

    def _logged(self, message: Message) -> None:
        """Receive the number of a successor's entries, or the leader's question for it."""
        if "count" not in message.meta:
            count = self._received.count if message.sender == self._source else 0
            self.node.control(message.sender, Command.LOGGED, {"count": count})
        elif message.sender in self._followers:
            has = self._followers[message.sender]
            self._followers[message.sender] = max(has, int(message.meta["count"]))

    def _stable_time(self) -> int:
        """Return the time below which all successors have all replies."""
        if not self._followers:
            self._marks.clear()
            return FOREVER
        least = min(self._followers.values())
        while self._marks and self._marks[0][0] <= least:
            self._stable = max(self._stable, self._marks.popleft()[1])
        return self._stable

    # --- at a successor ------------------------------------------------------------------------

    def _entry(self, entry: Message) -> None:
        """Receive an entry of the leader; those of its predecessor are valid until this one has sent as many."""
        if self._leading:
            return
        if entry.sender != self._source:
            self._source, self._received = entry.sender, Log()
            self._early.clear()
        self._early[entry.meta["number"]] = entry
        while (following := next(filter(self._received.follows, self._early.values()), None)) is not None:
            self._received.take(following)
            count = self._received.count
            self._early = {number: each for number, each in self._early.items() if number >= count}
            if count >= following.meta["base"]:
                self.log = self._received
            if has_decisions(following) or count % ACKNOWLEDGED_EVERY == 0:
                self.node.control(entry.sender, Command.LOGGED, {"count": count})
