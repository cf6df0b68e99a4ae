"""Reading a checkpoint for any layout.

`load_range` reads from each shard the runs of rows that intersect a new owner's ranges: of a delta, after those of the
checkpoints that it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.checkpoint.delta import Delta, then
from mpips.checkpoint.manifest import (
    MANIFEST,
    Entry,
    explained,
    from_base,
    read_manifest,
    runs_of,
    spec_of,
    vector_names,
)
from mpips.checkpoint.shard_file import (
    concatenate,
    meta_of,
    open_file,
    read_deleted,
    read_rows,
    read_run,
    rows_within,
)
from mpips.errors import CheckpointError, UsageError
from mpips.keys import KeyArray, dtype_of, order
from mpips.ranges import ALL, KeyRange, coalesce, intersection
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec
from mpips.storage.vector_clock import RangedClock


def vectors(path: Path) -> dict[str, VectorSpec]:
    """Return the vectors of a checkpoint by name; their settings are those at the time of saving."""
    entries = read_manifest(path)["files"]
    try:
        return {name: VectorSpec(**spec_of(entries, name)) for name in vector_names(entries)}
    except (TypeError, UsageError) as error:
        raise CheckpointError(f"{Path(path) / MANIFEST} is damaged: {error}") from None


def load_range(
    path: Path, name: str, ranges: Iterable[KeyRange], *, dtype: str = "", width: int = 0, key_bits: int = 0
) -> Rows:
    """Read the rows of one vector that lie in `ranges`, in key order, from whichever shards hold them.

    Raises CheckpointError when there is no such vector, a shard cannot be read, or a checkpoint is missing that a delta
    needs; or if the vector is not of the `dtype`, `width` or `key_bits` that the caller expects ("" and 0: any). The
    arrays must not be changed within `HeldRows.used`.

    >>> import tempfile
    >>> from mpips.checkpoint.checkpoint import begin, commit
    >>> from mpips.checkpoint.writing import write_shard
    >>> from mpips.storage.segment import Segment
    >>> part = Segment(VectorSpec("w", extent=3, dense=True))
    >>> with tempfile.TemporaryDirectory() as runs:
    ...     folder = begin(Path(runs), 1)
    ...     written = commit(folder, [write_shard(folder, 0, {"w": part})], {"step": 1})
    ...     rows = load_range(folder, "w", [KeyRange(1, 3)])
    >>> rows.keys.tolist(), rows.values.tolist()
    ([1, 2], [[0.0], [0.0]])
    """
    path, wanted = Path(path), coalesce(ranges)
    links = from_base(path)
    last = links[-1][1]
    if name not in (known := vector_names(last["files"])):
        raise CheckpointError(f"{path} has no vector {name!r}; it has: {', '.join(known) or 'none'}")
    spec = {"key_bits": 64} | spec_of(last["files"], name) | {"settings": {}}
    for field, expected in (("dtype", dtype), ("width", width), ("key_bits", key_bits)):
        if expected and spec[field] != expected:
            raise CheckpointError(f"{path}: vector {name!r} has the {field} {spec[field]}, not {expected}")
    held, found = _held.get() if wanted == [ALL] else None, None
    # From the last to the base: so the rows of the base are copied once.
    for each, manifest in reversed(links):
        # Created later; a note may be replaced by another one.
        if name not in vector_names(manifest["files"]):
            break
        if {"key_bits": 64} | spec_of(manifest["files"], name) | {"settings": {}} != spec:
            break
        rows = held.rows_of(name, manifest["sha256"]) if held is not None else None
        if rows is None:
            older = _stored(each, manifest["files"], name, wanted)
        else:
            older = Delta(_within(rows, wanted), rows.keys[:0])
        # Of a damaged one, state columns may differ.
        with explained("read", each):
            found = older if found is None else then(older, found)
        if rows is not None:
            break
        # What is in no range has no rows, whatever an earlier one has.
        wanted = _common(wanted, [KeyRange(run.begin, run.end) for run in runs_of(manifest["files"], name)])
    assert found is not None
    if held is not None:
        held.keep(name, last["sha256"], found.rows)
    return found.rows


def load_pieces(path: Path, name: str, ranges: Iterable[KeyRange], most: int) -> Iterator[Rows]:
    """Yield the rows that `load_range` returns, in order, at most `most` at once; of a delta all are read before."""
    path, wanted = Path(path), coalesce(ranges)
    links = from_base(path)
    entries = links[-1][1]["files"]
    runs = runs_of(entries, name) if name in vector_names(entries) else []
    used = [run for run in runs if any(intersection(KeyRange(run.begin, run.end), piece) for piece in wanted)]
    if len(links) > 1 or not used or most >= sum(run.rows for run in used):
        yield load_range(path, name, wanted)
        return
    for run in sorted(used, key=lambda run: run.begin):
        with open_file(path / run.file) as file:
            for _, rows in read_run(file[f"vectors/{name}"], run, wanted, most):
                _check_types(path, entries, name, rows)
                yield rows


def _check_types(path: Path, entries: list[Entry], name: str, rows: Rows) -> None:
    spec = spec_of(entries, name)
    expected = spec["dtype"], spec["width"], dtype_of(spec.get("key_bits", 64))
    if (rows.values.dtype, rows.values.shape[1], rows.keys.dtype) != expected:
        raise CheckpointError(f"{path}: the rows of vector {name!r} are not what its specification says")


def _common(ranges: list[KeyRange], others: Iterable[KeyRange]) -> list[KeyRange]:
    pieces = (intersection(a, b) for b in coalesce(others) for a in ranges)
    return coalesce(piece for piece in pieces if piece is not None)


def _within(rows: Rows, wanted: list[KeyRange]) -> Rows:
    """Return the rows that lie in some ranges, in order: themselves if all do."""
    places = [rows_within(rows.keys, piece) for piece in wanted]
    if sum(each.stop - each.start for each in places) == len(rows.keys):
        return rows
    parts = [(at, {name: column[at] for name, column in rows.state.items()}) for at in (slice(0), *places)]
    return concatenate([Rows(rows.keys[at], rows.values[at], state) for at, state in parts])


def _stored(path: Path, entries: list[Entry], name: str, wanted: list[KeyRange]) -> Delta:
    """Read what the files of one checkpoint have of a vector in some ranges."""
    holders = [entry["name"] for entry in entries if name in entry.get("vectors", {})]
    runs = runs_of(entries, name)
    used = [run for run in runs if any(intersection(KeyRange(run.begin, run.end), piece) for piece in wanted)]
    found: list[tuple[int, Rows]] = []
    deleted: list[KeyArray] = []
    for shard in sorted({run.file for run in used}) or holders[:1]:
        with open_file(path / shard) as file:
            group = file[f"vectors/{name}"]
            # No rows, of the right types.
            found.append((-1, read_rows(group, slice(0, 0))))
            for run in used:
                if run.file == shard:
                    found += read_run(group, run, wanted)
            mine = [KeyRange(run.begin, run.end) for run in used if run.file == shard]
            deleted.append(read_deleted(group, _common(wanted, mine)))
    found.sort(key=lambda part: part[0])
    for _, rows in found:
        _check_types(path, entries, name, rows)
    with explained("read", path):
        gone = np.concatenate(deleted)
        return Delta(concatenate([rows for _, rows in found]), gone[order(gone, once=True)])


class HeldRows:
    """Whole vectors as `load_range` has read them last: within `used`, it reads only what has changed since.

    The arrays are those that were returned; values and state are read-only from then on.
    """

    def __init__(self) -> None:
        self._rows: dict[str, tuple[str, Rows]] = {}

    def rows_of(self, name: str, manifest: str) -> Rows | None:
        """Return a vector as the checkpoint with this hash of its manifest has it; None if another one was read."""
        sha256, rows = self._rows.get(name, ("", None))
        return rows if sha256 == manifest else None

    def keep(self, name: str, manifest: str, rows: Rows) -> None:
        """Keep a vector as the checkpoint with this hash of its manifest has it."""
        for array in (rows.values, *rows.state.values()):
            # A change would be in all later ones, too.
            array.flags.writeable = False
        self._rows[name] = (manifest, rows)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have this thread use them until the end of the block."""
        token = _held.set(self)
        try:
            yield
        finally:
            _held.reset(token)


