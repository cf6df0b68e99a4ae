"""Shard snapshots: a whole shard as bytes, for a new member of its chain (migration; paper, section 4.5).

A snapshot has all state that the shard's members have in common: the rows of every vector in slot order, with state,
notes, settings and clock; the number of the last change; and of every caller its acknowledged time, the requests
finished since, and the kept replies. It is packed at one instant, at memory bandwidth, and sent in chunks.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.keys import from_pairs, pairs
from mpips.server.shard import RoundAnswer, Shard
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec
from mpips.storage.vector_clock import RangedClock
from mpips.tasks.request_dedup import Kept
from mpips.transport.message import from_bytes, to_bytes

_WORD = np.dtype("<i8")


class _Writer:
    """Collects arrays and bytes; the snapshot's JSON refers to each by its number."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, tuple[int, ...], NDArray[np.uint8]]] = []

    def array(self, array: NDArray[Any]) -> int:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.parts.append((array.dtype.str, array.shape, raw))
        return len(self.parts) - 1

    def bytes(self, raw: bytes) -> int:
        return self.array(np.frombuffer(raw, np.uint8))


def pack(shard: Shard) -> NDArray[np.int64]:
    """Return the present state of a shard, as i8[n]."""
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
    return _joined(text, writer)


def _vector(shard: Shard, number: int, writer: _Writer) -> dict[str, Any]:
    hosted = shard.vectors[number]
    segment = hosted.segment
    rows = segment.in_slot_order()
    return {
        "spec": asdict(segment.spec),
        "settings": dict(segment.settings),
        "rows": len(rows.keys),
        "keys": writer.array(pairs(rows.keys)),
        "values": writer.array(rows.values),
        "state": {name: writer.array(column) for name, column in rows.state.items()},
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


def _joined(text: dict[str, Any], writer: _Writer) -> NDArray[np.int64]:
    at = 0
    placed: list[tuple[str, list[int], int]] = []
    for kind, shape, raw in writer.parts:
        placed.append((kind, list(shape), at))
        at += -(-len(raw) // 8) * 8
    head = json.dumps({**text, "arrays": placed}).encode()
    begin = 8 + -(-len(head) // 8) * 8
    out = np.zeros(begin + at, np.uint8)
    out[:8] = np.array([len(head)], _WORD).view(np.uint8)
    out[8 : 8 + len(head)] = np.frombuffer(head, np.uint8)
    for (_, _, where), (_, _, raw) in zip(placed, writer.parts, strict=True):
        out[begin + where : begin + where + len(raw)] = raw
    return out.view(_WORD)


def unpack(packed: NDArray[np.int64], shard: Shard) -> None:
    """Restore a packed shard into an empty one."""
    raw = packed.view(np.uint8)
    size = int(packed[0])
    text = json.loads(raw[8 : 8 + size].tobytes())
    begin = 8 + -(-size // 8) * 8

    def array(number: int) -> NDArray[Any]:
        kind, shape, where = text["arrays"][number]
        dtype = np.dtype(kind)
        count = int(np.prod(shape, dtype=np.int64))
        at = begin + where
        found: NDArray[Any] = raw[at : at + count * dtype.itemsize].view(dtype).reshape(shape).copy()
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
    state = {name: array(column) for name, column in facts["state"].items()}
    segment.import_state(Rows(from_pairs(array(facts["keys"])), array(facts["values"]), state))
    segment.notes = {name: (array(slots), array(rows)) for name, (slots, rows) in facts["notes"].items()}
    hosted.clock.merge(RangedClock.from_arrays(*(array(column) for column in facts["clock"])))
