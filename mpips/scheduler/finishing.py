"""The steps of a program after training; the failure of one does not affect the others.

Exports, scores of test data and printed output follow training, which may have taken hours: a bad line in a test file,
a full disk or a missing font must not lose the model or the metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mpips.errors import InputError, MpipsError, RemoteError
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.stopping import Evaluation
from mpips.scheduler.worker_recovery import retry_on_loss

Step = Callable[[], dict[str, Any] | None]


def finish(
    cluster: Cluster,
    metrics: dict[str, Any],
    *steps: Step,
    recover: Callable[[], object] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, Any]:
    """Run the steps after training; return the metrics, and those that the steps return.

    `result.json` has the metrics of training, and of each step that succeeded, also when another one fails. The first
    error is raised when all steps have been tried; the others are printed.

    If the run is asked to stop, the first step is done, and the others if they are short: a long one is cut short where
    its workers poll (`Context.polling`). The run then ends as stopped, to be resumed, with a checkpoint: the last one,
    or that of `save`. Without any it is completed. `evaluation_cut_by` in `result.json` names the request.

    Args:
        cluster: the run.
        metrics: the metrics of training.
        steps: in order of importance: the model before its scores. A step that writes a file first asks the servers and
            workers for all it needs: a successor then issues the same requests, even if its own disk fails.
        recover: as for `mpips.scheduler.worker_recovery.retry_on_loss`.
        save: writes a checkpoint, from which the resumed run evaluates what it has trained; its argument is `metrics`.

    Raises:
        Exception: the first error of a step.

    >>> from mpips import simulate
    >>> def schedule(cluster):
    ...     return finish(cluster, {"loss": 0.5}, lambda: {"accuracy": 0.9})
    >>> simulate(schedule, worker=lambda context: None)
    {'loss': 0.5, 'accuracy': 0.9}
    """
    cluster.metrics.update(metrics)
    cluster.after_training = True
    failed: list[Exception] = []
    left_out = 0
    with Evaluation(cluster) as evaluation:
        for number, step in enumerate(steps):
            if number and not evaluation.goes_on():
                left_out += len(steps) - number
                break
            try:
                found = retry_on_loss(cluster, step, recover)
                cluster.metrics.update(found or {})
            except Exception as error:
                if isinstance(error, RemoteError) and error.is_cut_short:
                    left_out += 1
                    continue
                if isinstance(error, MpipsError) and not isinstance(error, (InputError, RemoteError)):
                    # The run cannot continue.
                    raise
                failed.append(error)
    for other in failed[1:]:
        cluster.say(f"this failed too: {' '.join(str(other).split())}")
    if failed:
        raise failed[0]
    if left_out:
        _stop(cluster, left_out, None if save is None else partial(save, metrics), recover)
    return cluster.metrics


def _stop(
    cluster: Cluster,
    left_out: int,
    save: Callable[[], object] | None,
    recover: Callable[[], object] | None,
) -> None:
    """End a run whose evaluation was cut short, to be resumed if there is a checkpoint."""
    cluster.evaluation_cut_by = cluster.stop
    cluster.say(f"the evaluation is cut short by {cluster.stop}: without its last {left_out} steps")
    if cluster.stopped_early:
        return
    if save is not None:
        retry_on_loss(cluster, save, recover)
        cluster.coordinator.settle()
    cluster.stopped_early = cluster.last_checkpoint() is not None
