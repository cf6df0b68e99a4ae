"""A trained model: the weights, and the classes of examples in files, arrays and sparse matrices."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ALL,
    KEY128,
    MANIFEST,
    DataError,
    InputError,
    Model,
    UsageError,
    explained,
    load_range,
    npz,
    read_manifest,
    replacing,
)
from mpips import keys as key_arrays
from mpips.data import DataSpec, Examples, Tally, expand, format_of, read, write
from mpips.data.spec import as_list
from mpips.data.tables.encoding import Encoding
from mpips.data.tables.names import key_names
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.evaluate import MODEL
from mpips.jobs.sparse_lr.lines import format_of_lines, names_columns, names_line

F8 = NDArray[np.float64]
SHOWN = 20
"""Number of the largest weights that are shown."""
MOST_CELLS = 1 << 24
"""Cells of a dense matrix that are converted at a time."""


class LogisticModel(Model):
    """The weights of sparse logistic regression: P(y = 1 | x) = 1 / (1 + exp(-x.w)).

    Data are

    * a scipy sparse matrix or array, or a 2-dimensional array of numbers: column j has the key j, as the id j in an
      svmlight file;
    * the name of a file, or a list of names: read as the job's [data] says;
    * of a model that was trained on tables, a frame of pandas, polars or Arrow, or a table of columns {name: values};
      labels may be missing;
    * `mpips.data.Examples`.

    Keys without a weight count as 0. Values are rounded to float32, as in training.

    Args:
        keys: u8[n] or KEY128[n], ascending and each once.
        weights: f8[n].
        data: how files are read.
        encoding: how tables become keys and values, of a model that was trained on them.

    >>> import numpy as np
    >>> model = LogisticModel(np.array([0, 2], np.uint64), np.array([2.0, -1.0]))
    >>> model.decision_function(np.array([[1.0, 5.0, 0.0], [0.0, 0.0, 3.0]])).tolist()
    [2.0, -3.0]
    >>> model.predict(np.array([[1.0, 5.0, 0.0], [0.0, 0.0, 3.0]])).tolist()
    [1, -1]
    """

    def __init__(
        self,
        keys: key_arrays.KeyArray,
        weights: F8,
        data: DataSpec | None = None,
        encoding: Encoding | None = None,
    ) -> None:
        self.keys, self.weights, self.data, self.encoding = keys, weights, data or DataSpec(), encoding
        self.with_fields = False
        """Whether the model needs the fields of keys."""
        if encoding is not None:
            # Rows of tables need no labels.
            self.data = replace(self.data, label="", positive="")

    def decision_function(self, data: Any) -> F8:
        """Return x.w of each example, f8[n].

        Raises:
            UsageError: the data are of no form that is listed above.
            DataError: a file is wrong, one line with file and line.
        """
        scores = [np.empty(0), *(self._score(batch) for batch in self._batches(data))]
        return np.concatenate(scores)

    def predict_proba(self, data: Any) -> F8:
        """Return the probabilities of the labels -1 and +1, f8[n, 2]. Errors as `decision_function`."""
        return probabilities(self.decision_function(data))

    def predict(self, data: Any) -> NDArray[np.int64]:
        """Return the more probable label of each example, -1 or +1, i8[n]. Errors as `decision_function`."""
        return np.where(self.decision_function(data) > 0.0, 1, -1)

    def query(self, keys: Sequence[str]) -> list[float]:
        """Return the weights of keys, given as whole numbers; 0 of a key without one.

        Raises:
            InputError: one is no whole number, or too large.
        """
        at = self._places(self._asked(keys))
        found: list[float] = np.where(at < 0, 0.0, np.append(self.weights, 0.0)[at]).tolist()
        return found

    def vectors(self) -> dict[str, tuple[key_arrays.KeyArray, NDArray[Any]]]:
        """Return the weights as vector `w`."""
        return {"w": (self.keys, self.weights[:, None])}

    def names(self, keys: key_arrays.KeyArray | None = None) -> list[str]:
        """Return a name of each key, or of some `keys`, such as `city=Rome`: of a model of tables, else [].

        Texts are not in the model, but in the training data, which are read for this until all are found. A key of
        which there is no text has the name "".

        Raises:
            DataError: the training data cannot be read.
        """
        if self.encoding is None:
            return []
        files = [(path, format_of(path, self.data)) for path in as_list(self.data.train)]
        # Rows without labels, as here, are not read as tables by their names alone.
        tables = [(path, "csv" if form == "tsv" else form) for path, form in files]
        return key_names(tables, self.data, self.encoding, self.keys if keys is None else keys)

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write a line for each example: its number from 0, and the probability of the label +1."""
        tally, number = Tally(), 0
        with ExitStack() as stack:
            # Opened first, so that an error comes before the work.
            file = sys.stdout if out is None else stack.enter_context(replacing(out, "w"))
            head = "example\tprobability\n"
            for batch in self._read([str(each) for each in files], tally):
                # Not before an error of the first examples.
                file.write(head)
                head = ""
                chances = probabilities(self._score(batch))[:, 1].tolist()
                file.writelines(f"{number + at}\t{chance:.9g}\n" for at, chance in enumerate(chances))
                number += len(batch)
            file.write(head)
        for line, _, _ in tally.remarks():
            print(f"mpips: {line}", file=sys.stderr)
        if out is not None:
            print(f"{out}: {number:,} examples")

    def is_head(self, line: str) -> bool:
        """Return whether a first line of text names the columns, by the format of the training data."""
        return names_columns(line, self._of_lines)

    def score_lines(self, lines: Sequence[str], head: str = "") -> list[str]:
        """Return the probability of the label +1 of the example in each line, in the format of the training data.

        Without a `head`, delimited columns are those of the training data.

        Raises:
            InputError: a line holds no example, or a wrong one.
        """
        if not lines:
            return []
        if any(end in line for line in (head, *lines) for end in "\r\n"):
            # It might hold several examples, and be counted for lines that hold none.
            raise DataError("a line has the end of another line in it")
        spec = self._of_lines
        with tempfile.TemporaryDirectory(prefix="mpips-lines-") as folder:
            path = os.path.join(folder, "lines")
            head = head or self._names
            with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
                file.writelines(f"{line}\n" for line in ([head] if head else []) + list(lines))
            try:
                batches = read([path], spec, encoding=self.encoding, fields=self.with_fields)
                scores = np.concatenate([np.empty(0), *(self._score(batch) for batch in batches)])
            except DataError as error:
                raise DataError(re.sub(rf"{re.escape(path)}(:\d+)?: ", "", str(error))) from None
        if len(scores) != len(lines):
            raise DataError(f"{len(lines)} lines hold {len(scores)} examples")
        return [f"{chance:.9g}" for chance in probabilities(scores)[:, 1].tolist()]

    @cached_property
    def _of_lines(self) -> DataSpec:
        """How lines of text are read: as the training data are, each of them."""
        return replace(
            self.data, format=format_of_lines(self.data, self.encoding is not None), on_error="stop"
        )

    @cached_property
    def _names(self) -> str:
        return names_line(self._of_lines)

    def show(self, out: Path | None) -> None:
        """Print the largest weights, a line KEY<TAB>WEIGHT each, of a model of tables KEY<TAB>WEIGHT<TAB>NAME."""
        first = np.argsort(-np.abs(self.weights), kind="stable")[:SHOWN]
        names: list[str] = []
        # Without the training data there are none.
        with suppress(InputError):
            names = [f"\t{name}" for name in self.names(self.keys[first])]
        rows = zip(
            key_arrays.numbers(self.keys[first]),
            self.weights[first].tolist(),
            names or [""] * len(first),
            strict=True,
        )
        lines = [f"{len(self.weights):,} weights that are not 0; the largest:\n"]
        lines += [f"{key}\t{weight!r}{name}\n" for key, weight, name in rows]
        sys.stdout.writelines(lines)
        if out is not None:
            with replacing(out, "w") as file:
                file.writelines(lines)

    def _score(self, batch: Examples) -> F8:
        scores = np.empty(len(batch))
        values = np.empty(0, np.float32) if batch.values is None else batch.values
        kernels.predict(batch.indptr, self._places(batch.keys), values, self.weights, scores)
        return finite(scores)

    def _asked(self, keys: Sequence[str]) -> key_arrays.KeyArray:
        """Return keys that were given as whole numbers."""
        bits = 8 * self.keys.dtype.itemsize
        for key in keys:
            if not (key.isascii() and key.isdigit() and int(key) < 2**bits):
                raise InputError(f"{key!r} is not a key of this model: a whole number below 2**{bits}")
        asked = np.array([int(key) for key in keys if bits == 64], np.uint64)
        if bits == 128:
            asked = np.array([divmod(int(key), 1 << 64) for key in keys], KEY128)
        return asked

    def _places(self, keys: key_arrays.KeyArray) -> NDArray[np.int32]:
        """Return the place of each key among those with a weight, -1 if it has none: i4[n]."""
        if keys.dtype != self.keys.dtype:
            raise InputError(
                f"the model has keys of {8 * self.keys.dtype.itemsize} bits, and the data of "
                f"{8 * keys.dtype.itemsize} ([data] key_bits)"
            )
        if not len(self.keys):
            return np.full(len(keys), -1, np.int32)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1).astype(np.int32)

    def _batches(self, data: Any) -> Iterable[Examples]:
        if isinstance(data, Examples):
            return [data]
        names = [data] if isinstance(data, str | os.PathLike) else data
        if isinstance(names, list | tuple) and all(isinstance(each, str | os.PathLike) for each in names):
            return self._read([os.fspath(each) for each in names])
        key_arrays.check_unmasked(data, "data")
        if hasattr(data, "tocsr"):
            return [_of_sparse(data)]
        if hasattr(data, "columns") or isinstance(data, Mapping):
            return self._of_frame(data)
        rows = np.asarray(data)
        if rows.ndim != 2 or rows.dtype.kind not in "biuf":
            raise UsageError(f"data must have 2 dimensions, and numbers; not {rows.ndim}, and {rows.dtype}")
        return _of_dense(rows)

    def _read(self, names: list[str], tally: Tally | None = None) -> Iterator[Examples]:
        return read(expand(names), self.data, tally=tally, encoding=self.encoding, fields=self.with_fields)

    def _of_frame(self, frame: Any) -> Iterator[Examples]:
        if self.encoding is None:
            raise UsageError(
                "the model was not trained on tables: give an array of the frame's numbers, or a file"
            )
        with tempfile.TemporaryDirectory(prefix="mpips-frame-") as folder:
            path = os.path.join(folder, "frame.parquet")
            write(path, frame)
            # Whatever the form of the training data; and each row has a result.
            spec = replace(self.data, format="auto", on_error="stop")
            yield from read([path], spec, encoding=self.encoding, fields=self.with_fields)


