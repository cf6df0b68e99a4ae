"""What each rank has sent again, and why, as the leader knows it while the run goes on: `mpips ctl RUN status` asks.

A rank tells the leader of its counts when they have changed, at most once a second: where nothing is sent again, that
costs nothing.
"""

from __future__ import annotations

from collections import Counter

from mpips.cluster.node import Node
from mpips.transport.message import Command, Message

OFTEN = 1.0
"""Seconds between two messages about it."""


class Repeats:
    """The counts of one rank (`Node.again`), and at the leader those of all."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._looked = 0.0
        self._told: tuple[int, Counter[str]] = (node.rank, Counter())  # whom, and of what
        self._others: dict[int, Counter[str]] = {}
        node.controls[Command.SENT_AGAIN] = self._hear
        node.on_tick.append(self.tick)

    def tick(self) -> None:
        """Tell the leader what is new, about once a second; a new leader all."""
        now, node = self.node.van.now(), self.node
        if now < self._looked + OFTEN:
            return
        self._looked = now
        leader = node.view.leader
        if leader != node.rank and node.again and self._told != (leader, node.again):
            self._told = (leader, node.again.copy())
            node.control(leader, Command.SENT_AGAIN, dict(node.again))

    def _hear(self, message: Message) -> None:
        self._others[message.sender] = Counter({str(cause): int(n) for cause, n in message.meta.items()})

    def total(self) -> Counter[str]:
        """Count at the leader what was sent again by all ranks, by cause."""
        return sum(self._others.values(), self.node.again.copy())
