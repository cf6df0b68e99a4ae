"""A whole cluster on the in-memory twin, as tests want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpips.rank import simulation
from mpips.rank.simulation import Stage
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
    stage = Stage()

    def begin(cluster: Cluster) -> Any:
        if told is not None:
            told.update(cluster=cluster, network=stage.network)
        return schedule(cluster)

    result = simulation.simulate(begin, worker, stage=stage, **how)
    if told is not None and stage.view is not None:
        told["view"] = stage.view
    return result
