"""The parts of a caller's tasks, and the caller's state for each address that it sends parts to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from mpips.tasks.retransmission import Timer
from mpips.tasks.task import Task
from mpips.transport.message import Command, Message


class Request(Protocol):
    """A task whose parts may be sent by the client fast path."""

    @property
    def command(self) -> Command:
        """Its command."""

    @property
    def addresses(self) -> Sequence[int]:
        """The addresses of its parts."""

    def send(self, time: int, acked: int) -> Sequence[int]:
        """Send the parts by the client fast path; return the slot of each, -1 if it was not sent: none at all if no
        part was.
        """

    def make(self, number: int) -> Message:
        """Return the message of a part."""

    def __call__(self, number: int, reply: Message, /) -> None:
        """Take the reply to a part, if it is a message."""


def stamp(message: Message, time: int, address: int) -> None:
    """Set the fields of a request that identify its part."""
    message.time = time
    if address < 0:
        message.shard = ~address


class Part:
    """One part of a task, from its submission to its reply."""

    __slots__ = (
        "_message", "_request", "acknowledged", "address", "after", "number", "sent_at", "slot", "task",
    )  # fmt: skip

    def __init__(
        self,
        task: Task,
        number: int,
        address: int,
        message: Message | None,
        after: list[Task],
        request: Request | None = None,
    ) -> None:
        self.task, self.number, self.address, self.after = task, number, address, after
        self._message, self._request = message, request
        # The slot of the client fast path, if it was sent there.
        self.slot = -1
        self.sent_at = 0.0
        # Whether it was acknowledged before it was answered.
        self.acknowledged = False

    @property
    def command(self) -> Command:
        """The command of the part."""
        return self._message.command if self._request is None else self._request.command  # type: ignore[union-attr]

    @property
    def message(self) -> Message:
        """The request as a message; for a part of the fast path it is made on demand."""
        if self._message is None:
            assert self._request is not None
            self._message = self._request.make(self.number)
            stamp(self._message, self.task.time, self.address)
        return self._message

    @message.setter
    def message(self, message: Message) -> None:
        self._message = message


class Peer:
    """A caller's state of one address."""

    __slots__ = ("ahead", "queue", "timer", "unanswered")

    def __init__(self, timer: Timer | None) -> None:
        # None where no messages are lost
        self.timer = timer
        # By time: parts that were answered ahead.
        self.ahead: dict[int, Part] = {}
        # By time, in the order of sending.
        self.unanswered: dict[int, Part] = {}
        self.queue: deque[Part] = deque()

    def waiting(self) -> list[Part]:
        """Return the parts without a final answer, in the order of sending."""
        return [*self.ahead.values(), *self.unanswered.values()]
