"""A server's part of a checkpoint: a copy of its shards, taken at one instant and written in the background."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mpips.checkpoint.writing import Saved, merge, save, save_note
from mpips.server.shard import Shard


def copied(shards: Iterable[Shard]) -> tuple[dict[str, Saved], dict[str, list[list[Any]]]]:
    """Return copies of the rows of shards, and their clocks, by vector; notes on keys are separate vectors."""
    parts: dict[str, list[Saved]] = {}
    clocks: dict[str, list[list[Any]]] = {}
    for shard in shards:
        for hosted in shard.vectors.values():
            segment = hosted.segment
            saved = [save(segment)]
            saved += [save_note(segment, note, rows) for note, rows in segment.notes.items()]
            for part in saved:
                parts.setdefault(part.spec.name, []).append(part)
            columns = clocks.setdefault(segment.spec.name, [[], [], [], []])
            for column, more in zip(columns, hosted.clock.to_arrays(), strict=True):
                column += more.tolist()
    return {name: merge(each) for name, each in parts.items()}, clocks
