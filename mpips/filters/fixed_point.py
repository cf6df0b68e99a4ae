"""Fixed point: numbers in one or two bytes, by stochastic rounding, which is unbiased (NIPS companion paper).

The smallest and the largest number of each column are sent. The interval between them is divided into 2^(8b) - 2 equal
steps, b bytes per code. A number between two steps is rounded up with the probability that makes the expectation the
number itself, to some 2^-32 of a step and to the rounding of the type. Code 0 is zero: zeros stay zero, and -0.0
becomes 0.0. The end points are exact.

    smallest and largest of each column, f8 | codes, column by column, each in byte planes

The random numbers are a hash of the job's seed, of the request's origin, shard and time, and of the place in the
message: there is no state, and a repeated run is the same to the bit. A message is sent unchanged, with an empty note,
if it has integers, numbers that are not finite, or a column whose spread overflows the type.

With feedback, the rounding error of each number is kept and added to the next one of the same key. So at any time the
sum of what has arrived differs from the sum of what was pushed by the error of one step. A zero is not a push: the
error of its key is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError, InputError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held_rows import applies, keys_of
from mpips.filters.planes import BLOCK, Bytes, bytes_of, read_only, words_of
from mpips.filters.random_skip import stream_of
from mpips.jit.kernel import kernel
from mpips.transport.message import CODES, DTYPES

Rows = NDArray[Any]
Bounds = NDArray[np.float64]
Places = slice | NDArray[np.intp]
# Type of the values, bytes of a code, rows, width.
_NOTE = struct.Struct("<BBxxIqq")
_MAGIC = 0x66697870
# Constants of C. Wellons' triple32.
_M1, _M2, _M3 = np.uint32(0xED5AD4BB), np.uint32(0xAC4C1B51), np.uint32(0x31848BAB)
_GOLDEN = np.uint32(0x9E3779B9)


@dataclass(frozen=True)
class FixedPoint:
    """Settings: how numbers are rounded."""

    bytes: Literal[1, 2] = 1
    """Bytes per number: 1 for steps of 1/254 of the range, 2 for 1/65534."""
    feedback: bool = False
    """Add the rounding error of a key to its next push; this needs the memory of a second copy of keys and values."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is applied to; none: all of floating-point numbers."""
    least: int = field(default=8192, metadata={"at_least": 0, "at_most": 2**62})
    """Bytes below which messages are sent unchanged: encoding them takes longer than it saves."""


