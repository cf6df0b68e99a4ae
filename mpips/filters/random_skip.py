"""Random skip: of each push a random share of the rows, scaled up: unbiased (NIPS companion).

Each row is kept with probability q, and then divided by q. What is drawn is a hash of the job's seed, of the request's
origin, shard and time, and of the key: no state, and a run that is repeated repeats to the bit. It is for pushes that
are gradients or changes; a vector that is set to what is pushed is not to go through it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mpips.data.numbering import mix
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held import GIVEN, Keys, Rows, applies, are_rows, as_it_came, keys_of, plain
from mpips.jit.kernel import kernel

_WORD = 2**64 - 1


@dataclass(frozen=True)
class RandomSkip:
    """How much is skipped."""

    keep: float = field(metadata={"above": 0, "at_most": 1})
    """q, the probability with which a row is kept."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is for; none: all."""


@filter_("random_skip", RandomSkip)
def random_skip(settings: RandomSkip) -> Coder:
    """Make the filter that keeps each row with probability q and divides it by q.

    Rows of integers pass unchanged, for counts are to stay whole. It has no state and holds nothing back, so that
    a flush is a push like others.
    """
    limit = np.uint64(min(int(settings.keep * 2.0**64), _WORD))

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        values = content.values
        if settings.keep == 1 or not applies(settings.vectors, about) or not are_rows(content):
            return state, content
        if values.dtype.kind != "f":
            return state, content
        stream = stream_of(about)
        keys = np.empty(len(values), np.uint64)
        rows = np.empty_like(values, order="C")
        kept = _skip(keys_of(content, about), plain(values), stream, limit, 1.0 / settings.keep, keys, rows)
        listed = content.keys if kept == len(values) else keys[:kept]
        return state, content._replace(keys=listed, values=rows[:kept])

    return Coder(encode, as_it_came, drops=True)


def stream_of(about: About) -> np.uint64:
    """Name the random numbers of one message: the hash that its keys are hashed with."""
    stream = np.uint64(0)
    for part in (about.seed, about.origin, about.shard, about.time):
        stream = np.uint64(mix(stream ^ np.uint64(part & _WORD)))
    return stream


@kernel(*(f"i8({GIVEN}, u8, u8, f8, u8[::1], {{t}}[:, ::1])".format(t=t) for t in ("f4", "f8")))
def _skip(
    keys: Keys,
    rows: Rows,
    stream: np.uint64,
    limit: np.uint64,
    scale: float,
    kept_keys: Keys,
    kept_rows: Rows,
) -> int:
    """Write the rows that are kept, scaled, one behind the other, and return how many they are."""
    kept = 0
    if rows.shape[1] == 1:
        for i in range(len(keys)):  # what is skipped is written over: no branch that none could foretell
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
