"""How many want each core of a machine, and how much longer a rank may therefore be silent.

A rank that shares its core with many gets it for moments only: its heartbeat may be late, and a call into C that takes
a tenth of a second alone takes a hundred times as long beside a hundred others. Such a rank is healthy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

MOST = 4.0
"""Ranks, or processes that want to run, for each core, up to which patience is as the job file says."""


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def factor(ranks: int, cores: int, load: float = 0.0) -> float:
    """Return by how much patience grows on a host: 1 unless it is crowded.

    Args:
        ranks: those of the run on the host.
        cores: that they may use.
        load: processes that want to run there, on average, whosever they are.
    """
    return max(1.0, max(float(ranks), load) / (MOST * max(cores, 1)))


def crowding(ranks: int) -> Callable[[], float]:
    """Return what gives `factor` on this host now; `ranks` are those of the fullest host of the run."""
    here = cores()

    def now() -> float:
        load = 0.0
        with suppress(OSError):
            load = os.getloadavg()[0]
        return factor(ranks, here, load)

    return now


def warning(ranks: int, nodes: int, cores: int, patience: float) -> str:
    """Say in a line that a layout crowds its cores, and what follows; "" if it does not."""
    each = -(-ranks // max(nodes, 1))
    grown = factor(each, cores)
    if grown <= 1.0:
        return ""
    return (
        f"{each} ranks share {cores} core{'s' if cores > 1 else ''}: each gets little time, so a hung one is noticed "
        f"after {patience * grown:.3g} s instead of {patience:.3g} ([heartbeat] patience)"
    )
