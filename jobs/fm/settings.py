"""The settings of fm."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 4096
"""The largest number of factors of a feature."""
MOST_WITH_FIELDS = 256
"""The same, of all fields."""


@dataclass(frozen=True)
class Settings:
    """The job file's table [fm]."""

    factors: int = field(default=16, metadata={"at_least": 1, "at_most": MOST})
    """Factors of each feature, k."""
    fields: bool = False
    """Whether a feature has k factors for each field of the others (field-aware). Fields are columns and crosses, or
    those of lines of libffm; fields * factors is at most 256."""
    normalise: bool = True
    """With fields: divide each example by its length, as libffm does."""
    passes: int = field(default=1, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Passes over the data."""
    batch: int = field(default=1000, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Examples per mini-batch."""
    alpha: float = field(default=0.1, metadata={"above": 0.0, "at_most": 1e6})
    """The learning rate of the linear weights (FTRL)."""
    beta: float = field(default=1.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """Limits the size of their first steps."""
    l1: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """The weight of |w|_1 of the linear weights."""
    l2: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """The weight of |w|^2 / 2 of the linear weights."""
    factor_alpha: float = field(default=0.05, metadata={"above": 0.0, "at_most": 1e6})
    """The learning rate of the factors (AdaGrad)."""
    factor_beta: float = field(default=1.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """Limits the size of their first steps."""
    factor_l2: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 1e30})
    """The weight of |v|^2 / 2 of the factors."""
    init: float = field(default=0.01, metadata={"above": 0.0, "at_most": 1e3})
    """The standard deviation of the factors when they begin, of job.seed."""
    admit: int = field(default=0, metadata={"at_least": 0, "at_most": 2**24})
    """A feature has factors once so many entries had it, of the first pass or, with max_rows, of all; 0: at once."""
    max_rows: int = field(default=0, metadata={"at_least": 0, "at_most": 2**40})
    """Largest number of features: those that were used rarely and long ago are dropped; 0: no limit."""
