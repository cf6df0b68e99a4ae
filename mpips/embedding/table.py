"""The rows of a vector as mini-batches use them.

A mini-batch is fetched (its ids' rows are pulled), computed, and its gradients are pushed. Mini-batches are numbered,
and the consistency model says which pushes the pull of mini-batch t waits for: `sequential` all earlier ones,
`bounded(tau)` all but the last tau. A later mini-batch can be fetched before: its pull is sent as soon as the pushes
that it waits for are applied, while the program computes. So with tau >= 1 the rows of the next mini-batch travel
during the present one. With tau = 0 servers read them from disk meanwhile, if they are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.consistency import Consistency, sequential, unmet
from mpips.errors import UsageError
from mpips.keys import KeyArray, check_unmasked
from mpips.tasks.task import Task
from mpips.transport.message import NO_ROUND
from mpips.worker.places import Places, places_of
from mpips.worker.vector import Vector

Array = NDArray[Any]
T = TypeVar("T")


class Fetched:
    """The rows of a mini-batch's ids, each distinct id once; `Embedding.fetch` and `read` make it.

    `keys` u8[m] are the distinct ids, ascending, and `places` i4[n] says which of them each id is.

    >>> from mpips import VectorSpec, simulate
    >>> from mpips.embedding import Embedding, Fetched
    >>> def schedule(cluster):
    ...     sgd = {"rate": 0.5}
    ...     table = Embedding(cluster.create_vector(VectorSpec("items", update="sgd", settings=sgd, init=1.0)))
    ...     batch: Fetched = table.fetch([7, 3, 7])
    ...     shown = batch.keys.tolist(), batch.places.tolist(), batch.width, batch.rows_of_ids.tolist()
    ...     batch.push(np.array([[1.0], [2.0]])).result()
    ...     table.fetch([3]).drop()
    ...     other = table.fetch([3, 3])
    ...     other.push_of_ids(np.ones((2, 1))).result()
    ...     return *shown, table.read([3, 7]).rows.tolist()
    >>> simulate(schedule, worker=lambda context: None)
    ([3, 7], [1, 0, 1], 1, [[1.0], [1.0], [1.0]], [[-0.5], [0.0]])
    """

    def __init__(self, table: Embedding, where: Places, number: int | None) -> None:
        self.number = number
        """The number of the mini-batch; None if nothing is pushed for it."""
        self._table, self._where = table, where
        self._task: Task | None = None

    def __repr__(self) -> str:
        return (
            f"mini-batch {self.number} of {self._table}"
            if self.number is not None
            else f"rows of {self._table}"
        )

    @property
    def width(self) -> int:
        """Values per row."""
        return self._table.vector.spec.width

    @property
    def keys(self) -> KeyArray:
        """The distinct ids, ascending: u8[m], or KEY128[m]."""
        return self._where.keys

    @property
    def places(self) -> NDArray[np.int32]:
        """Where each id is among `keys`: i4[n]."""
        return self._where.places

    @property
    def rows(self) -> Array:
        """The rows of `keys`, [m, width]; waits for them.

        Raises:
            UsageError: the gradients of a mini-batch that this one waits for are not pushed yet.
        """
        found: Array = self._table._pull_of(self).result()
        return found.reshape(len(self.keys), self.width)

    @property
    def rows_of_ids(self) -> Array:
        """The row of each id, in the order of the ids: [n, width]; waits for them."""
        return self._where.rows(self.rows)

    def push(self, gradients: ArrayLike) -> Task:
        """Push one row for each of `keys`, [m, width]; those of repeated ids are already summed.

        Like those of `Vector.push`, they must not be written before the task is finished.

        Raises:
            UsageError: this mini-batch was read, not fetched, or is pushed already; further errors as `Vector.push`.
        """
        return self._table._push(self, gradients)

    def push_of_ids(self, gradients: ArrayLike) -> Task:
        """Push one row for each id, [n, width]; those of an id that comes several times are summed.

        Raises:
            UsageError: there is not one row for each id; further errors as `push`.
        """
        check_unmasked(gradients, f"{self._table}: gradients")
        given = np.asarray(gradients)
        if len(given) != len(self.places):
            raise UsageError(f"{self._table}: {len(given)} rows for {len(self.places)} ids")
        return self.push(self._where.summed(given))

    def drop(self) -> None:
        """Push nothing for this mini-batch, whose gradients are not needed: later ones do not wait for it."""
        width = (0, self._table.vector.spec.width)
        self._table._push(self, np.empty(width, self._table.vector.spec.dtype), dropped=True)


class Embedding:
    """The rows of a vector in a worker's mini-batches; see the module.

    Args:
        vector: of any width, with an update for gradients, such as `adagrad`. If it aggregates, all workers push in
            rounds, and must fetch the same number of mini-batches.
        consistency: which earlier mini-batches' pushes a pull waits for.

    >>> from mpips import VectorSpec, simulate
    >>> from mpips.embedding import Embedding
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         table = Embedding(self.context.vectors["items"])
    ...         batch = table.fetch([7, 3, 7])
    ...         ahead = table.fetch([3])
    ...         batch.push_of_ids(np.ones((3, 2)))
    ...         return [batch.rows_of_ids.tolist(), ahead.rows.tolist()]
    >>> def schedule(cluster):
    ...     cluster.create_vector(VectorSpec("items", width=2, update="sgd", settings={"rate": 0.5}, init=1.0))
    ...     return cluster.workers.call("train")
    >>> simulate(schedule, Worker)
    [[[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[0.5, 0.5]]]]

    The same for a whole stream of mini-batches, each fetched while the one before is computed:

    >>> from mpips import bounded
    >>> class Learner(Worker):
    ...     def train(self):
    ...         table = Embedding(self.context.vectors["items"], bounded(1))
    ...         table.begin()
    ...         for ids, batch in table.ahead([[7, 3, 7], [3]], lambda ids: ids):
    ...             batch.push_of_ids(np.ones((len(ids), 2)))
    ...         table.settle()
    ...         return table.read([3, 7]).rows.tolist()
    >>> simulate(schedule, Learner)
    [[[0.0, 0.0], [0.0, 0.0]]]
    """

    def __init__(self, vector: Vector, consistency: Consistency = sequential) -> None:
        self.vector, self.consistency = vector, consistency
        self.begin()

    def begin(self, first: int = 0) -> None:
        """Number the mini-batches from `first`; what was fetched before, in a call that was lost, is forgotten.

        The number of a mini-batch is that of its round, too: in an aggregating vector all workers begin with the same,
        and no number comes twice.
        """
        self._next = first
        # Mini-batches whose gradients are not pushed yet, and pushes that are not applied yet, by number.
        self._unpushed: dict[int, Fetched] = {}
        self._pushes: dict[int, Task] = {}
        # Fetched mini-batches whose pulls wait for gradients that are not pushed yet.
        self._deferred: list[Fetched] = []

    def __repr__(self) -> str:
        return f"embedding {self.vector.spec.name}"

    def fetch(self, ids: ArrayLike) -> Fetched:
        """Begin to fetch the next mini-batch's rows; its gradients must be pushed, or it must be dropped.

        Args:
            ids: integers from 0 in any order and with repeats, [n], as of `Vector.lookup`.

        Raises:
            UsageError: the ids are not of this form.
        """
        found = Fetched(self, self._places(ids), self._next)
        self._next += 1
        self._pull_or_defer(found)
        if found._task is None:
            # Servers read rows from disk meanwhile.
            self.vector.announce(found.keys)
        self._unpushed[self._number(found)] = found
        return found

    def ahead(
        self, batches: Iterable[T], ids: Callable[[T], ArrayLike], depth: int = 1
    ) -> Iterator[tuple[T, Fetched]]:
        """Yield mini-batches with the rows of `ids(batch)`, and fetch those of `depth` later ones meanwhile."""
        waiting: deque[tuple[T, Fetched]] = deque()
        try:
            yield from self._ahead(batches, ids, depth, waiting)
        except GeneratorExit:
            # The caller has left its loop.
            for _, fetched in waiting:
                fetched.drop()
            raise

    def _ahead(
        self,
        batches: Iterable[T],
        ids: Callable[[T], ArrayLike],
        depth: int,
        waiting: deque[tuple[T, Fetched]],
    ) -> Iterator[tuple[T, Fetched]]:
        for batch in batches:
            waiting.append((batch, self.fetch(ids(batch))))
            if len(waiting) > depth:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def read(self, ids: ArrayLike) -> Fetched:
        """Begin to fetch rows for which nothing is pushed, for example to score; all own pushes so far are in them."""
        found = Fetched(self, self._places(ids), None)
        found._task = self.vector.pull(found.keys, after=list(self._unapplied().values()))
        return found

    def state(self) -> tuple[KeyArray, Array]:
        """Return the ids whose rows differ from their initial values, ascending, and these rows, [m, width].

        All own pushes so far are in them. The update's state, such as AdaGrad's sums, is not: checkpoints have it.

        Raises:
            UsageError: a fetched mini-batch was neither pushed nor dropped.

        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     table = Embedding(cluster.create_vector(VectorSpec("w", width=2)))
        ...     table.load([7, 3], [[1.0, 2.0], [3.0, 4.0]])
        ...     ids, rows = table.state()
        ...     return ids.tolist(), rows.tolist()
        >>> simulate(schedule, worker=lambda context: None)
        ([3, 7], [[3.0, 4.0], [1.0, 2.0]])
        """
        self.settle()
        spec = self.vector.spec
        pieces = [(np.empty(0, spec.key_dtype), np.empty((0, spec.width), spec.dtype)), *self.vector.export()]
        keys, rows = zip(*pieces, strict=True)
        return np.concatenate(keys), np.concatenate(rows)

    def load(self, ids: ArrayLike, rows: ArrayLike) -> None:
        """Set the rows of ids, [m] in any order, each once, to [m, width]; those of other ids stay.

        The update's state of these rows is that of new ones. One worker does it, or all with the same rows, while none
        trains; it waits until the servers have them.

        Raises:
            UsageError: the ids are not of this form, or there is not one row for each; or a fetched mini-batch was
                neither pushed nor dropped.
        """
        self.settle()
        where, given = self._places(ids), np.asarray(rows, self.vector.spec.dtype)
        if len(where.keys) != len(where.places):
            raise UsageError(
                f"{self}: {len(where.places)} ids to load, of which {len(where.keys)} are different"
            )
        if given.shape != (len(where.keys), self.vector.spec.width):
            raise UsageError(
                f"{self}: rows of shape {given.shape} to load for {len(where.keys)} ids, and a width of"
                f" {self.vector.spec.width}"
            )
        ordered = np.empty_like(given)
        ordered[where.places] = given
        self.vector.set_rows(where.keys, ordered).result()

    def settle(self) -> None:
        """Wait until all pushes are applied.

        Raises:
            UsageError: a fetched mini-batch was neither pushed nor dropped.
        """
        if self._unpushed:
            raise UsageError(f"{self}: {self._missing(self._unpushed)}")
        self.vector.node.wait_all(self._unapplied().values())

    def _places(self, ids: ArrayLike) -> Places:
        return places_of(ids, self.vector.spec.key_bits, self.vector.spec.name)

    def _number(self, fetched: Fetched) -> int:
        if fetched.number is None:
            raise UsageError(f"{self}: these rows were read, not fetched: nothing is pushed for them")
        return fetched.number

    def _unapplied(self) -> dict[int, Task]:
        self._pushes = {number: task for number, task in self._pushes.items() if not task.done}
        return self._pushes

    def _pull_or_defer(self, fetched: Fetched) -> None:
        """Send the pull of a mini-batch, unless it waits for gradients that the program has not computed yet."""
        before = self.consistency(self._number(fetched))
        if unmet(before, self._unpushed):
            self._deferred.append(fetched)
            return
        pushes = self._unapplied()
        after = [pushes[number] for number in unmet(before, pushes)]
        fetched._task = self.vector.pull(fetched.keys, after=after)

    def _pull_of(self, fetched: Fetched) -> Task:
        """Return the pull of a mini-batch's rows; UsageError if it waits for gradients that nobody has pushed."""
        if fetched._task is None:
            # The delay may have grown since.
            self._deferred.remove(fetched)
            self._pull_or_defer(fetched)
        if fetched._task is None:
            missing = unmet(self.consistency(self._number(fetched)), self._unpushed)
            raise UsageError(
                f"{self}: the rows of mini-batch {fetched.number} wait: {self._missing(missing)}"
            )
        return fetched._task

    def _push(self, fetched: Fetched, rows: ArrayLike, dropped: bool = False) -> Task:
        number = self._number(fetched)
        if number not in self._unpushed:
            raise UsageError(f"{self}: the gradients of mini-batch {number} are pushed already")
        round_ = number if self.vector.spec.aggregate else NO_ROUND
        keys = fetched.keys[:0] if dropped else fetched.keys
        task = self.vector.push(keys, rows, round=round_)  # type: ignore[arg-type]
        del self._unpushed[number]
        self._pushes[number] = task
        deferred, self._deferred = self._deferred, []
        for each in deferred:
            self._pull_or_defer(each)
        return task

    def _missing(self, numbers: Sequence[int] | dict[int, Fetched]) -> str:
        return (
            f"mini-batch {min(numbers)} was fetched, and its gradients are not pushed; push them, or drop() it, or"
            " read() rows for which nothing is pushed"
        )
