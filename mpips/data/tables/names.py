"""The names of a table's keys, such as `city=Rome`: keys are hashes, so the data are read again to find the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.data.examples import Tally
from mpips.data.spec import DataSpec
from mpips.data.tables import columns as col
from mpips.data.tables.encoding import Encoding, Scaling
from mpips.data.tables.files import BATCHES, Batch, names_of
from mpips.data.tables.kernels import join_columns
from mpips.data.tables.reader import CONSTANT
from mpips.errors import DataError
from mpips.keys import KeyArray, from_pairs, numbers, pairs

Found = tuple[KeyArray, list[str]]
"""Keys, and the name of each."""


def key_names(
    files: Sequence[tuple[str, str]], spec: DataSpec, encoding: Encoding, keys: KeyArray
) -> list[str]:
    """Return the name of each of some keys, "" of one that is none of the tables'.

    Numbers have the name of their column; others are `age is missing`, `age >= 20 and < 30`, `city=Rome`,
    `city=Rome & job=cook`, and `constant`. Files are read until all names are known.

    Args:
        files: the training data, each with its format.
        spec: how they are read.
        encoding: what has made the keys.
        keys: the keys, in any order.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    places = {key: at for at, key in enumerate(numbers(keys))}
    names = [""] * len(keys)

    def note(found: Found) -> None:
        # Others are not kept, which may be many.
        known = np.flatnonzero(np.isin(found[0], keys))
        for at, key in zip(known.tolist(), numbers(found[0][known]), strict=True):
            names[places[key]] = _shown(found[1][at])

    for scaling in encoding.numeric:
        note(_of_numbers(encoding, scaling))
    note((encoding.keys_of(CONSTANT), ["constant"]))
    quiet = replace(spec, on_error="skip")
    for path, form in files:
        there = names_of(path, spec, form)
        wanted = [*encoding.categorical, *(each.name for each in encoding.numeric if each.binned)]
        lost = next((name for name in wanted if name not in there), None)
        if lost is not None:
            raise DataError(f"{path}: has no column {lost!r}, which the training data had")
        for batch in BATCHES[form](path, quiet, wanted, 0, 0, 1, Tally()) if wanted else ():
            if all(names):
                return names
            for found in _of_batch(batch, path, spec, encoding):
                note(found)
    return names


def _of_numbers(encoding: Encoding, scaling: Scaling) -> Found:
    """Return the keys of a numeric column."""
    name = scaling.name
    parts = [("number", name), ("missing", f"{name} is missing")]
    if scaling.binned:
        edges = [f"{edge:g}" for edge in scaling.edges]
        texts = [f"{name} >= {low} and < {high}" for low, high in pairwise(edges)]
        texts = [f"{name} < {edges[0]}", *texts, f"{name} >= {edges[-1]}"] if edges else [name]
        parts = [*((str(bin_), text) for bin_, text in enumerate(texts)), parts[1]]
    return np.concatenate([encoding.keys_of(name, part) for part, _ in parts]), [text for _, text in parts]


def _of_batch(batch: Batch, path: str, spec: DataSpec, encoding: Encoding) -> Iterator[Found]:
    """Yield the keys of the categories and crosses of some rows."""
    # By column: the place of each row's key among those of the column, the keys, and their names.
    held: dict[str, tuple[NDArray[np.int64], KeyArray, list[str]]] = {}
    for name in encoding.categorical:
        with col.convertible(path, name):
            texts = col.without_missing(col.texts_of(batch.columns[name], path, name), spec.missing)
            coded = texts if hasattr(texts, "dictionary") else texts.dictionary_encode()
        halves = [col.hashes_of(coded.dictionary, seed) for seed in pairs(encoding.keys_of(name)).reshape(-1)]
        keys = from_pairs(np.stack(halves, axis=1)) if len(halves) > 1 else halves[0]
        named = [f"{name}={_shown(text)}" for text in coded.dictionary.to_pylist()]
        at = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        held[name] = at, keys, named
        yield keys, named
    for scaling in encoding.numeric if spec.crosses else ():
        if scaling.binned:
            keys, named = _of_numbers(encoding, scaling)
            with col.convertible(path, scaling.name):
                values = col.numbers_of(batch.columns[scaling.name], path, scaling.name, spec.missing, {})
            missing = len(keys) - 1
            held[scaling.name] = np.where(np.isnan(values), missing, scaling.bins(values)), keys, named
    for cross in spec.crosses:
        yield _of_cross([held[str(name)] for name in cross])


def _of_cross(held: Sequence[tuple[NDArray[np.int64], KeyArray, list[str]]]) -> Found:
    """Return the keys of a cross of columns."""
    rows = np.stack([at for at, _, _ in held])
    rows = np.unique(rows[:, (rows >= 0).all(axis=0)], axis=1)
    parts = [pairs(keys[at]).reshape(len(at), -1) for (_, keys, _), at in zip(held, rows, strict=True)]
    uppers = np.ascontiguousarray(np.stack([part[:, 0] for part in parts]))
    wide = parts[0].shape[1] > 1
    lowers = (
        np.ascontiguousarray(np.stack([part[:, 1] for part in parts]))
        if wide
        else np.zeros((0, 0), np.uint64)
    )
    columns, count = uppers.shape
    indptr, flat = np.zeros(count + 1, np.int64), np.empty(count * (columns + 1), np.uint64)
    lows = np.empty(len(flat) if wide else 0, np.uint64)
    size = join_columns(
        uppers, lowers, np.zeros((0, count), np.float32), np.array([0, columns]), np.arange(columns), indptr, flat,
        lows, np.empty(0, np.float32),
    )  # fmt: skip
    row = np.repeat(np.arange(count), np.diff(indptr))
    # A row has the keys of its columns, too.
    crossed = ~(flat[:size] == uppers[:, row]).any(axis=0)
    keys: KeyArray = flat[:size][crossed]
    if wide:
        keys = from_pairs(np.stack([keys, lows[:size][crossed]], axis=1))
    named = [
        " & ".join(names[at] for (_, _, names), at in zip(held, rows[:, each], strict=True))
        for each in row[crossed].tolist()
    ]
    return keys, named


def _shown(text: Any) -> str:
    """Return a text without control characters, which would end a line or a field: columns have any names, too."""
    word = text or b""
    if isinstance(word, bytes):
        word = word.decode("utf-8", "replace")
    return "".join(each if each.isprintable() else "?" for each in word)
