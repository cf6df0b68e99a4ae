"""The restricted gap: how far F may still fall, by its second-order model over the active features.

A dual point that is scaled until it is feasible bounds F* too loosely: it costs as much as the worst of all features,
whose weight may need only a tiny change. So F is compared with the minimum of its model at the present weights w,

    M(u) = F(w) + c.u + u.H u / 2,    c_j = g_j + l1 s_j,    H = X' diag(h) X,

over the changes u of the active features that leave each sign s_j as it is, or the weight 0. Active are those with w
!= 0, and those with w = 0 and |g_j| > l1, whose sign is that of -g_j; by the exact gradient of a full reset there are
no others that could leave 0. The restricted gap is (F(w) - min M) / F(w).

It is no proven bound of F(w) - F*: curvatures change with w, and features that are at 0 may be needed once others have
changed. README.md compares it with F / F* - 1.

The minimum is found by conjugate gradients on the weights that are not held at 0, in the form of Chronopoulos and Gear
(1989) with one sum over the workers for each product, followed by steps that are projected onto the signs (Moré and
Toraldo 1991). The workers keep these vectors, each for its own features: servers only add the parts of a product, and
return the sum. Scalars go through the scheduler; a feature that several workers have counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mpips import Group, kernel
from mpips.jobs.sparse_lr.kernels import F4, F8, I4, I8

SEARCHES, PRODUCTS = 4, 8
"""Number of searches with conjugate gradients, and of products in each."""
STEPS = tuple(0.5**k for k in range(7))
"""The lengths that are tried of a step, which is then projected onto the signs."""
ENOUGH = 0.05
"""A search that can lower the model by no more than this share of what the others have is the last one."""


# --- The scheduler ---------------------------------------------------------------------------------------------------


class Product(NamedTuple):
    """Two sums over all features: r.z of the residual r and its scaled form z, and z.Hz."""

    residual: float
    curvature: float


class Calls(NamedTuple):
    """The calls of the workers, which return sums over all of them.

    multiply(first, alpha, beta): advance the conjugate gradients by the scalars of the last product, and multiply; at
    the `first` one of a search they begin anew. measure(alpha, beta): advance the last time; return M(u) - F(w) for
    each of `STEPS`. move(length): take that step.
    """

    multiply: Callable[[bool, float, float], Product]
    measure: Callable[[float, float], list[float]]
    move: Callable[[float], None]


def calls_of(workers: Group, rounds: Callable[[int], int]) -> Calls:
    """Return the calls of the workers, each with the next of the `rounds`; they have been told to `begin_model`."""

    def start(first: bool, alpha: float, beta: float) -> Product:
        args = {"first": first, "alpha": alpha, "beta": beta, "round": rounds(1)}
        parts = workers.call("multiply", args)
        return Product(*np.array([[each["residual"], each["curvature"]] for each in parts]).sum(axis=0))

    def measure(alpha: float, beta: float) -> list[float]:
        parts = workers.call("measure", {"alpha": alpha, "beta": beta})
        found: list[float] = np.array([each["values"] for each in parts]).sum(axis=0).tolist()
        return found

    def move(length: float) -> None:
        workers.call("move", {"length": length, "round": rounds(1)})

    return Calls(start, measure, move)


def decrease(calls: Calls) -> float:
    """Return F(w) - min M, approximately: how much M falls, and how much it would if no sign held a weight."""
    reached = rest = 0.0
    for _ in range(SEARCHES):
        alpha, beta, rest = _conjugate_gradients(calls.multiply)
        found = calls.measure(alpha, beta)
        best = int(np.argmin(found))
        if not -found[best] > reached:
            break
        reached = -found[best]
        if rest <= ENOUGH * reached:
            break
        calls.move(STEPS[best])
    return reached + rest


def _conjugate_gradients(multiply: Callable[[bool, float, float], Product]) -> tuple[float, float, float]:
    """Search for the minimum of M without regard to signs; return the last scalars, and how much M falls."""
    alpha = beta = before = gain = 0.0
    for number in range(PRODUCTS):
        product = multiply(number == 0, alpha, beta)
        following = product.residual / before if number else 0.0
        curvature = product.curvature - (following * product.residual / alpha if number else 0.0)
        if not (product.residual > 0.0 and curvature > 0.0):
            # The minimum, to the accuracy of float32 sums.
            return 0.0, 0.0, gain
        before, beta, alpha = product.residual, following, product.residual / curvature
        gain += 0.5 * alpha * before
    return alpha, beta, gain


# --- A worker --------------------------------------------------------------------------------------------------------


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8[:, ::1])")
def derivatives(colptr: I8, rows: I4, values: F4, cols: I8, state: F8, out: F8) -> None:
    """Fill out[k] = (g_j, H_jj, 1) of the columns j = cols[k], at the margins of the last `refresh_odds`: f8[k, 3]."""
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        slope, curvature = 0.0, 0.0
        for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
            x = 1.0 if ones else np.float64(values[e])
            odds = state[rows[e], 1]
            wrong = 1.0 / (1.0 + odds)
            slope -= state[rows[e], 2] * wrong * x
            curvature += wrong * wrong * odds * x * x
        out[k, 0], out[k, 1], out[k, 2] = slope, curvature, 1.0


@kernel("f8(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8[::1], f8[::1], f8[::1])")
def multiply(
    colptr: I8, rows: I4, values: F4, cols: I8, state: F8, vector: F8, margins: F8, out: F8
) -> float:
    """Fill out = H v for the vector v of some columns, f8[k]; return v.Hv. margins: f8[n], overwritten.

    An empty `out` is left, and only v.Hv returned.
    """
    ones = values.shape[0] == 0
    margins[:] = 0.0
    for k in range(cols.shape[0]):
        if vector[k] != 0.0:
            for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
                margins[rows[e]] += vector[k] if ones else vector[k] * values[e]
    total = 0.0
    for i in range(margins.shape[0]):
        odds = state[i, 1]
        curvature = odds / ((1.0 + odds) * (1.0 + odds))
        total += curvature * margins[i] * margins[i]
        margins[i] *= curvature
    for k in range(out.shape[0]):
        part = 0.0
        for e in range(colptr[cols[k]], colptr[cols[k] + 1]):
            part += margins[rows[e]] if ones else margins[rows[e]] * values[e]
        out[k] = part
    return total


class Model:
    """A worker's part of the model, at the margins of the last `refresh_odds`: M over those of its columns `cols`.

    `matrix`: its examples by columns, (colptr, rows, values). w: f8[m], the weights of all columns. `totals`: f8[k, 3],
    of all workers' `derivatives` of the columns `cols`.
    """

    def __init__(
        self,
        matrix: tuple[I8, I4, F4],
        state: F8,
        w: F8,
        l1: float,
        cols: I8,
        totals: F8,
    ) -> None:
        slopes, weights = totals[:, 0], w[cols]
        free = (weights != 0.0) | (np.abs(slopes) > l1)
        self.cols = cols[free]
        self._matrix, self._state = matrix, state
        self._w, slopes = weights[free], slopes[free]
        self._signs = np.where(self._w != 0.0, np.sign(self._w), -np.sign(slopes))
        self._slopes = slopes + l1 * self._signs
        self._scales = np.maximum(totals[free, 1], 1e-30)
        # Sums over all features count each one once.
        self._shares = 1.0 / totals[free, 2]
        self._margins = np.empty(len(state))
        self._u, self._gradient = np.zeros(len(self.cols)), self._slopes
        self._begin()

    def _begin(self) -> None:
        """Begin conjugate gradients on the weights that are not held at 0."""
        held = (self._w + self._u == 0.0) & (self._gradient * self._signs > 0.0)
        self._free = ~held
        self._residual = np.where(held, 0.0, -self._gradient)
        self._scaled = self._residual / self._scales
        self._direction, self._image, self._step, self._product = np.zeros((4, len(self.cols)))

    def multiply(self, first: bool, alpha: float, beta: float) -> tuple[F8, Product]:
        """Advance, and return this worker's part of H z, f8[k], and of the scalars; see `Calls`."""
        if first:
            self._begin()
        else:
            self._advance(alpha, beta)
        out = np.empty(len(self.cols))
        curvature = multiply(*self._matrix, self.cols, self._state, self._scaled, self._margins, out)
        return out, Product(self._sum(self._residual * self._scaled), float(curvature))

    def take(self, product: F8) -> None:
        """Receive H z, f8[k]."""
        self._product = np.where(self._free, product, 0.0)

    def _advance(self, alpha: float, beta: float) -> None:
        if alpha == 0.0:
            return
        self._direction = self._scaled + beta * self._direction
        self._image = self._product + beta * self._image
        self._step += alpha * self._direction
        self._residual = self._residual - alpha * self._image
        self._scaled = self._residual / self._scales

    def measure(self, alpha: float, beta: float) -> list[float]:
        """Advance, and return this worker's parts of M(u) - F(w) at each of `STEPS`."""
        self._advance(alpha, beta)
        return [self._value(self._moved(length)) for length in STEPS]

    def _value(self, u: F8) -> float:
        curvature = multiply(*self._matrix, self.cols, self._state, u, self._margins, np.empty(0))
        return self._sum(self._slopes * u) + 0.5 * float(curvature)

    def _moved(self, length: float) -> F8:
        """Return u after a step, projected onto the signs."""
        u = self._u + length * self._step
        return np.where((self._w + u) * self._signs < 0.0, -self._w, u)

    def move(self, length: float) -> F8:
        """Take a step; return this worker's part of H u, f8[k]."""
        self._u = self._moved(length)
        out = np.empty(len(self.cols))
        multiply(*self._matrix, self.cols, self._state, self._u, self._margins, out)
        return out

    def take_image(self, image: F8) -> None:
        """Receive H u, f8[k]."""
        self._gradient = self._slopes + image

    def _sum(self, terms: F8) -> float:
        return float((terms * self._shares).sum())
