"""The trace: where a rank's time goes, written down while it goes (`mpips.tracing.analysis` reads it).

Each rank writes records of fixed size into a file of its own, through memory that it shares with the system: what it
has written is there even if it is killed in the next moment, and nothing is ever written to anybody else. The file
grows by pieces whose room is taken beforehand, so that a full disk ends the trace and not the rank.

A record is a span: what the rank did from when to when, and for whom. What is done at the request of another rank has
that request's name, (origin, address, time), as the request's own record has at the caller; so a reader can tie them.

What it may cost is fixed: so many records in a second. Beyond, a gate is shut until enough have been saved for a burst.
Behind it spans longer than `LONG` are still recorded each for itself; of brief ones only the sums are, and most of
those are counted by the node anyhow. So a rank that computes and waits is shown in full, and one that asks for
something every ten microseconds in bursts, with the sums of what lies between. (A record takes 0.3 us in a loop that
does nothing else, and five times as long in one that does.)
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpips.files.safe_open import open_own
from mpips.transport.message import Command, Message

if TYPE_CHECKING:
    from mpips.cluster.node import Node
    from mpips.cluster.view import View
    from mpips.tasks.task import Tasks, _Part
    from mpips.transport.fastpath_table import FastPathTable
    from mpips.transport.van import Van

T = TypeVar("T")

MAGIC = b"mpitrc01"
RECORD = struct.Struct("<ddqqiiiHH")
"""begin, end (s, monotonic); time, size; peer, address, origin; name, what."""
PIECE = 4096 * RECORD.size
"""Bytes by which the file grows: a multiple of every page size there is."""
FACTS, COUNTS, NAMES, HEADER = 16, 4096, 8192, 65536
"""Bytes at which the parts of a file begin: facts (JSON), counts, names, and the records."""
PER = 0.005
"""Seconds in which a rank may record `detail` spans."""
BURST = 10
"""Times `detail`: what may be recorded at once, once it has been saved; the gate opens for no less."""
LONG = 500e-6
"""Seconds from which on a span is recorded for itself in any case."""
PAUSE = 50e-6
"""Seconds of rest that count as part of serving when more is served after them."""
SAMPLE, NOTE = 0.05, 1.0
"""Seconds between two samples of the bytes moved, and between two notes of what is in no record yet."""
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
    COMPUTE = 6  # inside `node.working()`
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
    MOVED = (
        17  # bytes sent (`time`) and received (`size`) up to the `end`, and `address` us of brief rests in it
    )
    VIEW = 18  # at `begin`: a view of the epoch `time` is adopted
    UNSEEN = 19  # `size` ns were spent in brief spans of the kind `name`, `time` requests issued


_COMPUTE, _WAIT, _EXECUTE, _REQUEST = map(int, (What.COMPUTE, What.WAIT, What.EXECUTE, What.REQUEST))
_CALL = Command.CALL


@dataclass(frozen=True)
class TraceSpec:
    """Whether each rank writes down where its time goes; `mpips trace RUN` shows it."""

    on: bool = False
    """Whether it does."""
    limit: float = field(default=16e6, metadata={"at_least": 4e5})
    """Bytes that each rank may write; beyond, only sums are kept."""
    detail: int = field(default=5, metadata={"at_least": 0})
    """Spans that each rank may record every 5 ms on average; beyond, those below half a millisecond are summed only.
    More of them cost more time."""


def trace_node(node: Node, spec: TraceSpec, path: Path, started: float, warn: Callable[[str], None]) -> None:
    """Begin to trace a node whose process `started` then, if that is asked for; a run goes on without if it cannot."""
    if not spec.on:
        return
    place = node.place
    facts = {
        "rank": place.rank, "role": place.role.value, "index": place.index, "host": node.host, "pid": os.getpid(),
        "clock": _clock(node.host),
    }  # fmt: skip
    try:
        trace = Trace(path, facts, spec.limit, spec.detail)
    except OSError as error:
        warn(f"mpips: warning: rank {place.rank} has no trace: {path}: {error.strerror or error}")
        return
    trace.attach(node)
    trace.add(What.START, started, trace.now())


def _offset(now: Callable[[], float], wall: Callable[[], float]) -> float:
    """Say by how much the time of day is ahead of a clock, as of the quickest of some looks at both."""
    looks = ((now(), wall(), now()) for _ in range(5))
    begin, at, end = min(looks, key=lambda look: look[2] - look[0])
    return at - (begin + end) / 2


def _clock(host: str) -> str:
    """Name the clock that this process reads: that of a machine since it was booted."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return host


