"""The scheduler's side of the delayed block proximal method (Algorithm 3): passes, and the decisions between them.

For the KKT filter see `proximal` and `kkt_filter`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ANY,
    COUNT,
    NUMBER,
    Cluster,
    Each,
    InputError,
    Setting,
    Task,
    Vector,
    VectorSpec,
    regroup,
    retry_on_loss,
    schema_error,
)
from mpips.jobs.sparse_lr import assignment, control, evaluate, kernels, quadratic, restricted_gap
from mpips.jobs.sparse_lr.assignment import Assignment
from mpips.jobs.sparse_lr.newton import Newton
from mpips.jobs.sparse_lr.proximal import exact_total
from mpips.jobs.sparse_lr.settings import Settings

T = TypeVar("T")
MOST_PASSES = 1000
GENERATOR = "PCG64"
"""The bit generator of numpy that draws the order of blocks; a checkpoint has its state."""
PIECE = 1 << 17
"""Approximate number of features in one message of a start or reset."""


_NUMBERS = ("theta", "threshold", "reset_below", "noise")
_COUNTS = (
    "since_reset", "settled", "resets", "since", "exact", "patience", "full_at", "unsearched", "patient", "gap_at",
    "newton_at", "newton_wait", "sweeps",
)  # fmt: skip
SCHEMA = {
    "control": {
        "objectives": Each(NUMBER),
        **{f"{name}?": NUMBER for name in _NUMBERS},
        **{f"{name}?": COUNT for name in _COUNTS},
    },
    "random": {
        "bit_generator": str,
        "state": {"state": range(1 << 128), "inc": range(1 << 128)},
        "has_uint32": range(2),
        "uinteger": range(1 << 32),
    },
    "round": COUNT,
    "gap": NUMBER,
    "blocks": {"begins": Each(range(1 << 64)), "cut_at": range(-1, 1 << 63)},
    "spread?": ANY,
    "encoding?": ANY,
    "finished?": {
        "metrics": {"objective": NUMBER, "nonzeros": COUNT, "passes": COUNT, "ended_by": str},
        "settings": Each(NUMBER),
    },
}
"""The state that a checkpoint holds."""


def unfit(about: dict[str, Any]) -> str:
    """Return why a run cannot continue from a checkpoint's state; "" if it can."""
    state, where = about["state"], "about.state"
    if problem := schema_error(state, SCHEMA, where):
        return problem
    if not state["control"]["objectives"]:
        return f"{where}.control.objectives is empty"
    if state["random"]["bit_generator"] != GENERATOR:
        return f"{where}.random.bit_generator is not {GENERATOR}"
    begins = state["blocks"]["begins"]
    if begins[:1] != [0] or any(end <= begin for begin, end in pairwise(begins)):
        return f"{where}.blocks.begins does not rise from 0"
    return assignment.unfit(about)


