"""Oversubscription of cores, and the factor by which it extends the heartbeat timeout.

A rank that shares its core with many others is scheduled rarely: its heartbeat may be late, and a call into C that
takes 0.1 s alone takes 100 times as long among 100 others. Such a rank is healthy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

LOAD_LIMIT = 4.0
"""Ranks, or runnable processes, per core up to which the timeout stays at the job file's value."""


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def factor(ranks: int, cores: int, load: float = 0.0) -> float:
    """Return the factor by which the timeout grows on a host: 1 unless its cores are oversubscribed.

    Args:
        ranks: ranks of this run on the host.
        cores: cores that they may use.
        load: load average of the host, processes of all users.
    """
    return max(1.0, max(float(ranks), load) / (LOAD_LIMIT * max(cores, 1)))


def oversubscription(ranks: int) -> Callable[[], float]:
    """Return a function that computes `factor` on this host now; `ranks` is the most that any host of the run has."""
    here = cores()

    def now() -> float:
        load = 0.0
        with suppress(OSError):
            load = os.getloadavg()[0]
        return factor(ranks, here, load)

    return now


def warning(ranks: int, nodes: int, cores: int, patience: float) -> str:
    """Return a one-line warning that a layout oversubscribes its cores; "" if it does not."""
    each = -(-ranks // max(nodes, 1))
    grown = factor(each, cores)
    if grown <= 1.0:
        return ""
    return (
        f"{each} ranks share {cores} core{'s' if cores > 1 else ''}: each gets little CPU time, so a hung rank is "
        f"detected after {patience * grown:.3g} s instead of {patience:.3g} ([heartbeat] patience)"
    )
