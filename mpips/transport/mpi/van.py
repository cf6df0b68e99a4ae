"""The van over MPI. No other module of mpips communicates point-to-point.

A message is one frame under the tag `FRAME`; if its payload is large, keys and values follow as buffers under
the tag `BODY`, sent from and received into the arrays themselves. MPI keeps the order of messages between two ranks
under one tag, so the bodies of a frame are the next ones from its sender. Frames are found by matched probe (a probe
and a receive cannot race). The outbox keeps buffers alive until their sends are complete, and
`mpips.transport.mpi.incoming` holds what has not arrived completely.

Any MPI call may report the death of a rank: see `mpips.transport.mpi.deaths`. The module is long because sends,
receives and the fast path share buffers and the order of frames.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from threading import get_ident
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpips.errors import ClosedError, UsageError
from mpips.transport import header
from mpips.transport.backoff import Backoff, minimise_timer_slack
from mpips.transport.buffer_pool import BufferPool
from mpips.transport.fastpath.client import (
    ANSWERED,
    ASKED,
    BYTES,
    CLIENT_MEMORY,
    COMING,
    FRAMES,
    PIDS,
    PLACE,
    RANK,
    WAITS,
    FastPathClient,
    ask,
    receive,
    take_answer,
)
from mpips.transport.fastpath.server import serve
from mpips.transport.fastpath.table import ASLEEP_AT, ASLEEP_STEP, ME, PIDS_AT, FastPathTable
from mpips.transport.header import HEADER_BYTES, WRITTEN_THERE
from mpips.transport.message import ANSWER, INLINE, Kind, Message, bodies, decode, encode
from mpips.transport.mpi.abi import STATUS_BYTES, library
from mpips.transport.mpi.deaths import Deaths, over
from mpips.transport.mpi.incoming import Body, Frame, Incoming
from mpips.transport.mpi.kernels import (
    BODY,
    BROKEN,
    BUSY,
    FRAME,
    FRAME_ROOM,
    LATE,
    LATE_BODY,
    LOST,
    NOTHING,
    PART,
    TAKEN_WITH_BODIES,
    TOO_LARGE,
    URGENT,
    unsent,
)
from mpips.transport.mpi.memory import (
    ERROR,
    FRAME_AT,
    FROM,
    HERE,
    IGNORED_AT,
    LATE_AT,
    LATE_ROW,
    MESSAGE,
    NEW_LIST,
    NEXT,
    PART_AT,
    POSTED,
    RECEIVED,
    REQUEST,
    SECOND,
    SENT,
    SERVED,
    SIZE,
    SLEEPERS,
    STATUS,
    VECTORS,
    WANTED,
    WANTED_BLOCK,
    WANTED_ROOM,
)
from mpips.transport.mpi.process_memory import ProcessMemory
from mpips.transport.request_parts import SKIPPED, SLOT
from mpips.transport.time_of_day import TimeOfDay
from mpips.transport.wakeup import Wakeup

# Bytes of one send: some MPIs refuse more than 2 GiB.
_PIECE = 1 << 30
# Length of the outbox from which on all of its sends are tested.
_MANY = 64
# Bytes: so small a message is sent with its envelope (eager protocol), so that its receive does not wait.
_AT_ONCE = 1024
RECEIVE_PATIENCE = 2.0
"""Seconds that `finish_receives` waits at most for the rest of a message."""
POLLS = 32
"""Polls for a message before an idle rank backs off."""


def _pieces(buffer: memoryview) -> list[memoryview]:
    """Split a buffer into pieces of a size that every MPI accepts."""
    return [buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE)]


class MPIVan:
    """A van over an MPI communicator whose errors return; see `Van`."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        backoff: Backoff | None = None,
        wakeup: Wakeup | None = None,
        process_memory: ProcessMemory | None = None,
    ) -> None:
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._owner = get_ident()
        self._sent_bytes = self._received_bytes = self._sent_messages = 0
        self._comm: MPI.Intracomm | None = comm
        self._status = MPI.Status()
        self._outbox: deque[tuple[MPI.Request, int, object]] = deque()
        self._deaths = Deaths(self._open, self.size, self._forget_sends)
        self.survives = self._deaths.survives
        self._incoming = Incoming(self._deaths)
        self._backoff = backoff or Backoff(wakeup=wakeup)
        self._wakeup = wakeup
        self._asleep: memoryview | bytes = wakeup.asleep if wakeup is not None else bytes(self.size)
        self._flags = wakeup.flags if wakeup is not None else np.zeros(2 * self.size, np.uint8)[::2]
        self._library = library(comm)
        self.compiled = self._library is not None
        self._fast_client = FastPathClient()
        # Of the client's fast path; and that of the fast path in use.
        self._memory = self._cells = np.zeros(CLIENT_MEMORY, np.int64)
        self._statuses = np.zeros(STATUS_BYTES, np.uint8)
        self._frame = np.zeros(FRAME_ROOM, np.uint8)
        self._answer = self._frame
        self._polls = 1
        self.receive_buffer: Callable[[Message], NDArray[Any] | None] = lambda message: None
        self._fast_path: FastPathTable | None = None
        # The last one, whose sends may be in progress.
        self._table: FastPathTable | None = None
        self.epoch = 0
        self.slot = -1
        self.buffers = BufferPool()
        self._time_of_day = TimeOfDay()
        self.process_memory = process_memory or ProcessMemory(
            np.zeros(self.size, np.int64), np.zeros(0, np.uint8)
        )
        client = self._fast_client
        tables = (client.asked, client.heads, client.lists, client.tails, client.frames)
        self._memory[HERE] = self._memory.ctypes.data
        self._memory[ASKED : FRAMES + 1] = [table.ctypes.data for table in tables]
        self._memory[RANK], self._memory[PIDS] = self.rank, self.process_memory.pids.ctypes.data
        self._enter(self._memory)
        minimise_timer_slack()

    def _enter(self, memory: NDArray[np.int64]) -> None:
        """Enter what is the van's into the memory of a fast path."""
        if self._library is not None:
            memory[: len(self._library)] = self._library
        memory[IGNORED_AT] = self._deaths.ignored.ctypes.data
        memory[STATUS], memory[FRAME_AT] = self._statuses.ctypes.data, self._frame.ctypes.data

    @property
    def fast_path(self) -> FastPathTable | None:
        """The table of the server's fast path; None: the client's is in use."""
        return self._fast_path

    @fast_path.setter
    def fast_path(self, table: FastPathTable | None) -> None:
        self._count(self._cells)
        self._fast_path, self._cells = table, self._memory if table is None else table.memory
        if table is not None:
            self._table = table
            memory, flags, pids = table.memory, self._flags, self.process_memory.pids
            memory[ME], memory[PIDS_AT] = self.rank, pids.ctypes.data
            memory[ASLEEP_AT], memory[ASLEEP_STEP] = flags.ctypes.data, flags.strides[0]
        self._enter(self._cells)

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
        if dest in self._deaths.lost:
            return
        frame, buffers = encode(message)
        tag = URGENT if message.kind is Kind.CONTROL and not buffers else FRAME
        try:
            request = comm.Isend((frame, MPI.BYTE), dest, tag)
            self._sent_bytes += len(frame)
            self._sent_messages += 1
            if buffers or not request.Test():
                self._outbox.append((request, dest, frame))
            for buffer in buffers:
                for piece in _pieces(buffer):
                    request = comm.Isend((piece, MPI.BYTE), dest, BODY)
                    self._outbox.append((request, dest, (piece, message)))
                self._sent_bytes += len(buffer)
        except MPI.Exception as error:
            self._deaths.note(error, dest)
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
            self._remove_complete_sends()
        incoming = self._incoming
        if incoming.messages and (message := incoming.next_message()) is not None:
            self._backoff.reset()
            return message
        if incoming.frames and (late := incoming.next_frame()) is not None:
            self._backoff.reset()
            if (message := self._unpack(late.source, late.buffer)) is not None:
                return message
        if self._library is not None and not incoming.frames:
            return self._receive_fast()
        return self._probe(comm, URGENT) or self._probe(comm, FRAME)

    def _receive_fast(self) -> Message | None:
        """Receive by the fast path, which at a server may answer requests itself."""
        table, cells = self._fast_path, self._cells
        if table is None:
            polls, self._polls = self._polls, 1
            found = receive(self._memory, polls)
            if found & 0xFF == ANSWERED:
                self.slot = found >> 8
                self._fast_client.out[self.slot] = None
                self._backoff.reset()
                self._answer = self._frame
                return ANSWER
        else:
            cells[SERVED] = cells[SLEEPERS] = 0
            found = serve(cells, self._polls, self.epoch)
            table.learn(cells[NEW_LIST:VECTORS].tolist())
            self._account(cells, table)
        if cells[ERROR] and found != BROKEN:
            self._handle_error()
        if found == NOTHING:
            return None
        self._backoff.reset()
        source, size = int(cells[FROM]), int(cells[SIZE])
        if found == BROKEN:
            self._handle_error(source)
            return None
        if found == TOO_LARGE:
            return self._begin(source, size, MPI.Message.fromhandle(int(cells[MESSAGE])))
        if found == LATE:
            request = MPI.Request.fromhandle(int(cells[REQUEST]))
            self._incoming.frames.append(Frame(source, self._frame[:size].data, request))
            self._frame = np.zeros(FRAME_ROOM, np.uint8)
            self._enter(cells)
            return None
        if found == PART:
            assert table is not None
            message = table.rounds.take(int(cells[PART_AT]))
            payload = message.payload_bytes
            self._received_bytes += size + (payload if payload > INLINE else 0)
            return message
        frame = bytearray(self._frame[:size].data)
        if found in (LATE_BODY, TAKEN_WITH_BODIES):
            message, key_bytes, value_bytes = decode(frame, self.buffers)
            self._received_bytes += size + key_bytes + value_bytes
            if found == TAKEN_WITH_BODIES:
                assert table is not None
                at = 0
                for body in bodies(message):
                    body[:] = table.receive_buffer[at : at + len(body)].data
                    at += len(body)
                return message
            raw = self._answer_buffer() if table is None else self._receiving_buffer(table)
            if message.keys is not None:
                message.keys = raw[:key_bytes].view(message.keys.dtype)
            if message.values is not None:
                value_buffer = raw[key_bytes : key_bytes + value_bytes]
                message.values = value_buffer.view(message.values.dtype).reshape(message.values.shape)
            requests = [MPI.Request.fromhandle(int(cells[cell])) for cell in (REQUEST, SECOND) if cells[cell]]
            self._incoming.messages.append(Body(source, message, requests))
            return None
        return self._unpack(source, frame)

    def _handle_error(self, source: int = -1) -> None:
        """Handle an MPI error of a fast path, perhaps in the middle of a message from `source`."""
        error = MPI.Exception(int(self._cells[ERROR]))
        self._cells[ERROR] = 0
        self._deaths.note(error, source if source >= 0 else None, incomplete=source >= 0)

    def _receiving_buffer(self, table: FastPathTable) -> NDArray[np.uint8]:
        """Return the memory that receives the rest of a request or change, handled as a message from now on."""
        raw = table.give_up(int(self._cells[LATE_ROW]))
        return raw[int(self._cells[LATE_AT]) - raw.ctypes.data :]

    def _answer_buffer(self) -> NDArray[np.uint8]:
        """Return the memory that receives the answer at the last slot, which is handled as a message from now on."""
        slot = int(self._cells[NEXT])
        place, nbytes = self._fast_client.asked[slot, PLACE : BYTES + 1].tolist()
        self._fast_client.asked[slot, WAITS] = COMING
        raw = self._fast_client.out[slot]
        assert raw is not None
        first = place - raw.ctypes.data
        return raw[first : first + nbytes]

    def ask(
        self,
        parts: NDArray[np.int64],
        ranks: Sequence[int],
        keys: NDArray[np.uint64],
        rows: NDArray[np.uint8],
        out: NDArray[np.uint8],
        time: int,
        acked: int,
        round: int,
        command: int,
        origin: int,
        namespace: int,
        wire_type: int,
        width: int,
        answer_type: int,
        answer_bytes: int,
        fresh: bool,
    ) -> list[int]:
        lost = self._deaths.lost
        if (
            self._library is None
            or self._fast_path is not None
            or (lost and not lost.isdisjoint(ranks))
            or len(rows) > _PIECE
            or len(out) > _PIECE
            or 8 * len(keys) > _PIECE
        ):
            return []
        self._check_thread()
        slot: int = ask(
            self._memory, parts, keys, rows, out, self.epoch, time, acked, round, command, origin, namespace, wire_type,
            width, answer_type, answer_bytes, fresh,
        )  # fmt: skip
        if self._cells[ERROR]:
            self._handle_error()
        self._polls = POLLS
        slots: list[int] = [slot] if len(ranks) == 1 else parts[:, SLOT].tolist()
        client, sent = self._fast_client, (rows, keys)
        for slot, rank in zip(slots, ranks, strict=True):
            if slot >= 0:
                client.sent[slot], client.out[slot] = sent, out
                self._wake(rank)
        return [slot for slot in slots if slot != SKIPPED] if SKIPPED in slots else slots

    def version(self) -> int:
        return int(self._answer[:HEADER_BYTES].view(np.int64)[header.ROUND])

    def withdraw(self, slot: int) -> None:
        self._fast_client.withdraw(slot)

    @property
    def sent_bytes(self) -> int:
        self._count(self._cells)
        return self._sent_bytes

    @property
    def sent_messages(self) -> int:
        self._count(self._cells)
        return self._sent_messages

    @property
    def received_bytes(self) -> int:
        self._count(self._cells)
        return self._received_bytes

    def _count(self, cells: NDArray[np.int64]) -> None:
        """Count the bytes and messages that the fast path has sent and received."""
        if cells[SENT] or cells[RECEIVED]:
            self._sent_bytes += int(cells[SENT])
            self._sent_messages += int(cells[POSTED])
            self._received_bytes += int(cells[RECEIVED])
            cells[SENT] = cells[POSTED] = cells[RECEIVED] = 0

    def _account(self, cells: NDArray[np.int64], table: FastPathTable) -> None:
        """Count the server fast path's work, wake answered ranks that sleep, and allocate the missing buffers."""
        if cells[SERVED]:
            self._backoff.reset()
            self._polls = POLLS
            for position in range(int(cells[SLEEPERS])):
                self._wake(int(table.sleepers[position]))
            if len(table.push_log):
                table.report_pushes()
            if table.served is not None:
                table.served(int(cells[SERVED]))
        rounds, chain = table.rounds, table.unacknowledged
        for cell, provide in (
            (WANTED, table.provide),
            (WANTED_ROOM, chain.provide),
            (WANTED_BLOCK, rounds.provide),
        ):
            if cells[cell]:
                provide(int(cells[cell]))
                cells[cell] = 0

    def _probe(self, comm: MPI.Intracomm, tag: int) -> Message | None:
        """Probe for a frame of a tag, and receive it or start to."""
        try:
            arrived = comm.Improbe(MPI.ANY_SOURCE, tag, self._status)
        except MPI.Exception as error:
            self._deaths.note(error)
            return None
        if arrived is None:
            return None
        self._backoff.reset()
        return self._begin(self._status.Get_source(), self._status.Get_count(MPI.BYTE), arrived)

    def _begin(self, source: int, size: int, arrived: MPI.Message) -> Message | None:
        """Receive a matched frame, or start to."""
        frame = bytearray(size)
        try:
            if size <= _AT_ONCE and not self._incoming.frames:
                arrived.Recv((frame, MPI.BYTE))
            else:
                request = arrived.Irecv((frame, MPI.BYTE))
                if not request.Test() or any(late.source == source for late in self._incoming.frames):
                    self._incoming.frames.append(Frame(source, frame, request))
                    return None
        except MPI.Exception as error:
            self._deaths.note(error, source, incomplete=True)
            return None
        return self._unpack(source, frame)

    def _remove_complete_sends(self) -> None:
        """Remove complete sends from the front of the outbox; from all of it when it is long."""
        outbox = self._outbox
        try:
            while outbox and outbox[0][0].Test():
                outbox.popleft()
        except MPI.Exception as error:
            self._deaths.note(error, outbox[0][1])
        if len(self._outbox) > _MANY:
            # One slow receiver must not keep the buffers of complete sends.
            self.pending()

    def _unpack(self, source: int, frame: bytearray | memoryview) -> Message | None:
        """Return the message of a received frame, or start to receive its keys and values."""
        self._received_bytes += len(frame)
        if self._deaths.ignored[source]:
            return None
        if len(frame) >= HEADER_BYTES and frame[header.FLAGS] & WRITTEN_THERE:
            raw = np.frombuffer(frame, np.uint8)
            self.slot = take_answer(raw[:HEADER_BYTES], len(frame), source, self._fast_client.asked)
            self._answer = raw
            # Without a slot, the request was withdrawn.
            return ANSWER if self.slot >= 0 else None
        message, key_bytes, value_bytes = decode(frame, self.buffers)
        if not key_bytes and not value_bytes:
            return message
        self._received_bytes += key_bytes + value_bytes
        if value_bytes and (place := self.receive_buffer(message)) is not None:
            message.values = place
        incoming = Body(source, message, [])
        try:
            for body in bodies(message):
                for piece in _pieces(body):
                    incoming.requests.append(self._open().Irecv((piece, MPI.BYTE), source, BODY))
        except MPI.Exception as error:
            self._incoming.drop(incoming)
            self._deaths.note(error, source, incomplete=True)
        else:
            self._incoming.messages.append(incoming)
        return None

    def idle(self) -> None:
        self._deaths.clear()
        self._backoff.wait(self._is_moving)
        self._polls = 1 if self._backoff.resting else POLLS

    def glance(self) -> None:
        self._polls = 1

    def _is_moving(self) -> bool:
        """Return whether a transfer is in progress, which MPI must be called to complete."""
        incoming = self._incoming
        return bool(self._outbox or incoming.messages or incoming.frames or self._unsent())

    def _unsent(self) -> int:
        """Count the incomplete sends of the fast paths."""
        if self._library is None:
            return 0
        return sum(unsent(self._cells, table) for table in self._sends())

    def _sends(self) -> list[NDArray[np.int64]]:
        """Return the tables of the fast paths' sends."""
        tables = [self._fast_client.heads, self._fast_client.lists, self._fast_client.tails]
        if (table := self._table) is not None:
            tables += [table.slots, table.buffers, table.unacknowledged.sends, table.rounds.sends]
        return tables

    def arriving(self, source: int) -> bool:
        return self._incoming.arriving(source)

    def unsent(self, dest: int) -> int:
        return sum(len(kept[0]) for _, to, kept in self._outbox if to == dest and isinstance(kept, tuple))

    def pending(self) -> int:
        self._deaths.clear()
        try:
            self._outbox = deque(entry for entry in self._outbox if not entry[0].Test())
        except MPI.Exception as error:
            self._deaths.note(error)
            self._outbox = deque(entry for entry in self._outbox if not over(entry[0]))
        return len(self._outbox) + self._unsent()

    def now(self) -> float:
        return time.perf_counter()

    def wall(self) -> float:
        return self._time_of_day()

    def close(self) -> None:
        self._comm, self._asleep = None, bytes(self.size)
        if self._wakeup is not None:
            self._wakeup.close()
            self._wakeup = None

    # --- deaths ------------------------------------------------------------------------------

    def failed(self) -> list[int]:
        self._open()
        return self._deaths.failed()

    def watch(self, pids: Mapping[int, int]) -> None:
        """Report the ends of these processes of this host from now on, by rank: where MPI does not."""
        self._deaths.watch(pids)

    def exclude(self, rank: int) -> None:
        self._deaths.exclude(rank)
        self._incoming.exclude(rank)

    def _forget_sends(self, rank: int) -> None:
        """Do not count the sends to a lost rank as pending any more."""
        # Another process may get its process id.
        self.process_memory.pids[rank] = 0
        for table in self._sends():
            table[(table[:, 0] == BUSY) & (table[:, -1] == rank), 0] = LOST
        self._deaths.abandoned += [(request, kept) for request, dest, kept in self._outbox if dest == rank]
        self._outbox = deque(entry for entry in self._outbox if entry[1] != rank)

    def finish_receives(self) -> None:
        self._incoming.finish(self.now, RECEIVE_PATIENCE)
