"""Random contents of messages, for tests of filters: all types and widths, any bits, with and without keys."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mpips.errors import FilterError
from mpips.filters.filter import About, Coder, Content
from mpips.keys import KEY64, KEY128, ascend, from_pairs
from mpips.ranges import ALL
from mpips.transport.message import DTYPES, Command

KINDS = ("bits", "normal", "few", "zeros", "constant", "special")
SPECIAL = (0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 5e-324, 1.0, 1.7e308)


def about(**changes: Any) -> About:
    return About("w", Command.PUSH, ALL, sums=True, origin=3, shard=1, time=5, seed=7)._replace(**changes)


def content(seed: int, dtype: np.dtype[Any], rows: int, width: int, kind: str, keys: str) -> Content:
    """Make a content whose keys are "none", "dense", "hashed", or of 128 bits: "pairs"."""
    rng = np.random.default_rng(seed)
    shape = (rows, width)
    with np.errstate(all="ignore"):
        if kind == "bits":
            values = np.frombuffer(rng.bytes(rows * width * dtype.itemsize), dtype).reshape(shape)
        elif kind == "normal":
            values = (rng.normal(0, 1e3, shape)).astype(dtype)
        elif kind == "few":
            values = rng.integers(-3, 4, shape).astype(dtype)
        elif kind == "zeros":
            values = np.where(rng.random(shape) < 0.2, rng.normal(0, 1e3, shape), 0).astype(dtype)
        elif kind == "constant" or dtype.kind == "i":
            values = np.full(shape, rng.integers(-(2**31), 2**31), dtype)
        else:
            values = rng.choice(SPECIAL, shape).astype(dtype)
    if keys == "none":
        return Content(None, values)
    if keys == "dense":
        return Content(np.cumsum(rng.integers(1, 20, rows), dtype=np.uint64), values)
    if keys == "pairs":
        # Many share their upper half.
        halves = rng.integers(0, 2**64, (2 * rows + 8, 2), np.uint64) >> np.array([62, 0], np.uint64)
        return Content(np.unique(from_pairs(halves))[:rows], values)
    listed = np.unique(rng.integers(0, 2**64, rows + 8, np.uint64))[:rows]
    listed[-1:] = 2**64 - 1
    return Content(listed, values)


def contents(widths: tuple[int, ...] = (1, 2, 3)) -> st.SearchStrategy[Content]:
    return st.builds(
        content,
        st.integers(0, 2**32),
        st.sampled_from(DTYPES),
        st.sampled_from((0, 1, 2, 5, 40, 300, 2049, 9000)),
        st.sampled_from(widths),
        st.sampled_from(KINDS),
        st.sampled_from(("none", "dense", "hashed", "pairs")),
    )


def same(a: Content, b: Content) -> bool:
    """Return whether two contents are the same to the bit."""
    if (a.keys is None) != (b.keys is None) or (a.values.dtype, a.values.shape) != (
        b.values.dtype,
        b.values.shape,
    ):
        return False
    keys = a.keys is None or (b.keys is not None and np.array_equal(a.keys, b.keys))
    return keys and a.values.tobytes() == b.values.tobytes()


def damaged(draw: st.DrawFn, sent: Content) -> Content:
    """Draw what may have become of a content on its way: cut off, a bit turned, a byte too many, or nothing alike."""
    payload, note = bytearray(sent.values.tobytes()), bytearray(sent.note)
    target = payload if payload and draw(st.booleans()) else note
    how = draw(st.sampled_from(("cut", "bit", "more", "other", "noise")))
    at = draw(st.integers(0, max(len(target) - 1, 0)))
    if how == "cut":
        del target[at:]
    elif how == "bit" and target:
        target[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "more":
        target += draw(st.binary(min_size=1, max_size=9))
    elif how == "noise" and target:
        target[at : at + 8] = draw(
            st.binary(min_size=len(target[at : at + 8]), max_size=len(target[at : at + 8]))
        )
    else:
        target[:] = draw(st.binary(max_size=80))
    return Content(sent.keys, np.frombuffer(bytes(payload), np.uint8), bytes(note))


def survives(coder: Coder, given: Content, sent: Content, broken: Content) -> None:
    """Assert that a damaged content is refused, or read as one of the right shape."""
    try:
        read = coder.decode(broken)
    except FilterError as error:
        assert re.search(r"\w", str(error)) and "\n" not in str(error)
        return
    if broken.note == sent.note:
        assert (read.values.dtype, read.values.shape) == (given.values.dtype, given.values.shape)
        assert (read.keys is None) == (given.keys is None)
    if read.keys is not None:
        assert read.keys.dtype in (KEY64, KEY128) and ascend(read.keys)
    if read.values.dtype != np.uint8:
        assert read.values.ndim == 2 and read.values.dtype in DTYPES
