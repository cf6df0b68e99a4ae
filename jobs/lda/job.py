"""Latent Dirichlet allocation (paper, section 5.2): topics of documents, as distributions over words.

A document's share of topics is drawn from Dirichlet(alpha), a topic's share of words from Dirichlet(beta), each token's
topic from the document's, and its word from the topic's. The topics z of all tokens are sampled, and all other
variables are integrated out. Workers share counts: n_wk, how often word w has topic k, and n_k, their sums.

    scheduler                      worker r                                          server
    for each sweep:                for each range of words:                          add the changes
        let all workers sweep          pull n_wk, ahead of time; n_k                 to n_wk and n_k
        check the counts               draw z of its tokens of these words
        learn alpha and beta           push what has changed
    (`training`)                   (`sweeps`, `sampler`)                             (`counts`)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips import Cluster, Job, finish, retry_on_loss
from mpips.jobs.lda import results
from mpips.jobs.lda.model import FILE
from mpips.jobs.lda.settings import Settings as Settings
from mpips.jobs.lda.training import Training

if TYPE_CHECKING:
    from mpips import Model

OUTPUTS = FILE, results.TABLE, results.PICTURE
"""The files that a run writes."""


def exact_sums(job: Job) -> str:
    """Return why the result depends on the number of workers, even with [layout] exact_sums."""
    return "lda draws topics by counts that lag behind by what the other workers draw meanwhile"


def load_model(source: Path, job: dict[str, Any]) -> Model:
    """Load the topics; see `mpips.Model`."""
    # Only those who apply a model need it.
    from mpips.jobs.lda.inference import load

    return load(source, job)


# --- The scheduler ---------------------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Read the documents, sweep, evaluate; return the run's metrics."""
    training = Training(cluster, settings)
    with cluster.phase("load"):
        if cluster.job.data.test:
            retry_on_loss(cluster, lambda: results.check_test_data(cluster))
        training.load()
    with cluster.phase("train"):
        metrics = training.run()
    last = results.Results(cluster, training)
    steps = last.model, last.perplexity, last.topics, last.summary
    return finish(cluster, metrics, *steps, recover=training.recover, save=lambda _: training.save())


# --- The worker ------------------------------------------------------------------------------------------------------


class Worker(results.Evaluator):
    """A worker; the scheduler calls its methods. See `sweeps`."""
