"""The compiled inner loops of sparse logistic regression on the workers (paper, section 5.1).

A worker holds its n examples by columns (CSC over its own features): `colptr` i8[m+1], `rows` i4[nnz] and
`values` f4[nnz], an empty array when every value is one. The state of an example is one row of
`state` f8[n, 4], so that an access loads one cache line:

    MARGIN  z_i = y_i x_i.w
    ODDS    exp(z_i), kept within exp(+-300); 1 / (1 + odds) is the probability of the wrong label
    LABEL   y_i, -1 or +1
    REACH   c_i = sum_k |x_ik| d_k over the features k whose step is outstanding: those of the present block
            and of the blocks in flight

The paper's U bounds the curvature of one feature at a time, which bounds that of a block only where no two of
its features occur in the same example. Here U bounds the whole block. Since the server clips |D_k| <= d_k,
the margin of example i changes by at most c_i, and as |d log h / dz| <= 1 its curvature h = p (1 - p) stays below
H_i = min(h_i exp(c_i), 1/4). By Cauchy-Schwarz (sum_k x_ik D_k)^2 <= c_i sum_k |x_ik| D_k^2 / d_k. Hence

    loss(w + D) <= loss(w) + g.D + 1/2 sum_j U_j D_j^2,     U_j = sum_i H_i |x_ij| c_i / d_j,

where the feature's own part of c_i gives sum_i H_i x_ij^2, and the rest bounds the effect of the other features.
The bound is valid for any data, but too large where the steps of different features do not add up. So it is
scaled: `theta` = 1 is the proven bound (without delay), 0 the plain second derivative; `control` adapts theta to
the data.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mpips import kernel

MARGIN, ODDS, LABEL, REACH = 0, 1, 2, 3
"""The columns of a worker's `state`."""

NEAR, FAR, NEVER = 0.0, -1.0, -2.0
"""Codes instead of the radius of an inactive feature: examine it at the next reset, at a full reset, never."""

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I1 = NDArray[np.int8]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
B1 = NDArray[np.bool_]

# What travels is f4: a worker's (g, U), unless sums are exact (`exact_kernels`) or the data is wide, and the server's
# (w, radius), see `kkt_filter.prox_step`. All that is computed is f8.
HUGE, HUGE_WIDE = 1e36, 1e300
"""Largest value of a worker's part of a sum of squares: a thousand of them can be added in f4, and in f8."""
SMALL, LARGE = 1e-12, 1e15
"""Data is wide when a feature's max |x| is outside this range: f4 then cannot hold its sums of squares, or U."""
LARGEST_SCALE, OVERFLOWS = 1e30, 1e38
"""Weights of a feature with a scale above the first exceed f4; the second marks such a feature that may matter."""


def new_state(labels: NDArray[np.float32]) -> F8:
    """Return the state f8[n, 4] of n examples at w = 0."""
    state = np.zeros((len(labels), 4))
    state[:, ODDS] = 1.0
    state[:, LABEL] = labels
    return state


# --- Worker: one block -----------------------------------------------------------------------------------


@kernel("f8(f8, f8)", inline=True)
def grown_curvature(curvature: float, reach: float) -> float:
    """Return min(curvature * exp(reach), 1/4), or a little more.

    exp(x) <= 1 + x + 0.72 x^2 for 0 <= x <= 1, here at x = reach / 4: no call of exp for every non-zero.
    """
    if reach > 4.0:
        return 0.25
    x = 0.25 * reach
    root = 1.0 + x + 0.72 * x * x
    root *= root
    return min(curvature * root * root, 0.25)


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f4[::1], f8[:, ::1])")
def add_reach(colptr: I8, rows: I4, values: F4, cols: I8, d: F4, state: F8) -> None:
    """Add sum_{j in cols} |x_ij| d_j to every example's reach: a step of these columns is outstanding from now on.

    cols: i8[k], column numbers. d: f4[m], the trust radius of every column, > 0 for those in `cols`.
    """
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        j = cols[k]
        radius = np.float64(d[j])
        for e in range(colptr[j], colptr[j + 1]):
            state[rows[e], 3] += radius if ones else radius * abs(values[e])


