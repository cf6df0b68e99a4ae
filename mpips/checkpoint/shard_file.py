"""One HDF5 file of a checkpoint: its header, its arrays, its rows (checkpoints/README.md: the format)."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpips.checkpoint.manifest import DELTA_VERSION, FORMAT, VERSION, StoredRange, explained, sync
from mpips.errors import CheckpointError
from mpips.files.error_latching_file import ErrorLatchingFile
from mpips.files.safe_open import inside
from mpips.keys import KeyArray, ascend, from_pairs, upper
from mpips.ranges import KeyRange, coalesce, intersection
from mpips.storage.disk.sorted_copy import Pieces
from mpips.storage.segment import Rows

if TYPE_CHECKING:
    import h5py

_CHUNK_BYTES = 2**20


@contextmanager
def create_file(path: Path, meta: Mapping[str, Any] | None, version: int = VERSION) -> Iterator[h5py.File]:
    """Create an HDF5 file with the format's header; at the end of the block it is closed and synced."""
    import h5py

    with explained("write", path), closing(ErrorLatchingFile(path)) as sink:
        with h5py.File(sink, "w", locking=False) as file:
            file.attrs["format"], file.attrs["version"] = FORMAT, version
            if meta is not None:
                file["meta"] = json.dumps(meta)
            yield file
        sink.close()
        sync(path.parent)


def write_array(group: h5py.Group, name: str, array: NDArray[Any] | Pieces) -> None:
    """Write an array little-endian, in checksummed chunks of about 1 MiB."""
    if isinstance(array, Pieces):
        _write_pieces(group, name, array)
        return
    if array.dtype.kind not in "biuf" or "/" in name:
        raise CheckpointError(f"array {name!r} of {array.dtype} cannot be saved: numbers, and no / in names")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    # HDF5 has no empty chunks
    if array.size == 0 or array.ndim == 0:
        group.create_dataset(name, data=array)
        return
    group.create_dataset(name, data=array, chunks=_chunk(array.dtype, array.shape), fletcher32=True)


