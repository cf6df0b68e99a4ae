"""Time of recovery after a disturbance, by the rounds answered in windows of time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WINDOW = 0.25
"""Length of a window in which rounds are counted, s."""
SHARE = 0.9
"""The share of the earlier rate at which a run has recovered."""


def rates(done: Sequence[float], begin: float, end: float) -> list[float]:
    """Return rounds per second in each complete window from `begin` to `end`; `done` has the times of answers (s)."""
    windows = max(0, math.floor((end - begin) / WINDOW + 1e-9))
    edges = begin + WINDOW * np.arange(windows + 1)
    return (np.histogram(np.asarray(done, np.float64), edges)[0] / WINDOW).tolist() if windows else []


def recovered(done: Sequence[float], pulse: tuple[float, float]) -> float:
    """Return the seconds from a pulse's end to the first window at the earlier rate (median); inf if there is none."""
    before = rates(done, min(done, default=0.0), pulse[0])
    if not before:
        return math.inf
    target = SHARE * float(np.median(before))
    after = rates(done, pulse[1], max(done, default=0.0))
    return next((WINDOW * number for number, rate in enumerate(after) if rate >= target), math.inf)
