"""Factorization machines: learn w and v so that sigmoid(sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j) predicts y.

    scheduler                         worker r                                      server
    until every part is read:         for each mini-batch, at most tau ahead:       w: FTRL, and count
        so many mini-batches each         pull (w, seen) of its features            v: AdaGrad; the first
        record each part's progress       pull v of those that are admitted         push makes the row
                                          g = gradient; push g and counts

With `fields` a feature i has factors for each field of the others, and the pairs are <v_{i, f(j)}, v_{j, f(i)}> x_i x_j
(`field_kernels`).

The linear weights are learned by FTRL-Proximal, the factors by AdaGrad (`training`). Under sequential consistency a
step is one mini-batch of every worker, and the result has the same bits on any number of servers. What happens when
workers and servers are lost is as for the online learners of sparse_lr, whose loop this is
(`mpips.jobs.sparse_lr.online`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips import Answer, Cluster, Context, Job, JobError, finish, push_pull, retry_on_loss
from mpips.data import EncodingTable, Source, resolve, unusual_files
from mpips.jobs.fm import model
from mpips.jobs.fm.settings import MOST_WITH_FIELDS
from mpips.jobs.fm.settings import Settings as Settings
from mpips.jobs.fm.training import Machine, MachineLearner, MachineScorer
from mpips.jobs.sparse_lr import evaluate
from mpips.jobs.sparse_lr.assignment import Assignment, WorkerData

if TYPE_CHECKING:
    from mpips import Model

OUTPUTS = model.MODEL, f"diverged.{model.MODEL}"
"""The files that a run writes."""
ADVICE = "Scale features to about 1, or lower [fm] alpha and factor_alpha"


def exact_sums(job: Job) -> str:
    """Return why this job's result depends on the number of workers even with exact sums."""
    return "fm learns one mini-batch of each worker at a time, so that their number shows"


def load_model(source: Path, job: dict[str, Any]) -> Model:
    """Load a machine; see `mpips.Model`."""
    return model.load(source, job)


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Read the data, train, evaluate; return the run's metrics."""
    assignment = Assignment(cluster)
    if empty := cluster.decide(lambda: unusual_files(cluster.job.data, str(cluster.job.base))):
        cluster.say(empty)
    with cluster.phase("load"):
        assignment.encode()
        if cluster.job.data.test:
            asked, workers = assignment.told({}), cluster.workers
            retry_on_loss(
                cluster, lambda: workers.call("check_test_data", asked, each=evaluate.parts_of(cluster))
            )
        data = assignment.load()
        fields = number_of_fields(cluster, settings, assignment) if settings.fields else 0
    with cluster.phase("train"):
        training = Machine(cluster, settings, assignment, data, fields)
        metrics = training.run()
    cluster.event("trained", traffic=cluster.traffic())
    return finish(
        cluster,
        metrics,
        lambda: model.export(cluster, assignment.encoding),
        training.objective,
        # Labels that nothing predicts are learned by heart, a little.
        lambda: evaluate.check_training(cluster, metrics["examples"], ADVICE, most=2.0),
        lambda: evaluate.test(cluster),
        lambda: cluster.say(evaluate.summary(cluster.metrics, 0.0)),
        save=training.save,
    )


def number_of_fields(cluster: Cluster, settings: Settings, assignment: Assignment) -> int:
    """Return the number of fields; JobError if rows of their factors would be too wide."""
    counted = retry_on_loss(cluster, lambda: cluster.workers.call("count_fields"), assignment.load)
    found: int = max(each["fields"] for each in counted)
    if found * settings.factors > MOST_WITH_FIELDS:
        most = max(MOST_WITH_FIELDS // found, 1)
        raise JobError(
            f"[fm] fields: {found} fields, for each of which a feature has {settings.factors} factors, are more than"
            f" {MOST_WITH_FIELDS} numbers per feature: set fm.factors to {most} or less, or use fewer columns"
        )
    return found


class Worker:
    """The worker: it reads the data, learns, and scores."""

    def __init__(self, context: Context) -> None:
        spec = resolve(context.job.data, str(context.base))
        self.source = source = Source(spec, fields=context.job.settings.fields)
        scorer = MachineScorer(context, source)
        learner = MachineLearner(context, source, push_pull(context.job.consistency))
        self.load = WorkerData(context, source, learner.find_last_key).load
        self.check_test_data, self.score = scorer.check_test_data, scorer.score
        self.training_loss = scorer.training_loss
        self.learn, self.report_progress, self.flush = learner.learn, learner.report_progress, learner.flush
        self.count_fields = learner.count_fields

    def summarise(self, part: int, of: int) -> Answer:
        """Return the encoding of tables as far as names of columns say, and the summary of one part of the numbers."""
        table, summary = self.source.summarise(part, of)
        return Answer({"encoding": table}, summary)

    def check_files(self, encoding: EncodingTable | None = None) -> Answer:
        """Check that the data files are those of the start; return their names and sizes, i8[1 + files, 1]."""
        self.source.take(encoding)
        return Answer(values=self.source.files.check_all()[:, None])
