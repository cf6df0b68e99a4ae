"""A whole cluster on the in-memory twin, as tests want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpips.rank import simulation
from mpips.rank.simulation import Internals
from mpips.scheduler.scheduler import Cluster
from mpips.worker.worker import Context


def simulate(
    schedule: Callable[[Cluster], Any],
    worker: Callable[[Context], Any],
    *,
    told: dict[str, Any] | None = None,
    **how: Any,
) -> Any:
    """Run `mpips.rank.simulation.simulate`; the last leader's view, cluster and network are left in `told`."""
    internals = Internals()

    def begin(cluster: Cluster) -> Any:
        if told is not None:
            told.update(cluster=cluster, network=internals.network)
        return schedule(cluster)

    result = simulation.simulate(begin, worker, internals=internals, **how)
    if told is not None and internals.view is not None:
        told["view"] = internals.view
    return result
