"""Acknowledgements of pushes that were answered ahead, that is, answered before replication (paper, section 4.4).

A push of a round may be answered before it is on all copies. Once it is on all copies, its caller receives an
acknowledgement: it is held and sent with the next answer to this caller. A caller that has nothing else to wait for
requests the acknowledgements up to a push (ASK_ACKNOWLEDGED message); they are then sent in an ACKNOWLEDGED message as
soon as the last of these pushes is on all copies.

The time up to which a caller has requested acknowledgements only grows, and is kept as long as the caller lives. So
ASK_ACKNOWLEDGED messages may arrive in any order, and at a new primary before it has executed the push again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

Push = tuple[int, int]
"""A push of a caller: its shard, and its time."""


class Acknowledgements:
    """A server's acknowledgements, by caller; `send(origin, pushes)` sends some of them. See the module."""

    def __init__(self, send: Callable[[int, tuple[Push, ...]], None]) -> None:
        self._send_pushes = send
        # Pushes answered ahead that are not on all copies yet.
        self._pending: dict[int, set[Push]] = {}
        # Pushes on all copies whose acknowledgement is not sent yet.
        self._held: dict[int, list[Push]] = {}
        # By caller and shard: the last push that the caller has asked for.
        self._asked: dict[int, dict[int, int]] = {}
        # Callers that have asked for a push that is on all copies now.
        self._due: set[int] = set()

    def expect(self, origin: int, push: Push) -> None:
        """Record that a push was answered ahead."""
        self._pending.setdefault(origin, set()).add(push)

    def add(self, origin: int, push: Push) -> None:
        """Record that all copies have a push; if it was asked for, it is due at the next `send_due`."""
        self._held.setdefault(origin, []).append(push)
        self._pending.get(origin, set()).discard(push)
        if self._has_asked(origin, push):
            self._due.add(origin)

    def repeat(self, origin: int, push: Push) -> None:
        """Acknowledge a push again: the first acknowledgement was lost."""
        self.add(origin, push)
        self._send(origin)

    def take(self, origin: int) -> tuple[Push, ...]:
        """Remove and return the held acknowledgements of a caller, to be sent with the next message to it."""
        return tuple(self._held.pop(origin, ()))

    def ask(self, origin: int, pushes: Iterable[Push]) -> None:
        """Record that a caller waits for its pushes up to these, each at its shard; send the due acknowledgements."""
        asked = self._asked.setdefault(origin, {})
        for shard, time in pushes:
            asked[shard] = max(time, asked.get(shard, time))
        self._due.add(origin)
        self.send_due()

    def send_due(self) -> None:
        """Send each caller its requested acknowledgements in one message, once all these pushes are on all copies."""
        due, self._due = self._due, set()
        for origin in sorted(due):
            # The last push that it waits for makes it due again.
            if not any(self._has_asked(origin, push) for push in self._pending.get(origin, ())):
                self._send(origin)

    def retain(self, shards: Collection[int], lives: Callable[[int], bool]) -> None:
        """Drop the entries of lost callers, and stop waiting for pushes to other shards than these.

        Their callers ask the new primaries.
        """
        for table in (self._pending, self._held, self._asked):
            for origin in [each for each in table if not lives(each)]:
                del table[origin]
        for origin, pending in self._pending.items():
            self._pending[origin] = {push for push in pending if push[0] in shards}
        self._due.update(self._asked)
        self.send_due()

    def _send(self, origin: int) -> None:
        if pushes := self.take(origin):
            self._send_pushes(origin, pushes)

    def _has_asked(self, origin: int, push: Push) -> bool:
        return push[1] <= self._asked.get(origin, {}).get(push[0], -1)
