"""Sources of keys: lines or columns of text files, or a Zipf distribution; cut into parts, and these into batches.

The items of a part's batch are always the same, for any reader: so another worker can continue the part of a lost one
(`servers`). Therefore a batch ends after a number of lines or bytes, never after a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Cut, DataError, InputError, JobError
from mpips.data import DataSpec
from mpips.data.compression import open_data
from mpips.data.stream import BLOCK, line_blocks
from mpips.data.text import token
from mpips.jobs.sketch import scan, tables
from mpips.jobs.sketch.settings import Settings
from mpips.jobs.sketch.tables import Rows

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
MOST_BYTES = 64 << 20
"""Bytes of text in a batch: it is kept until its heavy keys are known, to look up their texts."""
PIECE = 1 << 18
"""Generated keys that are counted at a time; messages are processed in between."""


class Block(NamedTuple):
    """Whole lines of a file, `before` lines after its start; `columns` are those of the keys and the weights, or -1."""

    path: str
    before: int
    text: bytearray
    columns: tuple[int, int]


class Chunk(NamedTuple):
    """Keys, their weights (None: each 1), and their positions in the text, if they are from a text."""

    keys: Keys
    weights: Counts | None = None
    text: bytearray | None = None
    begins: Counts | None = None
    ends: Counts | None = None

    def name(self, index: int) -> bytes:
        """Return the text of a key."""
        assert self.text is not None and self.begins is not None and self.ends is not None
        return bytes(self.text[self.begins[index] : self.ends[index]])


# --- Text ------------------------------------------------------------------------------------------------------------


def block_size(files: Sequence[str], parts: int) -> int:
    """Choose the number of bytes to read at a time, so that also small files have some blocks for every part."""
    sizes = []
    for file in files:
        with open_data(file) as opened:
            sizes.append(os.fstat(opened.fileno()).st_size)
    return min(max(sum(sizes) // (16 * parts), 1 << 12), BLOCK)


def check(spec: DataSpec) -> None:
    """Raise JobError for invalid columns, or files, of resolved [data], that are tables beside others that are not."""
    for name, column in (("column", spec.column), ("weight", spec.weight)):
        if isinstance(column, int) and column < 0:
            raise JobError(
                f"[data] {name} = {column}: a column is named by the header, or by its place from 0"
            )
    if spec.weight != "" and spec.column == "":
        raise JobError("[data] weight needs column, which says where the keys are")
    kinds = {tables.is_named_parquet(path): path for path in reversed(spec.train)}
    if spec.format == "auto" and len(kinds) > 1:
        raise JobError(
            f"[data] train: {kinds[True]} is a Parquet file and {kinds[False]} is text: count them in two runs"
        )


def blocks(
    spec: DataSpec, part: int, parts: int, size: int, opening: Callable[[str], None] = lambda path: None
) -> Iterator[Block | Rows]:
    """Read the blocks of one part: whole files if there are enough of them, else every n-th block, or rows of tables.

    `opening` is called with each file before it is opened.
    """
    if any(tables.form_of(path, spec) for path in spec.train):
        yield from tables.rows(spec, spec.train, part, parts, opening)
        return
    number = 0
    for files, mine, of in Cut(parts).slices(spec.train, [part]):
        for path in files:
            opening(path)
            lines, columns = 0, None
            for text in line_blocks(path, size, of):
                if columns is None:
                    columns, header = _columns(path, spec, text)
                    lines = int(header > 0)
                    del text[:header]
                count = text.count(b"\n")
                if number % of == mine:
                    yield Block(path, lines, text, columns)
                lines, number = lines + count, number + 1


def header(spec: DataSpec) -> str:
    """Return the column names of the first file, and the file's name; "" if names are not used, or it is a table."""
    if tables.form_of(spec.train[0], spec):
        return ""
    for text in line_blocks(spec.train[0], 1 << 12):
        size = _columns(spec.train[0], spec, text)[1]
        names = bytes(text[:size]).decode("utf-8", "replace").split(spec.separator)
        return f"{', '.join(name.strip() for name in names)} ({spec.train[0]})" if size else ""
    return ""


