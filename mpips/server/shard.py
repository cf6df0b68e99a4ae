"""A shard: what one virtual server of the ring holds, and the record of what it has applied (paper, section 4.3).

For every vector it has the rows of a fixed range of keys, with the update's state, settings, notes and clock; and
beside them the inbox of its requests. All of it changes by one change after the other, numbered from 1 on: every
member of the shard's chain applies the same ones in the same order, and so holds the same.

Only the primary knows more: the pushes of rounds that wait for other workers, and requests that wait for tasks. These
are unanswered, so whoever is primary next will be sent them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.hash_ring import Ring
from mpips.cluster.observer import ChangeOrder
from mpips.errors import ProtocolError
from mpips.storage.aggregate import Aggregator
from mpips.storage.segment import Segment, Slots, one_by_one
from mpips.storage.updates import VectorSpec, call_named, value_row
from mpips.storage.vector_clock import RangedClock
from mpips.tasks.request_dedup import Kept, RequestDedup
from mpips.transport.fastpath_table import ADD, ASSIGN, NO_PUSH, Simple
from mpips.transport.message import CODES, NO_ROUND, Command, Kind, Message, reply_to

AGGREGATE = -1  # the clock's name for "all workers together"
PUSHES = {"add": ADD, "assign": ASSIGN}
"""What pushes of these updates do, as the lane knows it."""
Round = tuple[int, int]  # an aggregation: its round, and where its range begins
Describe = Callable[[BaseException], dict[str, Any]]


class Caller(NamedTuple):
    """Whose request a change finishes: the task's caller and time, what that has acknowledged, what it asked for.

    A change carries its callers in `Message.after`, two pairs each.
    """

    origin: int
    time: int
    acked: int
    command: int


def callers_of(change: Message) -> list[Caller]:
    """Return whose requests a change finishes."""
    pairs = change.after
    return [Caller(*pairs[at], *pairs[at + 1]) for at in range(0, len(pairs), 2)]


def slots_of(segment: Segment, request: Message, create: bool = False) -> Slots:
    """Return the rows that a request is about: those it was found to be about before, or else by its keys."""
    if request.slots is None:
        return segment.resolve(request.range if request.keys is None else request.keys, create)
    return request.slots


class Hosted:
    """A shard's part of one vector: its segment, and the rounds that wait for more workers."""

    def __init__(self, segment: Segment, workers: Sequence[int]) -> None:
        self.segment = segment
        self.clock = segment.clock = RangedClock()
        self.aggregator = Aggregator(segment, workers)
        self.waiting: dict[Round, dict[int, Message]] = {}  # by caller
        self.broken: dict[Round, tuple[Exception, set[int]]] = {}  # why, and who has not heard it yet

    @property
    def simple(self) -> Simple | None:
        """Return how the lane may serve these rows; None if what a push or pull does is not that simple."""
        segment = self.segment
        spec, update = segment.spec, segment.update
        push = PUSHES.get(update.name, NO_PUSH) if segment.push_row == value_row(spec) else NO_PUSH
        if spec.aggregate or update.read is not None or not segment.ranges:
            return None
        values, first = segment.values, segment.ranges[0]
        rows = first.span if spec.dense and len(segment.ranges) == 1 else 0
        code = CODES[values.dtype]
        return Simple(values.ctypes.data, code, spec.width, first.begin if rows else 0, rows, push, True)

    def abandon(self, workers: Sequence[int]) -> list[Message]:
        """Forget the rounds that wait, and go on with these workers; give the requests that waited."""
        forgotten = [request for requests in self.waiting.values() for request in requests.values()]
        self.waiting.clear()
        self.broken.clear()
        self.aggregator = Aggregator(self.segment, workers)
        return forgotten


class RoundAnswer:
    """What answers the pushes of one round: the update's rows for the union of their keys."""

    def __init__(self, segment: Segment, slots: Slots, rows: NDArray[Any] | None) -> None:
        self.segment, self.slots, self.rows = segment, slots, rows
        self._order: NDArray[np.int64] | None = None

    def __call__(self, request: Message) -> Message:
        """Answer one of the pushes, by the keys that it names."""
        rows = None
        if request.command is Command.PUSH_PULL and self.rows is not None:
            rows = self.rows[self._places(request)]
        return reply_to(request, rows)

    def _places(self, request: Message) -> NDArray[np.int64]:
        slots = one_by_one(self.slots)
        if self._order is None:
            self._order = np.argsort(slots, kind="stable")
        wanted = one_by_one(slots_of(self.segment, request))
        places: NDArray[np.int64] = self._order[np.searchsorted(slots, wanted, sorter=self._order)]
        return places


