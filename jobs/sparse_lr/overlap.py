"""A worker's passes with a delay: the first blocks of a pass are visited while the last ones of the pass before arrive.

The steps of a pass are applied before any of the next pass, whichever arrive first, so that the margins after each pass
are those of one model: a step that arrives early is kept until the previous pass is complete. Two visits of a feature
never overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Answer, Consistency, Context, KeyRange, Later, Task, WorkerLost, at_once, unmet
from mpips.jobs.sparse_lr import quadratic
from mpips.jobs.sparse_lr.assignment import WorkerData
from mpips.jobs.sparse_lr.block_worker import BlockWorker, ranges
from mpips.jobs.sparse_lr.blocks import F4, Blocks
from mpips.jobs.sparse_lr.control import MEMORY
from mpips.jobs.sparse_lr.local_steps import LocalModel


class Flight(NamedTuple):
    """A block in flight: its task, its keys, and the number of its pass."""

    task: Task
    within: KeyRange
    number: int


class Passes:
    """The blocks in flight of a worker's passes, and the order in which their steps are applied."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.flights: dict[int, Flight] = {}
        """By round."""
        self.number = 0
        """The number of the present pass."""
        self.unapplied = {0: 0}
        """The blocks in flight of the previous pass, unless it is complete, and of the present one."""
        self.pushed = {0: 0}
        """The number of features that were pushed, by pass."""
        self._kept: list[tuple[NDArray[np.int64], F4]] = []

    def begin(self) -> None:
        """Begin the next pass; the previous one is complete as soon as all its steps are applied."""
        self.number += 1
        self.unapplied[self.number] = self.pushed[self.number] = 0
        self._complete_if_applied()

    @property
    def alone(self) -> bool:
        """Whether the previous pass is complete."""
        return len(self.unapplied) == 1

    @property
    def previous(self) -> list[Task]:
        """The tasks of the previous pass that are not known to be finished."""
        return [each.task for each in self.flights.values() if each.number < self.number]

    def blocking(self, dependencies: Collection[int], within: KeyRange) -> list[Task]:
        """List the tasks that a visit has to wait for: its dependencies, and an earlier visit of the same keys."""
        due = set(unmet(dependencies, self.flights))
        return [
            each.task
            for time, each in self.flights.items()
            if time in due or (each.within.begin < within.end and within.begin < each.within.end)
        ]

    def add(self, time: int, task: Task, within: KeyRange, cols: NDArray[np.int64]) -> None:
        """Add a block of the present pass, whose request has been sent."""
        self.flights[time] = Flight(task, within, self.number)
        self.unapplied[self.number] += 1
        self.pushed[self.number] += len(cols)

    def drop_finished(self) -> None:
        """Forget the blocks that have arrived; raise the error of one that has failed."""
        for time in [time for time, each in self.flights.items() if each.task.done]:
            self.flights.pop(time).task.result()

    def arrived(self, number: int, cols: NDArray[np.int64], reply: F4) -> None:
        """Apply the step of a block of a pass, or keep it while the previous pass is not complete."""
        if number == self.number and not self.alone:
            self._kept.append((cols, reply))
            return
        self._apply(number, cols, reply)
        self._complete_if_applied()

    def _apply(self, number: int, cols: NDArray[np.int64], reply: F4) -> None:
        self.blocks.apply(cols, reply)
        self.unapplied[number] -= 1

    def _complete_if_applied(self) -> None:
        """Save the margins after the previous pass if all its steps are applied, and apply what has been kept."""
        if self.unapplied.get(self.number - 1) == 0:
            del self.unapplied[self.number - 1]
            self.blocks.note_pass()
            kept, self._kept = self._kept, []
            for cols, reply in kept:
                self._apply(self.number, cols, reply)


class Plan(NamedTuple):
    """A pass: the first keys of its blocks, their order, the round of the first one, and the settings of a step."""

    keys: NDArray[np.uint64]
    order: list[int]
    round: int
    theta: float
    exact: bool

    @property
    def next(self) -> int:
        """The first round of the next pass."""
        return self.round + len(self.order)


