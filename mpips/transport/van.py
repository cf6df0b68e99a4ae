"""The van sends and receives messages between ranks. No other module of mpips communicates point-to-point.

`Van` is the interface; `MPIVan` implements it over MPI, `mpips.transport.in_memory.TwinVan` in memory. Both pass the
same conformance tests. One thread owns a van.

The guarantees of a van are weak on purpose: a message arrives completely or not at all, in no order, and the twin may
also drop or duplicate it. Order, exactly-once execution and flow control belong to `mpips.tasks.task`.

On MPI, a message is one frame under the tag `FRAME`; if its payload is large, keys and values follow as buffers under
the tag `BODY`, sent from and received into the arrays themselves. MPI keeps the order of messages between two ranks
under one tag, so the bodies of a frame are the next ones from its sender. Frames are found by matched probe (a probe
and a receive cannot race). The outbox keeps buffers alive until their sends are complete. A frame that is not complete
yet (its sender may have been stopped) delays later frames from the same sender, so that each gets its own bodies.

Ranks may die. Where MPI survives that (Open MPI under `mpirun --with-ft ulfm`), any call may report a death: it is
acknowledged and reported by `failed()`, incomplete messages are dropped, and the communicator stays in use, since no
call is collective. `exclude` also works for a rank that is alive: buffers that MPI may still access are kept.
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
from mpips.transport import header
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
    receive,
    take_answer,
)
from mpips.transport.fastpath_server import serve
from mpips.transport.fastpath_table import FastPathTable
from mpips.transport.header import HEADER_BYTES, REACHED
from mpips.transport.message import (
    ANSWER,
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

# bytes of one send: some MPIs refuse more than 2 GiB
_PIECE = 1 << 30
# length of the outbox from which on all of its sends are tested
_MANY = 64
# bytes: so small a message is sent with its envelope (eager protocol), so that its receive does not wait
_AT_ONCE = 1024
LANDING = 2.0
"""Seconds that `finish_receives` waits at most for the rest of a message."""
LOOKS = 32
"""Polls for a message before an idle rank backs off."""


Rows = NDArray[Any]


class Van(Protocol):
    """Sends and receives messages of one rank."""

    rank: int
    size: int
    sent_bytes: int
    sent_messages: int
    received_bytes: int
    landing: Callable[[Message], NDArray[Any] | None]
    """Returns the array that receives the detached values of a message; None: a new array."""
    fast_path: FastPathTable | None
    """The requests that the van may answer itself; see `mpips.transport.fastpath_table`."""
    epoch: int
    """The epoch of the requests that the fast path may answer."""
    buffers: BufferPool
    """Buffers for large messages."""

    @property
    def survives(self) -> bool:
        """Whether the other ranks survive the death of one, and detect it."""

    def send(self, dest: int, message: Message) -> None:
        """Send without blocking. The message's arrays must not be written until it was delivered.

        Messages to a rank that has failed or was excluded are dropped.
        """

    def receive(self) -> Message | None:
        """Return one message that has arrived completely, or None. Makes progress on sends.

        `ANSWER` stands for the answer to a request sent by `ask`; `slot` is its slot.
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
        """Send a request by the client fast path; return its slot, or -1 if it must be sent as a message.

        `head` is the address of the prepared header (`mpips.transport.message.heading`). A push sends `nbytes` of `raw`
        from byte `first` on, of the wire type `kind`; a pull receives its answer there. `fresh`: that memory has no
        other use, so that the server may write into it directly.
        """

    def version(self) -> int:
        """Return after how many changes of its shard the answer at `slot` was read; -1: it answers a change."""

    def withdraw(self, slot: int) -> None:
        """Free a slot: if its answer still comes, it is received as a message."""

    def idle(self) -> None:
        """Tell the van that its rank has nothing to do: it may yield or sleep."""

    def finish_receives(self) -> None:
        """Wait until the messages that are being received, from ranks that are not excluded, are complete.

        Then an old answer cannot overwrite the answer to a request that is sent to another rank afterwards.
        """

    def arriving(self, source: int) -> bool:
        """Tell whether a message from a rank is being received: later messages may overtake its end."""

    def unsent(self, dest: int) -> int:
        """Count the bytes of keys and values whose sends to a rank are not complete."""

    def pending(self) -> int:
        """Count the incomplete sends to ranks that are neither known to have failed nor excluded."""

    def failed(self) -> list[int]:
        """Return the ranks whose death was detected since the last call, without those excluded before.

        Messages that had arrived from them may still be received. Raises no error because of other ranks.
        """

    def exclude(self, rank: int) -> None:
        """Exclude a rank, dead or alive: nothing is sent to it or received from it any more. Idempotent."""

    def now(self) -> float:
        """Seconds on this van's clock."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    def close(self) -> None:
        """Stop sending and receiving; idempotent."""


def _pieces(buffer: memoryview) -> list[memoryview]:
    """Split a buffer into pieces of a size that every MPI accepts."""
    return [buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)]


_FT_ENABLE = "OMPI_MCA_mpi_ft_enable"
_DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)
"""Error classes by which MPI reports the death of a rank."""


def survives_deaths() -> bool:
    """Tell whether ranks survive the death of one: only with Open MPI, under `mpirun --with-ft ulfm`.

    No MPI call reports this: without the option, all return as if no rank had died.
    """
    asked = os.environ.get(_FT_ENABLE, "").lower() in ("1", "true", "yes", "on", "enabled")
    return asked and MPI.get_vendor()[0] == "Open MPI"


class _Frame:
    """A frame that is being received."""

    __slots__ = ("buffer", "request", "source")

    def __init__(self, source: int, buffer: bytearray | memoryview, request: MPI.Request) -> None:
        self.source, self.buffer, self.request = source, buffer, request


class _Incoming:
    """A message whose keys and values are being received."""

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
        # ranks that have failed or were excluded
        self._lost: set[int] = set()
        # ranks that were excluded, or died in the middle of a message: nothing more is received from them
        self._ignored: set[int] = set()
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
        self.fast_path: FastPathTable | None = None
        self.epoch = 0
        self.slot = -1
        self.buffers = BufferPool()
        self.process_memory = ProcessMemory(np.zeros(self.size, np.int64), np.zeros(0, np.uint8))
        self._fast_client = FastPathClient()
        self._open_fast_path()
        sharpen_sleep()

    def _open_fast_path(self) -> None:
        """Enter the addresses of the client's tables into the memory of its fast path."""
        if self._library is not None:
            client = self._fast_client
            places = (self._statuses, self._frame, client.asked, client.heads, client.tails, client.frames)
            self._memory[: len(self._library)] = self._library
            self._memory[STATUS:] = [place.ctypes.data for place in places]

    def _open(self) -> MPI.Intracomm:
        if self._comm is None:
            raise ClosedError("this van is closed")
        self._check_thread()
        return self._comm

    def _check_thread(self) -> None:
        """Raise UsageError in a thread that does not own the van: MPI would end the run without an explanation."""
        if get_ident() != self._owner:
            raise UsageError(
                "push, pull, call and wait must run in the thread in which mpips calls the program, not in one that "
                "the program starts"
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
        """Wake the receiver of a message if it sleeps; restart the backoff, since an answer may follow soon."""
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
            return self._receive_fast()
        return self._probe(comm, URGENT) or self._probe(comm, FRAME)

    def _receive_fast(self) -> Message | None:
        """Receive by the fast path, which at a server may answer requests itself."""
        table, cells = self.fast_path, self._cells
        if table is None:
            looks, self._looks = self._looks, 1
            found = receive(self._memory, looks)
            self._count(cells)
            if found & 0xFF == ANSWERED:
                self.slot = found >> 8
                if self._fast_client.reached[self.slot]:
                    self._fast_client.kept[self.slot] = None
                self._backoff.reset()
                self._answer = self._frame
                return ANSWER
        else:
            cells[SERVED] = cells[SLEEPERS] = 0
            found = serve(
                self._library, cells, self._statuses, self._frame, self._looks, self.rank, self.epoch,
                table.parts, table.rows_of, table.callers, table.cache.table, table.slots, table.frames, table.buffers,
                table.landing, self._flags, table.sleepers, self.process_memory.pids, table.trail,
            )  # fmt: skip
            self._account(cells, table)
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
            self._open_fast_path()
            return None
        frame = bytearray(self._frame[:size].data)
        if found == LATE_BODY:
            message, _, value_bytes = decode(frame)
            self.received_bytes += size + value_bytes
            assert message.values is not None
            raw = self._answer_buffer() if table is None else table.give_up_landing()[:value_bytes]
            message.values = raw.view(message.values.dtype).reshape(message.values.shape)
            request = MPI.Request.fromhandle(int(cells[REQUEST]))
            self._incoming.append(_Incoming(source, message, [request]))
            return None
        return self._unpack(source, frame)

    def _complain(self, source: int = -1) -> None:
        """Handle an MPI error of a fast path, perhaps in the middle of a message from `source`."""
        error = MPI.Exception(int(self._cells[ERROR]))
        self._cells[ERROR] = 0
        self._note_death(error, source if source >= 0 else None, torn=source >= 0)

    def _answer_buffer(self) -> NDArray[np.uint8]:
        """Return the memory that receives the answer at the last slot, which is handled as a message from now on."""
        slot = int(self._cells[NEXT])
        place, nbytes = self._fast_client.asked[slot, PLACE : BYTES + 1].tolist()
        self._fast_client.asked[slot, WAITS] = COMING
        raw = self._fast_client.kept[slot]
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
        if self._library is None or self.fast_path is not None or dest in self._lost or nbytes > _PIECE:
            return -1
        self._check_thread()
        reach = fresh and nbytes >= LEAST and self.process_memory.has(dest)
        slot: int = ask(
            self._memory, head, time, acked, self.epoch, dest, raw, first, nbytes, kind, pushes, reach
        )
        if self._cells[ERROR]:
            self._complain()
        if slot >= 0:
            self._fast_client.kept[slot], self._fast_client.reached[slot] = raw, reach
            self._looks = LOOKS
            self._wake(dest)
        return slot

    def version(self) -> int:
        return int(self._answer[:HEADER_BYTES].view(np.int64)[header.ROUND])

    def withdraw(self, slot: int) -> None:
        self._fast_client.withdraw(slot)

    def _count(self, cells: NDArray[np.int64]) -> None:
        """Count the bytes and messages that the fast path has sent and received."""
        if cells[SENT] or cells[RECEIVED]:
            self.sent_bytes += int(cells[SENT])
            self.sent_messages += int(cells[POSTED])
            self.received_bytes += int(cells[RECEIVED])
            cells[SENT] = cells[POSTED] = cells[RECEIVED] = 0

    def _account(self, cells: NDArray[np.int64], table: FastPathTable) -> None:
        """Count what the server fast path has done, wake answered ranks that sleep, and allocate buffers it lacked."""
        if cells[SERVED]:
            self._backoff.reset()
            self._looks = LOOKS
            for position in range(int(cells[SLEEPERS])):
                self._wake(int(table.sleepers[position]))
            if len(table.trail):
                table.tell()
            if table.served is not None:
                table.served(int(cells[SERVED]))
            self._count(cells)
        if cells[WANTED]:
            table.provide(int(cells[WANTED]))
            cells[WANTED] = 0

    def _probe(self, comm: MPI.Intracomm, tag: int) -> Message | None:
        """Probe for a frame of a tag, and receive it or start to."""
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
        """Receive a matched frame, or start to."""
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
        """Remove complete sends from the front of the outbox; from all of it when it is long."""
        outbox = self._outbox
        try:
            while outbox and outbox[0][0].Test():
                outbox.popleft()
        except MPI.Exception as error:
            self._note_death(error, outbox[0][1])
        if len(self._outbox) > _MANY:
            # one slow receiver must not keep the buffers of complete sends
            self.pending()

    def _unpack(self, source: int, frame: bytearray | memoryview) -> Message | None:
        """Return the message of a received frame, or start to receive its keys and values."""
        self.received_bytes += len(frame)
        if source in self._ignored:
            return None
        if len(frame) >= HEADER_BYTES and frame[header.FLAGS] & REACHED:
            raw = np.frombuffer(frame, np.uint8)
            self.slot = take_answer(raw[:HEADER_BYTES], len(frame), source, self._fast_client.asked)
            self._answer = raw
            # without a slot, the request was withdrawn
            return ANSWER if self.slot >= 0 else None
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
        """Return the message of the next late frame that is complete, in the order of each sender."""
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
        """Return a message whose keys and values are complete."""
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
        """Count the incomplete sends of the fast paths."""
        if self._library is None:
            return 0
        pairs = [(self._fast_client.heads, self._fast_client.tails)]
        if self.fast_path is not None:
            pairs.append((self.fast_path.slots, self.fast_path.buffers))
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
        """Record the death that made a call concerning `rank`, or any rank, fail; re-raise all other errors.

        `torn`: a message from it is incomplete, so that bodies without a frame may follow; nothing more is received
        from that rank.
        """
        if not self.survives or error.Get_error_class() not in _DEATHS:
            raise error
        if rank is not None:
            if torn:
                self._ignored.add(rank)
            self._fail(rank)
        self._look(self._open())

    def _look(self, comm: MPI.Intracomm) -> None:
        """Ask MPI for failed ranks, and acknowledge them: otherwise each probe with MPI_ANY_SOURCE fails again."""
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
        """Stop sending to a rank, and do not count its sends as pending."""
        self._lost.add(rank)
        # another process may get its process id
        self.process_memory.pids[rank] = 0
        tables = [self._fast_client.heads, self._fast_client.tails]
        if self.fast_path is not None:
            tables += [self.fast_path.slots, self.fast_path.buffers]
        for table in tables:
            table[(table[:, 0] == BUSY) & (table[:, -1] == rank), 0] = LOST
        self._abandoned += [(request, kept) for request, dest, kept in self._outbox if dest == rank]
        self._outbox = deque(entry for entry in self._outbox if entry[1] != rank)

    def _drop(self, incoming: _Incoming) -> None:
        """Give up an incomplete message, but keep the arrays that MPI may still write into."""
        for request in incoming.requests:
            # the memory may be the caller's, who may use it again at once
            with suppress(MPI.Exception):
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
        """Free the buffers of lost ranks that MPI no longer uses."""
        if self._abandoned:
            self._abandoned = [each for each in self._abandoned if not _over(each[0])]


def _over(request: MPI.Request) -> bool:
    """Tell whether a request has completed or failed."""
    try:
        return request.Test()
    except MPI.Exception as error:
        if error.Get_error_class() not in _DEATHS:
            raise
        return True
