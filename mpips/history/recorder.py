"""Records the history of one rank, at the caller: what its program was told, not what the servers did.

An observer of the node (`mpips.cluster.observer`). Values are recorded of pushes and pulls of int64 vectors of width 1,
by at most `MOST_KEYS` keys of 64 bits; of others, which shards have answered, and in which state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.cluster.observer import Operation
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.history.events import Answered, Called, Issued, Part, Sink, Viewed
from mpips.tasks.caller import Tasks
from mpips.tasks.task import Task
from mpips.transport.message import NO_ROUND, Command, Message

MOST_KEYS = 1 << 12
_READS = frozenset((Command.PULL, Command.EXPORT))


class HistoryRecorder:
    """Passes the events of one node to `sink`, in order; see the module."""

    def __init__(self, node: Node, sink: Sink) -> None:
        self._node, self._sink = node, sink
        self._number = 0
        # By time of the present caller's unfinished operations: their numbers, and their answers so far.
        self._unfinished: dict[int, tuple[int, list[Part]]] = {}
        # As long as a program has the task of an operation, others may be declared to depend on it.
        self._numbers: WeakKeyDictionary[Task, int] = WeakKeyDictionary()
        # Whether the rows that answer the operation that is being issued are recorded.
        self._decodes = False
        events = node.observers
        events.tasks += (self._watch,)
        events.answered += (self._answered,)
        events.issuing += (self._issuing,)
        events.issued += (self._issued,)
        events.called += (self._called,)
        node.register(Registration(views=(self._viewed,)))
        self._watch(node.tasks)

    def stop(self) -> None:
        """Record nothing more."""
        self._sink = lambda event: None

    def _watch(self, tasks: Tasks) -> None:
        self._unfinished, self._numbers = {}, WeakKeyDictionary()
        before, now = tasks.on_reply, self._replied
        if before is None:
            tasks.on_reply = now
        else:
            tasks.on_reply = _both(before, now)

    def _issuing(self, op: Operation) -> None:
        node, keys, numbers = self._node, self._keys(op), self._numbers
        number, time = self._number, node.tasks.time
        self._number += 1
        self._unfinished[time] = number, []
        self._decodes = bool(keys) and op.pulls
        rows = None if op.rows is None else _ints(op.rows) if keys else ()
        after = tuple([numbers[each] for each in op.after if each in numbers])
        group = node.view.workers if op.round != NO_ROUND else ()
        shards = tuple([~address for address in op.addresses])
        self._sink(Issued(node.rank, number, op.vector, keys, rows, op.pulls, op.round, after, group, shards))

    def _issued(self, task: Task) -> None:
        (number, parts), decodes = self._unfinished[task.time], self._decodes
        self._numbers[task] = number

        def ended(task: Task) -> None:
            good = task.error is None
            rows = _ints(task.values) if decodes and good else None
            self._sink(Answered(self._node.rank, number, good, rows, tuple(parts)))
            self._unfinished.pop(task.time, None)

        task.then(ended)

    def _keys(self, op: Operation) -> tuple[int, ...]:
        keys = op.keys
        known = op.decodable and keys is not None and keys.dtype == np.uint64 and len(keys) <= MOST_KEYS
        return tuple(keys.tolist()) if known and keys is not None else ()

    def _replied(self, address: int, time: int, reply: Message, given_up: bool) -> None:
        known = self._unfinished.get(time)
        if known is not None and address < 0 and not given_up:
            version = reply.round if reply.command in _READS else -1
            known[1].append(Part(~address, reply.sender, reply.epoch, version, self._node.view.epoch))

    def _answered(self, slot: int) -> None:
        """Record the answer to a request of the fast path, which has no message."""
        node = self._node
        address, time = node.tasks.asked_at(slot)
        known = self._unfinished.get(time)
        if known is not None and address < 0:
            epoch = node.view.epoch
            known[1].append(Part(~address, node.view.rank_of(address), epoch, node.van.version(), epoch))

    def _called(self, request: Message) -> None:
        self._sink(Called(self._node.rank, request.origin, request.time))

    def _viewed(self, before: View, view: View) -> None:
        primaries = tuple([chain.members[0] for chain in view.chains])
        made = view.leader == self._node.rank
        self._sink(Viewed(self._node.rank, view.epoch, view.leader, primaries, view.workers, made))


def _ints(rows: NDArray[Any]) -> tuple[int, ...]:
    return tuple(rows.reshape(-1).tolist())


def _both(*callbacks: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        for callback in callbacks:
            callback(*arguments)

    return call
