"""The compiled inner loops of factorization machines (Rendle, Factorization Machines, ICDM 2010).

The score of an example x is sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j. Its entries are read one after the other,
with the sum s of the v_i x_i so far: each adds <s, v_i x_i>. So every pair is added once, in time linear in the
entries, and an example of one feature has an interaction of exactly 0. The gradient of v_i is x_i (s - v_i x_i), with
the whole sum s.

A mini-batch is a CSR matrix over its unique features: `positions` i4[nnz]. Their rows are `linear` f4[m, 2], the weight
and how often the feature was seen, and `factors` f4[a, k] of those a that have some: `places` i4[m] is the row of each,
-1 if it has none. Loops over k are over contiguous memory, which vector instructions process.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpips import Column, kernel, update

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

WEIGHT, SEEN = 0, 1
"""The columns of `linear`."""


@kernel("f8(i8, i8, i4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], f4[::1], f4[::1])", inline=True)
def _score(
    begin: int, end: int, positions: I4, values: F4, linear: F4, places: I4, factors: F4, s: F4, pairs: F4
) -> float:
    """Return the score of an example; fill s f4[k], the sum of its v_i x_i. `pairs` f4[k] is for intermediate sums."""
    ones, k = values.shape[0] == 0, s.shape[0]
    score = 0.0
    for f in range(k):
        s[f] = np.float32(0)
        pairs[f] = np.float32(0)
    for e in range(begin, end):
        position = positions[e]
        if position < 0:
            continue
        x = np.float32(1) if ones else values[e]
        score += np.float64(linear[np.uint32(position), 0]) * x
        place = places[np.uint32(position)]
        if place >= 0:
            row = np.uint32(place)
            for f in range(k):
                part = factors[row, f] * x
                pairs[f] += s[f] * part
                s[f] += part
    for f in range(k):
        score += np.float64(pairs[f])
    return score


@kernel(
    "f8(i8[::1], i4[::1], f4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], f4[:, ::1], f4[:, ::1])",
)
def batch_gradient(
    indptr: I8, positions: I4, values: F4, labels: F4, linear: F4, places: I4, factors: F4, out: F4, steps: F4
) -> float:
    """Fill the gradients of the log-losses of a mini-batch; return the sum of the losses.

    values: f4[nnz] or empty (all one). labels: f4[n] in {-1, +1}. out: f4[m, 2], the gradient of each weight, and how
    many entries had the feature; steps: f4[a, k], the gradients of the factors.
    """
    ones, k = values.shape[0] == 0, factors.shape[1]
    s, pairs = np.empty(k, np.float32), np.empty(k, np.float32)
    out[:] = np.float32(0)
    steps[:] = np.float32(0)
    total = 0.0
    for i in range(labels.shape[0]):
        begin, end = indptr[i], indptr[i + 1]
        margin = labels[i] * _score(begin, end, positions, values, linear, places, factors, s, pairs)
        small = math.exp(-abs(margin))
        total += math.log1p(small) + max(-margin, 0.0)
        residual = -labels[i] / (1.0 + small)
        if margin >= 0.0:
            residual *= small
        slope = np.float32(residual)
        for e in range(begin, end):
            position = np.uint32(positions[e])
            x = np.float32(1) if ones else values[e]
            along = slope * x
            out[position, 0] += along
            out[position, 1] += np.float32(1)
            place = places[position]
            if place >= 0:
                row = np.uint32(place)
                for f in range(k):
                    steps[row, f] += along * (s[f] - factors[row, f] * x)
    return total


@kernel("void(i8[::1], i4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], f8[::1])")
def predict(indptr: I8, positions: I4, values: F4, linear: F4, places: I4, factors: F4, out: F8) -> None:
    """Fill out[i] = the score of example i of a CSR batch; a position of -1 is a feature that is not in the model."""
    k = factors.shape[1]
    s, pairs = np.empty(k, np.float32), np.empty(k, np.float32)
    for i in range(out.shape[0]):
        out[i] = _score(indptr[i], indptr[i + 1], positions, values, linear, places, factors, s, pairs)


@update(
    "fm_linear",
    columns=lambda spec: {name: Column("float32") for name in ("z", "n", "used")},
    defaults={"alpha": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0},
    sums=True,
)
@kernel("void(f4[:, ::1], f4[:, ::1], f4[:, ::1], f4[:, ::1], i4[::1], f4[:, ::1], f8[::1])")
def follow_leader(values: F4, z: F4, n: F4, used: F4, slots: I4, rows: F4, settings: F8) -> None:
    """Update weights by FTRL-Proximal, as the update `ftrl`, and count.

    values: (weight, seen); rows: (gradient, number of entries); used: how many pushes there were, for evictions. A
    count ends at 2^24, beyond which f4 has no ones.
    """
    alpha, beta, l1, l2 = settings[0], settings[1], settings[2], settings[3]
    for i in range(slots.shape[0]):
        slot = slots[i]
        g, before = np.float64(rows[i, 0]), np.float64(n[slot, 0])
        norm = math.sqrt(before * before + g * g)
        dual = z[slot, 0] + g - (norm - before) / alpha * values[slot, 0]
        beyond = abs(dual) - l1
        values[slot, 0] = -math.copysign(beyond, dual) / ((beta + norm) / alpha + l2) if beyond > 0.0 else 0.0
        z[slot, 0], n[slot, 0] = dual, norm
        values[slot, 1] += rows[i, 1]
        used[slot, 0] += np.float32(1)