def _chunk(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    row = dtype.itemsize * math.prod(shape[1:])
    return (min(shape[0], max(1, _CHUNK_BYTES // row)), *shape[1:])


def _write_pieces(group: h5py.Group, name: str, rows: Pieces) -> None:
    dtype = rows.dtype.newbyteorder("<")
    chunk = _chunk(dtype, rows.shape) if rows.shape[0] else None
    data, at = group.create_dataset(name, rows.shape, dtype, chunks=chunk, fletcher32=chunk is not None), 0
    for piece in rows:
        if len(piece):
            data[at : at + len(piece)] = piece
        at += len(piece)


def row_ranges(ranges: Iterable[KeyRange], keys: KeyArray) -> list[list[int]]:
    """Return [begin, end, first row, rows] for each range of a shard."""
    out = []
    for piece in coalesce(ranges):
        rows = rows_within(keys, piece)
        out.append([piece.begin, piece.end, rows.start, rows.stop - rows.start])
    return out


def rows_within(keys: KeyArray, wanted: KeyRange) -> slice:
    """Return where the sorted `keys` lie in a range, which is not empty."""
    keys = upper(keys)
    low = int(np.searchsorted(keys, np.uint64(wanted.begin), "left"))
    return slice(low, int(np.searchsorted(keys, np.uint64(wanted.end - 1), "right")))


@contextmanager
def open_file(path: Path, view_files: Collection[str] = ()) -> Iterator[h5py.File]:
    """Open a file of a checkpoint to read it; errors are reported in one line.

    `view_files`: files that a view may refer to, see `mpips.files.hdf5.reading`.
    """
    from mpips.files.hdf5 import reading

    path, versions = Path(path), (VERSION, DELTA_VERSION)
    with explained("read", path):
        try:
            # None of them is compressed.
            with reading(
                inside(path.parent, path.name), follow=False, view_files=view_files, compressed=False
            ) as file:
                if file.attrs.get("format") != FORMAT or file.attrs.get("version") not in versions:
                    raise CheckpointError(f"{path} is not a file of an {FORMAT}, version {VERSION}")
                yield file
        except (TypeError, AttributeError, IndexError, RecursionError, SystemError) as error:
            raise CheckpointError(f"{path}: is damaged: {' '.join(str(error).split())}") from error


def meta_of(file: h5py.File) -> dict[str, Any]:
    """Return the dict that a file was written with, {} if there was none."""
    if "meta" in file and file["meta"].shape != ():
        raise CheckpointError(f"{file.filename}: is damaged: meta is not one text")
    return dict(json.loads(file["meta"][()])) if "meta" in file else {}


def read_run(
    group: h5py.Group, run: StoredRange, wanted: list[KeyRange], most: int = 2**63
) -> Iterator[tuple[int, Rows]]:
    """Yield the rows of a run that lie in the ranges, each with the begin of its range, at most `most` rows at once.

    Raises:
        CheckpointError: the keys are not those of the run.
    """
    keys = _keys(group, slice(run.first, run.first + run.rows))
    if keys.shape != (run.rows,) or not ascend(keys):
        raise CheckpointError(
            f"{group.file.filename}: the keys of {group.name} are not {run.rows} ascending ones"
        )
    parts = upper(keys)
    if run.rows and not run.begin <= int(parts[0]) <= int(parts[-1]) < run.end:
        raise CheckpointError(f"{group.file.filename}: the keys of {group.name} leave their range")
    for piece in wanted:
        common = intersection(KeyRange(run.begin, run.end), piece)
        if common is not None:
            rows = rows_within(keys, common)
            first, last = run.first + rows.start, run.first + rows.stop
            for begin in range(first, max(last, first + 1), most):
                yield common.begin, read_rows(group, slice(begin, min(begin + most, last)))


def read_rows(group: h5py.Group, rows: slice) -> Rows:
    """Read some rows of a shard's vector.

    Raises:
        CheckpointError: keys, values and state differ in length, or are not numbers.
    """
    from mpips.files.hdf5 import is_numeric

    for data in (group["values"], *group["state"].values()):
        if not is_numeric(data):
            raise CheckpointError(f"{group.file.filename}: the rows of {group.name} are not numbers")
    state = {column: data[rows] for column, data in group["state"].items()}
    found = Rows(_keys(group, rows), group["values"][rows], state)
    for array in (found.values, *state.values()):
        if array.ndim != 2 or len(array) != len(found.keys):
            raise CheckpointError(f"{group.file.filename}: the rows of {group.name} do not fit their keys")
    return found


def _keys(group: h5py.Group, rows: slice, name: str = "keys") -> KeyArray:
    """Read keys: u64[n], or 128-bit ones as u64[n, 2].

    Raises:
        CheckpointError: they are not stored so.
    """
    data = group[name]
    if data.dtype != np.uint64 or data.shape[1:] not in ((), (2,)):
        raise CheckpointError(
            f"{group.file.filename}: the {name} of {group.name} are not numbers of 64 or 128 bits"
        )
    return from_pairs(data[rows])


def read_deleted(group: h5py.Group, wanted: list[KeyRange]) -> KeyArray:
    """Read the keys of a delta's vector in some ranges whose rows are gone; a base has none.

    Raises:
        CheckpointError: they are not ascending keys.
    """
    if "deleted" not in group:
        return _keys(group, slice(0, 0))
    keys = _keys(group, slice(None), "deleted")
    if not ascend(keys):
        raise CheckpointError(f"{group.file.filename}: the deleted keys of {group.name} do not ascend")
    parts = [keys[rows_within(keys, piece)] for piece in wanted]
    return np.concatenate([keys[:0], *parts])


def concatenate(parts: list[Rows]) -> Rows:
    """Return rows one after the other."""
    return Rows(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.values for part in parts]),
        {name: np.concatenate([part.state[name] for part in parts]) for name in parts[0].state},
    )


def differences(file: h5py.File, name: str, part: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference between a shard's rows of one vector and its entry in the manifest."""
    group = file[f"vectors/{name}"]
    keys = _keys(group, slice(None))
    shapes = {data.shape[0] for data in (group["values"], *group["state"].values())}
    problems = []
    if shapes | {len(keys)} != {part["rows"]}:
        problems.append(f"vector {name!r} has {len(keys)} keys, the manifest says {part['rows']}")
    if not ascend(keys):
        problems.append(f"the keys of vector {name!r} do not ascend")
    ranges = [KeyRange(begin, end) for begin, end, _, _ in part["ranges"]]
    if row_ranges(ranges, keys) != part["ranges"] or sum(run[3] for run in part["ranges"]) != len(keys):
        problems.append(f"the rows of vector {name!r} are not in the ranges that the manifest says")
    deleted = read_deleted(group, ranges)
    if len(deleted) != part.get("deleted", 0) or ("deleted" in group) != ("deleted" in part):
        problems.append(
            f"vector {name!r} has {len(deleted)} deleted keys in its ranges, the manifest says {part.get('deleted')}"
        )
    return problems
