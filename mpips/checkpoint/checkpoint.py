"""Checkpoints: HDF5 shards, written durably and read back on any layout (checkpoints/README.md: the format).

A checkpoint is a folder step-000120. Every server writes one file with its rows in key order, every worker
that has state one with its arrays; each is synced to disk and described by an entry for the manifest. When
all entries are in, one rank writes the manifest, under another name and then renamed. A folder without a
manifest is not a checkpoint, whatever else is in it, so neither a temporary folder nor a lock is needed, and
after a crash at any time the previous checkpoint is the latest.

    one rank:      folder = begin(directory, step)
    every server:  entry = write_shard(folder, number, segments, meta)      (a `save`d copy may be written
    every worker:  entry = write_worker(folder, number, arrays, meta)        while training goes on)
    one rank:      commit(folder, entries, about); prune(directory, keep)

`begin`, `commit` and `prune` get the run's `Lineage`, and do not change other runs' checkpoints.

A checkpoint is mapped to another layout when it is read: `load_range` reads from each shard the runs of rows that
intersect a new owner's ranges.
"""

from __future__ import annotations

import shutil
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.checkpoint.lineage import MARK, Lineage, owner_of
from mpips.checkpoint.manifest import (
    MANIFEST,
    NOTE,
    Entry,
    complete,
    cover_problems,
    entry_of,
    explained,
    order_of,
    runs_of,
    spec_of,
    step_folder,
    step_of,
    step_paths,
    sync,
    text_of,
    vector_names,
    write_manifest,
)
from mpips.checkpoint.manifest import latest as latest
from mpips.checkpoint.manifest import read_manifest as read_manifest
from mpips.checkpoint.shard_file import (
    concatenated,
    created,
    located,
    meta_of,
    misfits,
    opened,
    read_rows,
    read_run,
    write_array,
)
from mpips.errors import CheckpointError, UsageError
from mpips.files.safe_open import read_bytes
from mpips.process.printable import printable
from mpips.ranges import KeyRange, coalesce, intersection
from mpips.storage.segment import Rows, Segment
from mpips.storage.updates import Setting, VectorSpec
from mpips.storage.vector_clock import RangedClock

if TYPE_CHECKING:
    import h5py

VIEW = "parameters.h5"
NOBODY = Lineage()


class Saved(NamedTuple):
    """One server's part of a vector, copied so that it can be written while training goes on."""

    spec: VectorSpec
    settings: dict[str, Setting]
    ranges: list[KeyRange]
    rows: Rows


def save(segment: Segment) -> Saved:
    """Copy the saved parts of a segment: its rows in key order, its ranges and settings."""
    return Saved(segment.spec, dict(segment.settings), list(segment.ranges), segment.export_state())


def save_note(segment: Segment, note: str, noted: tuple[NDArray[np.int32], NDArray[Any]]) -> Saved:
    """Copy a segment's note, (slots, rows), as a vector of its own that holds the noted keys."""
    slots, rows = noted
    keys = segment.keys_of(slots)
    order = np.argsort(keys)
    spec = VectorSpec(
        f"{segment.spec.name}{NOTE}{note}", rows.dtype.name, rows.shape[1], segment.spec.extent, "assign"
    )
    return Saved(spec, {}, list(segment.ranges), Rows(keys[order], rows[order], {}))


