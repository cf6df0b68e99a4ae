"""Training on mini-batches: what differs from the online learners of sparse_lr, whose loop this is.

The vector `w` has a row (weight, seen) for each feature, `v` its k factors. A feature has factors once the first pass
has seen it `admit` times, in earlier mini-batches. Only then does a worker pull and push its row of `v`, so that rare
features, which are most of all, do not take the memory of 2 k more numbers (Li et al., DiFacto, WSDM 2016). The counts
are columns of `w` like any: exact, copied, in checkpoints, and in sequential mode the same on any layout.

With `max_rows` every pass counts: the count of a feature that was dropped begins anew when it comes again, in whichever
pass that is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, Normal, PushPull, VectorSpec, call, exact_sums, progress
from mpips import keys as key_arrays
from mpips.data import Examples, Source, Tally
from mpips.data.numbering import distinct
from mpips.jobs.fm.form import Form
from mpips.jobs.fm.kernels import F4, F8, I4, SEEN, WEIGHT
from mpips.jobs.fm.settings import Settings
from mpips.jobs.sparse_lr.assignment import Assignment
from mpips.jobs.sparse_lr.evaluate import Data, Scorer
from mpips.jobs.sparse_lr.online import BATCHES, COLUMNS, Learner, Online, Push, Step
from mpips.jobs.sparse_lr.proximal import exact_total

LIMITED_BATCHES = 2
"""Mini-batches of each worker per call where the rows are limited."""
CALL_EXAMPLES, MOST_BATCHES = 1 << 16, 64
"""Examples, and mini-batches, of a call of each worker otherwise."""
FACTORS = progress.Column("factors", "with factors", 13, progress.si)


def factors_spec(settings: Settings, width: int, seed: int, **more: Any) -> VectorSpec:
    """Return the vector of factors, `width` of each feature."""
    numbers = {"alpha": settings.factor_alpha, "beta": settings.factor_beta, "l2": settings.factor_l2}
    return VectorSpec(
        "v", "float32", width=width, update="adagrad", settings=numbers,
        init=Normal(0.0, settings.init, seed=seed), **more,
    )  # fmt: skip


def form_of(settings: Settings, width: int) -> Form:
    """Return the form of a machine with `width` factors of each feature."""
    return Form(settings.factors, width // settings.factors if settings.fields else 0, settings.normalise)


class Machine(Online):
    """A training run."""

    columns = (*COLUMNS[:5], FACTORS, *COLUMNS[5:])
    settings: Settings

    def __init__(
        self, cluster: Cluster, settings: Settings, assignment: Assignment, data: Data, fields: int
    ) -> None:
        self.form = Form(settings.factors, fields, settings.normalise)
        # Rows are dropped between calls.
        self.batches = LIMITED_BATCHES
        if not settings.max_rows:
            self.batches = min(max(CALL_EXAMPLES // settings.batch, BATCHES), MOST_BATCHES)
        super().__init__(cluster, settings, assignment, data)

    def limit(self) -> None:
        """Drop features if there are too many."""
        if self.settings.max_rows:
            w, v = self.cluster.vectors["w"], self.cluster.vectors["v"]
            self.cluster.evict(w, self.settings.max_rows, usage="used", also=[v])

    def specs(self, aggregate: bool) -> list[VectorSpec]:
        """Return the vectors of linear weights and of factors."""
        settings, job = self.settings, self.cluster.job
        numbers = {name: getattr(settings, name) for name in ("alpha", "beta", "l1", "l2")}
        common: dict[str, Any] = {"extent": self.data.extent, "aggregate": aggregate}
        common |= {"key_bits": job.data.key_bits}
        linear = VectorSpec("w", "float32", width=2, update="fm_linear", settings=numbers, **common)
        factors = factors_spec(settings, self.form.width, job.seed, **common)
        self.cluster.facts |= numbers | {"factors": settings.factors, "admit": settings.admit}
        # Of the seed are the first factors, also of features whose rows a checkpoint does not have.
        self.cluster.facts |= {"max_rows": settings.max_rows, "seed": job.seed}
        if self.form.fields:
            self.cluster.facts |= {"fields": self.form.fields, "normalise": settings.normalise}
        self.cluster.facts |= {f"factor_{name}": value for name, value in factors.settings.items()}
        return [linear, factors]

    def measure(self) -> dict[str, int]:
        """Determine |w|_1; return the numbers of weights that are not 0, and of features with factors."""
        call, vectors = self.cluster.servers.call, self.cluster.vectors
        linear, factors = call("fm_size", vector=vectors["w"]), call("fm_rows", vector=vectors["v"])
        self.size = float(exact_total(linear)[0])
        return {
            "nonzeros": sum(each["nonzeros"] for each in linear),
            "features": sum(each["rows"] for each in linear),
            "factors": sum(each["rows"] for each in factors),
        }


@call("fm_rows", reads=True)
def count(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return the number of rows."""
    return {"rows": len(segment)}


