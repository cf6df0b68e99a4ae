"""Pooled bags: sums or means of the rows of several ids, and their gradients."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.embedding.table import Fetched
from mpips.errors import UsageError
from mpips.jit.kernel import kernel
from mpips.keys import check_unmasked

Array = NDArray[Any]
_TYPES = ("f4", "f8")


@kernel(*(f"void({t}[:,::1], i4[::1], i8[::1], b1, {t}[:,::1])" for t in _TYPES))
def _pool(rows: Array, places: Array, starts: Array, mean: bool, pooled: Array) -> None:
    for bag in range(len(starts) - 1):
        for j in range(rows.shape[1]):
            pooled[bag, j] = 0
        for at in range(starts[bag], starts[bag + 1]):
            for j in range(rows.shape[1]):
                pooled[bag, j] += rows[places[at], j]
        count = starts[bag + 1] - starts[bag]
        if mean and count > 1:
            for j in range(rows.shape[1]):
                pooled[bag, j] /= count


@kernel(*(f"void({t}[:,::1], i4[::1], i8[::1], b1, {t}[:,::1])" for t in _TYPES))
def _spread(gradients: Array, places: Array, starts: Array, mean: bool, summed: Array) -> None:
    for bag in range(len(starts) - 1):
        count = starts[bag + 1] - starts[bag]
        for at in range(starts[bag], starts[bag + 1]):
            for j in range(gradients.shape[1]):
                if mean:
                    summed[places[at], j] += gradients[bag, j] / count
                else:
                    summed[places[at], j] += gradients[bag, j]


class Bags:
    """Consecutive ids of a mini-batch that are pooled: bag b has the ids starts[b] to starts[b + 1] - 1.

    Args:
        fetched: the mini-batch.
        starts: ascending, [bags + 1], from 0 to the number of ids. An empty bag pools to 0.
        mode: "sum" or "mean".

    Raises:
        UsageError: `starts` or `mode` is not of this form.

    >>> from mpips import VectorSpec, simulate
    >>> from mpips.embedding import Bags, Embedding
    >>> def schedule(cluster):
    ...     table = Embedding(cluster.create_vector(VectorSpec("w", update="sgd", settings={"rate": 1.0}, init=1.0)))
    ...     bags = Bags(table.fetch([7, 3, 7]), starts=[0, 2, 3])
    ...     pooled = bags.pooled()
    ...     bags.push(np.array([[1.0], [10.0]]))
    ...     return pooled.tolist(), table.read([3, 7]).rows.tolist()
    >>> simulate(schedule, worker=lambda context: None)
    ([[2.0], [1.0]], [[0.0], [-10.0]])
    """

    def __init__(self, fetched: Fetched, starts: ArrayLike, mode: Literal["sum", "mean"] = "sum") -> None:
        self.fetched = fetched
        check_unmasked(starts, "bags: starts")
        given = np.asarray(starts)
        if given.size and given.dtype.kind not in "iu":
            raise UsageError(f"bags: starts are {given.dtype}; give integers")
        self._starts, self._mean = np.ascontiguousarray(given, np.int64), mode == "mean"
        if mode not in ("sum", "mean"):
            raise UsageError(f"bags: mode {mode!r} is neither 'sum' nor 'mean'")
        ids, ends = len(fetched.places), self._starts
        if ends.ndim != 1 or not ends.size or ends[0] != 0 or ends[-1] != ids or (np.diff(ends) < 0).any():
            raise UsageError(f"bags: starts must ascend from 0 to the number of ids, {ids}")

    def pooled(self) -> Array:
        """Return the pooled rows, [bags, width]; waits for them."""
        rows = np.ascontiguousarray(self.fetched.rows)
        pooled = np.empty((len(self._starts) - 1, rows.shape[1]), rows.dtype)
        _pool(rows, self.fetched.places, self._starts, self._mean, pooled)
        return pooled

    def push(self, gradients: ArrayLike) -> Any:
        """Push the gradients of the pooled rows, [bags, width]; returns the task.

        Raises:
            UsageError: as of `Fetched.push`, or there is not one row for each bag.
        """
        check_unmasked(gradients, "bags: gradients")
        rows = self.fetched.rows
        array = np.asarray(gradients)
        if array.dtype.kind not in "biuf":
            raise UsageError(f"bags: gradients are {array.dtype}; give numbers")
        given = np.ascontiguousarray(array, rows.dtype)
        if given.shape != (len(self._starts) - 1, rows.shape[1]):
            raise UsageError(f"bags: gradients of shape {given.shape} for {len(self._starts) - 1} bags")
        summed = np.zeros_like(rows)
        _spread(given, self.fetched.places, self._starts, self._mean, summed)
        return self.fetched.push(summed)