def joined(parts: Sequence[Saved]) -> Saved:
    """Merge parts of one vector, whose ranges are disjoint, into one with its rows in key order.

    Specification and settings are those of the first. Raises CheckpointError when a key is in two parts.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    keys, values, state = concatenated([part.rows for part in parts])
    if np.any(keys[1:] <= keys[:-1]):
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        state = {name: column[order] for name, column in state.items()}
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise CheckpointError(
                f"key {twice[0]} of vector {first.spec.name!r} is in two shards of one server"
            )
    ranges = coalesce(piece for part in parts for piece in part.ranges)
    return first._replace(ranges=ranges, rows=Rows(keys, values, state))


# Writing.


def begin(directory: Path, step: int, lineage: Lineage = NOBODY) -> Path:
    """Create the folder of a step's checkpoint, before any rank writes; return it.

    An incomplete attempt of this run at the same step is removed. Complete checkpoints and other runs' attempts of that
    step stay: the new folder then has a suffix. No two runs get the same folder.
    """
    directory = Path(directory)
    sound = set(complete(directory))
    taken = [0]
    with explained("make", step_folder(directory, step)):
        directory.mkdir(parents=True, exist_ok=True)
        for path in [each for each in step_paths(directory) if step_of(each) == step]:
            if _torn(path, sound, lineage):
                _remove(path)
            else:
                taken.append(order_of(path)[1])
        for attempt in count(max(taken) + 1):
            folder = step_folder(directory, step, attempt)
            # another run may create it at the same time
            with suppress(FileExistsError):
                folder.mkdir()
                break
        lineage.mark(folder)
        sync(folder)
        sync(directory)
        sync(directory.parent)
    return folder


def abandon(folder: Path) -> None:
    """Remove a failed attempt, as far as possible; raises no error, and keeps a folder with a manifest."""
    folder = Path(folder)
    with suppress(OSError, ValueError):
        order_of(folder)
        if not folder.is_symlink() and not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)


def write_shard(
    folder: Path, server: int, segments: Mapping[str, Segment | Saved], meta: Mapping[str, Any] | None = None
) -> Entry:
    """Write a server's file, durably; return its entry for `commit`.

    `segments` by vector name; `meta` is any JSON-able dict (clocks, counters), returned by `load_server`.
    """
    vectors: dict[str, Any] = {}
    path = Path(folder) / f"server-{server:04d}.h5"
    with created(path, meta) as file:
        for name, segment in segments.items():
            saved = save(segment) if isinstance(segment, Segment) else segment
            keys, values, state = saved.rows
            group = file.create_group(f"vectors/{name}")
            write_array(group, "keys", keys)
            write_array(group, "values", values)
            columns = group.create_group("state")
            for column, array in state.items():
                write_array(columns, column, array)
            vectors[name] = {
                "spec": asdict(saved.spec) | {"settings": dict(saved.settings)},
                "rows": len(keys),
                "ranges": located(saved.ranges, keys),
            }
    return entry_of(path, "server", server) | {"vectors": vectors}


def write_worker(
    folder: Path, worker: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any] | None = None
) -> Entry:
    """Write a worker's arrays (numbers, of any shape), durably; return its entry for `commit`."""
    path = Path(folder) / f"worker-{worker:04d}.h5"
    with created(path, meta) as file:
        group = file.create_group("arrays")
        for name, array in arrays.items():
            write_array(group, name, np.asarray(array))
    return entry_of(path, "worker", worker)


def commit(
    folder: Path,
    files: Iterable[Entry],
    about: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    run: str = "",
) -> Path:
    """Complete a checkpoint from the entries of all its files; return the manifest's path.

    `about` is JSON-able: the step, the job, versions, random states, whatever a resumed run needs; so is `provenance`,
    a copy of the run's. `run` is the id of the run that it belongs to. Raises CheckpointError when the shards do not
    hold every key of every vector exactly once.
    """
    folder = Path(folder)
    entries = sorted(files, key=lambda entry: str(entry["name"]))
    for problem in cover_problems(entries):
        raise CheckpointError(f"{folder}: {problem}")
    with created(folder / VIEW, None) as file:
        _write_view(file, entries)
    entries.append(entry_of(folder / VIEW, "view", 0))
    made = write_manifest(folder, entries, about or {}, provenance, run)
    with suppress(OSError):
        # the manifest names the run from now on
        (folder / MARK).unlink(missing_ok=True)
    return made


def prune(directory: Path, keep: int, lineage: Lineage = NOBODY, spare: Iterable[Path] = ()) -> list[Path]:
    """Remove the complete checkpoints of a run and its ancestors except the newest `keep` (at least 1).

    Incomplete attempts of the run before the newest are removed, too, and symbolic links, but not their targets. Other
    runs' checkpoints and attempts stay, and so do those in `spare`. Returns the removed paths.

    Raises:
        CheckpointError: some could not be removed; all others are.
    """
    own = lineage.checkpoints(directory)
    if not own:
        return []
    sound, newest = set(complete(directory)), order_of(own[-1])
    old = set(own[: -max(keep, 1)])
    old |= {
        path
        for path in step_paths(directory)
        if order_of(path) < newest and (_torn(path, sound, lineage) or path.is_symlink())
    }
    kept = {each.absolute() for each in spare}
    removed, problems = [], []
    for path in sorted(old, key=order_of):
        if path.absolute() not in kept:
            try:
                with explained("remove", path):
                    _remove(path)
                removed.append(path)
            except CheckpointError as error:
                problems.append(error)
    if problems:
        raise problems[0]
    return removed


