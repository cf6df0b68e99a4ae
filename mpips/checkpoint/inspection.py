"""Inspection of a checkpoint: verification of all its bytes, and a description of its contents."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, MutableSet
from pathlib import Path

from mpips.checkpoint.loading import vectors
from mpips.checkpoint.manifest import (
    MANIFEST,
    Entry,
    cover_problems,
    entry_of,
    explained,
    from_base,
    read_manifest,
    runs_of,
    text_of,
)
from mpips.checkpoint.shard_file import differences, open_file
from mpips.errors import CheckpointError
from mpips.files.safe_open import open_regular, read_bytes
from mpips.process.printable import printable


def verify(
    path: Path, between_pieces: Callable[[], object] = lambda: None, valid: MutableSet[Path] | None = None
) -> list[str]:
    """Check all bytes of a checkpoint; return a line per problem, naming the file; none: it is valid.

    Of a delta, those that it needs are checked, too. `between_pieces` is called between two reads, so that a long check
    can be stopped. `valid` gets the folders without problems, and those in it are not read again.
    """
    known: MutableSet[Path] = set() if valid is None else valid
    try:
        links = from_base(Path(path))
    except CheckpointError as error:
        return [str(error)]
    problems = []
    for each, _ in links:
        if each not in known:
            found = _problems(each, between_pieces)
            problems += found
            if not problems:
                known.add(each)
    return problems


def _problems(path: Path, between_pieces: Callable[[], object]) -> list[str]:
    """Check all bytes of one folder."""
    try:
        manifest = read_manifest(path)
        entries = manifest["files"]
        problems = [f"{path / MANIFEST}: {problem}" for problem in cover_problems(entries)]
        if read_bytes(path / MANIFEST, follow=False) != text_of(manifest).encode():
            problems.append(f"{path / MANIFEST}: damaged: its text is not as mpips writes it")
        shards = {entry["name"] for entry in entries if entry["kind"] == "server"}
        for entry in sorted(entries, key=lambda entry: bool(entry["kind"] == "view")):
            if entry["kind"] != "view":
                problems += _file_problems(path / entry["name"], entry, (), between_pieces)
            else:
                # The view's data are read only if all shards are valid, since HDF5 opens the files that it refers to.
                checked = {} if problems else entry.get("vectors", {})
                problems += _file_problems(
                    path / entry["name"], {**entry, "vectors": checked}, shards, between_pieces
                )
    except CheckpointError as error:
        return [str(error)]
    except (OSError, KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        return [f"{path / MANIFEST}: damaged: {type(error).__name__}: {error}"]
    return problems


def _file_problems(
    file: Path, entry: Entry, view_files: Collection[str], between_pieces: Callable[[], object]
) -> list[str]:
    """Describe what is wrong with a file of a checkpoint, by its entry; a view may refer only to `view_files`."""
    try:
        with explained("read", file), open_regular(file, follow=False) as source:
            size = os.fstat(source.fileno()).st_size
        # Without reading it: it may be a file without an end.
        if size != entry["bytes"]:
            return [f"{file}: {size} bytes, the manifest says {entry['bytes']}"]
        if entry_of(file, entry["kind"], entry["number"], between_pieces)["sha256"] != entry["sha256"]:
            return [f"{file}: damaged: its sha256 is not the manifest's"]
        with open_file(file, view_files) as contents:
            parts = entry.get("vectors", {}).items()
            return [
                f"{file}: {problem}" for name, part in parts for problem in differences(contents, name, part)
            ]
    except CheckpointError as error:
        return [str(error)]


def describe(path: Path) -> str:
    """Return a readable description of a checkpoint, in a few lines."""
    manifest = read_manifest(path)
    entries = manifest["files"]
    size = sum(entry["bytes"] for entry in entries)
    servers, workers = (sum(entry["kind"] == kind for entry in entries) for kind in ("server", "worker"))
    lines = [f"{path}: complete, {size / 1e6:,.1f} MB, shards {servers}, worker states {workers}"]
    links = from_base(path)
    if len(links) > 1:
        base, before = links[0][0].name, links[-2][0].name
        lines.append(f"  delta {len(links) - 1} of the base {base}: what has changed since {before}")
    plain = {k: v for k, v in manifest["about"].items() if isinstance(v, int | float | str)}
    lines += [f"  {key}: {value}" for key, value in sorted(plain.items())]
    for name, spec in vectors(path).items():
        rows = f"{sum(run.rows for run in runs_of(entries, name)):,} {'keys' if len(links) == 1 else 'changed keys'}"
        if len(links) > 1:
            parts = [entry["vectors"][name] for entry in entries if name in entry.get("vectors", {})]
            rows += f", {sum(part.get('deleted', 0) for part in parts):,} deleted"
        shape = f"{spec.dtype} x {spec.width}" if spec.width > 1 else spec.dtype
        kind = "dense" if spec.dense else "sparse"
        settings = "".join(f", {key} = {value}" for key, value in sorted(spec.settings.items()))
        settings += "" if spec.init == 0 else f", init {spec.init}"
        lines.append(f"  vector {name}: {rows}, {shape}, {kind}, update {spec.update}{settings}")
    for entry in entries:
        keys = "".join(f", {name} {part['rows']:,} keys" for name, part in entry.get("vectors", {}).items())
        lines.append(f"  {entry['name']}: {entry['bytes']:,} bytes{keys}")
    return "\n".join(printable(line, keep="") for line in lines)
