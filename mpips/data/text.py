"""Readers of text: svmlight, and delimited categorical rows (Criteo's form)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.data import kernels as k
from mpips.data.examples import Examples, Tally
from mpips.data.spec import DataSpec
from mpips.data.stream import BLOCK, line_blocks
from mpips.data.tables.fields import fields_of
from mpips.errors import DataError, JobError
from mpips.keys import from_pairs

BATCH_EXAMPLES = 1 << 16
BATCH_NONZEROS = 1 << 17


@dataclass
class Batch:
    """The arrays that a parser fills, which are reused, and the parser's state."""

    labels: NDArray[np.float32]
    indptr: NDArray[np.int64]
    keys: NDArray[np.uint64]
    lows: NDArray[np.uint64]
    """The lower halves of keys of 128 bits, or the marks of the fields of keys of 64, or empty."""
    values: NDArray[np.float32]
    hard: NDArray[np.int64]
    state: NDArray[np.int64]
    fields: Callable[[NDArray[np.uint64]], NDArray[np.int32]] | None = None
    """Returns the fields by their marks; None: keys have no fields."""

    def take(self) -> Examples:
        """Copy the parsed examples, and reset."""
        n, nnz = int(self.state[k.EXAMPLES]), int(self.state[k.NONZEROS])
        values = None if self.state[k.ONES] == nnz else self.values[:nnz].copy()
        self.state[[k.EXAMPLES, k.NONZEROS, k.HARD, k.ONES]] = 0
        keys, lows = self.keys[:nnz].copy(), self.lows[:nnz]
        fields = None if self.fields is None else self.fields(lows)
        if len(lows) and fields is None:
            keys = from_pairs(np.stack([keys, lows], axis=1))
        return Examples(self.labels[:n].copy(), self.indptr[: n + 1].copy(), keys, values, fields)

    def grow(self) -> None:
        """Double the space: one line needs more."""
        nnz, hards = 2 * len(self.keys), 2 * len(self.hard)
        self.keys, self.values = np.empty(nnz, np.uint64), np.empty(nnz, np.float32)
        self.lows = np.empty(nnz if len(self.lows) else 0, np.uint64)
        self.hard = np.empty((hards, 2), np.int64)


def new_batch(index: int, nonzeros: int = BATCH_NONZEROS, lows: bool = False) -> Batch:
    """Return an empty batch, with the parser at line 0, before the line of the given index."""
    state = np.zeros(k.STATE_SIZE, np.int64)
    state[k.INDEX] = index
    return Batch(
        np.empty(BATCH_EXAMPLES, np.float32),
        np.zeros(BATCH_EXAMPLES + 1, np.int64),
        np.empty(nonzeros, np.uint64),
        np.empty(nonzeros if lows else 0, np.uint64),
        np.empty(nonzeros, np.float32),
        np.empty((1024, 2), np.int64),
        state,
    )


def token(text: bytearray, begin: int, stops: bytes = b" \t\r\v\f\n#") -> str:
    """Return the word at `begin` for a message: printable, one line, at most 40 characters."""
    end = begin
    while text[end] not in stops and end < begin + 41:
        end += 1
    word = bytes(text[begin:end]).decode("utf-8", "replace")
    word = "".join(letter if letter.isprintable() else "?" for letter in word)
    return repr(word if len(word) <= 40 else word[:40] + "...")


def svmlight_error(text: bytearray, code: int, begin: int) -> str:
    """Describe the error in a svmlight line, and the expected form."""
    word = token(text, begin)
    if code == k.BAD_LABEL:
        return f"label {word} is not one of -1, 0, +1"
    if code == k.QID:
        return f"{word}: ranking data (qid) is not supported; remove the qid column"
    if code == k.BAD_ORDER:
        return f"id in {word} is not above the one before it; ids must ascend, each once in a line"
    if code == k.BAD_ID:
        return f"id in {word} is too large; ids are integers from 0 to 2**64 - 1"
    if code == k.BAD_VALUE and word.partition(":")[2].strip("'+-").lower() not in ("nan", "inf", "infinity"):
        return f"value in {word} is not a number; expected id:value, as in 7:0.5"
    if code in (k.BAD_VALUE, k.NOT_FINITE):
        return f"value in {word} is not finite in 32-bit floating point; remove or scale it"
    return f"{word} is not of the form id:value, as in 7:0.5"


