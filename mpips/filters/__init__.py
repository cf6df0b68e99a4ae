"""Filters: what a message goes through before it is sent and after it has arrived (paper, section 5.1).

A filter is a named tuple of pure functions with explicit state, one state per peer and direction. A chain is a
loop over filters: encode in order, decode in reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mpips.message import Message

State = Any


class Filter(NamedTuple):
    """One filter: `init()` gives a peer's first state, both functions the next state and the message to pass on."""

    name: str
    init: Callable[[], State]
    encode: Callable[[State, Message], tuple[State, Message]]
    decode: Callable[[State, Message], tuple[State, Message]]


KNOWN: dict[str, Callable[..., Filter]] = {}
"""The filters that a job file may name, each with the function that makes it from its parameters."""


class Chain:
    """The filters of one direction, with their states for each peer."""

    def __init__(self, filters: Sequence[Filter] = ()) -> None:
        self.filters = tuple(filters)
        self._states: dict[tuple[int, str], list[State]] = {}

    def encode(self, peer: int, message: Message) -> Message:
        """Pass a message for `peer` through the chain."""
        if not self.filters:
            return message
        states = self._of(peer, "encode")
        for position, step in enumerate(self.filters):
            states[position], message = step.encode(states[position], message)
        return message

    def decode(self, peer: int, message: Message) -> Message:
        """Undo, for a message from `peer`, what its sender's chain did."""
        if not self.filters:
            return message
        states = self._of(peer, "decode")
        for position in range(len(self.filters) - 1, -1, -1):
            states[position], message = self.filters[position].decode(states[position], message)
        return message

    def _of(self, peer: int, direction: str) -> list[State]:
        key = (peer, direction)
        if key not in self._states:
            self._states[key] = [step.init() for step in self.filters]
        return self._states[key]
