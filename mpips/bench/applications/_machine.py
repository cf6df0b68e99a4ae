"""A factorization machine in one process, without messages: what `mpips bench fm` compares with, and made data.

It is written on its own: one kernel runs a whole pass over arrays of all features, with the pairs by Rendle's sum over
factors (2010, equation 5), in double precision.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]


class Rows(NamedTuple):
    """Examples of ones: labels f4[n] of -1 and +1, and the features of example i, features[indptr[i]:indptr[i+1]]."""

    labels: F4
    indptr: I8
    features: I4


@kernel("void(i8[::1], i4[::1], f8[::1], f8[:, ::1], f8[::1])")
def scores(indptr: I8, features: I4, w: F8, v: F8, out: F8) -> None:
    """Fill out[i] = the score of example i, of ones."""
    for i in range(out.shape[0]):
        total = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            total += w[features[e]]
        for f in range(v.shape[1]):
            s, squares = 0.0, 0.0
            for e in range(indptr[i], indptr[i + 1]):
                s += v[features[e], f]
                squares += v[features[e], f] ** 2
            total += 0.5 * (s * s - squares)
        out[i] = total


@kernel("void(f4[::1], i8[::1], i4[::1], i8, f8[:, ::1], f8[:, ::1], f8[:, :, ::1], f8[:, ::1], f8[::1])")
def learn_pass(
    labels: F4,
    indptr: I8,
    features: I4,
    batch: int,
    linear: F8,
    gradients: F8,
    factors: F8,
    steps: F8,
    rates: F8,
) -> None:
    """Learn from all mini-batches once.

    linear: f8[m, 3], w, z and n of FTRL; factors: f8[2, m, k], v and the norms of AdaGrad; gradients: f8[m, 2] and
    steps: f8[m, k] are 0 before and after. rates: alpha, beta, l1, l2, and alpha, beta, l2 of the factors.
    """
    k, n = steps.shape[1], labels.shape[0]
    s, touched = np.empty(k), np.empty(linear.shape[0], np.int32)
    v, norms = factors[0], factors[1]
    for begin in range(0, n, batch):
        count = 0
        for i in range(begin, min(begin + batch, n)):
            s[:] = 0.0
            score, squares = 0.0, 0.0
            for e in range(indptr[i], indptr[i + 1]):
                j = features[e]
                score += linear[j, 0]
                for f in range(k):
                    s[f] += v[j, f]
                    squares += v[j, f] * v[j, f]
            for f in range(k):
                score += 0.5 * s[f] * s[f]
            score -= 0.5 * squares
            slope = -labels[i] / (1.0 + math.exp(min(labels[i] * score, 500.0)))
            for e in range(indptr[i], indptr[i + 1]):
                j = features[e]
                if gradients[j, 1] == 0.0:
                    touched[count] = j
                    count += 1
                gradients[j, 0] += slope
                gradients[j, 1] += 1.0
                for f in range(k):
                    steps[j, f] += slope * (s[f] - v[j, f])
        for at in range(count):
            j = touched[at]
            g, w, before = gradients[j, 0], linear[j, 0], linear[j, 2]
            norm = math.sqrt(before * before + g * g)
            z = linear[j, 1] + g - (norm - before) / rates[0] * w
            beyond = max(abs(z) - rates[2], 0.0)
            linear[j, 0] = -math.copysign(beyond, z) / ((rates[1] + norm) / rates[0] + rates[3])
            linear[j, 1], linear[j, 2] = z, norm
            gradients[j, 0], gradients[j, 1] = 0.0, 0.0
            for f in range(k):
                norms[j, f] = math.sqrt(norms[j, f] ** 2 + steps[j, f] ** 2)
                e = (norms[j, f] + rates[5]) / rates[4]
                v[j, f] = (e * v[j, f] - steps[j, f]) / (e + rates[6])
                steps[j, f] = 0.0


def learn(train: Rows, features: int, settings: Any, seed: int) -> tuple[F8, F8]:
    """Learn as the settings of `fm` say, from factors of a seed; return weights f8[m] and factors f8[m, k]."""
    k = settings.factors
    linear, gradients, steps = np.zeros((features, 3)), np.zeros((features, 2)), np.zeros((features, k))
    factors = np.zeros((2, features, k))
    factors[0] = np.random.default_rng(seed).normal(0.0, settings.init, (features, k))
    names = "alpha", "beta", "l1", "l2", "factor_alpha", "factor_beta", "factor_l2"
    rates = np.array([float(getattr(settings, name)) for name in names])
    for _ in range(settings.passes):
        learn_pass(*train, settings.batch, linear, gradients, factors, steps, rates)
    return np.ascontiguousarray(linear[:, 0]), factors[0].copy()


def made(examples: int, columns: int = 8, values: int = 30, k: int = 4, seed: int = 1) -> tuple[Rows, F8]:
    """Draw examples of one value in each column, labelled by a machine with k factors; return them, and its scores."""
    random = np.random.default_rng(seed)
    m = columns * values
    w, v = 0.3 * random.normal(size=m), 0.35 * random.normal(size=(m, k))
    drawn = random.integers(0, values, (examples, columns)) + values * np.arange(columns)
    indptr = np.arange(examples + 1, dtype=np.int64) * columns
    features, truth = drawn.astype(np.int32).reshape(-1), np.empty(examples)
    scores(indptr, features, w, v, truth)
    chance = 1.0 / (1.0 + np.exp(-truth))
    labels = np.where(random.random(examples) < chance, 1.0, -1.0).astype(np.float32)
    return Rows(labels, indptr, features), truth
