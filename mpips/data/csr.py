"""HDF5 files of examples in compressed sparse rows: read by ranges of rows, written batch by batch.

The file has one-dimensional data sets ``labels`` [n], ``indptr`` [n+1], ``keys`` [nnz] (or ``indices``, as
other tools call them) and, unless all values are 1, ``values`` [nnz] (or ``data``); with fields also ``fields`` [nnz].
Any integer and floating-point widths are read; i1, i4, i8, u8 and f4 are written, in compressed chunks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpips.data.examples import Examples, Tally
from mpips.data.kernels import MOST_FIELDS
from mpips.data.spec import DataSpec
from mpips.errors import DataError
from mpips.jit.array_checks import bad_row
from mpips.jit.kernel import kernel

if TYPE_CHECKING:
    import h5py

ROWS = 1 << 16
"""Entries of `indptr` that are read at a time."""
MOST_KEYS = 2**31 - 1
"""The maximum number of keys of one row."""
NONZEROS = 1 << 18
"""Non-zeros of a batch."""
VALID, WRONG_LABEL, NOT_FINITE, NOT_ASCENDING = range(4)
ROW_ERRORS = {
    WRONG_LABEL: "label is not one of -1, 0, +1",
    NOT_FINITE: "has a value that is not finite in 32-bit floating point",
    NOT_ASCENDING: "keys are not ascending, each once; sort them within the row",
}


@kernel("void(f4[::1], i8[::1], u8[::1], f4[::1], u1[::1])")
def check_rows(
    labels: NDArray[np.float32],
    indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    values: NDArray[np.float32],
    codes: NDArray[np.uint8],
) -> None:
    """Write the error code of each row to `codes`; empty `values`: ones. `indptr` must be valid."""
    for row in range(labels.shape[0]):
        codes[row] = VALID
        label = labels[row]
        if not (label == 1.0 or label == 0.0 or label == -1.0):
            codes[row] = WRONG_LABEL
        for i in range(indptr[row], indptr[row + 1]):
            if i > indptr[row] and keys[i] <= keys[i - 1]:
                codes[row] = NOT_ASCENDING
            if values.shape[0] > 0 and not np.isfinite(values[i]):
                codes[row] = NOT_FINITE


@kernel("void(i8[::1], i8[::1], i8[::1], u8[::1], u8[::1], f4[::1], f4[::1])")
def copy_rows(
    rows: NDArray[np.int64],
    indptr: NDArray[np.int64],
    new_indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    new_keys: NDArray[np.uint64],
    values: NDArray[np.float32],
    new_values: NDArray[np.float32],
) -> None:
    """Copy the given rows' keys, and values if there are any, to the positions of `new_indptr`."""
    for row in range(rows.shape[0]):
        source, target = indptr[rows[row]], new_indptr[row]
        for i in range(new_indptr[row + 1] - target):
            new_keys[target + i] = keys[source + i]
            if values.shape[0] > 0:
                new_values[target + i] = values[source + i]


def select_rows(batch: Examples, rows: NDArray[np.int64]) -> Examples:
    """Return the given rows of a batch, copied; `rows` are i8 places within it, ascending."""
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.diff(batch.indptr)[rows], out=indptr[1:])
    keys = np.empty(indptr[-1], np.uint64)
    old = np.zeros(0, np.float32) if batch.values is None else batch.values
    new = np.empty(0 if batch.values is None else len(keys), np.float32)
    copy_rows(rows, batch.indptr, indptr, batch.keys, keys, old, new)
    fields = None
    if batch.fields is not None:
        whole = np.repeat(np.isin(np.arange(len(batch)), rows), np.diff(batch.indptr))
        fields = batch.fields[whole]
    return Examples(batch.labels[rows], indptr, keys, None if batch.values is None else new, fields)