class Darlin:
    """A training run: its state is `control`, the random state, and the number of the next round.

    When a worker is lost during a step, the present workers repeat the step: `recover` gives them its examples, and
    they recompute their margins from the servers' weights.
    """

    more: Mapping[str, Setting] = {}
    """Further settings of the vector."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        assignment: Assignment,
        data: evaluate.Data,
        newton: Newton,
    ) -> None:
        self.cluster, self.settings, self.assignment, self.newton = cluster, settings, assignment, newton
        self.servers, self.workers = cluster.servers, cluster.workers
        self.data, self.examples = data, data.examples
        self.most_passes = settings.passes or MOST_PASSES
        count = max(1, self.data.features // PIECE)
        self.pieces = np.array([self.data.extent * each // count for each in range(count)], np.uint64)
        self.tau = evaluate.delay(cluster.job.consistency)
        self.rng = np.random.default_rng(cluster.job.seed)
        self.control = control.start(self.examples * math.log(2.0))
        self.round, self.gap = 0, math.inf
        # Of the last pass after which it was measured.
        self.restricted_gap = math.inf
        # The passes since the last state of which F is known not to have risen.
        self.good = 1
        self.now: dict[str, Any] = {}
        # Seconds of work of each worker so far.
        self.worked: dict[int, float] = {}
        # Non-zeros of the active features.
        self.weight = 0
        # The first key of each block.
        self.begins = np.zeros(1, np.uint64)
        # The weight when the blocks were cut.
        self.cut_at = -1
        # Of a run that has ended, and was stopped before it was evaluated: see `save`.
        self.finished: dict[str, Any] | None = None
        retry_on_loss(cluster, self.begin, self.assignment.load)

    @property
    def w(self) -> Vector:
        """The weights."""
        return self.cluster.vectors["w"]

    def run(self) -> dict[str, Any]:
        """Run passes over the blocks until the objective has settled; return the metrics."""
        if self.finished is not None and self.finished["settings"] == self._ends():
            return dict(self.finished["metrics"])
        table, stop = self.cluster.table(evaluate.columns(self.settings.gap > 0.0)), False
        while not stop:
            if (later := self.cluster.compact(self._restart_state)) is not None:
                self._take_state(later)
                self.weight = later["weight"]
                self.assignment.take(later["spread"]["reads"])
            stop = self._retry(self.one_pass)
            evaluate.show_pass(self.cluster, table, self.control, self.now, self.examples)
            self.assignment.pace.note(self.worked)
            if not stop and self.cluster.due(self.passes) and self.at_rest():
                self._retry(lambda: self.cluster.checkpoint(self.passes, self._state()), changes=False)
                stop = self.cluster.stopping()
            if not stop and self.cluster.renewed() and self.at_rest():
                regroup(self.cluster)
                self._retry(self.recover, changes=False)
            if not stop and (parts := self.assignment.slower()) and self.at_rest():
                self.assignment.move(parts)
                self._retry(self.recover, changes=False)
        table.close()
        why = self.ended_by()
        if why in ("gap", "settled"):
            self._retry(self.measure_gap, changes=False)
        # A weight that converges slowly changes F as little as one that has converged.
        slow = self.data.outlying > evaluate.OUTLYING or evaluate.UNPROVEN < self.restricted_gap < math.inf
        unproven = why == "settled" and self.gap > evaluate.UNPROVEN and slow
        return {
            "objective": self.control.objectives[-1],
            "nonzeros": self.now["nonzeros"],
            "passes": self.passes,
            "gap": self.gap if math.isfinite(self.gap) else None,
            "restricted_gap": self.restricted_gap if math.isfinite(self.restricted_gap) else None,
            "ended_by": why,
            "converged": why in ("gap", "restricted_gap", "settled", "target") and not unproven,
            **({"unproven": True} if unproven else {}),
        }

    def save(self, metrics: dict[str, Any]) -> None:
        """Begin a checkpoint of a run that has ended, with its metrics: another pass would change the weights."""
        self.finished = {"metrics": metrics, "settings": self._ends()}
        self.cluster.checkpoint(self.passes, self._state())

    def _ends(self) -> list[float]:
        """Return the settings that end a run; with others, it continues."""
        ends = [self.most_passes, self.settings.epsilon, self.settings.target]
        return [*ends, self.settings.gap] if self.settings.gap > 0.0 else ends

    def ended_by(self) -> str:
        """Return why the run has stopped."""
        if self.cluster.stopped_early:
            return "request"
        if self.control.objectives[-1] <= self.settings.target:
            return "target"
        if self.passes >= self.most_passes:
            return "passes"
        if self.gap <= self.settings.epsilon:
            return "gap"
        return "restricted_gap" if self.restricted_gap <= self.settings.gap else "settled"

    def objective(self) -> dict[str, Any]:
        """Return nothing: the objective is known."""
        return {}

    def begin(self) -> None:
        """Create the weights, and determine which features start active; or restore a checkpoint."""
        self._inform()
        if self._resume():
            return
        extent, kkt = self.data.extent, self.settings.kkt
        wide: dict[str, Setting] = {"wide": True} if self.data.wide else {}
        settings = {"l1": self.settings.l1, "kkt": kkt, **self.more, **wide}
        bits = self.cluster.job.data.key_bits
        spec = VectorSpec(
            "w", extent=extent, update="block_proximal", settings=settings, aggregate=True, key_bits=bits
        )
        self.cluster.create_vector(spec, expect=self.data.features)
        pieces = self.pieces if kkt else self._first_blocks()
        self._phase("start")
        first = {"round": self._rounds(len(pieces)), "ones": self.data.ones}
        self._record_reports(self.workers.start("start", first, keys=pieces))
        if self.data.wide:
            self._refuse_tiny_features()
            if self.settings.gap > 0.0:
                self.cluster.say(
                    "[sparse_lr] gap: not measured, as the data needs float64 rows; epsilon ends the run"
                )
        self.servers.call("begin_period", vector=self.w)
        self._phase("step")

    def _inform(self) -> None:
        """Send the workers the totals of all examples, if they need them: with exact sums."""

    def _refuse_tiny_features(self) -> None:
        found = [each for each in self.servers.call("tiny_features", vector=self.w) if each["count"]]
        if found:
            first, count = min(each["first"] for each in found), sum(each["count"] for each in found)
            others = f" (and of {count - 1:,} others)" if count > 1 else ""
            raise InputError(
                f"the values of feature {first}{others} are below {1.0 / kernels.LARGEST_SCALE:g}, so that its weight "
                f"may be beyond 32-bit floating point with [sparse_lr] l1 = {self.settings.l1:g}: scale it, or raise l1"
            )

    def one_pass(self) -> bool:
        """Visit all blocks, search along the steps, reset the active set if due; return whether to stop."""
        report = self.search(self.visit_blocks())
        decision = self.decide(report)
        self.mix(report.choice)
        if decision.reset:
            decision = self.reset(decision.full)
        return decision.stop or self.newton_step()

    @property
    def takes_steps(self) -> bool:
        """Whether Newton steps are possible: float32 can hold their sums."""
        return not self.w.spec.settings.get("wide")

    def newton_step(self) -> bool:
        """Take a Newton step if one is due; return whether F is low enough to stop."""
        if not (self.takes_steps and self.newton.due(self.control)):
            return False
        self._phase("sum")
        self.workers.call("begin_model", {"round": self._rounds(1)})
        calls = quadratic.calls_of(self.workers, self._rounds)
        found = quadratic.minimise(calls, self.newton.effort)
        self._phase("set")
        last = {"length": found.length, "round": self._rounds(1)}
        report = self.search(self._model(self.workers.start("set_to_minimum", last)))
        self.control = self.newton.taken(self.control, report.choice)
        self.mix(report.choice)
        return self.control.objectives[-1] <= self.settings.target

    def decide(self, report: control.PassReport) -> control.Decision:
        """Let the control decide after a pass."""
        self.control, decision = control.next_pass(
            self.control,
            report,
            self.settings.epsilon,
            self.most_passes,
            kkt=self.settings.kkt,
            target=self.settings.target,
            share=max(self.newton.share, 3 if self.tau > 0 else 2),
            gap=self.settings.gap,
            least=self.newton.settled,
            reset=self.newton.reset,
        )
        self.restricted_gap = math.inf
        return decision

    def at_rest(self) -> bool:
        """Return whether no blocks are in flight."""
        return True

    def recover(self) -> None:
        """Continue with other workers: those with new parts read them, and all margins are recomputed."""
        self.assignment.load()
        self._inform()
        self._phase("step", self.control.threshold)
        self._record_reports(self.workers.start("renew", {"round": self._rounds(1)}))
        self.control = control.resumed(self.control, self._begin_period(1.0)[0])

    def _retry(self, step: Callable[[], T], changes: bool = True) -> T:
        """Run a step on the workers, and repeat it if one is lost; an interrupted pass does not count.

        `changes`: the step changes the servers' state.
        """
        before = self.control

        def recover() -> None:
            self.control = before
            self.recover()

        return retry_on_loss(self.cluster, step, recover)

    @property
    def passes(self) -> int:
        """The number of passes so far."""
        return len(self.control.objectives) - 1

    def visit_blocks(self) -> NDArray[np.float64]:
        """Issue every block once, in random order, with this pass's theta; return the workers' model of the losses."""
        if abs(self.weight - self.cut_at) > control.CUT_AGAIN * self.cut_at:
            self._cut_blocks()
        blocks = len(self.begins)
        order = self.rng.permutation(blocks).tolist()
        plan = {"order": order, "theta": self.control.theta, "exact": self.control.exact > 0}
        plan["round"] = self._rounds(blocks)
        task = self.workers.start("iterate", plan, keys=self.begins)
        model = self._model(task)
        self.count_filtered(task, blocks)
        return model

    def count_filtered(self, task: Task, blocks: int) -> None:
        """Record the number of blocks of a pass, and the share of features that it has left out."""
        pushed, features = (
            sum(reply.meta[each] for reply in task.result()) for each in ("pushed", "features")
        )
        self.now = {"blocks": blocks, "filtered": 1.0 - pushed / max(features, 1)}

    def _model(self, iterated: Task) -> NDArray[np.float64]:
        """Return the workers' model of the losses after a pass."""
        return self.workers.total(iterated)

    def _cut_blocks(self) -> None:
        """Cut the active features into blocks anew."""
        sketches = self._sketches()
        self.cut_at = sum(int(weights.sum()) for _, weights in sketches)
        count = self.settings.blocks or control.block_count(
            self.cut_at, self.examples, self.tau, len(self.workers)
        )
        self.begins = control.cut_blocks(sketches, count)

    def _sketches(self) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
        """Return the distribution of the active non-zeros over the keys: (first key, weight) of runs of keys."""
        return [(keys, weights[:, 0]) for keys, weights in self.workers.gather("sketch")]

    def _first_blocks(self) -> NDArray[np.uint64]:
        """Return the pieces of a start with all features active: blocks, so that the passes reuse their key lists."""
        self._cut_blocks()
        return self.begins

    def search(self, model: NDArray[np.float64]) -> control.PassReport:
        """Search along the steps of the last passes, with a few scalars from each rank."""
        l1, before = self.settings.l1, self.control.objectives[-1]
        seen = self.servers.call("sizes", vector=self.w)
        proposal = control.propose(model, exact_total(seen), l1, before, self.control.noise, self.good)
        objectives = []
        if len(proposal.mixtures):
            losses = self.workers.start("losses", values=proposal.mixtures)
            mixtures = {"mixtures": proposal.mixtures.tolist()}
            sizes = exact_total(self.servers.call("mixed_sizes", mixtures, vector=self.w))
            objectives = (self._losses(losses) + l1 * sizes).tolist()
        choice = control.choose(proposal, before, objectives)
        violation = max(float(each["violation"]) for each in seen)
        return control.PassReport(proposal, choice, violation, self.examples)

    def _losses(self, task: Task) -> NDArray[np.float64]:
        """Return the losses of every mixture."""
        losses: NDArray[np.float64] = self.workers.total(task)[:, 0]
        return losses

    def mix(self, choice: control.Choice) -> None:
        """Set weights and margins as chosen, before the next pass."""
        mixture = None if choice.mixture is None else choice.mixture.tolist()
        mixed = {"mixture": mixture, "forget": choice.outcome == "undone"}
        task = self.servers.start("mix", mixed, vector=self.w)
        self._phase("step", self.control.threshold, after=[task])
        found = [reply.meta for reply in task.result()]
        self.now |= {name: sum(each[name] for each in found) for name in ("nonzeros", "active")}
        self._record_reports(self.workers.start("mix", {**mixed, "round": self._rounds(1)}))

    def reset(self, full: bool) -> control.Decision:
        """Choose the active set anew from the exact gradient, and compute a lower bound of the minimum of F."""
        l1 = self.settings.l1
        self._phase("reset", control.RESET_SHARE * l1, control.FAR_SHARE * l1)
        asked = {"round": self._rounds(len(self.pieces)), "full": full}
        self._record_reports(self.workers.start("reset", asked, keys=self.pieces))
        found = self.servers.call("end_phase", vector=self.w)
        largest = max(each["largest"] for each in found)
        objective, dual = self._begin_period(min(1.0, l1 / largest) if largest > 0.0 else 1.0)
        if full:
            # Only then is `largest` that of all features.
            self.gap = 1.0 - dual / objective
        returned = sum(each["returned"] for each in found)
        self._phase("step", self.control.threshold)
        self.control = control.corrected(self.control, objective)
        gap, wanted = self.gap if full else math.inf, self.settings.gap
        if full and wanted > 0.0:
            self.measure_gap()
            self.control = control.measured(self.control, self.restricted_gap, wanted)
        enough = self.restricted_gap <= wanted
        return control.after_reset(self.control, returned, gap, self.settings.epsilon, enough=enough)

    def measure_gap(self) -> None:
        """Compute the restricted gap of the present weights; infinite if float32 cannot hold its sums."""
        if self.data.wide:
            return
        self._phase("sum")
        self.workers.call("begin_model", {"round": self._rounds(1)})
        decrease = restricted_gap.decrease(quadratic.calls_of(self.workers, self._rounds))
        self._phase("step", self.control.threshold)
        # Where columns are nearly equal, the model may fall below 0; F cannot.
        self.restricted_gap = min(decrease / max(self.control.objectives[-1], 1e-300), 1.0)
        self.now["restricted_gap"] = self.restricted_gap

    def _begin_period(self, shrink: float) -> tuple[float, float]:
        """Let the servers save the weights of the active features; return F, and the dual objective."""
        size = exact_total(self.servers.call("begin_period", vector=self.w))[0]
        loss, dual = self._loss_and_dual(self.workers.call("dual", {"shrink": shrink}))
        return loss + self.settings.l1 * float(size), dual

    def _loss_and_dual(self, parts: list[dict[str, Any]]) -> tuple[float, float]:
        """Add the workers' parts, in worker order: Python's own sum compensates for rounding since 3.12."""
        loss, dual = np.array([[each["loss"], each["dual"]] for each in parts]).sum(axis=0)
        return float(loss), float(dual)

    def _phase(
        self, phase: str, threshold: float = 0.0, far: float = 0.0, after: Sequence[Task] = ()
    ) -> None:
        """Set the phase of the next pushes on the servers."""
        args = {"phase": phase, "threshold": threshold, "far": far}
        self.servers.call("begin_phase", args, vector=self.w, after=after)

    def _record_reports(self, task: Task) -> None:
        """Record the workers' reports: the non-zeros of their active features, and their accounts."""
        accounts = [reply.meta for reply in task.result()]
        self.weight = sum(each["weight"] for each in accounts)
        self.worked = dict(zip(self.workers.addresses, (each["worked"] for each in accounts), strict=True))
        self.now |= self.cluster.recent_usage(accounts)

    def _rounds(self, count: int) -> int:
        first, self.round = self.round, self.round + count
        return first

    def _state(self) -> dict[str, Any]:
        return {
            "control": self.control._asdict(),
            "random": self.rng.bit_generator.state,
            "round": self.round,
            "gap": self.gap,
            "blocks": {"begins": self.begins.tolist(), "cut_at": self.cut_at},
            "spread": self.assignment.state(),
            **self.assignment.told({}),
            **({} if self.finished is None else {"finished": self.finished}),
        }

    def _restart_state(self) -> dict[str, Any]:
        """Return the state from which a successor of the scheduler continues."""
        return {**self._state(), "weight": self.weight}

    def _resume(self) -> bool:
        # Discard the counts of an attempt in which a worker was lost.
        self.cluster.vectors.clear()
        state = self.cluster.restore(lambda about: unfit(about) or evaluate.other_keys(about))
        if state is None:
            return False
        self._take_state(state)
        self._continue(state["same_workers"])
        return True

    def _take_state(self, state: dict[str, Any]) -> None:
        kept = {name: state["control"][name] for name in control.Control._fields if name in state["control"]}
        self.control = control.Control(**{**kept, "objectives": tuple(kept["objectives"])})
        self.rng.bit_generator.state = state["random"]
        self.finished = state.get("finished")
        self.round, self.gap = state["round"], state["gap"]
        self.begins, self.cut_at = np.array(state["blocks"]["begins"], np.uint64), state["blocks"]["cut_at"]

    def _continue(self, same: bool) -> None:
        """Continue from a restored checkpoint, with the `same` number of workers or another."""
        if not same:
            # The workers have recomputed their margins, so a new period begins.
            self.servers.call("begin_period", vector=self.w)
        self._phase("step", self.control.threshold)
        self._record_reports(self.workers.start("report"))
