"""The recorder of a trace: writes records of a node's activity (`mpips.tracing.analysis` reads them).

Each rank writes to its own file (`mpips.tracing.trace_file`), and sends nothing. An execution is recorded under the
name of its request, (origin, address, time), as the request is at the caller, so that a reader can match them.

The cost is bounded (`mpips.tracing.token_bucket`). While the bucket is closed, brief spans are summed; the node keeps
most of these sums anyway. So a rank that computes and waits is recorded in full, and one that sends a request every ten
microseconds in bursts, with sums in between. (A record takes about 1 us in a loop that does nothing else.)

The module is long since it is one list of probes, a few lines each, in the order of a message's processing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpips.cluster.registration import Registration
from mpips.process.host import clock_name
from mpips.tracing.token_bucket import LONG, TokenBucket
from mpips.tracing.trace_file import NOBODY, NOWHERE, TraceFile, What
from mpips.transport.message import Command, Message
from mpips.typed import LARGEST

if TYPE_CHECKING:
    from mpips.cluster.node import Node
    from mpips.cluster.view import View
    from mpips.tasks.caller import Tasks
    from mpips.tasks.part import Part
    from mpips.transport.fastpath.table import FastPathTable
    from mpips.transport.van import Van

T = TypeVar("T")

PAUSE = 50e-6
"""Idle seconds between served requests that count as serving."""
SAMPLE, NOTE = 0.05, 1.0
"""Seconds between two samples of the transferred bytes, and between two updates of the unrecorded sums."""
_COMPUTE, _WAIT, _EXECUTE, _REQUEST = map(int, (What.COMPUTE, What.WAIT, What.EXECUTE, What.REQUEST))
_CALL = Command.CALL


@dataclass(frozen=True)
class TraceSpec:
    """Tracing of how each rank spends its time; `mpips trace RUN` shows it."""

    on: bool = False
    """Whether ranks write traces."""
    limit: float = field(default=16e6, metadata={"at_least": 4e5, "at_most": LARGEST})
    """Largest size in bytes of a rank's trace; beyond it, only sums are kept."""
    detail: int = field(default=5, metadata={"at_least": 0, "at_most": 1_000_000})
    """Spans that a rank may record per 5 ms on average; beyond, those below half a millisecond are only summed.
    More of them cost more time."""
    history: bool = False
    """Whether ranks record each push, pull, round, call and view, for `mpips verify RUN --history`; for tests."""


def trace_node(node: Node, spec: TraceSpec, path: Path, started: float, warn: Callable[[str], None]) -> None:
    """Trace a node, if `spec` asks for it, from its process's start, `started`; warn if the file cannot be created."""
    if not spec.on:
        return
    place = node.place
    facts = {
        "rank": place.rank, "role": place.role.value, "index": place.index, "host": node.host, "pid": os.getpid(),
        "clock": clock_name(node.host),
    }  # fmt: skip
    try:
        trace = Trace(path, facts, spec.limit, spec.detail)
    except OSError as error:
        warn(f"mpips: warning: rank {place.rank} has no trace: {path}: {error.strerror or error}")
        return
    trace.attach(node)
    trace.add(What.START, started, trace.now())


def _offset(now: Callable[[], float], wall: Callable[[], float]) -> float:
    """Return the offset of the time of day from a clock (s), from the fastest of several readings of both."""
    readings = ((now(), wall(), now()) for _ in range(5))
    begin, at, end = min(readings, key=lambda each: each[2] - each[0])
    return at - (begin + end) / 2