@kernel(
    *(f"void(i8[::1], i4[::1], f4[::1], i8[::1], f4[::1], f8, f8[:, ::1], {t}[:, ::1])" for t in ("f4", "f8"))
)
def block_gradient(
    colptr: I8, rows: I4, values: F4, cols: I8, d: F4, theta: float, state: F8, out: F4 | F8
) -> None:
    """Fill out[k] = (g_j, U_j) for the columns j = cols[k]; `add_reach` of the same columns came before.

    g_j = -sum_i y_i p_i x_ij; U_j as in the module docstring with H_i = min(h_i exp(min(theta, 1) c_i), 1/4) and
    the part of the other features multiplied by theta. out: f4[k, 2], or f8 for wide data.
    """
    ones = values.shape[0] == 0
    most = HUGE if out.itemsize == 4 else HUGE_WIDE
    growth = min(theta, 1.0)
    for k in range(cols.shape[0]):
        j = cols[k]
        radius = np.float64(d[j])
        share = theta / radius
        g = 0.0
        u = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            i = rows[e]
            odds = state[i, 1]
            wrong = 1.0 / (1.0 + odds)
            size = 1.0
            if ones:
                g -= state[i, 2] * wrong
            else:
                size = abs(values[e])
                g -= state[i, 2] * wrong * values[e]
            reach = state[i, 3]
            others = max(reach - size * radius, 0.0)
            u += grown_curvature(wrong * wrong * odds, growth * reach) * size * (size + share * others)
        out[k, 0] = g
        out[k, 1] = min(u, most)


@kernel(
    *(
        f"i8(i8[::1], i4[::1], f4[::1], i8[::1], f4[::1], f8, f8[:, ::1], i8[::1], {t}[:, ::1])"
        for t in ("f4", "f8")
    )
)
def visit(
    colptr: I8, rows: I4, values: F4, cols: I8, d: F4, theta: float, state: F8, active: I8, out: F4 | F8
) -> int:
    """Fill `active` with the columns of `cols` whose radius is positive; return their number, k.

    Their reach is added, and out[:k] filled as by `block_gradient`. active: i8[n], out: f4[n, 2] or f8, n = len(cols).
    """
    k = 0
    for j in cols:
        if d[j] > 0.0:
            active[k] = j
            k += 1
    add_reach(colptr, rows, values, active[:k], d, state)
    block_gradient(colptr, rows, values, active[:k], d, theta, state, out[:k])
    return k


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f4[:, ::1], f8[::1], f4[::1], f8[:, ::1])")
def apply_steps(colptr: I8, rows: I4, values: F4, cols: I8, reply: F4, w: F8, d: F4, state: F8) -> None:
    """Take the weights and radii of a block, reply[k] = (w, d) of column cols[k], and update the examples' state.

    The margins change by the steps, z_i += y_i sum_k x_i,cols[k] (reply[k, 0] - w[cols[k]]), and the reach by the radii
    with which `add_reach` was called. reply: f4[k, 2]; w: f8[m] and d: f4[m], of every column.
    """
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        j = cols[k]
        step = reply[k, 0] - w[j]
        radius = np.float64(d[j])
        w[j], d[j] = reply[k, 0], reply[k, 1]
        if ones:
            up = math.exp(step)
            down = 1.0 / up
            for e in range(colptr[j], colptr[j + 1]):
                i = rows[e]
                if step != 0.0:
                    y = state[i, 2]
                    state[i, 0] += y * step
                    state[i, 1] = min(max(state[i, 1] * (up if y > 0.0 else down), 1e-130), 1e130)
                state[i, 3] -= radius
        else:
            for e in range(colptr[j], colptr[j + 1]):
                i = rows[e]
                if step != 0.0:
                    state[i, 0] += state[i, 2] * step * values[e]
                    state[i, 1] = math.exp(min(max(state[i, 0], -300.0), 300.0))
                state[i, 3] -= radius * abs(values[e])