_held: ContextVar[HeldRows | None] = ContextVar("held", default=None)


def load_server(path: Path, server: int) -> dict[str, Any]:
    """Return the `meta` that a server's shard was written with."""
    with open_file(Path(path) / f"server-{server:04d}.h5") as file:
        return meta_of(file)


def load_clocks(path: Path, name: str) -> list[RangedClock]:
    """Return the clock of one vector on every server that wrote the checkpoint; CheckpointError if one is invalid."""
    path = Path(path)
    clocks = []
    for entry in read_manifest(path)["files"]:
        if entry["kind"] == "server":
            try:
                saved = load_server(path, entry["number"]).get("clocks", {}).get(name)
                if saved:
                    nodes, firsts, lasts, times = saved
                    clocks.append(
                        RangedClock.from_arrays(
                            np.array(nodes, np.int64),
                            np.array(firsts, np.uint64),
                            np.array(lasts, np.uint64),
                            np.array(times, np.int64),
                        )
                    )
            except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"{path / entry['name']}: is damaged: the clock of vector {name!r}: {reason}"
                ) from None
    return clocks


def load_worker(path: Path, worker: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the `meta` that a worker's state was written with."""
    from mpips.files.hdf5 import array

    with open_file(Path(path) / f"worker-{worker:04d}.h5") as file:
        return {name: array(file["arrays"], name) for name in file["arrays"]}, meta_of(file)


def load_worker_if_any(path: Path, worker: int) -> dict[str, NDArray[Any]]:
    """Return a worker's arrays; none if it had no state."""
    entries = read_manifest(path)["files"]
    if not any(entry["kind"] == "worker" and entry["number"] == worker for entry in entries):
        return {}
    return load_worker(path, worker)[0]
