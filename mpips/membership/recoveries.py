"""Recoveries: when all servers have the view without a lost rank, as the leader measures it."""

from __future__ import annotations

from collections.abc import Collection

from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.transport.message import Message


class Recoveries:
    """The recoveries that this leader has seen."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.done: dict[int, float] = {}
        """By lost rank: the wall time at which all servers had the view without it."""
        # By epoch: servers that have not acknowledged the view.
        self._unacknowledged: dict[int, set[int]] = {}
        # By epoch: the ranks lost in it.
        self._lost_at: dict[int, list[int]] = {}

    def begin(self, view: View, gone: Collection[int]) -> None:
        """Record that a view without these ranks is sent to all servers."""
        if gone:
            self._unacknowledged[view.epoch] = {rank for rank in view.servers if rank != self._node.rank}
            self._lost_at[view.epoch] = list(gone)

    def receive_view_seen(self, message: Message) -> None:
        """Record that a server has a view."""
        for epoch, missing in self._unacknowledged.items():
            if epoch <= int(message.meta["epoch"]):
                missing.discard(message.sender)
        self.check()

    def check(self) -> None:
        """Record the recoveries that are complete."""
        alive = set(self._node.view.alive)
        for epoch in [epoch for epoch, missing in self._unacknowledged.items() if not missing & alive]:
            for rank in self._lost_at.pop(epoch):
                self.done[rank] = self._node.van.wall()
            del self._unacknowledged[epoch]
