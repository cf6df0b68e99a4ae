"""Readers of documents: UCI bags of words, LDA-C, and plain text.

A reader streams one file and yields `Piece`s: the words of the documents of one part, in order, and the ends of
documents. Chunks of `CHUNK` documents go round robin to the parts. Every line is read and checked by every part, so all
agree on the vocabulary and the totals, and raise the same error at the same line.

    UCI bag of words    lines D, W and NNZ, then NNZ lines `document word count`, numbered from 1, by document
    LDA-C               a line per document: `M word:count ...`, M pairs, words numbered from 0
    text                a line per document; `words` defines what a word is
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import DataError
from mpips.data.compression import name_without_compression
from mpips.data.kernels import NEWLINE
from mpips.data.stream import BLOCK, line_blocks
from mpips.data.text import token
from mpips.jobs.lda import parse as p
from mpips.jobs.lda import words as w
from mpips.jobs.lda.words import Lexicon


class Piece(NamedTuple):
    """Consecutive words of one part, and the ends of the documents that end among them."""

    words: NDArray[np.int32]
    ends: NDArray[np.int64]
    """The end of each document, in words from the part's first one on; ascending, perhaps equal."""


class Totals(NamedTuple):
    """The totals of a file, over all parts."""

    docs: int
    tokens: int
    vocabulary: int
    """One more than the largest word id; 0 when there is none."""


Reader = Generator[Piece, None, Totals]
_MANY = f"{p.MOST_WORDS:,} words, each of which takes memory for every topic; number them from 0, or give [data] vocab"
SPARSE = 1000
"""The largest number of documents per line of a bag of words; more empty ones are taken as an error."""


class Place(NamedTuple):
    """Where a file starts: the numbers of documents of earlier files, over all parts and in one part."""

    part: int
    parts: int
    docs: int = 0
    kept: int = 0


def _parsed(
    path: str,
    blocks: Iterator[bytearray],
    state: NDArray[np.int64],
    parse: Callable[[NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64]], None],
    wrong: Callable[[bytearray, int, int], str],
    room: int,
) -> Iterator[Piece]:
    """Drive a compiled parser over a file's blocks of lines."""
    words, ends = np.empty(room, np.int32), np.empty(room, np.int64)
    for text in blocks:
        block = np.frombuffer(text, np.uint8)
        state[p.POS], state[p.CODE] = 0, p.FULL
        while state[p.CODE] == p.FULL:
            parse(block, words, ends)
            if state[p.CODE] > p.FULL:
                what = wrong(text, int(state[p.CODE]), int(state[p.ERROR_BEGIN]))
                raise DataError(f"{path}:{state[p.LINE] + 1}: {what}")
            filled, ended = int(state[p.FILLED]), int(state[p.ENDED])
            if filled or ended or state[p.CODE] == p.DONE:
                yield Piece(words[:filled].copy(), ends[:ended].copy())
            else:
                words = np.empty(2 * len(words), np.int32)
            state[[p.FILLED, p.ENDED]] = 0


