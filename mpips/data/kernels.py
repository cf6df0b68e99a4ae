"""Compiled parsers of text: svmlight lines, and delimited categorical rows hashed to keys.

A parser reads a block of complete lines, `text`, whose last byte is a newline: every inner loop stops at a
newline, so none can leave the block, and every write is preceded by a check of the output's space. The parser
keeps its position in `state` (i8, see the names below) and returns at the end of the block (DONE), when the
output is FULL (the position is then the start of the line that did not fit), or after a bad line (any other
code; the line is skipped, ERROR_BEGIN is the position of its bad token). The caller handles it and calls again.

Part p of P consists of the lines whose index is p modulo P; blank and comment lines have no index, bad lines
do. So a part never parses a line of another part, and all parts agree on the index of every line.

Numbers. A value is the float32 nearest to the float64 nearest to the text, as ``np.float32(float(text))``
is. With at most 15 digits and a power of ten up to 22 one float64 operation is exact to half a unit
(Clinger, PLDI 1990). Beyond, the float64 result is off by a few units, so it is accepted only if everything
within 8 units of it rounds to the same float32; the one in 10^7 where that fails is listed in `hard` and
parsed by Python.

Hashing. Field c (0 = the first after the label) with bytes b is hashed as h = mix(c); for each full group
of eight bytes, a little-endian word w: h = mix(h ^ w); last, with the 0 to 7 bytes left and the length
modulo 256 as the top byte: key = mix(h ^ w). mix is the finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA
2014), a bijection: values of up to 7 bytes in one column never collide. A cross of m fields is h =
mix(CROSS + m), then h = mix(h ^ key) over its fields' keys. The lower half of a key of 128 bits is computed in the same
way from h = mix(LOWER + c) and h = mix(LOWER + CROSS + m); the upper half is the key of 64 bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.jit.splitmix import mix as mix

POS, LINE, INDEX, EXAMPLES, NONZEROS, HARD, ONES, CODE, ERROR_BEGIN, STATE_SIZE = range(10)
DONE, FULL, BAD_LABEL, BAD_PAIR, BAD_ID, BAD_VALUE, NOT_FINITE, BAD_ORDER, QID = range(9)
BAD_COLUMNS, BAD_NUMBER, BAD_FIELD, TWICE, FAR_OUT_OF_ORDER = 9, 10, 11, 12, 13
OK, NO_NUMBER, TOO_LARGE, IS_HARD = range(4)

NEWLINE, RETURN, SPACE, HASH, PLUS, MINUS, DOT, ZERO, NINE, COLON = b"\n\r #+-.09:"
UPPER_E, LOWER_E = b"Ee"
POWERS = np.array([float(f"1e{power}") for power in range(-300, 301)])
CROSS = np.uint64(1 << 32)
LOWER = np.uint64(1 << 40)
MOST_FIELDS = 1 << 20
MOST_MOVES = 1 << 23
"""Places that ids of a line of libffm are moved by, in all, to sort them: 4,096 descending ones take as many."""


@kernel()
def is_space(byte: int) -> bool:
    """Return whether a byte is white space other than a newline."""
    return byte == SPACE or (byte != NEWLINE and byte >= 9 and byte <= RETURN)


@kernel()
def next_line(text: NDArray[np.uint8], pos: int) -> int:
    """Return the start of the line after the one at `pos`."""
    while text[pos] != NEWLINE:
        pos += 1
    return pos + 1


@kernel()
def number(text: NDArray[np.uint8], pos: int) -> tuple[float, int, int]:
    """Parse a decimal number: (value, position after it, OK | NO_NUMBER | TOO_LARGE | IS_HARD)."""
    negative = text[pos] == MINUS
    if negative or text[pos] == PLUS:
        pos += 1
    mantissa = np.uint64(0)
    digits = 0
    seen = False
    power = 0
    fraction = False
    while True:
        byte = text[pos]
        if byte >= ZERO and byte <= NINE:
            seen = True
            if digits < 19:
                mantissa = mantissa * np.uint64(10) + np.uint64(byte - ZERO)
                digits += mantissa != np.uint64(0)
                power -= fraction
            else:
                power += not fraction
        elif byte == DOT and not fraction:
            fraction = True
        else:
            break
        pos += 1
    if not seen:
        return 0.0, pos, NO_NUMBER
    if text[pos] == LOWER_E or text[pos] == UPPER_E:
        pos += 1
        sign = 1
        if text[pos] == MINUS:
            sign = -1
            pos += 1
        elif text[pos] == PLUS:
            pos += 1
        if text[pos] < ZERO or text[pos] > NINE:
            return 0.0, pos, NO_NUMBER
        exponent = 0
        while text[pos] >= ZERO and text[pos] <= NINE:
            if exponent < 1_000_000_000:
                exponent = exponent * 10 + int(text[pos]) - ZERO
            pos += 1
        power += sign * exponent
    sign_of = -1.0 if negative else 1.0
    if mantissa == np.uint64(0) or power < -300:
        return sign_of * 0.0, pos, OK
    if power > 300:
        return 0.0, pos, TOO_LARGE
    value = sign_of * np.float64(mantissa)
    exact = digits <= 15
    if power < 0 and power >= -22:
        value = value / POWERS[300 - power]
    elif power != 0:
        value = value * POWERS[300 + power]
        exact = exact and power > 0 and power <= 22
    if abs(value) > 3.40282356e38:
        return 0.0, pos, TOO_LARGE
    if not exact and np.float32(value * (1 - 2.0**-49)) != np.float32(value * (1 + 2.0**-49)):
        return value, pos, IS_HARD
    return value, pos, OK


@kernel()
def starts_with_qid(text: NDArray[np.uint8], pos: int) -> bool:
    """Return whether ``qid:`` is at `pos`; reads no further than a newline."""
    if text[pos] != 113 or text[pos + 1] != 105 or text[pos + 2] != 100:
        return False
    return bool(text[pos + 3] == COLON)


@kernel()
def label_at(text: NDArray[np.uint8], pos: int) -> tuple[float, int, bool]:
    """Parse a label: (-1 or +1, position after it, whether it is one of -1, 0, 1)."""
    value, pos, code = number(text, pos)
    if code != OK or not (value == 1.0 or value == 0.0 or value == -1.0):
        return 0.0, pos, False
    return (1.0 if value == 1.0 else -1.0), pos, True


@kernel("void(u1[::1], i8, i8, f4[::1], i8[::1], u8[::1], u8[::1], f4[::1], i8[:, ::1], i8[::1])")
def parse_svmlight(
    text: NDArray[np.uint8],
    part: int,
    parts: int,
    labels: NDArray[np.float32],
    indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    fields: NDArray[np.uint64],
    values: NDArray[np.float32],
    hard: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:
    """Parse lines ``label id:value ...`` of one part from state[POS] on; see the module's docstring.

    If `fields` is not empty, lines are those of libffm, ``label field:id:value ...``, whose ids are in any order.
    """
    end, fielded = text.shape[0], fields.shape[0] > 0
    pos, line, index = state[POS], state[LINE], state[INDEX]
    n, nnz, hards, ones = state[EXAMPLES], state[NONZEROS], state[HARD], state[ONES]
    code = DONE
    while pos < end and code == DONE:
        begin, first, first_hard, first_ones, moves = pos, nnz, hards, ones, 0
        while is_space(text[pos]):
            pos += 1
        if text[pos] == NEWLINE or text[pos] == HASH:
            pos = next_line(text, pos)
            line += 1
            continue
        if index % parts != part:
            pos = next_line(text, pos)
            line += 1
            index += 1
            continue
        if n == labels.shape[0]:
            code, pos = FULL, begin
            break
        token = pos
        label, pos, good = label_at(text, pos)
        byte = text[pos]
        if not good or not (is_space(byte) or byte in (NEWLINE, HASH)):
            code = BAD_LABEL
        while code == DONE:
            while is_space(text[pos]):
                pos += 1
            if text[pos] == NEWLINE or text[pos] == HASH:
                break
            token = pos
            if nnz == keys.shape[0] or hards == hard.shape[0]:
                code = FULL
                break
            field = np.uint64(0)
            if fielded:
                while text[pos] >= ZERO and text[pos] <= NINE:
                    field = min(field * np.uint64(10) + np.uint64(text[pos] - ZERO), np.uint64(MOST_FIELDS))
                    pos += 1
                if text[pos] != COLON or pos == token or field == np.uint64(MOST_FIELDS):
                    code = BAD_FIELD
                    break
                pos += 1
            begin_of_id = pos
            key = np.uint64(0)
            while text[pos] >= ZERO and text[pos] <= NINE:
                digit = np.uint64(text[pos] - ZERO)
                # 2**64 - 1 = 1844674407370955161 * 10 + 5
                if key > np.uint64(1844674407370955161) or (
                    key == np.uint64(1844674407370955161) and digit > np.uint64(5)
                ):
                    code = BAD_ID
                key = key * np.uint64(10) + digit
                pos += 1
            if text[pos] != COLON or pos == begin_of_id:
                code = QID if starts_with_qid(text, pos) else BAD_PAIR
            if code != DONE:
                break
            place = nnz
            if nnz > first and key <= keys[nnz - 1]:
                if not fielded:
                    code = BAD_ORDER
                    break
                while place > first and keys[place - 1] > key:
                    place -= 1
                if place > first and keys[place - 1] == key:
                    code = TWICE
                    break
                # A long line in descending order would take hours.
                moves += nnz - place + hards - first_hard
                if moves > MOST_MOVES:
                    code = FAR_OUT_OF_ORDER
                    break
            pos += 1
            value, pos, found = number(text, pos)
            byte = text[pos]
            if found == NO_NUMBER or not (is_space(byte) or byte in (NEWLINE, HASH)):
                code = BAD_VALUE
            elif found == TOO_LARGE:
                code = NOT_FINITE
            else:
                if place < nnz:
                    for i in range(nnz, place, -1):
                        keys[i], fields[i], values[i] = keys[i - 1], fields[i - 1], values[i - 1]
                    for i in range(first_hard, hards):
                        hard[i, 0] += hard[i, 0] >= place
                if found == IS_HARD:
                    hard[hards, 0] = place
                    hard[hards, 1] = token
                    hards += 1
                keys[place] = key
                if fielded:
                    fields[place] = field
                values[place] = np.float32(value)
                ones += values[place] == np.float32(1) and found == OK
                nnz += 1
        if code == FULL:
            pos = begin
        else:
            pos = next_line(text, pos)
            line += 1
            index += 1
        if code == DONE:
            labels[n] = label
            n += 1
            indptr[n] = nnz
        else:
            nnz, hards, ones = first, first_hard, first_ones
            state[ERROR_BEGIN] = token
    state[POS], state[LINE], state[INDEX], state[CODE] = pos, line, index, code
    state[EXAMPLES], state[NONZEROS], state[HARD], state[ONES] = n, nnz, hards, ones


@kernel()
def sort_unique(keys: NDArray[np.uint64], begin: int, end: int) -> int:
    """Sort keys[begin:end] in place, drop repeats, and return the new end."""
    gap = 1
    while gap < (end - begin) // 9:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(begin + gap, end):
            key = keys[i]
            j = i
            while j >= begin + gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                j -= gap
            keys[j] = key
        gap //= 3
    kept = begin
    for i in range(begin, end):
        if i == begin or keys[i] != keys[kept - 1]:
            keys[kept] = keys[i]
            kept += 1
    return kept


@kernel()
def sort_unique_pairs(keys: NDArray[np.uint64], lows: NDArray[np.uint64], begin: int, end: int) -> int:
    """As `sort_unique`, of keys whose lower halves are `lows`."""
    gap = 1
    while gap < (end - begin) // 9:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(begin + gap, end):
            key, low = keys[i], lows[i]
            j = i
            while j >= begin + gap and (
                keys[j - gap] > key or (keys[j - gap] == key and lows[j - gap] > low)
            ):
                keys[j], lows[j] = keys[j - gap], lows[j - gap]
                j -= gap
            keys[j], lows[j] = key, low
        gap //= 3
    kept = begin
    for i in range(begin, end):
        if i == begin or keys[i] != keys[kept - 1] or lows[i] != lows[kept - 1]:
            keys[kept], lows[kept] = keys[i], lows[i]
            kept += 1
    return kept


@kernel(
    "void(u1[::1], i8, i8, i8, i8[::1], u1[::1], i8[::1], i8[::1], u8[:,::1], f4[::1], i8[::1], u8[::1], u8[::1],"
    " b1, i8[::1])"
)
def parse_rows(
    text: NDArray[np.uint8],
    part: int,
    parts: int,
    separator: int,
    places: NDArray[np.int64],
    bucketed: NDArray[np.uint8],
    cross_ptr: NDArray[np.int64],
    cross_columns: NDArray[np.int64],
    fields: NDArray[np.uint64],
    labels: NDArray[np.float32],
    indptr: NDArray[np.int64],
    keys: NDArray[np.uint64],
    lows: NDArray[np.uint64],
    numbered: bool,
    state: NDArray[np.int64],
) -> None:
    """Parse rows ``label<separator>field...`` of one part from state[POS] on.

    `places` gives the column of the data set for each column of the file. By the former, `bucketed` (one per column)
    marks numbers to be put in buckets; cross i joins the columns cross_columns[cross_ptr[i]:cross_ptr[i+1]]; `fields`
    u64[2, columns] is scratch space. `lows` are the lower halves of keys of 128 bits, empty for keys of 64. If
    `numbered`, the lower half of a field's key is its column. A field whose key, or upper half of it, is 0 counts as
    missing (so does one value in 2^64).
    """
    end = text.shape[0]
    columns, crosses = fields.shape[1], cross_ptr.shape[0] - 1
    uppers, lowers, wide = fields[0], fields[1], lows.shape[0] > 0
    pos, line, index = state[POS], state[LINE], state[INDEX]
    n, nnz = state[EXAMPLES], state[NONZEROS]
    code = DONE
    while pos < end and code == DONE:
        if text[pos] == NEWLINE or (text[pos] == RETURN and text[pos + 1] == NEWLINE):
            pos = next_line(text, pos)
            line += 1
            continue
        if index % parts != part:
            pos = next_line(text, pos)
            line += 1
            index += 1
            continue
        if n == labels.shape[0] or keys.shape[0] - nnz < columns + crosses:
            code = FULL
            break
        begin = pos
        first = nnz
        label, pos, good = label_at(text, pos)
        if not good or not (text[pos] == separator or text[pos] == NEWLINE or text[pos] == RETURN):
            code = BAD_LABEL
        column = 0
        while code == DONE and text[pos] == separator:
            pos += 1
            if column == columns:
                code = BAD_COLUMNS
                break
            start = pos
            place = places[column]
            hashed, other = mix(np.uint64(place)), np.uint64(0)
            if wide:
                other = mix(LOWER + np.uint64(place))
            word = np.uint64(0)
            shift = np.uint64(0)
            while True:
                byte = text[pos]
                if byte in (separator, NEWLINE) or (byte == RETURN and text[pos + 1] == NEWLINE):
                    break
                word |= np.uint64(byte) << shift
                shift += np.uint64(8)
                if shift == np.uint64(64):
                    hashed = mix(hashed ^ word)
                    if wide:
                        other = mix(other ^ word)
                    word = np.uint64(0)
                    shift = np.uint64(0)
                pos += 1
            length = pos - start
            key = np.uint64(0)
            if length > 0:
                if bucketed[place]:
                    value, stop, found = number(text, start)
                    if found in (NO_NUMBER, TOO_LARGE) or stop != pos:
                        code = BAD_NUMBER
                        begin = start
                        break
                    if value > 2.0:
                        hashed, other = mix(np.uint64(place)), mix(LOWER + np.uint64(place))
                        word = np.uint64(math.floor(math.log(value) ** 2))
                        length = 255
                word |= np.uint64(length & 255) << np.uint64(56)
                key = mix(hashed ^ word)
            uppers[place] = key
            if key != np.uint64(0):
                keys[nnz] = key
                if wide:
                    lowers[place] = lows[nnz] = np.uint64(place) if numbered else mix(other ^ word)
                nnz += 1
            column += 1
        if code == DONE and column != columns:
            code = BAD_COLUMNS
        pos = next_line(text, pos)
        line += 1
        index += 1
        if code != DONE:
            nnz = first
            state[ERROR_BEGIN] = begin
            break
        for cross in range(crosses):
            low, high = cross_ptr[cross], cross_ptr[cross + 1]
            hashed, other = mix(CROSS + np.uint64(high - low)), np.uint64(0)
            if wide:
                other = mix(LOWER + CROSS + np.uint64(high - low))
            for i in range(low, high):
                key = uppers[cross_columns[i]]
                if key == np.uint64(0):
                    break
                hashed = mix(hashed ^ key)
                if wide:
                    other = mix(other ^ lowers[cross_columns[i]])
            else:
                keys[nnz] = hashed
                if wide:
                    lows[nnz] = other
                nnz += 1
        nnz = sort_unique_pairs(keys, lows, first, nnz) if wide else sort_unique(keys, first, nnz)
        labels[n] = label
        n += 1
        indptr[n] = nnz
    state[POS], state[LINE], state[INDEX], state[CODE] = pos, line, index, code
    state[EXAMPLES], state[NONZEROS], state[ONES] = n, nnz, nnz
