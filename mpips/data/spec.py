"""The job file's [data] table: the files, their format, and the handling of bad lines."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mpips import typed
from mpips.data.compression import open_data
from mpips.data.examples import empty_files_note
from mpips.data.stream import is_empty
from mpips.errors import InputError, JobError
from mpips.files.patterns import matching


@dataclass(frozen=True)
class DataSpec:
    """The data to read, and how; every field is a key of the job file's [data] table.

    >>> spec = DataSpec(train="people.csv", label="bought", positive="yes", numeric={"age": "quantiles"})
    >>> spec.positive_label, DataSpec.of_table({"train": "a.svm"}).on_error
    ('yes', 'stop')
    """

    train: str | list[str] = ""
    """Files to train on; globs allowed; relative to the job file's folder."""
    test: str | list[str] = ""
    """Files to evaluate on; none: no evaluation."""
    vocab: str = ""
    """Documents of words: the file of the words, one per line."""
    format: Literal["auto", "svmlight", "libffm", "tsv", "hdf5", "csv", "parquet"] = "auto"
    """"svmlight", "libffm", "tsv", "hdf5", "csv", "parquet", or "auto": by name without .gz, .xz, .zst, .bz2, then by
    content; a .csv file is "csv" if `label` is set, and otherwise "tsv"."""
    on_error: Literal["stop", "skip"] = "stop"
    """"stop" at the first bad line, or "skip" bad lines and count them."""
    header: Literal["auto"] | bool = "auto"
    """tsv: whether each file starts with a line of column names; "auto": if its first field is neither a number nor a
    missing label (empty, NA, ?). Names decide which column is which. csv: false if columns have no names; they are then
    called "0", "1", ..."""
    separator: str = "\t"
    """tsv: the character between fields; there is no quoting. csv: a tab means that the first row shows it."""
    label: str = ""
    """csv, parquet: the name of the column of labels."""
    positive: str | bool | int = field(default="", metadata={"at_least": -(1 << 53), "at_most": 1 << 53})
    """csv, parquet: the label of positive examples, all others are negative; "": labels are -1, 0, 1, true or false."""
    numeric: list[str] | dict[str, Literal["standard", "log", "quantiles", "plain"]] = field(
        default_factory=list
    )
    """csv, parquet: the columns of numbers, with their encoding: "standard" (that of a list): less the mean, divided by
    the standard deviation; "log": the same of sign(x) log(1 + |x|); "quantiles": 32 bins with equal numbers of
    examples, each a category; "plain": as they are. A missing number has a key of its own."""
    categorical: list[str] = field(default_factory=list)
    """csv, parquet: the columns of categories; none: all that are not in numeric or ignore."""
    ignore: list[str] = field(default_factory=list)
    """csv, parquet: columns that are not used."""
    missing: list[str] = field(default_factory=lambda: ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "?"])
    """csv, parquet: texts that represent a missing value. A missing category has no key."""
    crosses: list[list[str | int]] = field(default_factory=list)
    """tsv, csv, parquet: sets of columns, each joined into an additional key; columns by name, in tsv also by position
    from 0."""
    column: str | int = ""
    """Tables of keys: the column of the keys, by name or by position from 0; "": each line is a key."""
    weight: str | int = ""
    """Tables of keys: the column of integer weights of the keys, by name or by position; "": weight 1."""
    key_bits: int = 64
    """tsv, csv, parquet: bits of the hash that is the key of a field or cross, 64 or 128."""
    parts: int = field(default=0, metadata={"at_least": 0, "at_most": (1 << 20) - 1})
    """Number of parts of the data, which are distributed over the workers; 0: one for each worker."""
    keep_parsed: float = field(default=1.0, metadata={"at_least": 0, "at_most": 1e9})
    """darlin, with spares: the largest size of a worker's parsed part, in GB, that is kept in the run folder for the
    worker's successor; 0: none is kept."""
    keep_unpacked: float = field(default=100.0, metadata={"at_least": 0, "at_most": 1e9})
    """The largest size of all decompressed files, in GB, that the workers of a host share in its folder of temporary
    files; 0: each worker decompresses by itself."""
    keep_minibatches: float = field(default=1.0, metadata={"at_least": 0, "at_most": 1e9})
    """Online learners with several passes: the largest size of a worker's parsed mini-batches, in GB, that are kept in
    memory for the next pass; 0: none are kept."""
    log_buckets: list[str | int] = field(default_factory=list)
    """tsv: columns of numbers; a number x above 2 has the key of floor(ln(x)^2), as is usual for Criteo's counts."""

    def __post_init__(self) -> None:
        """Raise `JobError` for a value that no reader can use."""
        check_choice("format", self.format, ("auto", "svmlight", "libffm", "tsv", "hdf5", "csv", "parquet"))
        check_choice("on_error", self.on_error, ("stop", "skip"))
        if self.key_bits not in (64, 128):
            raise JobError(f"[data] key_bits = {self.key_bits!r}: must be 64 or 128")
        if self.header != "auto" and not isinstance(self.header, bool):
            raise JobError(f'[data] header = {self.header!r}: must be true, false or "auto"')
        for name in ("train", "test"):
            patterns = as_list(getattr(self, name))
            if not all(isinstance(pattern, str) for pattern in patterns):
                raise JobError(f"[data] {name} = {patterns!r}: must be a file name or a list of file names")
        bad = "\r\n\"'+-.eE0123456789"
        if not isinstance(self.separator, str) or len(self.separator.encode()) != 1 or self.separator in bad:
            text = "must be one ASCII character that is not part of a number"
            raise JobError(f"[data] separator = {self.separator!r}: {text}")
        for cross in self.crosses:
            if not isinstance(cross, list | tuple) or len(cross) < 2 or len(set(cross)) != len(cross):
                raise JobError(f"[data] crosses: {cross!r} must be a list of two or more different columns")
        for name, columns in [("log_buckets", self.log_buckets)] + [
            ("crosses", cross) for cross in self.crosses
        ]:
            for column in columns:
                if not (isinstance(column, str) or (type(column) is int and column >= 0)):
                    text = "a column is given by its name in the header, or by its position after the label, from 0"
                    raise JobError(f"[data] {name}: {column!r}: {text}")

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> DataSpec:
        """Return the spec of a [data] table of a file that may be another's; ValueError: it is not one."""
        return typed.build(cls, table, ("data",))

    @property
    def positive_label(self) -> str | bool | int | None:
        """Return the label of positive examples; None if labels are numbers or booleans."""
        return None if self.positive == "" else self.positive