def _torn(path: Path, sound: Container[Path], lineage: Lineage) -> bool:
    """Tell whether this is an incomplete attempt of this lineage."""
    if path in sound or path.is_symlink() or not path.is_dir():
        return False
    try:
        owner = owner_of(read_manifest(path))
    except CheckpointError:
        return lineage.left(path)
    # it has a manifest, but files are missing
    return lineage.generation(owner, path) is not None


def _remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first: it is never complete with a file missing. A link is only unlinked."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    (path / MANIFEST).unlink(missing_ok=True)
    sync(path)
    shutil.rmtree(path)


def _write_view(file: h5py.File, entries: list[Entry]) -> None:
    """Write virtual datasets that show the shards of each vector as one, in key order."""
    import h5py

    held = {entry["name"]: entry.get("vectors", {}) for entry in entries}
    for name in vector_names(entries):
        runs, spec = runs_of(entries, name), spec_of(entries, name)
        total = sum(run.rows for run in runs)
        group = file.create_group(name)
        for field, tail, kind in (("keys", (), "<u8"), ("values", (spec["width"],), spec["dtype"])):
            # By HDF5's low-level API: h5py's virtual datasets store the time, but equal states must give equal bytes.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_obj_track_times(False)
            shape, at = (total, *tail), 0
            for run in runs:
                if run.rows:
                    there = (held[run.file][name]["rows"], *tail)
                    layout.set_virtual(
                        _rows_of(shape, at, run.rows),
                        run.file.encode(),
                        f"vectors/{name}/{field}".encode(),
                        _rows_of(there, run.first, run.rows),
                    )
                    at += run.rows
            dtype = h5py.h5t.py_create(np.dtype(kind).newbyteorder("<"))
            h5py.h5d.create(group.id, field.encode(), dtype, h5py.h5s.create_simple(shape), layout)


def _rows_of(shape: tuple[int, ...], first: int, rows: int) -> h5py.h5s.SpaceID:
    """Select some rows of a dataset of that shape."""
    import h5py

    space = h5py.h5s.create_simple(shape)
    space.select_hyperslab((first, *(0 for _ in shape[1:])), (rows, *shape[1:]))
    return space


# Reading.


def verify(path: Path) -> list[str]:
    """Check all bytes of a checkpoint; return a line per problem, naming the file; none: it is valid."""
    path = Path(path)
    try:
        manifest = read_manifest(path)
        entries = manifest["files"]
        problems = [f"{path / MANIFEST}: {problem}" for problem in cover_problems(entries)]
        if read_bytes(path / MANIFEST, follow=False) != text_of(manifest).encode():
            problems.append(f"{path / MANIFEST}: damaged: it is not written as it was")
        shards = {entry["name"] for entry in entries if entry["kind"] == "server"}
        for entry in sorted(entries, key=lambda entry: bool(entry["kind"] == "view")):
            if entry["kind"] != "view":
                problems += _file_problems(path / entry["name"], entry, ())
            # the view's data are read only if all shards are valid, since HDF5 opens the files that it refers to
            else:
                held = {} if problems else entry.get("vectors", {})
                problems += _file_problems(path / entry["name"], {**entry, "vectors": held}, shards)
    except CheckpointError as error:
        return [str(error)]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        return [f"{path / MANIFEST}: damaged: {type(error).__name__}: {error}"]
    return problems


def _file_problems(file: Path, entry: Entry, beside: Container[str]) -> list[str]:
    """Describe what is wrong with a file of a checkpoint, by its entry; a view may refer only to files `beside` it."""
    try:
        found = entry_of(file, entry["kind"], entry["number"])
        if found["bytes"] != entry["bytes"]:
            return [f"{file}: {found['bytes']} bytes, the manifest says {entry['bytes']}"]
        if found["sha256"] != entry["sha256"]:
            return [f"{file}: damaged: its sha256 is not the manifest's"]
        with opened(file, beside) as held:
            parts = entry.get("vectors", {}).items()
            return [f"{file}: {problem}" for name, part in parts for problem in misfits(held, name, part)]
    except CheckpointError as error:
        return [str(error)]