def libffm_error(text: bytearray, code: int, begin: int) -> str:
    """Describe the error in a line of libffm, and the expected form."""
    word = token(text, begin)
    if code == k.TWICE:
        return f"id in {word} comes twice in the line"
    if code == k.FAR_OUT_OF_ORDER:
        return f"id in {word} is too far out of order: sort the ids of long lines"
    if code in (k.BAD_FIELD, k.BAD_PAIR, k.QID):
        return (
            f"{word} is not of the form field:id:value, as in 2:7:0.5, with a field below {k.MOST_FIELDS:,}"
        )
    return svmlight_error(text, code, begin).replace("id:value, as in 7:0.5", "field:id:value, as in 2:7:0.5")


def parse_blocks(
    path: str,
    blocks: Iterable[bytearray],
    batch: Batch,
    parse: Callable[[NDArray[np.uint8]], None],
    describe: Callable[[bytearray, int, int], str],
    on_error: str,
    tally: Tally,
) -> Generator[Examples, None, int]:
    """Run a compiled parser over blocks of lines; yield batches, return the index after the last line."""
    state = batch.state
    for text in blocks:
        block = np.frombuffer(text, np.uint8)
        while True:
            parse(block)
            code = int(state[k.CODE])
            if code > k.FULL:
                error = f"{path}:{state[k.LINE]}: {describe(text, code, int(state[k.ERROR_BEGIN]))}"
                if on_error == "stop":
                    raise DataError(error)
                tally.skip(error)
                continue
            if code == k.FULL and state[k.EXAMPLES] == 0:
                batch.grow()
                continue
            for row in range(int(state[k.HARD])):
                place, begin = batch.hard[row]
                pair = text[begin : text.find(b"\n", begin)].partition(b"#")[0].split(None, 1)[0]
                batch.values[place] = np.float32(float(pair.rpartition(b":")[2]))
            tally.examples += int(state[k.EXAMPLES])
            if state[k.EXAMPLES]:
                yield batch.take()
            if code == k.DONE:
                break
        state[k.POS] = 0
    return int(state[k.INDEX])


def read_svmlight(
    path: str, spec: DataSpec, index: int, part: int, parts: int, tally: Tally, size: int = BLOCK
) -> Generator[Examples, None, int]:
    """Read part `part` of `parts` of a svmlight file whose first line has the given index.

    Lines are ``label id:value id:value ... # comment``: label -1, 0 (read as -1) or +1; ids ascending
    integers below 2**64; values finite. Yields batches in order; returns the index after the last line.
    Raises `DataError` with file and line.
    """
    return (yield from _read_lines(path, spec, new_batch(index), part, parts, tally, size, svmlight_error))


def read_libffm(
    path: str, spec: DataSpec, index: int, part: int, parts: int, tally: Tally, size: int = BLOCK
) -> Generator[Examples, None, int]:
    """Read lines ``label field:id:value field:id:value ...`` as `read_svmlight`, with ids in any order, each once."""
    batch = new_batch(index, lows=True)
    batch.fields = lambda marks: marks.astype(np.int32)
    return (yield from _read_lines(path, spec, batch, part, parts, tally, size, libffm_error))


def _read_lines(
    path: str,
    spec: DataSpec,
    batch: Batch,
    part: int,
    parts: int,
    tally: Tally,
    size: int,
    describe: Callable[[bytearray, int, int], str],
) -> Generator[Examples, None, int]:
    def parse(block: NDArray[np.uint8]) -> None:
        k.parse_svmlight(
            block, part, parts, batch.labels, batch.indptr, batch.keys, batch.lows, batch.values, batch.hard,
            batch.state,
        )  # fmt: skip

    with closing(line_blocks(path, size, parts)) as blocks:
        return (yield from parse_blocks(path, blocks, batch, parse, describe, spec.on_error, tally))


