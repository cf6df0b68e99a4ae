"""The kernels of sparse logistic regression whose sums over examples are exact: `[layout] exact_sums`.

A term depends on its own example only, and terms are added exactly. So the sums over all workers do not depend on how
examples are distributed, nor on their order. Few sums (losses, the dual) go to accumulators
(`mpips.exact_sums.accumulate`). Where they are many, each term is rounded to a multiple of a quantum first,
which all workers derive from the same bounds (`mpips.exact_sums.snap`):

    g_j     |y_i p_i x_ij| <= |x_ij|                                         sum_i |x_ij|          < bounds[j, 0]
    U_j     H_i |x_ij| (|x_ij| + theta/d_j c_i), H_i <= 1/4, c_i <= REACH    sum_i x_ij^2          < bounds[j, 1]

the sums being over all examples of all workers: servers compute bounds from them at the start, powers of two. So the
error of a term of g_j is at most 2**-51 sum_i |x_ij|. The first sums themselves have no bound but N max |x|, which is
far too high where features differ in scale: they are split into three parts; each holds the remainder that the earlier
parts rounded off.
"""

from __future__ import annotations

import math

import numpy as np

from mpips import exact_sums, kernel
from mpips.jobs.sparse_lr.kernels import F4, F8, I4, I8, grown_curvature, log_loss

accumulate, normalise = exact_sums.accumulate, exact_sums.normalise
anchor_of, snap = exact_sums.anchor_of, exact_sums.snap

REACH = 4096.0
"""Largest contribution of other features' steps to an example's U: a block's steps should change no margin as much."""
PARTS = 3
"""Parts of a first sum: with a million examples they represent terms down to 2**-93 of the largest."""
# Examples whose terms are added to an accumulator at once.
_CHUNK = 512


@kernel("void(f8, f8, f8[::1])")
def part_anchors(bound: float, terms: float, out: F8) -> None:
    """Fill the anchors of a sum's parts: for terms up to `bound`, and for the remainder after each part."""
    for part in range(out.shape[0]):
        out[part] = anchor_of(bound * terms)
        # Half a quantum.
        bound = out[part] / (3.0 * 2.0**52)


@kernel("void(f8, f8[::1], f8[:, ::1], i8, i8)")
def add_parts(term: float, anchors: F8, out: F8, row: int, first: int) -> None:
    """Add a term to the parts out[row, first:] of a sum, rounded up, so that a small term does not vanish."""
    left = term
    for part in range(anchors.shape[0]):
        taken = snap(left, anchors[part])
        left -= taken
        if left > 0.0 and part == anchors.shape[0] - 1:
            taken += anchors[part] / (3.0 * 2.0**51)
        out[row, first + part] += taken


@kernel("void(i8[::1], i4[::1], f4[::1], f8[:, ::1], f8, f8, f8[:, ::1])")
def column_sums(colptr: I8, rows: I4, values: F4, state: F8, largest: float, terms: float, out: F8) -> None:
    """Fill out[j] = (entries, sum of x^2, of |x| where y x > 0, of |x| where y x < 0), the sums in parts: f8[m, 10].

    largest: max |x| of all data. terms: the number of its examples.
    """
    squares, sizes = np.empty(PARTS), np.empty(PARTS)
    part_anchors(largest * largest, terms, squares)
    part_anchors(largest, terms, sizes)
    ones = values.shape[0] == 0
    out[:] = 0.0
    for j in range(colptr.shape[0] - 1):
        out[j, 0] = colptr[j + 1] - colptr[j]
        for e in range(colptr[j], colptr[j + 1]):
            x = 1.0 if ones else np.float64(values[e])
            add_parts(x * x, squares, out, j, 1)
            along = state[rows[e], 2] * x > 0.0
            add_parts(abs(x), sizes, out, j, 1 + (PARTS if along else 2 * PARTS))


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f4[::1], f8, f8[:, ::1], f8[:, ::1], f8[:, ::1])")
def block_gradient(
    colptr: I8, rows: I4, values: F4, cols: I8, d: F4, theta: float, state: F8, bounds: F8, out: F8
) -> None:
    """Fill out[k] = (g_j, U_j) as `kernels.block_gradient` does, for j = cols[k]; bounds: f8[m, 2], see the module."""
    ones = values.shape[0] == 0
    growth = min(theta, 1.0)
    for k in range(cols.shape[0]):
        j = cols[k]
        radius = np.float64(d[j])
        share = theta / radius
        anchor = 3.0 * bounds[j, 0]
        anchor_u = anchor_of(0.25 * (bounds[j, 1] + share * REACH * bounds[j, 0]))
        g = 0.0
        u = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            i = rows[e]
            odds = state[i, 1]
            wrong = 1.0 / (1.0 + odds)
            size = 1.0
            slope = state[i, 2] * wrong
            if not ones:
                size = abs(values[e])
                slope *= values[e]
            g -= snap(slope, anchor)
            reach = min(state[i, 3], REACH)
            others = max(reach - size * radius, 0.0)
            h = grown_curvature(wrong * wrong * odds, growth * reach)
            u += snap(h * size * (size + share * others), anchor_u)
        out[k, 0] = g
        out[k, 1] = u


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8[:, ::1], f8[::1])")
def full_gradient(colptr: I8, rows: I4, values: F4, cols: I8, state: F8, bounds: F8, out: F8) -> None:
    """Fill out[k] = g_j of the columns j = cols[k] and nothing else."""
    residual = np.empty(state.shape[0])
    for i in range(state.shape[0]):
        residual[i] = -state[i, 2] / (1.0 + state[i, 1])
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        j = cols[k]
        anchor = 3.0 * bounds[j, 0]
        g = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            g += snap(residual[rows[e]] if ones else residual[rows[e]] * values[e], anchor)
        out[k] = g


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[::1], f8[:, ::1], f8[::1])")
def margins(colptr: I8, rows: I4, values: F4, cols: I8, w: F8, state: F8, out: F8) -> None:
    """Fill out[i] = y_i x_i.w from the weights w f8[k] of the columns `cols`, ascending; all others are zero."""
    ones = values.shape[0] == 0
    out[:] = 0.0
    for k in range(cols.shape[0]):
        j = cols[k]
        for e in range(colptr[j], colptr[j + 1]):
            out[rows[e]] += w[k] if ones else w[k] * values[e]
    for i in range(out.shape[0]):
        out[i] *= state[i, 2]