def read_ldac(path: str, place: Place, limit: int, size: int = BLOCK, room: int = 1 << 18) -> Reader:
    """Read one part of an LDA-C file; word ids must be below `limit`.

    About `size` bytes are parsed, and at most `room` words are yielded, at a time. Raises `DataError`
    with file and line.
    """
    state = np.zeros(p.STATE_SIZE, np.int64)
    state[p.DOC], state[p.KEPT], state[p.CLAIMED] = place.docs, place.kept, -1

    def parse(block: NDArray[np.uint8], words: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
        p.parse_ldac(block, limit, place.part, place.parts, words, ends, state)

    def wrong(text: bytearray, code: int, begin: int) -> str:
        word = token(text, begin, b" \t\r\v\f\n")
        if code == p.BAD_CLAIM and text[begin] == NEWLINE:
            return "is blank; a document without words is written 0"
        if code == p.BAD_CLAIM:
            return f"{word} is not the number of word:count pairs that a line of LDA-C begins with"
        if code == p.WRONG_CLAIM:
            found, said = state[p.PAIRS], state[p.CLAIMED]
            return f"found {found} word:count pairs where the line's first number says {said}"
        if code == p.BAD_WORD and limit == p.MOST_WORDS:
            return f"word in {word} is beyond {_MANY}"
        if code == p.BAD_WORD:
            return f"word in {word} is beyond the vocabulary of {limit:,} words, which are numbered from 0"
        if code == p.BAD_COUNT:
            return f"count in {word} is not a whole number from 1 to {p.MOST_COUNT}"
        return f"{word} is not of the form word:count, as in 17:2, words numbered from 0"

    with closing(line_blocks(path, size, place.parts)) as blocks:
        yield from _parsed(path, blocks, state, parse, wrong, room)
    return Totals(int(state[p.DOC]) - place.docs, int(state[p.ALL]), int(state[p.TOP]))


def _uci_header(path: str, blocks: Iterator[bytearray], named: str) -> tuple[list[int], bytearray]:
    """Read D, W and NNZ of a UCI file; return them, and the rest of the blocks that contained them."""
    block = bytearray()
    while block.count(b"\n") < 3:
        more = next(blocks, None)
        if more is None:
            break
        block += more
    *lines, rest = block.split(b"\n", 3)
    names = (
        "D, the number of documents",
        "W, the size of the vocabulary",
        "NNZ, the number of lines to follow",
    )
    numbers = []
    for at, name in enumerate(names):
        line = bytes(lines[at]).strip() if at < len(lines) else b""
        if not (line.isdigit() and len(line) < 19) or int(line) > (p.MOST_ID if at < 2 else 2**62):
            found = token(bytearray(line + b"\n"), 0, b"\n")
            raise DataError(f"{path}:{at + 1}: found {found} where a UCI bag of words says {name}")
        numbers.append(int(line))
    docs, vocabulary, nnz = numbers
    if docs > SPARSE * (nnz + SPARSE):
        raise DataError(f"{path}:1: D, the number of documents, is {docs:,}, but only {nnz:,} lines follow")
    if not named and vocabulary > p.MOST_WORDS:
        raise DataError(f"{path}:2: W, the size of the vocabulary, is {vocabulary:,}, beyond {_MANY}")
    return numbers, rest


def uci_vocabulary(path: str) -> int:
    """Return W, the size of the vocabulary of a UCI bag of words."""
    with closing(line_blocks(path, 1 << 16)) as blocks:
        return _uci_header(path, blocks, "")[0][1]


def read_uci(
    path: str, place: Place, limit: int, named: str = "", size: int = BLOCK, room: int = 1 << 18
) -> Reader:
    """Read one part of a UCI bag of words; W must equal `limit`, the size of `named`, if that is given.

    Otherwise as `read_ldac`.
    """
    state = np.zeros(p.STATE_SIZE, np.int64)
    state[p.DOC], state[p.LINE], state[p.KEPT] = 1, 3, place.kept
    with closing(line_blocks(path, size, place.parts)) as blocks:
        (docs, vocabulary, nnz), rest = _uci_header(path, blocks, named)
        if named and vocabulary != limit:
            raise DataError(
                f"{path}:2: W, the size of the vocabulary, is {vocabulary}, but {named} has {limit} words"
            )

        def parse(block: NDArray[np.uint8], words: NDArray[np.int32], ends: NDArray[np.int64]) -> None:
            p.parse_uci(
                block, place.docs, docs, vocabulary, nnz, place.part, place.parts, words, ends, state
            )  # fmt: skip

        def wrong(text: bytearray, code: int, begin: int) -> str:
            word = token(text, begin, b" \t\r\v\f\n")
            if code == p.BAD_DOC:
                return f"document {word} is not a whole number from 1 to D, which is {docs}"
            if code == p.BAD_ORDER:
                return (
                    f"document {word} comes after document {state[p.DOC]}; lines must be sorted by document"
                )
            if code == p.BAD_WORD:
                return f"word {word} is not a whole number from 1 to W, which is {vocabulary}"
            if code == p.BAD_COUNT:
                return f"count {word} is not a whole number from 1 to {p.MOST_COUNT}"
            if code == p.TOO_MANY:
                return f"is one line more than NNZ, which is {nnz}"
            return "is not of the form `document word count`, three whole numbers"

        first = [rest] if rest else []
        yield from _parsed(path, chain(first, blocks), state, parse, wrong, room)
    if state[p.PAIRS] < nnz:
        raise DataError(
            f"{path}:{state[p.LINE] + 1}: ends after {state[p.PAIRS]} lines where NNZ says {nnz}; copy it again"
        )
    for begin in range(int(state[p.DOC]) - 1, docs, room):
        later = np.arange(begin, min(begin + room, docs)) + place.docs
        mine = int(np.count_nonzero(later // p.CHUNK % place.parts == place.part))
        yield Piece(np.empty(0, np.int32), np.full(mine, state[p.KEPT]))
    return Totals(docs, int(state[p.ALL]), vocabulary)


def read_text(path: str, place: Place, lexicon: Lexicon, size: int = BLOCK) -> Reader:
    """Read one part of a file of text, a document per line; new words are added to the lexicon, if it grows.

    Raises `DataError` with file and line for what is not UTF-8.
    """
    docs, kept, total = place.docs, place.kept, 0
    with closing(line_blocks(path, size, place.parts)) as blocks:
        for block in blocks:
            try:
                codes = lexicon.encode(block)
            except UnicodeDecodeError as error:
                line = docs - place.docs + block.count(b"\n", 0, error.start) + 1
                raise DataError(
                    f"{path}:{line}: is not UTF-8 text; convert it, as by iconv -t UTF-8"
                ) from None
            newlines = np.flatnonzero(codes == w.NEWLINE)
            mine = (docs + np.arange(len(newlines))) // p.CHUNK % place.parts == place.part
            lengths = np.diff(newlines, prepend=-1)
            words = codes[np.repeat(mine, lengths)]
            ends = kept + np.cumsum(lengths[mine] - 1)
            yield Piece(words[words >= 0], ends)
            docs += len(newlines)
            kept = int(ends[-1]) if len(ends) else kept
            total += len(codes) - len(newlines)
    return Totals(docs - place.docs, total, len(lexicon.words))


def format_of(path: str) -> str:
    """Return a file's format, "uci", "ldac" or "text", by its name, else by its first lines."""
    name = os.path.basename(name_without_compression(path)).lower()
    if name.endswith(".ldac"):
        return "ldac"
    if name.startswith("docword"):
        return "uci"
    with closing(line_blocks(path, 1 << 16)) as blocks:
        head = bytes(next(blocks)).split(b"\n", 3)
    numbers = [line.strip().isdigit() for line in head[:3]]
    if numbers == [True] * 3:
        return "uci"
    pair = re.match(rb"\s*\d+\s+\d+:", head[0])
    return "ldac" if pair or numbers[0] else "text"


def read_vocabulary(path: str) -> list[str]:
    """Read a file with a word on each line.

    Raises `DataError` with file and line for a blank line and what is not UTF-8.
    """
    words: list[str] = []
    with closing(line_blocks(path)) as blocks:
        for block in blocks:
            try:
                lines = block.decode("utf-8").split("\n")[:-1]
            except UnicodeDecodeError as error:
                line = len(words) + block.count(b"\n", 0, error.start) + 1
                raise DataError(
                    f"{path}:{line}: is not UTF-8 text; convert it, as by iconv -t UTF-8"
                ) from None
            words += [line.strip() for line in lines]
    for at, word in enumerate(words):
        if not word:
            raise DataError(f"{path}:{at + 1}: is blank; a vocabulary has a word on each line")
    return words
