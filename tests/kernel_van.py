"""A twin's van whose servers run the compiled fast path: MPI's functions, as its kernels call them, on a `Network`.

Sends stay in progress for a while, and their memory must not change until they are complete. What kernels send must be
what `mpips.transport.message.encode` writes.
"""

from __future__ import annotations

import ctypes
import heapq
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from mpips.transport.fastpath.server import serve
from mpips.transport.fastpath.table import ASLEEP_AT, ASLEEP_STEP, ME, PIDS_AT, FastPathTable
from mpips.transport.header import DETACHED, HEADER, WIDE_KEYS
from mpips.transport.in_memory import Network, TwinVan
from mpips.transport.message import Message, bodies, decode, frame_bytes, from_bytes, to_bytes
from mpips.transport.mpi.abi import STATUS_BYTES
from mpips.transport.mpi.kernels import (
    FRAME,
    FRAME_ROOM,
    LATE_BODY,
    NOTHING,
    PART,
    TAKEN,
    TAKEN_WITH_BODIES,
    TOO_LARGE,
)
from mpips.transport.mpi.memory import (
    FRAME_AT,
    LATE_AT,
    LATE_ROW,
    LIBRARY,
    MEMCPY,
    NEW_LIST,
    PART_AT,
    RECEIVED,
    SENT,
    SERVED,
    SIZE,
    SLEEPERS,
    SOURCE,
    STATUS,
    VECTORS,
    WANTED,
    WANTED_BLOCK,
    WANTED_ROOM,
)

_SOURCE = 8
"""Offset of the source in a status."""
_LATE = -1
"""The handle of a receive that takes long."""


def _int(address: int, kind: Any = ctypes.c_int64) -> Any:
    return kind.from_address(address)


