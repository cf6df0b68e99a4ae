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

from mpips.checkpoint import NOTE, Saved, load_range, save_note, vectors, write_shard
from mpips.clock import RangedClock
from mpips.errors import ProtocolError
from mpips.message import NO_ROUND, Command, Message
from mpips.node import Node
from mpips.ranges import KeyRange
from mpips.store import Aggregator, Segment
from mpips.update import VectorSpec, call_named

AGGREGATE = -1  # the clock's name for "all workers together"
Round = tuple[int, int]  # an aggregation: its round, and where its range begins


class Hosted:
    """One vector on this server: its segment, and the rounds that wait for more workers."""

    def __init__(self, spec: VectorSpec, ranges: list[KeyRange], workers: tuple[int, ...]) -> None:
        self.segment = Segment(spec, ranges)
        self.segment.clock = RangedClock()
        self.aggregator = Aggregator(self.segment, workers)
        self.waiting: dict[Round, list[Message]] = {}


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
        rows = segment.push(keys, request.values, request.command is Command.PUSH_PULL)
        segment.advance(request.range, request.sender, request.time)
        self.node.reply(request, rows)

    def _aggregate(self, hosted: Hosted, request: Message) -> None:
        segment = hosted.segment
        round_ = (request.round, request.range.begin)
        keys = request.range if request.keys is None else request.keys
        waiting = hosted.waiting.setdefault(round_, [])
        waiting.append(request)
        try:
            slots = segment.resolve(keys, create=True)
            assert request.values is not None
            reply = request.command is Command.PUSH_PULL
            answers = hosted.aggregator.add(round_, request.sender, slots, request.values, reply)
        except Exception as error:
            # The round cannot be completed: everyone in it hears why.
            del hosted.waiting[round_]
            hosted.aggregator.drop(round_)
            for each in waiting:
                self.node.fail(each, error)
            return
        if answers is None:
            return
        del hosted.waiting[round_]
        segment.advance(request.range, AGGREGATE, request.round)
        for each in waiting:
            self.node.reply(each, answers[each.sender])

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

    def _create_vector(self, spec: dict[str, Any], number: int) -> dict[str, Any]:
        made = VectorSpec(**spec)
        view = self.node.view
        ranges = view.ring.owned(self.node.rank, made.extent)
        self.vectors[number] = Hosted(made, ranges, view.workers)
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
        meta = {"server": self.node.place.index}
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
        return {}

    def _export(self, request: Message, begin: int, end: int, limit: int) -> None:
        keys, rows = self.hosted(request).segment.export(KeyRange(begin, end))
        meta = {"next": int(keys[limit])} if len(keys) > limit else {}
        self.node.reply(request, rows[:limit], meta, keys[:limit])
