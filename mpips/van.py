"""The van moves messages between ranks. Nothing else in mpips sends or receives point-to-point.

`Van` is what the rest of the system sees; `MPIVan` is the real one and `mpips.twin.TwinVan` its in-memory twin, and
both pass the same conformance suite. One thread owns a van.

The van promises little, on purpose: messages arrive whole or not at all, in no order, and the twin may also drop or
repeat them. Order, exactly-once and flow control are the business of `mpips.task`.

On MPI, a message is one frame under the tag `FRAME`; when its payload is large, keys and values follow as buffers
under the tag `BODY`, sent from and received into the arrays themselves. MPI keeps the order of messages between two
ranks under one tag, so the bodies of a frame are the next ones from its sender. Frames are found by matched probe (a
probe and a receive cannot race), and whatever is being sent is kept alive by the outbox until MPI is done with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from mpi4py import MPI

from mpips.errors import ClosedError
from mpips.message import Message, bodies, decode, encode

FRAME, BODY = 1, 2
_PIECE = 1 << 30  # bytes: more than 2 GiB at once is refused by some
_MANY = 64  # sends in the outbox from which on it is swept whole
_SET_TIMER_SLACK = 29  # linux/prctl.h


class Van(Protocol):
    """Moves messages for one rank."""

    rank: int
    size: int
    sent_bytes: int
    received_bytes: int

    def send(self, dest: int, message: Message) -> None:
        """Send without blocking. The message's arrays must not be written until it was delivered."""

    def receive(self) -> Message | None:
        """Give one message that has arrived whole, or None. Makes progress on sends."""

    def idle(self) -> None:
        """Tell the van that its rank has nothing to do; it may yield or sleep a little."""

    def pending(self) -> int:
        """Count the sends that are not yet complete."""

    def now(self) -> float:
        """Seconds on this van's clock."""

    def close(self) -> None:
        """Stop moving messages; idempotent."""


class Backoff:
    """How to wait without burning a core: yield at first, then sleep for a share of the time waited so far.

    For `patience` seconds it only yields, so that a short round trip never meets a sleep: on a virtual machine
    to wake up costs a tenth of a millisecond, as much as the round trip. From then on each sleep is a sixteenth
    of the wait so far, `cap` at most: what came late is heard at most a sixteenth later, and a rank that waits
    long costs nearly nothing to those who share its cores.
    """

    def __init__(
        self, patience: float = 1e-3, cap: float = 0.001, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._patience, self._cap, self._sleep = patience, cap, sleep
        self._since: float | None = None

    def reset(self) -> None:
        """There was progress."""
        self._since = None

    def wait(self) -> None:
        """There was none."""
        now = time.perf_counter()
        if self._since is None:
            self._since = now
        waited = now - self._since
        if waited < self._patience:
            os.sched_yield()
        else:
            self._sleep(min(waited / 16, self._cap))


def sharpen_sleep() -> None:
    """Let this process's sleeps end when they should: Linux rounds them up by 50 microseconds unless told not to."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_TIMER_SLACK, 1, 0, 0, 0)


def _pieces(buffer: memoryview) -> list[memoryview]:
    """Cut a buffer into pieces whose size every MPI takes."""
    return [buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)]


class _Incoming:
    """A message whose keys and values are still on their way."""

    __slots__ = ("message", "requests")

    def __init__(self, message: Message, requests: list[MPI.Request]) -> None:
        self.message, self.requests = message, requests


class MPIVan:
    """A van over an MPI communicator; see `Van`."""

    def __init__(self, comm: MPI.Intracomm, backoff: Backoff | None = None) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.sent_bytes = self.received_bytes = 0
        self._comm: MPI.Intracomm | None = comm
        self._status = MPI.Status()
        self._outbox: deque[tuple[MPI.Request, object]] = deque()
        self._incoming: list[_Incoming] = []
        self._backoff = backoff or Backoff()
        sharpen_sleep()

    def _open(self) -> MPI.Intracomm:
        if self._comm is None:
            raise ClosedError("this van is closed")
        return self._comm

    def send(self, dest: int, message: Message) -> None:
        comm = self._open()
        frame, buffers = encode(message)
        request = comm.Isend((frame, MPI.BYTE), dest, FRAME)
        self.sent_bytes += len(frame)
        if buffers or not request.Test():
            self._outbox.append((request, frame))
        for buffer in buffers:
            for piece in _pieces(buffer):
                self._outbox.append((comm.Isend((piece, MPI.BYTE), dest, BODY), (piece, message)))
            self.sent_bytes += len(buffer)

    def receive(self) -> Message | None:
        comm = self._open()
        outbox = self._outbox
        while outbox and outbox[0][0].Test():
            outbox.popleft()
        if len(outbox) > _MANY:
            self.pending()  # one slow receiver must not keep what others have taken
        if self._incoming:
            for position, incoming in enumerate(self._incoming):
                if all(request.Test() for request in incoming.requests):
                    del self._incoming[position]
                    self._backoff.reset()
                    return incoming.message
        status = self._status
        arrived = comm.Improbe(MPI.ANY_SOURCE, FRAME, status)
        if arrived is None:
            return None
        self._backoff.reset()
        frame = bytearray(status.Get_count(MPI.BYTE))
        source = status.Get_source()
        arrived.Recv((frame, MPI.BYTE))
        self.received_bytes += len(frame)
        message, key_bytes, value_bytes = decode(frame)
        if not key_bytes and not value_bytes:
            return message
        self.received_bytes += key_bytes + value_bytes
        requests = [
            comm.Irecv((piece, MPI.BYTE), source, BODY) for body in bodies(message) for piece in _pieces(body)
        ]
        self._incoming.append(_Incoming(message, requests))
        return None

    def idle(self) -> None:
        self._backoff.wait()

    def pending(self) -> int:
        self._outbox = deque(entry for entry in self._outbox if not entry[0].Test())
        return len(self._outbox)

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self._comm = None
