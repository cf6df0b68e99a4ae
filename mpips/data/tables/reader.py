"""Examples of tables: the rows of a file by an encoding, and the summary that the encoding is learned from."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from mpips.data.examples import Examples, Tally
from mpips.data.spec import DataSpec
from mpips.data.tables import columns as col
from mpips.data.tables.encoding import Encoding, Scaling, numeric_kinds, transformed
from mpips.data.tables.fields import fields_of
from mpips.data.tables.files import BATCHES, Batch, names_of
from mpips.data.tables.kernels import fractions, join_columns
from mpips.data.tables.summary import Summary
from mpips.errors import DataError
from mpips.keys import KeyArray, from_pairs, pairs

CELLS = 1 << 18
"""Values, of all columns, of the examples in a batch."""
CONSTANT = "\0constant"
"""The name of the column that is 1 in each row, for the intercept."""


class _Joined:
    """The columns of a batch as keys and values: first the scaled ones, then those whose values are 1."""

    def __init__(self, encoding: Encoding, rows: int) -> None:
        self.scaled = [each for each in encoding.numeric if not each.binned]
        self.binned = [each for each in encoding.numeric if each.binned]
        self.names = [
            *(each.name for each in self.scaled), *(each.name for each in self.binned), *encoding.categorical, CONSTANT,
        ]  # fmt: skip
        self.keys = np.zeros((2 if encoding.key_bits == 128 else 1, len(self.names), rows), np.uint64)
        self.values = np.ones((len(self.scaled), rows), np.float32)


def begun_encoding(files: Sequence[tuple[str, str]], spec: DataSpec) -> Encoding:
    """Return the encoding of files, each with its format, by the columns of the first; numbers are not summarised yet.

    Raises:
        DataError, JobError: some are no tables, or columns that [data] names are not there.
    """
    for path, form in files:
        if form not in BATCHES:
            raise DataError(
                f"{path}: is in the format {form}, and others are tables; convert it, or leave it out"
            )
    path, form = files[0]
    return Encoding.of_columns(names_of(path, spec, form), spec, path)


def summarise(
    files: Sequence[tuple[str, str]], spec: DataSpec, encoding: Encoding, part: int, parts: int
) -> Summary:
    """Summarise the numeric columns of part `part` of `parts` of files, each with its format.

    Numbers and labels that are wrong are left out; they are reported when the examples are read.

    Raises:
        DataError: a row has too few or too many columns, unless such rows are skipped.
    """
    summary = encoding.empty_summary()
    wanted = [each.name for each in encoding.numeric]
    for place, (path, form) in enumerate(files if encoding.learns else ()):
        _checked_names(path, spec, form, encoding, labelled=True)
        for batch in BATCHES[form](path, spec, wanted, 0, part, parts, Tally()):
            numbers = np.empty((len(wanted), len(batch.rows)))
            for column, each in enumerate(encoding.numeric):
                with col.convertible(path, each.name):
                    values = col.numbers_of(batch.columns[each.name], path, each.name, spec.missing, {})
                numbers[column] = transformed(each.kind, values)
            hashes = np.empty(len(batch.rows))
            fractions(batch.rows.astype(np.uint64) + np.uint64(place << 40), hashes)
            summary.add(numbers, hashes)
    return summary


def read_table(
    path: str,
    form: str,
    spec: DataSpec,
    encoding: Encoding,
    index: int,
    part: int,
    parts: int,
    tally: Tally,
    coarse: int = 0,
    fields: bool = False,
) -> Generator[Examples, None, int]:
    """Read part `part` of `parts` of a table, whose first row has the given index, by an encoding.

    For `coarse` and `fields` see `mpips.data.read`. Without [data] label, rows are not labelled: the label of each
    example is +1. Yields batches in order; returns the index after the last row. Raises `DataError` with file and row.
    """
    wanted = _checked_names(path, spec, form, encoding, labelled=bool(spec.label))
    size = max(1, CELLS // len(wanted))
    reading = BATCHES[form](path, spec, wanted, index, part, parts, tally, coarse)
    while True:
        try:
            batch = next(reading)
        except StopIteration as end:
            after: int = end.value
            return after
        for begin in range(0, len(batch.rows), size):
            columns = {name: column.slice(begin, size) for name, column in batch.columns.items()}
            piece = Batch(columns, batch.rows[begin : begin + size])
            found = _examples(piece, path, spec, encoding, tally, fields)
            tally.examples += len(found)
            if len(found):
                yield found


def _checked_names(path: str, spec: DataSpec, form: str, encoding: Encoding, labelled: bool) -> list[str]:
    """Return the columns that are read of a file, with the label if rows are `labelled`.

    Raises:
        DataError: the file lacks one, or has a column that the training data lack.
    """
    names = names_of(path, spec, form)
    wanted = [
        *encoding.categorical,
        *(each.name for each in encoding.numeric),
        *([spec.label] if labelled else []),
    ]
    for name in wanted:
        if name not in names:
            raise DataError(
                f"{path}: has no column {name!r}, which the training data have; it has {', '.join(names)}"
            )
    if not spec.categorical:
        known = {*wanted, *spec.ignore, *numeric_kinds(spec), spec.label}
        for name in names:
            if name not in known and labelled:
                raise DataError(
                    f"{path}: has a column {name!r}, which the first file of the training data has not; name it in "
                    "[data] ignore"
                )
    return wanted


def _examples(
    batch: Batch, path: str, spec: DataSpec, encoding: Encoding, tally: Tally, fields: bool
) -> Examples:
    """Encode rows; bad ones are skipped and counted, or raise DataError."""
    flaws: col.Flaws = {}
    rows = len(batch.rows)
    joined = _Joined(encoding, rows)
    for at, name in enumerate(joined.names):
        keys = joined.keys[:, at]
        if name == CONSTANT:
            keys[:] = _numbers(encoding.keys_of(CONSTANT))[:, None]
        elif name in encoding.categorical:
            with col.convertible(path, name):
                texts = col.without_missing(col.texts_of(batch.columns[name], path, name), spec.missing)
            for half, seed in enumerate(_numbers(encoding.keys_of(name))):
                keys[half] = col.hashes_of(texts, seed)
        else:
            with col.convertible(path, name):
                numbers = col.numbers_of(batch.columns[name], path, name, spec.missing, flaws)
            missing = np.isnan(numbers)
            if at < len(joined.scaled):
                keys[:] = _numbers(encoding.keys_of(name, "number"))[:, None]
                joined.values[at] = _scaled(joined.scaled[at], numbers, missing, flaws)
            else:
                scaling = joined.binned[at - len(joined.scaled)]
                bins = [
                    _numbers(encoding.keys_of(name, str(place))) for place in range(len(scaling.edges) + 1)
                ]
                keys[:] = np.stack(bins, axis=1)[:, scaling.bins(numbers)]
            keys[:, missing] = _numbers(encoding.keys_of(name, "missing"))[:, None]
    labels = np.ones(rows, np.float32)
    if spec.label:
        with col.convertible(path, spec.label):
            column = batch.columns[spec.label]
            labels = col.labels_of(column, spec.positive_label, spec.label, spec.missing, flaws)
    good = _good_rows(batch, path, spec, flaws, tally)
    return _joined_rows(joined, labels, good, spec, fields)


def _scaled(
    scaling: Scaling, numbers: NDArray[np.float64], missing: NDArray[np.bool_], flaws: col.Flaws
) -> NDArray[np.float32]:
    """Return the values of a column of numbers, f4[n]: 1 for a missing one."""
    values = scaling.scaled(np.where(missing, scaling.mean, numbers))
    values[missing] = 1
    for row in np.flatnonzero(~np.isfinite(values)):
        flaws.setdefault(
            int(row), f"column {scaling.name!r} has a number beyond 32-bit floating point; scale it"
        )
    return values


def _good_rows(batch: Batch, path: str, spec: DataSpec, flaws: col.Flaws, tally: Tally) -> NDArray[np.bool_]:
    """Return which rows have no flaw; raise DataError for the first flaw, or count them."""
    good = np.ones(len(batch.rows), np.bool_)
    for row in sorted(flaws):
        error = f"{path}: row {batch.rows[row]}: {flaws[row]}"
        if spec.on_error == "stop":
            raise DataError(error)
        tally.skip(error)
        good[row] = False
    return good


def _joined_rows(
    joined: _Joined,
    labels: NDArray[np.float32],
    good: NDArray[np.bool_],
    spec: DataSpec,
    fields: bool,
) -> Examples:
    """Return the examples of the good rows of joined columns."""
    keys, values = joined.keys, joined.values
    if fields:
        columns = np.arange(len(joined.names), dtype=np.uint64)[:, None]
        keys = np.stack([keys[0], np.broadcast_to(columns, keys[0].shape)])
    if not good.all():
        keys, values, labels = keys[:, :, good], np.ascontiguousarray(values[:, good]), labels[good]
    crosses = [[joined.names.index(str(name)) for name in cross] for cross in spec.crosses]
    rows, wide = len(labels), len(keys) > 1
    space = rows * (len(joined.names) + len(crosses))
    indptr, flat = np.zeros(rows + 1, np.int64), np.empty(space, np.uint64)
    lows, found = np.empty(space if wide else 0, np.uint64), np.empty(space if len(values) else 0, np.float32)
    nonzeros = join_columns(
        np.ascontiguousarray(keys[0]),
        np.ascontiguousarray(keys[1]) if wide else np.zeros((0, 0), np.uint64),
        values,
        np.cumsum([0, *(len(cross) for cross in crosses)], dtype=np.int64),
        np.array([place for cross in crosses for place in cross], np.int64),
        indptr, flat, lows, found,
    )  # fmt: skip
    out: KeyArray = flat[:nonzeros].copy()
    if wide and not fields:
        out = from_pairs(np.stack([flat[:nonzeros], lows[:nonzeros]], axis=1))
    marked = fields_of(lows[:nonzeros], len(joined.names), crosses) if fields else None
    return Examples(labels, indptr, out, found[:nonzeros].copy() if len(values) else None, marked)


def _numbers(keys: KeyArray) -> NDArray[np.uint64]:
    """Return one key as u8[1], or u8[2] for one of 128 bits."""
    return pairs(keys).reshape(-1)
