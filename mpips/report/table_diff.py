"""The difference of two sets of parameters: in which keys, and by how much.

Parameters are tables: rows under ascending keys, read in chunks from the shards of a checkpoint or from a model's file,
so that they need not fit into memory. A key that one side does not have reads as its initial value there, usually 0, as
everywhere in mpips; rows of zeros are equal whatever their signs. Otherwise bits are compared, so that two NaN can be
equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from mpips import keys as key_arrays
from mpips.checkpoint.loading import load_range, vectors
from mpips.checkpoint.manifest import explained, read_manifest, runs_of, vector_names
from mpips.checkpoint.shard_file import open_file
from mpips.errors import InputError
from mpips.files import hdf5, npz
from mpips.keys import KeyArray, ascend, from_pairs, pairs
from mpips.ranges import ALL
from mpips.storage import initial
from mpips.storage.initial import Initial
from mpips.storage.updates import VectorSpec

PIECE = 1 << 18
"""Rows that are read at once."""
MODELS = (".npz", ".h5", ".hdf5")
SHOWN = 8
"""Numbers of a row that are shown."""


class Table(NamedTuple):
    """Rows of one width under ascending keys; the readers take the first row and the one after the last."""

    rows: int
    width: int
    dtype: np.dtype[Any]
    keys: Callable[[int, int], KeyArray]
    values: Callable[[int, int], NDArray[Any]]
    init: Initial = 0.0
    """What a key reads as that it does not have."""
    key_bits: int = 64


class Difference(NamedTuple):
    """The difference of two tables: `maximum` and `mean` of |a - b| over the numbers whose bits differ."""

    name: str
    keys: tuple[int, int]
    """Number of keys of each side."""
    differing: int
    """Keys whose rows differ."""
    first_key: int | None = None
    first: tuple[list[float], list[float]] | None = None
    """The rows of that key, the first few numbers of each."""
    maximum: float = 0.0
    mean: float = 0.0
    note: str = ""
    """Differences that the figures do not show."""

    @property
    def same(self) -> bool:
        """Whether the bits are the same."""
        return not self.differing and not self.note


def compare(name: str, a: Table, b: Table) -> Difference:
    """Compare two tables."""
    if a.width != b.width:
        note = f"rows of {a.width} numbers and of {b.width}"
        return Difference(name, (a.rows, b.rows), max(a.rows, b.rows), note=note)
    if a.key_bits != b.key_bits:
        note = f"keys of {a.key_bits} and of {b.key_bits} bits"
        return Difference(name, (a.rows, b.rows), max(a.rows, b.rows), note=note)
    note = "" if a.dtype == b.dtype else f"{a.dtype.name} and {b.dtype.name}"
    if a.init != b.init:
        note = "; ".join(filter(None, [note, f"other keys read as {a.init} and as {b.init}"]))
    differing, numbers, total, maximum, unlike = 0, 0, 0.0, 0.0, 0
    first_key, first = None, None
    for keys, left, right in aligned(a, b):
        rows = np.flatnonzero(_rows_differ(left, right))
        if not len(rows):
            continue
        if first is None:
            (first_key,), at = key_arrays.numbers(keys[rows[:1]]), int(rows[0])
            first = (left[at, :SHOWN].astype(float).tolist(), right[at, :SHOWN].astype(float).tolist())
        differing += len(rows)
        gaps = _gaps(left[rows], right[rows])
        unlike += int(np.isnan(gaps).sum())
        gaps = gaps[~np.isnan(gaps)]
        numbers += len(gaps)
        total += float(gaps.sum())
        maximum = max(maximum, float(gaps.max(initial=0.0)))
    if unlike:
        note = "; ".join(filter(None, [note, f"{unlike:,} numbers are NaN on one side"]))
    mean = total / numbers if numbers else 0.0
    return Difference(name, (a.rows, b.rows), differing, first_key, first, maximum, mean, note)


def _rows_differ(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.bool_]:
    alike = (left == right) if left.dtype != right.dtype else _bits(left) == _bits(right)
    differ: NDArray[np.bool_] = ~alike.all(axis=1) & (left.any(axis=1) | right.any(axis=1))
    return differ


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    # Larger ones have bytes that mean nothing.
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        return values
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _gaps(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Return |a - b| of the numbers that are not equal; NaN where just one of the two is."""
    with np.errstate(invalid="ignore", over="ignore"):
        if left.dtype == right.dtype and left.dtype.kind in "iu":
            gaps = (np.maximum(left, right) - np.minimum(left, right)).view(f"u{left.dtype.itemsize}")
        else:
            gaps = np.abs(left.astype(np.float64) - right.astype(np.float64))
    unequal = ~((left == right) | ((left != left) & (right != right)))
    found: NDArray[np.float64] = gaps[unequal].astype(np.float64)
    return found


