"""The settings of sparse_lr."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """The job file's table [sparse_lr]."""

    algorithm: Literal["darlin", "ftrl", "adagrad", "sgd"] = "darlin"
    """darlin: the paper's block proximal method, which runs to the optimum; the others learn online."""
    l1: float = field(default=1.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """The weight of |w|_1 in the objective."""
    epsilon: float = field(default=2e-4, metadata={"above": 0.0, "at_most": 1.0})
    """darlin: the run has settled, and stops, when the objective decreases by no more than this fraction of itself."""
    gap: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1.0})
    """darlin: stop as soon as the objective can fall by no more than this fraction of itself, by its quadratic model
    over the active features (the restricted gap); 0: do not."""
    kkt: bool = True
    """darlin: leave out features whose weight is 0 and, by their gradient, will stay 0 (the KKT filter)."""
    newton: bool = True
    """darlin: follow passes by Newton steps over the active features, where they pay."""
    target: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e300})
    """darlin: stop as soon as the objective is no higher; 0: continue until it has settled."""
    passes: int = field(default=0, metadata={"at_least": 0, "at_most": 2**31 - 1})
    """Largest number of passes over the data; 0: 1,000 for darlin, 1 online."""
    optimum: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e300})
    """The objective's known minimum for this data, printed with the result for comparison; 0: not known."""
    blocks: int = field(default=0, metadata={"at_least": 0, "at_most": 1 << 20})
    """darlin: blocks per pass; 0: determined from the active features."""
    batch: int = field(default=10_000, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """online: examples per mini-batch."""
    alpha: float = field(default=0.1, metadata={"above": 0.0, "at_most": 1e6})
    """online: the learning rate; for sgd the step itself."""
    beta: float = field(default=1.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """ftrl, adagrad: limits the size of the first steps."""
    l2: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """online: the weight of |w|^2 / 2."""