class End(NamedTuple):
    """The end of passes: before it a local step of at least some sweeps, unless 0, in the two rounds from one on."""

    round: int
    sweeps: int


class OverlapWorker(BlockWorker):
    """A worker whose passes overlap, during its call `run_passes`.

    Meanwhile the scheduler announces passes by `plan`, and the end by `end_at`, in any order and ahead of time, and
    gets their reports by `report_of`. A pass is named by its first round.
    """

    def __init__(self, context: Context, held: WorkerData, pull: Consistency) -> None:
        super().__init__(context, held)
        self._pull = pull
        self._plans: dict[int, Plan | End] = {}
        self._reports: dict[int, Answer] = {}
        self._within: list[KeyRange] = []
        # The blocks in flight while passes overlap.
        self._passes: Passes | None = None
        # The first round since a worker was lost, and the error of passes since then.
        self._since = 0
        self._failed: Exception | None = None
        # The rounds of the last local steps whose sweeps this worker has done, and all have.
        self._swept = self._enough = -1

    def renew(self, round: int) -> dict[str, Any]:
        """Continue from the weights alone, and discard interrupted passes."""
        self._since, self._failed = round, None
        self._plans.clear()
        self._reports.clear()
        return super().renew(round)

    @at_once
    def sketch_now(self) -> Answer:
        """Return the sketch of the features that are active at this moment."""
        return self.sketch()

    @at_once
    def plan(self, keys: NDArray[np.uint64], order: list[int], round: int, theta: float, exact: bool) -> None:
        """Receive a pass."""
        if round >= self._since:
            self._plans[round] = Plan(keys, order, round, theta, exact)

    @at_once
    def end_at(self, round: int, sweeps: int) -> None:
        """Receive that the pass before a round is the last one, and the least sweeps of a local step that follows it.

        0: none does.
        """
        if round >= self._since:
            self._plans[round] = End(round, sweeps)

    @at_once
    def report_of(self, round: int) -> Later:
        """Return the report of a pass, as soon as it is complete."""
        return Later(partial(self._take_report, round))

    @at_once
    def swept(self, round: int) -> Later:
        """Return, without a value, as soon as the sweeps of the local step of a round are done."""
        return Later(partial(self._has_swept, round))

    def _has_swept(self, round: int) -> Answer | None:
        if round >= self._since and self._failed is not None:
            raise self._failed
        # Of before the loss of a worker: nobody asks any more.
        return Answer({}) if self._swept == round or round < self._since else None

    @at_once
    def enough(self, round: int) -> None:
        """Receive that all have done the sweeps of the local step of a round: who had done them went on until then."""
        self._enough = round

    def _take_report(self, round: int) -> Answer | None:
        if round < self._since:
            # Of before the loss of a worker.
            return Answer({})
        if self._failed is not None:
            raise self._failed
        return self._reports.pop(round, None)

    def run_passes(self, first: int) -> Answer | None:
        """Run the passes from that of a round on, until the end that is planned, with a local step if one is.

        Returns:
            The model of the losses after the step, as that of a pass.
        """
        if first < self._since:
            return None
        self.blocks.refresh()
        passes = self._passes = Passes(self.blocks)
        try:
            plan, visited, last = self._planned(first), 0, first
            while isinstance(plan, Plan):
                last, (plan, visited) = plan.round, self._run_pass(passes, plan, visited)
            return self._step_locally(plan, partial(self._report_pass, passes, last)) if plan.sweeps else None
        except Exception as error:
            self._failed = error
            raise
        finally:
            self._passes = None

    def _run_pass(self, passes: Passes, plan: Plan, visited: int) -> tuple[Plan | End, int]:
        """Visit the remaining blocks of a pass, and the first of the next one until it is complete; report it.

        A local step that follows reports the pass itself.

        Returns:
            The next pass or the end, and the number of its blocks that have been visited.
        """
        if not visited:
            self._begin(plan)
        for at in range(visited, len(plan.order)):
            self._visit(passes, plan, at)
        following, visited = self._planned(plan.next), 0
        passes.begin()
        if isinstance(following, Plan):
            self._begin(following)
            while not passes.alone and visited < len(following.order):
                self._visit(passes, following, visited)
                visited += 1
        self.context.wait_all(passes.previous)
        passes.drop_finished()
        if isinstance(following, Plan):
            self._report_pass(passes, plan.round)
        elif not following.sweeps:
            # All passes: a search along their steps follows.
            self._report_pass(passes, plan.round, MEMORY)
        return following, visited

    def _report_pass(self, passes: Passes, round: int, memory: int = 1) -> None:
        """Report the previous pass: the model of the losses over the last passes, and the number of features pushed."""
        facts = self.count_filtered(passes.pushed.pop(passes.number - 1))
        self._reports[round] = Answer(self.report() | facts, self.blocks.model(self._do, memory))
        # The scheduler waits for the report.
        self.context.take_arrived()

    def _step_locally(self, end: End, report: Callable[[], None]) -> Answer:
        """Take a local step, see `local_steps`; `report` the pass before it while the workers' sums are under way.

        The servers add the derivatives, and then set the weights.
        """
        blocks = self.blocks
        blocks.refresh()
        cols, terms = np.flatnonzero(blocks.radius > 0.0), np.empty((len(blocks.state), 2))
        quadratic.loss_terms(blocks.state, terms)
        keys, own = self.w.key_list(blocks.keys[cols]), self._derivatives(cols, terms)
        totals = self._added(keys, own, end.round, report)
        w = blocks.w[cols]
        model = LocalModel(blocks.matrix, terms, w, self.settings.l1, cols, own, totals)
        for piece in model.pieces * end.sweeps:
            self._do(piece)
        self._swept = end.round
        # The scheduler waits for it.
        self.context.take_arrived()
        for piece in model.pieces * end.sweeps:
            if self._enough == end.round:
                break
            self._do(piece)
        found = self._added(keys, model.weights()[:, None], end.round + 1)[:, 0]
        margins = np.zeros(len(terms))
        for part in quadratic.pieces(blocks.colptr, cols):
            move = partial(quadratic.add_margins, *blocks.matrix, cols[part], (found - w)[part], margins)
            self._do(move)
        blocks.move(cols, found, margins)
        blocks.note_pass()
        return Answer(values=blocks.model(self._do))

    def _planned(self, round: int) -> Plan | End:
        """Wait for what is planned at a round: a pass, or the end."""
        node = self.context.node
        node.wait_until(
            lambda: round in self._plans or node.workers_since < node.view.workers_since, "the next pass"
        )
        if round not in self._plans:
            raise WorkerLost("the set of workers has changed since the present call began")
        return self._plans.pop(round)

    def _begin(self, plan: Plan) -> None:
        self._within = ranges(plan.keys, self.w.spec.extent)
        self.blocks.cut(plan.keys)
        self.blocks.keep_lists(self._within)

    def _visit(self, passes: Passes, plan: Plan, at: int) -> None:
        """Visit a block, as far ahead as the consistency model allows."""
        context, blocks = self.context, passes.blocks
        block, time = plan.order[at], plan.round + at
        within = self._within[block]
        context.wait_all(passes.blocking(self._pull(time), within))
        passes.drop_finished()
        if passes.flights:
            # A step that has arrived is one less that this block's gradient lacks.
            context.take_arrived()
            passes.drop_finished()
        context.step(time)
        with context.working():
            cols, rows = blocks.gradient(block, plan.theta)
        listed = self.named(cols, within)
        task = self.w.push_pull(listed, rows, within=within, round=time, exact=plan.exact)
        passes.add(time, task, within, cols)
        task.then(partial(self._take, passes, passes.number, cols))

    def _take(self, passes: Passes, number: int, cols: NDArray[np.int64], task: Task) -> None:
        # The passes may have been discarded since a worker was lost.
        if task.error is None and self._passes is passes:
            with self.context.working():
                passes.arrived(number, cols, task.result())
