"""A node's outbox: sends each message at once, later, or together with others that go to the same rank.

Small messages of one kind to one rank are gathered during a turn, and sent as one message at its end. A turn ends
when no message has arrived, or after `TURN` received ones, so an idle rank never waits for a gathered message. Injected
faults drop, duplicate, delay or keep back messages here; then none are gathered.
"""

from __future__ import annotations

from collections import Counter
from heapq import heappop, heappush
from itertools import count

from mpips.cluster.faults import NORMAL, Faults
from mpips.cluster.observer import Observers
from mpips.transport.header import HEADER_BYTES
from mpips.transport.message import Kind, Message, bundle
from mpips.transport.van import Van

TURN = 16
"""Messages that a rank receives at most before it sends the gathered ones."""
MOST_GATHERED = 16 * 1024
"""Largest size in bytes of gathered messages."""
LARGE = 4096
"""Size in bytes from which on a message is sent alone."""


class Outbox:
    """Sends the messages of a node, each stamped with the van's rank and epoch."""

    def __init__(self, van: Van, faults: Faults | None, observers: Observers) -> None:
        self._van, self._faults, self._observers = van, faults, observers
        self._delayed: list[tuple[float, int, int, Message]] = []
        self._order = count()
        # By receiver: messages that a failed link keeps back.
        self._kept: dict[int, list[Message]] = {}
        # Ranks that are excluded, and get what was kept for them before: such as the view without them.
        self._leaving: set[int] = set()
        self._gathered: dict[tuple[int, Kind], list[Message]] = {}
        self._gathered_bytes: Counter[tuple[int, Kind]] = Counter()
        self.turn = 0
        """Messages that were received in this turn; after `TURN` the node calls `flush`."""

    def send(self, dest: int, message: Message) -> None:
        """Send one message, subject to injected faults; messages to lost ranks are dropped."""
        self._stamp(message)
        if self._faults is None:
            self._van.send(dest, message)
            return
        if dest in self._leaving:
            return
        # Control messages are not retransmitted.
        for delay in NORMAL if message.kind is Kind.CONTROL else self._faults.message():
            if delay > 0:
                heappush(self._delayed, (self._van.now() + delay, next(self._order), dest, message))
            else:
                self._send_if_linked(self._faults, dest, message)

    def _send_if_linked(self, faults: Faults, dest: int, message: Message) -> None:
        """Send a message, or keep it until the network is whole again; those to one rank stay in order."""
        if dest in self._kept or faults.splits.keeps(dest):
            self._kept.setdefault(dest, []).append(message)
        else:
            self._van.send(dest, message)

    def exclude(self, rank: int) -> None:
        """Send nothing more to a rank, and receive nothing from it; what a failed link keeps arrives, as over TCP."""
        if rank in self._kept:
            self._leaving.add(rank)
        else:
            self._van.exclude(rank)

    def send_soon(self, dest: int, message: Message) -> None:
        """Send one message at the end of this turn, together with others of its kind to the same rank."""
        size = HEADER_BYTES + message.payload_bytes + 16 * len(message.after)
        if self._faults is not None or size > LARGE:
            self.send(dest, message)
            return
        self._stamp(message)
        key = dest, message.kind
        self._gathered.setdefault(key, []).append(message)
        self._gathered_bytes[key] += size
        if self._gathered_bytes[key] > MOST_GATHERED:
            self._send_gathered(key)

    def _stamp(self, message: Message) -> None:
        message.sender, message.epoch = self._van.rank, self._van.epoch
        for sent in self._observers.sent:
            sent(message)

    def _send_gathered(self, key: tuple[int, Kind]) -> None:
        messages = self._gathered.pop(key)
        del self._gathered_bytes[key]
        self._van.send(key[0], messages[0] if len(messages) == 1 else bundle(messages))

    def flush(self) -> None:
        """End the turn: send the gathered messages."""
        self.turn = 0
        for key in list(self._gathered):
            self._send_gathered(key)

    def send_delayed(self, now: float) -> None:
        """Send the messages whose injected delay is over, and those that a failed link has kept back."""
        assert self._faults is not None
        for dest in [dest for dest in self._kept if not self._faults.splits.keeps(dest)]:
            for kept in self._kept.pop(dest):
                self._van.send(dest, kept)
            if dest in self._leaving:
                self._leaving.remove(dest)
                self._van.exclude(dest)
        while self._delayed and self._delayed[0][0] <= now:
            _, _, dest, late = heappop(self._delayed)
            self._send_if_linked(self._faults, dest, late)
