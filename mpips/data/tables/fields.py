"""The fields of keys, for models that tell them apart: a field is a column, or a cross of columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpips.data.kernels import CROSS, LOWER
from mpips.jit.splitmix import mix


def fields_of(marks: NDArray[np.uint64], columns: int, crosses: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Return the field of each key, i4[n]: its column, or `columns` + i of cross i.

    Args:
        marks: the lower halves that parsers make of keys if those of columns are the numbers of the columns.
        columns: their number.
        crosses: the columns of each cross.

    >>> fields_of(np.array([2, 0, 1], np.uint64), 3, []).tolist()
    [2, 0, 1]
    """
    found = marks.astype(np.int32)
    for number, cross in enumerate(crosses):
        mark = mix(LOWER + CROSS + np.uint64(len(cross)))
        for column in cross:
            mark = mix(np.uint64(mark) ^ np.uint64(column))
        found[marks == np.uint64(mark)] = columns + number
    return found
