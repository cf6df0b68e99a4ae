"""Keys of ids that belong to fields: one vector holds the rows of all fields of one width."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.errors import UsageError
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import check_unmasked


@kernel("void(u8[:,::1], u8[:,::1])")
def _mix_fields(ids: NDArray[np.uint64], keys: NDArray[np.uint64]) -> None:
    for column in range(ids.shape[1]):
        field = mix(np.uint64(column))
        for row in range(ids.shape[0]):
            keys[row, column] = mix(field ^ ids[row, column])


def field_keys(ids: ArrayLike) -> NDArray[np.uint64]:
    """Return a key for each pair of a field and an id: mix(mix(field) ^ id), the mix of SplitMix64.

    Within a field different ids have different keys. Two of n ids of different fields have the same key with
    probability n^2 / 2^65.

    Args:
        ids: integers from 0, [n, fields]: column f holds the ids of field f.

    Returns:
        u8[n, fields].

    Raises:
        UsageError: the ids are not of this form.

    >>> keys = field_keys([[7, 7], [7, 8]])
    >>> bool(keys[0, 0] == keys[1, 0]), len(np.unique(keys))
    (True, 3)
    """
    check_unmasked(ids, "ids")
    array = np.asarray(ids)
    if array.ndim != 2 or array.dtype.kind not in "iu":
        raise UsageError(f"ids are {array.dtype} of shape {array.shape}; give integers of shape [n, fields]")
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise UsageError(f"an id is {array.min()}; ids are integers from 0")
    given = np.ascontiguousarray(array, np.uint64)
    keys = np.empty_like(given)
    _mix_fields(given, keys)
    return keys
