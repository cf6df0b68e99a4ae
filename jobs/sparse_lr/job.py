"""Sparse logistic regression (paper, section 5.1): minimise sum_i log(1 + exp(-y_i x_i.w)) + l1 |w|_1.

`darlin` is the delayed block proximal gradient method of the paper's Algorithm 3; `ftrl`, `adagrad` and `sgd` learn
online, from mini-batches in the order of the data (`online`).

    scheduler                         worker r                                server
    for each pass:                    for each block, at most tau ahead:      sum g, u over the workers;
        cut keys into blocks              g, u = gradient, curvature bound    take the proximal step;
        issue them to all workers         push g, u; pull the step            drop what stays at 0
        search along the steps            move the margins by the step        (`proximal`)
        decide what is next (`control`)   (`blocks`)

When a worker is lost, joins or leaves, examples are redistributed, and the pass starts again (`assignment`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    Answer,
    Bounded,
    Cluster,
    Context,
    Job,
    Task,
    at_once,
    finish,
    push_pull,
    retry_on_loss,
    unmet,
)
from mpips.data import EncodingTable, Source, resolve, unusual_files
from mpips.jobs.sparse_lr import darlin, evaluate, exact_darlin, newton, online, overlapped_darlin
from mpips.jobs.sparse_lr.assignment import Assignment, WorkerData
from mpips.jobs.sparse_lr.block_worker import ranges
from mpips.jobs.sparse_lr.evaluate import Scorer
from mpips.jobs.sparse_lr.online import Learner
from mpips.jobs.sparse_lr.overlap import OverlapWorker
from mpips.jobs.sparse_lr.settings import Settings as Settings

if TYPE_CHECKING:
    from mpips import Model

OUTPUTS = evaluate.MODEL, evaluate.TEXT, f"diverged.{evaluate.MODEL}", f"diverged.{evaluate.TEXT}"
"""The files that a run writes."""


def exact_sums(job: Job) -> str:
    """Return why this job's result depends on the number of workers even with exact sums; "" if it does not."""
    if job.settings.algorithm == "darlin" and job.settings.gap > 0.0:
        return "the restricted gap has inexact sums; leave sparse_lr.gap out"
    if job.settings.algorithm == "darlin":
        return ""
    return (
        f"{job.settings.algorithm} learns one mini-batch of each worker at a time, so that their number shows; "
        'use sparse_lr.algorithm = "darlin"'
    )


def load_model(source: Path, job: dict[str, Any]) -> Model:
    """Load the weights; see `mpips.Model`."""
    # Only those who apply a model need it.
    from mpips.jobs.sparse_lr.model import load

    return load(source, job)


# --- The scheduler ---------------------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Load the data, train, evaluate; return the run's metrics."""
    exact = cluster.job.layout.exact_sums
    cluster.facts |= {"algorithm": settings.algorithm, "l1": settings.l1, "exact_sums": exact}
    assignment = Assignment(cluster)
    if empty := cluster.decide(lambda: unusual_files(cluster.job.data, str(cluster.job.base))):
        cluster.say(empty)
    with cluster.phase("load"):
        assignment.encode()
        if cluster.job.data.test:
            asked = assignment.told({})
            retry_on_loss(
                cluster,
                lambda: cluster.workers.call("check_test_data", asked, each=evaluate.parts_of(cluster)),
            )
        data = assignment.load()
    delayed = cluster.job.consistency.model == "bounded" and cluster.job.consistency.tau > 0
    block_wise: type[darlin.Darlin] = overlapped_darlin.OverlappedDarlin if delayed else darlin.Darlin
    if exact:
        block_wise = exact_darlin.ExactDarlin
    # Products of whole columns have inexact sums.
    steps = newton.DELAYED if delayed else newton.Newton()
    rule = steps if settings.newton and not exact else newton.NEVER
    method = partial(block_wise, newton=rule) if settings.algorithm == "darlin" else online.Online
    with cluster.phase("train"):
        training = method(cluster, settings, assignment, data)
        metrics = training.run()
    cluster.event("trained", traffic=cluster.traffic())
    return finish(
        cluster,
        metrics,
        lambda: evaluate.export_model(cluster, assignment.encoding),
        training.objective,
        lambda: evaluate.check_training(cluster, metrics.get("examples", data.examples)),
        lambda: evaluate.test(cluster),
        lambda: cluster.say(evaluate.summary(cluster.metrics, settings.optimum)),
        save=training.save,
    )


