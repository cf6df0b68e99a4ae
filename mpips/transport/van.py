"""The van moves messages between ranks. Nothing else in mpips sends or receives point-to-point.

`Van` is what the rest of the system sees; `MPIVan` is the real one and `mpips.transport.in_memory.TwinVan` its
in-memory twin, and both pass the same conformance suite. One thread owns a van.

The van promises little, on purpose: messages arrive whole or not at all, in no order, and the twin may also drop or
repeat them. Order, exactly-once and flow control are the business of `mpips.tasks.task`.

On MPI, a message is one frame under the tag `FRAME`; when its payload is large, keys and values follow as buffers
under the tag `BODY`, sent from and received into the arrays themselves. MPI keeps the order of messages between two
ranks under one tag, so the bodies of a frame are the next ones from its sender. Frames are found by matched probe (a
probe and a receive cannot race), and whatever is being sent is kept alive by the outbox until MPI is done with it.
A frame that takes a while (its sender may have been stopped in the middle) is waited for like the bodies are, and
keeps those after it from the same sender waiting, so that each finds its own bodies.

Ranks may die. Where MPI survives that (Open MPI under `mpirun --with-ft ulfm`), any call may report a death: each is
acknowledged and told by `failed()`, what can no longer be whole is dropped, and the communicator is used on as it is,
since nothing here is collective. `exclude` goes further: that rank need not be dead, only be given up, so buffers that MPI
may still touch go to a graveyard rather than away.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import get_ident
from typing import Any, Protocol

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpips.errors import ClosedError, UsageError
from mpips.transport.backoff import Backoff, sharpen_sleep
from mpips.transport.buffer_pool import LEAST, BufferPool
from mpips.transport.fastpath_client import (
    ANSWERED,
    BYTES,
    COMING,
    PLACE,
    WAITS,
    FastPathClient,
    ask,
    hear,
    take_answer,
)
from mpips.transport.fastpath_server import serve
from mpips.transport.fastpath_table import FastPathTable
from mpips.transport.message import (
    ANSWER,
    HEADER_BYTES,
    REACHED,
    ROUND_AT,
    Kind,
    Message,
    bodies,
    decode,
    encode,
)
from mpips.transport.mpi_abi import STATUS_BYTES, library
from mpips.transport.mpi_kernels import (
    BIG,
    BODY,
    BROKEN,
    BUSY,
    CELLS,
    ERROR,
    FRAME,
    FRAME_ROOM,
    FRAMES,
    FROM,
    LATE,
    LATE_BODY,
    LOST,
    MEMORY,
    MESSAGE,
    NEXT,
    NOTHING,
    POSTED,
    RECEIVED,
    REQUEST,
    SENT,
    SERVED,
    SIZE,
    SLEEPERS,
    STATUS,
    URGENT,
    WANTED,
    unsent,
)  # fmt: skip
from mpips.transport.process_memory import ProcessMemory
from mpips.transport.wakeup import Wakeup

_PIECE = 1 << 30  # bytes: more than 2 GiB at once is refused by some
_MANY = 64  # sends in the outbox from which on it is swept whole
_AT_ONCE = 1024  # bytes: so little travels with its envelope, so that to receive it takes no wait
LANDING = 2.0
"""Seconds that the rest of a message whose beginning is here may take, of a rank that is alive."""
LOOKS = 32
"""How often a rank that has nothing else to do looks for a message before it takes a breath."""


Rows = NDArray[Any]


class Van(Protocol):
    """Moves messages for one rank."""

    rank: int
    size: int
    sent_bytes: int
    sent_messages: int
    received_bytes: int
    landing: Callable[[Message], NDArray[Any] | None]
    """Where the values of a message that comes in parts are to stand; None: in an array of their own."""
    lane: FastPathTable | None
    """What the van may answer without asking, if it can; see `mpips.transport.fastpath_table`."""
    epoch: int
    """That of the requests that it may answer so."""
    buffers: BufferPool
    """Memory for large messages."""

    @property
    def survives(self) -> bool:
        """Whether the other ranks live on when one dies, and learn of it."""

    def send(self, dest: int, message: Message) -> None:
        """Send without blocking. The message's arrays must not be written until it was delivered.

        What is sent to a rank that has failed or was excluded is dropped.
        """

    def receive(self) -> Message | None:
        """Give one message that has arrived whole, or None. Makes progress on sends.

        `ANSWER` stands for the answer to what was asked with `ask`; `slot` tells to which.
        """

    slot: int

    def ask(
        self,
        dest: int,
        head: int,
        time: int,
        acked: int,
        raw: NDArray[np.uint8],
        first: int,
        nbytes: int,
        kind: int,
        pushes: bool,
        fresh: bool,
    ) -> int:
        """Send the request whose header (`mpips.transport.message.heading`) is at an address by the shortest way;
        give its slot.

        A push takes `nbytes` of `raw` from byte `first` on, numbers of the type `kind` as on the wire; a pull wants its
        answer there, in memory that is nobody else's if it is `fresh`. Whoever gets -1 instead sends a message.
        """

    def version(self) -> int:
        """Say after how many changes of its shard what is answered at `slot` was read; -1: it was a change."""

    def withdraw(self, slot: int) -> None:
        """Take the answer at a slot as a message like any other, should it still come."""

    def idle(self) -> None:
        """Tell the van that its rank has nothing to do; it may yield or sleep a little."""

    def finish_receives(self) -> None:
        """Wait for the rest of what has begun to arrive, from ranks that are not given up: it is on its way.

        What is asked of somebody else after that is not written over by the answer of whoever was asked before.
        """

    def arriving(self, source: int) -> bool:
        """Tell whether a message of a rank has begun to arrive and is not whole: later ones may overtake its end."""

    def unsent(self, dest: int) -> int:
        """Count the bytes of keys and values that `send` was given for a rank and that have not left yet."""

    def pending(self) -> int:
        """Count the sends that are not yet complete, to ranks that are neither known to have failed nor excluded."""

    def failed(self) -> list[int]:
        """Give the ranks that are newly known to be dead, each once, but none that was excluded before.

        What had arrived from one of them may still be received. Raises nothing, whatever happens to other ranks.
        """

    def exclude(self, rank: int) -> None:
        """Forget a rank, dead or not: nothing is sent to it or received from it any more. Idempotent."""

    def now(self) -> float:
        """Seconds on this van's clock."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    def close(self) -> None:
        """Stop moving messages; idempotent."""