def first_row(spec: DataSpec) -> str:
    """Return the first file's first line if it may be a header but is read as a row; else ""."""
    is_table = tables.form_of(spec.train[0], spec) != ""
    if spec.header != "auto" or is_table or not isinstance(spec.column, int) or spec.weight != "":
        return ""
    return f"{spec.separator.join(_first_fields(spec))[:100]!r} ({spec.train[0]})"


def _first_fields(spec: DataSpec) -> list[str]:
    """Return the first line of the first file: if it has names, those of later files may have them, too."""
    text = next(line_blocks(spec.train[0], 1 << 12), bytearray())
    return bytes(text[: text.find(b"\n")]).decode("utf-8", "replace").rstrip("\r").split(spec.separator)


def _weighs_nothing(fields: Sequence[str], spec: DataSpec) -> bool:
    """Return whether a line has no number in the column of weights, like a line of names."""
    if not isinstance(spec.weight, int) or spec.weight >= len(fields):
        return False
    try:
        float(fields[spec.weight])
    except ValueError:
        return True
    return False


def _columns(path: str, spec: DataSpec, text: bytearray) -> tuple[tuple[int, int], int]:
    """Find the columns of keys and weights, from the first line if they have names; return the header's bytes too."""
    named = any(isinstance(column, str) and column for column in (spec.column, spec.weight))
    end = text.find(b"\n") + 1
    names = bytes(text[:end]).decode("utf-8", "replace").rstrip("\r\n").split(spec.separator)
    header = spec.header
    if header == "auto":
        header = named or (_weighs_nothing(names, spec) and _weighs_nothing(_first_fields(spec), spec))
    if named and not header:
        raise JobError("[data] header = false: then columns are named by their places from 0")

    def place(column: str | int) -> int:
        if isinstance(column, int):
            return column
        if column and column not in names:
            raise DataError(f"{path}:1: has no column {column!r}; its columns are {', '.join(names)}"[:300])
        if column and names.count(column) > 1:
            raise DataError(
                f"{path}:1: has {names.count(column)} columns {column!r}; rename them, or give a place"
            )
        return names.index(column) if column else -1

    return (place(spec.column), place(spec.weight)), end if header else 0


def parsed(block: Block | Rows, spec: DataSpec, skipped: list[str]) -> Chunk:
    """Find the keys of a block; bad lines are an error, or are listed in `skipped` if the job allows them.

    Raises:
        DataError: names file and line.
    """
    if isinstance(block, Rows):
        skipped += block.skipped
        return Chunk(block.keys, block.weights, block.text, block.begins, block.ends)
    text = np.frombuffer(block.text, np.uint8)
    most = block.text.count(b"\n")
    keys, begins = np.empty(most, np.uint64), np.empty(most, np.int64)
    ends, weights = np.empty(most, np.int64), np.empty(most, np.int64)
    state = np.zeros(scan.STATE, np.int64)
    column, weight = block.columns
    while state[scan.POS] < len(text):
        scan.parse(text, state, ord(spec.separator), column, weight, keys, begins, ends, weights)
        if state[scan.CODE] != scan.DONE:
            error = f"{block.path}:{block.before + state[scan.LINE]}: {_wrong(block, spec, state)}"
            if spec.on_error == "stop":
                raise DataError(error)
            skipped.append(error)
    n = int(state[scan.FOUND])
    if weight >= 0 and weights[:n].sum(dtype=np.float64) >= 2.0**62:
        raise DataError(
            f"{block.path}:{block.before + 1}: from here on the weights add up to more than 2**62"
        )
    return Chunk(keys[:n], weights[:n] if weight >= 0 else None, block.text, begins[:n], ends[:n])


