"""The server: holds shards of every vector, and executes pushes, pulls and calls on them (paper, Algorithm 1).

while not stopped:
    push: aggregate if the vector does; update; send the change down the chain; answer the callers
    pull: answer with the rows
    call: run the function that the scheduler names
    change of another primary: apply it; forward it

Any rank that is not a worker can be a server: a spare is a server without shards until the view gives it some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.calls import Own
from mpips.checkpoint.loading import load_clocks, load_range, vectors
from mpips.checkpoint.manifest import NOTE
from mpips.checkpoint.saved import Saved, joined, save, save_note, write_shard
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import NOBODY, View
from mpips.errors import ProtocolError, WorkerLost
from mpips.ranges import KeyRange
from mpips.server.acknowledgements import Acknowledgements, Push
from mpips.server.replication import Link, RateLimit
from mpips.server.shard import AGGREGATE, Caller, Hosted, RoundAnswer, Shard, for_caller, slots_of
from mpips.server.shard_snapshot import unpack
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.aggregate import Aggregator, Summed
from mpips.storage.segment import Segment, Slots
from mpips.storage.updates import VectorSpec, call_named
from mpips.storage.vector_clock import NOTHING
from mpips.tasks.request_dedup import RequestDedup
from mpips.tasks.task import AHEAD
from mpips.transport.fastpath_table import VERSION, FastPathTable
from mpips.transport.key_cache import KeyCache, Known
from mpips.transport.message import NO_ROUND, NO_SIGNATURE, Command, Kind, Message, missing_of, reply_to


def create_vector(shard: Shard, spec: dict[str, Any], number: int, expect: int) -> dict[str, Any]:
    """Create a shard's part of a vector."""
    shard.create(number, VectorSpec(**spec), expect)
    return {}


def restore(shard: Shard, folder: str) -> dict[str, Any]:
    """Read the rows of a shard's ranges from the files of a checkpoint."""
    path = Path(folder)
    names = vectors(path)
    for hosted in shard.vectors.values():
        segment = hosted.segment
        segment.import_state(load_range(path, segment.spec.name, segment.ranges))
        for name in names:
            owner, _, note = name.partition(NOTE)
            if note and owner == segment.spec.name:
                rows = load_range(path, name, segment.ranges)
                segment.notes[note] = (segment.listed_slots(rows.keys), rows.values)
        for clock in load_clocks(path, segment.spec.name):
            # Round numbers continue; the task times of a worker start again in every run.
            for keys, round_ in clock.entries(AGGREGATE):
                if round_ != NOTHING:
                    segment.advance(keys, AGGREGATE, round_)
    return {}


OWN: dict[str, Callable[..., dict[str, Any]]] = {Own.CREATE_VECTOR: create_vector, Own.RESTORE: restore}
"""Functions that the scheduler calls on shards, besides those that programs register."""


MOST_BACKLOG = 64
"""Changes of other primaries that may be queued; one is applied after each request, and all when there is none."""
MOST_UNSENT = 1 << 28
"""Unsent bytes of answers to one caller from which on its further pulls wait."""
KEY_CACHE = 256e6
"""Default number of bytes of cached key lists."""


