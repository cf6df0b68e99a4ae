"""Retransmissions of each rank by cause, collected at the leader for `mpips ctl RUN status`.

A rank sends the leader its counts when they have changed, at most once a second: without retransmissions this
costs nothing.
"""

from __future__ import annotations

from collections import Counter

from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.transport.message import Command, Message

REPORT_INTERVAL = 1.0
"""Least number of seconds between two reports."""


class RetransmissionCounts:
    """The retransmissions of one rank (`Node.again`), and at the leader those of all ranks."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._checked_at = 0.0
        # The last report: to which leader, and its counts.
        self._reported: tuple[int, Counter[str]] = (node.rank, Counter())
        self._others: dict[int, Counter[str]] = {}
        node.register(Registration(controls={Command.SENT_AGAIN: self._receive}, ticks=(self.tick,)))

    def tick(self) -> None:
        """Report changed counts to the leader, at most once a second; a new leader gets a report too."""
        now, node = self.node.van.now(), self.node
        if now < self._checked_at + REPORT_INTERVAL:
            return
        self._checked_at = now
        leader = node.view.leader
        if leader != node.rank and node.resent and self._reported != (leader, node.resent):
            self._reported = (leader, node.resent.copy())
            node.control(leader, Command.SENT_AGAIN, dict(node.resent))

    def _receive(self, message: Message) -> None:
        self._others[message.sender] = Counter({str(cause): int(n) for cause, n in message.meta.items()})

    def total(self) -> Counter[str]:
        """Return at the leader the retransmissions of all ranks, by cause."""
        return sum(self._others.values(), self.node.resent.copy())
