"""The journal: the inputs of the scheduler's program, replicated so that another rank can continue it.

A program's `schedule` is an ordinary function with two kinds of input only: the replies to its tasks, and decisions (is
a checkpoint due? who are the workers now?), which depend on time, signals and deaths. Given the same replies and
decisions, a repeated execution takes the same steps (state machine replication). So the leader sends both to its next
successors, and the one that takes over runs the function from its start: the journal supplies the recorded inputs at
once, without messages; after its last entry the run continues normally. Requests of the old leader without a recorded
reply are sent again, under the same ids (origin, time), and callees that have executed them repeat their kept reply.

Replies are sent to the successors without waiting, since each callee keeps them until they have arrived (`stable`). A
decision must have arrived before the program continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.transport.message import Command, Kind, Message

T = TypeVar("T")
ACKNOWLEDGED_EVERY = 16
"""Number of entries after which a successor acknowledges."""
FOREVER = 1 << 62


class Journal:
    """The journal of one rank: the leader's own, or a successor's copy.

    `copies` is the number of successors that it is sent to.
    """

    def __init__(self, node: Node, copies: int = 1) -> None:
        self.node, self._copies = node, copies
        self.replies: dict[tuple[int, int], Message] = {}
        """By (time, address)."""
        self.decisions: list[Any] = []
        self._entries: list[Message] = []
        # Entries from the present leader; the same list once it has at least as many as the old one.
        self._received: list[Message] = []
        # The number of entries when this leader began to lead.
        self._base = 0
        self._early: dict[int, Message] = {}
        self._source = -1
        self._leading = False
        self._decided = 0
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
        self._leading, self._base = True, len(self._entries)
        for entry in self._entries:
            entry.meta["base"] = self._base
        tasks = node.call_as(node.view.origin)
        if node.van.survives and not node.policy.is_replay:
            tasks.take_replies(self.replies)
            tasks.stable, tasks.on_journaled = self._stable_time, self._note
            self._follow(node.view, node.view)

    @property
    def replaying(self) -> bool:
        """Whether the journal has inputs that the program has not reached yet."""
        return bool(self.node.tasks.known_replies) or self._decided < len(self.decisions)

    def decide(self, make: Callable[[], T]) -> T:
        """Return the next decision: the recorded one, or `make()`, once the successors have it.

        It must be JSON-able.
        """
        number = self._decided
        self._decided += 1
        if number < len(self.decisions):
            known: T = self.decisions[number]
            return known
        value = self.node.policy.decide(number, make)
        self.decisions.append(value)
        for decided in self.node.observers.decided:
            decided(number, value)
        if self.node.van.survives and not self.node.policy.is_replay:
            self._add(Message(Kind.CONTROL, Command.LOG, meta={"decision": value}))
            count = len(self._entries)
            self.node.wait_until(
                lambda: all(has >= count for has in self._followers.values()), "its successors"
            )
        return value

    def _note(self, address: int, reply: Message) -> None:
        if (reply.time, address) in self.replies or reply.command is Command.EXPORT:
            return
        self.replies[reply.time, address] = reply
        entry = Message(Kind.CONTROL, Command.LOG, keys=reply.keys, values=reply.values)
        entry.time, entry.round = reply.time, reply.round
        entry.meta = {
            "of": [int(reply.kind), int(reply.command), reply.sender, reply.shard, reply.namespace, address],
            "meta": reply.meta,
        }
        self._add(entry)
        self._marks.append((len(self._entries), next(iter(self.node.tasks.unfinished), 0)))

    def _add(self, entry: Message) -> None:
        entry.meta["number"], entry.meta["base"] = len(self._entries), self._base
        self._entries.append(entry)
        for rank in self._followers:
            self.node.outbox.send_soon(rank, entry)

    def _follow(self, before: View, view: View) -> None:
        """Send all entries to a new successor."""
        if not self._leading:
            return
        followers = [rank for rank in view.succession() if rank != self.node.rank][: self._copies]
        self._followers = {rank: self._followers.get(rank, -1) for rank in followers}
        for rank in [rank for rank, has in self._followers.items() if has < 0]:
            self._followers[rank] = 0
            for entry in self._entries:
                self.node.outbox.send_soon(rank, entry)

    def _logged(self, message: Message) -> None:
        if message.sender in self._followers:
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
            self._source, self._received = entry.sender, []
            self._early.clear()
        self._early[entry.meta["number"]] = entry
        while (following := self._early.pop(len(self._received), None)) is not None:
            self._received.append(following)
            count = len(self._received)
            if self._received is self._entries:
                self._take(following)
            elif count >= following.meta["base"]:
                self._restart()
            if "decision" in following.meta or count % ACKNOWLEDGED_EVERY == 0:
                self.node.control(entry.sender, Command.LOGGED, {"count": count})

    def _restart(self) -> None:
        """Replace the journal by the present leader's, from its start."""
        self._entries = self._received
        self.replies.clear()
        self.decisions.clear()
        for entry in self._entries:
            self._take(entry)

    def _take(self, entry: Message) -> None:
        if "decision" in entry.meta:
            self.decisions.append(entry.meta["decision"])
            return
        kind, command, sender, shard, namespace, address = entry.meta["of"]
        reply = Message(Kind(kind), Command(command), sender, shard=shard, namespace=namespace)
        reply.time, reply.round, reply.meta = entry.time, entry.round, entry.meta["meta"]
        reply.keys, reply.values = entry.keys, entry.values
        self.replies[entry.time, address] = reply