class Shard:
    """A shard's state, and what a change does to it; see the module.

    `describe` says of an error what its caller is to be told, `workers` are those of this moment.
    """

    def __init__(
        self, number: int, ring: Ring, workers: Sequence[int], inbox: RequestDedup, describe: Describe
    ) -> None:
        self.number, self.ring, self.workers, self.inbox = number, ring, workers, inbox
        self.vectors: dict[int, Hosted] = {}
        self.changes = 0
        """The number of the last change that was applied."""
        self._describe = describe
        self.order: ChangeOrder | None = None
        """Writes down what was changed in which order, if the run is recorded."""

    def _begin_change(self, request: Message, callers: Sequence[Caller] = ()) -> None:
        self.changes += 1
        if self.order is not None:
            pairs = [caller[:2] for caller in callers] or [(request.origin, request.time)]
            self.order.change(self.changes, int(request.command), pairs)

    def hosted(self, namespace: int) -> Hosted:
        """Find a vector."""
        found = self.vectors.get(namespace)
        if found is None:
            raise ProtocolError(f"there is no vector number {namespace}")
        return found

    def create(self, namespace: int, spec: VectorSpec, expect: int = 0) -> Hosted:
        """Make the shard's part of a vector."""
        segment = Segment(spec, [self.ring.range(self.number, spec.extent)], expect=expect)
        hosted = self.vectors[namespace] = Hosted(segment, self.workers)
        return hosted

    # --- changes: each of these is one, and gives what answers its callers -----------------

    def push(self, request: Message) -> Message:
        """Apply one push by itself."""
        self._begin_change(request)
        try:
            segment = self.hosted(request.namespace).segment
            assert request.values is not None
            wants = request.command is Command.PUSH_PULL
            rows = segment.push_slots(slots_of(segment, request, create=True), request.values, wants)
        except Exception as error:
            return self.failure(request, error)
        return reply_to(request, rows)

    def sum_up(
        self, request: Message, callers: Sequence[Caller], slots: Slots, sums: NDArray[Any], wants: bool
    ) -> Message | RoundAnswer:
        """Apply the sum of a round's pushes, which are those of `callers`; `request` is any of them."""
        segment = self.hosted(request.namespace).segment
        self._begin_change(request, callers)
        segment.advance(request.range, AGGREGATE, request.round)
        try:
            rows = segment.push_slots(slots, sums, wants) if len(sums) else None
        except Exception as error:
            return self.failure(request, error)
        if wants and rows is None:
            rows = segment.pull_slots(slots)
        return RoundAnswer(segment, slots, rows)

    def call(self, request: Message, own: Callable[..., dict[str, Any]] | None) -> Message:
        """Apply a function: one of the server's `own`, given its arguments, or a registered one, given the segment."""
        self._begin_change(request)
        name, args = request.meta["call"], request.meta["args"]
        try:
            if own is not None:
                answer = own(self, **args)
            else:
                answer = call_named(name).function(self.hosted(request.namespace).segment, args)
        except Exception as error:
            return self.failure(request, error)
        return reply_to(request, meta=answer)

    def failure(self, request: Message, error: BaseException) -> Message:
        """Make the reply that says why a request failed."""
        reply = reply_to(request, meta=self._describe(error))
        reply.kind = Kind.FAILURE
        return reply

    # --- the same at the other members of the chain --------------------------------------

    def repeat(self, change: Message, own: Callable[..., dict[str, Any]] | None) -> None:
        """Apply a change that the primary has applied, and note what answers its callers."""
        callers = callers_of(change)
        request = copy(change)  # as the primary had it: the change itself may be sent on
        request.origin, request.time = callers[0][:2]
        if change.command is Command.CALL:
            kept: Kept = self.call(request, own)
        elif change.round == NO_ROUND:
            kept = self.push(request)
        else:
            assert change.values is not None
            segment = self.hosted(change.namespace).segment
            slots = segment.resolve(change.range) if change.keys is None else segment.slots_of(change.keys)
            sums = segment.shaped(slots, change.values)
            kept = self.sum_up(request, callers, slots, sums, change.command is Command.PUSH_PULL)
        self.finish(callers, kept)

    def finish(self, callers: Sequence[Caller], kept: Kept) -> list[Message]:
        """Note that requests are finished; give those that waited for them."""
        ready: list[Message] = []
        for caller in callers:
            mine = kept if callable(kept) else for_caller(caller, kept)
            ready += self.inbox.finish(caller.origin, caller.time, mine, caller.acked)
        return ready

    def abandon(self) -> None:
        """Forget what only a primary knows."""
        for hosted in self.vectors.values():
            hosted.abandon(self.workers)
        self.inbox.abandon()


def for_caller(caller: Caller, reply: Message) -> Message:
    """Give a reply that several requests share, as that of a failed round, as the reply to one of them."""
    if (reply.origin, reply.time) == (caller.origin, caller.time):
        return reply
    own = Message(
        reply.kind, Command(caller.command), origin=caller.origin, shard=reply.shard, meta=reply.meta
    )
    own.time, own.namespace = caller.time, reply.namespace
    return own
