"""Dense parameters on the servers, such as the weights of a network's layers, which all workers step together.

The servers hold what the parameters differ by from the values that they begin with. All workers must compute these
values alike (the same seed; `Dense.digest_of` tells), so nobody has to send them, and a worker that joins later, or
after a recovery, needs no more than a pull. In each round every worker pushes its gradient, the servers sum them in
worker order, take one step, and answer with the new values.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.consistency import Consistency, sequential, unmet
from mpips.errors import UsageError
from mpips.keys import check_unmasked
from mpips.ranges import KeyRange
from mpips.storage.updates import Setting, VectorSpec
from mpips.tasks.task import Task
from mpips.worker.vector import Vector

Array = NDArray[Any]


class Dense:
    """Parameters that are stepped by all workers in rounds; see the module.

    Args:
        vector: made of `Dense.spec`.
        initial: the values to begin with, the same in all workers, [size].
        consistency: the rounds whose steps a round's parameters have: `sequential`, all earlier ones.

    >>> from mpips import simulate
    >>> from mpips.embedding import Dense
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         weights = Dense(self.context.vectors["layers"], np.ones(2))
    ...         weights.begin()
    ...         weights.step(np.array([1.0, 10.0], np.float32))
    ...         weights.settle()
    ...         return weights.values.tolist()
    >>> def schedule(cluster):
    ...     cluster.create_vector(Dense.spec("layers", 2, "sgd", {"rate": 0.5}))
    ...     return cluster.workers.call("train")
    >>> simulate(schedule, Worker, workers=2)
    [[0.0, -9.0], [0.0, -9.0]]
    """

    def __init__(self, vector: Vector, initial: ArrayLike, consistency: Consistency = sequential) -> None:
        spec = vector.spec
        self.vector, self.consistency = vector, consistency
        check_unmasked(initial, f"dense parameters {spec.name}")
        given = np.asarray(initial)
        if given.dtype.kind not in "biuf":
            raise UsageError(f"dense parameters {spec.name}: they are {given.dtype}; give numbers")
        self.initial = np.array(given, spec.dtype)
        if not (spec.aggregate and spec.dense) or self.initial.shape != (spec.extent,):
            raise UsageError(
                f"dense parameters {spec.name}: {self.initial.shape} values for a vector of extent {spec.extent};"
                " make the vector by Dense.spec(name, size)"
            )
        self._range = KeyRange(0, spec.extent)
        self.begin()

    @staticmethod
    def spec(
        name: str,
        size: int,
        update: str = "adam",
        settings: dict[str, Setting] | None = None,
        dtype: str = "float32",
    ) -> VectorSpec:
        """Return the specification of a vector for `size` parameters.

        >>> Dense.spec("layers", 10).aggregate
        True
        """
        return VectorSpec(
            name, dtype, extent=size, dense=True, aggregate=True, update=update, settings=settings or {}
        )

    @staticmethod
    def digest_of(initial: ArrayLike) -> str:
        """Return a digest of the values to begin with, which all workers must have in common.

        >>> Dense.digest_of([1.0, 2.0])
        '7ba3895f'
        """
        return f"{zlib.crc32(np.ascontiguousarray(initial, np.float64).tobytes()):08x}"

    def begin(self, first: int = 0) -> None:
        """Take the parameters as the servers hold them, and number the rounds from `first`, the same in all workers.

        A call that trains begins with it: after a resume or a recovery the servers hold other parameters.
        """
        self._next = first
        self._rounds: dict[int, Task] = {}
        self._offsets: Array = np.asarray(self.vector.pull(self._range).result()).reshape(-1)

    @property
    def values(self) -> Array:
        """The parameters for the next round, [size]: waits for the steps that it depends on."""
        depends = unmet(self.consistency(self._next), self._rounds)
        self.vector.node.wait_all(self._rounds[number] for number in depends)
        for number in sorted(self._rounds):
            if not self._rounds[number].done:
                break
            # An answer has the steps of all earlier rounds.
            self._offsets = np.asarray(self._rounds.pop(number).result()).reshape(-1)
        found: Array = self.initial + self._offsets
        return found

    def step(self, gradient: ArrayLike) -> Task:
        """Take part in the next round with this gradient, [size]: the step is along the sum of all workers'.

        Raises:
            UsageError: the gradient is not of this shape and of the vector's dtype.
            WorkerLost: as of `Vector.push`.
        """
        check_unmasked(gradient, f"dense parameters {self.vector.spec.name}: gradients")
        # A copy: frameworks write the next gradient to the same place, and rows are sent without one.
        task = self.vector.push_pull(self._range, np.array(gradient), round=self._next)
        self._rounds[self._next] = task
        self._next += 1
        return task

    def load(self, values: ArrayLike) -> None:
        """Set the parameters, [size], with the update's state as at the beginning.

        One worker does it, or all with the same values, while none trains; calls that train begin with `begin`. Values
        that were trained from the same first values are set to the bit. Others may differ by the rounding of the
        difference to the first values, which the servers hold: by 2^-24 of the larger of both, in float32.

        Raises:
            UsageError: the values are not of this shape.
            RemoteError: a round is under way.
        """
        self.settle()
        given = np.asarray(values, self.initial.dtype)
        if given.shape != self.initial.shape:
            raise UsageError(
                f"{self.vector.spec.name}: {given.shape} values to load for {self.initial.shape}"
            )
        keys = np.arange(len(given), dtype=np.uint64)
        self.vector.set_rows(keys, offsets_between(self.initial, given)).result()
        self.begin(self._next)

    def settle(self) -> None:
        """Wait until all rounds are finished."""
        self.vector.node.wait_all(self._rounds.values())


def offsets_between(initial: Array, values: Array) -> Array:
    """Return what must be added to the initial values to get others: to the bit, if anything of their type does.

    >>> first, last = np.array([1.0, 0.1], np.float32), np.array([1e-10, 0.3], np.float32)
    >>> (first + offsets_between(first, last) == last).tolist()
    [False, True]
    """
    nearest: Array = (values.astype(np.float64) - initial.astype(np.float64)).astype(initial.dtype)
    for towards in (np.inf, -np.inf):
        # Where the numbers below a power of two are denser than those above it.
        other = np.nextafter(nearest, initial.dtype.type(towards))
        nearest = np.where((initial + nearest != values) & (initial + other == values), other, nearest)
    return nearest