def aligned(a: Table, b: Table) -> Iterator[tuple[KeyArray, NDArray[Any], NDArray[Any]]]:
    """Yield chunks of two tables, (keys, rows of a, rows of b), in key order, with initial rows for missing keys."""
    at, to = 0, 0
    while at < a.rows or to < b.rows:
        left, right = a.keys(at, min(at + PIECE, a.rows)), b.keys(to, min(to + PIECE, b.rows))
        # Both sides are read up to the same key: the lower of the last keys of those sides that have more rows.
        ends = [keys.item(-1) for keys, t, n in ((left, a, at), (right, b, to)) if n + len(keys) < t.rows]
        cut = min(ends, default=None)
        if cut is not None:
            left = left[: np.searchsorted(left, np.array(cut, left.dtype), "right")]
            right = right[: np.searchsorted(right, np.array(cut, right.dtype), "right")]
        rows = a.values(at, at + len(left)), b.values(to, to + len(right))
        at, to = at + len(left), to + len(right)
        if len(left) == len(right) and np.array_equal(left, right):
            yield left, *rows
        else:
            keys = np.union1d(left, right)
            yield keys, _spread(keys, left, rows[0], a.init), _spread(keys, right, rows[1], b.init)


def _spread(keys: KeyArray, mine: KeyArray, rows: NDArray[Any], init: Initial) -> NDArray[Any]:
    whole = initial.rows(init, keys, rows.shape[1], rows.dtype)
    whole[np.searchsorted(keys, mine)] = rows
    return whole


# --- sources of tables --------------------------------------------------------------------------------


def of_checkpoint(path: Path, closing: ExitStack) -> dict[str, Table]:
    """Return the vectors of a checkpoint, and the state columns of their updates (``w.sum``), by name.

    The shards stay open until `closing` is closed. CheckpointError if it is damaged.
    """
    manifest, specs = read_manifest(path), vectors(path)
    entries = manifest["files"]
    names = vector_names(entries)
    if "follows" in manifest:
        return {title: table for name in names for title, table in _of_delta(path, specs[name])}
    used = sorted({run.file for name in names for run in runs_of(entries, name)})
    files = {name: closing.enter_context(open_file(path / name)) for name in used}
    found: dict[str, Table] = {}
    for name in names:
        runs = [run for run in runs_of(entries, name) if run.rows]
        held = [(files[run.file][f"vectors/{name}"], run.first, run.rows) for run in runs]
        bits = specs[name].key_bits
        keys = _key_reader(path, [(group["keys"], first, rows) for group, first, rows in held], bits)
        columns = {name: "values"}
        if held:
            columns |= {f"{name}.{column}": f"state/{column}" for column in sorted(held[0][0]["state"])}
        for title, column in columns.items():
            pieces = [(group[column], first, rows) for group, first, rows in held]
            width, dtype = specs[name].width, np.dtype(specs[name].dtype)
            if pieces:
                width, dtype = math.prod(pieces[0][0].shape[1:]), pieces[0][0].dtype
            total = sum(rows for *_, rows in pieces)
            init = specs[name].init if title == name else 0.0
            found[title] = Table(total, width, dtype, keys, _reader(pieces, width, dtype), init, bits)
    return found


def _of_delta(path: Path, spec: VectorSpec) -> Iterator[tuple[str, Table]]:
    """Yield a vector of a delta, after the checkpoints that it needs, and its state columns, all in memory."""
    rows = load_range(path, spec.name, [ALL])
    keys = _key_reader(path, [(pairs(rows.keys), 0, len(rows.keys))], spec.key_bits)
    columns = {spec.name: rows.values}
    # As of a base.
    if len(rows.keys):
        columns |= {f"{spec.name}.{name}": rows.state[name] for name in sorted(rows.state)}
    for title, column in columns.items():
        width, dtype = column.shape[1], column.dtype
        read = _reader([(column, 0, len(column))], width, dtype)
        init = spec.init if title == spec.name else 0.0
        yield title, Table(len(column), width, dtype, keys, read, init, spec.key_bits)