class Server:
    """A server: its shards, and the execution of requests; see the module."""

    def __init__(
        self,
        node: Node,
        repair_bandwidth: float = 0.0,
        file: SnapshotFile | None = None,
        key_cache: float = KEY_CACHE,
        ahead: bool = True,
    ) -> None:
        """Create the server; `ahead`: pushes of a round are answered before copies have them, and acknowledged later.

        That hides the time of copies where each rank has a core. Where ranks outnumber cores it hides nothing: a later
        acknowledgement wakes each worker once more.
        """
        self._ahead = ahead
        self.node, self._file = node, file or SnapshotFile(node)
        self.lists = KeyCache(key_cache)
        self._lane = FastPathTable(len(node.view.chains), len(node.layout.places), self.lists)
        node.serve_shards(self._to_shard, self._work_off, self._spec_of, self._lane)
        for serves in node.observers.serves:
            serves(self._lane)
        self.links: dict[int, Link] = {}
        self._pace = RateLimit(repair_bandwidth, node.van.now)
        # Shards that were reported to the leader in this view as having no unacknowledged change.
        self._drained: set[int] = set()
        # Requests to shards whose chain is closing.
        self._held: dict[int, list[Message]] = {}
        self._own: dict[str, Callable[..., dict[str, Any]]] = {
            Own.ACCOUNT: self._account,
            Own.SNAPSHOT: self._snapshot,
        }
        # Pulls of callers with too many unsent bytes.
        self._unanswered: deque[Message] = deque()
        self._acknowledgements = Acknowledgements(self._send_acknowledged)
        self._steps = 0
        # Messages of chains.
        self._backlog: deque[Message] = deque()
        # Requests that wait for the keys of their signature.
        self._keyless: list[Message] = []
        self._gates = node.policy.gates(self)
        self._role = Registration(handlers={Command.CALL: self._call_rank})
        # Not of the role: in a replay, a rank serves the shards of its former role as a worker, too.
        node.register(
            Registration(
                controls={Command.HASTEN: self._hasten, Command.FEED: self._piece, Command.FED: self._fed},
                ticks=(self._tick,),
                views=(self._rewire,),
            )
        )
        for number, chain in enumerate(node.view.chains):
            if node.rank in chain.everyone:
                # A learner has no shard until the first piece of its copy arrives.
                self._link(number, self._make(number) if node.rank in chain.members else None)

    def enter(self) -> None:
        """Take the role: execute calls of the scheduler to this rank."""
        self.node.register(self._role)

    def leave(self) -> None:
        """Give the role back; the shards are served on."""
        self.node.unregister(self._role)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Run the server's loop; ends by `Stopped`, or when `until()`."""
        node = self.node
        idle = node.observers.wrapped(node.observers.resting, node.van.idle)
        while not until():
            if not node.poll():
                idle()

    @property
    def shards(self) -> list[Shard]:
        """Return the shards of which this server is the primary, in key order."""
        return [
            link.shard for _, link in sorted(self.links.items()) if link.primary and link.shard is not None
        ]

    def _spec_of(self, namespace: int) -> VectorSpec | None:
        shards = (link.shard for link in self.links.values() if link.shard is not None)
        found = (shard.vectors[namespace].segment.spec for shard in shards if namespace in shard.vectors)
        return next(found, self.node.specs.get(namespace))

    def _make(self, number: int) -> Shard:
        node = self.node

        def answer(origin: int, reply: Message) -> None:
            self.links[number].after_all(lambda: node.answer(origin, reply))

        shard = Shard(
            number, node.view.ring, node.view.workers, RequestDedup(answer, node.keeps), node.describe
        )
        shard.order = next((order(number) for order in node.observers.orders), None)
        return shard

    def _link(self, number: int, shard: Shard | None) -> None:
        node = self.node
        chain = node.view.chains[number]
        self.links[number] = Link(
            number, node.rank, chain, shard, node.outbox.send_soon, self._repeat, self._pace, node.new_timer(),
            node.again,
        )  # fmt: skip
        self._open(self.links[number])

    @staticmethod
    def _repeat(shard: Shard, change: Message) -> None:
        shard.repeat(change, OWN.get(change.meta.get("call", "")))

    # --- requests ------------------------------------------------------------------------------

    def _to_shard(self, message: Message) -> None:
        link = self.links.get(message.shard)
        if link is None:
            return
        if message.kind is Kind.CHAIN:
            self._to_chain(link, message)
        elif not link.primary:
            # Its sender gets the view with the new primary, and sends the request there.
            return
        elif message.kind is Kind.PROBE:
            self._probed(link, message)
        elif self._gates is not None:
            if not message.filtered or self.node.decoded(message):
                self._gates.admit(link, message)
        elif link.chain.closing:
            self._held.setdefault(message.shard, []).append(message)
        else:
            self._admit(link, message)
            self._work_off()

    def _to_chain(self, link: Link, message: Message) -> None:
        """Receive a message of a chain: acknowledgements at once, since callers wait for them; changes one per request.

        So neither kind of work starves the other.
        """
        if message.command is Command.APPLIED:
            self._pass(link, message)
            return
        self._backlog.append(message)
        if len(self._backlog) > MOST_BACKLOG:
            self._work_off()

    def _work_off(self) -> bool:
        """Low-priority work hook: applies the first queued change of another primary; returns True if there was one."""
        if not self._backlog:
            return False
        message = self._backlog.popleft()
        link = self.links.get(message.shard)
        if link is not None:
            self._pass(link, message)
        return True

    def _pass(self, link: Link, message: Message) -> None:
        observers = self.node.observers
        for busy in observers.busy:
            busy()
        begin = self.node.van.now()
        link.take(message)
        for passed_on in observers.passed_on:
            passed_on(begin, message)
        self._acknowledgements.send_due()

    def _probed(self, link: Link, probe: Message) -> None:
        """Answer a probe: name the requests that have not arrived, and send again the answers to those that have."""
        if link.shard is None or link.chain.closing:
            # Held requests are not in the deduplication table yet.
            return
        origin, number = probe.origin, link.number
        missing = []
        for time, ahead in probe.after:
            if ahead and link.shard.inbox.has_finished(origin, time):
                link.after_all(partial(self._acknowledge_again, origin, number, time))
            elif not link.shard.inbox.repeat(origin, time):
                missing.append((time, time + 1))
        self.node.answer(origin, missing_of(probe, missing))

    def _admit(self, link: Link, message: Message) -> None:
        assert link.shard is not None
        if message.round != NO_ROUND and message.epoch < self.node.view.crew:
            # Its sender has dropped it: the set of workers has changed.
            return
        number, origin, inbox = message.shard, message.origin, link.shard.inbox
        if self._lane.has_news(number):
            self._catch_up(link.shard)
        # A duplicate is not decoded again.
        if not inbox.knows(message):
            if message.filtered and not self.node.decoded(message):
                return
            if message.signature != NO_SIGNATURE and message.error is None and not self._recall(message):
                return
        ready = deque(inbox.admit(message))
        if inbox.parks(origin):
            # The fast path must not finish what it waits for unnoticed.
            self._lane.forget(number, origin)
        elif origin >= 0:
            self._lane.admitted(number, origin, inbox.latest(origin))
        while ready:
            ready.extend(self._execute(link, link.shard, ready.popleft()))
        if self._keyless and message.keys is not None:
            self._admit_keyless()

    def _admit_keyless(self) -> None:
        """Admit requests whose keys may have arrived meanwhile."""
        held, self._keyless = self._keyless, []
        for message in held:
            link = self.links.get(message.shard)
            if link is not None and link.primary and link.shard is not None:
                self._admit(link, message)

    def _recall(self, request: Message) -> bool:
        """Look up the keys of a signature; if they are unknown, ask the caller for them."""
        if request.keys is not None:
            return True
        known = self.lists.find(request.shard, request.namespace, request.signature)
        if known is None and self.node.van.arriving(request.sender):
            # It has overtaken the rest of a longer message, which may have the keys.
            self._keyless.append(request)
            return False
        if known is None:
            reply = reply_to(request)
            reply.kind = Kind.SEND_KEYS
            self.node.answer(request.origin, reply)
            return False
        if known.keys is None:
            request.slots = known.slots
        else:
            request.keys = known.keys
        return True

    def _resolve(self, shard: Shard, segment: Segment, request: Message, create: bool) -> Slots:
        """Resolve the slots of a request, and cache them if its keys have a signature."""
        if request.error is not None:
            raise request.error
        if request.slots is None:
            slots = request.slots = slots_of(segment, request, create)
            if request.signature != NO_SIGNATURE:
                missing = not (create or isinstance(slots, slice)) and bool(len(slots)) and slots.min() < 0
                known = Known(slots, request.keys if missing else None)
                self.lists.keep(shard.number, request.namespace, request.signature, known)
        return request.slots

    # --- the fast path: requests that kernels answer ---------------------------------------------

    def _open(self, link: Link) -> None:
        """Let the fast path serve a shard without copies."""
        shard = link.shard
        if shard is not None:
            self._count(shard)
        if shard is not None and link.primary and link.next == NOBODY and not link.chain.closing:
            for namespace in shard.vectors:
                self._expose(link, shard, namespace)

    def _expose(self, link: Link, shard: Shard, namespace: int) -> None:
        """Update the addresses of a vector's rows on the fast path; a change may have moved them."""
        if link.next == NOBODY and (simple := shard.vectors[namespace].simple) is not None:
            self._lane.open(shard.number, namespace, simple)

    def _catch_up(self, shard: Shard) -> None:
        """Record the requests that the fast path has executed."""
        for done in self._lane.finished(shard.number):
            for time, pushed in done.times:
                reply = None
                if pushed and time >= done.acked and shard.inbox.keep:
                    reply = Message(
                        Kind.REPLY, Command.PUSH, origin=done.origin, shard=shard.number, time=time
                    )
                shard.inbox.finish(done.origin, time, reply, done.acked)
        shard.changes += self._lane.changes(shard.number)

    def _execute(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Execute a request, or let it wait for others of its round; return the requests that waited for it."""
        observers = self.node.observers.executed
        # Reading the clock costs more than this check.
        begin = self.node.van.now() if observers else 0.0
        try:
            if request.command is Command.PULL:
                if self._gates is None and self._is_full(request.origin):
                    self._unanswered.append(request)
                    return []
                segment = shard.hosted(request.namespace).segment
                rows = segment.pull_slots(self._resolve(shard, segment, request, create=False))
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

    def _is_full(self, origin: int) -> bool:
        """Return whether a caller has too many unsent bytes."""
        return self.node.van.unsent(self.node.view.caller(origin)) > MOST_UNSENT

    def _answer_late(self) -> None:
        """Answer pulls that had to wait, as far as their callers have received earlier answers."""
        for _ in range(len(self._unanswered)):
            request = self._unanswered.popleft()
            link = self.links.get(request.shard)
            if link is not None and link.primary and link.shard is not None:
                if self._lane.has_news(request.shard):
                    self._catch_up(link.shard)
                ready = deque(self._execute(link, link.shard, request))
                while ready:
                    ready.extend(self._execute(link, link.shard, ready.popleft()))

    def _refuse(self, link: Link, shard: Shard, request: Message, error: BaseException) -> list[Message]:
        """Answer with an error a request that has changed nothing."""
        return self._answer(link, shard, request, shard.failure(request, error))

    def _answer(self, link: Link, shard: Shard, request: Message, reply: Message) -> list[Message]:
        """Answer a request that has changed nothing, and keep the reply."""
        # The number of changes that the answer includes.
        reply.round = shard.changes
        link.after_all(lambda: self.node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time, reply)

    def _read(self, link: Link, shard: Shard, request: Message, reply: Message) -> list[Message]:
        """Answer a request that changes nothing; a duplicate is executed again."""
        reply.round = shard.changes
        link.after_all(lambda: self.node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time)

    def _push(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Apply the rows of a push, at once or when all workers' pushes of its round have arrived."""
        hosted = shard.hosted(request.namespace)
        if request.values is None:
            raise ProtocolError("a push without values")
        if hosted.segment.spec.aggregate:
            if request.round == NO_ROUND:
                raise ProtocolError(f"vector {hosted.segment.spec.name!r} aggregates: a push needs a round")
            return self._aggregate(link, shard, hosted, request)
        try:
            self._resolve(shard, hosted.segment, request, create=True)
        finally:
            # The rows may have moved, also after an error.
            self._expose(link, shard, request.namespace)
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
        self._count(shard)
        ready = shard.finish([caller], reply)
        if request.command is not Command.CALL:
            self._expose(link, shard, request.namespace)
        else:
            self._open(link)
        link.announce(lambda: _written_down(request, [caller], _named(shard, request), values))
        link.after_all(lambda: self.node.answer(request.origin, reply))
        return ready

    def _count(self, shard: Shard) -> None:
        """Set the number of changes on the fast path, if it records those that follow."""
        if shard.order is not None:
            shard.order.count = self._lane.parts[shard.number, 0, VERSION] = shard.changes

    def _step(self) -> None:
        """Count a change; injected faults may be due."""
        self._steps += 1
        self.node.step(self._steps)

    def _aggregate(self, link: Link, shard: Shard, hosted: Hosted, request: Message) -> list[Message]:
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
        ahead = self._ahead and follows and not link.full
        # An update may overwrite its argument.
        sums = summed.rows.copy() if follows else summed.rows
        kept = shard.sum_up(first, callers, summed.slots, summed.rows, wants)
        self._count(shard)
        ready = shard.finish(callers, kept)
        if ahead:
            for request in requests:
                self._answer_one(shard, request, kept, summed, ahead)
                self._acknowledgements.expect(request.origin, (shard.number, request.time))
        if follows:
            # All keys of the range.
            whole = segment.spec.dense and isinstance(summed.slots, slice)
            keys = None if whole else segment.keys_of(summed.slots)
            link.announce(lambda: _written_down(first, callers, keys, sums, wants))
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
            self.node.answer(request.origin, reply)
        except Exception as error:
            # An answer that cannot be encoded; what it was to carry is not lost.
            failure = shard.failure(request, error)
            failure.after = reply.after
            self.node.answer(request.origin, failure)

    def _acknowledge(self, callers: Sequence[Caller], number: int) -> None:
        """Record that the chain has a round that was answered ahead."""
        for caller in callers:
            self._acknowledgements.add(caller.origin, (number, caller.time))

    def _acknowledge_again(self, origin: int, number: int, time: int) -> None:
        """Acknowledge again, to a caller that has not received it, that the chain has one of its pushes."""
        self._acknowledgements.add(origin, (number, time))
        self._acknowledgements.send(origin)

    def _hasten(self, message: Message) -> None:
        self._acknowledgements.ask(message.origin, message.after)

    def _send_acknowledged(self, origin: int, pushes: tuple[Push, ...]) -> None:
        word = Message(Kind.CONTROL, Command.ACKNOWLEDGED, after=pushes)
        self.node.outbox.send(self.node.view.caller(origin), word)

    def unfinished_rounds(self) -> dict[Hashable, str]:
        """Describe the incomplete rounds and the workers whose pushes are missing."""
        found: dict[Hashable, str] = {}
        for shard in self.shards:
            for namespace, hosted in shard.vectors.items():
                for round_, there in hosted.waiting.items():
                    missing = [rank for rank in hosted.aggregator.workers if rank not in there]
                    names = ", ".join(f"rank {rank} ({self.node.layout.places[rank]})" for rank in missing)
                    found[shard.number, namespace, round_] = (
                        f"round {round_[0]} of vector {hosted.segment.spec.name}: no push from {names}"
                    )
        return found

    # --- calls ---------------------------------------------------------------------------------

    def _call(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Run a function that the scheduler calls on a shard."""
        name, args = request.meta["call"], request.meta["args"]
        own = OWN.get(name)
        if own is None and call_named(name).reads:
            answer = call_named(name).function(shard.hosted(request.namespace).segment, args)
            return self._answer(link, shard, request, reply_to(request, meta=answer))
        return self._change(link, shard, request, lambda request: shard.call(request, own))

    def _call_rank(self, request: Message) -> None:
        """Run a function that the scheduler calls on this server as a whole."""
        name = request.meta["call"]
        if name == Own.WRITTEN:
            self._file.await_written(request)
        elif name in self._own:
            with self.node.observers.calling(request):
                self.node.callee.reply(request, meta=self._own[name](**request.meta["args"]))
        else:
            raise ProtocolError(f"a server has no function {name!r}")

    def _account(self) -> dict[str, Any]:
        held = [hosted for shard in self.shards for hosted in shard.vectors.values()]
        return {**self.node.account(), "keys": sum(len(hosted.segment) for hosted in held)}

    def _snapshot(self, folder: str, shards: list[int], number: int) -> dict[str, Any]:
        """Copy shards, and start to write them; the notes of functions on keys are a vector beside theirs."""
        # A replay writes no checkpoints.
        if self._gates is not None:
            self._file.skip()
            return {}
        parts: dict[str, list[Saved]] = {}
        clocks: dict[str, list[list[Any]]] = {}
        for each in shards:
            link = self.links.get(each)
            if link is None or link.shard is None or link.learning:
                raise WorkerLost(f"rank {self.node.rank} no longer holds shard {each}")
            for hosted in link.shard.vectors.values():
                segment = hosted.segment
                saved = [save(segment)]
                saved += [save_note(segment, note, rows) for note, rows in segment.notes.items()]
                for part in saved:
                    parts.setdefault(part.spec.name, []).append(part)
                columns = clocks.setdefault(segment.spec.name, [[], [], [], []])
                for column, more in zip(columns, hosted.clock.to_arrays(), strict=True):
                    column += more.tolist()
        meta = {"server": number, "clocks": clocks}
        together = {name: joined(each) for name, each in parts.items()}
        self._file.start(write_shard, Path(folder), number, together, meta)
        return {}

    # --- chains --------------------------------------------------------------------------------

    def _rewire(self, before: View, view: View) -> None:
        """Adopt the chains of a new view."""
        while self._work_off():
            pass
        for each in self.links.values():
            if each.shard is not None:
                self._catch_up(each.shard)
            self._lane.close(each.number)
        me = self.node.rank
        for number, chain in enumerate(view.chains):
            link = self.links.get(number)
            if me not in chain.everyone:
                self.links.pop(number, None)
                self._held.pop(number, None)
                self.lists.forget(number)
            elif link is None:
                self._link(number, None)
            elif link.chain != chain:
                link.rewire(chain)
        for each in self.links.values():
            if each.primary and each.shard is not None and each.shard.order is not None:
                each.shard.order.mark(each.shard.changes)
        if view.crew != before.crew:
            self._change_crew(view.workers)
        for number, held in list(self._held.items()):
            link = self.links[number]
            if not link.chain.closing:
                del self._held[number]
                for message in held if link.primary else ():
                    self._admit(link, message)
        mine = {link.number for link in self.links.values() if link.primary}
        self._acknowledgements.keep(mine, lambda origin: view.roles[view.caller(origin)] is not None)
        for each in self.links.values():
            self._open(each)
        self._drained.clear()
        self._report()

    def perform(self, link: Link, requests: Sequence[Message], together: bool) -> None:
        """Replay what was executed as one step in the recorded run: a request, or those of a round `together`."""
        shard, first = link.shard, requests[0]
        assert shard is not None
        if not together:
            self._execute(link, shard, first)
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

    def recall(self, request: Message) -> bool:
        """Look up the keys of a signature; see `_recall`."""
        return request.signature == NO_SIGNATURE or request.error is not None or self._recall(request)

    def _change_crew(self, workers: tuple[int, ...]) -> None:
        """Drop the rounds that wait for lost workers, or do not include new ones."""
        for link in self.links.values():
            if link.shard is not None:
                link.shard.workers = workers
                for hosted in link.shard.vectors.values():
                    for request in hosted.abandon(workers):
                        link.shard.inbox.forget(request)

    def _report(self) -> None:
        """Report complete copies and drained shards to the leader."""
        for link in self.links.values():
            if link.learning and link.shard is not None:
                self._tell_leader(Command.WHOLE, link)
            self._report_drained(link)

    def _report_drained(self, link: Link) -> None:
        """Report to the leader, once per view, that a closing chain has no unacknowledged change."""
        if link.chain.closing and link.primary and link.still and link.number not in self._drained:
            self._drained.add(link.number)
            self._tell_leader(Command.DRAINED, link)

    def _tell_leader(self, command: Command, link: Link) -> None:
        self.node.control(self.node.view.leader, command, {"shard": link.number, "since": link.chain.since})

    def _piece(self, message: Message) -> None:
        link = self.links.get(message.shard)
        if link is not None and link.piece(message, self._make, unpack):
            self._tell_leader(Command.WHOLE, link)

    def _fed(self, message: Message) -> None:
        link = self.links.get(message.shard)
        if link is not None:
            link.fed(message)

    def _tick(self) -> None:
        now = self.node.van.now()
        self._answer_late()
        if self._keyless:
            self._admit_keyless()
        for link in self.links.values():
            if link.feed is not None:
                link.send_pieces()
            self._report_drained(link)
            link.probe(now)


def _named(shard: Shard, request: Message) -> NDArray[np.uint64] | None:
    """Return the keys of a change, also where its request has only their signature."""
    if request.keys is None and request.signature != NO_SIGNATURE:
        assert request.slots is not None
        return shard.hosted(request.namespace).segment.keys_of(request.slots)
    return request.keys


def _caller(request: Message) -> Caller:
    return Caller(request.origin, request.time, request.acked, int(request.command))


def _written_down(
    request: Message,
    callers: Sequence[Caller],
    keys: NDArray[np.uint64] | None,
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
    change.after = tuple(pair for caller in callers for pair in (caller[:2], caller[2:]))
    return change


def _export(shard: Shard, request: Message, begin: int, end: int, limit: int) -> Message:
    """Answer with the rows of a range in key order, zeros left out: those of its first `limit` slots."""
    segment = shard.hosted(request.namespace).segment
    stop = segment.cut(KeyRange(begin, end), limit)
    keys, rows = segment.export(KeyRange(begin, stop))
    return reply_to(request, rows, {"next": stop} if stop < end else {}, keys)
