"""The second-order model of F over the active features, and its minimum, which the workers find together.

At the present weights w the model is

    M(u) = F(w) + c.u + u.H u / 2,    c_j = g_j + l1 s_j,    H = X' diag(h) X,

over the changes u of the active features that leave each sign s_j as it is, or the weight 0. Active are those with w
!= 0, and those with w = 0 and |g_j| > l1, whose sign is that of -g_j.

The minimum is found by conjugate gradients on the weights that are not held at 0, in the form of Chronopoulos and Gear
(1989) with one sum over the workers for each product, followed by steps that are projected onto the signs (Moré and
Toraldo 1991). The workers keep these vectors, each for its own features: servers only add the parts of a product, and
return the sum. Scalars go through the scheduler; a feature that several workers have counts once.

Such a minimum is a step of the weights (`newton`), and tells how far F may still fall (`restricted_gap`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from mpips import Group, kernel
from mpips.jobs.sparse_lr.kernels import F4, F8, I4, I8

STEPS = (1.0, 0.5, 0.25, 0.06)
"""The lengths that are tried of a step, which is then projected onto the signs."""
ENOUGH = 0.05
"""A search that can lower the model by no more than this share of what the others have is the last one."""
LONGEST_WORK = 1 << 17
"""Non-zeros of one piece of work, unless a feature has more: less than a millisecond."""


# --- The scheduler ---------------------------------------------------------------------------------------------------


class Effort(NamedTuple):
    """How accurately the minimum is searched for."""

    searches: int
    """Largest number of searches with conjugate gradients."""
    products: int
    """Largest number of products in each."""
    least: float
    """A product that lowers the model by less than this share of what its search has is the last one of the search."""
    lengths: tuple[float, ...] = STEPS
    """The lengths that are tried of a step."""


class Product(NamedTuple):
    """Two sums over all features: r.z of the residual r and its scaled form z, and z.Hz."""

    residual: float
    curvature: float


class Calls(NamedTuple):
    """The calls of the workers, which return sums over all of them.

    multiply(first, alpha, beta): advance the conjugate gradients by the scalars of the last product, and multiply; at
    the `first` one of a search they begin anew. measure(alpha, beta, lengths): advance the last time; return M(u) -
    F(w) for each of the lengths. move(length): take that step.
    """

    multiply: Callable[[bool, float, float], Product]
    measure: Callable[[float, float, tuple[float, ...]], list[float]]
    move: Callable[[float], None]


class Minimum(NamedTuple):
    """The minimum that was found."""

    decrease: float
    """F(w) - M(u)."""
    rest: float
    """By how much the last search could lower M without regard to signs."""
    length: float
    """The length of the last step, which has not been taken yet."""


def calls_of(workers: Group, rounds: Callable[[int], int]) -> Calls:
    """Return the calls of the workers, each with the next of the `rounds`; they have been told to `begin_model`."""

    def multiply(first: bool, alpha: float, beta: float) -> Product:
        args = {"first": first, "alpha": alpha, "beta": beta, "round": rounds(1)}
        parts = workers.call("multiply", args)
        return Product(*np.array([[each["residual"], each["curvature"]] for each in parts]).sum(axis=0))

    def measure(alpha: float, beta: float, lengths: tuple[float, ...]) -> list[float]:
        parts = workers.call("measure", {"alpha": alpha, "beta": beta, "lengths": lengths})
        found: list[float] = np.array([each["values"] for each in parts]).sum(axis=0).tolist()
        return found

    def move(length: float) -> None:
        workers.call("move", {"length": length, "round": rounds(1)})

    return Calls(multiply, measure, move)


def minimise(calls: Calls, effort: Effort) -> Minimum:
    """Find the minimum of M, approximately."""
    reached = rest = length = 0.0
    for number in range(effort.searches):
        if number:
            calls.move(length)
        alpha, beta, rest = _conjugate_gradients(calls.multiply, effort)
        found = calls.measure(alpha, beta, effort.lengths)
        best = int(np.argmin(found))
        length = effort.lengths[best] if -found[best] > reached else 0.0
        reached = max(-found[best], reached)
        if length == 0.0 or rest <= ENOUGH * reached:
            break
    return Minimum(reached, rest, length)


def _conjugate_gradients(
    multiply: Callable[[bool, float, float], Product], effort: Effort
) -> tuple[float, float, float]:
    """Search for the minimum of M without regard to signs; return the last scalars, and how much M falls."""
    alpha = beta = before = gain = 0.0
    for number in range(effort.products):
        product = multiply(number == 0, alpha, beta)
        following = product.residual / before if number else 0.0
        curvature = product.curvature - (following * product.residual / alpha if number else 0.0)
        if not (product.residual > 0.0 and curvature > 0.0):
            # The minimum, to the accuracy of float32 sums.
            return 0.0, 0.0, gain
        before, beta, alpha = product.residual, following, product.residual / curvature
        gain += 0.5 * alpha * before
        if 0.5 * alpha * before < effort.least * gain:
            break
    return alpha, beta, gain


# --- A worker --------------------------------------------------------------------------------------------------------


@kernel("void(f8[:, ::1], f8[:, ::1])")
def loss_terms(state: F8, out: F8) -> None:
    """Fill out[i] = (derivative, curvature) of example i's loss in x_i.w, at the last `refresh_odds`: f8[n, 2]."""
    for i in range(state.shape[0]):
        wrong = 1.0 / (1.0 + state[i, 1])
        out[i, 0], out[i, 1] = -state[i, 2] * wrong, wrong * wrong * state[i, 1]


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8[:, ::1])")
def derivatives(colptr: I8, rows: I4, values: F4, cols: I8, terms: F8, out: F8) -> None:
    """Fill out[k] = (g_j, H_jj, 1) of the columns j = cols[k], from `loss_terms`: f8[k, 3]."""
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        slope, curvature = 0.0, 0.0
        for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
            x = 1.0 if ones else np.float64(values[e])
            slope += terms[rows[e], 0] * x
            curvature += terms[rows[e], 1] * x * x
        out[k, 0], out[k, 1], out[k, 2] = slope, curvature, 1.0


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[::1], f8[::1])")
def add_margins(colptr: I8, rows: I4, values: F4, cols: I8, vector: F8, margins: F8) -> None:
    """Add X v to `margins`, f8[n], for the vector v of some columns, f8[k]."""
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        if vector[k] != 0.0:
            for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
                margins[rows[e]] += vector[k] if ones else vector[k] * values[e]


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8[:, ::1])")
def add_all_margins(colptr: I8, rows: I4, values: F4, cols: I8, vectors: F8, margins: F8) -> None:
    """Do the same for several vectors: f8[k, v], and `margins` f8[n, v]."""
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
            x = 1.0 if ones else np.float64(values[e])
            for v in range(vectors.shape[1]):
                margins[rows[e], v] += vectors[k, v] * x


