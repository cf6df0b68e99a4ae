"""Zero removal: sends a bitmap of the nonzero values, and these values (paper, section 4.2).

    bitmap, 1 bit per value, the lowest first, in words of 8 bytes | byte planes of the nonzero values

A value is zero if none of its bits is set: -0.0 and NaN are sent, so the filter is lossless. The planes
(mpips/filters/planes.py) help a compressor after this filter. Content that would shrink by less than a tenth is sent
unchanged, with an empty note. There is no state.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.planes import Words, bytes_of, join, read_only, split, words_of
from mpips.jit.kernel import kernel
from mpips.transport.message import CODES, DTYPES

PAYS = 0.9
"""The largest ratio of encoded to original bytes that is worth it."""
# Type of the values, rows, width, number of nonzero values.
_NOTE = struct.Struct("<BxxxIqqq")
_MAGIC = 0x7A65726F
_NO_BYTES = read_only(np.empty(0, np.uint8))
_READ = ("Array(uint32, 1, 'C', True)", "Array(uint64, 1, 'C', True)")
_ONE = np.uint64(1)


@dataclass(frozen=True)
class Zeros:
    """Settings: where zeros are removed."""

    least: int = field(default=8192, metadata={"at_least": 0, "at_most": 2**62})
    """Bytes below which messages are sent unchanged: encoding them takes longer than it saves."""


@filter_("zeros", Zeros)
def zeros(settings: Zeros) -> Coder:
    """Return the coder that removes zeros from rows; keys, and values encoded as bytes, are unchanged."""

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        return state, (pack(content) or content) if content.nbytes >= settings.least else content

    def decode(content: Content) -> Content:
        return unpack(content) if content.note else content

    return Coder(encode, decode)


def pack(content: Content) -> Content | None:
    """Remove the zeros of the values; None if it does not pay."""
    values = content.values
    if values.dtype == np.uint8 or not values.size:
        return None
    words = words_of(values)
    count = _count(words)
    front = _bitmap_bytes(len(words))
    size = front + count * words.itemsize
    if size + _NOTE.size > PAYS * values.nbytes:
        return None
    body = np.empty(size, np.uint8)
    rest = np.empty(count + 1, words.dtype)
    _pack_nonzero(words, body[:front].view(np.uint64), rest)
    split(read_only(rest[:count]), 0, 1, read_only(front + np.arange(words.itemsize) * count), body)
    width = values.shape[1] if values.ndim == 2 else 1
    note = _NOTE.pack(CODES[values.dtype], _MAGIC, len(values), width, count)
    return Content(content.keys, body, note)


def unpack(content: Content) -> Content:
    """Invert `pack`.

    Raises:
        FilterError: note and payload are not valid outputs of it.
    """
    payload, note = content.values, content.note
    if len(note) != _NOTE.size:
        raise FilterError(f"note has {len(note)} bytes, expected {_NOTE.size}")
    code, magic, rows, width, count = _NOTE.unpack(note)
    if magic != _MAGIC or code >= len(DTYPES):
        raise FilterError("note is of another filter or version")
    if payload.dtype != np.uint8 or payload.ndim != 1:
        raise FilterError(f"payload is {payload.ndim}-d {payload.dtype}, expected 1-d uint8")
    dtype = DTYPES[code]
    total, front = rows * width, _bitmap_bytes(rows * width)
    if min(rows, width, count) < 0 or front + count * dtype.itemsize != len(payload):
        raise FilterError(
            f"payload has {len(payload)} bytes for {rows} rows of {width} {dtype}, {count} of the numbers nonzero"
        )
    # A copy, since the payload may be unaligned.
    bitmap = bytes_of(payload[:front]).copy().view(np.uint64)
    if not _fits(read_only(bitmap), total, count):
        raise FilterError(f"bitmap does not have {count} bits set among the first {total}")
    word = np.uint32 if dtype.itemsize == 4 else np.uint64
    rest, words = np.empty(count + 1, word), np.empty(total, word)
    places = read_only(front + np.arange(dtype.itemsize) * count)
    join(read_only(payload), _NO_BYTES, places, 0, 1, rest[:count])
    rest[count] = 0
    _unpack_nonzero(read_only(bitmap), read_only(rest), words)
    return Content(content.keys, words.view(dtype).reshape(rows, width))


def _bitmap_bytes(values: int) -> int:
    return -(-values // 64) * 8


@kernel(*(f"i8({t})" for t in _READ))
def _count(words: Words) -> int:
    """Count the nonzero words."""
    count = 0
    for i in range(len(words)):
        count += words[i] != 0
    return count


@kernel(*(f"void({t}, u8[::1], {r}[::1])" for t, r in zip(_READ, ("u4", "u8"), strict=True)))
def _pack_nonzero(words: Words, bitmap: NDArray[np.uint64], rest: Words) -> None:
    """Write a bit for each word, and the nonzero words packed; rest has one element more than needed."""
    at = 0
    for begin in range(0, len(words), 64):
        bits = np.uint64(0)
        for i in range(min(64, len(words) - begin)):
            word = words[begin + i]
            # A zero is overwritten by the next word, to avoid an unpredictable branch.
            rest[at] = word
            at += word != 0
            bits |= np.uint64(word != 0) << np.uint64(i)
        bitmap[begin // 64] = bits


@kernel(*(f"void({_READ[1]}, {t}, {r}[::1])" for t, r in zip(_READ, ("u4", "u8"), strict=True)))
def _unpack_nonzero(bitmap: NDArray[Any], rest: Words, words: Words) -> None:
    """Invert `_pack_nonzero`; rest has one element more than there are bits set."""
    at = 0
    for begin in range(0, len(words), 64):
        bits = bitmap[begin // 64]
        for i in range(min(64, len(words) - begin)):
            there = (bits >> np.uint64(i)) & _ONE
            words[begin + i] = rest[at] * words.dtype.type(there)
            at += there != 0


@kernel(f"b1({_READ[1]}, i8, i8)")
def _fits(bitmap: NDArray[Any], total: int, count: int) -> bool:
    """Return whether exactly `count` bits are set, all of them among the first `total`."""
    found = 0
    for word in bitmap:
        bits = word
        while bits != 0:
            bits &= bits - _ONE
            found += 1
    last = total & 63
    return found == count and (last == 0 or bitmap[len(bitmap) - 1] >> np.uint64(last) == 0)