def _wrong(block: Block, spec: DataSpec, state: Counts) -> str:
    at = int(state[scan.AT])
    if state[scan.CODE] == scan.BAD_WEIGHT:
        word = token(block.text, at, spec.separator.encode() + b"\r\n")
        return f"weight {word} is not a whole number from 0 to 10**18 - 1"
    found = f"{at} column{'s' if at > 1 else ''}"
    return f"found {found} where column {max(block.columns)} was expected, counted from 0; is [data] separator right?"


class Text:
    """The batches of one part of text files, from the `done`-th on."""

    def __init__(
        self, spec: DataSpec, lines: int, skipped: list[str], stream: Iterable[Block | Rows]
    ) -> None:
        self._spec, self._lines, self._skipped, self._stream = spec, lines, skipped, iter(stream)

    def batches(self, done: int) -> Iterator[Iterator[Chunk]]:
        """Return the batches, each as its chunks."""
        for batch in islice(self._cut(), done, None):
            yield (parsed(block, self._spec, self._skipped) for block in batch)

    def _cut(self) -> Iterator[list[Block | Rows]]:
        batch: list[Block | Rows] = []
        lines = size = 0
        for block in self._stream:
            batch.append(block)
            lines += len(block.begins) if isinstance(block, Rows) else block.text.count(b"\n")
            size += len(block.text)
            if lines >= self._lines or size >= MOST_BYTES:
                yield batch
                batch, lines, size = [], 0, 0
        if batch:
            yield batch


# --- Zipf ------------------------------------------------------------------------------------------------------------


class Zipf(NamedTuple):
    """A generated stream of `items` keys: the k-th most frequent has probability proportional to k^-exponent."""

    exponent: float
    items: int
    keys: int
    """The number of different keys."""
    seed: int
    batch: int
    """Items of a batch."""

    def size(self, part: int, parts: int, number: int) -> int:
        """Return the number of items of a batch of a part; 0 or less after the last one."""
        mine = self.items // parts + (part < self.items % parts)
        return min(self.batch, mine - number * self.batch)

    def numbers(self, part: int, parts: int, number: int) -> Iterator[Keys]:
        """Draw the items of a batch as numbers from 1, the most frequent, to `keys`."""
        state = np.random.SeedSequence([self.seed, part, number]).generate_state(1, np.uint64)[0]
        left = self.size(part, parts, number)
        while left > 0:
            drawn = np.empty(min(left, PIECE), np.uint64)
            state = np.uint64(scan.zipf(drawn, state, self.exponent, self.keys))
            left -= len(drawn)
            yield drawn

    def batches(self, part: int, parts: int, done: int) -> Iterator[Iterator[Chunk]]:
        """Return the batches of a part from the `done`-th on, each as its chunks."""
        while self.size(part, parts, done) > 0:
            yield map(_scrambled, self.numbers(part, parts, done))
            done += 1


def _scrambled(numbers: Keys) -> Chunk:
    scan.scramble(numbers)
    return Chunk(numbers)


# --- Keys to query -------------------------------------------------------------------------------------------------


def hashes(words: Sequence[str], text: bool) -> Keys:
    """Convert keys given as text to the counted keys: the hash of a text, or the number itself.

    Raises:
        InputError: the sketch counts numbers, and a key is not one.
    """
    out = np.empty(len(words), np.uint64)
    for at, word in enumerate(words):
        if text:
            raw = np.frombuffer(word.encode("utf-8", "surrogateescape"), np.uint8)
            out[at] = scan.hashed(raw.copy(), 0, len(raw))
            continue
        if not (word.isascii() and word.isdigit() and int(word) < 2**64):
            raise InputError(f"{word!r} is not a key of this sketch, which counts whole numbers below 2**64")
        out[at] = int(word)
    return out


def zipf_of(settings: Settings, seed: int) -> Zipf | None:
    """Return the job's generated stream, if any."""
    if not settings.zipf:
        return None
    return Zipf(settings.zipf, settings.items, settings.keys, seed, settings.batch)
