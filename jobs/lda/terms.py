"""The compiled loops over documents' topics and over counts from which likelihoods come and priors are learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import kernel

STRIDE = 32
"""Number of counts that are checked together."""

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
F8 = NDArray[np.float64]


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
        if any_bit == 0:  # as nearly all are where there are many topics
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