def finite(scores: F8) -> F8:
    """Return scores; InputError unless all are finite: a class, or an area under a curve, would hide it."""
    if not np.isfinite(scores).all():
        raise InputError("the score of an example is not finite: its values, or the model's, are too large")
    return scores


def probabilities(scores: F8) -> F8:
    """Return the probabilities of -1 and +1, f8[n, 2], by x.w, f8[n]."""
    positive = 0.5 + 0.5 * np.tanh(0.5 * scores)
    # Not 1 - p, which would be 0 already for p near 1.
    return np.column_stack([0.5 - 0.5 * np.tanh(0.5 * scores), positive])


def _of_sparse(data: Any) -> Examples:
    rows = data.tocsr()
    if rows.data.dtype.kind not in "biuf":
        raise UsageError(f"data must have numbers, not {rows.data.dtype}")
    if not rows.has_canonical_format:
        # Entries of one place are added, as scipy means them: a machine would count them as a pair.
        rows = rows.copy()
        rows.sum_duplicates()
    return _examples(rows.indptr, rows.indices, rows.data)


def _of_dense(rows: NDArray[Any]) -> Iterator[Examples]:
    step = max(1, MOST_CELLS // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        part = rows[begin : begin + step]
        row, column = np.nonzero(part)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(part)))])
        yield _examples(indptr, column, part[row, column])


