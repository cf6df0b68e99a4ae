"""The journal: what the scheduler's program has been told, so that another rank can go on in its place.

A program's `schedule` is an ordinary function that is told something in two ways only: by the replies to its tasks, and
by decisions (is a checkpoint due? who are the workers now?), which depend on time, signals and deaths. Given the same
replies and decisions it does the same again. So the leader sends both to its next successors, and the one that takes
over runs the function from its start: what the journal knows is answered from it, at once, without any message; where
it ends, the run goes on. Requests that the old leader has sent and nobody knows the reply to are sent again, under the
same names (origin, time), and whoever has executed them answers with the reply that was kept.

Replies are sent to the successors without waiting, since each callee keeps them until they are there (`stable`). A
decision must have arrived before anything follows from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.transport.message import Command, Kind, Message

T = TypeVar("T")
OFTEN = 16
"""Entries after which a successor says how many it has."""
FOREVER = 1 << 62


class Journal:
    """The journal of one rank: the leader's own, or what it was sent of the leader's.

    `copies` successors are sent it.
    """

    def __init__(self, node: Node, copies: int = 1) -> None:
        self.node, self._copies = node, copies
        self.replies: dict[tuple[int, int], Message] = {}
        """By (time, address)."""
        self.decisions: list[Any] = []
        self._entries: list[Message] = []
        self._told: list[Message] = []  # those of the present leader; the same list once they are as many
        self._base = 0  # how many entries this leader had when it began to lead
        self._early: dict[int, Message] = {}
        self._source = -1
        self._leading = False
        self._decided = 0
        self._followers: dict[int, int] = {}  # how many entries each has
        self._marks: deque[tuple[int, int]] = (
            deque()
        )  # (entries, the time below which all replies are among them)
        self._stable = 0
        node.controls[Command.LOG] = self._entry
        node.controls[Command.LOGGED] = self._logged
        node.on_view.append(self._follow)

    # --- at the leader -----------------------------------------------------------------------

    def lead(self) -> None:
        """Become the scheduler: issue its tasks in its name, and take the replies that it had from the journal."""
        node = self.node
        self._leading, self._base = True, len(self._entries)
        for entry in self._entries:
            entry.meta["base"] = self._base
        node.tasks = node.new_tasks(node.view.origin)
        if node.van.survives and node.replay is None:
            node.tasks.recall(self.replies)
            node.tasks.stable, node.tasks.noted = self._stable_time, self._note
            self._follow(node.view, node.view)

    @property
    def replaying(self) -> bool:
        """Whether the journal knows of what the program has not come to yet."""
        return bool(self.node.tasks.recalled) or self._decided < len(self.decisions)

    def decide(self, make: Callable[[], T]) -> T:
        """Give the next decision: the one that the program was told before, or `make()`, once the successors have it.

        It must be JSON-able.
        """
        number = self._decided
        self._decided += 1
        if self.node.replay is not None:
            told: T = self.node.replay.decision(number)
            return told
        if number < len(self.decisions):
            known: T = self.decisions[number]
            return known
        value = make()
        self.decisions.append(value)
        if self.node.record is not None:
            self.node.record.decision(number, value)
        if self.node.van.survives:
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
            self.node.send_soon(rank, entry)

    def _follow(self, before: View, view: View) -> None:
        """Send all of it to a successor that is new."""
        if not self._leading:
            return
        heirs = [rank for rank in view.succession() if rank != self.node.rank][: self._copies]
        self._followers = {rank: self._followers.get(rank, -1) for rank in heirs}
        for rank in [rank for rank, has in self._followers.items() if has < 0]:
            self._followers[rank] = 0
            for entry in self._entries:
                self.node.send_soon(rank, entry)

    def _logged(self, message: Message) -> None:
        if message.sender in self._followers:
            has = self._followers[message.sender]
            self._followers[message.sender] = max(has, int(message.meta["count"]))

    def _stable_time(self) -> int:
        """Give the time below which all successors have all replies."""
        if not self._followers:
            self._marks.clear()
            return FOREVER
        least = min(self._followers.values())
        while self._marks and self._marks[0][0] <= least:
            self._stable = max(self._stable, self._marks.popleft()[1])
        return self._stable

    # --- at a successor ------------------------------------------------------------------------

    def _entry(self, entry: Message) -> None:
        """Take an entry of the leader's; what another leader told before counts until this one has told as much."""
        if self._leading:
            return
        if entry.sender != self._source:
            self._source, self._told = entry.sender, []
            self._early.clear()
        self._early[entry.meta["number"]] = entry
        while (following := self._early.pop(len(self._told), None)) is not None:
            self._told.append(following)
            count = len(self._told)
            if self._told is self._entries:
                self._take(following)
            elif count >= following.meta["base"]:
                self._begin_anew()
            if "decision" in following.meta or count % OFTEN == 0:
                self.node.control(entry.sender, Command.LOGGED, {"count": count})

    def _begin_anew(self) -> None:
        """Go by what the present leader has told, from its start."""
        self._entries = self._told
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
        reply.round = entry.round
        reply.time, reply.keys, reply.values, reply.meta = (
            entry.time,
            entry.keys,
            entry.values,
            entry.meta["meta"],
        )
        self.replies[entry.time, address] = reply
