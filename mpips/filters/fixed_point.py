"""Fixed point: numbers in one or two bytes, rounded at random so that on average nothing changes (paper, section 5.1).

Of each column the smallest and the largest number are sent, and of each number how far it is from the one to the
other, in 2^(8b) - 2 equal steps of which the number lies between two: the upper one is taken with the probability that
makes the expectation the number itself, to some 2^-32 of a step and to the rounding of the type. Code 0 is zero:
zeros stay zero, and -0.0 becomes one. The end points are exact.

    smallest and largest of each column, f8 | codes, column by column, each in byte planes

What is drawn is a hash of the job's seed, of the request's origin, shard and time, and of the place in the message: no
state, and a run that is repeated repeats to the bit. Numbers that are not finite, or spread over more than the
type can hold, make a message go as it came, with an empty note, and so do integers.

With feedback the error of each number is kept and added to the next one of the same key. So at any time the sum of
what has arrived differs from the sum of what was pushed by the error of one step. A zero is no push: its key's error
waits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError, InputError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held import applies, keys_of
from mpips.filters.planes import BLOCK, Bytes, bytes_of, read_only, words_of
from mpips.filters.random_skip import stream_of
from mpips.jit.kernel import kernel
from mpips.transport.message import CODES, DTYPES

Rows = NDArray[Any]
Bounds = NDArray[np.float64]
Places = slice | NDArray[np.intp]
_NOTE = struct.Struct("<BBxxIqq")  # type of the values, bytes of a code, rows, width
_MAGIC = 0x66697870
_M1, _M2, _M3 = np.uint32(0xED5AD4BB), np.uint32(0xAC4C1B51), np.uint32(0x31848BAB)  # C. Wellons' triple32
_GOLDEN = np.uint32(0x9E3779B9)


@dataclass(frozen=True)
class FixedPoint:
    """How numbers are rounded."""

    bytes: Literal[1, 2] = 1
    """Of each number: 1 for steps of 1/254 of the range, 2 for 1/65534."""
    feedback: bool = False
    """Add the rounding error of a key to its next push; it takes the memory of a second copy of keys and values."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is for; none: all of floating-point numbers."""
    least: int = field(default=8192, metadata={"at_least": 0})
    """Bytes below which messages are left alone: what takes a short time to send takes longer to encode."""


@filter_("fixed_point", FixedPoint)
def fixed_point(settings: FixedPoint) -> Coder:
    """Make the filter that rounds numbers at random to one or two bytes.

    With feedback, and for pushes that add up (About.sums) only, its state has "keys", u64[m], and "rows", [m, width] of
    the vector's type: what the sum of the numbers that have arrived still lacks.
    """

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        values = content.values
        if values.dtype.kind != "f" or not values.size or not applies(settings.vectors, about):
            return state, content
        if content.nbytes < settings.least:
            return state, content
        values = values if values.ndim == 2 else values[:, None]
        keys = content.keys if content.keys is not None else about.keys
        known = len(values) == (about.range.span if keys is None else len(keys))
        if not (settings.feedback and about.sums and known):
            return state, _pack(content.keys, values, settings.bytes, about) or content
        state, places = _remembered(state, keys, values, about)
        held = state["rows"][places]  # itself, or a copy where the places are not side by side
        pushed, owed = read_only(values).reshape(-1), held.reshape(-1)
        due = np.empty_like(values, order="C")
        _add(pushed, read_only(owed), due.reshape(-1))
        packed = _pack(content.keys, due, settings.bytes, about)
        if packed is None:
            return state, content
        _settle(pushed, read_only(decode(packed).values).reshape(-1), owed)
        if not isinstance(places, slice):
            state["rows"][places] = held
        return state, packed

    def decode(content: Content) -> Content:
        return _unpack(content) if content.note else content

    return Coder(encode, decode, rounds=True)


def _pack(keys: NDArray[np.uint64] | None, rows: Rows, size: int, about: About) -> Content | None:
    """Round rows to codes of so many bytes; None if it cannot be done or does not pay."""
    (n, width), dtype = rows.shape, rows.dtype
    top = 2 ** (8 * size) - 1
    front = 16 * width
    total = front + rows.size * size
    if total + _NOTE.size >= rows.size * dtype.itemsize:
        return None
    flat = read_only(rows).reshape(-1)
    with np.errstate(all="ignore"):
        bounds = _bounds(flat, width)
        spans = bounds[:, 1] - bounds[:, 0]
        scales = np.where(spans == 0, 0, (top - 1) / spans)
        if not (np.isfinite(bounds.astype(dtype)).all() and np.isfinite(spans + scales).all()):
            return None
    body = np.empty(total, np.uint8)
    body[:front] = bytes_of(bounds)
    a, b = divmod(int(stream_of(about)), 2**32)
    for c in range(width):
        _round(flat, c, width, bounds[c, 0], scales[c], size, a, b, body[front + c * n * size :])
    return Content(keys, body, _NOTE.pack(CODES[dtype], size, _MAGIC, n, width))