@dataclass(frozen=True)
class ParserColumns:
    """The columns of a delimited file (without the label), in the form of the parser."""

    columns: int
    places: NDArray[np.int64]
    bucketed: NDArray[np.uint8]
    cross_ptr: NDArray[np.int64]
    cross_columns: NDArray[np.int64]
    header: int
    """The bytes of the line of names in the first block, with the newline; 0: there is none."""

    @property
    def crosses(self) -> list[list[int]]:
        """The columns of each cross."""
        pieces = zip(self.cross_ptr[:-1].tolist(), self.cross_ptr[1:].tolist(), strict=True)
        return [self.cross_columns[begin:end].tolist() for begin, end in pieces]


MISSING = frozenset(("", "?", "na", "n/a", "nan", "null", "none", ".", "-"))
"""Representations of a missing label, in lower case: a row that starts with one is not a line of names."""


def seems_label(field: str) -> bool:
    """Return whether a field can be read as a number, as every label can, or represents a missing label."""
    if field.strip().strip("\"'").lower() in MISSING:
        return True
    try:
        float(field)
    except ValueError:
        return False
    return True


class Head(NamedTuple):
    """The first line of a delimited file."""

    path: str
    fields: list[str]
    """The label's, then the columns'."""
    size: int
    """Its bytes if it holds names, with the newline; 0: it is a row."""

    def places(self, first: Head) -> list[int]:
        """Return the column of the data set for each column of this file, by name if they have names.

        `first` is the head of the file that numbers the columns of the data set. Raises `DataError` if the two do not
        fit.
        """
        if bool(self.size) != bool(first.size):
            has, lacks = (self, first) if self.size else (first, self)
            raise DataError(
                f"{self.path}:1: the first line of {has.path} is taken for column names ({_shortened(has.fields)}), "
                f"that of {lacks.path} for a row; give names to all files or to none, or set [data] header"
            )
        if len(self.fields) != len(first.fields) and not self.size:
            raise DataError(
                f"{self.path}:1: has {len(self.fields)} columns where {first.path} has {len(first.fields)}, the label "
                "counted"
            )
        if not self.size:
            return list(range(len(self.fields) - 1))
        different = set(self.fields) ^ set(first.fields)
        if different:
            name = min(different, key=lambda each: (self.fields + first.fields).index(each))
            has, lacks = (self, first) if name in self.fields else (first, self)
            raise DataError(
                f"{self.path}:1: column {name!r} of {has.path} is not in {lacks.path}; files that are read together "
                "have the same columns"
            )
        if self.fields[0] != first.fields[0]:
            raise DataError(
                f"{self.path}:1: the first column, which is the label, is {self.fields[0]!r} here and "
                f"{first.fields[0]!r} in {first.path}"
            )
        place = {name: at for at, name in enumerate(first.fields[1:])}
        return [place[name] for name in self.fields[1:]]


