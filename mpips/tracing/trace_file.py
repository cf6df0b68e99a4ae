"""The file of a trace: a header, and records of fixed size.

Records are written to a shared mapping, so they persist even if the rank is killed immediately afterwards. The file
grows by pieces that are allocated in advance, so a full disk ends the trace and not the rank. A record is a span: an
activity of the rank, its begin and end, and the rank or request that it concerns.

    magic, facts (JSON) | counts: unrecorded sums | names: "number text" lines | records
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from mpips.files.safe_open import open_own
from mpips.transport.message import Command

MAGIC = b"mpitrc01"
RECORD = struct.Struct("<ddqqiiiHH")
"""begin, end (s, monotonic); time, size; peer, address, origin; name, what."""
PIECE = 4096 * RECORD.size
"""Bytes by which the file grows: a multiple of every page size."""
FACTS, COUNTS, NAMES, HEADER = 16, 4096, 8192, 65536
"""Offsets of the parts of a file: facts (JSON), counts, names, and the records."""
NOBODY, NOWHERE = -1, 1 << 30
"""The rank or address of a span that concerns none."""


class What(IntEnum):
    """The kind of a span."""

    # An empty record.
    NOTHING = 0
    # Begin of a long span of the kind `size`, in case it never ends.
    BEGUN = 1
    # From the process's start to its first message.
    START = 2
    # The scheduler's program.
    PROGRAM = 3
    # A phase of the program: load, train, checkpoint.
    PHASE = 4
    # Execution of a call of the scheduler.
    CALL = 5
    # Inside `node.time_use.working()`.
    COMPUTE = 6
    # A wait for a task, whose last answer came from `peer`, or for the cause `name`.
    WAIT = 7
    # A server executes a request.
    EXECUTE = 8
    # A change of another primary is applied, or its acknowledgement forwarded.
    CHAIN = 9
    ENCODE = 10
    DECODE = 11
    # A file of a checkpoint is written, in the background.
    WRITE = 12
    # `size` requests were answered by compiled code, pauses of up to PAUSE included.
    SERVE = 13
    # Idle; idle times shorter than LONG are in MOVED.
    IDLE = 14
    LEAVE = 15
    # From sending a part of a task to its answer; not in the main thread.
    REQUEST = 16
    # Bytes sent (`time`) and received (`size`) up to the `end`, and `address` us of brief idle times.
    MOVED = 17
    # At `begin`: a view of the epoch `time` is adopted.
    VIEW = 18
    # `size` ns were spent in brief spans of the kind `name`, `time` requests issued.
    UNSEEN = 19


class TraceFile:
    """One rank's file of at most `limit` bytes; `facts` identify the rank.

    Raises:
        OSError: the file cannot be created.
    """

    __slots__ = (
        "_at", "_end", "_file", "_names", "_names_at", "_piece", "_pieces", "dropped", "full", "limit", "path",
        "problem",
    )  # fmt: skip

    def __init__(self, path: Path, facts: Mapping[str, Any], limit: int) -> None:
        self.path, self.limit = path, limit
        self.full = False
        """Whether the file does not grow any more."""
        self.dropped = 0
        """Number of records that were dropped."""
        self.problem = ""
        """The error that stopped the growth, if it was not the limit."""
        self._names: dict[str, int] = {}
        self._names_at = NAMES
        self._pieces, self._at, self._end = 0, 0, 0
        self._file = open_own(path)
        text = json.dumps({**facts, "limit": limit}).encode()
        for command in Command:
            self._names[command.name.lower()] = int(command)
        self._names |= {"": 0}
        try:
            os.pwrite(self._file, MAGIC + struct.pack("<q", len(text)) + text[: COUNTS - FACTS], 0)
            for name, number in sorted(self._names.items(), key=lambda each: each[1]):
                self._write_name(number, name)
            self._piece = self._next_piece()
        except OSError as error:
            os.close(self._file)
            raise OSError(error.errno, error.strerror, str(path)) from None

    def _next_piece(self) -> mmap.mmap:
        place = HEADER + self._pieces * PIECE
        zeros = memoryview(bytes(PIECE))
        while zeros:
            zeros = zeros[os.pwrite(self._file, zeros, place + PIECE - len(zeros)) :]
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        piece = mmap.mmap(self._file, PIECE, flags, offset=place)
        self._pieces += 1
        self._at, self._end = 0, PIECE
        return piece

    def _has_room(self) -> bool:
        """Begin a new piece of the file, if the limit allows it; return whether there is one."""
        if not self.full:
            if HEADER + (self._pieces + 1) * PIECE <= self.limit:
                try:
                    self._piece = self._next_piece()
                    return True
                except OSError as error:
                    self.problem = f"{self.path}: {error.strerror or error}"
            self.full = True
        return False

    def add(
        self,
        what: int,
        begin: float,
        end: float,
        name: int,
        peer: int,
        address: int,
        origin: int,
        time: int,
        size: int,
    ) -> bool:
        """Write one record; return whether there was room."""
        if self._at == self._end and not self._has_room():
            self.dropped += 1
            return False
        RECORD.pack_into(self._piece, self._at, begin, end, time, size, peer, address, origin, name, what)
        self._at += RECORD.size
        return True

    def name(self, text: str) -> int:
        """Return the number of a name; that of the empty name if the table of names is full."""
        number = self._names.get(text)
        if number is None:
            number = self._names[text] = self._write_name(max(self._names.values()) + 1, text)
        return number

    def _write_name(self, number: int, text: str) -> int:
        line = f"{number} {json.dumps(text)}\n".encode()
        if self._names_at + len(line) > HEADER or number > 65535:
            return 0
        try:
            os.pwrite(self._file, line, self._names_at)
        except OSError:
            return 0
        self._names_at += len(line)
        return number

    def note(self, now: float, issued: int, gap: float, unseen: Sequence[float]) -> None:
        """Write the unrecorded sums, in case this is the end: requests `issued`, seconds by `What` since `gap`."""
        counts = struct.pack(f"<dqqd{len(unseen)}d", now, self.dropped, issued, gap, *unseen)
        try:
            os.pwrite(self._file, counts, COUNTS)
        except OSError as error:
            self.problem = self.problem or f"{self.path}: {error.strerror or error}"

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._file < 0

    def close(self) -> None:
        """Release the unused disk space; idempotent."""
        if self.closed:
            return
        self.full = True
        used = HEADER + (self._pieces - 1) * PIECE + self._at
        self._piece.close()
        self._at = self._end
        try:
            os.ftruncate(self._file, used)
        except OSError as error:
            self.problem = self.problem or f"{self.path}: {error.strerror or error}"
        os.close(self._file)
        self._file = -1