@kernel("void(f8[:, ::1], f8[::1])")
def largest_steps(history: F8, out: F8) -> None:
    """Fill out[k] = max_i |history[K, i] - history[k, i]|, the largest change of a margin. out: f8[K]."""
    last = history.shape[0] - 1
    for k in range(last):
        most = 0.0
        for i in range(history.shape[1]):
            most = max(most, abs(history[last, i] - history[k, i]))
        out[k] = most


@kernel("void(f8[:, ::1], f8[:, ::1], f8[:, ::1], i8[::1])")
def margin_model(history: F8, anchors: F8, out: F8, limbs: I8) -> None:
    """Fill the second-order model as `kernels.margin_model` does, but add the losses to `limbs` i8[SIZE] instead.

    anchors: f8[K+1, K], of the rows 0 to K of out.
    """
    out[:] = 0.0
    steps = out.shape[1]
    step = np.empty(steps)
    losses = np.empty(_CHUNK)
    count = 0
    for i in range(history.shape[1]):
        now = history[steps, i]
        small = math.exp(-abs(now))
        losses[count] = math.log1p(small) + max(-now, 0.0)
        count += 1
        if count == _CHUNK or i == history.shape[1] - 1:
            accumulate(losses[:count], limbs)
            normalise(limbs)
            count = 0
        wrong = 1.0 / (1.0 + small)
        curvature = small * wrong * wrong
        if now >= 0.0:
            wrong *= small
        for a in range(steps):
            step[a] = now - history[a, i]
            out[steps, a] -= snap(wrong * step[a], anchors[steps, a])
            for b in range(a + 1):
                out[a, b] += snap(curvature * step[a] * step[b], anchors[a, b])
    for a in range(steps):
        for b in range(a):
            out[b, a] = out[a, b]


@kernel("void(f8[:, ::1], f8[:, ::1], i8[:, ::1])")
def mixed_losses(history: F8, mixtures: F8, limbs: I8) -> None:
    """Add the losses at the margins sum_k mixtures[c, k] history[k] to limbs[c]: i8[c, SIZE]."""
    losses = np.empty(_CHUNK)
    for c in range(mixtures.shape[0]):
        count = 0
        for i in range(history.shape[1]):
            margin = 0.0
            for k in range(history.shape[0]):
                margin += mixtures[c, k] * history[k, i]
            losses[count] = log_loss(margin)
            count += 1
            if count == _CHUNK or i == history.shape[1] - 1:
                accumulate(losses[:count], limbs[c])
                normalise(limbs[c])
                count = 0


@kernel("void(f8[:, ::1], f8, i8[::1])")
def dual_objective(state: F8, shrink: float, limbs: I8) -> None:
    """Add the dual of the losses, as `kernels.dual_objective` has it, to `limbs` i8[SIZE]."""
    terms = np.empty(_CHUNK)
    count = 0
    for i in range(state.shape[0]):
        margin = state[i, 0]
        small = math.exp(-abs(margin))
        p = 1.0 / (1.0 + small)
        if margin >= 0.0:
            p *= small
        p *= shrink
        term = 0.0
        if p > 0.0:
            term -= p * math.log(p)
        if p < 1.0:
            term -= (1.0 - p) * math.log1p(-p)
        terms[count] = term
        count += 1
        if count == _CHUNK or i == state.shape[0] - 1:
            accumulate(terms[:count], limbs)
            normalise(limbs)
            count = 0


# --- Server ----------------------------------------------------------------------------------------------


def start_sums(rows: F8) -> F8:
    """Return (entries, sum of x^2, of |x| where y x > 0, of |x| where y x < 0), f8[k, 4], of all workers.

    rows: their `column_sums`, f8[k, 10], or f8[k, 2], the last two, where all x are 1.
    """
    if rows.shape[1] == 2:
        count = rows.sum(axis=1)
        return np.column_stack([count, count, rows])
    out = np.empty((len(rows), 4))
    out[:, 0] = rows[:, 0]
    for at in range(3):
        parts = rows[:, 1 + at * PARTS : 1 + (at + 1) * PARTS]
        out[:, 1 + at] = parts[:, 2] + parts[:, 1] + parts[:, 0]
    return out


def bounds_of(sums: F8) -> I4:
    """Return the exponents i4[k, 2] of the module's bounds, from `start_sums`."""
    most = np.column_stack([sums[:, 2] + sums[:, 3], sums[:, 1]]) * (1.0 + 2.0**-20)
    exponents: I4 = np.frexp(most)[1]
    return exponents
