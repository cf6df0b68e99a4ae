"""Keys in a column of a table, CSV or Parquet: each text of the column is a key, as the same text in a line is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Cut, DataError, JobError
from mpips.data import DataSpec, Tally, format_of
from mpips.data.tables import columns as col
from mpips.data.tables.files import BATCHES, Batch, names_of
from mpips.jobs.sketch import scan

Counts = NDArray[np.int64]
LARGEST = 10**18
"""Weights are below this."""


class Rows(NamedTuple):
    """Rows of a table that have a key: the keys' texts, one after the other, their positions there, and weights."""

    text: bytearray
    begins: Counts
    ends: Counts
    weights: Counts | None
    skipped: list[str]
    """Errors of rows that are left out."""

    @property
    def keys(self) -> NDArray[np.uint64]:
        """The hash of each text."""
        found = np.empty(len(self.begins), np.uint64)
        if len(found):
            scan.hash_all(np.frombuffer(self.text, np.uint8), self.begins, self.ends, found)
        return found


def is_named_parquet(path: str) -> bool:
    """Return whether a file's name says that it is a Parquet file."""
    return path.lower().endswith((".parquet", ".pq"))


def form_of(path: str, spec: DataSpec) -> str:
    """Return the format of a file with a table: "csv" if [data] format says so, "parquet"; "" for other text."""
    if spec.format not in ("auto", "csv", "parquet"):
        return ""
    form = format_of(path, spec) if spec.format != "auto" or is_named_parquet(path) else ""
    return form if form in BATCHES else ""


def rows(
    spec: DataSpec, files: Sequence[str], part: int, parts: int, opening: Callable[[str], None]
) -> Iterator[Rows]:
    """Read the rows of one part: whole files if there are enough of them, else a part of each.

    `opening` is called with each file before it is opened.

    Raises:
        DataError: names file and row.
    """
    for own, mine, of in Cut(parts).slices(files, [part]):
        for path in own:
            opening(path)
            form, tally = form_of(path, spec), Tally()
            wanted = _columns(path, spec, form)
            for batch in BATCHES[form](path, spec, wanted, 0, mine, of, tally):
                yield _rows(batch, path, spec, tally)
                tally = Tally()


def _columns(path: str, spec: DataSpec, form: str) -> list[str]:
    """Return the names of the columns of keys and of weights; in CSV without names these are places."""
    names = names_of(path, spec, form)
    wanted = list(dict.fromkeys(str(each) for each in (spec.column, spec.weight) if each != ""))
    if spec.column == "":
        raise JobError(f"[data] column: name the column of the keys; {path} has {', '.join(names)}"[:300])
    for name in wanted:
        if name not in names:
            raise DataError(f"{path}: has no column {name!r}; its columns are {', '.join(names)}"[:300])
    return wanted


def _rows(batch: Batch, path: str, spec: DataSpec, tally: Tally) -> Rows:
    skipped, column, weight = [tally.first_error] * tally.skipped, str(spec.column), str(spec.weight)
    with col.convertible(path, column):
        texts = col.texts_of(batch.columns[column], path, column)
        text, begins, ends = _texts(col.without_missing(texts, spec.missing))
    good = ends > begins
    weights = None
    if weight:
        weights, wrong = _weights(batch.columns[weight])
        for row in np.flatnonzero(good & wrong):
            where = f"{path}: row {batch.rows[row]}"
            error = f"{where}: the weight, column {weight!r}, is not a whole number from 0 to 10**18 - 1"
            if spec.on_error == "stop":
                raise DataError(error)
            skipped.append(error)
        good &= ~wrong
        weights = weights[good]
        if weights.sum(dtype=np.float64) >= 2.0**62:
            raise DataError(
                f"{path}: row {batch.rows[0]}: from here on the weights add up to more than 2**62"
            )
    return Rows(text, begins[good], ends[good], weights, skipped)


def _texts(column: Any) -> tuple[bytearray, Counts, Counts]:
    """Return texts, and where each begins and ends there, i8[n]; a missing one is empty.

    Each different text is there once: a small file may hold terabytes of equal ones.
    """
    pa: Any = col.arrow()
    coded = pa.types.is_dictionary(column.type)
    texts = (column.dictionary if coded else column).cast(pa.large_binary())
    offsets, data = col.buffers_of(texts)
    begins, ends = offsets[:-1], offsets[1:].copy()
    if texts.null_count:
        missing = texts.is_null().to_numpy(zero_copy_only=False)
        ends[missing] = begins[missing]
    if coded:
        places = col.places_in(column)
        begins, ends = np.append(begins, 0)[places], np.append(ends, 0)[places]
    return bytearray(data), begins, ends


def _weights(column: Any) -> tuple[Counts, NDArray[np.bool_]]:
    """Return weights, i8[n], and which are none."""
    types = col.arrow().types
    if types.is_dictionary(column.type):
        known, _ = _weights(column.dictionary)
        weights = np.append(known, -1)[col.places_in(column)]
    elif str(column.type) in col.TEXTS:
        texts = column.cast(col.arrow().large_binary()).to_pylist()
        weights = np.array(
            [int(text) if text and text.isdigit() and len(text) <= 18 else -1 for text in texts], np.int64
        )
    elif any(is_of(column.type) for is_of in (types.is_integer, types.is_floating, types.is_decimal)):
        weights = np.array([_whole(value) for value in column.to_pylist()], np.int64)
    else:
        # Not all times, for example, are ones of Python.
        weights = np.full(len(column), -1, np.int64)
    return weights, weights < 0


def _whole(value: Any) -> int:
    """Return a weight, -1 for what is none."""
    try:
        whole = int(value)
    # None, or a number that is not finite.
    except (TypeError, ValueError, OverflowError):
        return -1
    return whole if whole == value and 0 <= whole < LARGEST else -1