def open_rows(path: str, file: h5py.File) -> tuple[Any, Any, Any, Any, Any]:
    """Return the data sets labels, indptr, keys, values, fields (or None) after a check of their sizes."""
    import h5py

    def dataset(*names: str, kinds: str) -> Any:
        found = next((file[name] for name in names if name in file), None)
        if found is None:
            return None
        if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in kinds:
            what = "numbers" if "f" in kinds else "integers"
            raise DataError(f"{path}: {names[0]} must be a one-dimensional data set of {what}")
        return found

    labels, indptr = dataset("labels", "label", kinds="biuf"), dataset("indptr", kinds="iu")
    keys, values = dataset("keys", "indices", kinds="iu"), dataset("values", "data", kinds="biuf")
    fields = dataset("fields", kinds="iu")
    for name, found in (("labels", labels), ("indptr", indptr), ("keys", keys)):
        if found is None:
            have = ", ".join(sorted(file)) or "nothing"
            raise DataError(
                f"{path}: has no data set {name}; expected labels, indptr, keys, values; it has {have}"
            )
    n = len(labels)
    if len(indptr) != n + 1:
        raise DataError(f"{path}: indptr has {len(indptr)} entries, expected one more than the {n} labels")
    if indptr[0] != 0 or indptr[n] != len(keys):
        raise DataError(
            f"{path}: indptr goes from {indptr[0]} to {indptr[n]}, expected 0 to the {len(keys)} keys"
        )
    if values is not None and len(values) != len(keys):
        raise DataError(f"{path}: has {len(values)} values for {len(keys)} keys")
    if fields is not None and len(fields) != len(keys):
        raise DataError(f"{path}: has {len(fields)} fields for {len(keys)} keys")
    return labels, indptr, keys, values, fields


def has_fields(path: str) -> bool:
    """Return whether a file has the fields of its keys; also if it cannot be read, which `read_csr` then says."""
    from mpips.files import hdf5

    try:
        with hdf5.reading(path, follow=True) as file:
            return "fields" in file
    except (OSError, RuntimeError, ValueError):
        return True


def read_range(
    path: str, datasets: tuple[Any, Any, Any, Any, Any], begin: int, indptr: NDArray[np.int64]
) -> Examples:
    """Read the rows from `begin` on, whose positions in the keys are `indptr`."""
    labels, _, all_keys, all_values, all_fields = datasets
    low, high = int(indptr[0]), int(indptr[-1])
    keys = all_keys[low:high]
    if keys.dtype.kind == "i" and len(keys) and keys.min() < 0:
        row = begin + int(np.searchsorted(indptr, low + int(np.argmax(keys < 0)), side="right")) - 1
        raise DataError(f"{path}: row {row}: has a negative key; keys are integers from 0 to 2**64 - 1")
    with np.errstate(over="ignore"):
        values = None if all_values is None else all_values[low:high].astype(np.float32)
        found = labels[begin : begin + len(indptr) - 1].astype(np.float32)
    fields = None if all_fields is None else all_fields[low:high]
    if fields is not None and len(fields) and not 0 <= fields.min() <= fields.max() < MOST_FIELDS:
        raise DataError(f"{path}: has a field that is not an integer from 0 to {MOST_FIELDS - 1}")
    fields = None if fields is None else fields.astype(np.int32)
    return Examples(found, indptr - low, keys.astype(np.uint64), values, fields)