@kernel("b1(i8[::1], i8[::1])")
def same(cols: I8, others: I8) -> bool:
    """Return whether two lists of columns are the same."""
    equal = cols.shape[0] == others.shape[0]
    for k in range(cols.shape[0] if equal else 0):
        equal = equal and cols[k] == others[k]
    return bool(equal)


# --- Worker: once per pass, or less ----------------------------------------------------------------------


@kernel("void(f8[:, ::1])")
def refresh_odds(state: F8) -> None:
    """Recompute every example's odds from its margin, and set every reach to 0: at the start of a pass."""
    for i in range(state.shape[0]):
        state[i, 1] = math.exp(min(max(state[i, 0], -300.0), 300.0))
        state[i, 3] = 0.0


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[::1], f8[:, ::1])")
def set_margins(colptr: I8, rows: I4, values: F4, cols: I8, w: F8, state: F8) -> None:
    """Recompute every margin from the weights w f8[k] of the columns `cols`; all others are zero.

    For a reset and a resumed run, since mixtures of passes amplify rounding errors. Call `refresh_odds` next.
    """
    ones = values.shape[0] == 0
    state[:, 0] = 0.0
    for k in range(cols.shape[0]):
        if w[k] != 0.0:
            j = cols[k]
            for e in range(colptr[j], colptr[j + 1]):
                i = rows[e]
                state[i, 0] += state[i, 2] * (w[k] if ones else w[k] * values[e])


@kernel(*(f"void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], {t}[::1])" for t in ("f4", "f8")))
def full_gradient(colptr: I8, rows: I4, values: F4, cols: I8, state: F8, out: F4 | F8) -> None:
    """Fill out[k] = g_j of the columns j = cols[k], without U: for the dual bound and the reset."""
    residual = np.empty(state.shape[0])
    for i in range(state.shape[0]):
        residual[i] = -state[i, 2] / (1.0 + state[i, 1])
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        j = cols[k]
        g = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            g += residual[rows[e]] if ones else residual[rows[e]] * values[e]
        out[k] = g


@kernel("f8(i8[::1], f4[::1])")
def outlying(colptr: I8, values: F4) -> float:
    """Return the largest ratio of a column's max |x| to the mean of its other |x|; 1 if there is none."""
    most = 1.0
    if values.shape[0] == 0:
        # All values are one.
        return most
    for j in range(colptr.shape[0] - 1):
        largest, total, count = 0.0, 0.0, colptr[j + 1] - colptr[j]
        for e in range(colptr[j], colptr[j + 1]):
            size = np.float64(abs(values[e]))
            largest = max(largest, size)
            total += size
        if count > 1 and largest > 0.0:
            others = max((total - largest) / (count - 1), 1e-16 * largest)
            most = max(most, largest / others)
    return most


@kernel("UniTuple(f8, 2)(i8[::1], f4[::1])")
def extremes(colptr: I8, values: F4) -> tuple[float, float]:
    """Return the smallest and the largest of the columns' largest |x|; 1 without any."""
    least, most = math.inf, 0.0
    if values.shape[0] == 0:
        # All values are one.
        return 1.0, 1.0
    for j in range(colptr.shape[0] - 1):
        largest = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            largest = max(largest, np.float64(abs(values[e])))
        if largest > 0.0:
            least, most = min(least, largest), max(most, largest)
    return (least, most) if most > 0.0 else (1.0, 1.0)