@call("fm_size", reads=True)
def size(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return the number of rows; of the first column the number of non-zeros, and of |w| the exact sum."""
    total, nonzeros = exact_sums.ExactSum(), 0
    for _, rows in segment.everything():
        column = rows[""][:, WEIGHT]
        total.add(np.abs(column))
        nonzeros += int(np.count_nonzero(column))
    return {"rows": len(segment), "nonzeros": nonzeros, "sums": [total.to_list()]}


def places_of(chosen: NDArray[np.bool_]) -> I4:
    """Return the place of each feature among the chosen ones, -1 of the others: i4[n].

    >>> places_of(np.array([True, False, True])).tolist()
    [0, -1, 1]
    """
    return np.where(chosen, np.cumsum(chosen) - 1, -1).astype(np.int32)


class MachineLearner(Learner):
    """Learns mini-batches, for a worker."""

    settings: Settings
    fields = 0
    """Number of fields of the examples that were read to find the last key."""

    def __init__(self, context: Context, data: Source, consistency: PushPull) -> None:
        super().__init__(context, data, consistency)
        # Where features are admitted, the weights of a mini-batch say which of its factors are pulled.
        self.stages = 2 if self.settings.admit else 1

    def find_last_key(self, batches: Iterator[Examples], tally: Tally) -> int:
        """Return the last possible key, as `Learner`; where the examples say their fields, all are read."""
        return super().find_last_key(self._count_fields(batches), tally)

    def _count_fields(self, batches: Iterator[Examples]) -> Iterator[Examples]:
        for batch in batches:
            if batch.fields is not None and len(batch.fields):
                self.fields = max(self.fields, int(batch.fields.max()) + 1)
            yield batch

    def count_fields(self) -> dict[str, int]:
        """Return the number of fields of columns, or of all examples that this worker has read."""
        return {"fields": self.data.field_count() or self.fields}

    def pull(self, step: Step) -> None:
        """Request the weights and counts, and the factors if all features have some."""
        w = self.vectors["w"]
        step.pulls.append(w.pull(step.batch.keys_for(w), after=step.after))
        if not self.settings.admit:
            self._pull_factors(step)

    def pull_more(self, step: Step) -> None:
        """Request the factors of the features that were seen often enough."""
        if len(step.pulls) == 1:
            self._pull_factors(step, step.pulls[0].result()[:, SEEN] >= self.settings.admit)

    def _pull_factors(self, step: Step, admitted: NDArray[np.bool_] | None = None) -> None:
        """Request the factors of all features of a mini-batch, or of the `admitted` ones."""
        keys = step.batch.keys_for(self.vectors["v"], admitted)
        step.pulls.append(self.vectors["v"].pull(keys, after=step.after))
        step.more = keys, np.arange(len(keys), dtype=np.int32) if admitted is None else places_of(admitted)

    def gradients(self, step: Step) -> tuple[float, list[Push]]:
        """Return the losses of a mini-batch, and the gradients of weights and factors."""
        self.pull_more(step)
        (linear, factors), batch = (task.result() for task in step.pulls), step.batch
        keys, places = step.more
        with self.context.working():
            form = form_of(self.settings, self.vectors["v"].spec.width)
            factors = factors.reshape(len(keys), form.width)
            out, steps = np.empty_like(linear), np.empty_like(factors)
            loss = form.gradient(batch, linear, places, factors, out, steps)
            if self.number > 1 and not self.settings.max_rows:
                # The same examples once more, and no row has lost its count.
                out[:, SEEN] = 0.0
        return loss, [Push("w", batch.keys_for(self.vectors["w"]), out), Push("v", keys, usual(steps))]


def usual(rows: F4) -> F4:
    """Return rows as a push takes them: one number each as f4[n].

    >>> usual(np.ones((2, 1), np.float32)).shape
    (2,)
    """
    return rows.reshape(-1) if rows.shape[1] == 1 else rows


class MachineScorer(Scorer):
    """Scores examples, for a worker."""

    def scores(self, batch: Examples, values: F4) -> F8:
        """Return the scores of examples, f8[n]. Features beyond the vectors' extent did not occur in training."""
        settings: Settings = self.context.job.settings
        keys, positions = distinct(batch.keys)
        w, v = self.context.vectors["w"], self.context.vectors["v"]
        known = int(np.searchsorted(key_arrays.upper(keys), np.uint64(w.spec.extent - 1), "right"))
        linear = np.zeros((len(keys), 2), np.float32)
        linear[:known] = w.pull(keys[:known]).result()
        # A feature that was never seen has no factors either way.
        admitted = linear[:, SEEN] >= max(settings.admit, 1)
        factors = v.pull(keys[admitted]).result().reshape(-1, v.spec.width)
        return form_of(settings, v.spec.width).scores(batch, positions, linear, places_of(admitted), factors)
