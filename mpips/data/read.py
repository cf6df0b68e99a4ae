"""Read a worker's part of the examples from files of any format."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from mpips.data import csr, text
from mpips.data.compression import HDF5_MAGIC, magic, name_without_compression
from mpips.data.examples import Examples, Tally
from mpips.data.spec import DataSpec, as_list
from mpips.data.stream import line_blocks
from mpips.data.tables.encoding import Encoding
from mpips.data.tables.reader import begun_encoding, read_table, summarise
from mpips.errors import DataError

Reader = Callable[[str, DataSpec, int, int, int, Tally], Generator[Examples, None, int]]

TABLES = "csv", "parquet"
HASHED_FORMATS = "tsv", *TABLES
"""Formats whose keys are hashes: those of tables, by names of columns, and of delimited text, by places."""
MAGICS = {HDF5_MAGIC: "hdf5", b"PAR1": "parquet"}
READERS: dict[str, Reader] = {
    "svmlight": text.read_svmlight, "libffm": text.read_libffm, "tsv": text.read_rows, "hdf5": csr.read_csr,
}  # fmt: skip
ENDINGS = {
    "svm": "svmlight", "svmlight": "svmlight", "libsvm": "svmlight",
    "ffm": "libffm", "libffm": "libffm",
    "tsv": "tsv", "csv": "tsv", "tab": "tsv",
    "h5": "hdf5", "hdf5": "hdf5", "hdf": "hdf5",
    "parquet": "parquet", "pq": "parquet",
}  # fmt: skip


def named_format(path: str) -> str:
    """Return the format by a file's name, or "" if the name has none."""
    return ENDINGS.get(os.path.splitext(name_without_compression(path))[1][1:].lower(), "")


def format_of(path: str, spec: DataSpec) -> str:
    """Return a file's format: as the spec says, else by magic number, name or first lines.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.csv")
    ...     _ = path.write_text("age,bought")
    ...     format_of(str(path), DataSpec()), format_of(str(path), DataSpec(label="bought"))
    ('tsv', 'csv')
    >>> HASHED_FORMATS  # those whose keys are hashes of columns and texts
    ('tsv', 'csv', 'parquet')
    """
    start = magic(path)
    detected = next((form for begin, form in MAGICS.items() if start.startswith(begin)), "")
    if detected and spec.format not in ("auto", detected):
        kind = {"hdf5": "an HDF5", "parquet": "a Parquet"}[detected]
        raise DataError(f"{path}: is {kind} file but [data] format = {spec.format!r}")
    found = detected or (named_format(path) if spec.format == "auto" else spec.format)
    if found == "parquet" and not detected:
        raise DataError(f"{path}: is not a Parquet file: it does not start with PAR1")
    if found == "tsv" and spec.format == "auto" and spec.label:
        return "csv"
    return found or guess_format(path, spec)


def guess_format(path: str, spec: DataSpec) -> str:
    """Distinguish svmlight, libffm and delimited text by the first line that differs."""
    blocks = line_blocks(path, 1 << 16)
    try:
        block = next(blocks)
        whole = next(blocks, None) is None
    finally:
        blocks.close()
    for line in bytes(block).decode("utf-8", "replace").split("\n"):
        words = line.partition("#")[0].split()
        if len(words) > 1 and all(word.partition(":")[0].isdecimal() and ":" in word for word in words[1:3]):
            return "libffm" if words[1].count(":") == 2 else "svmlight"
        if spec.separator in line.strip():
            return "tsv"
    if any(line.split(b"#")[0].split() for line in block.split(b"\n")):
        return "svmlight"
    if whole:
        # The file holds no examples.
        return "svmlight"
    raise DataError(f"{path}: holds no examples that show its format; set [data] format")


