"""Random skip: sends a random sample of the rows of each push, scaled to be unbiased (NIPS companion paper).

Each row is kept with probability q, and then divided by q. The random numbers are a hash of the job's seed, of the
request's origin, shard and time, and of the key: there is no state, and a repeated run is the same to the bit. It is
meant for gradients and other additive pushes, not for vectors whose update is an assignment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held_rows import (
    KEYS_AND_ROWS,
    Rows,
    applies,
    as_contiguous,
    decode_unchanged,
    has_rows,
    keys_of,
)
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import folded, is_wide

_WORD = 2**64 - 1


@dataclass(frozen=True)
class RandomSkip:
    """Settings: how many rows are kept."""

    keep: float = field(metadata={"above": 0, "at_most": 1})
    """q, the probability that a row is kept."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is applied to; none: all."""


@filter_("random_skip", RandomSkip)
def random_skip(settings: RandomSkip) -> Coder:
    """Return the coder that keeps each row with probability q and divides it by q.

    Rows of integers are unchanged, since counts must stay integers. It has no state and holds nothing back, so that a
    flush has no effect.
    """
    limit = np.uint64(min(int(settings.keep * 2.0**64), _WORD))

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        values = content.values
        if settings.keep == 1 or not applies(settings.vectors, about) or not has_rows(content):
            return state, content
        if values.dtype.kind != "f":
            return state, content
        stream = stream_of(about)
        given = keys_of(content, about)
        words, keys = folded(given), np.empty(len(values), np.uint64)
        rows = np.empty_like(values, order="C")
        kept = _skip(words, as_contiguous(values), stream, limit, 1.0 / settings.keep, keys, rows)
        listed = content.keys
        if kept < len(values):
            listed = given[np.isin(words, keys[:kept])] if is_wide(given) else keys[:kept]
        return state, content._replace(keys=listed, values=rows[:kept])

    return Coder(encode, decode_unchanged, drops=True)


def stream_of(about: About) -> np.uint64:
    """Return the seed of a message's random numbers, which is hashed with each key."""
    stream = np.uint64(0)
    for part in (about.seed, about.origin, about.shard, about.time):
        stream = np.uint64(mix(stream ^ np.uint64(part & _WORD)))
    return stream


@kernel(*(f"i8({KEYS_AND_ROWS}, u8, u8, f8, u8[::1], {{t}}[:, ::1])".format(t=t) for t in ("f4", "f8")))
def _skip(
    keys: NDArray[np.uint64],
    rows: Rows,
    stream: np.uint64,
    limit: np.uint64,
    scale: float,
    kept_keys: NDArray[np.uint64],
    kept_rows: Rows,
) -> int:
    """Write the kept rows, scaled and packed, and return their number."""
    kept = 0
    if rows.shape[1] == 1:
        # Skipped rows are overwritten, to avoid an unpredictable branch.
        for i in range(len(keys)):
            key = keys[i]
            kept_keys[kept] = key
            kept_rows[kept, 0] = rows[i, 0] * scale
            kept += int(mix(stream ^ key) < limit)
        return kept
    for i in range(len(keys)):
        if mix(stream ^ keys[i]) < limit:
            kept_keys[kept] = keys[i]
            for c in range(rows.shape[1]):
                kept_rows[kept, c] = rows[i, c] * scale
            kept += 1
    return kept
