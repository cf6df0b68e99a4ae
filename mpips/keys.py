"""Keys of 64 bits, and of 128 bits, whose hashes do not collide (paper, section 3.1).

A list of 64-bit keys is u64[n]. A list of 128-bit keys is KEY128[n], an array of pairs, the upper half first; the same
memory is u64[n, 2]. Keys are ordered as pairs.

The ring, key ranges and clocks divide the space of the *upper* halves: a `KeyRange` of a vector with 128-bit keys has
all keys whose upper half lies in it. So all that depends on ranges only is the same for both kinds of keys, and keys
with the same upper half are on the same server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import UsageError
from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix

KEY64 = np.dtype("<u8")
KEY128 = np.dtype([("high", "<u8"), ("low", "<u8")])
"""The dtype of a list of 128-bit keys.

>>> KEY128.itemsize, KEY128.names
(16, ('high', 'low'))
"""

KeyArray = NDArray[Any]
"""u64[n], or KEY128[n]."""


def check_unmasked(array: object, what: str) -> None:
    """Raise UsageError for a masked array: what is masked would count as data.

    >>> check_unmasked(np.ones(2), "rows")
    """
    if isinstance(array, np.ma.MaskedArray):
        raise UsageError(f"{what} are a masked array; fill it, or leave out what is masked")


def dtype_of(key_bits: int) -> np.dtype[Any]:
    """Return the dtype of a list of keys of 64 or 128 bits; UsageError for another number."""
    if key_bits not in (64, 128):
        raise UsageError(f"key_bits {key_bits!r} is neither 64 nor 128")
    return KEY64 if key_bits == 64 else KEY128


def is_wide(keys: KeyArray) -> bool:
    """Return whether keys have 128 bits."""
    return keys.dtype.names is not None


def upper(keys: KeyArray) -> NDArray[np.uint64]:
    """Return the part of keys that ranges divide: 64-bit keys themselves, the upper halves of 128-bit ones."""
    return keys["high"] if keys.dtype.names else keys


def pairs(keys: KeyArray) -> KeyArray:
    """View keys as numbers: 128-bit ones as u64[n, 2], 64-bit ones as they are."""
    return np.ascontiguousarray(keys).view(KEY64).reshape(-1, 2) if keys.dtype.names else keys


def from_pairs(numbers: NDArray[np.uint64]) -> KeyArray:
    """Invert `pairs`: u64[n, 2] becomes KEY128[n]."""
    return np.ascontiguousarray(numbers, KEY64).view(KEY128)[:, 0] if numbers.ndim == 2 else numbers


def ascend(keys: KeyArray) -> bool:
    """Return whether keys, of any memory order, are sorted and unique."""
    if not keys.dtype.names:
        return not np.any(keys[1:] <= keys[:-1])
    return bool(ascending_pairs(plain_pairs(keys)))


def order(keys: KeyArray, once: bool = False) -> NDArray[np.intp]:
    """Return the places of keys in key order, stable; faster if each key is there `once`."""
    if keys.dtype.names:
        return np.lexsort((keys["low"], keys["high"]))
    return np.argsort(keys, kind=None if once else "stable")


def numbers(keys: KeyArray) -> list[int]:
    """Return keys as integers, high * 2**64 + low for 128-bit ones.

    >>> numbers(from_pairs(np.array([[1, 2]], np.uint64)))
    [18446744073709551618]
    """
    found: list[Any] = keys.tolist()
    return [(high << 64) + low for high, low in found] if keys.dtype.names else found


def plain_pairs(keys: KeyArray) -> NDArray[np.uint64]:
    """Return 128-bit keys as kernels take them, u64[n, 2]: a copy if they are a read-only or unaligned view."""
    numbers = pairs(keys)
    return numbers if numbers.flags.carray else np.array(numbers, KEY64)


@kernel("b1(u8[:,::1])")
def ascending_pairs(keys: NDArray[np.uint64]) -> bool:
    """Return whether pairs are sorted and unique."""
    for i in range(1, len(keys)):
        high, before = keys[i, 0], keys[i - 1, 0]
        if high < before or (high == before and keys[i, 1] <= keys[i - 1, 1]):
            return False
    return True


@kernel("void(u8[:,::1], u8[::1])")
def _fold(keys: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    for i in range(len(keys)):
        out[i] = keys[i, 1] ^ mix(keys[i, 0])


def folded(keys: KeyArray) -> NDArray[np.uint64]:
    """Return 64-bit numbers that keys are hashed by: 64-bit keys themselves, low ^ mix(high) of 128-bit ones."""
    if not keys.dtype.names:
        return keys
    numbers = plain_pairs(keys)
    out = np.empty(len(numbers), KEY64)
    _fold(numbers, out)
    return out


def ranked(*lists: KeyArray) -> tuple[KeyArray, list[NDArray[np.uint64]]]:
    """Return the sorted union of lists of 128-bit keys, and of each list u64[n], the places of its keys there."""
    union, places = np.unique(np.concatenate(lists), return_inverse=True)
    ends = np.cumsum([len(each) for each in lists])[:-1]
    return union, np.split(places.reshape(-1).astype(KEY64), ends)


def text_keys(texts: Iterable[str | bytes], key_bits: int = 128) -> KeyArray:
    """Return the keys of texts (str: as UTF-8), in their order, neither sorted nor unique: their BLAKE2b hashes.

    Two of n different texts have the same key with a probability of about n^2 / 2^(key_bits + 1): of 10^9 texts, 3 % at
    64 bits, and 10^-21 at 128.

    Raises:
        UsageError: `key_bits` is neither 64 nor 128.

    >>> text_keys(["user=17", "item=4"]).dtype == KEY128
    True
    """
    dtype = dtype_of(key_bits)
    raw = b"".join(
        hashlib.blake2b(text.encode() if isinstance(text, str) else text, digest_size=dtype.itemsize).digest()
        for text in texts
    )
    return np.frombuffer(bytearray(raw), dtype)