def _examples(indptr: NDArray[Any], columns: NDArray[Any], values: NDArray[Any]) -> Examples:
    labels = np.ones(len(indptr) - 1, np.float32)
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(rounded).all():
        raise UsageError("data have a number that is not finite in 32-bit floating point")
    return Examples(labels, indptr.astype(np.int64), columns.astype(np.uint64), rounded)


def load(source: Path, job: Any) -> LogisticModel:
    """Read the weights of a run's folder, of a checkpoint or of a model file; `job`: see `mpips.Model`.

    Raises:
        InputError: there are none, or they are damaged.
    """
    with explained("read", source):
        spec = reading(job)
        if (source / MANIFEST).is_file():
            rows = load_range(source, "w", [ALL], dtype="float64", width=1)
            keys, weights = rows.keys, rows.values[:, 0]
            table = read_manifest(source)["about"]["state"].get("encoding")
        else:
            file = source / MODEL if source.is_dir() else source
            if not file.exists():
                raise InputError(f"holds no {MODEL}; a run writes it when it has trained")
            held = npz.load(file, follow=file == source)
            keys, weights = held_keys(held), held["values"]
            table = json.loads(str(held["encoding"])) if "encoding" in held else None
        encoding = None if table is None else Encoding.of_table(table, f"{source}: its encoding")
    if weights.dtype != np.float64 or weights.ndim != 1 or len(keys) != len(weights):
        raise InputError(f"{source}: is not a model of sparse_lr: its arrays have wrong types or sizes")
    if keys.dtype not in (np.uint64, KEY128) or not key_arrays.ascend(keys):
        raise InputError(f"{source}: is damaged: its keys do not ascend")
    if not np.isfinite(weights).all():
        raise InputError(f"{source}: is not a sound model: a weight is not finite")
    some = weights != 0.0
    return LogisticModel(keys[some], np.ascontiguousarray(weights[some]), spec, encoding)


def held_keys(held: Mapping[str, NDArray[Any]]) -> key_arrays.KeyArray:
    """Return the keys in a model file, u8[n] or KEY128[n]; ValueError if they are none."""
    keys = held["keys"]
    if keys.dtype != np.uint64 or (keys.ndim, *keys.shape[1:]) not in ((1,), (2, 2)):
        raise ValueError("is damaged: its keys are no list of keys")
    return key_arrays.from_pairs(keys)


def reading(job: Any) -> DataSpec:
    """Return how files are read: as in training, the columns numbered as in the training data where that is left."""
    try:
        spec = DataSpec.of_table(job.get("data", {}))
        base = str(job.get("job", {}).get("base", ""))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"its [data] is of another version: {error}") from None
    train: list[str] = []
    with suppress(InputError):
        train = expand(spec.train, base)
    return replace(spec, train=train, test=[], vocab="")
