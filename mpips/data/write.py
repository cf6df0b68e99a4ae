"""Writes data from Python as files that `mpips.data.read` reads: frames as tables, matrices as sparse rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.data.compression import MAGIC
from mpips.data.csr import write_csr
from mpips.data.examples import Examples
from mpips.data.read import named_format
from mpips.data.tables.columns import arrow
from mpips.errors import DataError, InputError, cannot_write
from mpips.files.safe_open import replacing
from mpips.keys import check_unmasked

ROWS = 1 << 14
"""Rows of a matrix that are written at a time."""


def write(
    path: str | os.PathLike[str], rows: Any, labels: ArrayLike | None = None, *, force: bool = False
) -> None:
    """Write rows to a file, by its name: .parquet, .csv; or .svm (also .svm.gz, .svm.xz, .svm.bz2, .svm.zst), .h5.

    Args:
        path: the file, which appears complete or not at all.
        rows: for .parquet and .csv a frame of pandas (without its index), polars or Arrow, or a table of columns
            {name: values}; for the others a matrix [n, m] of numpy or scipy, whose columns become the keys 0 to m - 1.
        labels: of a matrix, [n]: -1, 0 or 1, or booleans. A frame has them in a column.
        force: replace an existing file.

    Raises:
        InputError: the file exists, or its name has another ending; `rows` or `labels` do not fit.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from mpips.data import DataSpec, read
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(Path(folder, "a.svm"), np.array([[0.0, 0.5], [2.0, 0.0]]), [True, False])
    ...     print(Path(folder, "a.svm").read_text(), end="")
    ...     write(Path(folder, "a.parquet"), {"city": ["Rome", "Oslo"], "y": [1, 0]})
    ...     [batch.labels.tolist() for batch in read([str(Path(folder, "a.parquet"))], DataSpec(label="y"))]
    +1 1:0.5
    -1 0:2
    [[1.0, -1.0]]
    """
    # No rank needs it.
    from mpips.data.convert import check_target, write_svmlight

    target = os.fspath(path)
    kind = os.path.splitext(target)[1][1:].lower()
    form = "csv" if kind == "csv" else named_format(target)
    check_target([], target, force)
    try:
        if form in ("csv", "parquet"):
            if labels is not None:
                raise InputError(f"{target}: the labels of a frame are one of its columns; leave out labels")
            _write_frame(target, form, rows)
        elif form == "svmlight":
            write_svmlight(target, kind if kind in MAGIC else "", _batches(target, rows, labels))
        elif form == "hdf5" and kind not in MAGIC:
            write_csr(target, _batches(target, rows, labels))
        else:
            raise InputError(f"{target}: the name must end in .parquet, .csv, .svm (or .svm.gz, ...) or .h5")
    except OSError as error:
        raise cannot_write(target, error, kind=DataError) from None


def _write_frame(target: str, form: str, rows: Any) -> None:
    pa = arrow()
    try:
        table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    except (TypeError, ValueError, pa.ArrowException) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{target}: rows of type {type(rows).__name__} are no table: {text}") from None
    if table is not rows:
        # The index of a frame of pandas, such as the numbers of the rows of a sample.
        index = (table.schema.pandas_metadata or {}).get("index_columns", [])
        table = table.drop_columns([name for name in index if isinstance(name, str)])
    for at, field in enumerate(table.schema):
        # The texts of polars, which Arrow does not write as CSV.
        if str(field.type) == "string_view":
            table = table.set_column(at, field.name, table.column(at).cast(pa.large_string()))
    try:
        with replacing(target) as file:
            if form == "parquet":
                arrow("pyarrow.parquet").write_table(table, file, row_group_size=1 << 16)
            else:
                arrow("pyarrow.csv").write_csv(table, file)
    except pa.ArrowException as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(f"{target}: rows do not fit in a {form} file: {text}") from None


def _batches(target: str, rows: Any, labels: ArrayLike | None) -> Iterator[Examples]:
    """Cut a matrix into batches of examples."""
    if labels is None:
        raise InputError(f"{target}: a matrix needs labels")
    for what, array in (("rows", rows), ("labels", labels)):
        check_unmasked(array, f"{target}: {what}")
    given = np.asarray(labels)
    shape = getattr(rows, "shape", np.shape(rows))
    if len(shape) != 2 or given.shape != shape[:1]:
        raise InputError(
            f"{target}: rows of shape {shape} and labels of shape {given.shape}; need [n, m] and [n]"
        )
    wrong = given[~np.isin(given, (-1, 0, 1))]
    if len(wrong):
        raise InputError(f"{target}: label {wrong[0]!r} is not one of -1, 0, 1")
    signs = np.where(given > 0, np.float32(1), np.float32(-1))
    if hasattr(rows, "tocsr"):
        matrix = rows.tocsr().copy()
        # Entries of one place are added, as scipy means them.
        matrix.sum_duplicates()
        for begin in range(0, shape[0], ROWS):
            piece = matrix[begin : begin + ROWS]
            yield _examples(
                target,
                signs[begin : begin + ROWS],
                np.asarray(piece.indptr, np.int64),
                piece.indices,
                piece.data,
            )
    else:
        for begin in range(0, shape[0], ROWS):
            piece = np.asarray(rows[begin : begin + ROWS])
            at, columns = np.nonzero(piece)
            indptr = np.searchsorted(at, np.arange(len(piece) + 1)).astype(np.int64)
            yield _examples(target, signs[begin : begin + ROWS], indptr, columns, piece[at, columns])


def _examples(
    target: str,
    labels: NDArray[np.float32],
    indptr: NDArray[np.int64],
    columns: NDArray[Any],
    cells: NDArray[Any],
) -> Examples:
    if cells.dtype.kind not in "biuf":
        raise InputError(f"{target}: rows must have numbers, not {cells.dtype}")
    with np.errstate(over="ignore"):
        values = cells.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"{target}: rows have a value that is not finite in 32-bit floating point")
    return Examples(labels, indptr, columns.astype(np.uint64), None if (values == 1).all() else values)
