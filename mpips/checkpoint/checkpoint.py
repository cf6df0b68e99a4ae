"""Checkpoints: created, completed and removed, so that the latest is always complete (format: checkpoints/README.md).

A checkpoint is a folder step-000120. Every server writes one file with its rows in key order, every worker
that has state one with its arrays; each is synced to disk and described by an entry for the manifest. When
all entries are in, one rank writes the manifest, under another name and then renamed. A folder without a
manifest is not a checkpoint, whatever it contains, so neither a temporary folder nor a lock is needed, and
after a crash at any time the previous checkpoint is the latest. A delta (mpips/checkpoint/delta.py) is written in the
same way; no checkpoint that one needs is removed before it.

    one rank:      folder = begin(directory, step)
    every server:  entry = write_shard(folder, number, segments, meta)      (mpips/checkpoint/writing.py; a `save`d copy
    every worker:  entry = write_worker(folder, number, arrays, meta)        may be written while training continues)
    one rank:      commit(folder, entries, about); prune(directory, keep)

`begin`, `commit` and `prune` get the run's `Lineage`, and do not change other runs' checkpoints.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpips.checkpoint.lineage import MARK, Lineage, owner_of
from mpips.checkpoint.manifest import (
    MANIFEST,
    Entry,
    complete,
    complete_checkpoints,
    cover_problems,
    entry_of,
    explained,
    manifest_if_complete,
    order_of,
    read_manifest,
    runs_of,
    spec_of,
    step_folder,
    step_of,
    step_paths,
    sync,
    vector_names,
    write_manifest,
)
from mpips.checkpoint.shard_file import (
    create_file,
)
from mpips.errors import CheckpointError
from mpips.files.safe_open import make_folder

if TYPE_CHECKING:
    import h5py

VIEW = "parameters.h5"
NO_LINEAGE = Lineage()


def check_directory(directory: Path) -> None:
    """Raise CheckpointError if checkpoints cannot be written to a folder; it need not exist, and is not created.

    >>> check_directory(Path("/dev/null/checkpoints"))
    Traceback (most recent call last):
        ...
    mpips.errors.CheckpointError: checkpoints cannot be written to /dev/null/checkpoints: /dev/null is not a folder
    """
    if "\0" in str(directory):
        raise CheckpointError(f"checkpoints cannot be written to {str(directory)!r}: it is not a file name")
    first = Path(os.path.abspath(directory))
    while not os.path.lexists(first):
        first = first.parent
    if not first.is_dir():
        raise CheckpointError(f"checkpoints cannot be written to {directory}: {first} is not a folder")
    if not os.access(first, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"checkpoints cannot be written to {directory}: no permission to write to {first}"
        )


def begin(directory: Path, step: int, lineage: Lineage = NO_LINEAGE, abandoned: Path | None = None) -> Path:
    """Create the folder of a step's checkpoint, before any rank writes; return it.

    An incomplete attempt of this run at the same step is removed. Complete checkpoints and other runs' attempts of that
    step stay: the new folder then has a suffix. No two runs get the same folder. A file may still be written for the
    attempt that was `abandoned`: the new folder has another name.
    """
    directory = Path(directory)
    complete_paths = set(complete(directory))
    attempts = [0 if abandoned is None else order_of(abandoned)[1]]
    with explained("make", step_folder(directory, step)):
        make_folder(directory, exist_ok=True)
        for draft in directory.glob(".step-*"):
            # A start that was killed has left it.
            if lineage.run and lineage.made_attempt(draft):
                _remove(draft, lineage)
        for path in [each for each in step_paths(directory) if step_of(each) == step]:
            if _is_incomplete_attempt(path, complete_paths, lineage):
                _remove(path, lineage)
            else:
                attempts.append(order_of(path)[1])
        folder = _create(directory, step, max(attempts) + 1, lineage)
        sync(directory)
    return folder


def _create(directory: Path, step: int, attempt: int, lineage: Lineage) -> Path:
    """Create the first free folder of a step from an attempt on; it gets its name with the mark in it."""
    draft = directory / f".{step_folder(directory, step).name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        lineage.mark(draft)
        while True:
            folder = step_folder(directory, step, attempt)
            try:
                # This fails if another run has created it meanwhile: it is not empty.
                os.rename(draft, folder)
            except OSError as error:
                # The answer to a first request was lost, and NFS has repeated it.
                if error.errno == errno.ENOENT and folder.is_dir() and not draft.exists():
                    return folder
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                attempt += 1
            else:
                return folder
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def abandon(folder: Path) -> None:
    """Remove a failed attempt, as far as possible; raises no error, and keeps a folder with a manifest."""
    folder = Path(folder)
    with suppress(OSError, ValueError):
        order_of(folder)
        if not folder.is_symlink() and not (folder / MANIFEST).exists():
            _remove_rest(folder)


def commit(
    folder: Path,
    files: Iterable[Entry],
    about: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    run: str = "",
    follows: Mapping[str, str] | None = None,
) -> Path:
    """Complete a checkpoint from the entries of all its files; return the manifest's path.

    `about` is JSON-able: the step, the job, versions, random states, and anything else that a resumed run needs; so is
    `provenance`, a copy of the run's. `run` is the id of the run that it belongs to. `follows`, of a delta: the
    `checkpoint` that it follows, by the name of its folder, which is beside it, and the `sha256` of its manifest.

    Raises:
        CheckpointError: the shards do not hold every key of every vector exactly once, or that checkpoint is not there.
    """
    folder = Path(folder)
    entries = sorted(files, key=lambda entry: str(entry["name"]))
    for problem in cover_problems(entries):
        raise CheckpointError(f"{folder}: {problem}")
    if follows is None:
        with create_file(folder / VIEW, None) as file:
            _write_view(file, entries)
        entries.append(entry_of(folder / VIEW, "view", 0))
    else:
        before = manifest_if_complete(folder.with_name(follows["checkpoint"]))
        if before is None or before["sha256"] != follows["sha256"]:
            raise CheckpointError(
                f"{folder}: {follows['checkpoint']}, which it follows, was removed or replaced"
            )
    made = write_manifest(folder, entries, about or {}, provenance, run, follows)
    with suppress(OSError):
        # The manifest names the run from now on.
        (folder / MARK).unlink(missing_ok=True)
    return made


def prune(
    directory: Path, keep: int, lineage: Lineage = NO_LINEAGE, protected: Iterable[Path] = ()
) -> list[Path]:
    """Remove the complete checkpoints of a run and its ancestors except the newest `keep` (at least 1).

    What a delta needs that stays, of any run, stays, too. Incomplete attempts of the run before the newest are removed,
    too, and symbolic links, but not their targets. Other runs' checkpoints and attempts stay, and so do those in
    `protected`. Returns the removed paths.

    Raises:
        CheckpointError: some could not be removed; all others are.
    """
    own = lineage.checkpoints(directory)
    if not own:
        return []
    manifests, newest = dict(complete_checkpoints(directory)), order_of(own[-1])
    old = set(own[: -max(keep, 1)])
    old |= {
        path
        for path in step_paths(directory)
        if order_of(path) < newest and (_is_incomplete_attempt(path, manifests, lineage) or path.is_symlink())
    }
    spared = {each.absolute() for each in protected}
    old = {path for path in old if path.absolute() not in spared}
    kept = _needed(manifests.keys() - old, manifests)
    removed, problems = [], []
    # A delta before the one that it follows.
    for path in sorted(old, key=order_of, reverse=True):
        if path not in kept:
            try:
                with explained("remove", path):
                    _remove(path, lineage)
                removed.append(path)
            except CheckpointError as error:
                problems.append(error)
                kept |= _needed({path}, manifests)
    if problems:
        raise problems[-1]
    return removed[::-1]


def _needed(paths: Iterable[Path], manifests: Mapping[Path, Mapping[str, Any]]) -> set[Path]:
    """Return complete checkpoints, and those that they need."""
    found = set[Path]()
    for path in paths:
        while path in manifests and path not in found:
            found.add(path)
            if follows := manifests[path].get("follows"):
                path = path.with_name(follows["checkpoint"])
    return found


def _is_incomplete_attempt(path: Path, complete_paths: Container[Path], lineage: Lineage) -> bool:
    """Return whether this is an incomplete attempt of this lineage."""
    if path in complete_paths or path.is_symlink() or not path.is_dir():
        return False
    try:
        owner = owner_of(read_manifest(path))
    except CheckpointError:
        return lineage.made_attempt(path)
    # It has a manifest, but files are missing.
    return lineage.generation(owner, path) is not None


def _remove(path: Path, lineage: Lineage) -> None:
    """Remove a checkpoint, its manifest first: it is never complete with a file missing. A link is only unlinked."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    # If this is interrupted, the mark says whose the rest is. It is not needed: there may be no room for it.
    with suppress(OSError):
        lineage.mark(path)
    (path / MANIFEST).unlink(missing_ok=True)
    sync(path)
    _remove_rest(path)


