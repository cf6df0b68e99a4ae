"""Observers: callbacks for a node's events, by which traces (`mpips.tracing`) and records (`mpips.replay`) are made.

Each event has a tuple of callbacks, so an event that nobody observes costs one loop over an empty tuple. An observer
adds its methods to the events that it needs when it is attached, before the node takes a role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol

from numpy.typing import NDArray

from mpips.cluster.view import View
from mpips.tasks.caller import Tasks
from mpips.tasks.task import Task
from mpips.transport.message import Message

if TYPE_CHECKING:
    # For types only, since it loads kernels.
    from mpips.transport.fastpath.table import FastPathTable

P = ParamSpec("P")
Callbacks = tuple[Callable[P, None], ...]
Wrappers = tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...]
"""Each takes a function, and returns the function to call instead of it."""


class ChangeOrder(Protocol):
    """Records the changes of one copy of a shard, in order."""

    count: int
    """The number of the last change."""

    def change(self, number: int, command: int, callers: Sequence[tuple[int, int]]) -> None:
        """Record change `number`, and the requests (origin, time) that it finished."""

    def mark(self, number: int) -> None:
        """Record that this server is the primary as of the present epoch, after `number` changes."""


class Operation(NamedTuple):
    """A push, a pull or both that a program issues."""

    vector: str
    decodable: bool
    """Whether rows are single int64 numbers that pushes add up to."""
    keys: NDArray[Any] | None
    """None: a range."""
    rows: NDArray[Any] | None
    """What is pushed."""
    pulls: bool
    round: int
    after: tuple[Task, ...]
    addresses: tuple[int, ...]


@dataclass(slots=True)
class Observers:
    """The callbacks of a node's observers, by event. A `begin` is in seconds on the van's clock."""

    # A node.
    tasks: Callbacks[[Tasks]] = ()
    """The caller's side of tasks was made."""
    turn: Callbacks[[]] = ()
    """A message is about to be received."""
    busy: Callbacks[[]] = ()
    """The node becomes busy: a message was received, or there is low-priority work."""
    issuing: Callbacks[[Operation]] = ()
    """A program's push or pull is about to be sent."""
    issued: Callbacks[[Task]] = ()
    """It was sent, or waits for others."""
    answered: Callbacks[[int]] = ()
    """A request of the fast path, of this slot, is answered."""
    sent: Callbacks[[Message]] = ()
    """A message is about to be sent."""
    request_begins: Callbacks[[]] = ()
    request_ends: Callbacks[[]] = ()
    """A request to this rank is handled between these two events."""
    program_poll_begins: Callbacks[[]] = ()
    program_poll_ends: Callbacks[[]] = ()
    """The program polls inside a long loop between these two events."""
    workers: Callbacks[[View]] = ()
    """The worker set has changed, and this rank is or was in it."""
    encoded: Callbacks[[float, int, Message]] = ()
    """Filters encoded a message: begin, receiver's rank, message."""
    decoded: Callbacks[[float, Message]] = ()
    """Filters decoded a message."""
    computed: Callbacks[[float, float]] = ()
    """The program has worked: begin, seconds."""
    waited: Callbacks[[float, float, float, int, str]] = ()
    """The node has waited: begin, end, idle seconds, time of the task or -1, cause."""
    # A server.
    serves: Callbacks[[FastPathTable]] = ()
    """A server starts, with the table of its fast path."""
    orders: tuple[Callable[[int], ChangeOrder], ...] = ()
    """Each returns the recorder of the changes of shard `number`."""
    passed_on: Callbacks[[float, Message]] = ()
    """A change of another primary was applied and forwarded."""
    executed: Callbacks[[float, Message]] = ()
    """A request to a shard was executed."""
    idling: Wrappers = ()
    """Wrap the function that a server calls when it is idle."""
    # Calls and checkpoints.
    called: Callbacks[[Message]] = ()
    """A call of the scheduler has arrived at a worker."""
    notified: Callbacks[[dict[str, Any]]] = ()
    """An immediate call has arrived at a worker."""
    calls: tuple[Callable[[Message], AbstractContextManager[None]], ...] = ()
    """Contexts in which a call is executed."""
    writing: Wrappers = ()
    """Wrap the function that writes a file of a checkpoint, in another thread."""
    # The leader.
    spans: tuple[Callable[[int, str], AbstractContextManager[None]], ...] = ()
    """Contexts that are one span each, of a kind (`mpips.tracing.trace_file.What`) and a name."""
    decided: Callbacks[[int, Any]] = ()
    """The leader has made a decision: its number and value."""
    results: tuple[Callable[[], dict[str, Any]], ...] = ()
    """Each returns its entries of `result.json`."""
    need_start: bool = False
    """Whether the checkpoint that the run started from must not be removed."""
    close: Callbacks[[]] = ()
    """The node has left."""

    def wrapped(self, wrappers: Wrappers, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function by each of `wrappers`."""
        for wrap in wrappers:
            function = wrap(function)
        return function

    def during(self, what: int, name: str = "") -> AbstractContextManager[None]:
        """Return a context that observers see as one span."""
        return _inside(span(what, name) for span in self.spans)

    def calling(self, request: Message) -> AbstractContextManager[None]:
        """Return the context in which a call is executed."""
        return _inside(call(request) for call in self.calls)


@contextmanager
def _inside(contexts: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield
