"""A node: one rank at work (the paper's node; ps-lite's postoffice).

It owns the van, the caller's and the callee's half of its tasks, and the view. `poll` moves one message and
`wait` polls until a task is finished; everything that a rank does goes on inside one of the two, in one thread.
What a request means is a policy: the role registers a handler for each command.
"""

from __future__ import annotations

import socket
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError, MpipsError, ProtocolError, RemoteError
from mpips.faults import Faults
from mpips.filters import Chain
from mpips.layout import Layout
from mpips.membership import View
from mpips.message import Command, Kind, Message
from mpips.task import Inbox, Task, Tasks

if TYPE_CHECKING:
    from mpips.van import Van  # whose import starts MPI

Handler = Callable[[Message], None]
T = TypeVar("T")


class Stopped(BaseException):
    """The scheduler asks this rank to leave with an exit code; unwinds whatever the rank was doing."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class _Working:
    """The context of `Node.working`; not nested, and cheap enough to stand around tens of microseconds."""

    __slots__ = ("_node", "_start")

    def __init__(self, node: Node) -> None:
        self._node, self._start = node, 0.0

    def __enter__(self) -> None:
        self._start = self._node.van.now()

    def __exit__(self, *_: object) -> None:
        node, start = self._node, self._start
        seconds = node.van.now() - start
        if node.faults is not None:
            node.faults.worked(seconds)
            seconds = node.van.now() - start
        node.worked += seconds


class Node:
    """One rank's part in the cluster.

    `resend` is the time in seconds after which an unanswered request is sent again (None: never; MPI loses nothing).
    """

    def __init__(
        self,
        van: Van,
        layout: Layout,
        view: View,
        *,
        faults: Faults | None = None,
        window: int = 64,
        resend: float | None = None,
        outgoing: Chain | None = None,
        incoming: Chain | None = None,
    ) -> None:
        self.van, self.layout, self.view = van, layout, view
        self.place = layout.places[van.rank]
        self.rank, self.host = van.rank, socket.gethostname()
        self._outgoing, self._incoming = outgoing or Chain(), incoming or Chain()
        decode = self._incoming.decode
        self.tasks = Tasks(self.send, window, resend, encode=self._encode, decode=decode)
        self.tasks.now = van.now
        self.inbox = Inbox(self.send, resend is not None, encode=self._encode, decode=decode)
        self.handlers: dict[Command, Handler] = {}
        self.waited = 0.0  # seconds in `wait`, all told
        self.worked = 0.0  # seconds in `working`
        self.saved_bytes = 0  # by filters
        self.faults = faults
        self._ready: deque[Message] = deque()
        self._delayed: list[tuple[float, int, int, Message]] = []
        self._order = count()
        self._resend = resend
        self._next_resend = 0.0
        self._barrier: set[int] = set()
        self._working = _Working(self)

    # --- sending -----------------------------------------------------------------------------

    def send(self, dest: int, message: Message) -> None:
        """Send one message, through whatever faults are injected."""
        message.sender = self.rank
        if self.faults is None or message.kind is Kind.CONTROL:  # nobody would send a lost one again
            self.van.send(dest, message)
            return
        for delay in self.faults.message():
            if delay > 0:
                heappush(self._delayed, (self.van.now() + delay, next(self._order), dest, message))
            else:
                self.van.send(dest, message)

    def _encode(self, dest: int, message: Message) -> Message:
        if not self._outgoing.filters:
            return message
        encoded = self._outgoing.encode(dest, message)
        self.saved_bytes += message.payload_bytes - encoded.payload_bytes
        return encoded

    def reply(
        self,
        request: Message,
        values: NDArray[Any] | None = None,
        meta: dict[str, Any] | None = None,
        keys: NDArray[np.uint64] | None = None,
    ) -> None:
        """Finish a request, with rows of values, with metadata, with keys, or with nothing."""
        message = Message(Kind.REPLY, request.command, keys=keys, values=values, epoch=request.epoch)
        if meta:
            message.meta = meta
        self._ready.extend(self.inbox.finish(request, message))

    def fail(self, request: Message, error: BaseException) -> None:
        """Finish a request with an error, which is raised where its caller waits for it."""
        meta = self.describe(error)
        self._ready.extend(
            self.inbox.finish(request, Message(Kind.FAILURE, request.command, meta=meta, epoch=request.epoch))
        )

    def describe(self, error: BaseException) -> dict[str, Any]:
        """Say what failed and where, as metadata; an error that came from another rank keeps that rank's."""
        if isinstance(error, RemoteError):
            return {
                "rank": error.rank,
                "role": error.role,
                "host": error.host,
                "text": error.text,
                "trace": error.trace,
                "is_input": error.is_input,
            }
        text = str(error) if isinstance(error, MpipsError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        return {
            "rank": self.rank,
            "role": f"{self.place.role.name.lower()} {self.place.index}",
            "host": self.host,
            "text": " ".join(text.split()).removesuffix(":"),
            "trace": trace[-8000:],
            "is_input": isinstance(error, InputError),
        }

    # --- receiving ---------------------------------------------------------------------------

    def poll(self) -> bool:
        """Move at most one message; give whether there was one."""
        if self.faults is not None:
            self.faults.poll()
            while self._delayed and self._delayed[0][0] <= self.van.now():
                _, _, dest, late = heappop(self._delayed)
                self.van.send(dest, late)
        if self._resend is not None and self.van.now() >= self._next_resend:
            self._next_resend = self.van.now() + self._resend / 4
            self.tasks.resend()
        message = self.van.receive()
        if message is None and not self._ready:
            return False
        if message is not None:
            self._take(message)
        while self._ready:
            self._start(self._ready.popleft())
        return True

    def _take(self, message: Message) -> None:
        if message.kind is Kind.REQUEST:
            self._ready.extend(self.inbox.admit(message))
        elif message.kind is Kind.CONTROL:
            self._control(message)
        else:
            self.tasks.answer(message)

    def _start(self, request: Message) -> None:
        try:
            if request.epoch != self.view.epoch:
                raise ProtocolError(f"a request of epoch {request.epoch}, this is epoch {self.view.epoch}")
            handler = self.handlers.get(request.command)
            if handler is None:
                raise ProtocolError(f"no {request.command.name} is served here")
            handler(request)
        except Exception as error:
            self.fail(request, error)

    def _control(self, message: Message) -> None:
        meta = message.meta
        if message.command is Command.STOP:
            raise Stopped(int(meta["code"]), str(meta.get("reason", "")))
        if message.command is Command.FAILED:
            raise RemoteError(
                int(meta["rank"]), str(meta["role"]), str(meta["host"]), str(meta["text"]),
                str(meta["trace"]), bool(meta["is_input"]),
            )  # fmt: skip
        if message.command is Command.BARRIER:
            self._barrier.add(message.sender)

    # --- waiting and working -----------------------------------------------------------------

    def wait(self, task: Task) -> Any:
        """Poll until `task` is finished; give its result.

        Raises:
            RemoteError: a part of the task failed on another rank. It is raised at once: the other parts may
                be waiting for what will never come.
        """
        if not task.done:
            self.wait_until(lambda: task.done or task.error is not None)
        if task.error is not None:
            raise task.error
        return task.result

    def wait_all(self, tasks: Iterable[Task]) -> list[Any]:
        """Wait for each of `tasks`; give their results in order."""
        return [self.wait(task) for task in list(tasks)]

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Poll until `done()`; the time counts as waiting, but for what callbacks spend `working`."""
        start, worked = self.van.now(), self.worked
        while not done():
            if not self.poll():
                self.van.idle()
        self.waited += self.van.now() - start - (self.worked - worked)

    def working(self) -> _Working:
        """Count the time inside `with node.working():` as work; an injected straggler is slow there."""
        return self._working

    def account(self) -> dict[str, Any]:
        """Say what this node has sent and how it has spent its time so far: bytes and seconds."""
        sent = self.van.sent_bytes
        return {
            "sent": sent,
            "raw": sent + self.saved_bytes,
            "received": self.van.received_bytes,
            "waited": self.waited,
            "worked": self.worked,
        }

    def step(self, step: int) -> None:
        """Say that a step of the algorithm begins; injected faults may be due."""
        if self.faults is not None:
            self.faults.step(step)

    def breathe(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through, moving messages between them, so that a long loop still hears a stop."""
        for item in items:
            self.poll()
            yield item

    # --- leaving -----------------------------------------------------------------------------

    def control(self, dest: int, command: Command, meta: dict[str, Any]) -> None:
        """Send a control message."""
        self.send(dest, Message(Kind.CONTROL, command, meta=meta))

    def leave(self, patience: float = 3.0) -> bool:
        """Leave together: wait until every rank has nothing left to do; give whether they all said so in time."""
        others = {place.rank for place in self.layout.places} - {self.rank}
        for dest in others:
            self.control(dest, Command.BARRIER, {})
        deadline = self.van.now() + patience
        while self.van.pending() or not others <= self._barrier:
            if self.van.now() > deadline:
                return False
            try:
                if not self.poll():
                    self.van.idle()
            except (Stopped, MpipsError):
                continue  # it leaves already
        return True
