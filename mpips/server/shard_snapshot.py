"""Shard snapshots: a whole shard as bytes, for a new member of its chain (migration; paper, section 4.5).

A snapshot has all state that the shard's members have in common: the rows of every vector in slot order, with state,
notes, settings and clock; the number of the last change; and of every caller its acknowledged time, the requests
finished since, and the kept replies. It is packed at one instant, at memory bandwidth, and sent in chunks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.keys import from_pairs, pairs
from mpips.server.shard import RoundAnswer, Shard
from mpips.storage.disk.buffer import Buffer
from mpips.storage.disk.store import Store
from mpips.storage.segment import Rows, Segment
from mpips.storage.updates import VectorSpec
from mpips.storage.vector_clock import RangedClock
from mpips.tasks.request_dedup import Kept
from mpips.transport.message import from_bytes, to_bytes

_WORD = np.dtype("<i8")


class _Writer:
    """Collects arrays and bytes; the snapshot's JSON refers to each by its number."""

    def __init__(self) -> None:
        self.parts: list[tuple[np.dtype[Any], tuple[int, ...], Iterable[NDArray[Any]]]] = []

    def array(self, array: NDArray[Any]) -> int:
        return self.pieces(array.dtype, array.shape, (array,))

    def pieces(self, dtype: np.dtype[Any], shape: tuple[int, ...], pieces: Iterable[NDArray[Any]]) -> int:
        """Collect an array that consists of pieces, which are read when all are joined."""
        self.parts.append((dtype, shape, pieces))
        return len(self.parts) - 1

    def columns(self, segment: Segment) -> dict[str, int]:
        """Collect all columns of a segment, by name ("": the values)."""
        return {
            name: self.pieces(np.dtype(column.dtype), (len(segment), column.width), pieces)
            for (name, pieces), column in zip(
                segment.in_pieces().items(), segment.layout.values(), strict=True
            )
        }

    def bytes(self, raw: bytes) -> int:
        return self.array(np.frombuffer(raw, np.uint8))


def pack(shard: Shard) -> Buffer:
    """Return the present state of a shard, as words of 8 bytes."""
    writer, rounds = _Writer(), dict[int, tuple[int, list[int]]]()
    text: dict[str, Any] = {
        "changes": shard.changes,
        "vectors": {number: _vector(shard, number, writer) for number in shard.vectors},
        "callers": {
            origin: [
                acked,
                finished,
                {time: _kept(each, shard, writer, rounds) for time, each in kept.items()},
            ]
            for origin, (acked, finished, kept) in shard.inbox.callers().items()
        },
    }
    text["rounds"] = [each for _, each in rounds.values()]
    return _joined(text, writer, shard.store)


def _vector(shard: Shard, number: int, writer: _Writer) -> dict[str, Any]:
    hosted = shard.vectors[number]
    segment = hosted.segment
    keys = segment.keys_of(slice(0, len(segment)))
    columns = writer.columns(segment)
    return {
        "spec": asdict(segment.spec),
        "settings": dict(segment.settings),
        "rows": len(keys),
        "keys": writer.array(pairs(keys)),
        "values": columns.pop(""),
        "state": columns,
        "notes": {
            name: [writer.array(slots), writer.array(of)] for name, (slots, of) in segment.notes.items()
        },
        "clock": [writer.array(column) for column in hosted.clock.to_arrays()],
    }


def _kept(kept: Kept, shard: Shard, writer: _Writer, rounds: dict[int, tuple[int, list[int]]]) -> list[int]:
    """Encode a kept reply: [its bytes], or [vector, round] for the answer of a round, which many share."""
    if not isinstance(kept, RoundAnswer):
        assert not callable(kept)
        return [writer.bytes(to_bytes(kept))]
    if id(kept) not in rounds:
        number = next(n for n, hosted in shard.vectors.items() if hosted.segment is kept.segment)
        slots = kept.slots
        run = isinstance(slots, slice)
        listed = np.array([slots.start, slots.stop], np.int32) if isinstance(slots, slice) else slots
        rows = -1 if kept.rows is None else writer.array(kept.rows)
        rounds[id(kept)] = (len(rounds), [number, int(run), writer.array(listed), rows])
    return [rounds[id(kept)][1][0], rounds[id(kept)][0]]


def _joined(text: dict[str, Any], writer: _Writer, store: Store | None) -> Buffer:
    at = 0
    placed: list[tuple[str, list[int], int]] = []
    for dtype, shape, _ in writer.parts:
        placed.append((dtype.str, list(shape), at))
        at += -(-math.prod(shape) * dtype.itemsize // 8) * 8
    head = json.dumps({**text, "arrays": placed}).encode()
    begin = 8 + -(-len(head) // 8) * 8
    out = Buffer(begin + at, store)
    out.write(0, np.array([len(head)], _WORD).view(np.uint8))
    out.write(8, np.frombuffer(head, np.uint8))
    for (_, _, where), (_, _, pieces) in zip(placed, writer.parts, strict=True):
        to = begin + where
        for piece in pieces:
            raw = np.ascontiguousarray(piece).reshape(-1).view(np.uint8)
            out.write(to, raw)
            to += len(raw)
    return out


def unpack(packed: Buffer, shard: Shard) -> None:
    """Restore a packed shard into an empty one."""
    size = int(packed.read(0, 8).view(_WORD)[0])
    text = json.loads(packed.read(8, 8 + size).tobytes())
    begin = 8 + -(-size // 8) * 8

    def array(number: int, first: int = 0, last: int = 2**63) -> NDArray[Any]:
        """Return the rows of an array from `first` to `last`, or to the end."""
        kind, shape, where = text["arrays"][number]
        dtype = np.dtype(kind)
        row = dtype.itemsize * math.prod(shape[1:])
        last = min(last, shape[0])
        raw = packed.read(begin + where + first * row, begin + where + last * row)
        found: NDArray[Any] = raw.view(dtype).reshape(last - first, *shape[1:]).copy()
        return found

    for number, facts in text["vectors"].items():
        _take_vector(shard, int(number), facts, array)
    answers = []
    for number, run, slots, rows in text["rounds"]:
        listed = array(slots)
        where = slice(int(listed[0]), int(listed[1])) if run else listed
        answers.append(RoundAnswer(shard.vectors[number].segment, where, None if rows < 0 else array(rows)))
    for origin, (acked, finished, kept) in text["callers"].items():
        shard.inbox.acknowledge(int(origin), acked)
        for time in finished:
            found = kept.get(str(time))
            reply: Kept | None = None
            if found is not None:
                reply = (
                    answers[found[1]] if len(found) == 2 else from_bytes(bytearray(array(found[0]).tobytes()))
                )
            shard.inbox.finish(int(origin), time, reply)
    shard.changes = text["changes"]


def _take_vector(shard: Shard, number: int, facts: dict[str, Any], array: Any) -> None:
    hosted = shard.create(number, VectorSpec(**facts["spec"]), expect=facts["rows"])
    segment = hosted.segment
    segment.settings.update(facts["settings"])
    most = segment.rows_at_once()
    for begin in range(0, max(facts["rows"], 1), most):
        at = begin, begin + most
        state = {name: array(column, *at) for name, column in facts["state"].items()}
        segment.import_state(Rows(from_pairs(array(facts["keys"], *at)), array(facts["values"], *at), state))
    segment.notes = {name: (array(slots), array(rows)) for name, (slots, rows) in facts["notes"].items()}
    hosted.clock.merge(RangedClock.from_arrays(*(array(column) for column in facts["clock"])))