@kernel("f8(f8[:, ::1], f8[::1])")
def weigh(terms: F8, margins: F8) -> float:
    """Multiply the margins, f8[n], by the curvatures of `loss_terms`; return the sum of h margin^2."""
    total = 0.0
    for i in range(margins.shape[0]):
        weighed = terms[i, 1] * margins[i]
        total += weighed * margins[i]
        margins[i] = weighed
    return total


@kernel("void(f8[:, ::1], f8[:, ::1], f8[::1])")
def sum_curvatures(terms: F8, margins: F8, out: F8) -> None:
    """Fill out[v] = the sum of h margin^2, for several vectors: margins f8[n, v]."""
    out[:] = 0.0
    for i in range(margins.shape[0]):
        for v in range(margins.shape[1]):
            out[v] += terms[i, 1] * margins[i, v] * margins[i, v]


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[::1], f8[::1])")
def add_columns(colptr: I8, rows: I4, values: F4, cols: I8, margins: F8, out: F8) -> None:
    """Fill out = X' m for some columns, f8[k], and margins m, f8[n]."""
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        part = 0.0
        for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
            part += margins[rows[e]] if ones else margins[rows[e]] * values[e]
        out[k] = part


def pieces(colptr: I8, cols: I8, most: int = LONGEST_WORK) -> list[slice]:
    """Cut columns i8[k] into one or more parts of at most `most` non-zeros besides those of the first column.

    >>> pieces(np.array([0, 100_000, 200_000, 300_000]), np.array([0, 1, 2]))
    [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    ends = np.cumsum(colptr[cols + 1] - colptr[cols])
    cuts = [0, *(np.flatnonzero(np.diff(ends // most)) + 1).tolist(), len(cols)]
    return [slice(begin, end) for begin, end in pairwise(cuts)]


def do_now(work: Callable[[], None]) -> None:
    """Do a piece of work."""
    work()


class Model:
    """A worker's part of the model, at the margins of the last `refresh_odds`: M over those of its columns `cols`.

    `matrix`: its examples by columns, (colptr, rows, values). `terms`: f8[n, 2], its examples' `loss_terms`. w: f8[m],
    the weights of all columns. `totals`: f8[k, 3], of all workers' `derivatives` of the columns `cols`. `do`: does
    pieces of work, one at a time.
    """

    def __init__(
        self,
        matrix: tuple[I8, I4, F4],
        terms: F8,
        w: F8,
        l1: float,
        cols: I8,
        totals: F8,
        do: Callable[[Callable[[], None]], None] = do_now,
    ) -> None:
        slopes, weights = totals[:, 0], w[cols]
        free = (weights != 0.0) | (np.abs(slopes) > l1)
        self.cols = cols[free]
        self._matrix, self._terms, self._do = matrix, terms, do
        self._w, slopes = weights[free], slopes[free]
        self._signs = np.where(self._w != 0.0, np.sign(self._w), -np.sign(slopes))
        self._slopes = slopes + l1 * self._signs
        self._scales = np.maximum(totals[free, 1], 1e-30)
        # Sums over all features count each one once.
        self.shares = 1.0 / totals[free, 2]
        self._margins = np.empty(len(terms))
        self._u, self._gradient = np.zeros(len(self.cols)), self._slopes
        self._begin()

    def _begin(self) -> None:
        """Begin conjugate gradients on the weights that are not held at 0."""
        held = (self._w + self._u == 0.0) & (self._gradient * self._signs > 0.0)
        self._free = np.flatnonzero(~held)
        self._residual = np.where(held, 0.0, -self._gradient)
        self._scaled = self._residual / self._scales
        self._direction, self._image, self._step, self._product = np.zeros((4, len(self.cols)))

    def multiply(self, first: bool, alpha: float, beta: float) -> tuple[F8, Product]:
        """Advance, and return this worker's part of H z, f8[k], and of the scalars; see `Calls`.

        Features that are held at 0 have none.
        """
        if first:
            self._begin()
        else:
            self._advance(alpha, beta)
        out = np.zeros(len(self.cols))
        out[self._free], curvature = self._multiplied(self._free, self._scaled)
        return out, Product(self._sum(self._residual * self._scaled), curvature)

    def take(self, product: F8) -> None:
        """Receive H z, f8[k]."""
        self._product = product

    def _multiplied(self, at: I8, vector: F8) -> tuple[F8, float]:
        """Return this worker's parts of H v for some of the features, f8[at], and of v.Hv; v is 0 for the others."""
        cols, chosen = self.cols[at], vector[at]
        out = np.empty(len(cols))
        self._margins[:] = 0.0
        for part in pieces(self._matrix[0], cols):
            self._do(partial(add_margins, *self._matrix, cols[part], chosen[part], self._margins))
        total = float(weigh(self._terms, self._margins))
        for part in pieces(self._matrix[0], cols):
            self._do(partial(add_columns, *self._matrix, cols[part], self._margins, out[part]))
        return out, total

    def _advance(self, alpha: float, beta: float) -> None:
        if alpha == 0.0:
            return
        self._direction = self._scaled + beta * self._direction
        self._image = self._product + beta * self._image
        self._step += alpha * self._direction
        self._residual = self._residual - alpha * self._image
        self._scaled = self._residual / self._scales

    def measure(self, alpha: float, beta: float, lengths: Sequence[float]) -> list[float]:
        """Advance, and return this worker's parts of M(u) - F(w) at each of the lengths of the step."""
        self._advance(alpha, beta)
        moved = np.stack([self._moved(length) for length in lengths], axis=1)
        margins, curvatures = np.zeros((len(self._terms), len(lengths))), np.empty(len(lengths))
        for part in pieces(self._matrix[0], self.cols):
            self._do(partial(add_all_margins, *self._matrix, self.cols[part], moved[part], margins))
        sum_curvatures(self._terms, margins, curvatures)
        # Not by a linear algebra library, whose order of additions depends on the processor.
        slopes = ((self._slopes * self.shares)[:, None] * moved).sum(axis=0)
        found: list[float] = (slopes + 0.5 * curvatures).tolist()
        return found

    def _moved(self, length: float) -> F8:
        """Return u after a step, projected onto the signs."""
        u = self._u + length * self._step
        return np.where((self._w + u) * self._signs < 0.0, -self._w, u)

    def move(self, length: float) -> F8:
        """Take a step; return this worker's part of H u, f8[k]."""
        self._u = self._moved(length)
        return self._multiplied(np.arange(len(self.cols)), self._u)[0]

    def take_image(self, image: F8) -> None:
        """Receive H u, f8[k]."""
        self._gradient = self._slopes + image

    def weights(self, length: float) -> F8:
        """Return the weights w + u after a last step, f8[k]."""
        weights: F8 = self._w + self._moved(length)
        return weights

    def _sum(self, terms: F8) -> float:
        return float((terms * self.shares).sum())
