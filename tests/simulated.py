"""A cluster on the in-memory twin, with defaults for tests."""

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
    observed: dict[str, Any] | None = None,
    **how: Any,
) -> Any:
    """Run `mpips.rank.simulation.simulate`; the last leader's view, cluster and network are left in `told`."""
    internals = Internals()

    def begin(cluster: Cluster) -> Any:
        if observed is not None:
            observed.update(cluster=cluster, network=internals.network)
        return schedule(cluster)

    result = simulation.simulate(begin, worker, internals=internals, **how)
    if observed is not None and internals.view is not None:
        observed["view"] = internals.view
    return result