# --- The worker ------------------------------------------------------------------------------------------------------


class Worker(OverlapWorker):
    """The worker of this program: it keeps blocks, and has examples, a scorer and an online learner."""

    def __init__(self, context: Context) -> None:
        self.source = Source(resolve(context.job.data, str(context.base)))
        self.consistency = push_pull(context.job.consistency)
        scorer = Scorer(context, self.source)
        learner = Learner(context, self.source, self.consistency)
        algorithm = context.job.settings.algorithm
        learner.counted = algorithm == "sgd"
        online_only = None if algorithm == "darlin" else learner.find_last_key
        held = WorkerData(context, self.source, online_only)
        super().__init__(context, held, self.consistency.pull)
        self.load = self.held.load
        self.check_test_data, self.score = scorer.check_test_data, scorer.score
        self.training_loss = scorer.training_loss
        self.learn, self.report_progress, self.flush = learner.learn, learner.report_progress, learner.flush

    def summarise(self, part: int, of: int) -> Answer:
        """Return the encoding of tables as far as names of columns say, and the summary of one part of the numbers."""
        table, summary = self.source.summarise(part, of)
        return Answer({"encoding": table}, summary)

    def check_files(self, encoding: EncodingTable | None = None) -> Answer:
        """Check that the data files are those of the start; return their names and sizes, i8[1 + files, 1]."""
        self.source.take(encoding)
        return Answer(values=self.source.files.check_all()[:, None])

    @at_once
    def set_tau(self, tau: int) -> None:
        """Set the maximum delay: the number of unfinished tasks that a new task may overtake."""
        for model in self.consistency:
            if isinstance(model, Bounded):
                model.tau = tau

    def iterate(
        self, keys: NDArray[np.uint64], order: list[int], theta: float, exact: bool, round: int
    ) -> Answer:
        """Visit the blocks that begin at `keys`, in `order`, as far ahead as the consistency model allows."""
        w, blocks, context = self.w, self.blocks, self.context
        within = ranges(keys, w.spec.extent)
        blocks.begin_pass(keys)
        blocks.keep_lists(within)
        in_flight: dict[int, Task] = {}
        for time, block in enumerate(order):
            context.wait_all(in_flight[earlier] for earlier in unmet(self.consistency.pull(time), in_flight))
            if any(not task.done for task in in_flight.values()):
                # A step that has arrived is one less that this block's gradient lacks.
                context.take_arrived()
            in_flight = {earlier: task for earlier, task in in_flight.items() if not task.done}
            context.step(round + time)
            with context.working():
                cols, rows = blocks.gradient(block, theta)
            listed = self.named(cols, within[block])
            task = w.push_pull(listed, rows, within=within[block], round=round + time, exact=exact)
            in_flight[time] = task.then(partial(self._arrived, cols))
        context.wait_all(in_flight.values())
        facts = self.count_filtered(len(blocks.cols))
        with context.working():
            more, model = blocks.end_pass()
            return Answer(facts | more, model)

    def _arrived(self, cols: NDArray[np.int64], task: Task) -> None:
        if task.error is None and len(cols):
            with self.context.working():
                self.blocks.apply(cols, task.result())

    def losses(self, values: NDArray[np.float64]) -> Answer:
        """Return the losses of every mixture of the last passes."""
        return Answer(values=self.blocks.losses(values))

    def mix(self, mixture: list[float] | None, forget: bool, round: int) -> dict[str, Any]:
        """Apply a mixture of the last passes; features whose weight becomes non-zero are active again."""
        self.blocks.mix(None if mixture is None else np.array(mixture), forget)
        if mixture is not None:
            cols = self.blocks.dropped()
            self.blocks.set_radius(cols, self.asked(cols, round).result())
        return self.report()

    def dual(self, shrink: float) -> dict[str, Any]:
        """Return this worker's part of the dual objective, and its losses."""
        return self.blocks.dual(shrink)
