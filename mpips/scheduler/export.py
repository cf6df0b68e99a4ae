"""Whole vectors in key order: as a file, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import InputError
from mpips.keys import KeyArray, pairs
from mpips.storage.updates import VectorSpec
from mpips.worker.export import EXPORT_ROWS
from mpips.worker.vector import Vector


def completed(
    spec: VectorSpec, chunks: Iterable[tuple[KeyArray, NDArray[Any]]]
) -> Iterator[tuple[KeyArray, NDArray[Any]]]:
    """Yield the chunks of a dense vector with the rows that `export` leaves out, so that row i is that of key i.

    >>> chunks = [(np.array([1], np.uint64), np.array([[5.0]]))]
    >>> [rows.tolist() for _, rows in completed(VectorSpec("w", extent=3, dense=True), chunks)]
    [[[0.0], [5.0]], [[0.0]]]
    """
    begin, end_of_all = 0, (np.empty(0, np.uint64), np.empty((0, spec.width), spec.dtype))
    for keys, rows in chain(chunks, [end_of_all]):
        end = spec.extent if keys is end_of_all[0] else int(keys[-1]) + 1 if len(keys) else begin
        for first in range(begin, end, EXPORT_ROWS):
            every = np.arange(first, min(first + EXPORT_ROWS, end), dtype=np.uint64)
            here = slice(np.searchsorted(keys, every[0]), np.searchsorted(keys, every[-1], side="right"))
            found = spec.initial(every)
            found[keys[here] - every[0]] = rows[here]
            yield every, found
        begin = end


def save(node: Node, vectors: Iterable[Vector], path: Path) -> str:
    """Write whole vectors to an HDF5 file; return why it was not written, "" if it was.

    A group for each vector has `keys`, u8[n] or [n, 2] with the upper half first, ascending, and `values`, [n, width].
    Of a dense vector they are all keys and rows.
    """
    # Only who writes such a file needs h5py.
    from mpips.files import hdf5

    def rows_of(vector: Vector) -> Iterator[tuple[KeyArray, NDArray[Any]]]:
        found = vector.export()
        return completed(vector.spec, found) if vector.spec.dense else found

    chunks = ((vector, *chunk) for vector in vectors for chunk in rows_of(vector))
    try:
        with hdf5.writing(path) as file:
            for vector, keys, rows in chunks:
                group = file.require_group(vector.spec.name)
                for name, part in (("keys", pairs(keys)), ("values", rows)):
                    if name not in group:
                        group.create_dataset(name, data=part, maxshape=(None, *part.shape[1:]))
                        continue
                    data, before = group[name], len(group[name])
                    data.resize(before + len(part), axis=0)
                    data[before:] = part
        return ""
    except (OSError, InputError) as error:
        # A successor issues the same requests, even if its own disk fails.
        for _ in chunks:
            pass
        return " ".join(str(error).split())


def digest(vector: Vector) -> str:
    """Return the SHA-256 of (key, row) records in key order: the same for any layout that holds the same values."""
    sha = hashlib.sha256()
    for keys, rows in vector.export():
        record = np.empty(len(keys), [("key", keys.dtype), ("row", rows.dtype, (rows.shape[1],))])
        record["key"], record["row"] = keys, rows
        sha.update(record.tobytes())
    return sha.hexdigest()
