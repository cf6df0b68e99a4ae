"""The scheduler's side with a delay: passes overlap, so that no worker waits at the end of a pass.

    workers    pass k - 1      | pass k                     | pass k + 1
    scheduler                     report k-1: F, theta        report k: F, theta
                                  issue pass k + 1            issue pass k + 2

A worker visits the first blocks of the next pass while the last ones of a pass are in flight (`overlap`), then reports
the pass. Meanwhile it has the rest of the next pass to do; what the scheduler decides by the report takes
effect at the pass that it issues then. So the step control lags by one pass.

What needs all workers at one state comes after a last pass that no other one overlaps: a reset of the active set, a
checkpoint, the end; a local or a Newton step; the search along the last passes' steps, which is tried after 1, 2,
4, 8 passes as long as it does not pay; and the repair of a pass that has increased F, together with the one that was
running meanwhile: their steps are shortened or undone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Setting, Task
from mpips.jobs.sparse_lr import control, evaluate
from mpips.jobs.sparse_lr.assignment import Assignment
from mpips.jobs.sparse_lr.block_worker import ranges
from mpips.jobs.sparse_lr.darlin import Darlin
from mpips.jobs.sparse_lr.newton import Newton
from mpips.jobs.sparse_lr.proximal import exact_total
from mpips.jobs.sparse_lr.settings import Settings


class Running(NamedTuple):
    """A pass that has been issued: its number since passes overlap, the workers' call, and that for their reports."""

    number: int
    run: Task
    report: Task
    theta: float
    begins: NDArray[np.uint64]
    last: list[int]
    """The blocks that may be in flight at its end."""


