"""What a program does once it has trained: each step for itself, so that what one cannot do costs nothing else.

Exports, scores of test data and prints come last, when hours may have been spent: a bad line in a test file, a full
disk or a missing font must not take the model, nor the metrics, with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mpips.errors import InputError, MpipsError, RemoteError
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.worker_recovery import surely

Step = Callable[[], dict[str, Any] | None]


def finish(
    cluster: Cluster, metrics: dict[str, Any], *steps: Step, mend: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Do what follows training; give the metrics, and those that the steps give.

    `result.json` has the metrics of training, and of each step that could be done, also when another one fails. The
    first error is raised when all have been tried; the others are said.

    Args:
        cluster: the run.
        metrics: what training has come to.
        steps: in the order of their worth: the model before its scores. One that writes a file asks the servers and
            workers for all it needs first: who succeeds to the scheduler asks the same, whatever its disk does.
        mend: as for `mpips.scheduler.worker_recovery.surely`.

    Raises:
        Exception: what a step has raised.
    """
    cluster.metrics.update(metrics)
    failed: list[Exception] = []
    for step in steps:
        try:
            cluster.metrics.update(surely(cluster, partial(_given, step), mend))
        except Exception as error:
            if isinstance(error, MpipsError) and not isinstance(error, (InputError, RemoteError)):
                raise  # the run cannot go on
            failed.append(error)
    for other in failed[1:]:
        cluster.say(f"this failed too: {' '.join(str(other).split())}")
    if failed:
        raise failed[0]
    return cluster.metrics


def _given(step: Step) -> dict[str, Any]:
    return step() or {}
