"""What the van over MPI is receiving: frames, and messages whose keys and values follow their frame.

A frame that is not complete yet (its sender may have been stopped) delays later frames from the same sender, so that
each gets its own bodies.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mpi4py import MPI

from mpips.transport.message import Message
from mpips.transport.mpi.deaths import Deaths


class Frame:
    """A frame that is being received."""

    __slots__ = ("buffer", "request", "source")

    def __init__(self, source: int, buffer: bytearray | memoryview, request: MPI.Request) -> None:
        self.source, self.buffer, self.request = source, buffer, request


class Body:
    """A message whose keys and values are being received."""

    __slots__ = ("message", "requests", "source")

    def __init__(self, source: int, message: Message, requests: list[MPI.Request]) -> None:
        self.source, self.message, self.requests = source, message, requests


class Incoming:
    """The frames and messages that are being received, in the order in which their receives were started."""

    def __init__(self, deaths: Deaths) -> None:
        self.frames: list[Frame] = []
        self.messages: list[Body] = []
        self._deaths = deaths

    def next_frame(self) -> Frame | None:
        """Return the next late frame that is complete, in the order of each sender."""
        behind = set()
        for position, late in enumerate(self.frames):
            if late.source in behind:
                continue
            try:
                if not late.request.Test():
                    behind.add(late.source)
                    continue
            except MPI.Exception as error:
                del self.frames[position]
                self._deaths.note(error, late.source, incomplete=True)
                return None
            del self.frames[position]
            return late
        return None

    def next_message(self) -> Message | None:
        """Return a message whose keys and values are complete."""
        for position, incoming in enumerate(self.messages):
            try:
                if not all(request.Test() for request in incoming.requests):
                    continue
            except MPI.Exception as error:
                del self.messages[position]
                self.drop(incoming)
                self._deaths.note(error, incoming.source, incomplete=True)
                return None
            del self.messages[position]
            return incoming.message
        return None

    def arriving(self, source: int) -> bool:
        """Return whether something from a rank is being received."""
        return any(frame.source == source for frame in self.frames) or any(
            each.source == source for each in self.messages
        )

    def finish(self, now: Callable[[], float], patience: float) -> None:
        """Wait, at most `patience` seconds, until the keys and values of all messages are complete."""
        deadline = now() + patience
        for incoming in list(self.messages):
            try:
                while not all(request.Test() for request in incoming.requests) and now() < deadline:
                    pass
            except MPI.Exception as error:
                self.messages.remove(incoming)
                self.drop(incoming)
                self._deaths.note(error, incoming.source, incomplete=True)

    def exclude(self, rank: int) -> None:
        """Abandon incomplete receives from a rank."""
        for late in self.frames:
            if late.source == rank:
                self._deaths.abandoned.append((late.request, late.buffer))
        self.frames = [late for late in self.frames if late.source != rank]
        for incoming in self.messages:
            if incoming.source == rank:
                self.drop(incoming)
        self.messages = [incoming for incoming in self.messages if incoming.source != rank]

    def drop(self, incoming: Body) -> None:
        """Abandon an incomplete message, but keep the arrays that MPI may still write into."""
        for request in incoming.requests:
            # The memory may be the caller's, who may use it again at once.
            with suppress(MPI.Exception):
                request.Cancel()
            self._deaths.abandoned.append((request, incoming.message))
