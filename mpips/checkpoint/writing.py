"""What a rank saves in a checkpoint: a server's rows and a worker's arrays, copied, and written to its own file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.checkpoint.manifest import DELTA_VERSION, NOTE, VERSION, Entry, entry_of
from mpips.checkpoint.shard_file import concatenate, create_file, row_ranges, write_array
from mpips.errors import CheckpointError
from mpips.keys import KeyArray, ascend, numbers, order, pairs
from mpips.ranges import KeyRange, coalesce
from mpips.storage.disk.sorted_copy import PiecesOfRows, joined
from mpips.storage.segment import Rows, Segment
from mpips.storage.updates import Setting, VectorSpec


class Saved(NamedTuple):
    """One server's part of a vector, copied so that it can be written while training continues.

    The copy of rows on disk is on disk, too: its values and state are `Pieces`.
    """

    spec: VectorSpec
    settings: dict[str, Setting]
    ranges: list[KeyRange]
    rows: Rows | PiecesOfRows
    deleted: KeyArray | None = None
    """Of a delta, whose rows are those that changed: the keys that have no row any more, ascending."""


def save(segment: Segment) -> Saved:
    """Copy the saved parts of a segment: its rows in key order, its ranges and settings."""
    rows: Rows | PiecesOfRows
    copied = segment.sorted_copy()
    if copied is None:
        rows = segment.export_state()
    else:
        keys, copy = copied
        state = {name: copy.column(name) for name in segment.layout if name}
        rows = PiecesOfRows(keys, copy.column(""), state)
    return Saved(segment.spec, dict(segment.settings), list(segment.ranges), rows)


def save_note(segment: Segment, note: str, slots_and_rows: tuple[NDArray[np.int32], NDArray[Any]]) -> Saved:
    """Copy a note of a segment (`Segment.notes`), rows of some slots, as a vector with the keys of these slots."""
    slots, rows = slots_and_rows
    keys = segment.keys_of(slots)
    places, of = order(keys), segment.spec
    spec = VectorSpec(
        f"{of.name}{NOTE}{note}", rows.dtype.name, rows.shape[1], of.extent, "assign", key_bits=of.key_bits
    )
    return Saved(spec, {}, list(segment.ranges), Rows(keys[places], rows[places], {}))


def merge(parts: Sequence[Saved]) -> Saved:
    """Merge parts of one vector, whose ranges are disjoint, into one with its rows in key order.

    Specification and settings are those of the first. Raises CheckpointError when a key is in two parts.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    ranges = coalesce(piece for part in parts for piece in part.ranges)
    on_disk = [part.rows for part in parts if isinstance(part.rows, PiecesOfRows)]
    if on_disk:
        return first._replace(ranges=ranges, rows=_in_order(on_disk, first.spec.name))
    keys, values, state = concatenate([part.rows for part in parts if isinstance(part.rows, Rows)])
    if not ascend(keys):
        places = order(keys)
        keys, values = keys[places], values[places]
        state = {name: column[places] for name, column in state.items()}
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise CheckpointError(
                f"key {numbers(twice)[0]} of vector {first.spec.name!r} is in two shards of one server"
            )
    return first._replace(ranges=ranges, rows=Rows(keys, values, state))


def _in_order(parts: Sequence[PiecesOfRows], name: str) -> PiecesOfRows:
    """Join the rows of shards, each of which has one range of keys."""
    filled = sorted((part for part in parts if len(part.keys)), key=lambda part: numbers(part.keys[:1]))
    parts = filled or parts[:1]
    keys = np.concatenate([part.keys for part in parts])
    if not ascend(keys):
        raise CheckpointError(f"two shards of one server have the same keys of vector {name!r}")
    state = {name: joined([part.state[name] for part in parts]) for name in parts[0].state}
    return PiecesOfRows(keys, joined([part.values for part in parts]), state)


def write_shard(
    folder: Path, server: int, segments: Mapping[str, Segment | Saved], meta: Mapping[str, Any] | None = None
) -> Entry:
    """Write a server's file, durably; return its entry for `commit`.

    `segments` by vector name; `meta` is any JSON-able dict (clocks, counters), returned by `load_server`.
    """
    vectors: dict[str, Any] = {}
    path = Path(folder) / f"server-{server:04d}.h5"
    parts = {name: save(each) if isinstance(each, Segment) else each for name, each in segments.items()}
    delta = any(saved.deleted is not None for saved in parts.values())
    with create_file(path, meta, DELTA_VERSION if delta else VERSION) as file:
        for name, saved in parts.items():
            keys, values, state = saved.rows
            group = file.create_group(f"vectors/{name}")
            write_array(group, "keys", pairs(keys))
            write_array(group, "values", values)
            columns = group.create_group("state")
            for column, array in state.items():
                write_array(columns, column, array)
            spec = asdict(saved.spec) | {"settings": dict(saved.settings)}
            # Left out, so that versions without these can read the vector.
            for name_, usual in (("init", 0), ("key_bits", 64)):
                if spec[name_] == usual:
                    del spec[name_]
            vectors[name] = {
                "spec": spec,
                "rows": len(keys),
                "ranges": row_ranges(saved.ranges, keys),
            }
            if saved.deleted is not None:
                write_array(group, "deleted", pairs(saved.deleted))
                vectors[name]["deleted"] = len(saved.deleted)
    return entry_of(path, "server", server) | {"vectors": vectors}


def write_worker(
    folder: Path, worker: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None
) -> Entry:
    """Write a worker's arrays (numbers, of any shape), durably; return its entry for `commit`."""
    path = Path(folder) / f"worker-{worker:04d}.h5"
    with create_file(path, meta) as file:
        group = file.create_group("arrays")
        for name, array in arrays.items():
            write_array(group, name, np.asarray(array))
    return entry_of(path, "worker", worker)
