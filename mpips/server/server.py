"""The server: holds shards of every vector, and executes pushes, pulls and calls on them (paper, Algorithm 1).

while not stopped:
    push: aggregate if the vector does; update; send the change down the chain; answer whoever was waiting for it
    pull: answer with the rows
    call: run the function that the scheduler names
    change of another primary: apply it; pass it on

Any rank that is no worker can be one: a spare is a server of no shards until the view gives it some.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.calls import Own
from mpips.checkpoint.background_writer import AtOnce, Writes
from mpips.checkpoint.checkpoint import (
    Saved,
    joined,
    load_clocks,
    load_range,
    save,
    save_note,
    vectors,
    write_shard,
)
from mpips.checkpoint.manifest import NOTE, Entry
from mpips.cluster.node import Node
from mpips.cluster.view import NOBODY, View
from mpips.errors import ProtocolError, WorkerLost
from mpips.ranges import KeyRange
from mpips.server.replication import Link, Pace
from mpips.server.shard import AGGREGATE, Caller, Hosted, RoundAnswer, Shard, for_caller, slots_of
from mpips.server.shard_snapshot import unpack
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
    """Make a shard's part of a vector."""
    shard.create(number, VectorSpec(**spec), expect)
    return {}


def restore(shard: Shard, folder: str) -> dict[str, Any]:
    """Read the rows of a shard's ranges from whichever files of a checkpoint hold them."""
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
            # Rounds go on where they were; the tasks of a worker are numbered anew in every run.
            for keys, round_ in clock.entries(AGGREGATE):
                if round_ != NOTHING:
                    segment.advance(keys, AGGREGATE, round_)
    return {}


OWN: dict[str, Callable[..., dict[str, Any]]] = {Own.CREATE_VECTOR: create_vector, Own.RESTORE: restore}
"""What the scheduler calls on shards beside the functions that programs register."""


MOST_BACKLOG = 64
"""Changes of other primaries that may wait, one being applied after each request, and all when there is none."""
MOST_UNSENT = 1 << 28
"""Bytes of answers on their way to one caller, from which on it has to wait for further ones until it takes some."""
KEY_CACHE = 256e6
"""Bytes of key lists that a server remembers unless told otherwise."""


