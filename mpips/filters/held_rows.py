"""Common parts of filters that drop rows, and the merge of new rows with held rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError
from mpips.filters.filter import About, Content
from mpips.jit.kernel import kernel
from mpips.keys import KeyArray

Rows = NDArray[Any]

DROP, HOLD, SEND = 0, 1, 2
"""The class of a row: its sum is zero, small, or large."""

KEYS_AND_ROWS = "Array(u8, 1, 'C', True), Array({t}, 2, 'C', True)"
"""Keys and rows in a kernel's signature, of type {t}; they may be read-only."""


def applies(vectors: Sequence[str], about: About) -> bool:
    """Return whether a filter is applied to a message: `vectors` are those that its settings name, none: all."""
    return not vectors or about.vector in vectors


def has_rows(content: Content) -> bool:
    """Return whether there are rows of numbers, not encoded as bytes by an earlier filter."""
    return content.values.dtype != np.uint8 and len(content.values) > 0


def as_contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of any shape and dtype aligned and in C order, as kernels need it; copied only if necessary."""
    return np.require(array, requirements=["C", "A"])


def keys_of(content: Content, about: About) -> KeyArray:
    """List the keys of the rows, also where they are all keys of a range."""
    if content.keys is not None:
        return as_contiguous(content.keys)
    return np.arange(len(content.values), dtype=np.uint64) + np.uint64(about.range.begin)


def decode_unchanged(content: Content) -> Content:
    """Decode the content of a filter that drops rows: it is unchanged.

    Raises:
        FilterError: there is a note; such a filter writes none.
    """
    if content.note:
        raise FilterError(f"note has {len(content.note)} bytes, expected 0")
    return content


_TYPES = ("f4", "f8", "i4", "i8")


@kernel(
    *(f"UniTuple(i8, 3)({KEYS_AND_ROWS}, {KEYS_AND_ROWS}, f8, u1[::1])".format(t=t) for t in _TYPES),
)
def classify(
    keys: NDArray[np.uint64],
    rows: Rows,
    held_keys: NDArray[np.uint64],
    held_rows: Rows,
    threshold: float,
    classes: NDArray[np.uint8],
) -> tuple[int, int, int]:
    """Classify the sums of rows and held rows; return how many are to send, to hold, and have both.

    A sum is sent if a number in it is larger than the threshold (NaN always is), dropped if it is all zero, and held
    otherwise. Held rows of other keys are not classified.
    """
    if len(held_keys) == 0:
        held_rows = np.zeros((1, rows.shape[1]), rows.dtype)
    last = max(len(held_keys) - 1, 0)
    send = hold = both = j = 0
    for i in range(len(keys)):
        while j < len(held_keys) and held_keys[j] < keys[i]:
            j += 1
        same = j < len(held_keys) and held_keys[j] == keys[i]
        # Read in any case, to avoid an unpredictable branch.
        near = min(j, last)
        large = some = False
        for c in range(rows.shape[1]):
            total = rows[i, c] + held_rows[near, c]
            size = abs(float(total if same else rows[i, c]))
            large |= not size <= threshold
            some |= size != 0
        classes[i] = SEND if large else (HOLD if some else DROP)
        send += large
        hold += some and not large
        both += same
        j += same
    return send, hold, both


@kernel(
    *(
        f"UniTuple(i8, 2)({KEYS_AND_ROWS}, {KEYS_AND_ROWS}, u1[::1], i8, i8, u8[::1], {{t}}[:, ::1])".format(
            t=t
        )
        for t in _TYPES
    ),
)
def merge(
    keys: NDArray[np.uint64],
    rows: Rows,
    held_keys: NDArray[np.uint64],
    held_rows: Rows,
    classes: NDArray[np.uint8],
    sent: int,
    others: int,
    out_keys: NDArray[np.uint64],
    out_rows: Rows,
) -> tuple[int, int]:
    """Merge two sorted lists, adding rows of equal keys: first those to send, from out[sent] on those to hold.

    Held rows of other keys are sent if `others` is SEND (then no row is held), and held otherwise. `out` has one row
    more than needed, for dropped rows. Returns the number of rows to send, and the end of those to hold. O(n + m).
    """
    if len(held_keys) == 0:
        held_rows = np.zeros((1, rows.shape[1]), rows.dtype)
    last = max(len(held_keys) - 1, 0)
    dump = len(out_keys) - 1
    first, second = 0, sent
    j = 0
    for i in range(len(keys) + 1):
        while j < len(held_keys) and (i == len(keys) or held_keys[j] < keys[i]):
            at = first if others == SEND else second
            out_keys[at] = held_keys[j]
            for c in range(rows.shape[1]):
                out_rows[at, c] = held_rows[j, c]
            first += others == SEND
            second += others != SEND
            j += 1
        if i == len(keys):
            break
        same = j < len(held_keys) and held_keys[j] == keys[i]
        near = min(j, last)
        at = first if classes[i] == SEND else (second if classes[i] == HOLD else dump)
        out_keys[at] = keys[i]
        for c in range(rows.shape[1]):
            total = rows[i, c] + held_rows[near, c]
            out_rows[at, c] = total if same else rows[i, c]
        first += classes[i] == SEND
        second += classes[i] == HOLD
        j += same
    return first, max(first, second)
