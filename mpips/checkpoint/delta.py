"""Deltas: what changed in the rows of a vector between two checkpoints; pure functions.

A delta is found by comparison at the time of a checkpoint, so no push pays for it, and it is right whatever happened
in between: a failover, a migration, an eviction, a resume. What is compared is a digest: the keys of the earlier
checkpoint, and a 64-bit hash of each row with its state. A changed row is overlooked with a probability of 2^-64, and
never if its bytes differ in one aligned word of 8 bytes only, since each step of the hash is a bijection.

    rows at the time of a checkpoint = the base, `then` the first delta, `then` the second one, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import KeyArray, order, pairs
from mpips.storage.disk.sorted_copy import PiecesOfRows, chosen, pieces_of
from mpips.storage.segment import Rows


class Delta(NamedTuple):
    """Rows that are new or have changed, and the keys, ascending, that have no row any more."""

    rows: Rows
    deleted: KeyArray


class Digest(NamedTuple):
    """Keys in ascending order, and the hash of each row: u64[n]."""

    keys: KeyArray
    hashes: NDArray[np.uint64]


@kernel(*(f"void(u8[::1], {word}[:,::1])" for word in ("u1", "u4", "u8")))
def _add_hashes(hashes: NDArray[np.uint64], rows: NDArray[Any]) -> None:
    for i in range(len(hashes)):
        found = hashes[i]
        for j in range(rows.shape[1]):
            found = mix(found ^ np.uint64(rows[i, j]))
        hashes[i] = found


@kernel("void(u8[:,::1], u8[::1], u8[:,::1], u8[::1], b1[::1], b1[::1])")
def _compare(
    old_keys: NDArray[np.uint64],
    old: NDArray[np.uint64],
    new_keys: NDArray[np.uint64],
    new: NDArray[np.uint64],
    changed: NDArray[np.bool_],
    deleted: NDArray[np.bool_],
) -> None:
    """Merge two lists of keys; of 64-bit keys the two halves are the same column."""
    at, last = 0, new_keys.shape[1] - 1
    for i in range(len(new)):
        high, low = new_keys[i, 0], new_keys[i, last]
        while at < len(old) and (
            old_keys[at, 0] < high or (old_keys[at, 0] == high and old_keys[at, last] < low)
        ):
            deleted[at] = True
            at += 1
        changed[i] = True
        if at < len(old) and old_keys[at, 0] == high and old_keys[at, last] == low:
            changed[i] = old[at] != new[i]
            at += 1
    deleted[at:] = True


def digest(rows: Rows | PiecesOfRows) -> Digest:
    """Return the digest of rows in key order; those on disk are read once."""
    hashes = np.zeros(len(rows.keys), np.uint64)
    for _, column in sorted({"": rows.values, **rows.state}.items()):
        at = 0
        for piece in map(np.ascontiguousarray, pieces_of(column)):
            size, end = piece.dtype.itemsize * piece.shape[1], at + len(piece)
            word = next(each for each in (8, 4, 1) if size % each == 0)
            _add_hashes(hashes[at:end], piece.view(np.uint8).reshape(len(piece), size).view(f"u{word}"))
            at = end
    return Digest(rows.keys, hashes)


def merged(parts: Sequence[Digest]) -> Digest:
    """Return the digests of different keys as one."""
    keys = np.concatenate([part.keys for part in parts])
    hashes = np.concatenate([part.hashes for part in parts])
    places = order(keys, once=True)
    return Digest(keys[places], hashes[places])


def since(before: Digest, rows: Rows, now: Digest) -> Delta:
    """Return what changed since `before` in rows in key order, whose digest is `now`.

    >>> def rows_of(keys, values):
    ...     return Rows(np.array(keys, np.uint64), np.array(values)[:, None], {})
    >>> before, after = rows_of([1, 2, 3], [1.0, 2.0, 3.0]), rows_of([2, 3, 4], [2.0, 0.0, 0.0])
    >>> delta = since(digest(before), after, digest(after))
    >>> delta.rows.keys.tolist(), delta.deleted.tolist()
    ([3, 4], [1])
    >>> then(Delta(before, before.keys[:0]), delta).rows.values.tolist()
    [[2.0], [0.0], [0.0]]
    """
    changed, deleted = changes(before, now)
    return Delta(_taken(rows, changed), deleted)


def changes(before: Digest, now: Digest) -> tuple[NDArray[np.bool_], KeyArray]:
    """Return which rows of `now` are new or have changed, b1[n], and the keys of `before` that have none any more."""
    changed, deleted = np.zeros(len(now.keys), np.bool_), np.zeros(len(before.keys), np.bool_)
    _compare(_columns(before.keys), before.hashes, _columns(now.keys), now.hashes, changed, deleted)
    return changed, before.keys[deleted]


def chosen_rows(rows: Rows | PiecesOfRows, which: NDArray[np.bool_]) -> Rows | PiecesOfRows:
    """Return some rows; those on disk stay there."""
    if isinstance(rows, Rows):
        return _taken(rows, which)
    state = {name: chosen(column, which) for name, column in rows.state.items()}
    return PiecesOfRows(rows.keys[which], chosen(rows.values, which), state)


def then(older: Delta, newer: Delta) -> Delta:
    """Return two consecutive deltas as one, which are not changed; the older one may be a base, that deletes nothing.

    A deleted key of the result may have a row, that was made later.
    """
    keys, values, state = newer.rows
    at, known = _places(older.rows.keys, keys)

    def changed(array: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
        out = array.copy()
        out[at[known]] = more[known]
        return out

    of = {name: changed(column, state[name]) for name, column in older.rows.state.items()}
    rows = Rows(older.rows.keys, changed(older.rows.values, values), of)
    gone, there = _places(rows.keys, newer.deleted)
    if there.any():
        stay = np.ones(len(rows.keys), np.bool_)
        stay[gone[there]] = False
        # Deleted, and made again.
        stay[at[known]] = True
        rows = _taken(rows, stay)
    if not known.all():
        rows = _with(rows, _taken(newer.rows, ~known))
    return Delta(rows, np.union1d(older.deleted, newer.deleted))


def _with(rows: Rows, more: Rows) -> Rows:
    """Return rows with more of them, of other keys, in key order."""
    at = np.searchsorted(rows.keys, more.keys) + np.arange(len(more.keys))
    return Rows(
        _woven(rows.keys, more.keys, at),
        _woven(rows.values, more.values, at),
        {name: _woven(column, more.state[name], at) for name, column in rows.state.items()},
    )


def _columns(keys: KeyArray) -> NDArray[np.uint64]:
    return np.ascontiguousarray(pairs(keys).reshape(len(keys), -1) if len(keys) else np.empty((0, 1)), "<u8")


def _taken(rows: Rows, which: NDArray[np.bool_]) -> Rows:
    state = {name: column[which] for name, column in rows.state.items()}
    return Rows(rows.keys[which], rows.values[which], state)


def _places(keys: KeyArray, some: KeyArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the places of some keys among ascending ones, and whether they are among them."""
    at = np.searchsorted(keys, some)
    known = at < len(keys)
    known[known] = keys[at[known]] == some[known]
    return at, known


def _woven(array: NDArray[Any], more: NDArray[Any], at: NDArray[np.intp]) -> NDArray[Any]:
    """Return an array with `more` rows, which get the places `at`."""
    out = np.empty((len(array) + len(more), *array.shape[1:]), array.dtype)
    mine = np.ones(len(out), np.bool_)
    mine[at] = False
    out[mine], out[at] = array, more
    return out
