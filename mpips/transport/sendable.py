"""The arrays that a message can carry, checked where a program gives them."""

from __future__ import annotations

import numpy as np

from mpips.errors import UsageError
from mpips.keys import KEY64, KEY128, check_unmasked
from mpips.transport.message import DTYPES, TYPES


def check_arrays(where: str, keys: object, values: object) -> None:
    """Raise UsageError, with the text `where` they are from, unless a program's arrays can be sent.

    >>> check_arrays("call of f", np.arange(2, dtype=np.uint64), np.ones((2, 3)))
    """
    for what, array, kinds, dimensions, right in (
        ("keys", keys, (KEY64, KEY128), (1,), "[n] of uint64 or KEY128"),
        ("values", values, DTYPES, (1, 2), f"[n] or [n, width] of {TYPES}"),
    ):
        if array is None:
            continue
        check_unmasked(array, f"{where}: {what}")
        if not isinstance(array, np.ndarray):
            found = f"of type {type(array).__name__}"
        elif array.dtype not in kinds or array.ndim not in dimensions:
            found = f"of type {array.dtype} in {array.ndim} dimensions"
        else:
            continue
        raise UsageError(f"{where}: {what} must be an array {right}, and are {found}")
