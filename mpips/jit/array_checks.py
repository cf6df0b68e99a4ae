"""Checks of arrays from files for the preconditions of compiled kernels.

Kernels do not check indices: one that is out of bounds reads or writes other memory. The checks compare numbers and do
not subtract them, since differences of numbers from a file may overflow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bad_row(indptr: NDArray[np.integer], entries: int) -> int:
    """Find a row of compressed sparse rows whose bounds are not in order or not within the entries.

    Args:
        indptr: [n+1], any integers: where each row begins, and the last one ends; not necessarily from row 0 on.
        entries: how many there are.

    Returns:
        The first such row, counted from 0; -1 if there is none.
    """
    wrong = (indptr[1:] < indptr[:-1]) | (indptr[:-1] < 0) | (indptr[1:] > entries)
    return int(wrong.argmax()) if wrong.any() else -1


def rows_flaw(indptr: NDArray[np.integer], columns: NDArray[np.integer], rows: int, count: int) -> str:
    """Describe why arrays are not compressed sparse rows with columns 0 .. count-1; "" if they are.

    >>> rows_flaw(np.array([0, 1, 3]), np.array([4, 0, 9]), rows=2, count=5)
    'it has an entry beyond the 5 columns'
    """
    if (
        indptr.ndim != 1
        or columns.ndim != 1
        or indptr.dtype.kind not in "iu"
        or columns.dtype.kind not in "iu"
    ):
        return "its rows are no one-dimensional whole numbers"
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(columns):
        return f"its rows do not go from 0 to the {len(columns)} entries in {rows} steps"
    row = bad_row(indptr, len(columns))
    if row >= 0:
        return f"row {row} does not end where the next one begins"
    if len(columns) and not (columns.min() >= 0 and columns.max() < count):
        return f"it has an entry beyond the {count} columns"
    return ""


def cells_flaw(table: NDArray[np.number], depth: int, width: int) -> str:
    """Describe why a table is not a one-dimensional array of depth * width integers; "" if it is.

    >>> cells_flaw(np.zeros(6, np.int64), depth=2, width=3)
    ''
    """
    if table.ndim != 1 or table.dtype.kind not in "iu":
        return "its table is not a row of whole numbers"
    if depth < 1 or width < 1 or len(table) != depth * width:
        return (
            f"its table has {len(table)} cells where depth {depth} and width {width} ask for {depth * width}"
        )
    return ""
