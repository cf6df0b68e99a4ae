"""The worker's side of the delayed block proximal method: its examples by columns, and their state."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import CheckpointError, KeyList, KeyRange
from mpips import keys as key_arrays
from mpips.data import Columns
from mpips.jobs.sparse_lr import kernels, quadratic
from mpips.jobs.sparse_lr.control import MEMORY, weight_sketch

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
NO_VALUES = np.empty(0, np.float32)
EXAMPLES = 1 << 12
"""Examples of one piece of work on the losses: a quarter of a millisecond."""


def joined(first: Columns, second: Columns) -> Columns:
    """Return two sets of examples as one, the second set after the first."""
    keys = np.union1d(first.keys, second.keys)
    parts = [(part, np.searchsorted(keys, part.keys)) for part in (first, second)]
    counts = np.zeros(len(keys), np.int64)
    for part, cols in parts:
        counts[cols] += np.diff(part.colptr)
    colptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    places, rows = colptr[:-1].copy(), np.empty(colptr[-1], np.int32)
    ones = first.values is None and second.values is None
    values = NO_VALUES if ones else np.empty(colptr[-1], np.float32)
    begin = 0
    for part, cols in parts:
        own = NO_VALUES if part.values is None else part.values
        kernels.place_columns(part.colptr, part.rows, own, cols, begin, places, rows, values)
        begin += len(part.labels)
    labels = np.concatenate([first.labels, second.labels])
    return Columns(keys, colptr, rows, None if ones else values, labels)


class Blocks:
    """A worker's examples and their margins; for every feature its weight, and its trust radius if it is active.

    Inactive features have a code (`kernels.NEAR` and others) instead of a radius. Weights have the same bits as on the
    servers: workers receive every changed weight, and both mix the saved states of the last passes in the same way.
    """

    dtype: type[np.floating[Any]] = np.float32
    """Type of the pushed rows; float64 for wide data (`kernels.SMALL`)."""

    def __init__(self, columns: Columns) -> None:
        self.keys, self.colptr, self.rows = columns.keys, columns.colptr, columns.rows
        self.values = NO_VALUES if columns.values is None else columns.values
        self.state = kernels.new_state(columns.labels)
        # Until the servers send others.
        self.radius = np.ones(len(self.keys), np.float32)
        self.w = np.zeros(len(self.keys))
        self._margins, self._weights = np.zeros((MEMORY + 1, len(columns.labels))), np.empty((MEMORY + 1, 0))
        # The number of rows of both that hold notes.
        self._noted = 1
        # The columns that were active when the pass began, in key order.
        self.cols = np.empty(0, np.int64)
        # Where the pass's blocks begin among them.
        self.cuts = [0]
        self.lists: dict[KeyRange, tuple[NDArray[np.int64], key_arrays.KeyArray | KeyList]] = {}
        """By range of a block: the columns that were visited last, and their keys, as a list if they were before."""
        # The columns whose weights are saved: all others weigh 0 until the next period.
        self._period_cols = np.empty(0, np.int64)

    @property
    def matrix(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The examples by columns: (colptr, rows, values), see `kernels`."""
        return self.colptr, self.rows, self.values

    def sums(self, begin: int, end: int, ones: bool) -> F4 | F8:
        """Return the `column_sums` of some columns, for the servers' start; only the last two if `ones`."""
        out = np.empty((end - begin, 4), self.dtype)
        kernels.column_sums(self.colptr[begin : end + 1], self.rows, self.values, self.state, out)
        return np.ascontiguousarray(out[:, 2:]) if ones else out

    def facts(self) -> dict[str, Any]:
        """Return the totals of the examples."""
        return {
            "features": len(self.keys),
            "last": 2**64 - 1
            if key_arrays.is_wide(self.keys)
            else int(self.keys[-1])
            if len(self.keys)
            else 0,
            "ones": len(self.values) == 0,
            "positive": int((self.state[:, kernels.LABEL] > 0.0).sum()),
            "fingerprint": self._fingerprint,
            "extremes": kernels.extremes(self.colptr, self.values),
            "outlying": kernels.outlying(self.colptr, self.values),
        }

    @cached_property
    def _fingerprint(self) -> int:
        """A number that identifies data by their keys: any partition of the same data has the same sum modulo 2^64."""
        total = 0
        for begin in range(0, len(self.keys), 1 << 16):
            keys, ends = (
                key_arrays.folded(self.keys[begin : begin + (1 << 16)]),
                self.colptr[begin : begin + (1 << 16) + 1],
            )
            mixed = (keys ^ (keys >> np.uint64(29))) * np.uint64(0x9E3779B97F4A7C15)
            total += int((mixed * np.diff(ends).astype(np.uint64)).sum())
        return total % 2**64

    def set_weights(self, cols: NDArray[np.int64], w: F8) -> None:
        """Set the weights of columns, and 0 for all others; recompute the margins. A new period begins."""
        self.w[:] = 0.0
        self.w[cols] = w
        self.renew_margins()

    def renew_margins(self) -> None:
        """Recompute the margins from the weights, since mixtures amplify rounding errors. A new period begins."""
        self._set_margins()
        self.begin_period()

    def move(self, cols: NDArray[np.int64], w: F8, margins: F8) -> None:
        """Set the weights of columns, whose change moves x_i.w by `margins`, f8[n]."""
        self.w[cols] = w
        self.state[:, kernels.MARGIN] += self.state[:, kernels.LABEL] * margins

    def renew_state(self) -> None:
        """Recompute the margins from the weights, and what is derived from them, within a period."""
        self._set_margins()
        kernels.refresh_odds(self.state)

    def _set_margins(self) -> None:
        cols = np.flatnonzero(self.w)
        kernels.set_margins(*self.matrix, cols, self.w[cols], self.state)

    def set_radius(self, cols: slice | NDArray[np.int64], radius: F4) -> None:
        """Set the radius of columns, or the code instead of it."""
        self.radius[cols] = radius

    def begin_period(self) -> None:
        """Save the set of active columns, the margins and the weights; earlier saved states are dropped."""
        kernels.refresh_odds(self.state)
        self._period_cols = np.flatnonzero(self.radius > 0.0)
        self._weights = np.empty((MEMORY + 1, len(self._period_cols)))
        self._noted = 0
        self._note()

    @property
    def history(self) -> F8:
        """The saved margins: at the starts of the last passes, and now."""
        return self._margins[: self._noted]

    def _note(self) -> None:
        self._margins[self._noted] = self.state[:, kernels.MARGIN]
        self._weights[self._noted] = self.w[self._period_cols]
        self._noted += 1

    def _forget(self, kept: int) -> None:
        """Drop all saved states but the last `kept`, row by row, to avoid large copies."""
        first = max(self._noted - kept, 0)
        for notes in (self._margins, self._weights):
            for row in range(first, self._noted if first else 0):
                notes[row - first] = notes[row]
        self._noted -= first

    def _thin_out(self) -> None:
        """Stop saving columns that were dropped and had weight 0 throughout, once they are the majority."""
        noted = self._weights[: self._noted]
        live = (self.radius[self._period_cols] > 0.0) | (noted != 0.0).any(axis=0)
        if 2 * np.count_nonzero(live) < len(live):
            weights = np.empty((MEMORY + 1, int(np.count_nonzero(live))))
            weights[: self._noted] = noted[:, live]
            self._period_cols, self._weights = self._period_cols[live], weights

    def candidates(self, full: bool) -> NDArray[np.int64]:
        """List the columns that may become active soon, or with `full` at any time."""
        return np.flatnonzero(self.radius >= (kernels.FAR if full else kernels.NEAR))

    def dropped(self) -> NDArray[np.int64]:
        """List the columns that are inactive but have a non-zero weight, as the result of a mixture."""
        cols = self._period_cols
        asleep = (self.radius[cols] <= 0.0) & (self.w[cols] != 0.0)
        dropped: NDArray[np.int64] = cols[asleep]
        return dropped

    def weight(self) -> int:
        """Count the non-zeros of the active columns."""
        active = self.radius > 0.0
        return int((self.colptr[1:][active] - self.colptr[:-1][active]).sum())

    def sketch(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the sketch of the active non-zeros that determines how blocks are cut."""
        cols = np.flatnonzero(self.radius > 0.0)
        return weight_sketch(key_arrays.upper(self.keys)[cols], self.colptr[cols + 1] - self.colptr[cols])

    def begin_pass(self, begins: NDArray[np.uint64]) -> None:
        """Begin a pass that no other one overlaps."""
        kernels.refresh_odds(self.state)
        self.cut(begins)

    def cut(self, begins: NDArray[np.uint64]) -> None:
        """Partition the active columns into the blocks of a pass, given the first key of each."""
        self.cols = np.flatnonzero(self.radius > 0.0)
        self.cuts = [
            *np.searchsorted(key_arrays.upper(self.keys)[self.cols], begins).tolist(),
            len(self.cols),
        ]

    def keep_lists(self, within: Collection[KeyRange]) -> None:
        """Drop the key lists of other ranges."""
        self.lists = {each: self.lists[each] for each in within if each in self.lists}

    def columns(self, block: int) -> NDArray[np.int64]:
        """List a block's columns: those that were active when the pass began."""
        return self.cols[self.cuts[block] : self.cuts[block + 1]]

    def gradient(self, block: int, theta: float) -> tuple[NDArray[np.int64], F4 | F8]:
        """Compute the rows (g, U) of a block at the present margins; return its active columns, and their rows.

        Columns of a pass may have been dropped since it began, by the end of the pass that it overlaps.
        """
        cols = self.columns(block)
        active, rows = np.empty(len(cols), np.int64), np.empty((len(cols), 2), self.dtype)
        k = kernels.visit(*self.matrix, cols, self.radius, theta, self.state, active, rows)
        return active[:k], rows[:k]

    def apply(self, cols: NDArray[np.int64], reply: F4) -> None:
        """Update the margins by a block's new weights, and set its new radii: reply (w, radius)."""
        if len(cols):
            kernels.apply_steps(*self.matrix, cols, reply, self.w, self.radius, self.state)

    def end_pass(self) -> tuple[dict[str, Any], F8 | None]:
        """Save the margins after a pass; return the losses' second-order model over the saved passes."""
        self._note()
        return {}, self.model()

    def model(self, do: Callable[[Callable[[], None]], None] = quadratic.do_now, passes: int = MEMORY) -> F8:
        """Return the losses' second-order model over the last of the saved passes, by pieces of work that `do` does."""
        history = self.history[-1 - passes :]
        steps, examples = len(history) - 1, len(self.state)
        model = np.zeros((steps + 2, steps))
        for begin in range(0, examples, EXAMPLES):
            end = min(begin + EXAMPLES, examples)
            do(partial(kernels.margin_model, history, begin, end, model))
        return model

    # Passes that overlap: see `overlap`.

    def note_pass(self) -> None:
        """Save the margins and weights after a pass while the next one runs, or after a local step."""
        self._forget(MEMORY)
        self._note()

    def losses(self, mixtures: F8) -> F8 | NDArray[np.int64]:
        """Return the losses of every mixture of the saved margins."""
        out = np.empty(len(mixtures))
        kernels.mixed_losses(self.history, mixtures, out)
        return out

    def mix(self, mixture: F8 | None, forget: bool) -> None:
        """Set margins and weights to a mixture of the saved ones (None: leave them), and drop states too old."""
        if mixture is not None:
            margins, weights = self.history, self._weights[: self._noted]
            kernels.mix(margins, mixture, margins[-1])
            kernels.mix(weights, mixture, weights[-1])
            self.state[:, kernels.MARGIN], self.w[self._period_cols] = margins[-1], weights[-1]
        self._forget(1 if forget else MEMORY)
        self._thin_out()

    def refresh(self) -> None:
        """Recompute the values that are derived from the margins, after a mixture."""
        kernels.refresh_odds(self.state)

    def full_gradient(self, cols: NDArray[np.int64]) -> F4 | F8:
        """Return the exact gradient of some columns, at the margins of the last `refresh`."""
        out = np.empty(len(cols), self.dtype)
        kernels.full_gradient(*self.matrix, cols, self.state, out)
        return out

    def loss(self) -> float:
        """Return the sum of the log-losses at the margins that were saved last."""
        return float(self.losses(np.eye(len(self.history))[-1:])[0])

    def dual(self, shrink: float) -> dict[str, Any]:
        """Return this worker's parts of the dual objective and of the losses."""
        return {"dual": float(kernels.dual_objective(self.state, shrink)), "loss": self.loss()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a checkpoint: radii, saved states, the period's columns, and the data's checksum."""
        return {
            "radius": self.radius,
            "epoch": self._period_cols,
            "margins": self.history,
            "weights": self._weights[: self._noted],
            "checksum": np.array([self._checksum], np.int64),
        }

    @cached_property
    def _checksum(self) -> int:
        """The CRC-32 of this worker's examples: margins are valid only for these examples in this order."""
        checksum = 0
        for array in (
            key_arrays.pairs(self.keys),
            self.colptr,
            self.rows,
            self.values,
            self.state[:, kernels.LABEL].copy(),
        ):
            checksum = zlib.crc32(array.data, checksum)
        return checksum

    def take(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Restore the result of `arrays`.

        Raises:
            CheckpointError: it belongs to other examples.
        """
        if "checksum" not in arrays or arrays["checksum"].reshape(-1).tolist() != [self._checksum]:
            raise CheckpointError("the checkpoint was written with other training data, or parts of them")
        nothing = np.empty(0)
        radius, cols, margins, weights = (
            arrays.get(name, nothing) for name in ("radius", "epoch", "margins", "weights")
        )
        sound = (
            (radius.dtype, radius.shape) == (self.radius.dtype, self.radius.shape)
            and cols.ndim == 1 and cols.dtype == np.int64
            and cols.min(initial=0) >= 0 and cols.max(initial=-1) < len(radius)
            and margins.ndim == 2 and 1 <= len(margins) <= MEMORY + 1
            and margins.shape[1] == self._margins.shape[1] and weights.shape == (len(margins), len(cols))
        )  # fmt: skip
        if not sound:
            raise CheckpointError("the checkpoint is damaged: a worker's arrays do not fit each other")
        self.radius, self._period_cols = radius, cols
        self._noted, self._weights = len(margins), np.empty((MEMORY + 1, len(cols)))
        self._margins[: self._noted], self._weights[: self._noted] = margins, weights
        self.state[:, kernels.MARGIN] = self.history[-1]
        self.w[:] = 0.0
        self.w[self._period_cols] = self._weights[self._noted - 1]
        kernels.refresh_odds(self.state)
