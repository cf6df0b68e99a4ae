"""Execution of requests to shards: pulls, pushes, rounds of pushes, and functions that the scheduler calls.

A request that changes a shard is answered once all members of the chain have the change. The pushes of a round are
answered ahead, before that, where copies are made: their callers may use the result, and get an acknowledgement when
it is durable (`mpips.server.acknowledgements`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from functools import partial
from typing import Any

from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import ProtocolError
from mpips.keys import KeyArray
from mpips.ranges import KeyRange
from mpips.server.acknowledgements import Acknowledgements
from mpips.server.chains import Chains
from mpips.server.fast_path import FastPath
from mpips.server.replication import Link
from mpips.server.shard import Caller, Hosted, RoundAnswer, Shard, for_caller, slots_of
from mpips.server.shard_functions import BUILT_IN, CHANGES_ROWS, check_no_round
from mpips.storage.aggregate import Aggregator, Summed
from mpips.storage.segment import Segment, Slots
from mpips.storage.updates import call_named
from mpips.tasks.ahead import AHEAD
from mpips.transport.key_cache import KeyCache, Known
from mpips.transport.message import NO_ROUND, NO_SIGNATURE, Command, Kind, Message, reply_to

MOST_UNSENT = 1 << 28
"""Unsent bytes of answers to one caller at which its further pulls have to wait."""


class Executor:
    """Executes requests to a node's shards. `ahead`: pushes of a round are answered ahead, where copies are made."""

    def __init__(
        self,
        node: Node,
        lists: KeyCache,
        chains: Chains,
        fast_path: FastPath,
        acknowledgements: Acknowledgements,
        ahead: bool,
    ) -> None:
        self._node, self._lists, self._chains, self._fast_path = node, lists, chains, fast_path
        self._acknowledgements, self._ahead = acknowledgements, ahead
        # Changes that this server has made as a primary.
        self._steps = 0
        # Pulls of callers with too many unsent bytes.
        self._unanswered: deque[Message] = deque()

    def execute(self, link: Link, requests: Iterable[Message]) -> None:
        """Execute requests to a shard, and those that waited for them."""
        ready = deque(requests)
        while ready:
            ready.extend(self._execute(link, ready.popleft()))

    def take_parts(self, link: Link) -> None:
        """Take over the parts of rounds that wait on the fast path."""
        shard = link.shard
        if shard is not None and (parts := self._fast_path.take_parts(shard)):
            self._fast_path.catch_up(link)
            self.execute(link, [each for part in parts for each in shard.inbox.admit(part)])

    def _execute(self, link: Link, request: Message) -> list[Message]:
        """Execute a request, or let it wait for others of its round; return the requests that waited for it."""
        shard = link.shard
        assert shard is not None
        observers = self._node.observers.executed
        # Reading the clock costs more than this check.
        begin = self._node.van.now() if observers else 0.0
        try:
            if request.command is Command.PULL:
                if not self._node.policy.is_replay and self._is_full(request.origin):
                    self._unanswered.append(request)
                    return []
                segment = shard.hosted(request.namespace).segment
                slots = self._resolve(shard, segment, request, create=False)
                named = request.range if request.keys is None else request.keys
                rows = segment.pull_slots(slots, keys=named)
                return self._read(link, shard, request, reply_to(request, rows))
            if request.command is Command.EXPORT:
                return self._read(link, shard, request, _export(shard, request, **request.meta))
            if request.command is Command.CALL:
                return self._call(link, shard, request)
            return self._push(link, shard, request)
        except Exception as error:
            return self._refuse(link, shard, request, error)
        finally:
            for executed in observers:
                executed(begin, request)

    def perform(self, link: Link, requests: Sequence[Message], together: bool) -> None:
        """Replay one step of the recorded run: one request, or the requests of a round `together`."""
        shard, first = link.shard, requests[0]
        assert shard is not None
        if not together:
            self._execute(link, first)
            return
        segment = shard.hosted(first.namespace).segment
        aggregator = Aggregator(segment, [request.origin for request in requests])
        summed = None
        for request in requests:
            assert request.values is not None
            slots = self._resolve(shard, segment, request, create=True)
            summed = aggregator.add(first.round, request.origin, slots, request.values)
        assert summed is not None
        self._complete(link, shard, requests, summed)

    def _is_full(self, origin: int) -> bool:
        """Return whether a caller has too many unsent bytes."""
        return self._node.van.unsent(self._node.view.caller(origin)) > MOST_UNSENT

    def tick(self) -> None:
        """Answer waiting pulls whose callers have received enough of the earlier answers."""
        for _ in range(len(self._unanswered)):
            request = self._unanswered.popleft()
            link = self._chains.links.get(request.shard)
            if link is not None and link.primary and link.shard is not None:
                self._fast_path.catch_up(link)
                self.execute(link, [request])

    def _resolve(self, shard: Shard, segment: Segment, request: Message, create: bool) -> Slots:
        """Resolve the slots of a request, and cache them if its keys have a signature."""
        if request.error is not None:
            raise request.error
        if request.slots is None:
            slots = request.slots = slots_of(segment, request, create)
            if request.signature != NO_SIGNATURE:
                missing = not (create or isinstance(slots, slice)) and bool(len(slots)) and slots.min() < 0
                known = Known(slots, request.keys if missing else None)
                self._lists.keep(shard.number, request.namespace, request.signature, known)
        return request.slots

    def _refuse(self, link: Link, shard: Shard, request: Message, error: BaseException) -> list[Message]:
        """Answer with an error a request that has changed nothing."""
        return self._answer(link, shard, request, shard.failure(request, error))

    def _answer(self, link: Link, shard: Shard, request: Message, reply: Message) -> list[Message]:
        """Answer a request that has changed nothing, and keep the reply."""
        # The number of changes that the answer includes.
        reply.round = shard.changes
        link.after_all(lambda: self._node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time, reply)

    def _read(self, link: Link, shard: Shard, request: Message, reply: Message) -> list[Message]:
        """Answer a request that changes nothing; a duplicate is executed again."""
        reply.round = shard.changes
        link.after_all(lambda: self._node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time)

    def _push(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Apply the rows of a push, at once or when all workers' pushes of its round have arrived."""
        hosted = shard.hosted(request.namespace)
        if request.values is None:
            raise ProtocolError(f"vector {hosted.segment.spec.name!r}: a push without values")
        if hosted.segment.spec.aggregate:
            if request.round == NO_ROUND:
                raise ProtocolError(
                    f"vector {hosted.segment.spec.name!r} aggregates: a push must name its round"
                )
            return self._aggregate(link, shard, hosted, request)
        try:
            self._resolve(shard, hosted.segment, request, create=True)
        finally:
            # The rows may have moved, also after an error.
            self._fast_path.expose(link, request.namespace)
        return self._change(link, shard, request, shard.push)

    def _change(
        self, link: Link, shard: Shard, request: Message, apply: Callable[[Message], Message]
    ) -> list[Message]:
        """Apply the change of one request, and answer it once the chain has it."""
        caller = _caller(request)
        self._step()
        values = request.values
        if values is not None and link.next >= 0:
            # An update may overwrite its argument.
            values = values.copy()
        reply = apply(request)
        self._fast_path.count(shard)
        ready = shard.finish([caller], reply)
        # A push has exposed its rows before; a call may have changed any of them.
        if request.command is Command.CALL:
            self._fast_path.open(link)
        link.announce(lambda: _chain_message(request, [caller], _named(shard, request), values))
        link.after_all(lambda: self._node.answer(request.origin, reply))
        return ready

    def _step(self) -> None:
        """Count a change; injected faults may be due."""
        self._steps += 1
        self._node.step(self._steps)

    def _aggregate(self, link: Link, shard: Shard, hosted: Hosted, request: Message) -> list[Message]:
        """Take a part of a round. Python has the parts of a round as soon as it has one."""
        round_, namespace = (request.round, request.range.begin), request.namespace
        if hosted.has(round_):
            others: list[Message] = []
        else:
            others = self._fast_path.take_parts(shard, namespace, round_)
            self._fast_path.mark(shard, namespace, round_)
        ready = [each for other in others for each in shard.inbox.admit(other)]
        try:
            ready += self._add_part(link, shard, hosted, request)
        except Exception as error:
            ready += self._refuse(link, shard, request, error)
        # The rows may have moved.
        self._fast_path.expose(link, namespace)
        if not hosted.has(round_):
            self._fast_path.mark(shard, namespace, round_, -1)
        return ready

    def _add_part(self, link: Link, shard: Shard, hosted: Hosted, request: Message) -> list[Message]:
        segment, sender = hosted.segment, request.origin
        round_ = (request.round, request.range.begin)
        if round_ in hosted.broken:
            error, unaware = hosted.broken[round_]
            unaware.discard(sender)
            if not unaware:
                del hosted.broken[round_]
            raise error
        waiting = hosted.waiting.setdefault(round_, {})
        if sender not in hosted.aggregator.workers or sender in waiting:
            what = "has pushed twice" if sender in waiting else f"is not one of {hosted.aggregator.workers}"
            raise ProtocolError(
                f"vector {segment.spec.name!r}, round {request.round}: worker {sender} {what}"
            )
        waiting[sender] = request
        try:
            slots = self._resolve(shard, segment, request, create=True)
            assert request.values is not None
            summed = hosted.aggregator.add(round_, sender, slots, request.values)
        except Exception as error:
            # The round cannot be completed: all its workers get the error, those that have not pushed yet when they do.
            del hosted.waiting[round_]
            hosted.aggregator.drop(round_)
            if unaware := set(hosted.aggregator.workers) - set(waiting):
                hosted.broken[round_] = (error, unaware)
            return [more for each in waiting.values() for more in self._refuse(link, shard, each, error)]
        if summed is None:
            return []
        del hosted.waiting[round_]
        return self._complete(link, shard, [waiting[worker] for worker in hosted.aggregator.workers], summed)

    def _complete(
        self, link: Link, shard: Shard, requests: Sequence[Message], summed: Summed
    ) -> list[Message]:
        """Apply the sum of a round, and answer all its pushes."""
        first, callers = requests[0], [_caller(request) for request in requests]
        self._step()
        segment = shard.hosted(first.namespace).segment
        wants = any(request.command is Command.PUSH_PULL for request in requests)

        follows = link.next >= 0
        # Rounds that kernels sum are not faster if they are answered ahead.
        ahead = self._ahead and follows and not link.full and not self._fast_path.sums(link, first.namespace)
        # An update may overwrite its argument.
        sums = summed.rows.copy() if follows else summed.rows
        kept = shard.sum_up(first, callers, summed.slots, summed.rows, wants)
        self._fast_path.count(shard)
        ready = shard.finish(callers, kept)
        if ahead:
            for request in requests:
                self._answer_one(shard, request, kept, summed, ahead)
                self._acknowledgements.expect(request.origin, (shard.number, request.time))
        if follows:
            # All keys of the range.
            whole = segment.spec.dense and isinstance(summed.slots, slice)
            keys = None if whole else segment.keys_of(summed.slots)
            link.announce(lambda: _chain_message(first, callers, keys, sums, wants))
        if ahead:
            link.after_all(lambda: self._acknowledge(callers, shard.number))
        else:
            for request in requests:
                link.after_all(partial(self._answer_one, shard, request, kept, summed, ahead))
        return ready

    def _answer_one(
        self, shard: Shard, request: Message, kept: Message | RoundAnswer, summed: Summed, ahead: bool
    ) -> None:
        """Answer one push of a round.

        `ahead`: the result is valid but not yet durable; an ACKNOWLEDGED message follows.
        """
        if not isinstance(kept, RoundAnswer):
            # The kept one stays as it is: it is the answer to a repeated request, which is not given ahead.
            reply = copy(for_caller(_caller(request), kept))
        elif request.command is Command.PUSH_PULL and kept.rows is not None:
            reply = reply_to(request, kept.rows[summed.places[request.origin]])
        else:
            reply = reply_to(request)
        if ahead:
            reply.acked, reply.after = AHEAD, self._acknowledgements.take(request.origin)
        try:
            self._node.answer(request.origin, reply)
        except Exception as error:
            # An answer that cannot be encoded; what it was to carry is not lost.
            failure = shard.failure(request, error)
            failure.after = reply.after
            self._node.answer(request.origin, failure)

    def _acknowledge(self, callers: Sequence[Caller], number: int) -> None:
        """Record that the chain has a round that was answered ahead."""
        for caller in callers:
            self._acknowledgements.add(caller.origin, (number, caller.time))

    def _call(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Run a function that the scheduler calls on a shard."""
        name, args = request.meta["call"], request.meta["args"]
        built_in = BUILT_IN.get(name)
        if built_in is None and call_named(name).reads:
            answer = call_named(name).run(shard.hosted(request.namespace).segment, args)
            return self._answer(link, shard, request, reply_to(request, meta=answer))
        if name in CHANGES_ROWS:
            # Kernels may have some of a round.
            self.take_parts(link)
            check_no_round(shard, name, args)
        return self._change(link, shard, request, lambda request: shard.call(request, built_in))


def _named(shard: Shard, request: Message) -> KeyArray | None:
    """Return the keys of a change, also where its request has only their signature."""
    if request.keys is None and request.signature != NO_SIGNATURE:
        assert request.slots is not None
        return shard.hosted(request.namespace).segment.keys_of(request.slots)
    return request.keys


def _caller(request: Message) -> Caller:
    return Caller(request.origin, request.time, request.acked, int(request.command))


def _chain_message(
    request: Message,
    callers: Sequence[Caller],
    keys: KeyArray | None,
    values: NDArray[Any] | None,
    wants: bool | None = None,
) -> Message:
    """Return the chain message of a change, from the first of its requests."""
    command = request.command if wants is None else Command.PUSH_PULL if wants else Command.PUSH
    change = Message(
        Kind.CHAIN, command, namespace=request.namespace, round=request.round, range=request.range
    )
    change.keys, change.values = keys, values
    change.meta = request.meta
    change.after = tuple([pair for caller in callers for pair in (caller[:2], caller[2:])])
    return change


def _export(shard: Shard, request: Message, begin: int, end: int, limit: int) -> Message:
    """Answer with the rows of the first `limit` slots of a range, in key order, without rows of initial values."""
    segment = shard.hosted(request.namespace).segment
    stop = segment.cut(KeyRange(begin, end), limit)
    keys, rows = segment.export(KeyRange(begin, stop))
    return reply_to(request, rows, {"next": stop} if stop < end else {}, keys)
