"""Pushes that were answered ahead: their tasks are finished, but the pushes are not yet durable.

A push into an aggregation may be answered ahead, so that its values can be used at once. The part is kept, and sent
again to a new holder of the shard, until an ACKNOWLEDGED message says that all members of the chain have it. Parts that
are sent to that shard meanwhile depend on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mpips.tasks.part import Part, Peer

AHEAD = 1
"""In `acked` of a reply: the result is valid but not yet durable; an ACKNOWLEDGED message follows (`acknowledge`)."""


class Ahead:
    """The parts of a caller that were answered ahead; those of an address are in its `Peer.ahead`."""

    def __init__(self, peers: Mapping[int, Peer]) -> None:
        self.count = 0
        """Parts that are not acknowledged yet."""
        self._peers = peers
        # Addresses of parts that were answered ahead since `newly`.
        self._fresh: set[int] = set()

    def oldest(self) -> int:
        """Return the least time of a part that is not acknowledged; there must be one."""
        return min(min(peer.ahead) for peer in self._peers.values() if peer.ahead)

    def keep(self, peer: Peer, part: Part) -> None:
        """Keep a part that was answered ahead, with copies of its arrays, since its caller may reuse them."""
        message = part.message
        if message.keys is not None and message.keys.flags.writeable:
            message.keys = message.keys.copy()
        if message.unsent_keys is not None and message.unsent_keys.flags.writeable:
            message.unsent_keys = message.unsent_keys.copy()
        if message.values is not None:
            message.values = message.values.copy()
        peer.ahead[part.task.time] = part
        self.count += 1
        self._fresh.add(part.address)

    def acknowledge(self, address: int, time: int) -> None:
        """Record that all members of the chain have a part that was answered ahead."""
        peer = self._peers.get(address)
        if peer is None:
            return
        if time in peer.unanswered:
            peer.unanswered[time].acknowledged = True
        self.drop(peer, time)

    def drop(self, peer: Peer, time: int) -> None:
        """Do not keep a part any more, if it was answered ahead."""
        if peer.ahead.pop(time, None) is not None:
            self.count -= 1

    def ask_again(self, addresses: Iterable[int]) -> None:
        """Count all parts of addresses as new, since the addresses have moved to another rank."""
        self._fresh.update(addresses)

    def newly(self) -> list[tuple[int, int]]:
        """Return (address, latest time) of parts answered ahead, for addresses with new ones since the last call."""
        fresh, self._fresh = self._fresh, set()
        return [
            (address, max(self._peers[address].ahead))
            for address in sorted(fresh)
            if self._peers[address].ahead
        ]