def vectors(path: Path) -> dict[str, VectorSpec]:
    """Return the vectors of a checkpoint by name; their settings are those at the time of saving."""
    entries = read_manifest(path)["files"]
    try:
        return {name: VectorSpec(**spec_of(entries, name)) for name in vector_names(entries)}
    except (TypeError, UsageError) as error:
        raise CheckpointError(f"{Path(path) / MANIFEST} is damaged: {error}") from None


def load_range(path: Path, name: str, ranges: Iterable[KeyRange]) -> Rows:
    """Read the rows of one vector that lie in `ranges`, in key order, from whichever shards hold them.

    Raises CheckpointError when there is no such vector, or a shard cannot be read.
    """
    path = Path(path)
    entries = read_manifest(path)["files"]
    if name not in vector_names(entries):
        known = ", ".join(vector_names(entries)) or "none"
        raise CheckpointError(f"{path} has no vector {name!r}; it has: {known}")
    wanted = coalesce(ranges)
    runs = runs_of(entries, name)
    used = [run for run in runs if any(intersection(KeyRange(run.begin, run.end), piece) for piece in wanted)]
    found: list[tuple[int, Rows]] = []
    for shard in sorted({run.file for run in used}) or [runs[0].file]:
        with opened(path / shard) as file:
            group = file[f"vectors/{name}"]
            # no rows, of the right types
            found.append((-1, read_rows(group, slice(0, 0))))
            for run in used:
                if run.file == shard:
                    found += read_run(group, run, wanted)
    found.sort(key=lambda part: part[0])
    spec = spec_of(entries, name)
    for _, rows in found:
        if rows.values.dtype != spec["dtype"] or rows.values.shape[1] != spec["width"]:
            raise CheckpointError(f"{path}: the rows of vector {name!r} are not what its specification says")
    with explained("read", path):
        return concatenated([rows for _, rows in found])


def load_server(path: Path, server: int) -> dict[str, Any]:
    """Return the `meta` that a server's shard was written with."""
    with opened(Path(path) / f"server-{server:04d}.h5") as file:
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
                said = " ".join(str(error).split())
                raise CheckpointError(
                    f"{path / entry['name']}: is damaged: the clock of vector {name!r}: {said}"
                ) from None
    return clocks


def load_worker(path: Path, worker: int) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and the `meta` that a worker's state was written with."""
    with opened(Path(path) / f"worker-{worker:04d}.h5") as file:
        return {name: np.asarray(data[()]) for name, data in file["arrays"].items()}, meta_of(file)


def load_worker_if_any(path: Path, worker: int) -> dict[str, NDArray[Any]]:
    """Return a worker's arrays; none if it had no state."""
    entries = read_manifest(path)["files"]
    if not any(entry["kind"] == "worker" and entry["number"] == worker for entry in entries):
        return {}
    return load_worker(path, worker)[0]


def describe(path: Path) -> str:
    """Return a readable description of a checkpoint, in a few lines."""
    manifest = read_manifest(path)
    entries = manifest["files"]
    size = sum(entry["bytes"] for entry in entries)
    servers, workers = (sum(entry["kind"] == kind for entry in entries) for kind in ("server", "worker"))
    lines = [f"{path}: complete, {size / 1e6:,.1f} MB, shards {servers}, worker states {workers}"]
    plain = {k: v for k, v in manifest["about"].items() if isinstance(v, int | float | str)}
    lines += [f"  {key}: {value}" for key, value in sorted(plain.items())]
    for name, spec in vectors(path).items():
        rows = sum(run.rows for run in runs_of(entries, name))
        shape = f"{spec.dtype} x {spec.width}" if spec.width > 1 else spec.dtype
        kind = "dense" if spec.dense else "sparse"
        settings = "".join(f", {key} = {value}" for key, value in sorted(spec.settings.items()))
        lines.append(f"  vector {name}: {rows:,} keys, {shape}, {kind}, update {spec.update}{settings}")
    for entry in entries:
        held = "".join(f", {name} {part['rows']:,} keys" for name, part in entry.get("vectors", {}).items())
        lines.append(f"  {entry['name']}: {entry['bytes']:,} bytes{held}")
    return "\n".join(printable(line, keep="") for line in lines)