class Trace:
    """One rank's trace, in a file of at most `limit` bytes, with `detail` records in PER; see the module.

    `facts` say whose it is.

    Raises:
        OSError: the file cannot be made.
    """

    __slots__ = (
        "_at", "_budget", "_counted", "_detail", "_end", "_file", "_full", "_gap", "_hidden", "_last", "_limit",
        "_names", "_names_at", "_next_note", "_next_sample", "_node", "_piece", "_pieces", "_quiet", "_rested",
        "_sampled", "_serving", "_since", "_ticked", "_woke", "_written", "dropped", "now", "open", "path", "problem",
    )  # fmt: skip

    def __init__(
        self,
        path: Path,
        facts: Mapping[str, Any],
        limit: float = 16e6,
        detail: int = 5,
        now: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path, self.now = path, now
        self.open = True
        """Whether brief spans are recorded each for itself at this moment."""
        self.dropped = 0
        """Records for which there was no room."""
        self.problem = ""
        """Why there was none, if it is not the limit."""
        self._limit, self._full = int(limit), False
        self._names: dict[str, int] = {}
        self._names_at = NAMES
        self._pieces, self._at, self._end = 0, 0, 0
        self._detail, self._budget = detail, float(BURST * detail)
        self._node: Node | None = None
        self._last = (-1, NOBODY, 0)  # the time, rank and name of the last part that was answered
        self._quiet = self._woke = (
            0.0  # since when there is nothing to do (0: there is), and when it was looked last
        )
        self._serving: tuple[float, int] | None = None  # since when compiled code serves, and how much it has
        self._since = 0.0  # since when nothing was done that is known of
        self._rested = 0.0  # seconds of brief rests since the last sample
        self._gap = 0.0  # since when the gate is shut
        self._counted = (0.0, 0.0, 0)  # what the node had waited, worked and issued then
        self._hidden = [0.0] * len(What)
        self._written: deque[tuple[float, float, str]] = deque()
        self._next_sample = self._next_note = self._sampled = self._ticked = now()
        self._file = open_own(path)
        text = json.dumps({**facts, "wall": _offset(now, wall), "limit": self._limit}).encode()
        os.pwrite(self._file, MAGIC + struct.pack("<q", len(text)) + text[: COUNTS - FACTS], 0)
        for command in Command:
            self._names[command.name.lower()] = int(command)
        self._names |= {"": 0}
        for name, number in sorted(self._names.items(), key=lambda each: each[1]):
            self._write_name(number, name)
        self._piece = self._next_piece()

    # --- the file --------------------------------------------------------------------------------

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
        if not self._full:
            if HEADER + (self._pieces + 1) * PIECE <= self._limit:
                try:
                    self._piece = self._next_piece()
                    return True
                except OSError as error:
                    self.problem = f"{self.path}: {error.strerror or error}"
            self._full = True
            if self.open:
                self._shut(self.now())
        return False

    def add(
        self,
        what: int,
        begin: float,
        end: float,
        name: int = 0,
        peer: int = NOBODY,
        address: int = NOWHERE,
        origin: int = NOBODY,
        time: int = -1,
        size: int = 0,
    ) -> bool:
        """Write one record; give whether there was room."""
        if self._at == self._end and not self._has_room():
            self.dropped += 1
            return False
        RECORD.pack_into(self._piece, self._at, begin, end, time, size, peer, address, origin, name, what)
        self._at += RECORD.size
        self._budget -= 1
        if self._budget < 0 and self.open:
            self._shut(end)
        return True

    def name(self, text: str) -> int:
        """Give the number of a name; where there is no room for one more, that of none."""
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

    def _note(self, now: float) -> None:
        """Write down what is in no record yet, and how long the trace is: should this be its end."""
        waited, worked, issued = self._behind()
        hidden = list(self._hidden)
        hidden[What.WAIT] += waited
        hidden[What.COMPUTE] += worked
        counts = struct.pack(f"<dqqd{len(hidden)}d", now, self.dropped, issued, self._gap, *hidden)
        try:
            os.pwrite(self._file, counts, COUNTS)
        except OSError as error:
            self.problem = self.problem or f"{self.path}: {error.strerror or error}"

    def close(self) -> None:
        """Give back the room that was not used; idempotent."""
        if self._file < 0:
            return
        self.heard()
        self._next_sample = 0.0
        self.tick()
        self._note(self.now())
        self._full, self.open = True, False
        used = HEADER + (self._pieces - 1) * PIECE + self._at
        self._piece.close()
        self._at = self._end
        try:
            os.ftruncate(self._file, used)
        except OSError as error:
            self.problem = self.problem or f"{self.path}: {error.strerror or error}"
        os.close(self._file)
        self._file = -1

    # --- the gate --------------------------------------------------------------------------------

    def attach(self, node: Node) -> None:
        """Trace a node from now on, before it has taken a role."""
        self._node, events = node, node.observers
        node.on_tick.append(self.tick)
        node.on_view.append(self._viewed)
        events.tasks += (self.watch,)
        events.busy += (self.heard,)
        events.encoded += (self.encoded,)
        events.decoded += (self.decoded,)
        events.computed += (self.computed,)
        events.waited += (self.waited,)
        events.serves += (self._serves,)
        events.passed_on += (self.passed_on,)
        events.executed += (self.executed,)
        events.resting += (self.resting,)
        events.calls += (self._calling,)
        events.writing += (self.writing,)
        events.spans += (self.during,)
        events.close += (self.close,)
        self.watch(node.tasks)

    def _serves(self, table: FastPathTable) -> None:
        table.served = self.served

    @contextmanager
    def _calling(self, request: Message) -> Iterator[None]:
        begin = self.begin(What.CALL, request.meta["call"])
        try:
            yield
        finally:
            self.called(begin, request)

    def watch(self, tasks: Tasks) -> None:
        """Let the answers to a caller's tasks be told, while the gate is open."""
        tasks.watch = self._answered if self.open else None
        tasks.stamps = tasks.lossy or self.open

    def _behind(self) -> tuple[float, float, int]:
        """Say what the node has waited, worked and issued since the gate was shut."""
        node = self._node
        if node is None or self.open:
            return 0.0, 0.0, 0
        waited, worked, issued = self._counted
        return node.waited - waited, node.worked - worked, node.tasks.issued - issued

    def _shut(self, now: float) -> None:
        self.open, self._gap = False, now
        node = self._node
        if node is not None:
            self._counted = (node.waited, node.worked, node.tasks.issued)
            self.watch(node.tasks)

    def _reopen(self, now: float) -> None:
        waited, worked, issued = self._behind()
        hidden, self._hidden = self._hidden, [0.0] * len(What)
        hidden[What.WAIT] += waited
        hidden[What.COMPUTE] += worked
        self.open = True
        for what, seconds in enumerate(hidden):
            if seconds > 0:
                self.add(What.UNSEEN, self._gap, now, what, time=max(issued, 0), size=int(seconds * 1e9))
                issued = 0
        if self._node is not None:
            self.watch(self._node.tasks)

    def tick(self) -> None:
        """Open the gate if it may be, and see to what is due; the node does so every few milliseconds."""
        now = self.now()
        earned = self._detail * (now - self._ticked) / PER
        self._budget, self._ticked = min(max(self._budget, 0.0) + earned, BURST * self._detail), now
        burst = BURST * self._detail
        enough = 0 < burst <= self._budget * (1 + 1e-9)  # which sums up roundings
        if enough and not self.open and not self._full:
            self._reopen(now)
        while self._written:
            begin, end, name = self._written.popleft()
            self.add(What.WRITE, begin, end, self.name(name))
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE
            self._flush()
            if self._quiet and now - self._quiet > NOTE:
                self._wake(now)
                self._quiet = now
            if self._node is not None:
                self._sample(now, self._node.van)
        if now >= self._next_note:
            self._next_note = now + NOTE
            self._note(now)

    def _sample(self, now: float, van: Van) -> None:
        """Record how many bytes have been moved so far, and the brief rests since the last time."""
        rested = min(int(self._rested * 1e6), NOWHERE)
        if self.add(
            What.MOVED, self._sampled, now, address=rested, time=van.sent_bytes, size=van.received_bytes
        ):
            self._sampled, self._rested = now, 0.0

    # --- what takes long ---------------------------------------------------------------------------

    @contextmanager
    def during(self, what: int, name: str = "") -> Iterator[None]:
        """Record what happens inside as one span."""
        start, number = self.begin(what, name), self.name(name)
        try:
            yield
        finally:
            self.add(what, start, self.now(), number)

    def begin(self, what: int, name: str) -> float:
        """Note that a span begins that is to be known also if it never ends; give when that is."""
        self.heard()
        start = self.now()
        self.add(What.BEGUN, start, start, self.name(name), size=what)
        return start

    def called(self, begin: float, request: Message) -> None:
        """Record that a call was executed on this rank."""
        address = self._node.rank if self._node is not None else NOWHERE
        self._since = self.now()
        self.add(
            What.CALL, begin, self._since, self.name(request.meta["call"]),
            request.sender, address, request.origin, request.time,
        )  # fmt: skip

    def writing(self, write: Callable[..., T]) -> Callable[..., T]:
        """Let what another thread writes be recorded, once this one comes to it."""
        return partial(self._write, write)

    def _write(self, write: Callable[..., T], *arguments: Any) -> T:
        start = self.now()
        try:
            return write(*arguments)
        finally:
            self._written.append((start, self.now(), getattr(write, "__name__", "")))

    def _viewed(self, before: View, view: View) -> None:
        now = self.now()
        self.add(What.VIEW, now, now, time=view.epoch)

    # --- what may be brief ---------------------------------------------------------------------------

    def span(
        self,
        what: What,
        begin: float,
        name: int = 0,
        peer: int = NOBODY,
        address: int = NOWHERE,
        origin: int = NOBODY,
        time: int = -1,
        size: int = 0,
    ) -> None:
        """Record a span that ends now, or add it to the sum of those behind the gate."""
        end = self._since = self.now()
        seen = self.open or (end - begin > LONG and not self._full)
        if not (seen and self.add(what, begin, end, name, peer, address, origin, time, size)):
            self._hidden[what] += end - begin

    def executed(self, begin: float, request: Message) -> None:
        """Record that a server has executed a request."""
        end = self._since = self.now()
        if not self.open and (end - begin < LONG or self._full):
            self._hidden[_EXECUTE] += end - begin
            return
        name = int(request.command)
        if request.command is _CALL:
            name = self.name(request.meta["call"])
        if not self.add(
            _EXECUTE, begin, end, name, request.sender, ~request.shard, request.origin, request.time,
            request.payload_bytes,
        ):  # fmt: skip
            self._hidden[_EXECUTE] += end - begin

    def passed_on(self, begin: float, message: Message) -> None:
        """Record that what came along a chain was applied and passed on."""
        self.span(
            What.CHAIN, begin, int(message.command), message.sender, ~message.shard, time=message.time,
            size=message.payload_bytes,
        )  # fmt: skip

    def encoded(self, begin: float, peer: int, message: Message) -> None:
        """Record that filters have encoded a message for a rank."""
        self.span(What.ENCODE, begin, int(message.command), peer, size=message.payload_bytes)

    def decoded(self, begin: float, message: Message) -> None:
        """Record that filters have decoded a message."""
        self.span(What.DECODE, begin, int(message.command), message.sender, size=message.payload_bytes)

    def computed(self, begin: float, seconds: float) -> None:
        """Record some work; if it is brief and the gate shut, the node's own sum is all there is."""
        if not self.open and (seconds < LONG or self._full):
            return
        was_open = self.open
        seen = self.add(_COMPUTE, begin, begin + seconds)
        if was_open and not seen:
            self._hidden[_COMPUTE] += seconds
        elif seen and not was_open:
            waited, worked, issued = self._counted
            self._counted = waited, worked + seconds, issued

    def waited(self, begin: float, end: float, own: float, time: int, cause: str = "") -> None:
        """Record a wait, `own` seconds of which nothing else was done in, for the task of a time or for a cause."""
        if self._full or not (self.open or own > LONG):
            return
        last, peer, name = self._last
        if time != last or time < 0:
            peer, name = NOBODY, self.name(cause)
        was_open = self.open
        seen = self.add(_WAIT, begin, end, name, peer, NOWHERE, NOBODY, time)
        if was_open and not seen:
            self._hidden[_WAIT] += own
        elif seen and not was_open:
            waited, worked, issued = self._counted
            self._counted = waited + own, worked, issued

    def _answered(self, part: _Part) -> None:
        """Take note of a part that was answered; while the gate is open."""
        node, address, command = self._node, part.address, part.command
        assert node is not None
        name, peer = int(command), node.view.rank_of(address)
        if command is _CALL:
            name = self.name(part.message.meta["call"])
        self._last = (part.task.time, peer, name)
        if part.sent_at:
            self.add(
                _REQUEST, part.sent_at, self.now(), name, peer, address, node.tasks.origin, part.task.time
            )

    # --- rest ----------------------------------------------------------------------------------------

    def resting(self, idle: Callable[[], None]) -> Callable[[], None]:
        """Let it be known when a rank that serves has nothing to do: give what to call then instead of `idle`."""

        def rest() -> None:
            if not self._quiet:
                self._woke = self.now()
                self._quiet = self._since or self._woke
            idle()
            self._woke = self.now()

        return rest

    def _wake(self, now: float) -> None:
        quiet, self._quiet = self._quiet, 0.0
        if now - quiet < LONG or not self.add(What.IDLE, quiet, now):
            self._rested += now - quiet

    def heard(self) -> None:
        """Take note that there is something to do: since it was looked last, for no look at a clock is free here."""
        if self._serving is not None:
            self._flush()
        if self._quiet:
            self._since = self._woke
            self._wake(self._woke)

    def served(self, count: int) -> None:
        """Take note that compiled code has answered so many requests, since it was looked last."""
        now, serving = self.now(), self._serving
        begin = self._woke if self._quiet else self._since
        if serving is not None and begin - self._since <= PAUSE:
            self._serving = (serving[0], serving[1] + count)
            self._quiet = 0.0
        else:
            self._flush()
            if self._quiet:
                self._wake(begin)
            self._serving = (begin or now, count)
        self._since = now

    def _flush(self) -> None:
        """Record what was served in one go."""
        if self._serving is not None:
            (begin, count), self._serving = self._serving, None
            if self.open or (self._since - begin > LONG and not self._full):
                self.add(What.SERVE, begin, self._since, size=count)
            else:
                self._hidden[What.SERVE] += self._since - begin
