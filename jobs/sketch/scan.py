"""Compiled kernels of the sources: random numbers, hashes of texts, and parsing of tables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpips import kernel
from mpips.data.kernels import mix

U8 = np.uint64
Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
Text = NDArray[np.uint8]

POS, LINE, CODE, AT, FOUND, STATE = range(6)
DONE, BAD_COLUMNS, BAD_WEIGHT = range(3)

_S32, _SPREAD = U8(32), U8(0x9E3779B97F4A7C15)
_FOLD, _LENGTH = U8(0xA0761D6478BD642F), U8(0xE7037ED1A0B428DB)
_TAB, _NEWLINE, _RETURN, _SPACE, _ZERO, _NINE = 9, 10, 13, 32, 48, 57


@kernel("f8(f8, f8)", inline=True)
def _area(x: float, less: float) -> float:
    """Integrate t^-s from 1 to x; less = 1 - s."""
    return math.log(x) if abs(less) < 1e-9 else (math.exp(less * math.log(x)) - 1.0) / less


@kernel("f8(f8, f8)", inline=True)
def _place(area: float, less: float) -> float:
    """Invert `_area`."""
    return math.exp(area) if abs(less) < 1e-9 else math.exp(math.log(1.0 + area * less) / less)


@kernel("u8(u8[::1], u8, f8, i8)")
def zipf(out: Keys, state: np.uint64, exponent: float, most: int) -> np.uint64:
    """Draw numbers k from 1 to `most` with probability proportional to k^-exponent; return the next state.

    Rejection-inversion (Hoermann, Derflinger, ACM TOMACS 6, 1996); the uniform numbers are those of splitmix64.
    """
    less = 1.0 - exponent
    low, high = _area(1.5, less) - 1.0, _area(most + 0.5, less)
    rejected_below = 2.0 - _place(_area(2.5, less) - math.exp(-exponent * math.log(2.0)), less)
    for i in range(len(out)):
        while True:
            state += _SPREAD
            area = high + np.float64(mix(state) >> U8(11)) * (low - high) / 9007199254740992.0
            x = _place(area, less)
            k = min(max(math.floor(x + 0.5), 1.0), float(most))
            if k - x <= rejected_below or area >= _area(k + 0.5, less) - math.exp(-exponent * math.log(k)):
                out[i] = U8(k)
                break
    return state


@kernel("void(u8[::1])")
def scramble(keys: Keys) -> None:
    """Map numbers to keys over all 64 bits, by a bijection."""
    for i in range(len(keys)):
        keys[i] = mix(keys[i])


@kernel("u8(u1[::1], i8, i8)")
def hashed(text: Text, begin: int, end: int) -> np.uint64:
    """Hash the bytes [begin, end) to 64 bits, eight at a time."""
    bits = U8(end - begin) * _LENGTH
    at = begin
    while at + 8 <= end:
        word = U8(0)
        for byte in range(8):
            word |= U8(text[at + byte]) << U8(8 * byte)
        bits = (bits ^ word) * _FOLD
        bits ^= bits >> _S32
        at += 8
    word = U8(0)
    for byte in range(end - at):
        word |= U8(text[at + byte]) << U8(8 * byte)
    return mix((bits ^ word) * _FOLD)


@kernel("void(u1[::1], i8[::1], i8[::1], u8[::1])")
def hash_all(text: Text, begins: Counts, ends: Counts, keys: Keys) -> None:
    """Hash the texts at some positions."""
    for i in range(len(keys)):
        keys[i] = hashed(text, begins[i], ends[i])


@kernel("void(u1[::1], i8[::1], i8, i8, i8, u8[::1], i8[::1], i8[::1], i8[::1])")
def parse(
    text: Text,
    state: Counts,
    separator: int,
    column: int,
    weight: int,
    keys: Keys,
    begins: Counts,
    ends: Counts,
    weights: Counts,
) -> None:
    """Find the keys of a block of whole lines, with their weights; empty fields and blank lines are not keys.

    column -1: a whole line is a key; weight -1: there are no weights. `state` is the position to begin at and, on
    return, the position and the reason of the stop: after a bad line, whose wrong field is AT. There must be room for
    as many keys as lines.
    """
    pos, line, found = state[POS], state[LINE], state[FOUND]
    state[CODE] = DONE
    while pos < len(text):
        line += 1
        first, place, begin, end, low, high = pos, 0, 0, 0, -1, -1
        if column < 0:
            while text[pos] != _NEWLINE:
                pos += 1
            begin, end = first, pos
            if end > begin and text[end - 1] == _RETURN:
                end -= 1
        else:
            field = pos
            while True:
                byte = text[pos]
                if byte == separator or byte == _NEWLINE:
                    stop = pos
                    if byte == _NEWLINE and stop > field and text[stop - 1] == _RETURN:
                        stop -= 1
                    if place == column:
                        begin, end = field, stop
                    if place == weight:
                        low, high = field, stop
                    place += 1
                    field = pos + 1
                    if byte == _NEWLINE:
                        break
                pos += 1
        blank = True
        for at in range(first, pos):
            if text[at] != _SPACE and text[at] != _TAB and text[at] != _RETURN:
                blank = False
                break
        pos += 1
        if blank:
            continue
        if column >= 0 and (place <= column or place <= weight):
            state[CODE], state[AT] = BAD_COLUMNS, place
            break
        number = np.int64(1)
        if weight >= 0:
            number = np.int64(0)
            for at in range(low, high):
                if not _ZERO <= text[at] <= _NINE:
                    number = np.int64(-1)
                    break
                number = 10 * number + (np.int64(text[at]) - _ZERO)
            if number < 0 or low == high or high - low > 18:
                state[CODE], state[AT] = BAD_WEIGHT, low
                break
        if begin < end:
            keys[found] = hashed(text, begin, end)
            begins[found], ends[found], weights[found] = begin, end, number
            found += 1
    state[POS], state[LINE], state[FOUND] = pos, line, found


@kernel("void(u8[::1], u8[::1], i8[::1])")
def locate(keys: Keys, wanted: Keys, found: Counts) -> None:
    """Find the first position of each of the `wanted` keys, all different, in `keys`; -1 if it is absent."""
    bits = 1
    while (1 << bits) < 2 * len(wanted) + 2:
        bits += 1
    table, mask = np.full(1 << bits, -1, np.int32), U8((1 << bits) - 1)
    for i in range(len(wanted)):
        found[i] = -1
        at = (wanted[i] * _SPREAD) >> U8(64 - bits)
        while table[at] >= 0:
            at = (at + U8(1)) & mask
        table[at] = i
    for i in range(len(keys)):
        at = (keys[i] * _SPREAD) >> U8(64 - bits)
        while table[at] >= 0:
            if wanted[table[at]] == keys[i]:
                if found[table[at]] < 0:
                    found[table[at]] = i
                break
            at = (at + U8(1)) & mask
