"""The settings of lda."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mpips.jobs.lda.corpus import BLOCK_TOKENS


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
