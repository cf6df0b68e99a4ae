"""The scheduler's side with exact sums (`[layout] exact_sums`): the same bits for any workers, also when some die.

A pass in which a worker was lost is undone, on the servers and here, and repeated; the present workers then have the
same state as the lost one (`exact_blocks`). The workers' sums are added exactly, and no decision depends on anything
else that they report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips import InputError, Setting, Task, exact_sums, retry_on_loss
from mpips.jobs.sparse_lr import control
from mpips.jobs.sparse_lr.darlin import Darlin

T = TypeVar("T")
SPAN = 2.0**40
"""Largest ratio of the features' scales: the sums of small features must not vanish beside those of large ones."""
SAMPLE = 1 << 16
"""Approximate number of sampled active features, candidates for the first keys of blocks; at most all."""


class ExactDarlin(Darlin):
    """A training run whose result does not depend on the number of workers; see the module."""

    more: Mapping[str, Setting] = {"exact": True}

    def recover(self) -> None:
        """Continue with other workers from the servers' state."""
        self.assignment.load()
        self._inform()
        self._continue(same=False)

    def reset(self, full: bool) -> control.Decision:
        """Choose the active set anew; an interrupted reset can be undone."""
        self.servers.call("mark_all", vector=self.w)
        return super().reset(full)

    def measure_gap(self) -> None:
        """Compute no restricted gap: its sums are not exact."""

    def _retry(self, step: Callable[[], T], changes: bool = True) -> T:
        """Run a step on the workers; if one is lost, undo the changes of the step and repeat it."""
        if not changes:
            self.servers.call("unmark", vector=self.w)
            return retry_on_loss(self.cluster, step, self.recover)
        kept = self.control, self.rng.bit_generator.state, self.gap, self.begins, self.cut_at, self.weight
        self.servers.call("mark", vector=self.w)

        def recover() -> None:
            self.control, self.rng.bit_generator.state, self.gap, self.begins, self.cut_at, self.weight = kept
            self.servers.call("undo", vector=self.w)
            self.recover()

        return retry_on_loss(self.cluster, step, recover)

    def _inform(self) -> None:
        data = self.data
        if data.most > SPAN * data.least:
            raise InputError(
                f"[layout] exact_sums: the largest values of features go from {data.least:g} to {data.most:g}; sums "
                "are exact for a factor of at most 2**40: scale the features, or leave exact_sums out"
            )
        about = {"ones": data.ones, "largest": data.largest, "examples": data.examples}
        self.workers.call("set_totals", about)

    def _continue(self, same: bool) -> None:
        """Send the workers the weights at the starts of the last passes, from which they compute all other state."""
        self._phase("rebuild")
        noted = self.servers.call("select_weights", {"at": -1}, vector=self.w)[0]["noted"]
        self.workers.call("begin_rebuild", {"round": self._rounds(1)})
        self._phase("step", self.control.threshold)
        for at in range(noted):
            self.servers.call("select_weights", {"at": at}, vector=self.w)
            self.workers.call("rebuild_pass", {"last": at == noted - 1})
        self._record_reports(self.workers.start("report"))

    def _model(self, iterated: Task) -> NDArray[np.float64]:
        moved = [reply.meta["steps"] for reply in iterated.result()]
        task = self.workers.start("model", {"steps": np.max(moved, axis=0).tolist()})
        model = self.workers.total(task)
        model[-1, 0] = _added(reply.meta["losses"] for reply in task.result())
        return model

    def _losses(self, task: Task) -> NDArray[np.float64]:
        return exact_sums.sums_of(self.workers.total(task))

    def _loss_and_dual(self, parts: list[dict[str, Any]]) -> tuple[float, float]:
        return _added(each["loss"] for each in parts), _added(each["dual"] for each in parts)

    def _first_blocks(self) -> NDArray[np.uint64]:
        # The servers have no features yet.
        return self.pieces

    def _sketches(self) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        active = sum(each["active"] for each in self.servers.call("count", vector=self.w))
        drawn = self.workers.gather("sample", {"share": min(1.0, SAMPLE / max(active, 1))})
        keys = np.unique(np.concatenate([keys for keys, _ in drawn]))
        if not len(keys):
            return []
        weights = self.workers.total(self.workers.start("weigh", keys=keys))
        return [(keys, weights[:, 0])]


def _added(parts: Iterable[list[int]]) -> float:
    """Add accumulators; the sum is rounded once."""
    total = exact_sums.ExactSum()
    for part in parts:
        total.merge(exact_sums.ExactSum.from_list(part))
    return total.value()
