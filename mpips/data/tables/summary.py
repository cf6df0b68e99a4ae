"""What the encoding of a table's numbers depends on: counts, sums and a sample of each column.

Summaries of parts of the data are merged. The result is the same bits for any partition: sums are exact, and the sample
of a column is the values of the rows whose hashes are the least.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mpips.storage.exact_sums import SIZE, ExactSum

SAMPLE = 10_000
"""Values of a column from which quantiles are computed: all of them in a column with no more."""
HEAD = 3 + 2 * SIZE
"""Numbers of a column in `Summary.array` before the sample."""


class Summary:
    """Summarise columns of numbers; `sampled`: those with a sample.

    >>> one, other = Summary(2, [1]), Summary(2, [1])
    >>> one.add(np.array([[1.0, np.nan], [5.0, 6.0]]), np.array([0.25, 0.75]))
    >>> other.add(np.array([[3.0], [7.0]]), np.array([0.5]))
    >>> one.merge(Summary.of_array(other.array(), [1]))
    >>> one.counts.tolist(), one.mean(0), one.sample(1).tolist()
    ([2, 3], 2.0, [5.0, 6.0, 7.0])
    """

    def __init__(self, columns: int, sampled: Sequence[int]) -> None:
        self.counts = np.zeros(columns, np.int64)
        self._sampled = list(sampled)
        # The least and the largest value of each column.
        self._lows, self._highs = np.full(columns, np.inf), np.full(columns, -np.inf)
        self._sums = [ExactSum() for _ in range(columns)]
        self._squares = [ExactSum() for _ in range(columns)]
        # Each f8[2, n]: hashes of rows, ascending, and values.
        self._samples = {column: np.empty((2, 0)) for column in sampled}

    def add(self, numbers: NDArray[np.float64], hashes: NDArray[np.float64]) -> None:
        """Add rows: f8[columns, n], NaN for a missing value, and a hash of each row's place in the data, f8[n]."""
        for column, values in enumerate(numbers):
            there = ~np.isnan(values)
            found = values[there]
            self.counts[column] += len(found)
            self._lows[column] = found.min(initial=self._lows[column])
            self._highs[column] = found.max(initial=self._highs[column])
            self._sums[column].add(found)
            with np.errstate(over="ignore"):
                self._squares[column].add(found * found)
            if column in self._samples:
                self._take(column, np.stack([hashes[there], found]))

    def _take(self, column: int, more: NDArray[np.float64]) -> None:
        both = np.concatenate([self._samples[column], more], axis=1)
        if both.shape[1] > SAMPLE:
            both = both[:, np.lexsort((both[1], both[0]))[:SAMPLE]]
        self._samples[column] = both

    def merge(self, other: Summary) -> None:
        """Add the rows of another summary of the same columns."""
        self.counts += other.counts
        np.minimum(self._lows, other._lows, out=self._lows)
        np.maximum(self._highs, other._highs, out=self._highs)
        for mine, theirs in zip([*self._sums, *self._squares], [*other._sums, *other._squares], strict=True):
            mine.merge(theirs)
        for column, sample in other._samples.items():
            self._take(column, sample)

    def mean(self, column: int) -> float:
        """Return the mean of a column; 0 if it has no values; infinite, or NaN, if the sum is."""
        if self._lows[column] == self._highs[column]:
            # The rounded sum divided by the count may be another number.
            return float(self._lows[column])
        return self._sums[column].value() / max(int(self.counts[column]), 1)

    def deviation(self, column: int) -> float:
        """Return the standard deviation of a column; 1 if all its values are equal; not finite if squares are not."""
        spread = float(self._highs[column]) - float(self._lows[column])
        if not spread > 0.0:
            return 1.0
        count, mean = int(self.counts[column]), self.mean(column)
        variance = self._squares[column].value() / count - mean * mean
        # Below the rounding errors of the squares, only the order of magnitude is known.
        return 0.5 * spread if variance <= 1e-14 * mean * mean else float(np.sqrt(variance))

    def sample(self, column: int) -> NDArray[np.float64]:
        """Return the values in a column's sample, ascending."""
        return np.sort(self._samples[column][1])

    def array(self) -> NDArray[np.float64]:
        """Return the summary as f8[columns, m], to send it.

        A row has the count, the least and the largest value, the limbs of both sums, the sample, then NaN.
        """
        most = max((each.shape[1] for each in self._samples.values()), default=0)
        out = np.full((len(self.counts), HEAD + 2 * most), np.nan)
        for column, count in enumerate(self.counts):
            limbs = self._sums[column].to_list() + self._squares[column].to_list()
            out[column, :HEAD] = [count, self._lows[column], self._highs[column], *limbs]
            if column in self._samples:
                sample = self._samples[column].T.reshape(-1)
                out[column, HEAD : HEAD + len(sample)] = sample
        return out

    @classmethod
    def of_array(cls, array: NDArray[np.float64], sampled: Sequence[int]) -> Summary:
        """Invert `array`."""
        summary = cls(len(array), sampled)
        for column, row in enumerate(array):
            summary.counts[column] = int(row[0])
            summary._lows[column], summary._highs[column] = row[1:3]
            limbs = [int(limb) for limb in row[3:HEAD]]
            summary._sums[column] = ExactSum.from_list(limbs[:SIZE])
            summary._squares[column] = ExactSum.from_list(limbs[SIZE:])
            if column in summary._samples:
                sample = row[HEAD:]
                summary._samples[column] = sample[~np.isnan(sample)].reshape(-1, 2).T
        return summary
