"""Writes the files of one server: bases, and deltas, which have what changed since an earlier checkpoint.

The writer keeps the digests of what it has written last, and of what that follows, since it may be dropped: 16 bytes
each for a row of 64-bit keys. It is only a cache: the file of a checkpoint is recognised by the checkpoint's name and
the file's hash in the manifest, and of the ranges that another server has written, or a former primary, the rows are
read from that checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mpips.checkpoint.delta import Digest, changes, chosen_rows, digest, merged
from mpips.checkpoint.loading import load_range
from mpips.checkpoint.manifest import Entry, read_manifest, spec_of, vector_names
from mpips.checkpoint.shard_file import rows_within
from mpips.checkpoint.writing import Saved, write_shard
from mpips.errors import CheckpointError
from mpips.keys import upper
from mpips.ranges import KeyRange, coalesce, intersection
from mpips.storage.updates import VectorSpec

_AT_ONCE = 1 << 18
"""Rows that are read at once from an earlier checkpoint."""


class _Written(NamedTuple):
    """What a file has of one vector."""

    ranges: list[KeyRange]
    digest: Digest


class ShardWriter:
    """Writes a server's files, in a thread of its own or not; see the module."""

    def __init__(self) -> None:
        # By the name of the checkpoint and the hash of the file, and the vector's name. The hash alone is not enough:
        # deltas without changes have the same bytes, whatever they follow.
        self._written: dict[tuple[str, str], dict[str, _Written]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        written = [each.digest for held in self._written.values() for each in held.values()]
        return sum(each.keys.nbytes + each.hashes.nbytes for each in written)

    def write(
        self,
        folder: Path,
        server: int,
        parts: Mapping[str, Saved],
        meta: Mapping[str, Any],
        follows: str | None,
    ) -> Entry:
        """Write a server's file, durably; return its entry for `commit`.

        `follows` is the name of an earlier checkpoint beside it: only what has changed since is written. None: all.

        Raises:
            CheckpointError: the file cannot be written, or the earlier checkpoint cannot be read.
        """
        entries: list[Entry] = []
        if follows is not None:
            earlier = Path(folder).with_name(follows)
            entries = read_manifest(earlier)["files"]
        files = {(str(follows), entry["sha256"]) for entry in entries}
        # Others are dropped before more is needed.
        known = self._written = {each: held for each, held in self._written.items() if each in files}
        now = {name: digest(saved.rows) for name, saved in parts.items()}
        if follows is not None:
            mine = next(iter(known.values()), {})
            there, changed = vector_names(entries), {}
            for name, saved in parts.items():
                # A note may be replaced by another one.
                same = name in there and _alike(VectorSpec(**spec_of(entries, name)), saved.spec)
                before = _before(earlier, saved, mine.get(name), now[name]) if same else _nothing(now[name])
                which, deleted = changes(before, now[name])
                changed[name] = saved._replace(rows=chosen_rows(saved.rows, which), deleted=deleted)
            parts = changed
        entry = write_shard(folder, server, parts, meta)
        held = {name: _Written(coalesce(saved.ranges), now[name]) for name, saved in parts.items()}
        self._written = known | {(Path(folder).name, entry["sha256"]): held}
        return entry


def _alike(spec: VectorSpec, other: VectorSpec) -> bool:
    """Return whether two specifications differ in settings at most."""
    return replace(spec, settings={}) == replace(other, settings={})


def _nothing(like: Digest) -> Digest:
    return Digest(like.keys[:0], like.hashes[:0])


def _before(earlier: Path, saved: Saved, mine: _Written | None, now: Digest) -> Digest:
    """Return the digest of the rows that a checkpoint has of a vector's ranges."""
    ranges = coalesce(saved.ranges)
    if mine is not None and mine.ranges == ranges:
        return mine.digest
    held, (keys, hashes) = mine or _Written([], now)
    found = [_nothing(now)]
    for owned in held:
        for piece in filter(None, (intersection(owned, each) for each in ranges)):
            at = rows_within(keys, piece)
            found.append(Digest(keys[at], hashes[at]))
    for piece in _cut(without(ranges, held), now):
        rows = load_range(earlier, saved.spec.name, [piece])
        if {name: column.dtype for name, column in rows.state.items()} != {
            name: column.dtype for name, column in saved.rows.state.items()
        }:
            raise CheckpointError(f"{earlier}: vector {saved.spec.name!r} has other state columns")
        found.append(digest(rows))
    return merged(found)


def _cut(ranges: Iterable[KeyRange], now: Digest) -> list[KeyRange]:
    """Cut ranges so that each has about `_AT_ONCE` rows of `now`."""
    ends = sorted({0, *(int(key) for key in upper(now.keys)[_AT_ONCE::_AT_ONCE]), 2**64})
    pieces = [KeyRange(*each) for each in pairwise(ends)]
    return [part for each in ranges for piece in pieces if (part := intersection(each, piece))]


def without(ranges: Iterable[KeyRange], others: Iterable[KeyRange]) -> list[KeyRange]:
    """Return what of some ranges lies in none of the others, both as `coalesce` returns them.

    >>> without([KeyRange(0, 10), KeyRange(20, 30)], [KeyRange(2, 4), KeyRange(8, 25)])
    [KeyRange(begin=0, end=2), KeyRange(begin=4, end=8), KeyRange(begin=25, end=30)]
    """
    left = list(ranges)
    for other in others:
        pieces = [
            part
            for each in left
            for part in (
                KeyRange(each.begin, min(each.end, other.begin)),
                KeyRange(max(each.begin, other.end), each.end),
            )
        ]
        left = [each for each in pieces if not each.empty]
    return left
