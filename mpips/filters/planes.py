"""Byte planes: the first bytes of all numbers, then their second bytes, and so on (the "shuffle" of HDF5 and Blosc).

Neighbouring numbers are similar in sign, exponent and leading digits only. In planes, a compressor finds these bytes
side by side, and the planes of the other, noisy bytes need not be compressed at all. Planes may be anywhere in a
buffer, at given offsets.

Loops run over blocks that fit the first-level cache, and within one plane by plane, so that the compiler vectorizes
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel

Bytes = NDArray[np.uint8]
Words = NDArray[Any]
Offsets = NDArray[np.int64]

BLOCK = 1024
"""Numbers at a time."""
# Types of read-only arrays.
_BYTES, _OFFSETS, _KEYS = (f"Array({t}, 1, 'C', True)" for t in ("uint8", "int64", "uint64"))


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view of an array of any dtype, in C order and aligned; copied only if necessary."""
    flags = array.flags
    view = array.view() if flags.c_contiguous and flags.aligned else array.copy("C")
    view.flags.writeable = False
    return view


def words_of(values: NDArray[Any]) -> Words:
    """View numbers of 4 or 8 bytes as flat u4[n] or u8[n], read-only; copied only if necessary."""
    flat = read_only(values).reshape(-1)
    return flat.view(np.uint32 if flat.itemsize == 4 else np.uint64)


def bytes_of(values: NDArray[Any]) -> Bytes:
    """View any values as flat u1[n], read-only; copied only if necessary."""
    return read_only(values).reshape(-1).view(np.uint8)


@kernel(*(f"void(Array({t}, 1, 'C', True), i8, i8, {_OFFSETS}, u1[::1])" for t in ("uint32", "uint64")))
def split(words: Words, first: int, step: int, offsets: Offsets, body: Bytes) -> None:
    """Write byte j (0: the lowest) of words first, first + step ... into body from offsets[j] on."""
    count = (len(words) - first + step - 1) // step
    column = np.empty(BLOCK if step > 1 else 0, words.dtype)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        if step > 1:
            for i in range(size):
                column[i] = words[first + (begin + i) * step]
            block = column[:size]
        else:
            block = words[begin + first : begin + first + size]
        for j in range(words.itemsize):
            plane = body[offsets[j] + begin : offsets[j] + begin + size]
            shift = words.dtype.type(8 * j)
            for i in range(size):
                plane[i] = np.uint8(block[i] >> shift)


@kernel(*(f"void({_BYTES}, {_BYTES}, {_OFFSETS}, i8, i8, {t}[::1])" for t in ("u4", "u8")))
def join(body: Bytes, other: Bytes, offsets: Offsets, first: int, step: int, words: Words) -> None:
    """Invert `split`: byte j of the words is in body from offsets[j] on; if that is < 0, in other from ~offsets[j]."""
    count = (len(words) - first + step - 1) // step
    column = np.empty(BLOCK if step > 1 else 0, words.dtype)
    for begin in range(0, count, BLOCK):
        size = min(BLOCK, count - begin)
        block = column[:size] if step > 1 else words[begin + first : begin + first + size]
        for j in range(words.itemsize):
            at = offsets[j]
            plane = (
                body[at + begin : at + begin + size] if at >= 0 else other[~at + begin : ~at + begin + size]
            )
            shift = words.dtype.type(8 * j)
            if j == 0:
                for i in range(size):
                    block[i] = plane[i]
            else:
                for i in range(size):
                    block[i] |= words.dtype.type(plane[i]) << shift
        if step > 1:
            for i in range(size):
                words[first + (begin + i) * step] = block[i]


@kernel(f"void({_KEYS}, u8[::1])")
def deltas(keys: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    """Write the first key, then the difference of each key to the one before."""
    if len(keys):
        out[0] = keys[0]
    for i in range(1, len(keys)):
        out[i] = keys[i] - keys[i - 1]


@kernel(f"b1({_KEYS}, u8[::1])")
def sums(steps: NDArray[np.uint64], out: NDArray[np.uint64]) -> bool:
    """Invert `deltas`; return whether the keys are sorted and unique."""
    rises = True
    for i in range(len(steps)):
        out[i] = steps[i] + out[i - 1] if i else steps[i]
        rises &= i == 0 or out[i] > out[i - 1]
    return rises