def _reader(
    pieces: list[tuple[Any, int, int]], width: int | None = None, dtype: Any = np.uint64
) -> Callable[[int, int], NDArray[Any]]:
    """Return a reader of rows stored in chunks: (data, first row, rows) each."""

    def read(begin: int, end: int) -> NDArray[Any]:
        out: list[NDArray[Any]] = []
        at = 0
        for data, first, rows in pieces:
            low, high = max(begin - at, 0), min(end - at, rows)
            if low < high:
                out.append(np.asarray(data[first + low : first + high]))
            at += rows
        shape = (end - begin,) if width is None else (end - begin, width)
        return np.concatenate(out).reshape(shape) if out else np.zeros(shape, dtype)

    return read


def _key_reader(
    path: Path, pieces: list[tuple[Any, int, int]], key_bits: int
) -> Callable[[int, int], KeyArray]:
    """Return a reader of keys of a file, InputError if they do not ascend; 128-bit ones are stored as two numbers."""
    read_pairs = _reader(pieces, None if key_bits == 64 else 2)

    def read(begin: int, end: int) -> KeyArray:
        # With the one before.
        keys = from_pairs(read_pairs(max(begin - 1, 0), end).astype(np.uint64, copy=False))
        if not ascend(keys):
            raise InputError(f"{path}: is damaged: its keys do not ascend")
        return keys[min(begin, 1) :]

    return read


def of_model(path: Path, closing: ExitStack) -> dict[str, Table]:
    """Return the numeric arrays in a model's file (.npz, .h5), by name.

    Arrays `keys` (u64[n], or [n, 2] of 128 bits) and `values` of one length are one table, `values`; any other array
    has its positions as keys.
    InputError if it cannot be read.
    """
    arrays: dict[str, Any] = {}
    try:
        if path.suffix == ".npz":
            arrays = dict(npz.load(path, follow=False))
        else:
            file = closing.enter_context(hdf5.reading(path, follow=False))
            file.visititems(
                lambda name, data: arrays.update({name: data}) if isinstance(data, h5py.Dataset) else None
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: the model cannot be read: {' '.join(why.split())}") from None
    arrays = {name: data for name, data in arrays.items() if hdf5.is_numeric(data)}
    keys = arrays.get("keys")
    keyed = (
        keys is not None
        and (keys.ndim == 1 or keys.shape[1:] == (2,))
        and keys.dtype.kind in "iu"
        and "values" in arrays
        and len(arrays["values"]) == len(keys)
    )
    bits = 64 * keys.ndim if keyed and keys is not None else 64
    found = {}
    for name, data in sorted(arrays.items()):
        if keyed and name == "keys":
            continue
        flat = np.asarray(data[()]).reshape(1, 1) if data.ndim == 0 else data
        width = math.prod(flat.shape[1:])
        read = _reader([(flat, 0, len(flat))], width, flat.dtype)
        found[name] = Table(len(flat), width, flat.dtype, _positions, read)
        if keyed and name == "values":
            mine = _key_reader(path, [(keys, 0, len(flat))], bits)
            found[name] = found[name]._replace(keys=mine, key_bits=bits)
    return found


def _positions(begin: int, end: int) -> KeyArray:
    return np.arange(begin, end, dtype=np.uint64)


def tables_differ(a: Path, b: Path, kind: Callable[[Path, ExitStack], dict[str, Table]]) -> list[Difference]:
    """Compare the tables of two files or folders by name; `kind` is `of_checkpoint` or `of_model`."""
    with ExitStack() as closing, explained("compare", a):
        left, right = kind(a, closing), kind(b, closing)
        found = []
        for name in sorted(left.keys() | right.keys()):
            if name in left and name in right:
                found.append(compare(name, left[name], right[name]))
            else:
                rows = (left[name].rows if name in left else 0, right[name].rows if name in right else 0)
                owner = "A" if name in left else "B"
                found.append(Difference(name, rows, max(rows), note=f"only {owner} has it"))
        return found