@kernel(*(f"void(i8[::1], i4[::1], f4[::1], f8[:, ::1], {t}[:, ::1])" for t in ("f4", "f8")))
def column_sums(colptr: I8, rows: I4, values: F4, state: F8, out: F4 | F8) -> None:
    """Fill out[j] = (entries, sum of x^2, sum of |x| where y x > 0, sum of |x| where y x < 0): f4 or f8[m, 4].

    The last two bound the gradient for every w, |g_j| <= max of both, and give it at w = 0.
    """
    ones = values.shape[0] == 0
    most = HUGE if out.itemsize == 4 else HUGE_WIDE
    for j in range(colptr.shape[0] - 1):
        squares = 0.0
        along = 0.0
        against = 0.0
        for e in range(colptr[j], colptr[j + 1]):
            x = 1.0 if ones else np.float64(values[e])
            squares += x * x
            if state[rows[e], 2] * x > 0.0:
                along += abs(x)
            else:
                against += abs(x)
        out[j, 0] = colptr[j + 1] - colptr[j]
        out[j, 1] = min(squares, most)
        out[j, 2] = along
        out[j, 3] = against


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], i4, i8[::1], i4[::1], f4[::1])")
def place_columns(
    colptr: I8, rows: I4, values: F4, cols: I8, first: int, places: I8, all_rows: I4, all_values: F4
) -> None:
    """Copy the columns of some examples, numbered from `first`, into a larger matrix.

    cols: i8[m], the numbers of these columns there. places: i8[columns there], the next free entry of each; advanced.
    Empty `all_values`: no values are copied; empty `values`: ones.
    """
    for j in range(cols.shape[0]):
        place = places[cols[j]]
        for e in range(colptr[j], colptr[j + 1]):
            all_rows[place] = first + rows[e]
            if all_values.shape[0] > 0:
                all_values[place] = values[e] if values.shape[0] > 0 else np.float32(1)
            place += 1
        places[cols[j]] = place


@kernel("f8(f8)", inline=True)
def log_loss(margin: float) -> float:
    """Return log(1 + exp(-margin)) without overflow."""
    return math.log1p(math.exp(-abs(margin))) + max(-margin, 0.0)


@kernel("void(f8[:, ::1], i8, i8, f8[:, ::1])")
def margin_model(history: F8, begin: int, end: int, out: F8) -> None:
    """Add the examples from `begin` to `end` to the model of the losses over the steps s_k = history[K] - history[k].

    history: f8[K+1, n], the margins at the start of the last K passes, and now. out: f8[K+2, K]: rows 0 to
    K-1 the matrix s_a.diag(h).s_b, row K the derivatives -sum_i p_i s_ki, and out[K+1, 0] the losses now.
    """
    steps = out.shape[1]
    step = np.empty(steps)
    for i in range(begin, end):
        now = history[steps, i]
        small = math.exp(-abs(now))
        out[steps + 1, 0] += math.log1p(small) + max(-now, 0.0)
        wrong = 1.0 / (1.0 + small)
        curvature = small * wrong * wrong
        if now >= 0.0:
            wrong *= small
        for a in range(steps):
            step[a] = now - history[a, i]
            out[steps, a] -= wrong * step[a]
            for b in range(a + 1):
                out[a, b] += curvature * step[a] * step[b]
    for a in range(steps):
        for b in range(a):
            out[b, a] = out[a, b]


@kernel("void(f8[:, ::1], f8[:, ::1], f8[::1])")
def mixed_losses(history: F8, mixtures: F8, out: F8) -> None:
    """Fill out[c] = the losses at the margins sum_k mixtures[c, k] history[k]. mixtures: f8[c, K+1]."""
    out[:] = 0.0
    for i in range(history.shape[1]):
        for c in range(mixtures.shape[0]):
            margin = 0.0
            for k in range(history.shape[0]):
                margin += mixtures[c, k] * history[k, i]
            out[c] += log_loss(margin)


@kernel("void(f8[:, ::1], f8[::1], f8[::1])")
def mix(history: F8, mixture: F8, out: F8) -> None:
    """Fill out[i] = sum_k mixture[k] history[k, i]: margins on a worker, w on a server."""
    for i in range(history.shape[1]):
        total = 0.0
        for k in range(history.shape[0]):
            if mixture[k] != 0.0:
                total += mixture[k] * history[k, i]
        out[i] = total


