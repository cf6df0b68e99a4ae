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

from dataclasses import dataclass, field
from typing import Any, Literal

from mpips import Cluster, finish, surely
from mpips.jobs.lda import results
from mpips.jobs.lda.corpus import BLOCK_TOKENS
from mpips.jobs.lda.model import infer as infer
from mpips.jobs.lda.training import Training


@dataclass(frozen=True)
class Settings:
    """The job file's table [lda]."""

    topics: int = field(default=100, metadata={"at_least": 1, "at_most": 1 << 20})
    """K, the number of topics."""
    alpha: float = field(default=0.1, metadata={"at_least": 1e-30, "at_most": 1e6})
    """The Dirichlet prior of each topic of a document; its initial value if it is learned."""
    beta: float = field(default=0.01, metadata={"at_least": 1e-30, "at_most": 1e6})
    """The Dirichlet prior of each word of a topic; its initial value if it is learned."""
    learn_alpha: Literal["fixed", "symmetric", "asymmetric"] = "fixed"
    """Learn alpha after the first sweeps: one value for all topics, or one per topic."""
    learn_beta: bool = False
    """Learn beta after the first sweeps."""
    sweeps: int = field(default=200, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Number of sweeps: draws of a topic for each token."""
    sampler: Literal["gibbs", "mh"] = "gibbs"
    """gibbs: exact; the cost of a token grows with the number of topics in its document. mh: a constant cost."""
    mh_steps: int = field(default=2, metadata={"at_least": 1, "at_most": 1000})
    """mh: pairs of proposals per token and sweep."""
    block_tokens: int = field(default=BLOCK_TOKENS, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Tokens that a worker samples at a time; also the size of the blocks of documents on disk."""
    held_tokens: int = field(default=1 << 26, metadata={"at_least": 0, "at_most": 2**62})
    """Tokens up to which a worker keeps all in memory between sweeps (20 bytes each); beyond, one block at a time."""
    evaluate_every: int = field(default=1, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Number of sweeps between two evaluations of the likelihood."""


def exact_sums(job: Any) -> str:
    """Return why the result depends on the number of workers, even with [layout] exact_sums."""
    return "lda draws topics by counts that lag behind by what the other workers draw meanwhile"


# --- The scheduler ---------------------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Read the documents, sweep, evaluate; return the run's metrics."""
    training = Training(cluster, settings)
    with cluster.phase("load"):
        if cluster.job.data.test:
            surely(cluster, lambda: results.look(cluster))
        training.load()
    with cluster.phase("train"):
        metrics = training.run()
    last = results.Results(cluster, training)
    steps = last.model, last.perplexity, last.topics, last.summary
    return finish(cluster, metrics, *steps, mend=training.recover)


# --- The worker ------------------------------------------------------------------------------------------------------


class Worker(results.Judge):
    """A worker; the scheduler calls its methods. See `sweeps`."""
