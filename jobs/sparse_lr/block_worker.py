"""A worker's calls between the passes of the delayed block proximal method: start, reset, save and restore.

A start and a reset process all features that may become active, possibly many: the key space is cut into
pieces (`keys` are their first keys), and requests for at most three of them are outstanding at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips import Answer, Context, KeyList, KeyRange, Task, Vector
from mpips import keys as key_arrays
from mpips.jobs.sparse_lr import kernels, quadratic
from mpips.jobs.sparse_lr.assignment import WorkerData
from mpips.jobs.sparse_lr.blocks import Blocks
from mpips.jobs.sparse_lr.exact_blocks import ExactBlocks
from mpips.jobs.sparse_lr.settings import Settings

T = TypeVar("T")
Columns = slice | NDArray[np.int64]
"""A selection of a worker's columns."""
KEY_BYTES, REPLY_BYTES = 8, 2 * 4
"""Bytes of a key, and of its row in a reply: (w, radius)."""
NONE = np.empty(0, np.int64)
# The round of a rebuild of the margins: no pass reaches it.
REBUILD = 2**62


class BlockWorker:
    """A worker that keeps blocks of features: their radii, margins and weights."""

    def __init__(self, context: Context, held: WorkerData) -> None:
        self.context, self.held = context, held
        self.settings: Settings = context.job.settings

    @property
    def blocks(self) -> Blocks:
        """The worker's examples by columns, which `load` has read."""
        blocks = self.held.blocks
        assert blocks is not None
        # Of a run that resumes, the data may be wide as other workers have divided them.
        if self.w.spec.settings.get("wide"):
            blocks.dtype = np.float64
        return blocks

    @property
    def exact_blocks(self) -> ExactBlocks:
        """The same, with exact sums."""
        assert isinstance(self.held.blocks, ExactBlocks)
        return self.held.blocks

    def start(self, keys: NDArray[np.uint64], round: int, ones: bool) -> dict[str, Any]:
        """Push the sums from which the servers start; receive the radii of the active features."""
        blocks, in_flight = self.blocks, deque[Task]()
        cuts = [*np.searchsorted(key_arrays.upper(blocks.keys), keys).tolist(), len(blocks.keys)]
        for number, within in enumerate(ranges(keys, self.w.spec.extent)):
            cols = slice(cuts[number], cuts[number + 1])
            with self.context.working():
                sums = blocks.sums(cols.start, cols.stop, ones)
            listed = blocks.keys[cols]
            # Without the filter these are the lists of all passes.
            asked = listed if self.settings.kkt else self.named(np.arange(cols.start, cols.stop), within)
            self._ask(in_flight, asked, sums, within, round + number, cols)
        self.context.wait_all(in_flight)
        blocks.begin_period()
        return self.report()

    def reset(self, keys: NDArray[np.uint64], round: int, full: bool) -> dict[str, Any]:
        """Push the exact gradient; receive the new active set."""
        blocks, in_flight = self.blocks, deque[Task]()
        blocks.refresh()
        asked = blocks.candidates(full)
        cuts = [*np.searchsorted(key_arrays.upper(blocks.keys)[asked], keys).tolist(), len(asked)]
        for number, within in enumerate(ranges(keys, self.w.spec.extent)):
            cols = asked[cuts[number] : cuts[number + 1]]
            self._ask(in_flight, blocks.keys[cols], self._full_gradient(cols), within, round + number, cols)
        self.context.wait_all(in_flight)
        blocks.renew_margins()
        return self.report()

    def _full_gradient(self, cols: NDArray[np.int64]) -> NDArray[Any]:
        """Return the exact gradient of some columns; handle what has arrived after each part of the work."""
        parts = quadratic.pieces(self.blocks.colptr, cols)
        return np.concatenate([self._do(partial(self.blocks.full_gradient, cols[part])) for part in parts])

    def _do(self, work: Callable[[], T]) -> T:
        """Do a piece of work, then handle what has arrived."""
        with self.context.working():
            done = work()
        self.context.take_arrived()
        return done

    # --- the second-order model of F: a Newton step, and the restricted gap

    def begin_model(self, round: int) -> None:
        """Set up the second-order model of F over the active features; see `quadratic`."""
        blocks = self.blocks
        blocks.refresh()
        cols, terms = np.flatnonzero(blocks.radius > 0.0), np.empty((len(blocks.state), 2))
        quadratic.loss_terms(blocks.state, terms)
        totals = self._added(blocks.keys[cols], self._derivatives(cols, terms), round)
        self._model = quadratic.Model(
            blocks.matrix, terms, blocks.w, self.settings.l1, cols, totals, self._do
        )
        self._model_keys = self.w.key_list(blocks.keys[self._model.cols])

    def multiply(self, first: bool, alpha: float, beta: float, round: int) -> dict[str, float]:
        """Multiply the model's curvature by the next vector of the search; return the parts of a `Product`."""
        rows, product = self._model.multiply(first, alpha, beta)
        self._model.take(self._added(self._model_keys, rows[:, None], round)[:, 0])
        return product._asdict()

    def measure(self, alpha: float, beta: float, lengths: list[float]) -> dict[str, list[float]]:
        """Return the parts of the model's values after steps of several lengths."""
        return {"values": self._model.measure(alpha, beta, lengths)}

    def move(self, length: float, round: int) -> None:
        """Take a step of the model's variables, not of the weights."""
        rows = self._model.move(length)
        self._model.take_image(self._added(self._model_keys, rows[:, None], round)[:, 0])

    def set_to_minimum(self, length: float, round: int) -> Answer:
        """Set the weights to the minimum of the model, after a last step; return the model of the losses, as a pass.

        The servers, in their phase "set", return the weights that they have set, so that all have the same bits.
        """
        model, blocks = self._model, self.blocks
        rows = (model.weights(length) * model.shares)[:, None]
        blocks.w[model.cols] = self._added(self._model_keys, rows, round)[:, 0]
        with self.context.working():
            blocks.renew_state()
            more, losses = blocks.end_pass()
        return Answer(more, losses)

    def _derivatives(self, cols: NDArray[np.int64], terms: kernels.F8) -> kernels.F8:
        """Return the `derivatives` of some columns."""
        rows = np.empty((len(cols), 3))
        for part in quadratic.pieces(self.blocks.colptr, cols):
            self._do(partial(quadratic.derivatives, *self.blocks.matrix, cols[part], terms, rows[part]))
        return rows

    def _added(
        self,
        keys: key_arrays.KeyArray | KeyList,
        rows: kernels.F8,
        round: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> kernels.F8:
        """Return the sums of rows over all workers, f8 of the same shape; do something before they are needed."""
        task = self.w.push_pull(keys, rows.astype(self.blocks.dtype), round=round, exact=True)
        meanwhile()
        return np.asarray(task.result(), np.float64).reshape(rows.shape)

    def named(self, cols: NDArray[np.int64], within: KeyRange) -> key_arrays.KeyArray | KeyList:
        """Return the keys of a block's columns: as a list from their second use on, as many are used only once."""
        blocks, w = self.held.blocks, self.w
        assert blocks is not None
        last, keys = blocks.lists.get(within, (NONE, None))
        if keys is None or not kernels.same(cols, last):
            keys = blocks.keys[cols]
        elif not isinstance(keys, KeyList) or keys.vector is not w:
            keys = w.key_list(blocks.keys[cols], within)
        else:
            return keys
        blocks.lists[within] = cols, keys
        return keys

    def _ask(
        self,
        in_flight: deque[Task],
        keys: key_arrays.KeyArray | KeyList,
        rows: NDArray[Any],
        within: KeyRange,
        round: int,
        cols: Columns,
    ) -> None:
        """Push rows for some columns and receive radii, at most two pieces ahead, so that memory is bounded."""
        task = self.w.push_pull(keys, rows, within=within, round=round, exact=True)
        in_flight.append(task.then(partial(self._take_radius, cols)))
        if len(in_flight) > 2:
            in_flight.popleft().result()

    def _take_radius(self, cols: Columns, task: Task) -> None:
        if task.error is None and (radii := task.result()) is not None and len(radii):
            self.blocks.set_radius(cols, radii)

    @property
    def w(self) -> Vector:
        """The weights."""
        return self.context.vectors["w"]

    def count_filtered(self, pushed: int) -> dict[str, int]:
        """Count the bytes of the features that a pass has left out; return the number of pushed ones, and of all."""
        features = len(self.blocks.keys)
        if self.settings.kkt:
            # A key and two numbers for each feature, in both directions.
            there, back = KEY_BYTES + 2 * np.dtype(self.blocks.dtype).itemsize, KEY_BYTES + REPLY_BYTES
            self.context.left_out("kkt", "worker", features * there, pushed * there)
            self.context.left_out("kkt", "server", features * back, pushed * back)
        return {"pushed": pushed, "features": features}

    def sketch(self) -> Answer:
        """Return the sketch of the active features' non-zeros, which determines how blocks are cut."""
        keys, weights = self.blocks.sketch()
        return Answer(values=weights, keys=keys)

    def report(self) -> dict[str, Any]:
        """Return the number of non-zeros of the active features, and this worker's accounts."""
        return self.context.account() | {"weight": self.blocks.weight()}

    # --- checkpoints

    def state(self) -> dict[str, NDArray[Any]]:
        """Return this worker's arrays for a checkpoint."""
        return self.held.blocks.arrays() if self.held.blocks is not None else {}

    def restore(self, **arrays: NDArray[Any]) -> None:
        """Restore the arrays of `state`."""
        if self.held.blocks is not None:
            self.held.blocks.take(arrays)

    def rebuild(self, round: int = REBUILD) -> None:
        """Rebuild the state from the weights, when the examples are distributed over other workers."""
        # With exact sums the scheduler rebuilds the state, by `rebuild_pass`.
        if self.held.blocks is not None and not self.context.job.layout.exact_sums:
            blocks = self.blocks
            blocks.radius[:] = self.asked(slice(None), round).result()
            active = np.flatnonzero(blocks.radius > 0.0)
            blocks.set_weights(active, self.w.pull(blocks.keys[active]).result())

    def asked(self, cols: Columns, round: int) -> Task:
        """Request the radii of some columns without a push of values."""
        keys = self.blocks.keys[cols]
        return self.w.push_pull(keys, np.zeros((len(keys), 0), self.blocks.dtype), round=round)

    def renew(self, round: int) -> dict[str, Any]:
        """Continue from the weights alone, and discard an interrupted pass."""
        self.rebuild(round)
        return self.report()

    # --- exact sums only

    def set_totals(self, ones: bool, largest: float, examples: int) -> None:
        """Receive the totals of all workers' examples."""
        self.exact_blocks.set_totals(ones, largest, examples)

    def begin_rebuild(self, round: int) -> None:
        """Receive the radii of all features; the weights at the starts of the last passes follow."""
        self.exact_blocks.begin_rebuild(self.asked(slice(None), round).result())

    def rebuild_pass(self, last: bool) -> None:
        """Receive the weights that the servers return in this phase."""
        self.exact_blocks.rebuild_pass(self.w.pull(self.blocks.keys).result())
        if last:
            self.exact_blocks.end_rebuild()

    def model(self, steps: list[float]) -> Answer:
        """Return the model of the losses after a pass, and the losses."""
        return Answer(*self.exact_blocks.bounded_model(steps))

    def sample(self, share: float) -> Answer:
        """Return a sample of the active features' keys, as candidates for the first keys of blocks."""
        return Answer(keys=self.exact_blocks.sample(share))

    def weigh(self, keys: NDArray[np.uint64]) -> Answer:
        """Count the active non-zeros between some keys."""
        return Answer(values=self.exact_blocks.weigh(keys))


def ranges(begins: NDArray[np.uint64], extent: int) -> list[KeyRange]:
    """Return the ranges that begin at the keys `begins`, u64[b], and together cover [0, extent)."""
    starts = begins.tolist()
    return [KeyRange(begin, end) for begin, end in zip(starts, [*starts[1:], extent], strict=True)]
