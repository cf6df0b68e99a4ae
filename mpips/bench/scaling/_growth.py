"""Growth of a cost with the number of ranks: a power law fitted to measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FLAT, LINEAR = 0.2, 0.8
"""Exponents below the first count as constant, those from the second on as linear, up to `STEEP`."""
STEEP = 1.3


@dataclass(frozen=True)
class Growth:
    """The power law a * N ** b."""

    a: float
    b: float

    def at(self, ranks: float) -> float:
        """Return the cost by the law for a number of ranks."""
        return float(self.a * ranks**self.b)

    @property
    def kind(self) -> str:
        """Describe the growth briefly."""
        if self.b < FLAT:
            return "constant" if self.b > -FLAT else "falls"
        if self.b < LINEAR:
            return "less than N"
        return "as N" if self.b < STEEP else "more than N"


def fitted(points: Sequence[tuple[float, float]]) -> Growth | None:
    """Fit the law to (ranks, cost) by least squares in logarithms; None without two sizes with a cost above 0."""
    logs = [(math.log(ranks), math.log(cost)) for ranks, cost in points if cost > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    b = sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)
    return Growth(math.exp(mean_y - b * mean_x), b)