class Server:
    """A server's shards, and what it does with each request; see the module."""

    def __init__(
        self,
        node: Node,
        repair_bandwidth: float = 0.0,
        writer: Writes | None = None,
        key_cache: float = KEY_CACHE,
        ahead: bool = True,
    ) -> None:
        """Serve; `ahead`: pushes of a round are answered before copies have them, which is told later.

        That hides how long copies take where ranks have a core each. Where ranks outnumber cores it hides nothing: what
        is told later wakes each worker once more.
        """
        self._ahead = ahead
        self.node, self._writer = node, writer or AtOnce()
        self.lists = KeyCache(key_cache)
        self._lane = FastPathTable(len(node.view.chains), len(node.layout.places), self.lists)
        if node.plain:
            node.van.fast_path = self._lane
        for serves in node.observers.serves:
            serves(self._lane)
        self._file: Future[Entry] | None = None  # of the last snapshot
        self._awaiting: list[Message] = []  # requests that ask when that is written
        self.links: dict[int, Link] = {}
        self._pace = Pace(repair_bandwidth, node.van.now)
        self._drained: set[int] = (
            set()
        )  # shards of which the leader has heard under this view that they stand still
        self._held: dict[int, list[Message]] = {}  # requests to shards that are about to get another primary
        self._own: dict[str, Callable[..., dict[str, Any]]] = {
            Own.ACCOUNT: self._account,
            Own.SNAPSHOT: self._snapshot,
        }
        self._unanswered: deque[Message] = deque()  # pulls of callers that do not take what they were sent
        self._words: dict[int, list[tuple[int, int]]] = {}
        """Acknowledgements of what was answered ahead, (shard, time) by caller; they go with the next answer."""
        self._coming: dict[int, set[tuple[int, int]]] = {}  # those that are not true yet
        self._steps = 0
        self._backlog: deque[Message] = deque()  # what came along chains
        node.leisure = self._work_off
        node.spec_of = self._spec_of
        self._keyless: list[Message] = []  # requests that wait for the keys that they name by a signature
        self._hasty: dict[int, dict[int, int]] = {}
        """By caller and shard: up to which of its pushes a caller waits for acknowledgements, and for nothing else."""
        node.shards = self._to_shard
        node.controls[Command.HASTEN] = self._hasten
        node.controls[Command.FEED] = self._piece
        node.controls[Command.FED] = self._fed
        self._gates = node.policy.gates(self)
        node.on_view.append(self._rewire)
        node.on_tick.append(self._tick)
        for number, chain in enumerate(node.view.chains):
            if node.rank in chain.everyone:
                self._link(number, self._make(number))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """The server's loop; ends by `Stopped`, or when `until()`."""
        node = self.node
        node.handlers[Command.CALL] = self._call_rank
        idle = node.observers.wrapped(node.observers.resting, node.van.idle)
        while not until():
            if not node.poll():
                idle()

    @property
    def shards(self) -> list[Shard]:
        """Return the shards whose primary this server is, in key order."""
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
            number, node.rank, chain, shard, node.send_soon, self._repeat, self._pace, node.new_timer(),
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
            return  # its sender will hear of the view in which another is, and ask that one
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
        """Take what came along a chain: words at once, since callers wait for them; changes one for each request.

        So neither kind of work keeps the other waiting, however much there is of it.
        """
        if message.command is Command.APPLIED:
            self._pass(link, message)
            return
        self._backlog.append(message)
        if len(self._backlog) > MOST_BACKLOG:
            self._work_off()

    def _work_off(self) -> bool:
        """Apply the first change of another primary's that waits; give whether there was any."""
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
        self._answer_hasty()

    def _probed(self, link: Link, probe: Message) -> None:
        """Tell a caller that hears nothing what of its requests has not come; answer once more what was answered."""
        if link.shard is None or link.chain.closing:
            return  # what is held is not known to the inbox yet
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
            return  # its sender has given it up: the workers are not those any more
        number, origin, inbox = message.shard, message.origin, link.shard.inbox
        if self._lane.has_news(number):
            self._catch_up(link.shard)
        if not inbox.knows(message):  # one that came before costs nothing more
            if message.filtered and not self.node.decoded(message):
                return
            if message.signature != NO_SIGNATURE and message.error is None and not self._recall(message):
                return
        ready = deque(inbox.admit(message))
        if inbox.parks(origin):
            self._lane.forget(number, origin)  # what it waits for must not finish unseen
        elif origin >= 0:
            self._lane.admitted(number, origin, inbox.latest(origin))
        while ready:
            ready.extend(self._execute(link, link.shard, ready.popleft()))
        if self._keyless and message.keys is not None:
            self._admit_keyless()

    def _admit_keyless(self) -> None:
        """Take up requests whose keys may have come meanwhile."""
        held, self._keyless = self._keyless, []
        for message in held:
            link = self.links.get(message.shard)
            if link is not None and link.primary and link.shard is not None:
                self._admit(link, message)

    def _recall(self, request: Message) -> bool:
        """Look up what a request means that comes with a signature; if nobody knows, ask for its keys."""
        if request.keys is not None:
            return True
        known = self.lists.find(request.shard, request.namespace, request.signature)
        if known is None and self.node.van.arriving(request.sender):
            self._keyless.append(request)  # it has overtaken the end of a longer one, which may bring them
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
        """Find the rows that a request is about, and remember them if its keys have a signature."""
        if request.error is not None:
            raise request.error
        if request.slots is None:
            slots = request.slots = slots_of(segment, request, create)
            if request.signature != NO_SIGNATURE:
                missing = not (create or isinstance(slots, slice)) and bool(len(slots)) and slots.min() < 0
                known = Known(slots, request.keys if missing else None)
                self.lists.keep(shard.number, request.namespace, request.signature, known)
        return request.slots

    # --- the lane: what is answered without coming here ----------------------------------------

    def _open(self, link: Link) -> None:
        """Let the lane serve a shard of which there is one copy."""
        shard = link.shard
        if shard is not None:
            self._count(shard)
        if shard is not None and link.primary and link.next == NOBODY and not link.chain.closing:
            for namespace in shard.vectors:
                self._expose(link, shard, namespace)

    def _expose(self, link: Link, shard: Shard, namespace: int) -> None:
        """Tell the lane where a vector's rows are, which a change may have moved."""
        if link.next == NOBODY and (simple := shard.vectors[namespace].simple) is not None:
            self._lane.open(shard.number, namespace, simple)

    def _catch_up(self, shard: Shard) -> None:
        """Take note of what the lane has done."""
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
        """Execute a request, or leave it to wait for others of its round; give those that waited for it."""
        observers = self.node.observers.executed
        # A look at the clock costs more than this question.
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
        """Tell whether a caller does not take what it was sent."""
        return self.node.van.unsent(self.node.view.caller(origin)) > MOST_UNSENT

    def _answer_late(self) -> None:
        """Answer pulls that had to wait, as far as their callers have taken what they were sent."""
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
        reply.round = shard.changes  # it says after how many
        link.after_all(lambda: self.node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time, reply)

    def _read(self, link: Link, shard: Shard, request: Message, reply: Message) -> list[Message]:
        """Answer a request that changes nothing; should it come again, it is executed again."""
        reply.round = shard.changes
        link.after_all(lambda: self.node.answer(request.origin, reply))
        return shard.inbox.finish(request.origin, request.time)

    def _push(self, link: Link, shard: Shard, request: Message) -> list[Message]:
        """Update by the rows of a push, at once or when all workers' pushes of its round are in."""
        hosted = shard.hosted(request.namespace)
        if request.values is None:
            raise ProtocolError("a push without values")
        if hosted.segment.spec.aggregate:
            if request.round == NO_ROUND:
                raise ProtocolError(f"vector {hosted.segment.spec.name!r} aggregates: a push needs a round")
            return self._aggregate(link, shard, hosted, request)
        try:
            self._resolve(shard, hosted.segment, request, create=True)
        finally:  # whatever came of it, rows may stand elsewhere now
            self._expose(link, shard, request.namespace)
        return self._change(link, shard, request, shard.push)

    def _change(
        self, link: Link, shard: Shard, request: Message, apply: Callable[[Message], Message]
    ) -> list[Message]:
        """Make a change that one request asks for, and answer it once the chain has it."""
        caller = _caller(request)
        self._step()
        values = request.values
        if values is not None and link.next >= 0:
            values = values.copy()  # an update may use its argument up
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
        """Tell the lane how many changes there were, if it is to write down those that follow."""
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
            what = "has pushed twice" if sender in waiting else f"is none of {hosted.aggregator.workers}"
            raise ProtocolError(
                f"vector {segment.spec.name!r}, round {request.round}: worker {sender} {what}"
            )
        waiting[sender] = request
        try:
            slots = self._resolve(shard, segment, request, create=True)
            assert request.values is not None
            summed = hosted.aggregator.add(round_, sender, slots, request.values)
        except Exception as error:
            # The round cannot be completed: everyone in it hears why, those who have not pushed yet when they do.
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
        sums = summed.rows.copy() if follows else summed.rows  # an update may use its argument up
        kept = shard.sum_up(first, callers, summed.slots, summed.rows, wants)
        self._count(shard)
        ready = shard.finish(callers, kept)
        if ahead:
            for request in requests:
                self._answer_one(shard, request, kept, summed, ahead)
                self._coming.setdefault(request.origin, set()).add((shard.number, request.time))
        if follows:
            whole = segment.spec.dense and isinstance(summed.slots, slice)  # all keys of the range
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
        """Answer one push of a round; `ahead` of the word that the whole chain has it, which follows."""
        if not isinstance(kept, RoundAnswer):
            reply = for_caller(_caller(request), kept)
        elif request.command is Command.PUSH_PULL and kept.rows is not None:
            reply = reply_to(request, kept.rows[summed.places[request.origin]])
        else:
            reply = reply_to(request)
        if ahead:
            reply.acked, reply.after = AHEAD, tuple(self._words.pop(request.origin, ()))
        try:
            self.node.answer(request.origin, reply)
        except Exception as error:  # an answer that cannot travel
            self.node.answer(request.origin, shard.failure(request, error))

    def _acknowledge(self, callers: Sequence[Caller], number: int) -> None:
        """Note that the chain has a round that was answered ahead of that; the callers are told with what follows."""
        for caller in callers:
            self._words.setdefault(caller.origin, []).append((number, caller.time))
            self._coming.get(caller.origin, set()).discard((number, caller.time))

    def _acknowledge_again(self, origin: int, number: int, time: int) -> None:
        """Tell a caller once more, who has not heard it, that the chain has one of its pushes."""
        self._words.setdefault(origin, []).append((number, time))
        self._send_words(origin)

    def _send_words(self, origin: int) -> None:
        """Send a caller the acknowledgements that are there for it."""
        words = self._words.pop(origin, None)
        if words:
            word = Message(Kind.CONTROL, Command.ACKNOWLEDGED, after=tuple(words))
            self.node.send(self.node.view.caller(origin), word)

    def _hasten(self, message: Message) -> None:
        """Take note that a caller waits for the acknowledgement of the pushes that it names, and for nothing else."""
        self._hasty.setdefault(message.origin, {}).update(message.after)
        self._answer_hasty()

    def _answer_hasty(self) -> None:
        """Tell those who wait for nothing else, in one message, once all that they wait for is true."""
        for origin, named in list(self._hasty.items()):
            if not any(time <= named.get(number, -1) for number, time in self._coming.get(origin, ())):
                del self._hasty[origin]
                self._send_words(origin)

    def unfinished_rounds(self) -> dict[Hashable, str]:
        """Say which rounds wait for pushes, and whose."""
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
        """Run a function that the scheduler names on a shard."""
        name, args = request.meta["call"], request.meta["args"]
        own = OWN.get(name)
        if own is None and call_named(name).reads:
            answer = call_named(name).function(shard.hosted(request.namespace).segment, args)
            return self._answer(link, shard, request, reply_to(request, meta=answer))
        return self._change(link, shard, request, lambda request: shard.call(request, own))

    def _call_rank(self, request: Message) -> None:
        """Run a function that the scheduler names on this server as a whole."""
        name = request.meta["call"]
        if name == Own.WRITTEN:
            self._awaiting.append(request)
        elif name in self._own:
            with self.node.observers.calling(request):
                self.node.reply(request, meta=self._own[name](**request.meta["args"]))
        else:
            raise ProtocolError(f"a server has no function {name!r}")

    def _account(self) -> dict[str, Any]:
        held = [hosted for shard in self.shards for hosted in shard.vectors.values()]
        return {**self.node.account(), "keys": sum(len(hosted.segment) for hosted in held)}

    def _snapshot(self, folder: str, shards: list[int], number: int) -> dict[str, Any]:
        """Copy shards, and begin to write them; what functions noted of some keys is a vector beside theirs."""
        if self._gates is not None:  # a run that is done again writes no checkpoints
            self._file = nothing_written()
            return {}
        parts: dict[str, list[Saved]] = {}
        clocks: dict[str, list[list[Any]]] = {}
        for each in shards:
            link = self.links.get(each)
            if link is None or link.shard is None or link.learning:
                raise WorkerLost(f"rank {self.node.rank} does not hold shard {each} any more")
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
        write = self.node.observers.wrapped(self.node.observers.writing, write_shard)
        self._file = self._writer.start(write, Path(folder), number, together, meta)
        return {}

    # --- chains --------------------------------------------------------------------------------

    def _rewire(self, before: View, view: View) -> None:
        """Go over to the chains of a new view."""
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
        self._leave_to_others()
        for each in self.links.values():
            self._open(each)
        self._drained.clear()
        self._report()

    def _leave_to_others(self) -> None:
        """Give no acknowledgement for shards that others answer for now, nor to callers that are gone."""
        mine = {link.number for link in self.links.values() if link.primary}
        self._coming = {
            origin: {each for each in coming if each[0] in mine}
            for origin, coming in self._coming.items()
            if self.node.view.roles[self.node.view.caller(origin)] is not None
        }
        self._words = {origin: words for origin, words in self._words.items() if origin in self._coming}
        self._answer_hasty()

    def perform(self, link: Link, requests: Sequence[Message], together: bool) -> None:
        """Execute what was executed as one when the run was recorded: a request, or those of a round `together`."""
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
        """Look up what a request means that comes with a signature; see `_recall`."""
        return request.signature == NO_SIGNATURE or request.error is not None or self._recall(request)

    def _change_crew(self, workers: tuple[int, ...]) -> None:
        """Give up the rounds that wait for workers that are gone, or do not know of newcomers."""
        for link in self.links.values():
            if link.shard is not None:
                link.shard.workers = workers
                for hosted in link.shard.vectors.values():
                    for request in hosted.abandon(workers):
                        link.shard.inbox.forget(request)

    def _report(self) -> None:
        """Tell the leader which copies are whole, and which shards stand still."""
        for link in self.links.values():
            if link.learning and link.shard is not None:
                self._tell_leader(Command.WHOLE, link)
            self._report_drained(link)

    def _report_drained(self, link: Link) -> None:
        """Tell the leader, once under each view, that a shard which another primary is to get stands still."""
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
        if self._awaiting and self._file is not None and self._file.done():
            answer_written(self.node, self._awaiting, self._file)
        for link in self.links.values():
            if link.feed is not None:
                link.send_pieces()
            self._report_drained(link)
            link.probe(now)


def nothing_written() -> Future[Entry]:
    """Give what stands for a file of which there is none."""
    done: Future[Entry] = Future()
    done.set_result({})
    return done


def answer_written(node: Node, requests: list[Message], file: Future[Entry]) -> None:
    """Answer those who asked when a file of a checkpoint is written: it is, or cannot be."""
    for request in requests:
        try:
            node.reply(request, meta=file.result())
        except Exception as error:
            node.fail(request, error)
    requests.clear()


def _named(shard: Shard, request: Message) -> NDArray[np.uint64] | None:
    """Return the keys that a change names, also where its request has named them by their signature alone."""
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
    """Write down a change for the chain, as the first of its requests asked for it."""
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
