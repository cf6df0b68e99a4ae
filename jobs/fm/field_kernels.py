"""The compiled inner loops of field-aware factorization machines (Juan et al., RecSys 2016).

The score of an example x is sum_i w_i x_i + sum_{i<j} <v_{i, f(j)}, v_{j, f(i)}> x_i x_j, where f(i) is the field of
feature i: a feature has k factors for each field of the others. Arguments are those of `mpips.jobs.fm.kernels`, with
`fields` i4[nnz], the field of each entry, and rows `factors` f4[a, fields * k], those of field f from f * k on. With
`normalise` an example is divided by its length, as by libffm. A pair with a field beyond the rows' is left out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpips import kernel
from mpips.jobs.fm.kernels import F4, F8, I4, I8


@kernel("f8(i8, i8, f4[::1], b1)", inline=True)
def _scale(begin: int, end: int, values: F4, normalise: bool) -> float:
    """Return the factor of an example's values."""
    if not normalise or end == begin:
        return 1.0
    squares = 0.0
    for e in range(begin, end):
        x = 1.0 if values.shape[0] == 0 else np.float64(values[e])
        squares += x * x
    return 1.0 / math.sqrt(squares) if squares > 0.0 else 1.0


@kernel(inline=True)
def _pair(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for f in range(len(a)):
        total += a[f] * b[f]
    return total


@kernel("f8(i8, i8, i4[::1], i4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], i8, f8)")
def _score(
    begin: int,
    end: int,
    positions: I4,
    fields: I4,
    values: F4,
    linear: F4,
    places: I4,
    factors: F4,
    k: int,
    scale: float,
) -> float:
    """Return the score of an example, whose values are multiplied by `scale`."""
    ones, known = values.shape[0] == 0, factors.shape[1] // k
    score = 0.0
    for e in range(begin, end):
        position = positions[e]
        if position < 0:
            continue
        x = scale * (1.0 if ones else np.float64(values[e]))
        score += np.float64(linear[np.uint32(position), 0]) * x
        place, field = places[np.uint32(position)], fields[e]
        if place < 0 or field >= known:
            continue
        for other in range(e + 1, end):
            its_position, its_field = positions[other], fields[other]
            if its_position < 0 or its_field >= known:
                continue
            its_place = places[np.uint32(its_position)]
            if its_place >= 0:
                mine = factors[np.uint32(place), its_field * k : its_field * k + k]
                its = factors[np.uint32(its_place), field * k : field * k + k]
                score += x * scale * (1.0 if ones else np.float64(values[other])) * _pair(mine, its)
    return score


@kernel(
    "f8(i8[::1], i4[::1], i4[::1], f4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], i8, b1, f4[:, ::1], f4[:, ::1])"
)
def batch_gradient(
    indptr: I8,
    positions: I4,
    fields: I4,
    values: F4,
    labels: F4,
    linear: F4,
    places: I4,
    factors: F4,
    k: int,
    normalise: bool,
    out: F4,
    steps: F4,
) -> float:
    """Fill the gradients of the log-losses of a mini-batch; return the sum of the losses.

    The fields are below those of the rows. `out` and `steps` are as of `mpips.jobs.fm.kernels.batch_gradient`.
    """
    ones = values.shape[0] == 0
    out[:] = np.float32(0)
    steps[:] = np.float32(0)
    total = 0.0
    for i in range(labels.shape[0]):
        begin, end = indptr[i], indptr[i + 1]
        scale = _scale(begin, end, values, normalise)
        margin = labels[i] * _score(begin, end, positions, fields, values, linear, places, factors, k, scale)
        small = math.exp(-abs(margin))
        total += math.log1p(small) + max(-margin, 0.0)
        residual = -labels[i] / (1.0 + small)
        if margin >= 0.0:
            residual *= small
        for e in range(begin, end):
            position, field = np.uint32(positions[e]), fields[e]
            along = residual * scale * (1.0 if ones else np.float64(values[e]))
            out[position, 0] += np.float32(along)
            out[position, 1] += np.float32(1)
            place = places[position]
            if place < 0:
                continue
            for other in range(e + 1, end):
                its_place, its_field = places[np.uint32(positions[other])], fields[other]
                if its_place >= 0:
                    slope = np.float32(along * scale * (1.0 if ones else np.float64(values[other])))
                    mine, its = its_field * k, field * k
                    for f in range(k):
                        steps[place, mine + f] += slope * factors[its_place, its + f]
                    for f in range(k):
                        steps[its_place, its + f] += slope * factors[place, mine + f]
    return total


@kernel("void(i8[::1], i4[::1], i4[::1], f4[::1], f4[:, ::1], i4[::1], f4[:, ::1], i8, b1, f8[::1])")
def predict(
    indptr: I8,
    positions: I4,
    fields: I4,
    values: F4,
    linear: F4,
    places: I4,
    factors: F4,
    k: int,
    normalise: bool,
    out: F8,
) -> None:
    """Fill out[i] = the score of example i of a CSR batch; a position of -1 is a feature that is not in the model."""
    for i in range(out.shape[0]):
        begin, end = indptr[i], indptr[i + 1]
        scale = _scale(begin, end, values, normalise)
        out[i] = _score(begin, end, positions, fields, values, linear, places, factors, k, scale)