def _bounds(flat: Rows, width: int) -> Bounds:
    """Give the smallest and the largest number of each column that is not zero, f8[width, 2]; NaN if there is one."""
    words = words_of(flat).view(f"i{flat.itemsize}")
    ends = np.array([_ends(words, c, width) for c in range(width)], words.dtype)
    bounds = _ordered(ends).view(flat.dtype).astype(np.float64)
    bounds[ends[:, 0] > ends[:, 1]] = 0
    return bounds


def _ordered(words: NDArray[Any]) -> NDArray[Any]:
    """Turn the bits of floating-point numbers into integers of the same order, and back."""
    ordered: NDArray[Any] = words ^ (words >> (8 * words.itemsize - 1) & np.iinfo(words.dtype).max)
    return ordered


def _unpack(content: Content) -> Content:
    """Turn codes into numbers.

    Raises:
        FilterError: note and payload are none that `_pack` makes.
    """
    payload, note = content.values, content.note
    if len(note) != _NOTE.size:
        raise FilterError(f"a note of {len(note)} bytes where {_NOTE.size} are due")
    code, size, magic, n, width = _NOTE.unpack(note)
    if magic != _MAGIC or code >= len(DTYPES) or DTYPES[code].kind != "f" or size not in (1, 2):
        raise FilterError("a note of another filter or version")
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise FilterError("what was rounded has come as something else than bytes")
    front = 16 * width
    if min(n, width) <= 0 or front + n * width * size != len(payload):
        raise FilterError(f"{len(payload)} bytes for {n} rows of {width} numbers of {size} bytes")
    dtype = DTYPES[code]
    bounds = bytes_of(payload[:front]).copy().view(np.float64).reshape(width, 2)  # it may lie at any address
    if not (np.isfinite(bounds).all() and (bounds[:, 0] <= bounds[:, 1]).all()):
        raise FilterError("bounds of a column that are none")
    values = np.empty((n, width), dtype)
    flat, body = values.reshape(-1), read_only(payload)
    for c in range(width):
        _widen(body[front + c * n * size :], size, bounds[c, 0], bounds[c, 1], c, width, flat)
    return Content(content.keys, values)


# --- feedback ----------------------------------------------------------------------------------------


def _remembered(
    state: State, keys: NDArray[np.uint64] | None, values: Rows, about: About
) -> tuple[State, Places]:
    """Give a state that has a row for each of a message's keys, and where these rows are.

    Raises:
        InputError: it has rows of another kind.
    """
    if "keys" not in state:
        listed = keys_of(Content(keys, values), about).copy()
        return {"keys": listed, "rows": np.zeros_like(values, order="C")}, slice(0, len(listed))
    held, rows = state["keys"], np.require(state["rows"], requirements=["C", "A", "W"])
    if (rows.dtype, rows.shape[1]) != (values.dtype, values.shape[1]):
        raise InputError(
            f"filter fixed_point: a push to {about.vector!r} has rows of {values.shape[1]} {values.dtype}, "
            f"and the errors of earlier ones are {rows.shape[1]} {rows.dtype}"
        )
    first = np.uint64(about.range.begin) if keys is None else keys[0]
    last = np.uint64(about.range.end - 1) if keys is None else keys[-1]
    at = int(np.searchsorted(held, first))
    stretch = held[at : at + len(values)]  # most often they are all there, side by side
    aligned = len(stretch) == len(values) and stretch[0] == first and stretch[-1] == last
    if aligned and (keys is None or np.array_equal(stretch, keys)):
        return {"keys": held, "rows": rows}, slice(at, at + len(values))
    keys = keys_of(Content(keys, values), about)
    places = np.searchsorted(held, keys)
    new = held[np.minimum(places, len(held) - 1)] != keys
    if not new.any():
        return {"keys": held, "rows": rows}, places
    state = {
        "keys": np.insert(held, places[new], keys[new]),
        "rows": np.insert(rows, places[new], 0, axis=0),
    }
    return state, places + np.cumsum(new) - new


