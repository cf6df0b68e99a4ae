"""The server: holds its ranges of every vector, and executes pushes, pulls and calls on them (paper, Algorithm 1).

while not stopped:
    push: aggregate if the vector does; update; answer whoever was waiting for that update
    pull: answer with the rows
    call: run the function that the scheduler names
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpips.aggregate import Aggregator
from mpips.checkpoint import NOTE, Saved, load_clocks, load_range, save_note, vectors, write_shard
from mpips.clock import NOTHING, RangedClock
from mpips.errors import ProtocolError
from mpips.message import NO_ROUND, Command, Message
from mpips.node import Node
from mpips.ranges import KeyRange
from mpips.store import Segment
from mpips.update import VectorSpec, call_named

AGGREGATE = -1  # the clock's name for "all workers together"
Round = tuple[int, int]  # an aggregation: its round, and where its range begins


class Hosted:
    """One vector on this server: its segment, and the rounds that wait for more workers."""

    def __init__(
        self, spec: VectorSpec, ranges: list[KeyRange], workers: tuple[int, ...], expect: int
    ) -> None:
        self.segment = Segment(spec, ranges, expect=expect)
        self.clock = self.segment.clock = RangedClock()
        self.aggregator = Aggregator(self.segment, workers)
        self.waiting: dict[Round, dict[int, Message]] = {}  # by sender
        self.broken: dict[Round, tuple[Exception, set[int]]] = {}  # why, and who has not heard it yet


class Server:
    """A server's state and what it does with each request; see the module."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.vectors: dict[int, Hosted] = {}
        self._own: dict[str, Callable[..., dict[str, Any]]] = {
            "create_vector": self._create_vector,
            "account": self._account,
            "checkpoint": self._checkpoint,
            "restore": self._restore,
        }
        node.handlers.update(
            {
                Command.PUSH: self.push,
                Command.PUSH_PULL: self.push,
                Command.PULL: self.pull,
                Command.CALL: self.call,
            }
        )

    def run(self) -> None:
        """The server's loop; ends by `Stopped`."""
        node, van = self.node, self.node.van
        while True:
            if not node.poll():
                van.idle()

    def hosted(self, request: Message) -> Hosted:
        """Find the vector that a request is about."""
        found = self.vectors.get(request.namespace)
        if found is None:
            raise ProtocolError(f"there is no vector number {request.namespace}")
        return found

    def push(self, request: Message) -> None:
        """Update by the rows of a push, at once or when all workers' pushes of its round are in."""
        hosted = self.hosted(request)
        keys = request.range if request.keys is None else request.keys
        if request.values is None:
            raise ProtocolError("a push without values")
        if hosted.segment.spec.aggregate:
            if request.round == NO_ROUND:
                raise ProtocolError(f"vector {hosted.segment.spec.name!r} aggregates: a push needs a round")
            self._aggregate(hosted, request)
            return
        segment = hosted.segment
        self.node.reply(request, segment.push(keys, request.values, request.command is Command.PUSH_PULL))

    def _aggregate(self, hosted: Hosted, request: Message) -> None:
        segment, sender = hosted.segment, request.sender
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
            keys = request.range if request.keys is None else request.keys
            slots = segment.resolve(keys, create=True)
            assert request.values is not None
            reply = any(each.command is Command.PUSH_PULL for each in waiting.values())
            answers = hosted.aggregator.add(round_, sender, slots, request.values, reply)
        except Exception as error:
            # The round cannot be completed: everyone in it hears why, those who have not pushed yet when they do.
            del hosted.waiting[round_]
            hosted.aggregator.drop(round_)
            if unaware := set(hosted.aggregator.workers) - set(waiting):
                hosted.broken[round_] = (error, unaware)
            for each in waiting.values():
                self.node.fail(each, error)
            return
        if answers is None:
            return
        del hosted.waiting[round_]
        segment.advance(request.range, AGGREGATE, request.round)
        for each in waiting.values():
            try:
                self.node.reply(each, answers[each.sender] if each.command is Command.PUSH_PULL else None)
            except Exception as error:  # an answer that cannot travel
                self.node.fail(each, error)

    def pull(self, request: Message) -> None:
        """Answer with the rows of the keys, or of the range."""
        segment = self.hosted(request).segment
        self.node.reply(request, segment.pull(request.range if request.keys is None else request.keys))

    def call(self, request: Message) -> None:
        """Run a function that the scheduler names: one of the server's own, or a registered one on a segment."""
        name, args = request.meta["call"], request.meta["args"]
        if name == "export":
            self._export(request, **args)
        elif name in self._own:
            self.node.reply(request, meta=self._own[name](**args))
        else:
            self.node.reply(request, meta=call_named(name)(self.hosted(request).segment, args))

    def _create_vector(self, spec: dict[str, Any], number: int, expect: int) -> dict[str, Any]:
        made = VectorSpec(**spec)
        view = self.node.view
        ranges = view.ring.owned(self.node.rank, made.extent)
        self.vectors[number] = Hosted(made, ranges, view.workers, expect)
        return {}

    def _account(self) -> dict[str, Any]:
        keys = sum(len(hosted.segment) for hosted in self.vectors.values())
        return {**self.node.account(), "keys": keys}

    def _checkpoint(self, folder: str) -> dict[str, Any]:
        """Write this server's shard; what server functions noted of some keys is saved as a vector beside theirs."""
        parts: dict[str, Segment | Saved] = {}
        for hosted in self.vectors.values():
            segment = hosted.segment
            parts[segment.spec.name] = segment
            for note, rows in segment.notes.items():
                saved = save_note(segment, note, rows)
                parts[saved.spec.name] = saved
        clocks = {
            hosted.segment.spec.name: [column.tolist() for column in hosted.clock.to_arrays()]
            for hosted in self.vectors.values()
        }
        meta = {"server": self.node.place.index, "clocks": clocks}
        return write_shard(Path(folder), self.node.place.index, parts, meta)

    def _restore(self, folder: str) -> dict[str, Any]:
        """Read the rows of this server's ranges from whichever shards hold them."""
        path = Path(folder)
        names = vectors(path)
        for hosted in self.vectors.values():
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

    def _export(self, request: Message, begin: int, end: int, limit: int) -> None:
        """Answer with the rows of a range in key order, zeros left out: those of its first `limit` slots."""
        segment = self.hosted(request).segment
        keys = segment.select(KeyRange(begin, end))[0]
        meta = {"next": int(keys[limit])} if len(keys) > limit else {}
        keys, rows = segment.export(KeyRange(begin, meta.get("next", end)))
        self.node.reply(request, rows, meta, keys)
