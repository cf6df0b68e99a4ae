"""A shard: the keys of one virtual server of the ring, and the record of the requests that were applied (paper, 4.4).

For every vector it has the rows of a fixed range of keys, with the update's state, settings, notes and clock, and the
deduplication table of its requests. Changes are applied one after the other, numbered from 1: every member of the
shard's chain applies the same changes in the same order, and so has the same state.

Only the primary has more: the pushes of incomplete aggregation rounds, and requests that wait for tasks. These are
unanswered, so their callers send them again to the next primary.
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
from mpips.server.update_call import KernelUpdate, UpdateCall
from mpips.storage.aggregate import Aggregator
from mpips.storage.disk.failure import StoreFull
from mpips.storage.disk.store import Store
from mpips.storage.segment import Segment, Slots, one_by_one
from mpips.storage.updates import VectorSpec, call_named, numbers_of
from mpips.storage.vector_clock import RangedClock
from mpips.tasks.request_dedup import Kept, RequestDedup
from mpips.transport.fastpath.table import (
    ADAGRAD,
    ADAM,
    ADD,
    ASSIGN,
    FTRL,
    KERNEL,
    NO_PUSH,
    PROGRAM,
    SGD,
    ServedRows,
)
from mpips.transport.message import CODES, NO_ROUND, Command, Kind, Message, reply_to

# The vector clock's entry for the sum over all workers.
AGGREGATE = -1
PUSHES = {"add": ADD, "assign": ASSIGN, "sgd": SGD, "adagrad": ADAGRAD, "ftrl": FTRL, "adam": ADAM}
"""Push operations of these updates on the fast path."""
# An aggregation: its round, and the first key of its range.
Round = tuple[int, int]
Describe = Callable[[BaseException], dict[str, Any]]


class Caller(NamedTuple):
    """The request that a change finishes: the task's caller and time, the caller's acknowledged time, the command.

    A change carries its callers in `Message.after`, two pairs each.
    """

    origin: int
    time: int
    acked: int
    command: int


def callers_of(change: Message) -> list[Caller]:
    """Return the requests that a change finishes."""
    pairs = change.after
    return [Caller(*pairs[at], *pairs[at + 1]) for at in range(0, len(pairs), 2)]


def slots_of(segment: Segment, request: Message, create: bool = False) -> Slots:
    """Return the slots of a request: resolved before, or else looked up by its keys."""
    if request.slots is None:
        return segment.resolve(request.range if request.keys is None else request.keys, create)
    return request.slots


class Hosted:
    """A shard's part of one vector: its segment, and the incomplete aggregation rounds."""

    def __init__(self, segment: Segment, workers: Sequence[int]) -> None:
        self.segment = segment
        self.clock = segment.clock = RangedClock()
        self.aggregator = Aggregator(segment, workers)
        # By caller.
        self.waiting: dict[Round, dict[int, Message]] = {}
        # By round: the error, and the workers that were not sent it yet.
        self.broken: dict[Round, tuple[Exception, set[int]]] = {}
        # Of a program's update, once kernels may call it.
        self._called: UpdateCall | KernelUpdate | None = None
        self._place: tuple[Any, ...] = ()
        self._numbers = np.zeros(0)
        self._served_rows: ServedRows | None = None

    @property
    def served_rows(self) -> ServedRows | None:
        """Return how the fast path may serve these rows; None if a push or pull needs Python."""
        segment = self.segment
        aggregator, called = self.aggregator, self._called
        answer = 0 if called is None else called.answer_bytes
        place = segment.moves, segment.index_addresses, id(aggregator), len(aggregator.stamps), answer
        if (*place, segment.settings) != self._place:
            self._place = *place, dict(segment.settings)
            self._served_rows = self._described()
        return self._served_rows

    def _described(self) -> ServedRows | None:
        segment = self.segment
        spec, update = segment.spec, segment.update
        # Kernels do not bring in what is on disk.
        if len(segment.ranges) != 1 or segment.store is not None:
            return None
        values, owned = segment.values, segment.ranges[0]
        # Of uint64 keys, the int64 with the same bits.
        begin, last = np.array([owned.begin, owned.end - 1], np.uint64).view(np.int64).tolist()
        rows, code = owned.span if spec.dense else 0, CODES[values.dtype]
        push, pushed = PUSHES.get(update.name, NO_PUSH), CODES.get(np.dtype(segment.push_row.dtype), -1)
        state: tuple[int, ...] = (0, 0, 0)
        settings = called = 0
        answer = spec.width * values.itemsize
        if push > ASSIGN:
            # In the order in which the kernels take them.
            places = [column.ctypes.data for column in segment.state.values()]
            state = (*places, 0, 0, 0)[:3]
            self._numbers = numbers_of(update, segment.settings)
            settings = self._numbers.ctypes.data
        elif push == NO_PUSH and pushed >= 0:
            push, self._called = self._call()
            called, answer = self._called.address, max(answer, self._called.answer_bytes)
        stamps = self.aggregator.stamps
        return ServedRows(
            values.ctypes.data, code, spec.width, begin, last, rows, push, update.read is None, segment.capacity,
            segment.index_addresses, state, settings, spec.aggregate, (stamps.ctypes.data, len(stamps)),
            (pushed, segment.push_row.width), called, answer, segment.begins_otherwise,
        )  # fmt: skip

    def _call(self) -> tuple[int, UpdateCall | KernelUpdate]:
        """Return how kernels push rows of a program's update, and what they call."""
        called = self._called
        if isinstance(called, UpdateCall):
            return PROGRAM, called
        if KernelUpdate.fits(self.segment):
            called = called or KernelUpdate(self.segment)
            if called.prepare():
                return KERNEL, called
        return PROGRAM, UpdateCall(self.segment)

    def push_slots(self, slots: Slots, rows: NDArray[Any], reply: bool) -> NDArray[Any] | None:
        """Update slots as `Segment.push_slots` does; if kernels have called the update for them, raise its error."""
        error = None if self._called is None else self._called.take_error()
        if error is not None:
            raise error
        return self.segment.push_slots(slots, rows, reply)

    def has(self, round_: Round) -> bool:
        """Return whether parts of a round are here, or its error."""
        return round_ in self.waiting or round_ in self.broken

    def abandon(self, workers: Sequence[int]) -> list[Message]:
        """Drop incomplete rounds, and continue with these workers; return the dropped requests."""
        forgotten = [request for requests in self.waiting.values() for request in requests.values()]
        self.waiting.clear()
        self.broken.clear()
        self.aggregator = Aggregator(self.segment, workers)
        return forgotten