@filter_("fixed_point", FixedPoint)
def fixed_point(settings: FixedPoint) -> Coder:
    """Return the coder that rounds numbers stochastically to one or two bytes.

    With feedback, for additive pushes (About.sums) only, its state has "keys", u64[m], and "rows", [m, width] of the
    vector's type: the sum of what was pushed minus the sum of what has arrived.
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
        state, places = _with_rows_of(state, keys, values, about)
        # A view, or a copy where the places are not contiguous.
        residuals = state["rows"][places]
        pushed, residual = read_only(values).reshape(-1), residuals.reshape(-1)
        corrected = np.empty_like(values, order="C")
        _add(pushed, read_only(residual), corrected.reshape(-1))
        packed = _pack(content.keys, corrected, settings.bytes, about)
        if packed is None:
            return state, content
        _update_residual(pushed, read_only(decode(packed).values).reshape(-1), residual)
        if not isinstance(places, slice):
            state["rows"][places] = residuals
        return state, packed

    def decode(content: Content) -> Content:
        return _unpack(content) if content.note else content

    return Coder(encode, decode, rounds=True)


def _pack(keys: NDArray[np.uint64] | None, rows: Rows, size: int, about: About) -> Content | None:
    """Round rows to codes of `size` bytes; None if that is impossible or does not pay."""
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
        _quantize(flat, c, width, bounds[c, 0], scales[c], size, a, b, body[front + c * n * size :])
    return Content(keys, body, _NOTE.pack(CODES[dtype], size, _MAGIC, n, width))


def _bounds(flat: Rows, width: int) -> Bounds:
    """Return the smallest and the largest nonzero number of each column, f8[width, 2]; NaN if a column has one."""
    words = words_of(flat).view(f"i{flat.itemsize}")
    ends = np.array([_ends(words, c, width) for c in range(width)], words.dtype)
    bounds = _ordered(ends).view(flat.dtype).astype(np.float64)
    bounds[ends[:, 0] > ends[:, 1]] = 0
    return bounds


def _ordered(words: NDArray[Any]) -> NDArray[Any]:
    """Map the bits of floating-point numbers to integers of the same order, and back."""
    ordered: NDArray[Any] = words ^ (words >> (8 * words.itemsize - 1) & np.iinfo(words.dtype).max)
    return ordered


def _unpack(content: Content) -> Content:
    """Decode codes to numbers.

    Raises:
        FilterError: note and payload are not valid outputs of `_pack`.
    """
    payload, note = content.values, content.note
    if len(note) != _NOTE.size:
        raise FilterError(f"note has {len(note)} bytes, expected {_NOTE.size}")
    code, size, magic, n, width = _NOTE.unpack(note)
    if magic != _MAGIC or code >= len(DTYPES) or DTYPES[code].kind != "f" or size not in (1, 2):
        raise FilterError("note is of another filter or version")
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise FilterError(f"payload is {payload.ndim}-d {payload.dtype}, expected 1-d uint8")
    front = 16 * width
    if min(n, width) <= 0 or front + n * width * size != len(payload):
        raise FilterError(f"payload has {len(payload)} bytes for {n} rows of {width} numbers of {size} bytes")
    dtype = DTYPES[code]
    # A copy, since the payload may be unaligned.
    bounds = bytes_of(payload[:front]).copy().view(np.float64).reshape(width, 2)
    if not (np.isfinite(bounds).all() and (bounds[:, 0] <= bounds[:, 1]).all()):
        raise FilterError("smallest and largest number of a column are not in order")
    values = np.empty((n, width), dtype)
    flat, body = values.reshape(-1), read_only(payload)
    for c in range(width):
        _dequantize(body[front + c * n * size :], size, bounds[c, 0], bounds[c, 1], c, width, flat)
    return Content(content.keys, values)


# --- Feedback ----------------------------------------------------------------------------------------


def _with_rows_of(
    state: State, keys: NDArray[np.uint64] | None, values: Rows, about: About
) -> tuple[State, Places]:
    """Return a state with a row for each of a message's keys, and the places of these rows.

    Raises:
        InputError: its rows have another type or width.
    """
    if "keys" not in state:
        listed = keys_of(Content(keys, values), about).copy()
        return {"keys": listed, "rows": np.zeros_like(values, order="C")}, slice(0, len(listed))
    known_keys, rows = state["keys"], np.require(state["rows"], requirements=["C", "A", "W"])
    if (rows.dtype, rows.shape[1]) != (values.dtype, values.shape[1]):
        raise InputError(
            f"filter fixed_point: a push to {about.vector!r} has rows of {values.shape[1]} {values.dtype}, "
            f"the errors of earlier pushes are {rows.shape[1]} {rows.dtype}"
        )
    first = np.uint64(about.range.begin) if keys is None else keys[0]
    last = np.uint64(about.range.end - 1) if keys is None else keys[-1]
    at = int(np.searchsorted(known_keys, first))
    # Mostly all keys are known and contiguous.
    stretch = known_keys[at : at + len(values)]
    aligned = len(stretch) == len(values) and stretch[0] == first and stretch[-1] == last
    if aligned and (keys is None or np.array_equal(stretch, keys)):
        return {"keys": known_keys, "rows": rows}, slice(at, at + len(values))
    keys = keys_of(Content(keys, values), about)
    places = np.searchsorted(known_keys, keys)
    new = known_keys[np.minimum(places, len(known_keys) - 1)] != keys
    if not new.any():
        return {"keys": known_keys, "rows": rows}, places
    state = {
        "keys": np.insert(known_keys, places[new], keys[new]),
        "rows": np.insert(rows, places[new], 0, axis=0),
    }
    return state, places + np.cumsum(new) - new


# --- Kernels -----------------------------------------------------------------------------------------


@kernel(*(f"UniTuple(i8, 2)(Array({t}, 1, 'C', True), i8, i8)" for t in ("int32", "int64")))
def _ends(words: Rows, first: int, step: int) -> tuple[int, int]:
    """Return the smallest and the largest of the nonzero words first, first + step ..., in the order of `_ordered`."""
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
def _quantize(
    values: Rows, first: int, step: int, low: float, scale: float, size: int, a: int, b: int, codes: Bytes
) -> None:
    """Write the codes of values first, first + step ..., each of `size` bytes; a and b seed the random numbers."""
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
def _dequantize(
    codes: Bytes, size: int, low: float, high: float, first: int, step: int, values: Rows
) -> None:
    """Decode the codes of `_quantize`."""
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
def _add(pushed: Rows, residual: Rows, corrected: Rows) -> None:
    """Add the earlier errors to the pushed numbers; zeros stay zero."""
    for i in range(len(pushed)):
        corrected[i] = pushed[i] + residual[i] if pushed[i] != 0 else 0


@kernel(
    *(f"void(Array({t}, 1, 'C', True), Array({t}, 1, 'C', True), {t}[::1])" for t in ("float32", "float64"))
)
def _update_residual(pushed: Rows, received: Rows, residual: Rows) -> None:
    """Set the errors to what has not arrived, where a number was pushed."""
    for i in range(len(pushed)):
        if pushed[i] != 0:
            residual[i] = np.float64(pushed[i]) + np.float64(residual[i]) - np.float64(received[i])
