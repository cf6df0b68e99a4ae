"""Migration of a shard to a server that joins its chain: the copy, made while requests are served (paper, section 4.5).

    1. copy      the last member of the chain sends the learner a snapshot of the shard in chunks, and all later changes
    2. transfer  with the next view the learner is a member, and the chain takes the order of the ring

The first stage is here, as far as it does not concern the chain itself: see `mpips.server.replication`. The second is
`with_learner_joined` and `with_ring_order` in `mpips.cluster.view`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mpips.server.shard import Shard
from mpips.server.shard_snapshot import pack
from mpips.storage.disk.buffer import Buffer
from mpips.storage.disk.store import Store
from mpips.transport.message import Command, Kind, Message

Send = Callable[[int, Message], None]
CHUNK = 1 << 20
"""Bytes in a chunk of a copy; sent as words of 8 bytes."""
WINDOW = 4
"""Unacknowledged chunks at once."""


class RateLimit:
    """Rate limit of copies: bytes per second (0: no limit) in all."""

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._rate, self._now, self._free = rate, now, 0.0

    def may(self) -> bool:
        """Return whether a chunk may be sent now."""
        return self._rate == 0 or self._now() >= self._free

    def sent(self, size: int) -> None:
        """Record that `size` bytes were sent."""
        if self._rate:
            self._free = max(self._free, self._now()) + size / self._rate


class OutgoingCopy:
    """A copy of a shard, as it is now, that is sent to a learner."""

    def __init__(self, shard: Shard) -> None:
        self._number, self._changes, self._packed = shard.number, shard.changes, pack(shard)
        self._count = -(-len(self._packed) // CHUNK)
        # Chunks that were sent, and acknowledged.
        self._next = self._acknowledged = 0

    def send_chunks(self, learner: int, send: Send, rate_limit: RateLimit) -> None:
        """Send as many chunks as may be unacknowledged, within the rate limit."""
        while self._next < self._count and self._next < self._acknowledged + WINDOW and rate_limit.may():
            chunk = self._packed.read(self._next * CHUNK, (self._next + 1) * CHUNK).view(np.int64)
            message = Message(
                Kind.CONTROL, Command.COPY_CHUNK, shard=self._number, time=self._changes, round=self._next
            )
            message.values, message.meta = chunk, {"of": self._count}
            send(learner, message)
            rate_limit.sent(chunk.nbytes)
            self._next += 1

    def acknowledged(self) -> None:
        """Count an acknowledged chunk."""
        self._acknowledged += 1


class IncomingCopy:
    """The chunks of a copy that a learner has received; on disk, if it has a `store`."""

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._raw: Buffer | None = None
        self._received: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._received)

    def add(self, chunk: Message) -> Buffer | None:
        """Take a chunk; return the whole copy if this completes it."""
        if self._raw is None:
            self._raw = Buffer(chunk.meta["of"] * CHUNK, self._store)
        assert chunk.values is not None
        self._raw.write(chunk.round * CHUNK, chunk.values.reshape(-1).view(np.uint8))
        self._received.add(chunk.round)
        if chunk.round + 1 == chunk.meta["of"]:
            self._raw.cut(chunk.round * CHUNK + chunk.values.nbytes)
        return self._raw if len(self._received) == chunk.meta["of"] else None

    def clear(self) -> None:
        """Drop all chunks."""
        self._received.clear()
        self._raw = None
