"""Simulated servers with a service time: delays under which messages to a server wait for each other.

The twin's ranks do their work in no time. Here each message to a server takes some, one after the other, and more while
the server is slow. So load has a realistic effect: messages to a slow server are late, and queue.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence

from mpips.rank.simulation import Internals
from mpips.transport.message import Message

SERVICE = 2e-3
"""Seconds (fake) for each message."""


class Queueing:
    """The delays; see the module.

    Args:
        internals: shows the network's time.
        servers: the ranks for which messages queue.
        pulse: when the servers are slow: (begin, end), seconds.
        factor: how many times longer each message takes then.
    """

    loses = False

    def __init__(
        self,
        internals: Internals,
        servers: Collection[int],
        pulse: tuple[float, float] = (0.0, 0.0),
        factor: float = 50.0,
    ) -> None:
        self._internals, self._servers, self._pulse, self._factor = internals, servers, pulse, factor
        self._waiting: defaultdict[int, deque[float]] = defaultdict(deque)
        self.most = 0
        """The most messages that have waited for a server at once."""

    def __call__(self, source: int, dest: int, message: Message) -> Sequence[float]:
        """Return how much later a message is taken."""
        if dest not in self._servers:
            return (0.0,)
        assert self._internals.network is not None
        now, queue = self._internals.network.time, self._waiting[dest]
        while queue and queue[0] <= now:
            queue.popleft()
        begin = max(now, queue[-1] if queue else now)
        slow = self._pulse[0] <= begin < self._pulse[1]
        queue.append(begin + SERVICE * (self._factor if slow else 1.0))
        self.most = max(self.most, len(queue))
        return (queue[-1] - now,)