@kernel("f8(f8[:, ::1], f8)")
def dual_objective(state: F8, shrink: float) -> float:
    """Return sum_i H(shrink p_i), H the binary entropy in nats: the dual of the losses.

    With shrink = min(1, l1 / max_j |g_j|) the dual point is feasible, and the value a lower bound of F*.
    """
    total = 0.0
    for i in range(state.shape[0]):
        margin = state[i, 0]
        small = math.exp(-abs(margin))
        p = 1.0 / (1.0 + small)
        if margin >= 0.0:
            p *= small
        p *= shrink
        if p > 0.0:
            total -= p * math.log(p)
        if p < 1.0:
            total -= (1.0 - p) * math.log1p(-p)
    return total


# --- The l1 term, on the servers ------------------------------------------------------------------------


@kernel("void(f8[:, ::1], f8[:, ::1])")
def size_terms(history: F8, out: F8) -> None:
    """Fill the l1 term and its slopes, key by key, to be summed exactly by the caller.

    history: f8[K+1, s], w at the start of the last K passes, and now. out: f8[K+1, s]: out[k] = sign(w) (w -
    history[k]) for k < K, out[K] = |w|.
    """
    last = history.shape[0] - 1
    for s in range(history.shape[1]):
        w = history[last, s]
        sign = 0.0 if w == 0.0 else math.copysign(1.0, w)
        for k in range(last):
            out[k, s] = sign * (w - history[k, s])
        out[last, s] = abs(w)


@kernel("void(f8[:, ::1], f8[:, ::1], f8[:, ::1])")
def mixed_sizes(history: F8, mixtures: F8, out: F8) -> None:
    """Fill out[c, s] = |sum_k mixtures[c, k] history[k, s]|: every mixture's l1 term, key by key."""
    for c in range(mixtures.shape[0]):
        for s in range(history.shape[1]):
            w = 0.0
            for k in range(history.shape[0]):
                if mixtures[c, k] != 0.0:
                    w += mixtures[c, k] * history[k, s]
            out[c, s] = abs(w)


# --- Online learners, prediction -------------------------------------------------------------------------


@kernel("f8(i8[::1], i4[::1], f4[::1], f4[::1], f8[::1], f8[::1])")
def batch_gradient(indptr: I8, positions: I4, values: F4, labels: F4, w: F8, out: F8) -> float:
    """Fill out[u] = the gradient of the log-losses of a CSR batch by its unique keys; return the losses' sum.

    positions: i4[nnz], the position of each entry's key among the unique keys. values: f4[nnz] or empty (all one).
    w, out: f8[unique keys]. labels: f4[n] in {-1, +1}.
    """
    out[:] = 0.0
    ones = values.shape[0] == 0
    total = 0.0
    for i in range(labels.shape[0]):
        margin = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            margin += w[positions[e]] if ones else w[positions[e]] * values[e]
        margin *= labels[i]
        small = math.exp(-abs(margin))
        total += math.log1p(small) + max(-margin, 0.0)
        residual = -labels[i] / (1.0 + small)
        if margin >= 0.0:
            residual *= small
        for e in range(indptr[i], indptr[i + 1]):
            out[positions[e]] += residual if ones else residual * values[e]
    return total


@kernel("void(i8[::1], i4[::1], f4[::1], f8[::1], f8[::1])")
def predict(indptr: I8, positions: I4, values: F4, w: F8, out: F8) -> None:
    """Fill out[i] = x_i.w of a CSR batch; a position of -1 is a key without weight."""
    ones = values.shape[0] == 0
    for i in range(out.shape[0]):
        total = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            if positions[e] >= 0:
                total += w[positions[e]] if ones else w[positions[e]] * values[e]
        out[i] = total