def read_csr(
    path: str, spec: DataSpec, index: int, part: int, parts: int, tally: Tally, nonzeros: int = NONZEROS
) -> Generator[Examples, None, int]:
    """Read part `part` of `parts` of an HDF5 file whose first row has the given index.

    Yields batches of about `nonzeros` in order; returns the index after the last row. Raises `DataError`
    with file and row (from 0).
    """
    from mpips.files import hdf5

    try:
        with hdf5.reading(path, follow=True) as file:
            datasets = open_rows(path, file)
            n = len(datasets[0])
            begin = 0
            while begin < n:
                indptr = datasets[1][begin : min(n, begin + ROWS) + 1].astype(np.int64)
                bad = bad_row(indptr, len(datasets[2]))
                if bad >= 0:
                    raise DataError(
                        f"{path}: row {begin + bad}: indptr decreases, or exceeds the {len(datasets[2])} keys"
                    )
                rows = max(1, int(np.searchsorted(indptr, indptr[0] + nonzeros, side="right")) - 1)
                if indptr[rows] - indptr[0] > MOST_KEYS:
                    raise DataError(f"{path}: row {begin}: has more than {MOST_KEYS:,} keys")
                batch = read_range(path, datasets, begin, indptr[: rows + 1])
                own = np.arange((part - index - begin) % parts, len(batch), parts, dtype=np.int64)
                batch = valid_rows(path, batch, begin, own, spec, tally)
                tally.examples += len(batch)
                if len(batch):
                    yield batch
                begin += rows
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError) as error:
        text = " ".join(str(error).split())
        # The file was refused, not damaged.
        if text.startswith(f"{path}: "):
            raise DataError(text) from None
        if isinstance(error, OSError) and error.filename == path:
            raise DataError(f"{path}: {error.strerror}") from None
        raise DataError(f"{path}: cannot be read as HDF5, it may be truncated or damaged: {text}") from None
    return index + n


def valid_rows(
    path: str, batch: Examples, begin: int, own: NDArray[np.int64], spec: DataSpec, tally: Tally
) -> Examples:
    """Return the valid rows among `own`, with labels -1 and +1, and no values if all are 1."""
    codes = np.zeros(len(batch), np.uint8)
    values = np.zeros(0, np.float32) if batch.values is None else batch.values
    check_rows(batch.labels, batch.indptr, batch.keys, values, codes)
    for row in own[codes[own] != VALID]:
        error = f"{path}: row {begin + row}: {ROW_ERRORS[int(codes[row])]}"
        if spec.on_error == "stop":
            raise DataError(error)
        tally.skip(error)
    valid = own[codes[own] == VALID]
    if len(valid) < len(batch):
        batch = select_rows(batch, valid)
    ones = batch.values is None or bool((batch.values == 1).all())
    labels = np.where(batch.labels > 0, np.float32(1), np.float32(-1))
    return Examples(labels, batch.indptr, batch.keys, None if ones else batch.values, batch.fields)


def write_csr(path: str, batches: Iterable[Examples]) -> None:
    """Write batches as an HDF5 file that `read_csr` reads; ``values`` only if one is not 1, ``fields`` if there are."""
    from mpips.files import hdf5

    with hdf5.writing(path) as file:

        def growing(name: str, dtype: str) -> Any:
            # Byte shuffling hides repeated hashed keys: 3 times the size and the time, as measured.
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": name != "keys"}
            return file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(1 << 16,), **packed)

        def append(dataset: Any, array: NDArray[Any]) -> None:
            size = len(dataset)
            dataset.resize(size + len(array), axis=0)
            dataset[size:] = array

        file.attrs["format"] = "mpips examples, compressed sparse rows"
        labels, indptr, keys = growing("labels", "i1"), growing("indptr", "i8"), growing("keys", "u8")
        values = fields = None
        append(indptr, np.zeros(1, np.int64))
        for batch in batches:
            before = len(keys)
            if batch.values is not None and values is None:
                values = growing("values", "f4")
                for begin in range(0, before, NONZEROS):
                    append(values, np.ones(min(NONZEROS, before - begin), np.float32))
            append(labels, batch.labels)
            append(indptr, batch.indptr[1:] + before)
            append(keys, batch.keys)
            if values is not None:
                append(values, np.ones(len(batch.keys), np.float32) if batch.values is None else batch.values)
            if batch.fields is not None:
                # All batches have some, or none has.
                fields = growing("fields", "i4") if fields is None else fields
                append(fields, batch.fields)
