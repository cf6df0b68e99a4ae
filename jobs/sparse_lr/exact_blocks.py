"""A worker's examples with exact sums: the sums over all workers do not depend on how examples are distributed.

Besides the sums (`exact_kernels`), three things would depend on the distribution:

* Margins that are updated step by step are rounded differently from margins computed from the weights. So they are
  computed from the servers' weights at the end of each pass and after each mixture (see `control`), with the same
  result on any worker. A worker that joins later receives the weights at the starts of the last passes, at most MEMORY
  (`rebuild_pass`), and recomputes its margins.
* Examples whose values are all one take a shorter loop with different rounding. Here all workers take it, or none.
* Blocks are cut by a sketch of each worker's features. Here the keys to cut at are drawn by their hash, and counted
  exactly (`sample`, `weigh`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import exact_sums
from mpips import keys as key_arrays
from mpips.data import Columns
from mpips.jobs.sparse_lr import exact_kernels, kernels
from mpips.jobs.sparse_lr.blocks import F4, F8, Blocks
from mpips.jobs.sparse_lr.control import MEMORY


class ExactBlocks(Blocks):
    """Blocks whose sums are exact; see the module."""

    dtype = np.float64

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        # Until the servers send others.
        self.bounds = np.ones((len(self.keys), 2))
        self.largest, self.terms = 1.0, 1.0
        self._received_weights: list[F8] = []

    def facts(self) -> dict[str, Any]:
        """Return the totals of the examples, with max |x|."""
        ones = float(len(self.rows) > 0)
        largest = float(np.abs(self.values).max(initial=0.0)) if len(self.values) else ones
        return super().facts() | {"largest": largest}

    def set_totals(self, ones: bool, largest: float, examples: int) -> None:
        """Receive the totals of all workers' examples: whether all values are one, max |x|, their number."""
        self.largest, self.terms = largest, float(examples)
        if not ones and len(self.values) == 0:
            self.values = np.ones(len(self.rows), np.float32)

    def sums(self, begin: int, end: int, ones: bool) -> F4 | F8:
        """Return the `column_sums` of some columns, for the servers' start."""
        out = np.empty((end - begin, 1 + 3 * exact_kernels.PARTS))
        exact_kernels.column_sums(
            self.colptr[begin : end + 1], self.rows, self.values, self.state, self.largest, self.terms, out
        )
        if ones:
            # Integers, which the first of the three parts hold exactly.
            return np.ascontiguousarray(out[:, [1 + exact_kernels.PARTS, 1 + 2 * exact_kernels.PARTS]])
        return out

    def set_radius(self, cols: slice | NDArray[np.int64], radius: F4) -> None:
        """Set the radius or code of columns: f4[k], or f4[k, 3] with the exponents of their bounds."""
        if radius.ndim == 2:
            self.bounds[cols] = np.ldexp(1.0, radius[:, 1:].astype(np.int32))
            radius = radius[:, 0]
        self.radius[cols] = radius

    def gradient(self, block: int, theta: float) -> tuple[NDArray[np.int64], F4 | F8]:
        """Compute the rows (g, U) of a block at the present margins, all of whose columns are active."""
        cols = self.columns(block)
        rows = np.empty((len(cols), 2))
        kernels.add_reach(*self.matrix, cols, self.radius, self.state)
        exact_kernels.block_gradient(*self.matrix, cols, self.radius, theta, self.state, self.bounds, rows)
        return cols, rows

    def full_gradient(self, cols: NDArray[np.int64]) -> F4 | F8:
        """Return the exact gradient of some columns, at the margins of the last `refresh`."""
        out = np.empty(len(cols))
        exact_kernels.full_gradient(*self.matrix, cols, self.state, self.bounds, out)
        return out

    # --- margins, as functions of weights

    def _note_margins(self, at: int) -> None:
        """Recompute the margins from the weights, and save them."""
        cols, out = np.flatnonzero(self.w), self._margins[at]
        exact_kernels.margins(*self.matrix, cols, self.w[cols], self.state, out)
        self.state[:, kernels.MARGIN] = out

    def renew_margins(self) -> None:
        """Begin a new period with recomputed margins."""
        self._note_margins(0)
        self.begin_period()

    def end_pass(self) -> tuple[dict[str, Any], None]:
        """Save the margins after a pass; return their largest change since the start of each saved pass."""
        self._note_margins(self._noted)
        self._note()
        steps = np.empty(len(self.history) - 1)
        exact_kernels.largest_steps(self.history, steps)
        return {"steps": steps.tolist()}, None

    def bounded_model(self, steps: list[float]) -> tuple[dict[str, Any], F8]:
        """Return the losses, and their model over the saved passes; `steps`: the largest changes on any worker."""
        most = np.array(steps)
        curvatures = np.multiply.outer(most, 0.25 * most)
        out, losses = np.empty((len(most) + 2, len(most))), np.zeros(exact_sums.SIZE, np.int64)
        anchors = exact_sums.anchors(np.vstack([curvatures, most]), self.terms)
        exact_kernels.margin_model(self.history, anchors, out, losses)
        return {"losses": losses.tolist()}, out

    def losses(self, mixtures: F8) -> F8 | NDArray[np.int64]:
        """Return the losses of every mixture of the saved margins, as accumulators i8[c, SIZE]."""
        out = np.zeros((len(mixtures), exact_sums.SIZE), np.int64)
        exact_kernels.mixed_losses(self.history, mixtures, out)
        return out

    def mix(self, mixture: F8 | None, forget: bool) -> None:
        """Set weights to a mixture of the saved ones (None: leave them), and their margins; drop states too old."""
        super().mix(mixture, forget)
        if mixture is not None:
            self._note_margins(self._noted - 1)

    def dual(self, shrink: float) -> dict[str, Any]:
        """Return this worker's parts of the dual objective and of the losses."""
        dual = np.zeros(exact_sums.SIZE, np.int64)
        exact_kernels.dual_objective(self.state, shrink, dual)
        return {"dual": dual.tolist(), "loss": self.losses(np.eye(len(self.history))[-1:])[0].tolist()}

    # --- the state of new workers

    def begin_rebuild(self, radius: F4) -> None:
        """Set the radii and bounds of all columns; the weights at the starts of the last passes follow."""
        self.set_radius(slice(None), radius)
        self._received_weights = []

    def rebuild_pass(self, w: F8) -> None:
        """Save the next of these weights: f8[m]."""
        self.w[:] = w
        self._note_margins(len(self._received_weights))
        self._received_weights.append(w)

    def end_rebuild(self) -> None:
        """Continue from the last of these weights."""
        noted = np.array(self._received_weights)
        self._period_cols = np.flatnonzero((self.radius > 0.0) | (noted != 0.0).any(axis=0))
        self._weights = np.empty((MEMORY + 1, len(self._period_cols)))
        self._noted = len(noted)
        self._weights[: self._noted] = noted[:, self._period_cols]
        self._received_weights = []
        kernels.refresh_odds(self.state)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return nothing for a checkpoint: the servers have all state."""
        return {}

    def take(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Restore nothing: the state is received from the servers later."""

    # --- cutting blocks

    def sample(self, share: float) -> NDArray[np.uint64]:
        """Return the active features' keys; if there are many, a fraction `share` of them, selected by hash."""
        keys = key_arrays.upper(self.keys)[self.radius > 0.0]
        mixed = (keys ^ (keys >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
        drawn: NDArray[np.uint64] = keys[(mixed >> np.uint64(32)) < np.uint64(share * 2.0**32)]
        return drawn

    def weigh(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Count the active non-zeros from each of some sorted keys to the next, for the first from 0 on: i8[k]."""
        cols = np.flatnonzero(self.radius > 0.0)
        total = np.cumsum(np.concatenate([[0], self.colptr[cols + 1] - self.colptr[cols]]))
        cuts = np.searchsorted(key_arrays.upper(self.keys)[cols], keys[1:])
        weights: NDArray[np.int64] = np.diff(total[np.concatenate([[0], cuts, [len(cols)]])])
        return weights