class KernelVan(TwinVan):
    """See the module."""

    compiled = True
    handled = 0
    """Messages that kernels have handled, of all vans."""
    late = 0.0
    """Probability that the keys and values of a frame arrive after kernels have given up."""
    given_up = 0
    """Changes and requests whose rows kernels have given up, of all vans."""

    def __init__(self, network: Network, rank: int) -> None:
        super().__init__(network, rank)
        self._fake = network
        self._statuses = np.zeros(STATUS_BYTES, np.uint8)
        self._frame, self._pids = np.zeros(FRAME_ROOM, np.uint8), np.zeros(network.size, np.int64)
        self._flags = np.zeros(2 * network.size, np.uint8)[::2]
        self._raw, self._source = bytearray(), -1
        self._bodies: deque[bytes] = deque()
        # Receives in progress, as address and bytes; messages that wait for them.
        self._receives: list[tuple[int, bytes]] = []
        self._incomplete: deque[tuple[Message, list[tuple[int, bytes]], Any]] = deque()
        self._sends: dict[int, tuple[int, bytes]] = {}
        self._partial: dict[int, tuple[bytearray, int]] = {}
        self._chance = random.Random(rank)
        self._error: BaseException | None = None
        functions = (
            self._improbe,
            self._imrecv,
            self._isend,
            self._irecv,
            self._test,
            self._get_count,
            self._yield,
        )
        counts = (6, 5, 7, 7, 3, 3, 0)
        self._callbacks = [
            ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * count)(partial(self._noted, function))
            for function, count in zip(functions, counts, strict=True)
        ]
        self._lib = np.zeros(LIBRARY, np.int64)
        for at, callback in enumerate(self._callbacks):
            self._lib[at] = ctypes.cast(callback, ctypes.c_void_p).value
        self._lib[MEMCPY] = ctypes.cast(ctypes.CDLL(None).memcpy, ctypes.c_void_p).value
        self._lib[SOURCE] = _SOURCE

    def _noted(self, function: Callable[..., int], *arguments: int) -> int:
        """Call one of MPI's functions; an error is raised later, since kernels pass on none."""
        try:
            return function(*arguments)
        except BaseException as error:
            self._error = error
            return 0

    # --- MPI's functions ------------------------------------------------------------------------

    def _improbe(self, source: int, tag: int, comm: int, flag: int, message: int, status: int) -> int:
        wire = self._fake._in_flight[self.rank]
        dead = self.rank in self._fake._dead or self.rank in self._fake._stopped
        if tag != FRAME or dead or not wire or wire[0][0] > self._fake.time:
            return 0
        self._fake._idle.discard(self.rank)
        *_, self._source, raw = heapq.heappop(wire)
        self._raw = bytearray(raw)
        rest, self._bodies = raw[frame_bytes(self._raw) :], deque()
        if rest:
            head = np.frombuffer(raw, HEADER, 1)[0]
            keys = (16 if head["flags"] & WIDE_KEYS else 8) * int(head["keys"])
            self._bodies.extend(each for each in (rest[:keys], rest[keys:]) if each)
        _int(flag).value = 1
        _int(status + _SOURCE, ctypes.c_int32).value = self._source
        return 0

    def _get_count(self, status: int, kind: int, count: int) -> int:
        _int(count).value = frame_bytes(self._raw)
        return 0

    def _imrecv(self, buffer: int, size: int, kind: int, message: int, request: int) -> int:
        ctypes.memmove(buffer, bytes(self._raw[:size]), size)
        return 0

    def _irecv(
        self, buffer: int, size: int, kind: int, source: int, tag: int, comm: int, request: int
    ) -> int:
        body = self._bodies.popleft()
        assert len(body) == size and source == self._source
        if self._receives or self._chance.random() < self.late:
            self._receives.append((buffer, body))
            _int(request).value = _LATE
        else:
            ctypes.memmove(buffer, body, size)
        return 0

    def _isend(self, buffer: int, size: int, kind: int, dest: int, tag: int, comm: int, request: int) -> int:
        raw = ctypes.string_at(buffer, size)
        number = 1 + max(self._sends, default=0)
        self._sends[number] = buffer, raw
        _int(request).value = number
        whole, missing = self._partial.pop(dest, (bytearray(), 0))
        if tag == FRAME:
            assert not whole, "a frame before the bodies of the last one"
            head = np.frombuffer(raw, HEADER, 1)[0]
            width = 4 if head["dtype"] in (0, 2) else 8
            if head["flags"] & DETACHED:
                missing = 8 * int(head["keys"]) + int(head["rows"]) * int(head["width"]) * width
        else:
            missing -= size
        whole += raw
        if missing:
            self._partial[dest] = whole, missing
        elif self.rank not in self._fake._dead:
            message = from_bytes(whole)
            assert to_bytes(message) == bytes(whole), message
            self._fake.post(self.rank, dest, message)
        return 0

    def _test(self, request: int, flag: int, status: int) -> int:
        number = _int(request).value
        if number == 0:
            _int(flag).value = 1
        elif number != _LATE and self._chance.random() < 0.5:
            self._check(number)
            _int(request).value, _int(flag).value = 0, 1
        return 0

    def _check(self, number: int) -> None:
        address, raw = self._sends.pop(number)
        assert ctypes.string_at(address, len(raw)) == raw, "memory was used before its send was complete"

    def _yield(self) -> int:
        return 0

    # --- the van --------------------------------------------------------------------------------

    def receive(self) -> Message | None:
        """Receive a message, or let kernels handle some."""
        network, table = self._open(), self.fast_path
        if table is None:
            return super().receive()
        cells = self._enter(table)
        if self._incomplete and self._chance.random() < 0.05:
            network.touch(self.rank)
            message, receives, _ = self._incomplete.popleft()
            for address, body in receives:
                ctypes.memmove(address, body, len(body))
            return message
        cells[SERVED] = cells[SLEEPERS] = 0
        found = serve(cells, 1, self.epoch)
        if self._error is not None:
            raise self._error
        table.learn(cells[NEW_LIST:VECTORS].tolist())
        KernelVan.handled += int(cells[SERVED])
        self.sent_bytes += int(cells[SENT])
        self.received_bytes += int(cells[RECEIVED])
        cells[SENT] = cells[RECEIVED] = 0
        if len(table.push_log):
            table.report_pushes()
        wanted = (
            (WANTED, table.provide),
            (WANTED_ROOM, table.unacknowledged.provide),
            (WANTED_BLOCK, table.rounds.provide),
        )
        for cell, provide in wanted:
            if cells[cell]:
                provide(int(cells[cell]))
                cells[cell] = 0
        network.touch(self.rank)
        if found == LATE_BODY:
            self._give_up(table)
        assert not self._receives
        if found in (NOTHING, LATE_BODY):
            return None
        assert found in (TAKEN, TOO_LARGE, TAKEN_WITH_BODIES, PART)
        self.received_bytes += len(self._raw)
        if found == PART:
            message = table.rounds.take(int(cells[PART_AT]))
            assert to_bytes(message) == bytes(self._raw)
            return message
        if found != TAKEN_WITH_BODIES:
            return from_bytes(self._raw)
        message, *_ = decode(bytearray(self._frame[: int(cells[SIZE])].data))
        at = 0
        for body in bodies(message):
            body[:] = table.receive_buffer[at : at + len(body)].data
            at += len(body)
        assert to_bytes(message) == bytes(self._raw)
        return message

    def _enter(self, table: FastPathTable) -> Any:
        """Enter what is the van's into the memory of the fast path, and return it."""
        memory = table.memory
        memory[:LIBRARY], memory[ME], memory[PIDS_AT] = self._lib, self.rank, self._pids.ctypes.data
        memory[STATUS], memory[FRAME_AT] = self._statuses.ctypes.data, self._frame.ctypes.data
        memory[ASLEEP_AT], memory[ASLEEP_STEP] = self._flags.ctypes.data, self._flags.strides[0]
        return memory

    def _give_up(self, table: FastPathTable) -> None:
        """Keep a message whose keys and values are received until they are there, as `MPIVan` does."""
        cells = table.memory
        message, key_bytes, _ = decode(bytearray(self._frame[: int(cells[SIZE])].data))
        row, place = int(cells[LATE_ROW]), int(cells[LATE_AT])
        raw = table.give_up(row)
        KernelVan.given_up += row != 0
        there = raw[place - raw.ctypes.data :]
        if message.keys is not None:
            message.keys = there[:key_bytes].view(np.uint64)
        if message.values is not None:
            values = there[key_bytes : key_bytes + message.values.nbytes]
            message.values = values.view(message.values.dtype).reshape(message.values.shape)
        self._incomplete.append((message, self._receives, raw))
        self._receives = []
