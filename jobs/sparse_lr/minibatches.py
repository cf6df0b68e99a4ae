"""The mini-batches of a worker's parts, as online learners take them, and those that are kept for later passes.

A mini-batch is a CSR matrix over its distinct keys. To read, parse and number it takes longer than to learn from it. So
a pass that is not the last keeps what it has read, part by part, within `[data] keep_minibatches`. Later passes take it
from memory, and name its keys by the signatures of lists that the servers have cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Context, KeyList, Vector
from mpips import keys as key_arrays
from mpips.data import Examples, Source, Tally, minibatches
from mpips.data.numbering import distinct

GB = 1e9
SLOT = 4
"""Bytes of a key in a list that a server caches."""
ENTRY = 512
"""... and further bytes of a list."""


class _Listed(NamedTuple):
    """A list of some keys of a mini-batch, or of all."""

    of: KeyList
    some: NDArray[np.bool_] | None

    def is_of(self, some: NDArray[np.bool_] | None) -> bool:
        """Return whether it is of these."""
        if some is None or self.some is None:
            return some is self.some
        return np.array_equal(some, self.some)


class Minibatch:
    """Examples, the distinct keys of them, and the position of each entry among these.

    >>> batch = Minibatch(Examples(np.ones(2, np.float32), np.array([0, 2, 3]), np.array([3, 8, 3], np.uint64)))
    >>> batch.keys.tolist(), batch.positions.tolist(), len(batch)
    ([3, 8], [0, 1, 0], 2)
    """

    def __init__(self, examples: Examples) -> None:
        self.labels, self.indptr = examples.labels, examples.indptr
        self.values = values_of(examples)
        """f4[nnz], or empty: all ones."""
        self.fields = examples.fields
        self.keys, self.positions = distinct(examples.keys)
        self.listed = False
        """Whether requests name its keys by lists."""
        self._lists: dict[str, _Listed] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, and of lists of its keys for two vectors, one of them with the mask of some."""
        arrays = self.labels, self.indptr, self.values, self.fields, self.positions, self.keys
        lists = 2 * self.keys.nbytes + len(self.keys)
        return lists + sum(array.nbytes for array in arrays if array is not None)

    def keys_for(
        self, vector: Vector, some: NDArray[np.bool_] | None = None
    ) -> key_arrays.KeyArray | KeyList:
        """Return its keys, or `some` of them, for requests of a vector: a list if it comes again."""
        if not self.listed:
            return self.keys if some is None else self.keys[some]
        found = self._lists.get(vector.spec.name)
        # A vector is made anew after the loss of a worker, and features are admitted meanwhile.
        if found is None or found.of.vector is not vector or not found.is_of(some):
            keys = self.keys if some is None else self.keys[some]
            found = self._lists[vector.spec.name] = _Listed(vector.key_list(keys), some)
        return found.of


class Stream:
    """The mini-batches of one part of the data, of which `done` have been taken."""

    def __init__(self, batches: Iterator[Minibatch], tally: Tally, part: int, of: int, done: int) -> None:
        self.part, self.of, self.done = part, of, done
        self.tally = tally
        """Of what has been read for it."""
        self._batches = batches

    def is_at(self, part: int, of: int, done: int) -> bool:
        """Return whether the next mini-batch is that of a part after `done` ones."""
        return (self.part, self.of, self.done) == (part, of, done)

    def take(self) -> Minibatch | None:
        """Return the next mini-batch; None if there is none left."""
        batch = next(self._batches, None)
        self.done += batch is not None
        return batch


class Minibatches:
    """Reads parts, and keeps their mini-batches of so many examples; see the module.

    Args:
        context: of the worker.
        data: the files.
        size: examples of a mini-batch.
        lists: whether requests for kept ones name lists of keys; otherwise they send the keys.
    """

    def __init__(self, context: Context, data: Source, size: int, lists: bool = True) -> None:
        self._context, self._data, self._size, self._lists = context, data, size, lists
        self._kept: dict[tuple[int, int], list[Minibatch]] = {}
        self._too_large = set[tuple[int, int]]()
        self._nbytes = self._listed = 0

    def stream(self, part: int, of: int, done: int, again: bool) -> Stream:
        """Return the mini-batches of a part after the first `done`; they are kept if a pass takes them `again`."""
        if any(name[1] != of for name in self._kept):
            # After the loss of a worker a pass cuts the data into other parts: those before do not come again.
            self._kept, self._nbytes, self._listed = {}, 0, 0
        kept = self._kept.get((part, of))
        if kept is not None:
            # As when they are read again.
            self._data.files.check_all()
            return Stream(iter(kept[done:]), Tally(), part, of, done)
        tally = Tally()
        examples = self._context.polling(self._data.read("train", part, of, tally))
        batches: Iterator[Minibatch] = map(Minibatch, islice(minibatches(examples, self._size), done, None))
        if again and not done and (part, of) not in self._too_large:
            batches = self._keeping(batches, part, of)
        return Stream(batches, tally, part, of, done)

    def _keeping(self, batches: Iterator[Minibatch], part: int, of: int) -> Iterator[Minibatch]:
        """Keep the mini-batches of a part when all of them have been taken, unless they are too large."""
        found: list[Minibatch] = []
        most = self._context.job.data.keep_minibatches * GB - self._nbytes
        nbytes = 0
        for batch in batches:
            nbytes += batch.nbytes
            if nbytes <= most:
                batch.listed = self._lists and self._has_room(batch)
                found.append(batch)
            else:
                found.clear()
            yield batch
        if nbytes <= most:
            self._kept[part, of] = found
            self._nbytes += nbytes
        else:
            self._too_large.add((part, of))

    def _has_room(self, batch: Minibatch) -> bool:
        """Return whether the servers can keep a mini-batch's lists, of two vectors, beside those of all workers."""
        job, context = self._context.job, self._context
        self._listed += 2 * (ENTRY + SLOT * len(batch.keys))
        return bool(self._listed * context.count <= job.ring.key_cache / 2)


def values_of(examples: Examples) -> NDArray[np.float32]:
    """Return the values of examples as kernels take them: f4[nnz], or empty if all are one."""
    return np.empty(0, np.float32) if examples.values is None else examples.values
