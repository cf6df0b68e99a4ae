"""Examples: a batch of labelled sparse rows, the output of all readers, and the counts of reading."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.keys import KeyArray


@dataclass(frozen=True)
class Examples:
    """Hold n examples in compressed sparse rows.

    Example i has the keys ``keys[indptr[i]:indptr[i+1]]``, ascending and each once, and the values at the
    same places; `values` is None when every value is 1, as it is for categorical data.

    >>> batch = Examples(np.array([1, -1], np.float32), np.array([0, 2, 3]), np.array([3, 8, 8], np.uint64))
    >>> [batch.keys[batch.indptr[i] : batch.indptr[i + 1]].tolist() for i in range(len(batch))]
    [[3, 8], [8]]
    >>> batch.rows(1, 2).keys.tolist()
    [8]
    """

    labels: NDArray[np.float32]
    """f4[n], each -1 or +1."""
    indptr: NDArray[np.int64]
    """i8[n+1], from 0 to the number of non-zeros."""
    keys: KeyArray
    """u8[nnz], or KEY128[nnz] (`mpips.keys`), ascending within one example."""
    values: NDArray[np.float32] | None = None
    """f4[nnz], or None: all ones."""
    fields: NDArray[np.int32] | None = None
    """i4[nnz], the field of each key, from 0; None: they are not told apart."""

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, begin: int, end: int) -> Examples:
        """Return examples begin..end-1: views of labels, keys, values and fields, a fresh `indptr`."""
        low, high = int(self.indptr[begin]), int(self.indptr[end])
        values = None if self.values is None else self.values[low:high]
        fields = None if self.fields is None else self.fields[low:high]
        indptr = self.indptr[begin : end + 1] - low
        return Examples(self.labels[begin:end], indptr, self.keys[low:high], values, fields)


@dataclass
class Tally:
    """Counts of examples and of skipped lines while reading.

    >>> tally = Tally(examples=3)
    >>> tally.skip("a.svm:7: no label")
    >>> tally.add(Tally(examples=2))
    >>> tally.examples, [text for text, event, facts in tally.remarks()]
    (5, ['skipped 1 bad lines, the first: a.svm:7: no label'])
    """

    examples: int = 0
    skipped: int = 0
    """Bad lines or rows."""
    first_error: str = ""
    """The first of their errors."""
    header: str = ""
    """The first line that was taken for column names: its file and the names."""
    empty: list[str] = field(default_factory=list)
    """Files that hold no examples."""

    def skip(self, error: str) -> None:
        """Count one bad line or row."""
        self.skipped += 1
        self.first_error = self.first_error or error

    def add(self, other: Tally) -> None:
        """Add what was read of other files, or of another part."""
        self.examples, self.skipped = self.examples + other.examples, self.skipped + other.skipped
        self.first_error = self.first_error or other.first_error
        self.header = self.header or other.header
        self.empty += [file for file in other.empty if file not in self.empty]

    def remarks(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield for each unexpected observation a readable line, its event name, and its facts."""
        if self.header:
            yield (
                f"the first line of each file was taken for column names: {self.header}; "
                "[data] header = false would read it as a row",
                "header",
                {"names": self.header},
            )
        if self.empty:
            yield empty_files_note(self.empty), "empty", {"files": len(self.empty), "first": self.empty[0]}
        if self.skipped:
            yield (
                f"skipped {self.skipped:,} bad lines, the first: {self.first_error}",
                "skipped",
                {"lines": self.skipped, "first": self.first_error},
            )


def empty_files_note(empty: list[str]) -> str:
    """Return a line about empty files."""
    return f"left out {len(empty):,} empty file{'s' if len(empty) > 1 else ''}, the first: {empty[0]}"


def concatenate(batches: Iterable[Examples]) -> Examples:
    """Join batches into one, in order; no batches give one without examples.

    >>> one = Examples(np.ones(1, np.float32), np.array([0, 1]), np.array([3], np.uint64))
    >>> concatenate([one, one]).indptr.tolist()
    [0, 1, 2]
    """
    parts = list(batches)
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0] + [len(part.keys) for part in parts])
    indptr = [np.zeros(1, np.int64)] + [
        part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)
    ]
    values = None
    if any(part.values is not None for part in parts):
        values = np.concatenate(
            [np.ones(len(part.keys), np.float32) if part.values is None else part.values for part in parts]
        )
    fields = [part.fields for part in parts if part.fields is not None]
    return Examples(
        np.concatenate([np.zeros(0, np.float32)] + [part.labels for part in parts]),
        np.concatenate(indptr),
        np.concatenate([part.keys for part in parts]) if parts else np.zeros(0, np.uint64),
        values,
        np.concatenate(fields) if parts and len(fields) == len(parts) else None,
    )


def minibatches(batches: Iterable[Examples], size: int) -> Iterator[Examples]:
    """Cut a stream of batches so that each holds exactly `size` examples (the last: the rest).

    >>> one = Examples(np.ones(1, np.float32), np.array([0, 1]), np.array([3], np.uint64))
    >>> [len(each) for each in minibatches([one, one, one], 2)]
    [2, 1]
    """
    if size < 1:
        raise ValueError(f"a minibatch holds at least one example, not {size}")
    held: list[Examples] = []
    missing = size
    for batch in batches:
        begin = 0
        while begin < len(batch):
            end = min(len(batch), begin + missing)
            held.append(batch.rows(begin, end))
            missing -= end - begin
            begin = end
            if missing == 0:
                yield concatenate(held)
                held, missing = [], size
    if held:
        yield concatenate(held)
