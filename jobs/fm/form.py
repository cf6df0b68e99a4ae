"""The form of a machine: how many factors a feature has, with or without fields, and the kernels of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpips import UsageError
from mpips.data import Examples
from mpips.jobs.fm import field_kernels, kernels
from mpips.jobs.fm.kernels import F4, F8, I4
from mpips.jobs.sparse_lr.minibatches import Minibatch, values_of


class Form(NamedTuple):
    """The form of a machine.

    >>> Form(4, fields=3).width
    12
    """

    factors: int
    """k."""
    fields: int = 0
    """Number of fields; 0: they are not told apart."""
    normalise: bool = True
    """With fields: whether examples are divided by their lengths."""

    @property
    def width(self) -> int:
        """Factors of a feature, of all fields."""
        return self.factors * max(self.fields, 1)

    def gradient(self, batch: Minibatch, linear: F4, places: I4, factors: F4, out: F4, steps: F4) -> float:
        """Fill the gradients of a mini-batch; return the sum of the losses; see `kernels.batch_gradient`."""
        if not self.fields:
            return kernels.batch_gradient(
                batch.indptr, batch.positions, batch.values, batch.labels, linear, places, factors, out, steps
            )
        assert batch.fields is not None
        return field_kernels.batch_gradient(
            batch.indptr, batch.positions, batch.fields, batch.values, batch.labels, linear, places, factors,
            self.factors, self.normalise, out, steps,
        )  # fmt: skip

    def scores(self, batch: Examples, positions: I4, linear: F4, places: I4, factors: F4) -> F8:
        """Return the scores of examples, f8[n]; a position of -1 is a feature that is not in the model.

        Raises:
            UsageError: the machine has fields, and the examples have none.
        """
        out, values = np.empty(len(batch)), values_of(batch)
        if not self.fields:
            kernels.predict(batch.indptr, positions, values, linear, places, factors, out)
            return out
        if batch.fields is None:
            raise UsageError(
                "the model tells fields apart: give files, frames, or mpips.data.Examples with fields, not a matrix"
            )
        field_kernels.predict(
            batch.indptr,
            positions,
            batch.fields,
            values,
            linear,
            places,
            factors,
            self.factors,
            self.normalise,
            out,
        )
        return out
