"""Tail features: rare keys get no memory at the servers (from the authors' code).

Most features of sparse data occur once or twice and do not help learning, yet each would occupy memory at the servers
for good. So pushes count their keys, and a row whose key was seen fewer than f times, this time included, is dropped.
It is not kept for later, so the cost is the first f - 1 changes of every other key.

Keys are counted by a CountMin sketch: `depth` rows of `width` counters, of which each key has one per row; its count is
the smallest of them. The count is never too low, so no key that was seen f times is dropped; it is too high where all
counters of a key are shared, for at most the share (N / width) ** depth of new keys after N others. Only the smallest
counters of a key are increased (conservative update), and none beyond f, so that a byte suffices for f < 256 and
frequent keys cause no writes.

The sketch is changed in place, which State allows: a copy of its 2 MB takes 0.3 ms, as long as a push of 30,000 keys.
Hashes depend on the key only, so that sketches of the same shape can be merged, by their maximum or their sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held_rows import applies, decode_unchanged, has_rows, keys_of
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix
from mpips.keys import folded

U8 = np.uint64
_HALF = U8(32)


@dataclass(frozen=True)
class Tail:
    """Settings: which keys are rare."""

    at_least: int = field(metadata={"at_least": 1, "at_most": 2**32 - 1})
    """f: the rows of a key are sent from its f-th push on."""
    width: int = field(default=2**20, metadata={"at_least": 1, "at_most": 2**28})
    """Counters per row of the sketch: several times the number of keys that a worker pushes to one server."""
    depth: int = field(default=2, metadata={"at_least": 1, "at_most": 16})
    """Rows of the sketch."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is applied to; none: all."""


@filter_("tail", Tail)
def tail(settings: Tail) -> Coder:
    """Return the coder that drops rows of keys that were pushed fewer than f times.

    Its state is "sketch", [depth, width] of the smallest unsigned type that holds f, one for each server and vector.
    Rows may be of any type. A flush has no effect, since nothing is held back. Encoding raises InputError where a
    restored sketch has another shape.
    """
    dtype = np.min_scalar_type(settings.at_least)

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        if settings.at_least == 1 or not applies(settings.vectors, about) or not has_rows(content):
            return state, content
        sketch = state.get("sketch")
        if sketch is None:
            sketch = np.zeros((settings.depth, settings.width), dtype)
        elif sketch.shape != (settings.depth, settings.width) or sketch.dtype != dtype:
            raise InputError(
                f"filter tail: the sketch of {about.vector!r} is {sketch.shape[0]} x {sketch.shape[1]} "
                f"{sketch.dtype}, the settings require {settings.depth} x {settings.width} {dtype}"
            )
        keys = keys_of(content, about)
        places = np.empty(len(keys), np.int64)
        seen = _count(sketch, folded(keys), settings.at_least, places)
        if seen < len(keys):
            places = places[:seen]
            content = content._replace(keys=keys[places], values=content.values[places])
        return {"sketch": sketch}, content

    return Coder(encode, decode_unchanged, drops=True)


@kernel(*(f"i8({t}[:, ::1], Array(u8, 1, 'C', True), i8, i8[::1])" for t in ("u1", "u2", "u4")))
def _count(sketch: NDArray[Any], keys: NDArray[np.uint64], least: int, places: NDArray[np.int64]) -> int:
    """Count each key, write the places of those that were seen `least` times, and return their number."""
    depth, width = sketch.shape
    kept = 0
    for i in range(len(keys)):
        estimate = least
        word = keys[i]
        for row in range(depth):
            word = mix(word)
            estimate = min(estimate, int(sketch[row, ((word >> _HALF) * U8(width)) >> _HALF]))
        if estimate < least:
            estimate += 1
            word = keys[i]
            for row in range(depth):
                word = mix(word)
                place = ((word >> _HALF) * U8(width)) >> _HALF
                if sketch[row, place] < estimate:
                    sketch[row, place] = estimate
        places[kept] = i
        kept += estimate >= least
    return kept