def check_choice(name: str, value: Any, valid: tuple[str, ...]) -> None:
    """Raise `JobError` unless `value` is one of `valid`."""
    if value not in valid:
        raise JobError(f"[data] {name} = {value!r}: must be one of {', '.join(map(repr, valid))}")


def as_list(names: str | list[str]) -> list[str]:
    """Return one name or several as a list; an empty name gives an empty list."""
    return ([names] if names else []) if isinstance(names, str) else list(names)


class FoundFiles(NamedTuple):
    """The files of names and globs: those to read, and empty ones."""

    files: list[str]
    empty: list[str]


def expand(names: str | list[str], base: str = "") -> list[str]:
    """Return the files of names and globs that are to be read, see `find`.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("part-1.svm", "part-0.svm"):
    ...         _ = Path(folder, name).write_text("+1 3:1")
    ...     [Path(each).name for each in expand("part-*.svm", folder)]
    ['part-0.svm', 'part-1.svm']
    """
    return find(names, base).files


def find(names: str | list[str], base: str = "") -> FoundFiles:
    """Find the files of names and globs, in order; relative names start from folder `base`.

    Empty files are separated, such as the empty parts and marks that other programs write; if all are empty, they are
    to be read, and the reader refuses them. Raises `JobError` for a name or glob without a file, and for what is not a
    regular file.
    """
    files: list[str] = []
    for name in as_list(names):
        path = os.path.join(base, os.path.expanduser(name))
        if "\0" in path:
            raise JobError(f"[data] {name!r} is not a file name")
        try:
            found = [path] if os.path.exists(path) else matching(path)
        except InputError as error:
            raise JobError(f"[data] {error}") from None
        if not found:
            raise JobError(f"[data] {_reason_missing(name, path, base)}")
        for file in found:
            if os.path.isdir(file):
                raise JobError(f"[data] {file} is a folder; name its files, as in {file.rstrip('/')}/*")
            if not os.path.isfile(file):
                # Raises an error that describes it.
                open_data(file).close()
        files += found
    empty = dict.fromkeys(file for file in files if len(files) > 1 and is_empty(file))
    if len(empty) == len(set(files)):
        return FoundFiles(files, [])
    return FoundFiles([file for file in files if file not in empty], list(empty))


def _reason_missing(name: str, path: str, base: str) -> str:
    """Describe why there is no file of a name."""
    if path.startswith(("/dev/fd/", "/proc/")):
        return (
            f"no such file: {name}; a pipe of the shell, as <(...), exists only in one process: write a file"
        )
    try:
        os.stat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"{path} cannot be reached: {error.strerror}"
    where = f" (looked for {path})" if path != name else ""
    start = "the job file's folder" if base else "the working folder"
    return f"no such file: {name}{where}; names are relative to {start}"


def unusual_files(spec: DataSpec, base: str) -> str:
    """Describe a job's empty files, which are not read, and those that are read more than once; "" if none.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.svm").write_text("+1 3:1")
    ...     unusual_files(DataSpec(train=["a.svm", "a.svm"]), folder).partition(",")[0]
    '1 files are named'
    """
    train, test = find(spec.train, base), find(spec.test, base)
    empty = [*train.empty, *test.empty]
    notes = [empty_files_note(empty)] if empty else []
    for files in (train.files, test.files):
        twice = [file for file, times in Counter(files).items() if times > 1]
        if twice:
            notes.append(f"{len(twice):,} files are named, and read, more than once, the first: {twice[0]}")
    return "\n".join(notes)


def resolve(spec: DataSpec, base: str) -> DataSpec:
    """Return the spec with globs expanded and absolute paths; `base` is the job file's folder.

    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.svm").write_text("+1 3:1")
    ...     resolve(DataSpec(train="*.svm"), folder).train == [str(Path(folder, "a.svm"))]
    True
    """
    folder = os.path.abspath(base)
    vocab = expand(spec.vocab, folder)
    if len(vocab) > 1:
        raise JobError(f"[data] vocab = {spec.vocab!r} matches {len(vocab)} files; name one")
    return replace(
        spec, train=expand(spec.train, folder), test=expand(spec.test, folder), vocab="".join(vocab)
    )
