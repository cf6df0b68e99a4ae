"""Embeddings and dense parameters on the servers, for functions of JAX::

    items = Embedding(context.vectors["items"])
    layers = Dense(context.vectors["layers"], initial)          # a tree of arrays
    for ids, labels in batches:
        batch = items.fetch(ids)
        loss, (of_layers, of_rows) = value_and_grad(layers.values, batch.rows, batch.places, labels)
        batch.push(of_rows)
        layers.step(of_layers)

with `value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))` of a function
`loss(layers, rows, places, labels)` that computes with `rows[places]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike, NDArray

from mpips.consistency import Consistency, sequential
from mpips.embedding import dense, table
from mpips.errors import UsageError
from mpips.keys import check_unmasked
from mpips.tasks.task import Task
from mpips.worker.vector import Vector


class Fetched:
    """The rows of a mini-batch's ids as arrays of JAX; `Embedding.fetch` and `read` make it.

    >>> from mpips import VectorSpec, simulate
    >>> def schedule(cluster):
    ...     items = Embedding(cluster.create_vector(VectorSpec("items", "float32", update="sgd", init=1.0)))
    ...     first, batch = items.fetch([5]), items.fetch([7, 3, 7])
    ...     first.drop()
    ...     assert isinstance(batch, Fetched)
    ...     pushed = batch.push(np.zeros((2, 1), np.float32))
    ...     return batch.places.tolist(), batch.rows[batch.places].tolist(), pushed.result()
    >>> simulate(schedule, worker=lambda context: None)
    ([1, 0, 1], [[1.0], [1.0], [1.0]], None)
    """

    def __init__(self, fetched: table.Fetched, shape: tuple[int, ...]) -> None:
        self._fetched, self._shape = fetched, shape

    @property
    def rows(self) -> Array:
        """The rows of the distinct ids, [capacity, width]; waits for them.

        The capacity is the next power of two, so that a function is compiled for few shapes. Further rows are 0.
        """
        rows = self._fetched.rows
        padded = np.zeros(self._capacity(), rows.dtype)
        padded[: len(rows)] = rows
        return jnp.asarray(padded)

    def _capacity(self) -> tuple[int, int]:
        return 1 << max(len(self._fetched.keys) - 1, 0).bit_length(), self._fetched.width

    @property
    def places(self) -> Array:
        """Where each id is among the rows, i4 of the shape of the ids."""
        return jnp.asarray(self._fetched.places.reshape(self._shape))

    def push(self, gradients: ArrayLike) -> Task:
        """Push the gradients of `rows`, [capacity, width].

        Raises:
            UsageError: as of `mpips.embedding.Fetched.push`.
        """
        check_unmasked(gradients, f"{self._fetched}: gradients")
        given = np.asarray(gradients)
        if given.shape != self._capacity():
            raise UsageError(
                f"{self._fetched}: gradients of shape {given.shape}, but `rows` are {self._capacity()}: give the"
                " gradient of `rows`, not one for each id"
            )
        return self._fetched.push(given[: len(self._fetched.keys)])

    def drop(self) -> None:
        """Push nothing for this mini-batch: later ones do not wait for it."""
        self._fetched.drop()


class Embedding:
    """Rows of ids, which are any integers from 0.

    Args:
        vector: its rows have the vector's width and dtype; its update takes the steps.
        consistency: as of `mpips.embedding.Embedding`.

    >>> import jax
    >>> from mpips import VectorSpec, simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         items = Embedding(self.context.vectors["items"])
    ...         items.begin()
    ...         batch = items.fetch([7, 3, 7])
    ...         batch.push(jax.grad(lambda rows: rows[batch.places].sum())(batch.rows))
    ...         items.settle()
    ...         state = items.state()
    ...         items.load({**state, "rows": state["rows"] + 1})
    ...         found = items.read([3, 7, 8])
    ...         return found.rows[found.places].tolist()
    >>> def schedule(cluster):
    ...     sgd = {"rate": 0.5}
    ...     cluster.create_vector(VectorSpec("items", "float32", 2, update="sgd", settings=sgd, init=1.0))
    ...     return cluster.workers.call("train")[0]
    >>> simulate(schedule, Worker)
    [[1.5, 1.5], [1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, vector: Vector, consistency: Consistency = sequential) -> None:
        self.table = table.Embedding(vector, consistency)

    def begin(self, first: int = 0) -> None:
        """Number the mini-batches from `first`; see `mpips.embedding.Embedding.begin`."""
        self.table.begin(first)

    def fetch(self, ids: ArrayLike) -> Fetched:
        """Begin to fetch the next mini-batch's rows, of ids of any shape; its gradients must be pushed, or dropped."""
        array = _array(ids)
        return Fetched(self.table.fetch(array.reshape(-1)), array.shape)

    def read(self, ids: ArrayLike) -> Fetched:
        """Begin to fetch rows for which nothing is pushed, for example to score."""
        array = _array(ids)
        return Fetched(self.table.read(array.reshape(-1)), array.shape)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return a tree of the ids whose rows were trained, `ids` u8[m] ascending, and of `rows` [m, width]: of NumPy.

        See `mpips.embedding.Embedding.state`.
        """
        ids, rows = self.table.state()
        return {"ids": ids, "rows": rows}

    def load(self, state: Mapping[str, ArrayLike]) -> None:
        """Set the rows of such a tree at the servers; see `mpips.embedding.Embedding.load`."""
        self.table.load(np.asarray(state["ids"]), np.asarray(state["rows"]))

    def settle(self) -> None:
        """Wait until all pushes are applied."""
        self.table.settle()


class Dense:
    """A tree of parameters on the servers, stepped by all workers in rounds.

    Args:
        vector: made of `mpips.embedding.Dense.spec(name, size)`, size the number of parameters.
        initial: the values to begin with, the same in all workers: any tree of arrays.
        consistency: as of `mpips.embedding.Dense`.

    >>> from mpips import simulate
    >>> from mpips.embedding import Dense as Parameters
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         layers = Dense(self.context.vectors["layers"], {"w": jnp.ones(2), "b": jnp.zeros(1)})
    ...         layers.begin()
    ...         layers.step({"w": jnp.array([1.0, 2.0]), "b": jnp.ones(1)})
    ...         layers.settle()
    ...         return {name: array.tolist() for name, array in layers.values.items()}
    >>> def schedule(cluster):
    ...     cluster.create_vector(Parameters.spec("layers", 3, "sgd", {"rate": 0.5}))
    ...     return cluster.workers.call("train")[0]
    >>> simulate(schedule, Worker)
    {'b': [-0.5], 'w': [0.5, 0.0]}
    """

    def __init__(self, vector: Vector, initial: Any, consistency: Consistency = sequential) -> None:
        values, self._tree_of = ravel_pytree(initial)
        self._name, self._form = vector.spec.name, _form(initial)
        self._parameters = dense.Dense(vector, np.asarray(values), consistency)

    def begin(self, first: int = 0) -> None:
        """Take the parameters as the servers hold them, and number the rounds from `first`."""
        self._parameters.begin(first)

    @property
    def values(self) -> Any:
        """The tree of the parameters for the next round; waits for the steps that it depends on."""
        return self._tree_of(jnp.asarray(self._parameters.values))

    def load(self, values: Any) -> None:
        """Set the parameters at the servers to those of a tree; see `mpips.embedding.Dense.load`.

        Raises:
            UsageError: they are not a tree of the same form as the parameters.
        """
        self._parameters.load(self._flat(values, "values"))

    def step(self, gradients: Any) -> Task:
        """Take part in the next round with a tree of gradients: the step is along the sum of all workers'.

        Raises:
            UsageError: they are not a tree of the same form as the parameters.
        """
        return self._parameters.step(self._flat(gradients, "gradients"))

    def settle(self) -> None:
        """Wait until all rounds are finished."""
        self._parameters.settle()

    def _flat(self, tree: Any, what: str) -> NDArray[Any]:
        if (form := _form(tree)) != self._form:
            raise UsageError(
                f"dense parameters {self._name}: {what} {_text(form)} for parameters {_text(self._form)}"
            )
        return np.asarray(ravel_pytree(tree)[0])


def _array(ids: ArrayLike) -> np.ndarray[Any, Any]:
    check_unmasked(ids, "ids")
    return np.asarray(ids)


def _form(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    """Return the structure of a tree, and the shapes of its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(each) for each in leaves]


def _text(form: tuple[Any, list[tuple[int, ...]]]) -> str:
    return " ".join(f"{form[0]} of shapes {form[1]}".split())[:200]
