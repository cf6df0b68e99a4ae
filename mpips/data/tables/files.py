"""Rows of table files in batches: CSV with quotes, as a stream, and Parquet, by row groups (both by pyarrow)."""

from __future__ import annotations

import csv
import io
import re
import sys
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.data.compression import open_data
from mpips.data.examples import Tally
from mpips.data.spec import DataSpec
from mpips.data.stream import BLOCK, check_text, chunks
from mpips.data.tables.columns import TEXTS, arrow, shown
from mpips.errors import DataError

SEPARATORS = ",;\t|"
MOST_ROWS = 1 << 16
"""Rows of a batch of a Parquet file."""
MOST_BYTES = 1 << 28
"""Bytes of such a batch, unless a row has more."""
END = 1 << 12
"""Bytes of the end of a CSV file that are kept to look for a quote."""


class Batch(NamedTuple):
    """Rows of a file."""

    columns: dict[str, Any]
    """By name, as arrays of Arrow."""
    rows: NDArray[np.int64]
    """i8[n], the number of each in the file."""


def names_of(path: str, spec: DataSpec, form: str) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        DataError: two columns have the same name, one has a null character, or the file is not one of the format.
    """
    names = _parquet_names(path) if form == "parquet" else _head(path, spec).names
    names = [name.strip() for name in names]
    odd = next((name for name in names if "\0" in name), None)
    if odd is not None:
        raise DataError(f"{path}: the name of column {odd!r} has a null character; rename it")
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise DataError(f"{path}: column {twice!r} is there twice; rename one")
    return names


class _Text(io.RawIOBase):
    """The decompressed text of a file, without a byte order mark."""

    def __init__(self, path: str, readers: int = 1) -> None:
        self._path, self._chunks = path, chunks(path, readers=readers)
        self._left = memoryview(b"")
        self._begun = False
        self.end = b""
        """The last bytes that were read."""
        # Arrow reads ahead in a thread, which an error does not stop at once.
        self._reading = Lock()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        with self._reading:
            if not self._left:
                chunk = next(self._chunks, b"")
                if not self._begun:
                    chunk, self._begun = chunk[check_text(self._path, chunk) :], True
                if not chunk and self.end and not self.end.endswith(b"\n"):
                    # Arrow takes a last row of names for a part of one.
                    chunk = b"\n"
                self.end = chunk[-END:] if len(chunk) >= END else (self.end + chunk)[-END:]
                self._left = memoryview(chunk)
            size = min(len(target), len(self._left))
            target[:size], self._left = self._left[:size], self._left[size:]
            return size

    def close(self) -> None:
        with self._reading:
            self._chunks.close()
        super().close()


class _Head(NamedTuple):
    """The beginning of a CSV file."""

    names: list[str]
    """Of the columns; their places if the file has no names."""
    separator: str
    rows: int
    """Rows before the first one of data: that of the names, and blank ones before it."""


def _head(path: str, spec: DataSpec) -> _Head:
    """Read the beginning of a CSV file."""
    with closing(_Text(path)) as stream:
        text = io.BufferedReader(stream, BLOCK).read(BLOCK).decode("utf-8", "replace")
    line = ""
    for line in text.splitlines(keepends=True):
        if line.strip():
            break
    outside = "".join(part for at, part in enumerate(line.split('"')) if at % 2 == 0)
    sniffed = max(SEPARATORS, key=outside.count)
    separator = sniffed if spec.separator == "\t" else spec.separator
    try:
        rows = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        blank, first = next(((at, row) for at, row in rows if len(row) > 1 or "".join(row).strip()), (0, []))
    except csv.Error as error:
        raise DataError(f"{path}: row 1: {error}") from None
    if not first:
        raise DataError(f"{path}: holds no examples")
    if not spec.header:
        return _Head([str(place) for place in range(len(first))], separator, 0)
    return _Head(first, separator, blank + 1)


def csv_batches(
    path: str,
    spec: DataSpec,
    wanted: Sequence[str],
    index: int,
    part: int,
    parts: int,
    tally: Tally,
    coarse: int = 0,
) -> Generator[Batch, None, int]:
    """Read part `part` of `parts` of the rows of a CSV file; return the index after the last row.

    A part is every `parts`-th row, whatever `coarse` is. Rows with too few or too many columns have no index; part 0
    counts them.
    """
    pa, pa_csv = arrow(), arrow("pyarrow.csv")
    raw, separator, head = _head(path, spec)
    of_name = {name.strip(): name for name in raw}
    # The last cell of a file shows whether a quote is open at its end.
    columns = list(dict.fromkeys([*(of_name[name] for name in wanted), raw[-1]]))
    last = b""
    broken: list[int] = []

    def broken_row(row: Any) -> str:
        broken.append(row.number)
        if part == 0:
            text = _wrong_columns(row.actual_columns, row.expected_columns, row.text)
            tally.skip(f"{path}: row {row.number}: {text}")
        return "skip"

    first, begin = index, head + 1
    with closing(_Text(path, parts)) as stream:
        try:
            options: dict[str, Any] = {
                "read_options": pa_csv.ReadOptions(
                    use_threads=False,
                    block_size=BLOCK,
                    column_names=raw,
                    skip_rows_after_names=head,
                ),
                "parse_options": pa_csv.ParseOptions(
                    delimiter=separator, newlines_in_values=True,
                    # A handler is given texts, so that one that is not UTF-8 is an error in any case.
                    invalid_row_handler=broken_row if spec.on_error == "skip" else None,
                ),
                "convert_options": pa_csv.ConvertOptions(
                    check_utf8=False, include_columns=columns,
                    column_types=dict.fromkeys(raw, pa.binary()), null_values=list(spec.missing),
                    strings_can_be_null=True, quoted_strings_can_be_null=True,
                ),
            }  # fmt: skip
            with _without_trace(broken_row):
                reader = pa_csv.open_csv(io.BufferedReader(stream, BLOCK), **options)
            while True:
                with _without_trace(broken_row):
                    batch = next(reader, None)
                if batch is None:
                    break
                size = batch.num_rows
                if size:
                    last = batch.column(raw[-1])[size - 1].as_py() or b""
                picked = np.arange((part - index) % parts, size, parts)
                if parts > 1:
                    batch = batch.take(pa.array(picked))
                rows = _numbers(index - first + np.arange(size), begin, broken)
                yield Batch({name: batch.column(of_name[name]) for name in wanted}, rows[picked])
                index += size
                # Those before the next row.
                passed = bisect(broken, rows[-1]) if size else 0
                begin += passed
                del broken[:passed]
            if not broken and _is_open(last, stream.end):
                number = begin + index - first - 1
                raise DataError(
                    f"{path}: row {number}: a quote is not closed: all that follows is in its cell {shown(last)}"
                )
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: {_csv_error(str(error))}") from None
    return index


@contextmanager
def _without_trace(handler: Callable[..., Any]) -> Iterator[None]:
    """Print no traceback for rows that are no UTF-8, which Arrow decodes for a handler: it reports them itself."""
    before = sys.unraisablehook

    def hook(found: Any) -> None:
        if found.object is not handler:
            before(found)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _numbers(sound: NDArray[np.int64], begin: int, broken: Sequence[int]) -> NDArray[np.int64]:
    """Return the numbers of rows in a file, i8[n].

    Args:
        sound: i8[n], the number of sound rows before each.
        begin: the number of the first row of data; more by one for each broken row that `broken` does not have.
        broken: the numbers of broken rows, ascending.
    """
    # The number of sound rows before each broken one.
    before = np.array(broken, np.int64) - begin - np.arange(len(broken))
    return sound + begin + np.searchsorted(before, sound, side="right")


def _is_open(last: bytes, end: bytes) -> bool:
    """Return whether a CSV file ends in a quoted cell, by its last cell and its last bytes: there may be a newline."""
    closed = b'"' + last.replace(b'"', b'""') + b'"'
    return last.endswith((b"\n", b"\r")) and not end.rstrip(b"\r\n").endswith(closed[-END // 2 :])


def _wrong_columns(found: int, expected: int, text: str) -> str:
    return f"has {found} columns where the first row has {expected}: {shown(text.encode())}"


def _csv_error(text: str) -> str:
    if "straddling" in text:
        return f"a row is longer than {BLOCK >> 20} MiB; is a quote missing?"
    row = re.match(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", text, re.DOTALL)
    if row is not None:
        return f"row {row[1]}: {_wrong_columns(int(row[3]), int(row[2]), row[4])}"
    return f"is not CSV: {' '.join(text.split())}"


def _parquet_file(path: str, file: Any, **how: Any) -> Any:
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    try:
        opened = parquet.ParquetFile(file, **how)
        # UnicodeError, here or there: the name of a column is no UTF-8.
        opened.schema_arrow.names  # noqa: B018
        return opened
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise DataError(
            f"{path}: is not a sound Parquet file: {' '.join(str(error).split())[:200]}"
        ) from None


def _parquet_names(path: str) -> list[str]:
    with open_data(path) as file:
        return [str(name) for name in _parquet_file(path, file).schema_arrow.names]


def parquet_batches(
    path: str,
    spec: DataSpec,
    wanted: Sequence[str],
    index: int,
    part: int,
    parts: int,
    tally: Tally,
    coarse: int = 0,
) -> Generator[Batch, None, int]:
    """Read part `part` of `parts` of the rows of a Parquet file; return the index after the last row.

    With at least as many row groups as parts, a part has whole row groups, and other ones are not read. Part p of the
    multiple of a number `coarse` of parts has rows of part p modulo `coarse` of `coarse` only.
    """
    coarse = min(coarse, parts) or parts
    pa = arrow()
    with open_data(path) as file:
        schema = _parquet_file(path, file).schema_arrow
        of_name = {name.strip(): name for name in schema.names}
        # Each different text once: a small file may hold terabytes of equal ones.
        texts = [of_name[name] for name in wanted if str(schema.field(of_name[name]).type) in TEXTS]
        file.seek(0)
        opened = _parquet_file(path, file, read_dictionary=texts)
        groups = opened.metadata.num_row_groups
        sizes = [opened.metadata.row_group(group).num_rows for group in range(groups)]
        whole, fine = groups >= coarse, parts // coarse
        first = begin = 0
        for group, size in enumerate(sizes):
            first, begin = begin, begin + size
            if whole and group % coarse != part % coarse:
                continue
            at = first
            most = _batch_rows(opened.metadata.row_group(group))
            try:
                columns = [of_name[name] for name in wanted]
                for batch in opened.iter_batches(most, [group], columns, use_threads=False):
                    picked = np.arange(batch.num_rows)
                    if whole:
                        picked = picked[(at - first + picked) % fine == part // coarse]
                    else:
                        picked = picked[(index + at + picked) % parts == part]
                    rows = at + picked + 1
                    at += batch.num_rows
                    if len(picked) < batch.num_rows:
                        batch = batch.take(pa.array(picked))
                    yield Batch({name: batch.column(of_name[name]) for name in wanted}, rows)
            except (pa.ArrowException, OSError, UnicodeError) as error:
                text = " ".join(str(error).split())[:200]
                raise DataError(f"{path}: row group {group}: is damaged: {text}") from None
            if at != begin:
                raise DataError(
                    f"{path}: row group {group}: is damaged: has {at - first:,} rows and declares {size:,}"
                )
    return index + begin


def _batch_rows(group: Any) -> int:
    """Return the rows of a row group, by its metadata, that are read at a time."""
    size = max(1, group.total_byte_size)
    return int(max(1, min(MOST_ROWS, MOST_BYTES * group.num_rows // size)))


BATCHES = {"csv": csv_batches, "parquet": parquet_batches}
