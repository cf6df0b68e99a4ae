"""The kernels of own.py, in a separate file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips import kernel


@kernel("void(f8[:, ::1], i4[::1], f8[:, ::1], f8)")
def blend(
    values: NDArray[np.float64], slots: NDArray[np.int32], rows: NDArray[np.float64], rate: float
) -> None:
    """Move the values of slots towards rows."""
    for i in range(len(slots)):
        for j in range(values.shape[1]):
            values[slots[i], j] += rate * (rows[i, j] - values[slots[i], j])