def _shortened(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 200 else text[:200] + "..."


def read_head(path: str, spec: DataSpec, block: bytearray) -> Head:
    """Read a delimited file's first line."""
    end = block.find(b"\n") + 1
    line = bytes(block[:end]).decode("utf-8", "replace").rstrip("\r\n")
    fields = line.split(spec.separator)
    header = not seems_label(fields[0]) if spec.header == "auto" else spec.header
    if not line.strip():
        raise DataError(f"{path}:1: is blank; the first line must be a row or the column names")
    if len(fields) < 2:
        raise DataError(
            f"{path}:1: found one column where a label and more were expected; is [data] separator = "
            f"{spec.separator!r} right? A table with named columns needs [data] label"
        )
    if header:
        fields = [name.strip() for name in fields]
        twice = next((name for name, times in Counter(fields).items() if times > 1), None)
        if twice is not None:
            raise DataError(
                f"{path}:1: is taken for column names, but {twice!r} is there twice; rename one, or set [data] header "
                "= false if it is a row"
            )
    return Head(path, fields, end if header else 0)


def first_head(path: str, spec: DataSpec) -> Head | None:
    """Read the first line of another file; None if that has only blank lines."""
    with closing(line_blocks(path, 1 << 16)) as blocks:
        block = next(blocks)
        return read_head(path, spec, block) if block.strip() else None


def parser_columns(own_head: Head, first: Head, spec: DataSpec) -> ParserColumns:
    """Find the columns of a file, and those in `spec`; they are numbered as in `first`."""
    path, fields = first.path, first.fields
    names = fields[1:] if first.size else []

    def place(column: str | int) -> int:
        if isinstance(column, int):
            if column < len(fields) - 1:
                return column
            last = len(fields) - 2
            raise JobError(f"[data] column {column}: {path} has columns 0 to {last} after the label")
        if column in names:
            return names.index(column)
        have = f"its columns are {', '.join(names)}" if names else "it has no header; use positions from 0"
        raise JobError(f"[data] column {column!r} is not in {path}: {have}")

    crosses = [[place(column) for column in cross] for cross in spec.crosses]
    bucketed = np.zeros(len(fields) - 1, np.uint8)
    bucketed[[place(column) for column in spec.log_buckets]] = 1
    return ParserColumns(
        len(fields) - 1,
        np.array(own_head.places(first), np.int64),
        bucketed,
        np.cumsum([0] + [len(cross) for cross in crosses], dtype=np.int64),
        np.array([column for cross in crosses for column in cross], np.int64),
        own_head.size,
    )


def row_error(separator: bytes, columns: int, text: bytearray, code: int, begin: int) -> str:
    """Describe the error in a delimited row, and the expected form."""
    word = token(text, begin, separator + b"\r\n")
    if code == k.BAD_LABEL:
        return f"label {word} is not one of -1, 0, +1"
    if code == k.BAD_NUMBER:
        return f"{word} in a column of [data] log_buckets is not a finite number"
    found = text.count(separator, begin, text.find(b"\n", begin)) + 1
    return f"found {found} columns where the first line has {columns}, the label counted"


def read_rows(
    path: str,
    spec: DataSpec,
    index: int,
    part: int,
    parts: int,
    tally: Tally,
    size: int = BLOCK,
    first: Head | None = None,
    fields: bool = False,
) -> Generator[Examples, None, int]:
    """Read part `part` of `parts` of a delimited file of categories, hashed to keys of `spec.key_bits` bits.

    A row is a label and a fixed number of fields; an empty field is missing and gives no key. A key depends
    on the column's position and the field's bytes alone (`mpips.data.kernels` has the formula), so it is the
    same in every file and run. `first` is the head of the file by which columns are numbered, unless it is this
    one: where columns have names, they may be in another order here. The keys of one example are sorted; equal
    ones, which only a collision makes, are merged. With `fields`, the field of a key of 64 bits is its column; crosses
    follow. Yields, returns and raises as `read_svmlight`.
    """
    with closing(line_blocks(path, size, parts)) as blocks:
        block = next(blocks)
        if not block.strip():
            more = next(blocks, None)
            if more is None:
                return index
            block += more
        own_head = read_head(path, spec, block)
        of = parser_columns(own_head, first or own_head, spec)
        if own_head.size:
            tally.header = tally.header or f"{_shortened(own_head.fields)} ({path})"
        separator = spec.separator.encode()
        nonzeros = max(BATCH_NONZEROS, of.columns + len(of.cross_ptr) - 1)
        batch = new_batch(index, nonzeros, fields or spec.key_bits == 128)
        if fields:
            batch.fields = partial(fields_of, columns=of.columns, crosses=of.crosses)
        batch.state[k.POS], batch.state[k.LINE] = of.header, int(of.header > 0)
        scratch = np.zeros((2, of.columns), np.uint64)

        def parse(block: NDArray[np.uint8]) -> None:
            k.parse_rows(
                block, part, parts, ord(separator), of.places, of.bucketed, of.cross_ptr, of.cross_columns, scratch,
                batch.labels, batch.indptr, batch.keys, batch.lows, fields, batch.state,
            )  # fmt: skip

        describe = partial(row_error, separator, of.columns + 1)
        return (
            yield from parse_blocks(
                path, chain([block], blocks), batch, parse, describe, spec.on_error, tally
            )
        )