def _remove_rest(path: Path) -> None:
    """Remove the folder of an incomplete checkpoint, the mark last. OSError: a file stays, and all others are gone."""
    problems = []
    for name in os.listdir(path):
        if name != MARK:
            each = path / name
            try:
                shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
            except OSError as error:
                problems.append(error)
    if problems:
        raise problems[0]
    # After a crash, nothing is left without it.
    sync(path)
    shutil.rmtree(path)


def _write_view(file: h5py.File, entries: list[Entry]) -> None:
    """Write virtual datasets that show the shards of each vector as one, in key order."""
    import h5py

    vectors_of = {entry["name"]: entry.get("vectors", {}) for entry in entries}
    for name in vector_names(entries):
        runs, spec = runs_of(entries, name), spec_of(entries, name)
        total = sum(run.rows for run in runs)
        group = file.create_group(name)
        halves = () if spec.get("key_bits", 64) == 64 else (2,)
        for field, tail, kind in (("keys", halves, "<u8"), ("values", (spec["width"],), spec["dtype"])):
            # By HDF5's low-level API: h5py's virtual datasets store the time, but equal states must give equal bytes.
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_obj_track_times(False)
            shape, at = (total, *tail), 0
            for run in runs:
                if run.rows:
                    source_shape = (vectors_of[run.file][name]["rows"], *tail)
                    layout.set_virtual(
                        _rows_of(shape, at, run.rows),
                        run.file.encode(),
                        f"vectors/{name}/{field}".encode(),
                        _rows_of(source_shape, run.first, run.rows),
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