def files_of_part(files: Sequence[str], part: int, parts: int) -> tuple[list[str], int, int]:
    """Return (files, part, parts) to read for one part of `files`.

    With at least as many files as parts, part p takes the whole files whose index is p modulo `parts`; else
    it takes the examples whose index is p modulo `parts`, counted over all the files.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part {part} of {parts}: parts are numbered from 0")
    if len(files) >= parts:
        return list(files[part::parts]), 0, 1
    return list(files), part, parts


def read(
    files: Sequence[str],
    spec: DataSpec,
    part: int = 0,
    parts: int = 1,
    tally: Tally | None = None,
    opening: Callable[[str], None] = lambda path: None,
    encoding: Encoding | None = None,
    coarse: int = 0,
    fields: bool = False,
) -> Iterator[Examples]:
    """Read part `part` of `parts` of the files' examples, as a stream of batches in order.

    A batch holds up to about 260,000 non-zeros; memory stays bounded whatever the files' size. An example's
    index counts every line that is not blank or a comment, bad ones too. Columns with names are numbered as in the
    first file of [data] train, or else of `files`. `tally` is updated while reading. `opening` is called with each
    file before it is opened. `encoding` is that of tables, CSV and Parquet; None: it is learned from [data] train, or
    else from `files`. `coarse`, a divisor of `parts` or 0: part p has examples of part p modulo `coarse` of `coarse`
    only. With `fields`, examples have the field of each key: its column or cross, or that of the file's own format.
    Raises `DataError` with file and line.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a.svm")
    ...     _ = path.write_text("+1 3:0.5")
    ...     [(each.keys.tolist(), each.values.tolist()) for each in read([str(path)], DataSpec())]
    [([3], [0.5])]
    """
    tally = Tally() if tally is None else tally
    own_files, part, parts = files_of_part(files, part, parts)
    if encoding is None and spec.label:
        encoding = encoding_of(files, spec)
    whole = max(len(files), len(as_list(spec.train)), len(as_list(spec.test)))
    first: text.Head | None = None
    index = 0
    for path in own_files:
        opening(path)
        before, form = index, format_of(path, spec)
        if encoding is not None and form == "tsv" and spec.format == "auto":
            # Rows without labels.
            form = "csv"
        if spec.key_bits != 64 and form not in HASHED_FORMATS:
            raise DataError(
                f"{path}: [data] key_bits = {spec.key_bits} needs columns that are hashed "
                f"({', '.join(HASHED_FORMATS)}), not {form}"
            )
        if fields:
            check_fields(path, form, spec)
        if form in TABLES:
            if encoding is None:
                # Raises an error if [data] label is not set.
                begun_encoding([(path, form)], spec)
                raise DataError(f"{path}: is a table ({form}), and the training data are not")
            reading = read_table(path, form, spec, encoding, index, part, parts, tally, coarse, fields)
            index = yield from reading
        elif encoding is not None:
            raise DataError(f"{path}: is in the format {form}, and the training data are tables")
        elif form == "tsv":
            first = first or first_head(files, spec)
            reading = text.read_rows(path, spec, index, part, parts, tally, first=first, fields=fields)
            index = yield from reading
        else:
            index = yield from READERS[form](path, spec, index, part, parts, tally)
        if index == before:
            if whole == 1 and spec.on_error == "stop":
                only = "" if form in ("hdf5", *TABLES) else ", only blank lines or comments"
                raise DataError(f"{path}: holds no examples{only}")
            tally.add(Tally(empty=[path]))


def check_fields(path: str, form: str, spec: DataSpec) -> None:
    """Raise DataError unless the keys of a file, of this format, have fields."""
    if spec.key_bits != 64:
        raise DataError(f"{path}: keys have fields with [data] key_bits = 64 alone, not {spec.key_bits}")
    if form == "svmlight":
        raise DataError(
            f"{path}: lines of svmlight have no fields: give lines of libffm (label field:id:value), a table, or rows"
            " of columns"
        )
    if form == "hdf5" and not csr.has_fields(path):
        raise DataError(f"{path}: has no data set fields; `mpips convert` writes it for lines of libffm")


def field_count(spec: DataSpec, encoding: Encoding | None) -> int:
    """Return the number of fields of columns and crosses; 0 if the files' own format says the field of each key."""
    columns = 0
    if encoding is not None:
        columns = len(encoding.categorical) + len(encoding.numeric) + 1
    elif (head := first_head([], spec)) is not None:
        columns = len(head.fields) - 1
    return columns + len(spec.crosses) if columns else 0


def table_files(spec: DataSpec) -> list[tuple[str, str]]:
    """Return the files of [data] train with their formats if they are tables; otherwise []."""
    found = [(path, format_of(path, spec)) for path in as_list(spec.train)]
    return found if any(form in TABLES for _, form in found) else []


def encoding_of(files: Sequence[str], spec: DataSpec) -> Encoding | None:
    """Learn the encoding of tables from [data] train, or else from `files`, by reading all of them.

    None if the first is not a table. In a run the workers share this work: see `Source`.
    """
    of = spec if spec.train else replace(spec, train=list(files))
    tables = table_files(of)
    if not tables:
        return None
    found = begun_encoding(tables, of)
    return found.learned(summarise(tables, of, found, 0, 1)) if found.learns else found


def first_head(files: Sequence[str], spec: DataSpec) -> text.Head | None:
    """Read the line that numbers the columns: that of the first file of [data] train, or else of `files`."""
    train = [each for each in as_list(spec.train) if os.path.isfile(each)]
    heads = (text.first_head(each, spec) for each in [*train, *files] if format_of(each, spec) == "tsv")
    return next((found for found in heads if found is not None), None)
