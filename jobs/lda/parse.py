"""Compiled parsers of documents whose words are numbers: UCI bags of words, and LDA-C.

A parser works through a block of whole lines as those of `mpips.data.kernels` do: the last byte is a newline, at which
every inner loop stops. It keeps its position in `state` (i8, see the names below) and returns at the end of the block
(DONE), when the output is FULL, which may be inside a document, or at an error in a line (any other code;
ERROR_BEGIN is the start of the invalid word). Words of documents of other parts are checked and counted, not returned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips import kernel
from mpips.data.kernels import COLON, NEWLINE, NINE, ZERO, is_space

CHUNK = 64
"""Number of consecutive documents that go to one part."""
MOST_COUNT = 1 << 24
"""The largest count of a word in a document; a larger one is taken as an error."""
MOST_ID = 2**31 - 1
MOST_WORDS = 1 << 24
"""The largest number of words without a vocabulary: the counts of more would fill the memory."""

POS, LINE, DOC, CODE, ERROR_BEGIN, FILLED, ENDED, KEPT, ALL, TOP, PAIRS, CLAIMED, STATE_SIZE = range(13)
DONE, FULL, BAD_DOC, BAD_WORD, BAD_COUNT, BAD_ORDER, BAD_COLUMNS, TOO_MANY = range(8)
BAD_CLAIM, BAD_PAIR, WRONG_CLAIM = range(8, 11)


@kernel()
def whole(text: NDArray[np.uint8], pos: int, most: int) -> tuple[int, int]:
    """Parse a whole number: (value, or -1 if there is none or it is above `most`; the position after it)."""
    begin, value = pos, 0
    while text[pos] >= ZERO and text[pos] <= NINE:
        if value >= 0:
            value = value * 10 + int(text[pos]) - ZERO
            if value > most:
                value = -1
        pos += 1
    return (value if pos > begin else -1), pos


@kernel("void(u1[::1], i8, i8, i8, i8, i8, i8, i4[::1], i8[::1], i8[::1])")
def parse_uci(
    text: NDArray[np.uint8],
    first: int,
    docs: int,
    limit: int,
    nnz: int,
    part: int,
    parts: int,
    words: NDArray[np.int32],
    ends: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:
    """Parse lines ``document word count`` from state[POS] on; see the module's text.

    `first` is the index of the file's first document among all; state[DOC] is the present one's number here, from 1.
    """
    end = text.shape[0]
    pos, line, doc, pairs = state[POS], state[LINE], state[DOC], state[PAIRS]
    n, ended, kept, total = state[FILLED], state[ENDED], state[KEPT], state[ALL]
    code = DONE
    while pos < end:
        begin = pos
        while is_space(text[pos]):
            pos += 1
        if text[pos] == NEWLINE:
            pos += 1
            line += 1
            continue
        state[ERROR_BEGIN] = pos
        if pairs == nnz:
            code = TOO_MANY
            break
        now, pos = whole(text, pos, docs)
        if now < 1 or not is_space(text[pos]):
            code = BAD_DOC
            break
        if now < doc:
            code = BAD_ORDER
            break
        while is_space(text[pos]):
            pos += 1
        state[ERROR_BEGIN] = pos
        word, pos = whole(text, pos, limit)
        if word < 1 or not is_space(text[pos]):
            code = BAD_COLUMNS if text[pos] == NEWLINE else BAD_WORD
            break
        while is_space(text[pos]):
            pos += 1
        state[ERROR_BEGIN] = pos
        times, pos = whole(text, pos, MOST_COUNT)
        if times < 1 or not (text[pos] == NEWLINE or is_space(text[pos])):
            code = BAD_COLUMNS if text[pos] == NEWLINE and pos == state[ERROR_BEGIN] else BAD_COUNT
            break
        while is_space(text[pos]):
            pos += 1
        if text[pos] != NEWLINE:
            code = BAD_COLUMNS
            break
        while doc < now and ended < ends.shape[0]:
            if (first + doc - 1) // CHUNK % parts == part:
                ends[ended] = kept
                ended += 1
            doc += 1
        mine = (first + now - 1) // CHUNK % parts == part
        if doc < now or (mine and n + times > words.shape[0]):
            code, pos = FULL, begin
            break
        if mine:
            for _ in range(times):
                words[n] = word - 1
                n += 1
            kept += times
        total += times
        pairs += 1
        pos += 1
        line += 1
    state[POS], state[LINE], state[DOC], state[CODE], state[PAIRS] = pos, line, doc, code, pairs
    state[FILLED], state[ENDED], state[KEPT], state[ALL] = n, ended, kept, total


@kernel("void(u1[::1], i8, i8, i8, i4[::1], i8[::1], i8[::1])")
def parse_ldac(
    text: NDArray[np.uint8],
    limit: int,
    part: int,
    parts: int,
    words: NDArray[np.int32],
    ends: NDArray[np.int64],
    state: NDArray[np.int64],
) -> None:
    """Parse lines ``M word:count ...`` from state[POS] on; see the module's text.

    state[DOC] is the index of the line's document among all, state[CLAIMED] its M, -1 before it is read.
    """
    end = text.shape[0]
    pos, doc, pairs, claimed = state[POS], state[DOC], state[PAIRS], state[CLAIMED]
    n, ended, kept, total, top = state[FILLED], state[ENDED], state[KEPT], state[ALL], state[TOP]
    code = DONE
    while pos < end:
        mine = doc // CHUNK % parts == part
        if mine and ended == ends.shape[0]:
            code = FULL
            break
        while is_space(text[pos]):
            pos += 1
        state[ERROR_BEGIN] = pos
        if claimed < 0:
            claimed, pos = whole(text, pos, MOST_ID)
            pairs = 0
            if claimed < 0 or not (text[pos] == NEWLINE or is_space(text[pos])):
                code = BAD_CLAIM
                break
        elif text[pos] == NEWLINE:
            if pairs != claimed:
                code = WRONG_CLAIM
                break
            if mine:
                ends[ended] = kept
                ended += 1
            claimed = -1
            doc += 1
            pos += 1
            state[LINE] += 1
        else:
            begin = pos
            word, pos = whole(text, pos, limit - 1)
            if pos == begin or text[pos] != COLON:
                code = BAD_PAIR
                break
            if word < 0:
                code = BAD_WORD
                break
            times, pos = whole(text, pos + 1, MOST_COUNT)
            if times < 1 or not (text[pos] == NEWLINE or is_space(text[pos])):
                code = BAD_COUNT
                break
            if mine and n + times > words.shape[0]:
                code, pos = FULL, begin
                break
            if mine:
                for _ in range(times):
                    words[n] = word
                    n += 1
                kept += times
            top = max(top, word + 1)
            total += times
            pairs += 1
    state[POS], state[DOC], state[CODE], state[PAIRS], state[CLAIMED] = pos, doc, code, pairs, claimed
    state[FILLED], state[ENDED], state[KEPT], state[ALL], state[TOP] = n, ended, kept, total, top
