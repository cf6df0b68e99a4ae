"""Functions of the counts: tallies on the servers, terms of the likelihood, and estimates of the priors.

The scheduler calls `tally` and `clear` on each shard. Answers are whole numbers, so that their sums do not depend on
the layout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import call, kernel

SMALL = 4096
"""Counts below this one are tallied in a table."""
STRIDE = 32
"""Number of counts that are checked together."""

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
F8 = NDArray[np.float64]


@call("lda_tally", reads=True)
def tally(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return the sum of a shard's counts, and the number of cells by count, without 0; sum -1: one is negative."""
    counts = segment.values[: len(segment)].reshape(-1)
    if counts.dtype != np.int32:
        # The topics' totals.
        return {"sum": -1 if len(counts) and counts.min() < 0 else int(counts.sum()), "cells": []}
    small = np.zeros(SMALL, np.int64)
    large = np.empty(0, np.int64)
    others = histogram(counts, small, large)
    if others > 0:
        large = np.empty(others, np.int64)
        others = histogram(counts, np.zeros_like(small), large)
    cells = Counter(large.tolist()) + Counter({int(n): int(small[n]) for n in np.flatnonzero(small)})
    total = -1 if others < 0 else sum(n * times for n, times in cells.items())
    return {"sum": total, "cells": sorted(cells.items())}


@call("lda_clear")
def clear(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Set all counts to 0."""
    segment.values[: len(segment)] = 0
    return {}


def cells_of(answers: Iterable[dict[str, Any]]) -> list[tuple[int, int]]:
    """Add up the tallies of all shards: (count, cells), ascending."""
    cells: Counter[int] = Counter()
    for each in answers:
        cells.update(dict(each["cells"]))
    return sorted(cells.items())


def words_term(cells: Iterable[tuple[int, int]], beta: float) -> float:
    """Return the words' part of the joint log-likelihood: sum over (w, k) of lgG(n_wk + b) - lgG(b)."""
    start = math.lgamma(beta)
    return math.fsum(times * (math.lgamma(n + beta) - start) for n, times in cells)


def digamma(x: Any) -> Any:
    """Return psi(x) of numbers x > 0, to about 13 digits."""
    x = np.asarray(x, np.float64)
    result = np.zeros_like(x)
    for _ in range(8):
        result, x = result - 1.0 / x, x + 1.0
    y = 1.0 / (x * x)
    series = y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y / 132))))
    return result + np.log(x) - 0.5 / x - series


def rising(n: Any, a: float) -> Any:
    """Return psi(n + a) - psi(a)."""
    return digamma(np.asarray(n) + a) - digamma(a)


def learned_beta(
    cells: Sequence[tuple[int, int]], totals: NDArray[np.int64], beta: float, vocabulary: int
) -> float:
    """Move beta by one step of Minka's fixed point (2000, "Estimating a Dirichlet distribution", eq. 55).

    b (sum_wk psi(n_wk + b) - psi(b)) / (V sum_k psi(n_k + V b) - psi(V b))
    """
    table = np.array(cells, np.int64).reshape(-1, 2)
    up = math.fsum((table[:, 1] * rising(table[:, 0], beta)).tolist())
    down = math.fsum(rising(np.asarray(totals), beta * vocabulary).tolist()) * vocabulary
    return min(max(beta * up / down, LEAST), MOST) if down > 0.0 else beta


LEAST, MOST = 1e-6, 1e3
"""Bounds of learned priors."""


def learned_alpha(alpha: Any, slopes: Any, symmetric: bool) -> Any:
    """Move alpha, f8[K], by one step of the same fixed point; slopes as in `document_terms`.

    a_k (sum_d psi(n_dk + a_k) - psi(a_k)) / (sum_d psi(n_d + A) - psi(A))
    """
    up, down = slopes[:-1], slopes[-1]
    if down <= 0.0:
        return alpha
    if symmetric:
        up = np.full(len(alpha), up.mean())
    return np.clip(alpha * up / down, LEAST, MOST)


# --- Compiled loops --------------------------------------------------------------------------------------------------


@kernel(*(f"f8(i8[::1], {t}[::1], i8, f8[::1], f8[::1])" for t in ("u4", "u8")))
def document_terms(ptr: I8, pairs: Any, shift: int, alpha: F8, slopes: F8) -> float:
    """Return the documents' part of the joint log-likelihood, and add up the sums for learning alpha.

    slopes: f8[K + 1]: sum_d (psi(n_dk + a_k) - psi(a_k)), and sum_d (psi(n_d + A) - psi(A)), A = sum a_k; or f8[0].
    """
    mask = (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    topics = len(alpha)
    alpha_sum = 0.0
    for k in range(topics):
        alpha_sum += alpha[k]
    total, start = 0.0, math.lgamma(alpha_sum)
    for d in range(len(ptr) - 1):
        head = ptr[d] + d
        length: Any = 0
        product = 1.0
        for j in range(head + 1, head + 1 + np.int64(pairs[head])):
            pair = np.uint64(pairs[j])
            a = alpha[pair >> np.uint64(shift)]
            times = np.int64(pair & mask)
            length += times
            slope = 0.0
            for i in range(times):
                product *= a + i
                if product > 1e200 or product < 1e-200:
                    total += math.log(product)
                    product = 1.0
                if len(slopes) > 0:
                    slope += 1.0 / (a + i)
            if len(slopes) > 0:
                slopes[pair >> np.uint64(shift)] += slope
        total += math.log(product) + start - math.lgamma(alpha_sum + length)
        if len(slopes) > 0:
            for i in range(length):
                slopes[topics] += 1.0 / (alpha_sum + i)
    return total


@kernel("i8(i4[::1], i8[::1], i8[::1])")
def histogram(counts: I4, small: I8, large: I8) -> int:
    """Count the occurrences of each count > 0 in `small`; counts beyond its length are written to `large`, i8[m].

    Returns the number of the latter; -1 if a count is negative.
    """
    others = 0
    for base in range(0, len(counts), STRIDE):
        part = counts[base : base + STRIDE]
        any_bit = np.int32(0)
        for i in range(len(part)):
            any_bit = np.int32(any_bit | part[i])
        if any_bit == 0:
            # Nearly all counts are 0 where there are many topics.
            continue
        for n in part:
            if n < 0:
                return -1
            if n < len(small):
                small[n] += n > 0
            else:
                if others < len(large):
                    large[others] = n
                others += 1
    return others