def _pieces(buffer: memoryview) -> list[memoryview]:
    """Cut a buffer into pieces whose size every MPI takes."""
    return [buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)]


_FT_ENABLE = "OMPI_MCA_mpi_ft_enable"
_DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)
"""Error classes by which MPI reports the death of a rank."""


def survives_deaths() -> bool:
    """Tell whether ranks live on when one dies: only with Open MPI, and only if its `mpirun` was told `--with-ft ulfm`.

    No call tells: without it, they all answer as if nobody had died.
    """
    asked = os.environ.get(_FT_ENABLE, "").lower() in ("1", "true", "yes", "on", "enabled")
    return asked and MPI.get_vendor()[0] == "Open MPI"


class _Frame:
    """A frame that is still on its way."""

    __slots__ = ("buffer", "request", "source")

    def __init__(self, source: int, buffer: bytearray | memoryview, request: MPI.Request) -> None:
        self.source, self.buffer, self.request = source, buffer, request


class _Incoming:
    """A message whose keys and values are still on their way."""

    __slots__ = ("message", "requests", "source")

    def __init__(self, source: int, message: Message, requests: list[MPI.Request]) -> None:
        self.source, self.message, self.requests = source, message, requests


class MPIVan:
    """A van over an MPI communicator whose errors return; see `Van`."""

    def __init__(
        self, comm: MPI.Intracomm, backoff: Backoff | None = None, wakeup: Wakeup | None = None
    ) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._owner = get_ident()
        self.survives = survives_deaths()
        self.sent_bytes = self.received_bytes = self.sent_messages = 0
        self._comm: MPI.Intracomm | None = comm
        self._status = MPI.Status()
        self._outbox: deque[tuple[MPI.Request, int, object]] = deque()
        self._frames: list[_Frame] = []
        self._incoming: list[_Incoming] = []
        self._lost: set[int] = set()  # who has failed, was excluded, or both
        self._ignored: set[int] = set()  # to whom: who was excluded, or died in the middle of a message
        self._news: list[int] = []
        self._acknowledged = 0
        self._abandoned: list[tuple[MPI.Request, object]] = []
        self._backoff = backoff or Backoff(wakeup=wakeup)
        self._wakeup = wakeup
        self._asleep: memoryview | bytes = wakeup.asleep if wakeup is not None else bytes(self.size)
        self._flags = wakeup.flags if wakeup is not None else np.zeros(2 * self.size, np.uint8)[::2]
        self._library = library(comm)
        self._memory = np.zeros(FRAMES + 1, np.int64)
        self._cells = self._memory[MEMORY - CELLS : MEMORY]
        self._statuses = np.zeros(STATUS_BYTES, np.uint8)
        self._frame = np.zeros(FRAME_ROOM, np.uint8)
        self._answer = self._frame
        self._looks = 1
        self.landing: Callable[[Message], NDArray[Any] | None] = lambda message: None
        self.lane: FastPathTable | None = None
        self.epoch = 0
        self.slot = -1
        self.buffers = BufferPool()
        self.process_memory = ProcessMemory(np.zeros(self.size, np.int64), np.zeros(0, np.uint8))
        self._desk = FastPathClient()
        self._open_desk()
        sharpen_sleep()

    def _open_desk(self) -> None:
        """Tell the compiled code where everything is."""
        if self._library is not None:
            desk = self._desk
            places = (self._statuses, self._frame, desk.asked, desk.heads, desk.tails, desk.frames)
            self._memory[: len(self._library)] = self._library
            self._memory[STATUS:] = [place.ctypes.data for place in places]

    def _open(self) -> MPI.Intracomm:
        if self._comm is None:
            raise ClosedError("this van is closed")
        self._check_thread()
        return self._comm

    def _check_thread(self) -> None:
        """Raise UsageError in a thread that does not own the van: MPI would end the run without a word of why."""
        if get_ident() != self._owner:
            raise UsageError(
                "push, pull, call and wait belong in the thread that mpips calls the program in, not in one that the "
                "program starts"
            )

    def send(self, dest: int, message: Message) -> None:
        comm = self._open()
        if dest in self._lost:
            return
        frame, buffers = encode(message)
        tag = URGENT if message.kind is Kind.CONTROL and not buffers else FRAME
        try:
            request = comm.Isend((frame, MPI.BYTE), dest, tag)
            self.sent_bytes += len(frame)
            self.sent_messages += 1
            if buffers or not request.Test():
                self._outbox.append((request, dest, frame))
            for buffer in buffers:
                for piece in _pieces(buffer):
                    request = comm.Isend((piece, MPI.BYTE), dest, BODY)
                    self._outbox.append((request, dest, (piece, message)))
                self.sent_bytes += len(buffer)
        except MPI.Exception as error:
            self._note_death(error, dest)
        else:
            self._wake(dest)

    def _wake(self, dest: int) -> None:
        """See to it that what was sent to a rank is heard; an answer may be about to come."""
        if self._asleep[dest]:
            assert self._wakeup is not None
            self._wakeup.wake(dest)
        if self._backoff.waiting:
            self._backoff.reset()

    def receive(self) -> Message | None:
        comm = self._open()
        if self._outbox:
            self._sweep()
        if self._incoming and (message := self._whole()) is not None:
            return message
        if self._frames and (message := self._late()) is not None:
            return message
        if self._library is not None and not self._frames:
            return self._from_loop()
        return self._probe(comm, URGENT) or self._probe(comm, FRAME)

    def _from_loop(self) -> Message | None:
        """Receive by the compiled loop, which at a server may answer by itself."""
        lane, cells = self.lane, self._cells
        if lane is None:
            looks, self._looks = self._looks, 1
            found = hear(self._memory, looks)
            self._count(cells)
            if found & 0xFF == ANSWERED:
                self.slot = found >> 8
                if self._desk.reached[self.slot]:
                    self._desk.kept[self.slot] = None
                self._backoff.reset()
                self._answer = self._frame
                return ANSWER
        else:
            cells[SERVED] = cells[SLEEPERS] = 0
            found = serve(
                self._library, cells, self._statuses, self._frame, self._looks, self.rank, self.epoch,
                lane.parts, lane.rows_of, lane.callers, lane.cache.table, lane.slots, lane.frames, lane.buffers,
                lane.landing, self._flags, lane.sleepers, self.process_memory.pids, lane.trail,
            )  # fmt: skip
            self._account(cells, lane)
        if cells[ERROR] and found != BROKEN:
            self._complain()
        if found == NOTHING:
            return None
        self._backoff.reset()
        source, size = int(cells[FROM]), int(cells[SIZE])
        if found == BROKEN:
            self._complain(source)
            return None
        if found == BIG:
            return self._begin(source, size, MPI.Message.fromhandle(int(cells[MESSAGE])))
        if found == LATE:
            request = MPI.Request.fromhandle(int(cells[REQUEST]))
            self._frames.append(_Frame(source, self._frame[:size].data, request))
            self._frame = np.zeros(FRAME_ROOM, np.uint8)
            self._open_desk()
            return None
        frame = bytearray(self._frame[:size].data)
        if found == LATE_BODY:
            message, _, value_bytes = decode(frame)
            self.received_bytes += size + value_bytes
            assert message.values is not None
            raw = self._desk_place() if lane is None else lane.give_up_landing()[:value_bytes]
            message.values = raw.view(message.values.dtype).reshape(message.values.shape)
            request = MPI.Request.fromhandle(int(cells[REQUEST]))
            self._incoming.append(_Incoming(source, message, [request]))
            return None
        return self._unpack(source, frame)

    def _complain(self, source: int = -1) -> None:
        """Take note of the error that compiled code has met with, perhaps in the middle of a message of a `source`."""
        error = MPI.Exception(int(self._cells[ERROR]))
        self._cells[ERROR] = 0
        self._note_death(error, source if source >= 0 else None, torn=source >= 0)

    def _desk_place(self) -> NDArray[np.uint8]:
        """Give the memory into which the answer at the last slot is still coming; it counts as a message now."""
        slot = int(self._cells[NEXT])
        place, nbytes = self._desk.asked[slot, PLACE : BYTES + 1].tolist()
        self._desk.asked[slot, WAITS] = COMING
        raw = self._desk.kept[slot]
        assert raw is not None
        first = place - raw.ctypes.data
        return raw[first : first + nbytes]

    def ask(
        self,
        dest: int,
        head: int,
        time: int,
        acked: int,
        raw: NDArray[np.uint8],
        first: int,
        nbytes: int,
        kind: int,
        pushes: bool,
        fresh: bool,
    ) -> int:
        if self._library is None or self.lane is not None or dest in self._lost or nbytes > _PIECE:
            return -1
        self._check_thread()
        reach = fresh and nbytes >= LEAST and self.process_memory.has(dest)
        slot: int = ask(
            self._memory, head, time, acked, self.epoch, dest, raw, first, nbytes, kind, pushes, reach
        )
        if self._cells[ERROR]:
            self._complain()
        if slot >= 0:
            self._desk.kept[slot], self._desk.reached[slot] = raw, reach
            self._looks = LOOKS
            self._wake(dest)
        return slot

    def version(self) -> int:
        return int(self._answer[ROUND_AT : ROUND_AT + 8].view(np.int64)[0])

    def withdraw(self, slot: int) -> None:
        self._desk.withdraw(slot)

    def _count(self, cells: NDArray[np.int64]) -> None:
        """Count the bytes that compiled code has moved."""
        if cells[SENT] or cells[RECEIVED]:
            self.sent_bytes += int(cells[SENT])
            self.sent_messages += int(cells[POSTED])
            self.received_bytes += int(cells[RECEIVED])
            cells[SENT] = cells[POSTED] = cells[RECEIVED] = 0

    def _account(self, cells: NDArray[np.int64], lane: FastPathTable) -> None:
        """Count what the loop has moved, and give it the memory that it has missed."""
        if cells[SERVED]:
            self._backoff.reset()
            self._looks = LOOKS
            for position in range(int(cells[SLEEPERS])):
                self._wake(int(lane.sleepers[position]))
            if len(lane.trail):
                lane.tell()
            if lane.served is not None:
                lane.served(int(cells[SERVED]))
            self._count(cells)
        if cells[WANTED]:
            lane.provide(int(cells[WANTED]))
            cells[WANTED] = 0

    def _probe(self, comm: MPI.Intracomm, tag: int) -> Message | None:
        """Receive a frame of a tag, or begin to."""
        try:
            arrived = comm.Improbe(MPI.ANY_SOURCE, tag, self._status)
        except MPI.Exception as error:
            self._note_death(error)
            return None
        if arrived is None:
            return None
        self._backoff.reset()
        return self._begin(self._status.Get_source(), self._status.Get_count(MPI.BYTE), arrived)

    def _begin(self, source: int, size: int, arrived: MPI.Message) -> Message | None:
        """Receive a frame that was found, or begin to."""
        frame = bytearray(size)
        try:
            if size <= _AT_ONCE and not self._frames:
                arrived.Recv((frame, MPI.BYTE))
            else:
                request = arrived.Irecv((frame, MPI.BYTE))
                if not request.Test() or any(late.source == source for late in self._frames):
                    self._frames.append(_Frame(source, frame, request))
                    return None
        except MPI.Exception as error:
            self._note_death(error, source, torn=True)
            return None
        return self._unpack(source, frame)

    def _sweep(self) -> None:
        """Forget the sends that are complete, of the first ones; and of all, when there are many."""
        outbox = self._outbox
        try:
            while outbox and outbox[0][0].Test():
                outbox.popleft()
        except MPI.Exception as error:
            self._note_death(error, outbox[0][1])
        if len(self._outbox) > _MANY:
            self.pending()  # one slow receiver must not keep what others have taken

    def _unpack(self, source: int, frame: bytearray | memoryview) -> Message | None:
        """Give the message of a frame that has arrived, or start to receive its keys and values."""
        self.received_bytes += len(frame)
        if source in self._ignored:
            return None
        if len(frame) >= HEADER_BYTES and frame[6] & REACHED:
            raw = np.frombuffer(frame, np.uint8)
            self.slot = take_answer(raw[:HEADER_BYTES], len(frame), source, self._desk.asked)
            self._answer = raw
            return ANSWER if self.slot >= 0 else None  # else it was withdrawn
        message, key_bytes, value_bytes = decode(frame, self.buffers)
        if not key_bytes and not value_bytes:
            return message
        self.received_bytes += key_bytes + value_bytes
        if value_bytes and (place := self.landing(message)) is not None:
            message.values = place
        incoming = _Incoming(source, message, [])
        try:
            for body in bodies(message):
                for piece in _pieces(body):
                    incoming.requests.append(self._open().Irecv((piece, MPI.BYTE), source, BODY))
        except MPI.Exception as error:
            self._drop(incoming)
            self._note_death(error, source, torn=True)
        else:
            self._incoming.append(incoming)
        return None

    def _late(self) -> Message | None:
        """Give the next message of the frames that took a while and have arrived, in the order of each sender."""
        behind = set()
        for position, late in enumerate(self._frames):
            if late.source in behind:
                continue
            try:
                if not late.request.Test():
                    behind.add(late.source)
                    continue
            except MPI.Exception as error:
                del self._frames[position]
                self._note_death(error, late.source, torn=True)
                return None
            del self._frames[position]
            self._backoff.reset()
            return self._unpack(late.source, late.buffer)
        return None

    def _whole(self) -> Message | None:
        """Give a message whose keys and values have all arrived."""
        for position, incoming in enumerate(self._incoming):
            try:
                if not all(request.Test() for request in incoming.requests):
                    continue
            except MPI.Exception as error:
                del self._incoming[position]
                self._drop(incoming)
                self._note_death(error, incoming.source, torn=True)
                return None
            del self._incoming[position]
            self._backoff.reset()
            return incoming.message
        return None

    def idle(self) -> None:
        self._clear()
        waiting = self._backoff.waiting
        moving = waiting and bool(self._outbox or self._incoming or self._frames or self._unsent())
        self._backoff.wait(moving=moving)
        self._looks = 1 if self._backoff.resting else LOOKS

    def _unsent(self) -> int:
        """Count what compiled code has sent, and MPI is not done with."""
        if self._library is None:
            return 0
        pairs = [(self._desk.heads, self._desk.tails)]
        if self.lane is not None:
            pairs.append((self.lane.slots, self.lane.buffers))
        return sum(unsent(self._library, self._cells, self._statuses, *pair) for pair in pairs)

    def arriving(self, source: int) -> bool:
        return any(frame.source == source for frame in self._frames) or any(
            each.source == source for each in self._incoming
        )

    def unsent(self, dest: int) -> int:
        return sum(len(kept[0]) for _, to, kept in self._outbox if to == dest and isinstance(kept, tuple))

    def pending(self) -> int:
        self._clear()
        try:
            self._outbox = deque(entry for entry in self._outbox if not entry[0].Test())
        except MPI.Exception as error:
            self._note_death(error)
            self._outbox = deque(entry for entry in self._outbox if not _over(entry[0]))
        return len(self._outbox) + self._unsent()

    def now(self) -> float:
        return time.perf_counter()

    def wall(self) -> float:
        return time.time()

    def close(self) -> None:
        self._comm, self._asleep = None, bytes(self.size)
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None

    # --- deaths ------------------------------------------------------------------------------

    def failed(self) -> list[int]:
        comm = self._open()
        if self.survives:
            self._look(comm)
        news, self._news = self._news, []
        return news

    def exclude(self, rank: int) -> None:
        self._ignored.add(rank)
        self._lose(rank)
        self._news = [told for told in self._news if told != rank]
        for late in self._frames:
            if late.source == rank:
                self._abandoned.append((late.request, late.buffer))
        self._frames = [late for late in self._frames if late.source != rank]
        for incoming in self._incoming:
            if incoming.source == rank:
                self._drop(incoming)
        self._incoming = [incoming for incoming in self._incoming if incoming.source != rank]

    def _note_death(self, error: MPI.Exception, rank: int | None = None, torn: bool = False) -> None:
        """Take note of the death that made a call about `rank`, or about anybody, fail; any other error goes up.

        When a message of its was `torn`, bodies without a frame may be left, and nothing more is taken from that rank.
        """
        if not self.survives or error.Get_error_class() not in _DEATHS:
            raise error
        if rank is not None:
            if torn:
                self._ignored.add(rank)
            self._fail(rank)
        self._look(self._open())

    def _look(self, comm: MPI.Intracomm) -> None:
        """Ask MPI who has failed, and acknowledge it: else each probe for anybody's message would fail anew."""
        group = comm.Get_failed()
        count = group.Get_size()
        if not count:
            return
        if count > self._acknowledged:
            everyone = comm.Get_group()
            for rank in group.Translate_ranks(range(count), everyone):
                self._fail(rank)
            everyone.Free()
            self._acknowledged = comm.Ack_failed(count)
        group.Free()

    def _fail(self, rank: int) -> None:
        if rank not in self._lost:
            self._lose(rank)
            self._news.append(rank)

    def _lose(self, rank: int) -> None:
        """Stop sending to a rank, and counting what is being sent to it."""
        self._lost.add(rank)
        self.process_memory.pids[rank] = 0  # its number may be another process's one day
        tables = [self._desk.heads, self._desk.tails]
        if self.lane is not None:
            tables += [self.lane.slots, self.lane.buffers]
        for table in tables:
            table[(table[:, 0] == BUSY) & (table[:, -1] == rank), 0] = LOST
        self._abandoned += [(request, kept) for request, dest, kept in self._outbox if dest == rank]
        self._outbox = deque(entry for entry in self._outbox if entry[1] != rank)

    def _drop(self, incoming: _Incoming) -> None:
        """Forget a message that will not be whole, but not the arrays that it is being received into."""
        for request in incoming.requests:
            with suppress(MPI.Exception):  # it may be the caller's own memory, to be used again at once
                request.Cancel()
            self._abandoned.append((request, incoming.message))

    def finish_receives(self) -> None:
        deadline = self.now() + LANDING
        for incoming in list(self._incoming):
            try:
                while not all(request.Test() for request in incoming.requests) and self.now() < deadline:
                    pass
            except MPI.Exception as error:
                self._incoming.remove(incoming)
                self._drop(incoming)
                self._note_death(error, incoming.source, torn=True)

    def _clear(self) -> None:
        """Free what MPI is done with of what belonged to lost ranks."""
        if self._abandoned:
            self._abandoned = [each for each in self._abandoned if not _over(each[0])]


def _over(request: MPI.Request) -> bool:
    """Tell whether MPI is done with a request, well or badly."""
    try:
        return request.Test()
    except MPI.Exception as error:
        if error.Get_error_class() not in _DEATHS:
            raise
        return True
