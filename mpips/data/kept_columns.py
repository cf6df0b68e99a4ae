"""Parsed parts of the training data, kept in files: the successor of a lost worker need not parse its part again.

A worker writes the columns of each part that it has parsed, in the background, as an archive of numpy arrays. Its name
is the hash of all that the columns depend on: the settings in [data], and the files, with their sizes and times. So a
file is either right or not found, whichever run has written it. One that is damaged counts as not found: its CRC-32,
types, shapes and bounds are checked, since compiled code uses its numbers as places.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from mpips.data.examples import Tally
from mpips.data.matrix import Columns
from mpips.data.source import EncodingTable
from mpips.data.spec import DataSpec, as_list
from mpips.files import npz
from mpips.files.json_schema import COUNT, Each, schema_error
from mpips.files.safe_open import replacing
from mpips.keys import KEY128
from mpips.keys import order as key_order

VERSION = 3
GB = 1e9
_TALLY = {"examples": COUNT, "skipped": COUNT, "first_error": str, "header": str, "empty": Each(str)}
Slice = tuple[list[str], int, int]
"""Files, and which of how many parts of their examples; see `mpips.data.read`."""


class KeptColumns:
    """The parsed parts in a folder (None: none are kept), of data that is read as `spec` says.

    Parts of more than `spec.keep_parsed` GB are not written, nor any when the folder does not exist: the run is over.

    >>> import tempfile
    >>> from mpips.data import load_columns, read
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.svm")
    ...     _ = path.write_text("+1 3:0.5")
    ...     kept, tally = KeptColumns(Path(folder), DataSpec()), Tally()
    ...     name = kept.name([([str(path)], 0, 1)])
    ...     kept.keep(name, load_columns(read([str(path)], DataSpec(), tally=tally)), tally)
    ...     kept.settle()
    ...     columns, _ = kept.find(name)
    ...     columns.keys.tolist()
    [3]
    """

    def __init__(self, folder: Path | None, spec: DataSpec) -> None:
        self._folder, self._spec = folder, spec
        self._writer: Thread | None = None

    def name(self, slices: Sequence[Slice], encoding: EncodingTable | None = None, coarse: int = 0) -> str:
        """Return the name of the columns of slices that are read in this order, as the files are now; "": none.

        `encoding` is that of tables; `coarse` as in `mpips.data.read`.
        """
        if self._folder is None:
            return ""
        # The first file may number the columns of all.
        paths = dict.fromkeys(
            [*as_list(self._spec.train)[:1], *(path for files, _, _ in slices for path in files)]
        )
        try:
            found = [(path, os.stat(path)) for path in paths]
        except (OSError, ValueError):
            # The reader reports the error.
            return ""
        facts = [(path, each.st_size, each.st_mtime_ns) for path, each in found]
        about = json.dumps([VERSION, asdict(self._spec), slices, facts, encoding, coarse])
        return f"{hashlib.sha256(about.encode()).hexdigest()}.npz"

    def find(self, name: str) -> tuple[Columns, Tally] | None:
        """Return the columns of a name, and their tally; None if they are not kept."""
        if self._folder is None or not name:
            return None
        try:
            arrays = npz.load(self._folder / name, follow=False)
            tally = json.loads(str(arrays.pop("tally")))
            if schema_error(tally, _TALLY):
                return None
            columns = Columns(**{"values": None, **arrays})  # type: ignore[arg-type]
            return (columns, Tally(**tally)) if _is_sound(columns) else None
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            return None

    def keep(self, name: str, columns: Columns, tally: Tally) -> None:
        """Write columns in the background; if that fails, they are parsed again. They must not change afterwards."""
        if self._folder is None or not name or columns.nbytes > self._spec.keep_parsed * GB:
            return
        arguments = self._folder / name, columns, tally
        before, self._writer = self._writer, Thread(target=_write, args=arguments, daemon=True)
        if before is not None:
            before.join()
        self._writer.start()

    def settle(self) -> None:
        """Wait until the columns are written."""
        if self._writer is not None:
            self._writer.join()


def _write(path: Path, columns: Columns, tally: Tally) -> None:
    """Write columns to a file."""
    arrays: dict[str, Any] = {name: array for name, array in vars(columns).items() if array is not None}
    with suppress(OSError), replacing(path, durable=False) as file:
        np.savez(file, tally=np.array(json.dumps(asdict(tally))), **arrays)


def _is_sound(columns: Columns) -> bool:
    """Return whether columns have the types, shapes and bounds that compiled code relies on."""
    keys, colptr, rows, values, labels = (
        columns.keys, columns.colptr, columns.rows, columns.values, columns.labels,
    )  # fmt: skip
    arrays = [keys, colptr, rows, labels, *([] if values is None else [values])]
    types = [np.uint64, np.int64, np.int32, np.float32, np.float32]
    if any(array.ndim != 1 or not array.flags.c_contiguous for array in arrays):
        return False
    if [array.dtype for array in arrays[1:]] != types[1 : len(arrays)] or keys.dtype not in (
        np.uint64,
        KEY128,
    ):
        return False
    if len(colptr) != len(keys) + 1 or (values is not None and len(values) != len(rows)):
        return False
    ends = colptr[0] == 0 and colptr[-1] == len(rows) and bool((colptr[:-1] <= colptr[1:]).all())
    rises = bool((key_order(keys) == np.arange(len(keys))).all())
    within = not len(rows) or (rows.min() >= 0 and rows.max() < len(labels))
    return bool(ends and rises and within and (np.abs(labels) == 1.0).all())
