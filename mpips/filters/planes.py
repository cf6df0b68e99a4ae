"""Byte planes: the first bytes of all numbers, then their second bytes, and so on (the "shuffle" of HDF5 and Blosc).

Neighbours in a list of numbers resemble each other in sign, exponent and leading digits, and in nothing else. With the
bytes sorted by what they mean, a compressor finds the former side by side, and the latter, which is noise, can be left
out of its work altogether. Planes may lie anywhere in a buffer, wherever their offsets say.

Loops go by blocks that stay in the first-level cache, and within one plane by plane: so the compiler vectorizes them.
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
_BYTES, _OFFSETS, _KEYS = (f"Array({t}, 1, 'C', True)" for t in ("uint8", "int64", "uint64"))  # read-only


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """View an array as kernels take what they only read: in C order and aligned; copied only if it is not so."""
    flags = array.flags
    view = array.view() if flags.c_contiguous and flags.aligned else array.copy("C")
    view.flags.writeable = False
    return view


def words_of(values: NDArray[Any]) -> Words:
    """View numbers of 4 or 8 bytes as flat u4[n] or u8[n], read-only; copied only if they are not in C order."""
    flat = read_only(values).reshape(-1)
    return flat.view(np.uint32 if flat.itemsize == 4 else np.uint64)


def bytes_of(values: NDArray[Any]) -> Bytes:
    """View any values as flat u1[n], read-only; copied only if they are not in C order."""
    return read_only(values).reshape(-1).view(np.uint8)


@kernel(*(f"void(Array({t}, 1, 'C', True), i8, i8, {_OFFSETS}, u1[::1])" for t in ("uint32", "uint64")))
def split(words: Words, first: int, step: int, offsets: Offsets, body: Bytes) -> None:
    """Write byte j, the lowest being the first, of words first, first + step ... into body from offsets[j] on."""
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
    """Undo `split`: byte j of the words is in body from offsets[j] on, or in other from ~offsets[j] if that is < 0."""
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
    """Write the first key, and then how far each is from the one before."""
    if len(keys):
        out[0] = keys[0]
    for i in range(1, len(keys)):
        out[i] = keys[i] - keys[i - 1]


@kernel(f"b1({_KEYS}, u8[::1])")
def sums(steps: NDArray[np.uint64], out: NDArray[np.uint64]) -> bool:
    """Undo `deltas`; return whether the keys are sorted and unique."""
    rises = True
    for i in range(len(steps)):
        out[i] = steps[i] + out[i - 1] if i else steps[i]
        rises &= i == 0 or out[i] > out[i - 1]
    return rises
