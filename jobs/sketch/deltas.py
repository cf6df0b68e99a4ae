"""A worker's sketch of the present batch: the deltas to push, and further counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.jobs.sketch import kernels
from mpips.jobs.sketch.servers import Shape

Keys = NDArray[np.uint64]
Counts = NDArray[np.int64]
SPILL = 1 << 14
"""Number of keys that are added to the table at a time."""
SHARE = 1 << 16
"""A key with more than 1 / SHARE of a batch's weight may be among the most frequent of all."""


class Batch(NamedTuple):
    """A counted batch: rows of deltas, and the numbers of their blocks, ascending; see `servers` for the rest."""

    rows: NDArray[Any]
    blocks: Keys
    registers: NDArray[np.int32]
    heavy: Keys
    sampled: Keys
    counts: Counts
    weight: int


class Deltas:
    """Counts the keys of one batch after another.

    One key in `sample`, selected by its hash, is also counted exactly; 0: none. `finish` overwrites the rows that it
    returned before.
    """

    def __init__(self, shape: Shape, wide: bool, sample: int, conservative: bool) -> None:
        self.shape = shape
        self._sampled = np.uint64((2**64 - 1) // sample if sample else 0)
        self._spill = kernels.spill_conservatively if conservative else kernels.spill
        cells, dtype = 1 << shape.shift, np.int64 if wide else np.int32
        self._table = np.zeros((shape.blocks, cells), dtype)
        self._rows = np.zeros((shape.blocks, cells + 2), dtype)
        for array in (self._table, self._rows):
            # Touches all pages, so that page faults are not in the measured time.
            array.fill(0)
        self._spilled = 0
        self._slots = np.zeros((1 << kernels.SLOTS, 4), np.int64)
        self._keys, self._counts = np.empty(SPILL, np.uint64), np.empty(SPILL, np.int64)
        self._cells = np.empty((shape.depth + shape.depth % 2, SPILL), np.uint32)
        self._most, self._blocks = np.empty(SPILL, np.int64), np.empty(shape.blocks, np.uint64)
        self._heavy, self._sample = _List(np.maximum), _List(np.add)
        self._registers = np.zeros(1 << kernels.REGISTERS, np.int32)
        self.weight = 0
        """The weight of the batch so far."""

    def add(self, keys: Keys, weights: Counts | None) -> None:
        """Count keys u64[n], each once, or with non-negative weights i8[n]."""
        pos = 0
        self.weight += len(keys) if weights is None else int(weights.sum())
        while pos < len(keys):
            if weights is None:
                pos, n = kernels.count(keys, pos, self._slots, self._keys, self._counts)
            else:
                pos, n = kernels.count_weights(keys, weights, pos, self._slots, self._keys, self._counts)
            self._add(n)

    def _add(self, n: int) -> None:
        shape, table = self.shape, self._table.reshape(-1)
        keys, counts, most = self._keys, self._counts, self._most
        seed, heavy = np.uint64(shape.seed), -(-self.weight // SHARE)
        self._spill(keys, counts, n, table, shape.depth, shape.width, seed, self._cells, most)
        self._spilled += n
        many, some = self._heavy, self._sample
        many.make_room(n, heavy)
        some.make_room(n)
        fill = np.array([many.n, some.n])
        kernels.note(
            keys, counts, most, n, seed, heavy, self._sampled, self._registers,
            many.keys, many.counts, some.keys, some.counts, fill,
        )  # fmt: skip
        many.n, some.n = fill.tolist()

    def finish(self, part: int, batch: int) -> Batch:
        """End the batch, and begin another."""
        pos = 0
        while pos < len(self._slots):
            pos, n = kernels.empty(pos, self._slots, self._keys, self._counts)
            self._add(n)
        weight, everything = self.weight, self._spilled * self.shape.depth > self.shape.blocks
        least = -(-weight // SHARE)
        heavy, most = self._heavy.take(least)
        shape, table = self.shape, self._table.reshape(-1)
        kernels.estimate(heavy, table, shape.depth, shape.width, np.uint64(shape.seed), most)
        heavy = heavy[most >= least]
        n = kernels.unload(self._table, part, batch, everything, self._rows, self._blocks)
        sampled, counts = self._sample.take()
        registers, self._registers = self._registers, np.zeros_like(self._registers)
        self.weight = self._spilled = 0
        return Batch(self._rows[:n], self._blocks[:n], registers, heavy, sampled, counts, weight)


class _List:
    """Keys with counts; those of equal keys are merged by a ufunc, when the list is full and at the end."""

    def __init__(self, merge: np.ufunc) -> None:
        self._merge = merge
        self.keys, self.counts, self.n = np.empty(1 << 16, np.uint64), np.empty(1 << 16, np.int64), 0

    def make_room(self, more: int, least: int = 0) -> None:
        """Make room for `more` entries; if the list is full, counts below `least` are dropped."""
        if self.n + more > len(self.keys):
            keys, counts = self.take(least)
            if 2 * (len(keys) + more) > len(self.keys):
                size = 2 * len(self.keys)
                self.keys, self.counts = np.empty(size, np.uint64), np.empty(size, np.int64)
            self.n = len(keys)
            self.keys[: self.n], self.counts[: self.n] = keys, counts
            self.make_room(more, least)

    def take(self, least: int = 0) -> tuple[Keys, Counts]:
        """Take all keys out, ascending and each once, with their counts; those below `least` are left out."""
        n, self.n = self.n, 0
        if not n:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        order = np.argsort(self.keys[:n], kind="stable")
        keys, counts = self.keys[order], self.counts[order]
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        keys, counts = keys[first], self._merge.reduceat(counts, first)
        return keys[counts >= least], counts[counts >= least]
