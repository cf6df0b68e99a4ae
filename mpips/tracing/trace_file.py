"""The file of a trace: a header, and records of fixed size.

Records are written through memory that is shared with the system: what was written is there even if the rank is killed
in the next moment. The file grows by pieces whose room is taken beforehand, so that a full disk ends the trace and not
the rank. A record is a span: what the rank did from when to when, and for whom.

    magic, facts (JSON) | counts: what is in no record | names: "number text" lines | records
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
"""Bytes by which the file grows: a multiple of every page size there is."""
FACTS, COUNTS, NAMES, HEADER = 16, 4096, 8192, 65536
"""Bytes at which the parts of a file begin: facts (JSON), counts, names, and the records."""
NOBODY, NOWHERE = -1, 1 << 30
"""Who is meant by a span that is about no rank, or about no address."""


class What(IntEnum):
    """What a span is."""

    NOTHING = 0  # where no record is
    BEGUN = 1  # a span that takes long has begun: `size` says what it is, should it never end
    START = 2  # from the process's start to its first message
    PROGRAM = 3  # the scheduler's program
    PHASE = 4  # of the program: load, train, checkpoint
    CALL = 5  # what the scheduler has called for is executed
    COMPUTE = 6  # inside `node.time_use.working()`
    WAIT = 7  # for a task, whose last answer came from `peer`, or for something that `name` says
    EXECUTE = 8  # a server executes a request
    CHAIN = 9  # a change of another primary is applied, or a word of it passed on
    ENCODE = 10
    DECODE = 11
    WRITE = 12  # a file of a checkpoint is written, in the background
    SERVE = 13  # `size` requests were answered by compiled code, pauses of up to PAUSE included
    IDLE = 14  # nothing to do; rests shorter than LONG are in MOVED
    LEAVE = 15
    REQUEST = 16  # from sending a part of a task to its answer: no span of the rank's own time
    # bytes sent (`time`) and received (`size`) up to the `end`, and `address` us of brief rests in it
    MOVED = 17
    VIEW = 18  # at `begin`: a view of the epoch `time` is adopted
    UNSEEN = 19  # `size` ns were spent in brief spans of the kind `name`, `time` requests issued


class TraceFile:
    """One rank's file of at most `limit` bytes; `facts` say whose it is.

    Raises:
        OSError: the file cannot be made.
    """

    __slots__ = (
        "_at", "_end", "_file", "_names", "_names_at", "_piece", "_pieces", "dropped", "full", "limit", "path",
        "problem",
    )  # fmt: skip

    def __init__(self, path: Path, facts: Mapping[str, Any], limit: int) -> None:
        self.path, self.limit = path, limit
        self.full = False
        """Whether no piece is taken any more."""
        self.dropped = 0
        """Records for which there was no room."""
        self.problem = ""
        """Why there was none, if it is not the limit."""
        self._names: dict[str, int] = {}
        self._names_at = NAMES
        self._pieces, self._at, self._end = 0, 0, 0
        self._file = open_own(path)
        text = json.dumps({**facts, "limit": limit}).encode()
        os.pwrite(self._file, MAGIC + struct.pack("<q", len(text)) + text[: COUNTS - FACTS], 0)
        for command in Command:
            self._names[command.name.lower()] = int(command)
        self._names |= {"": 0}
        for name, number in sorted(self._names.items(), key=lambda each: each[1]):
            self._write_name(number, name)
        self._piece = self._next_piece()

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
        """Go over to a new piece of the file, if there may be one."""
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
        """Return the number of a name; where there is no room for one more, that of none."""
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
        """Write down what is in no record, should this be the end: requests `issued`, seconds by `What` since `gap`."""
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
