"""What filters that leave rows out have in common, and the merge of what is sent with what was held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError
from mpips.filters.filter import About, Content
from mpips.jit.kernel import kernel

Keys = NDArray[np.uint64]
Rows = NDArray[Any]

NOTHING, HOLD, SEND = 0, 1, 2
"""What becomes of a row."""

GIVEN = "Array(u8, 1, 'C', True), Array({t}, 2, 'C', True)"
"""Keys and rows in a kernel's signature, of type {t}; they may be read-only."""


def applies(vectors: Sequence[str], about: About) -> bool:
    """Tell whether a filter is meant for a message: `vectors` are those that its settings name, none for all."""
    return not vectors or about.vector in vectors


def are_rows(content: Content) -> bool:
    """Tell whether there are rows of numbers, and no earlier filter has made bytes of them."""
    return content.values.dtype != np.uint8 and len(content.values) > 0


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Give an array as kernels take it, aligned and in C order; copied only if it is not so already."""
    return np.require(array, requirements=["C", "A"])


def keys_of(content: Content, about: About) -> Keys:
    """List the keys u64[n] of a content's rows, also where they are all keys of a range."""
    if content.keys is not None:
        return plain(content.keys)
    return np.arange(len(content.values), dtype=np.uint64) + np.uint64(about.range.begin)


def as_it_came(content: Content) -> Content:
    """Decode what a filter has sent that leaves rows out: there is nothing to undo.

    Raises:
        FilterError: there is a note, and such a filter writes none.
    """
    if content.note:
        raise FilterError(f"{len(content.note)} bytes of note where none are written")
    return content


_TYPES = ("f4", "f8", "i4", "i8")


@kernel(
    *(f"UniTuple(i8, 3)({GIVEN}, {GIVEN}, f8, u1[::1])".format(t=t) for t in _TYPES),
)
def judge(
    keys: Keys,
    rows: Rows,
    held_keys: Keys,
    held_rows: Rows,
    threshold: float,
    verdicts: NDArray[np.uint8],
) -> tuple[int, int, int]:
    """Judge the sums of rows and of what is held of their keys; return how many to send, to hold, and have both.

    A sum is to be sent if a number in it is larger than the threshold (NaN always is), held if not, and neither if it
    is all zero. What is held of other keys is not judged.
    """
    if len(held_keys) == 0:
        held_rows = np.zeros((1, rows.shape[1]), rows.dtype)
    last = max(len(held_keys) - 1, 0)
    send = hold = both = j = 0
    for i in range(len(keys)):
        while j < len(held_keys) and held_keys[j] < keys[i]:
            j += 1
        same = j < len(held_keys) and held_keys[j] == keys[i]
        near = min(j, last)  # read in any case, so that the choice is no branch that none could foretell
        large = some = False
        for c in range(rows.shape[1]):
            total = rows[i, c] + held_rows[near, c]
            size = abs(float(total if same else rows[i, c]))
            large |= not size <= threshold
            some |= size != 0
        verdicts[i] = SEND if large else (HOLD if some else NOTHING)
        send += large
        hold += some and not large
        both += same
        j += same
    return send, hold, both


@kernel(
    *(
        f"UniTuple(i8, 2)({GIVEN}, {GIVEN}, u1[::1], i8, i8, u8[::1], {{t}}[:, ::1])".format(t=t)
        for t in _TYPES
    ),
)
def merge(
    keys: Keys,
    rows: Rows,
    held_keys: Keys,
    held_rows: Rows,
    verdicts: NDArray[np.uint8],
    sent: int,
    others: int,
    out_keys: Keys,
    out_rows: Rows,
) -> tuple[int, int]:
    """Merge two sorted lists, adding rows of one key: those to be sent first, from out[sent] on those to be held.

    What is held of other keys goes with those to be sent if `others` is SEND, and then none is to be held; else with
    those to be held. `out` has a row more than are needed, for what is neither. Returns how many are to be sent, and
    where those to be held end. O(n + m).
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
        at = first if verdicts[i] == SEND else (second if verdicts[i] == HOLD else dump)
        out_keys[at] = keys[i]
        for c in range(rows.shape[1]):
            total = rows[i, c] + held_rows[near, c]
            out_rows[at, c] = total if same else rows[i, c]
        first += verdicts[i] == SEND
        second += verdicts[i] == HOLD
        j += same
    return first, max(first, second)
