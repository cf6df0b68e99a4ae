"""sparse_lr, whose workers log when they begin each pass: see `recovery`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.jobs.sparse_lr import job
from mpips.jobs.sparse_lr.job import OUTPUTS as OUTPUTS
from mpips.jobs.sparse_lr.job import Settings as Settings
from mpips.jobs.sparse_lr.job import schedule as schedule
from mpips.rundir.log import note
from mpips.worker.worker import Answer

BEGINS = "pass begins"
"""The event in a worker's log; `leader` is the scheduler's rank then."""


class Worker(job.Worker):
    """The worker of sparse_lr."""

    def iterate(
        self, keys: NDArray[np.uint64], order: list[int], theta: float, exact: bool, round: int
    ) -> Answer:
        """Log that a pass begins, and visit its blocks."""
        note(BEGINS, leader=self.context.node.view.leader)
        return super().iterate(keys, order, theta, exact, round)