class RoundAnswer:
    """The answer to the pushes of one round: the update's rows for the union of their keys."""

    def __init__(self, segment: Segment, slots: Slots, rows: NDArray[Any] | None) -> None:
        self.segment, self.slots, self.rows = segment, slots, rows
        self._order: NDArray[np.int64] | None = None

    def __call__(self, request: Message) -> Message:
        """Return the reply to one of the pushes, by its keys."""
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
    """The state of a shard, and the changes of it; see the module.

    `describe` returns the error metadata for the caller, `workers` are the present ones. With a `store` large arrays of
    rows are on disk.
    """

    def __init__(
        self,
        number: int,
        ring: Ring,
        workers: Sequence[int],
        inbox: RequestDedup,
        describe: Describe,
        store: Store | None = None,
    ) -> None:
        self.number, self.ring, self.workers, self.inbox, self.store = number, ring, workers, inbox, store
        self.vectors: dict[int, Hosted] = {}
        self.changes = 0
        """The number of the last applied change."""
        self.renumbered = False
        """Whether keys have other slots than in the lists that the server caches."""
        self._describe = describe
        # Whether a change of another primary is being applied.
        self._repeats = False
        self.order: ChangeOrder | None = None
        """Records the order of changes, if the run is recorded."""

    def _begin_change(self, request: Message, callers: Sequence[Caller] = ()) -> None:
        self.changes += 1
        if self.order is not None:
            pairs = [caller[:2] for caller in callers] or [(request.origin, request.time)]
            self.order.change(self.changes, int(request.command), pairs)

    def hosted(self, namespace: int) -> Hosted:
        """Return the shard's part of a vector."""
        found = self.vectors.get(namespace)
        if found is None:
            raise ProtocolError(f"shard {self.number} has no vector with namespace {namespace}")
        return found

    def create(self, namespace: int, spec: VectorSpec, expect: int = 0) -> Hosted:
        """Create the shard's part of a vector."""
        segment = Segment(spec, [self.ring.range(self.number, spec.extent)], expect=expect, store=self.store)
        hosted = self.vectors[namespace] = Hosted(segment, self.workers)
        return hosted

    # --- changes: each method applies one, and returns the reply to its callers -------------

    def push(self, request: Message) -> Message:
        """Apply one push without aggregation."""
        self._begin_change(request)
        try:
            hosted = self.hosted(request.namespace)
            assert request.values is not None
            wants = request.command is Command.PUSH_PULL
            rows = hosted.push_slots(slots_of(hosted.segment, request, create=True), request.values, wants)
        except Exception as error:
            return self.failure(request, error)
        return reply_to(request, rows)

    def sum_up(
        self, request: Message, callers: Sequence[Caller], slots: Slots, sums: NDArray[Any], wants: bool
    ) -> Message | RoundAnswer:
        """Apply the sum of a round's pushes, of `callers`; `request` is any of them."""
        hosted = self.hosted(request.namespace)
        segment = hosted.segment
        self._begin_change(request, callers)
        segment.advance(request.range, AGGREGATE, request.round)
        try:
            rows = hosted.push_slots(slots, sums, wants) if len(sums) else None
        except Exception as error:
            return self.failure(request, error)
        if wants and rows is None:
            rows = segment.pull_slots(slots)
        return RoundAnswer(segment, slots, rows)

    def call(self, request: Message, built_in: Callable[..., dict[str, Any]] | None) -> Message:
        """Apply a function: a `built_in` one, with its arguments and arrays, or a registered one, with the segment."""
        self._begin_change(request)
        name, args = request.meta["call"], request.meta["args"]
        try:
            if built_in is not None:
                arrays = {} if request.keys is None else {"keys": request.keys, "values": request.values}
                answer = built_in(self, **args, **arrays)
            else:
                answer = call_named(name).run(self.hosted(request.namespace).segment, args)
        except Exception as error:
            return self.failure(request, error)
        return reply_to(request, meta=answer)

    def failure(self, request: Message, error: BaseException) -> Message:
        """Return the reply with the error of a request."""
        if self._repeats and isinstance(error, StoreFull):
            raise error
        reply = reply_to(request, meta=self._describe(error))
        reply.kind = Kind.FAILURE
        return reply

    # --- at the other members of the chain ------------------------------------------------

    def repeat(self, change: Message, built_in: Callable[..., dict[str, Any]] | None) -> None:
        """Apply a change of the primary, and keep the replies to its callers.

        Raises:
            StoreFull: there is no memory for it here, as there was at the primary.
        """
        self._repeats = True
        try:
            self._repeat(change, built_in)
        finally:
            self._repeats = False

    def _repeat(self, change: Message, built_in: Callable[..., dict[str, Any]] | None) -> None:
        callers = callers_of(change)
        # As the primary had it: the change itself is sent on, and an update may overwrite its argument.
        request = copy(change)
        request.origin, request.time = callers[0][:2]
        if change.values is not None:
            request.values = change.values.copy()
        if change.command is Command.CALL:
            kept: Kept = self.call(request, built_in)
        elif change.round == NO_ROUND:
            kept = self.push(request)
        else:
            assert request.values is not None
            segment = self.hosted(change.namespace).segment
            slots = segment.resolve(change.range) if change.keys is None else segment.slots_of(change.keys)
            sums = segment.shaped(slots, request.values)
            kept = self.sum_up(request, callers, slots, sums, change.command is Command.PUSH_PULL)
        self.finish(callers, kept)

    def finish(self, callers: Sequence[Caller], kept: Kept) -> list[Message]:
        """Record that requests are finished; return those that waited for them."""
        ready: list[Message] = []
        for caller in callers:
            mine = kept if callable(kept) else for_caller(caller, kept)
            ready += self.inbox.finish(caller.origin, caller.time, mine, caller.acked)
        return ready

    def abandon(self) -> None:
        """Drop the state that only a primary has."""
        for hosted in self.vectors.values():
            hosted.abandon(self.workers)
        self.inbox.abandon()


def for_caller(caller: Caller, reply: Message) -> Message:
    """Return the reply to one of several requests that share a reply, such as those of a failed round."""
    if (reply.origin, reply.time) == (caller.origin, caller.time):
        return reply
    own = Message(
        reply.kind, Command(caller.command), origin=caller.origin, shard=reply.shard, meta=reply.meta
    )
    own.time, own.namespace = caller.time, reply.namespace
    return own