class OverlappedDarlin(Darlin):
    """A training run whose passes overlap; see the module."""

    more: Mapping[str, Setting] = {"overlap": True}

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        assignment: Assignment,
        data: evaluate.Data,
        newton: Newton,
    ) -> None:
        self._running: Running | None = None
        # Whether the present pass is to be the last one before a rest, and what is due then.
        self._is_final = self._reset = self._full = self._stop = False
        # The next pass has begun when one is reported.
        cluster.durations.under_way = 2
        super().__init__(cluster, settings, assignment, data, newton)

    def at_rest(self) -> bool:
        """Return whether no blocks are in flight; otherwise the next pass is the last before a rest."""
        self._is_final |= self._running is not None
        return self._running is None

    def recover(self) -> None:
        """Continue with other workers, from the servers' weights; a reset that was due still is."""
        self._running, self.good, self._stop = None, 1, False
        super().recover()

    def one_pass(self) -> bool:
        """Complete a pass, and issue the next one before unless this is the last before a rest."""
        if self._running is None:
            self._running = self._issue()
        if self._is_last():
            return self._end()
        following = self._issue()
        self._follow(self._running)
        self._running = following
        return False

    def _is_last(self) -> bool:
        """Return whether the pass that runs is the last before a rest."""
        every, number = self.cluster.job.checkpoint.every, self.passes + 1
        ctl = self.control
        return (
            self._is_final
            # Few blocks: none of the next pass could begin.
            or len(self.begins) < 2 * (self.tau + 1)
            or not self.w.spec.settings.get("overlap")
            or number >= self.most_passes
            or (every > 0 and number % every == 0)
            or ctl.settled > 0
            or ctl.unsearched + 1 >= ctl.patient
            or (self.takes_steps and self.newton.due_next(ctl))
        )

    def _issue(self) -> Running:
        """Issue the next pass to the workers."""
        before = self._running
        if abs(self.weight - self.cut_at) > control.CUT_AGAIN * self.cut_at:
            self._cut_blocks()
        order = self._order(before)
        begin = self._rounds(len(order))
        plan = {"order": order, "round": begin, "theta": self.control.theta, "exact": self.control.exact > 0}
        self.workers.start("plan", plan, keys=self.begins)
        run = before.run if before else self.workers.start("run_passes", {"first": begin})
        report = self.workers.start("report_of", {"round": begin})
        number = before.number + 1 if before else 1
        return Running(number, run, report, self.control.theta, self.begins, order[-self.tau - 1 :])

    def _order(self, before: Running | None) -> list[int]:
        """Draw the order of the blocks; the first ones have no keys of blocks that may be in flight then."""
        order: list[int] = self.rng.permutation(len(self.begins)).tolist()
        if before is None:
            return order
        blocks, former = (ranges(begins, self.data.extent) for begins in (self.begins, before.begins))
        flying = [former[block] for block in before.last]
        apart = (block for block in order if all(blocks[block].intersection(each) is None for each in flying))
        first = list(islice(apart, self.tau))
        chosen = set(first)
        return [*first, *(block for block in order if block not in chosen)]

    def _sketches(self) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        return [(keys, weights[:, 0]) for keys, weights in self.workers.gather("sketch_now")]

    def _follow(self, running: Running) -> None:
        """Take the report of a pass while the next one runs: its objective, and its step's length."""
        task = running.report
        model = self._model(task)
        self.count_filtered(task, len(running.begins))
        args = {"number": running.number, "threshold": self.control.threshold}
        seen = self.servers.call("sizes_meanwhile", args, vector=self.w)
        self.now |= {name: sum(each[name] for each in seen) for name in ("nonzeros", "active")}
        self._record_reports(task)
        before = self.control.objectives[-1]
        # The model is that of the pass's own step.
        proposal = control.propose(model, exact_total(seen)[-2:], self.settings.l1, before)
        rose = not proposal.objective < before
        choice = control.Choice(before if rose else proposal.objective, None, "kept")
        violation = max(float(each["violation"]) for each in seen)
        decision = self._next(control.PassReport(proposal, choice, violation, self.examples))
        self.control = self.control._replace(unsearched=self.control.unsearched + 1)
        if rose:
            self.good, self._is_final = 2, True
        self._note(decision)
        self._is_final |= decision.reset or decision.stop

    def _note(self, decision: control.Decision) -> None:
        """Note what is due at the next rest."""
        self._reset |= decision.reset
        self._full |= decision.full
        self._stop |= decision.stop

    def _end(self) -> bool:
        """End the pass that runs, without a next one, and do what is due; return whether to stop."""
        running = self._running
        assert running is not None
        sweeps = self.control.sweeps if self._steps_locally() else 0
        # No other round was used since the pass was issued.
        step = {"round": self._rounds(2 if sweeps else 0)}
        self.workers.start("end_at", {**step, "sweeps": sweeps})
        if sweeps:
            self._end_by_step(running, step)
        else:
            self._end_by_search(running)
        self._running, self._is_final, self.good = None, False, 1
        stop = self._stop or self.control.objectives[-1] <= self.settings.target
        if self._reset and not stop:
            stop = self.reset(self._full).stop
        # Not before: a reset in which a worker is lost is still due.
        self._reset = self._full = False
        return stop or self.newton_step()

    def _steps_locally(self) -> bool:
        """Return whether a local step follows the pass that runs."""
        return (
            self.takes_steps
            and bool(self.w.spec.settings.get("overlap"))
            and self.passes + 1 < self.most_passes
            and self.newton.due_next(self.control)
        )

    def _end_by_step(self, running: Running, step: dict[str, int]) -> None:
        """Follow the last pass and the local step after it, which no worker begins later for the pass's report."""
        self._follow(running)
        self.workers.call("swept", step)
        self.workers.start("enough", step)
        report = self.search(self._model(running.run))
        self.control = self.newton.taken_locally(self.control, report)._replace(unsearched=0)
        self.mix(report.choice)

    def _end_by_search(self, running: Running) -> None:
        """Follow the last pass, and search along the steps of the last ones."""
        model = self._model(running.report)
        self.count_filtered(running.report, len(running.begins))
        running.run.result()
        report = self.search(model)
        self._note(self._next(report))
        self.control = control.searched(self.control, report)
        self.mix(report.choice)

    def _next(self, report: control.PassReport) -> control.Decision:
        """Let the control decide; the mean of its theta and that of the pass issued last follows the lag smoothly."""
        assert self._running is not None
        issued = self.control.theta
        self.control = self.control._replace(theta=self._running.theta)
        decision = self.decide(report)
        self.control = self.control._replace(theta=math.sqrt(self.control.theta * issued))
        return decision