class Trace:
    """One rank's trace, in a file of at most `limit` bytes, with `detail` records in 5 ms; see the module.

    `facts` identify the rank.

    Raises:
        OSError: the file cannot be created.
    """

    __slots__ = (
        "_brief_idle", "_checked_at", "_counted", "_idle_since", "_last", "_next_note", "_next_sample", "_node",
        "_sampled", "_serving", "_since", "_written", "bucket", "file", "now",
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
        self.now = now
        self.file = TraceFile(path, {**facts, "wall": _offset(now, wall)}, int(limit))
        self.bucket = TokenBucket(detail, now())
        self._node: Node | None = None
        # Time, rank and name of the last answered part.
        self._last = (-1, NOBODY, 0)
        # Begin of the present idle time (0: busy), and the time of the last check.
        self._idle_since = self._checked_at = 0.0
        # Begin of the present serving by compiled code, and its number of requests.
        self._serving: tuple[float, int] | None = None
        # End of the last known activity.
        self._since = 0.0
        # Brief idle seconds since the last sample.
        self._brief_idle = 0.0
        # The node's waited and worked seconds and issued tasks when the bucket was closed.
        self._counted = (0.0, 0.0, 0)
        self._written: deque[tuple[float, float, str]] = deque()
        self._next_sample = self._next_note = self._sampled = now()

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
        """Write one record; return whether there was room."""
        bucket = self.bucket
        if not self.file.add(what, begin, end, name, peer, address, origin, time, size):
            if bucket.open:
                self._close_bucket(self.now())
            return False
        bucket.tokens -= 1
        if bucket.tokens < 0 and bucket.open:
            self._close_bucket(end)
        return True

    def _note(self, now: float) -> None:
        """Write the unrecorded sums and the length of the trace, in case this is its end."""
        waited, worked, issued = self._since_closed()
        unseen = list(self.bucket.hidden)
        unseen[What.WAIT] += waited
        unseen[What.COMPUTE] += worked
        self.file.note(now, issued, self.bucket.since, unseen)

    def close(self) -> None:
        """Write the remaining sums, and close the file; idempotent."""
        if self.file.closed:
            return
        self.end_idle()
        self._next_sample = 0.0
        self.tick()
        self._note(self.now())
        self.bucket.open = False
        self.file.close()

    # --- the node -------------------------------------------------------------------------------

    def attach(self, node: Node) -> None:
        """Observe a node, before it takes a role."""
        self._node, events = node, node.observers
        node.register(Registration(ticks=(self.tick,), views=(self._viewed,)))
        events.tasks += (self.watch,)
        events.busy += (self.end_idle,)
        events.encoded += (self.encoded,)
        events.decoded += (self.decoded,)
        events.computed += (self.computed,)
        events.waited += (self.waited,)
        events.serves += (self._serves,)
        events.passed_on += (self.passed_on,)
        events.executed += (self.executed,)
        events.idling += (self.idling,)
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
        """Observe the answers to a caller's tasks, while the bucket is open."""
        tasks.on_answered = self._answered if self.bucket.open else None
        tasks.stamps = tasks.lossy or self.bucket.open

    def _since_closed(self) -> tuple[float, float, int]:
        """Return the node's waited and worked seconds and issued tasks since the bucket was closed."""
        node = self._node
        if node is None or self.bucket.open:
            return 0.0, 0.0, 0
        waited, worked, issued = self._counted
        return node.time_use.waited - waited, node.time_use.worked - worked, node.tasks.issued - issued

    def _close_bucket(self, now: float) -> None:
        self.bucket.open, self.bucket.since = False, now
        node = self._node
        if node is not None:
            self._counted = (node.time_use.waited, node.time_use.worked, node.tasks.issued)
            self.watch(node.tasks)

    def _reopen(self, now: float) -> None:
        waited, worked, issued = self._since_closed()
        bucket = self.bucket
        hidden, bucket.hidden = bucket.hidden, [0.0] * len(What)
        hidden[What.WAIT] += waited
        hidden[What.COMPUTE] += worked
        bucket.open = True
        for what, seconds in enumerate(hidden):
            if seconds > 0:
                self.add(What.UNSEEN, bucket.since, now, what, time=max(issued, 0), size=int(seconds * 1e9))
                issued = 0
        if self._node is not None:
            self.watch(self._node.tasks)

    def tick(self) -> None:
        """Open the bucket if allowed, and write what is due; the node calls it every few milliseconds."""
        now = self.now()
        if self.bucket.refill(now) and not self.bucket.open and not self.file.full:
            self._reopen(now)
        while self._written:
            begin, end, name = self._written.popleft()
            self.add(What.WRITE, begin, end, self.file.name(name))
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE
            self._flush()
            if self._idle_since and now - self._idle_since > NOTE:
                self._record_idle(now)
                self._idle_since = now
            if self._node is not None:
                self._sample(now, self._node.van)
        if now >= self._next_note:
            self._next_note = now + NOTE
            self._note(now)

    def _sample(self, now: float, van: Van) -> None:
        """Record the bytes transferred so far, and the brief idle times since the last sample."""
        idle_us = min(int(self._brief_idle * 1e6), NOWHERE)
        if self.add(
            What.MOVED, self._sampled, now, address=idle_us, time=van.sent_bytes, size=van.received_bytes
        ):
            self._sampled, self._brief_idle = now, 0.0

    # --- long spans ---------------------------------------------------------------------------

    @contextmanager
    def during(self, what: int, name: str = "") -> Iterator[None]:
        """Record the time inside the context as one span."""
        start, number = self.begin(what, name), self.file.name(name)
        try:
            yield
        finally:
            self.add(what, start, self.now(), number)

    def begin(self, what: int, name: str) -> float:
        """Record the begin of a span that must be known even if it never ends; return its time."""
        self.end_idle()
        start = self.now()
        self.add(What.BEGUN, start, start, self.file.name(name), size=what)
        return start

    def called(self, begin: float, request: Message) -> None:
        """Record that a call was executed on this rank."""
        address = self._node.rank if self._node is not None else NOWHERE
        self._since = self.now()
        self.add(
            What.CALL, begin, self._since, self.file.name(request.meta["call"]),
            request.sender, address, request.origin, request.time,
        )  # fmt: skip

    def writing(self, write: Callable[..., T]) -> Callable[..., T]:
        """Wrap a function of another thread, so that its span is recorded by this thread later."""
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

    # --- spans that may be brief ---------------------------------------------------------------------------

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
        """Record a span that ends now, or add it to the sums if the bucket is closed."""
        end = self._since = self.now()
        seen = self.bucket.open or (end - begin > LONG and not self.file.full)
        if not (seen and self.add(what, begin, end, name, peer, address, origin, time, size)):
            self.bucket.hidden[what] += end - begin

    def executed(self, begin: float, request: Message) -> None:
        """Record that a server has executed a request."""
        end = self._since = self.now()
        if not self.bucket.open and (end - begin < LONG or self.file.full):
            self.bucket.hidden[_EXECUTE] += end - begin
            return
        name = int(request.command)
        if request.command is _CALL:
            name = self.file.name(request.meta["call"])
        if not self.add(
            _EXECUTE, begin, end, name, request.sender, ~request.shard, request.origin, request.time,
            request.payload_bytes,
        ):  # fmt: skip
            self.bucket.hidden[_EXECUTE] += end - begin

    def passed_on(self, begin: float, message: Message) -> None:
        """Record that a change of another primary was applied and forwarded."""
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
        """Record some work; brief work while the bucket is closed is only in the node's own sum."""
        if not self.bucket.open and (seconds < LONG or self.file.full):
            return
        was_open = self.bucket.open
        seen = self.add(_COMPUTE, begin, begin + seconds)
        if was_open and not seen:
            self.bucket.hidden[_COMPUTE] += seconds
        elif seen and not was_open:
            waited, worked, issued = self._counted
            self._counted = waited, worked + seconds, issued

    def waited(self, begin: float, end: float, own: float, time: int, cause: str = "") -> None:
        """Record a wait for the task `time` or for a cause; `own`: its idle seconds."""
        if self.file.full or not (self.bucket.open or own > LONG):
            return
        last, peer, name = self._last
        if time != last or time < 0:
            peer, name = NOBODY, self.file.name(cause)
        was_open = self.bucket.open
        seen = self.add(_WAIT, begin, end, name, peer, NOWHERE, NOBODY, time)
        if was_open and not seen:
            self.bucket.hidden[_WAIT] += own
        elif seen and not was_open:
            waited, worked, issued = self._counted
            self._counted = waited + own, worked, issued

    def _answered(self, part: Part) -> None:
        """Record an answered part; called while the bucket is open."""
        node, address, command = self._node, part.address, part.command
        assert node is not None
        name, peer = int(command), node.view.rank_of(address)
        if command is _CALL:
            name = self.file.name(part.message.meta["call"])
        self._last = (part.task.time, peer, name)
        if part.sent_at:
            self.add(
                _REQUEST, part.sent_at, self.now(), name, peer, address, node.tasks.origin, part.task.time
            )

    # --- idle time ----------------------------------------------------------------------------------------

    def idling(self, idle: Callable[[], None]) -> Callable[[], None]:
        """Wrap the function that a serving rank calls when it is idle, to record its idle time."""

        def idle_recorded() -> None:
            if not self._idle_since:
                self._checked_at = self.now()
                self._idle_since = self._since or self._checked_at
            idle()
            self._checked_at = self.now()

        return idle_recorded

    def _record_idle(self, end: float) -> None:
        begin, self._idle_since = self._idle_since, 0.0
        if end - begin < LONG or not self.add(What.IDLE, begin, end):
            self._brief_idle += end - begin

    def end_idle(self) -> None:
        """End the idle time, at the last check: reading the clock here would cost too much."""
        if self._serving is not None:
            self._flush()
        if self._idle_since:
            self._since = self._checked_at
            self._record_idle(self._checked_at)

    def served(self, count: int) -> None:
        """Record that compiled code has answered `count` requests since the last check."""
        now, serving = self.now(), self._serving
        begin = self._checked_at if self._idle_since else self._since
        if serving is not None and begin - self._since <= PAUSE:
            self._serving = (serving[0], serving[1] + count)
            self._idle_since = 0.0
        else:
            self._flush()
            if self._idle_since:
                self._record_idle(begin)
            self._serving = (begin or now, count)
        self._since = now

    def _flush(self) -> None:
        """Record the present serving as one span."""
        if self._serving is not None:
            (begin, count), self._serving = self._serving, None
            if self.bucket.open or (self._since - begin > LONG and not self.file.full):
                self.add(What.SERVE, begin, self._since, size=count)
            else:
                self.bucket.hidden[What.SERVE] += self._since - begin
