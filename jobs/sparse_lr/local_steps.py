"""Local steps: every worker minimises a model of F with its own examples; the weights go to the mean of the minima.

At the present weights w the gradient g and the curvatures H_jj of single features are summed over the workers. How two
features meet, H_ij, only those workers know that have the examples. Worker k takes its own part H_k for the whole:

    M_k(v) = F(w) + g.v + v.S H_k S v / 2 + l1 (|w + v|_1 - |w|_1),    S_jj = (H_jj / H_k,jj)^(1/2),

so that each feature alone has the curvature that all examples give it. Some sweeps of coordinate descent over the
active features lower M_k, without any message (`descend`). The weight of feature j then changes by the mean of the
workers' v_j, weighted by H_k,jj. If examples are spread over workers by chance, M_k is close to the model of all of
them; if not, the search along the last steps (`control`) finds a better length, or undoes the step.

Who has done the sweeps that were asked for goes on until all have: a worker that is slow at the time keeps no other
waiting.

Averages of local steps: DANE (Shamir, Srebro and Zhang, ICML 2014) and GIANT (Wang et al., NeurIPS 2018); coordinate
descent on the second-order model of l1-regularised logistic regression: Yuan, Ho and Lin (JMLR 2012).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np

from mpips import kernel
from mpips.jobs.sparse_lr import quadratic
from mpips.jobs.sparse_lr.kernels import F4, F8, I4, I8

SWEPT = 1 << 15
"""Non-zeros of one piece of a sweep: all wait for those who are still at one when all have done enough."""


@kernel("void(i8[::1], i4[::1], f4[::1], i8[::1], f8[:, ::1], f8, f8[:, ::1])")
def descend(colptr: I8, rows: I4, values: F4, cols: I8, features: F8, l1: float, field: F8) -> None:
    """Minimise M_k over the weights of the columns `cols`, one after the other.

    features: f8[k, 4], by column (g_j, H_jj, S_jj, w_j + v_j), of which the last one changes. field: f8[n, 2], by
    example (h_i, h_i x_i.S v).
    """
    ones = values.shape[0] == 0
    for k in range(cols.shape[0]):
        begin, end = colptr[cols[k]], colptr[cols[k] + 1]
        scale, curvature, before = features[k, 2], features[k, 1], features[k, 3]
        slope = 0.0
        for e in range(begin, end):
            slope += field[rows[e], 1] if ones else field[rows[e], 1] * values[e]
        aim = curvature * before - features[k, 0] - scale * slope
        now = 0.0
        if aim > l1:
            now = (aim - l1) / curvature
        elif aim < -l1:
            now = (aim + l1) / curvature
        if now != before:
            features[k, 3] = now
            step = scale * (now - before)
            for e in range(begin, end):
                i = rows[e]
                field[i, 1] += step * field[i, 0] * (1.0 if ones else values[e])


class LocalModel:
    """A worker's model M_k over its columns `cols`, at the margins of the last `refresh_odds`.

    `matrix`: its examples by columns, (colptr, rows, values). `terms`: f8[n, 2], its examples' `loss_terms`. `own`,
    `totals`: f8[k, 3], the `derivatives` of the columns by its own examples and by all. w: f8[k], their weights.
    """

    def __init__(
        self, matrix: tuple[I8, I4, F4], terms: F8, w: F8, l1: float, cols: I8, own: F8, totals: F8
    ) -> None:
        self._matrix, self._l1, self.cols = matrix, l1, cols
        curved = totals[:, 1] > 0.0
        # A feature whose curvature has vanished stays where it is.
        self._shares = np.where(curved, own[:, 1] / np.where(curved, totals[:, 1], 1.0), 1.0 / totals[:, 2])
        self._moves = np.flatnonzero(curved & (own[:, 1] > 0.0))
        moved = self._moves
        scales = 1.0 / np.sqrt(self._shares[moved])
        self._features = np.column_stack([totals[moved, 0], totals[moved, 1], scales, w[moved]])
        self._w = w
        self._field = np.zeros((len(terms), 2))
        self._field[:, 0] = terms[:, 1]

    @cached_property
    def pieces(self) -> list[Callable[[], None]]:
        """The pieces of work of a sweep, which visits every column once."""
        cols = self.cols[self._moves]
        return [
            partial(descend, *self._matrix, cols[part], self._features[part], self._l1, self._field)
            for part in quadratic.pieces(self._matrix[0], cols, SWEPT)
        ]

    def weights(self) -> F8:
        """Return this worker's parts of the new weights, f8[k]."""
        w = self._w.copy()
        w[self._moves] = self._features[:, 3]
        parts: F8 = w * self._shares
        return parts