# --- kernels -----------------------------------------------------------------------------------------


@kernel(*(f"UniTuple(i8, 2)(Array({t}, 1, 'C', True), i8, i8)" for t in ("int32", "int64")))
def _ends(words: Rows, first: int, step: int) -> tuple[int, int]:
    """Give the smallest and the largest of words first, first + step ... as `_ordered` does, zeros left out."""
    most = np.iinfo(words.dtype).max
    low, high = most, -most - 1
    for i in range(first, len(words), step):
        word = words[i]
        ordered = word ^ ((word >> (8 * words.itemsize - 1)) & most)
        zero = word & most == 0
        low = min(low, most if zero else ordered)
        high = max(high, -most - 1 if zero else ordered)
    return low, high


@kernel(
    *(f"void(Array({t}, 1, 'C', True), i8, i8, f8, f8, i8, u4, u4, u1[::1])" for t in ("float32", "float64"))
)
def _round(
    values: Rows, first: int, step: int, low: float, scale: float, size: int, a: int, b: int, codes: Bytes
) -> None:
    """Write the codes of values first, first + step ..., each of `size` bytes; a and b name the random numbers."""
    count = (len(values) - first + step - 1) // step
    steps = 254 if size == 1 else 65534
    column, block = np.empty(BLOCK), np.empty(BLOCK, np.int32)
    for begin in range(0, count, BLOCK):
        n = min(BLOCK, count - begin)
        for i in range(n):
            column[i] = values[first + (begin + i) * step]
        start = np.uint32(first + begin * step)
        for i in range(n):
            h = np.uint32(np.uint32(np.uint32(start + np.uint32(i * step)) * _GOLDEN) ^ np.uint32(a))
            h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * _M1)
            h = np.uint32(np.uint32(h ^ (h >> np.uint32(15)) ^ np.uint32(b)) * _M2)
            h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * _M3)
            h = np.uint32(h ^ (h >> np.uint32(14)))
            draw = (np.float64(np.int32(h >> np.uint32(1))) + 0.5) * 2.0**-31
            lower = np.int32((column[i] - low) * scale + draw)
            block[i] = 0 if column[i] == 0 else min(lower, np.int32(steps)) + 1
        for i in range(n):
            codes[begin + i] = np.uint8(block[i])
        if size == 2:
            for i in range(n):
                codes[count + begin + i] = np.uint8(block[i] >> 8)


@kernel(*(f"void(Array(uint8, 1, 'C', True), i8, f8, f8, i8, i8, {t}[::1])" for t in ("f4", "f8")))
def _widen(codes: Bytes, size: int, low: float, high: float, first: int, step: int, values: Rows) -> None:
    """Undo `_round`, but for the rounding."""
    count = (len(values) - first + step - 1) // step
    steps = 254 if size == 1 else 65534
    width = (high - low) / steps
    block, column = np.empty(BLOCK, np.int32), np.empty(BLOCK)
    for begin in range(0, count, BLOCK):
        n = min(BLOCK, count - begin)
        for i in range(n):
            block[i] = codes[begin + i]
        if size == 2:
            for i in range(n):
                block[i] |= np.int32(codes[count + begin + i]) << 8
        for i in range(n):
            code = block[i]
            value = high if code == steps + 1 else low + np.float64(np.int32(code - 1)) * width
            column[i] = 0.0 if code == 0 else value
        for i in range(n):
            values[first + (begin + i) * step] = column[i]


@kernel(
    *(f"void(Array({t}, 1, 'C', True), Array({t}, 1, 'C', True), {t}[::1])" for t in ("float32", "float64"))
)
def _add(pushed: Rows, owed: Rows, due: Rows) -> None:
    """Add to what is pushed what is owed from before; what is zero stays zero."""
    for i in range(len(pushed)):
        due[i] = pushed[i] + owed[i] if pushed[i] != 0 else 0


@kernel(
    *(f"void(Array({t}, 1, 'C', True), Array({t}, 1, 'C', True), {t}[::1])" for t in ("float32", "float64"))
)
def _settle(pushed: Rows, arrived: Rows, owed: Rows) -> None:
    """Leave owed what has not arrived, where something was pushed."""
    for i in range(len(pushed)):
        if pushed[i] != 0:
            owed[i] = np.float64(pushed[i]) + np.float64(owed[i]) - np.float64(arrived[i])
