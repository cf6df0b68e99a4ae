"""Observers: who is told of a node's events, as a trace (`mpips.tracing`) and a record (`mpips.replay`) are.

Each event has a tuple of callbacks, so an event that nobody observes costs one loop over an empty tuple. An observer
adds its methods to the events that it needs when it is attached, before the node takes a role.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

from mpips.cluster.view import View
from mpips.tasks.caller import Tasks
from mpips.transport.message import Message

if TYPE_CHECKING:
    from mpips.transport.fastpath_table import FastPathTable  # which compiled code comes with

P = ParamSpec("P")
Callbacks = tuple[Callable[P, None], ...]
Wrappers = tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...]
"""Each is given a function, and gives what to call instead of it."""


class ChangeOrder(Protocol):
    """Writes down the changes of one copy of a shard, in order."""

    count: int
    """The number of the last change."""

    def change(self, number: int, command: int, callers: Sequence[tuple[int, int]]) -> None:
        """Note that this is change `number`, and whose requests (origin, time) it was."""

    def mark(self, number: int) -> None:
        """Note that this server answers for the shard since the present epoch, after so many changes."""


@dataclass(slots=True)
class Observers:
    """The callbacks of a node's observers, by event. A `begin` is in seconds on the van's clock."""

    # A node.
    tasks: Callbacks[[Tasks]] = ()
    """The caller's half of tasks was made."""
    turn: Callbacks[[]] = ()
    """A message is about to be received."""
    busy: Callbacks[[]] = ()
    """There is something to do: a message was received, or work without urgency is at hand."""
    answered: Callbacks[[int]] = ()
    """A request of the fast path, of this slot, is answered."""
    sent: Callbacks[[Message]] = ()
    """A message is about to be sent."""
    request_begins: Callbacks[[]] = ()
    request_ends: Callbacks[[]] = ()
    """A request to this rank is handled between the two."""
    breath_begins: Callbacks[[]] = ()
    breath_ends: Callbacks[[]] = ()
    """The program polls from inside a long loop between the two."""
    workers: Callbacks[[View]] = ()
    """The workers are others, and this rank is or was one of them."""
    encoded: Callbacks[[float, int, Message]] = ()
    """Filters encoded a message: begin, receiver's rank, message."""
    decoded: Callbacks[[float, Message]] = ()
    """Filters decoded a message."""
    computed: Callbacks[[float, float]] = ()
    """The program has worked: begin, seconds."""
    waited: Callbacks[[float, float, float, int, str]] = ()
    """The node has waited: begin, end, seconds in which nothing else was done, time of the task or -1, cause."""
    # A server.
    serves: Callbacks[[FastPathTable]] = ()
    """A server begins, with this table of what its fast path serves."""
    orders: tuple[Callable[[int], ChangeOrder], ...] = ()
    """Each gives what is told of the changes of the shard of a number."""
    passed_on: Callbacks[[float, Message]] = ()
    """What came along a chain was applied and passed on."""
    executed: Callbacks[[float, Message]] = ()
    """A request to a shard was executed."""
    resting: Wrappers = ()
    """Around what a server calls when it has nothing to do."""
    # Calls and checkpoints.
    called: Callbacks[[Message]] = ()
    """A call of the scheduler has come to a worker."""
    aside: Callbacks[[dict[str, Any]]] = ()
    """Something is to be done beside the worker's program."""
    calls: tuple[Callable[[Message], AbstractContextManager[None]], ...] = ()
    """A call is executed inside."""
    writing: Wrappers = ()
    """Around what writes a file of a checkpoint, in another thread."""
    # The leader.
    spans: tuple[Callable[[int, str], AbstractContextManager[None]], ...] = ()
    """What is done inside is one span of a kind (`mpips.tracing.trace_file.What`), with a name."""
    decided: Callbacks[[int, Any]] = ()
    """The leader has made the decision of a number."""
    results: tuple[Callable[[], dict[str, Any]], ...] = ()
    """Each gives what it adds to `result.json`."""
    need_start: bool = False
    """Whether the checkpoint that the run started from must stay."""
    close: Callbacks[[]] = ()
    """The node has left."""

    def wrapped(self, wrappers: Wrappers, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function by each of `wrappers`."""
        for wrap in wrappers:
            function = wrap(function)
        return function

    def during(self, what: int, name: str = "") -> AbstractContextManager[None]:
        """Tell observers that what is done inside is one span."""
        return _inside(span(what, name) for span in self.spans)

    def calling(self, request: Message) -> AbstractContextManager[None]:
        """Tell observers that a call is executed inside."""
        return _inside(call(request) for call in self.calls)


@contextmanager
def _inside(contexts: Iterable[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as entered:
        for context in contexts:
            entered.enter_context(context)
        yield
