"""Embeddings and dense parameters on the servers, as modules of PyTorch::

    users = Embedding(context.vectors["users"])             # in place of torch.nn.Embedding
    tower = Dense(context.vectors["tower"], torch.nn.Linear(16, 1))
    for ids, labels in batches:
        loss = criterion(tower(users(ids)), labels)
        loss.backward()                                       # pushes the gradients of the embeddings' rows
        tower.step()                                          # and of the layers, in a round of all workers

Rows of ids are no parameters of the module: no optimiser sees them, the servers take the steps (the vector's update).

`state_dict` of a module with such layers has the rows, and `load_state_dict` sets them at the servers; so do those of
`Dense`. The states of the updates, such as AdaGrad's sums, are in checkpoints only, and begin anew for what is loaded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mpips.consistency import Consistency, sequential
from mpips.embedding import dense, table
from mpips.errors import UsageError
from mpips.keys import KeyArray, check_unmasked, from_pairs, pairs
from mpips.tasks.task import Task
from mpips.worker.vector import Vector

Ids: TypeAlias = "Tensor | NDArray[Any]"
"""Integers from 0; those above 2^63 are keys, for which PyTorch has no functions, in an array u8 of NumPy."""
T = TypeVar("T")


class _Rows(nn.Module):
    """What both kinds of embeddings share: rows that are fetched ahead, and pushed when their gradient is there."""

    def __init__(self, vector: Vector, consistency: Consistency = sequential) -> None:
        super().__init__()
        self.table = table.Embedding(vector, consistency)
        self._ahead: deque[table.Fetched] = deque()

    def begin(self, first: int = 0) -> None:
        """Number the mini-batches from `first`; see `mpips.embedding.Embedding.begin`."""
        self.table.begin(first)
        self._ahead.clear()

    def prefetch(self, ids: Ids) -> None:
        """Begin to fetch the rows of a later mini-batch, which `forward` is then called with, in the same order."""
        self._ahead.append(self.table.fetch(_flat(ids)))

    def ahead(self, batches: Iterable[T], ids: Callable[[T], Ids], depth: int = 1) -> Iterator[T]:
        """Yield mini-batches, and prefetch `depth` later ones: `forward` takes `ids(batch)`, the same tensor."""
        waiting: deque[T] = deque()
        for batch in batches:
            self.prefetch(ids(batch))
            waiting.append(batch)
            if len(waiting) > depth:
                yield from self._left_early(waiting.popleft())
        while waiting:
            yield from self._left_early(waiting.popleft())

    def _left_early(self, batch: T) -> Iterator[T]:
        try:
            yield batch
        except GeneratorExit:
            # The caller has left its loop: nothing is pushed for those that are fetched.
            while self._ahead:
                self._ahead.popleft().drop()
            raise

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Add `weight` [m, width], the rows that were trained, and their `ids` i8[m], ascending.

        A `torch.nn.Embedding(m, width)` loads the weight: its row i is that of ids[i]. Ids from 2^63 on are negative,
        with the same 64 bits; those of 128 bits are [m, 2], the upper half first.
        """
        keys, rows = self.table.state()
        destination[f"{prefix}weight"] = torch.from_numpy(rows)
        destination[f"{prefix}ids"] = torch.from_numpy(pairs(keys).view(np.int64))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Set the rows at the servers; without `ids`, as of a `torch.nn.Embedding`, row i is that of the id i."""
        names = [f"{prefix}{name}" for name in ("weight", "ids")]
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix) and key not in names]
        if names[0] not in state_dict:
            missing_keys.append(names[0])
            return
        rows = _array(state_dict[names[0]])
        ids = state_dict[names[1]].cpu().numpy() if names[1] in state_dict else np.arange(len(rows))
        try:
            self.table.load(_keys_of(ids), rows)
        except UsageError as error:
            error_msgs.append(str(error))

    def _fetched(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """Return the distinct rows, and the places of the ids among them."""
        if not (self.training and torch.is_grad_enabled()):
            found = self.table.read(_flat(ids))
            return torch.from_numpy(found.rows), _places(found, ids)
        if self._ahead:
            found = self._ahead.popleft()
            if not np.array_equal(found.keys[found.places], _flat(ids)):
                raise UsageError(
                    f"{self.table}: forward has other ids than the mini-batch that was prefetched"
                )
        else:
            found = self.table.fetch(_flat(ids))
        rows = torch.from_numpy(found.rows).requires_grad_()

        def push(leaf: Tensor) -> None:
            assert leaf.grad is not None
            found.push(leaf.grad.numpy())
            leaf.grad = None

        rows.register_post_accumulate_grad_hook(push)
        return rows, _places(found, ids)


class Embedding(_Rows):
    """Rows of ids, as `torch.nn.Embedding`; ids are any integers from 0, and `forward` takes a tensor of any shape.

    In training each `forward` is followed by one `backward`, which pushes the gradients; `eval()` and
    `torch.no_grad()` only read.

    Args:
        vector: its rows have the vector's width and dtype; its update takes the steps.
        consistency: as of `mpips.embedding.Embedding`.

    >>> from mpips import VectorSpec, simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         items = Embedding(self.context.vectors["items"])
    ...         items.begin()
    ...         for ids in items.ahead([torch.tensor([7, 3, 7])], lambda ids: ids):
    ...             items(ids).sum().backward()
    ...         return items.eval()(torch.tensor([3, 7, 8])).tolist()
    >>> def schedule(cluster):
    ...     sgd = {"rate": 0.5}
    ...     cluster.create_vector(VectorSpec("items", "float32", 2, update="sgd", settings=sgd, init=1.0))
    ...     return cluster.workers.call("train")[0]
    >>> simulate(schedule, Worker)
    [[0.5, 0.5], [0.0, 0.0], [1.0, 1.0]]
    """

    def forward(self, ids: Ids) -> Tensor:
        """Return the row of each id: `[*ids.shape, width]`."""
        rows, places = self._fetched(ids)
        return functional.embedding(places, rows)


class EmbeddingBag(_Rows):
    """Sums or means of the rows of bags of ids, as `torch.nn.EmbeddingBag`.

    Args:
        vector: as of `Embedding`.
        mode: "sum" or "mean".
        consistency: as of `Embedding`.

    >>> from mpips import VectorSpec, simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         words = EmbeddingBag(self.context.vectors["words"], "sum")
    ...         ids = torch.tensor([[7, 3], [7, 7]])
    ...         words.prefetch(ids)
    ...         words(ids).sum().backward()
    ...         return words.eval()(torch.tensor([[3, 7]])).tolist()
    >>> def schedule(cluster):
    ...     sgd = {"rate": 0.5}
    ...     cluster.create_vector(VectorSpec("words", "float32", 1, update="sgd", settings=sgd, init=1.0))
    ...     return cluster.workers.call("train")[0]
    >>> simulate(schedule, Worker)
    [[0.0]]
    """

    def __init__(
        self,
        vector: Vector,
        mode: Literal["sum", "mean"] = "mean",
        consistency: Consistency = sequential,
    ) -> None:
        super().__init__(vector, consistency)
        self.mode = mode

    def forward(self, ids: Ids, offsets: Tensor | None = None) -> Tensor:
        """Return the pooled row of each bag, [bags, width].

        Args:
            ids: [bags, ids per bag], or [n] with `offsets`.
            offsets: where each bag begins in `ids`, [bags].
        """
        rows, places = self._fetched(ids)
        return functional.embedding_bag(places, rows, offsets, mode=self.mode)


class Dense(nn.Module):
    """A module whose parameters are on the servers, and stepped by all workers in rounds.

    All workers make the module with the same seed. Parameters are float32, and their gradients are summed over the
    workers, so a loss that is a mean over a mini-batch is scaled by 1 / workers (`scale`).

    Args:
        vector: made of `mpips.embedding.Dense.spec(name, parameters_of(module))`.
        module: the layers.
        scale: a factor of the gradients.
        consistency: as of `mpips.embedding.Dense`.

    >>> from mpips import simulate
    >>> from mpips.embedding import Dense as Parameters
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         layer = torch.nn.Linear(2, 1)
    ...         torch.nn.init.ones_(layer.weight)
    ...         torch.nn.init.zeros_(layer.bias)
    ...         tower = Dense(self.context.vectors["tower"], layer)
    ...         tower.begin()
    ...         tower(torch.tensor([[1.0, 3.0]])).sum().backward()
    ...         tower.step()
    ...         state = tower.state_dict()
    ...         tower.load_state_dict(state)
    ...         return tower.refresh().module.weight.tolist()
    >>> def schedule(cluster):
    ...     cluster.create_vector(Parameters.spec("tower", 3, "sgd", {"rate": 0.5}))
    ...     return cluster.workers.call("train")[0]
    >>> simulate(schedule, Worker)
    [[0.5, -0.5]]
    """

    def __init__(
        self,
        vector: Vector,
        module: nn.Module,
        scale: float = 1.0,
        consistency: Consistency = sequential,
    ) -> None:
        super().__init__()
        if any(isinstance(getattr(each, "_on_servers", None), Dense) for each in module.modules()):
            raise UsageError(
                f"dense parameters {vector.spec.name}: the module's parameters are on the servers already, which hold"
                " what they differ by from their first values; make one Dense of it, and begin() each call with it"
            )
        if buffers := [name for name, _ in module.named_buffers()]:
            raise UsageError(
                f"dense parameters {vector.spec.name}: the module has buffers ({', '.join(buffers)}), which would"
                " stay in each worker: leave out layers such as BatchNorm, or use LayerNorm"
            )
        self.module, self.scale = module, scale
        self._parameters_on_servers = dense.Dense(vector, _flat_values(module), consistency)
        # Not as a submodule, which the wrapped modules would then have.
        for each in module.modules():
            object.__setattr__(each, "_on_servers", self)
        self._fresh = False
        self._wrong: list[list[str]] = []
        # Also where this is a part of the module whose state is loaded.
        self.register_load_state_dict_post_hook(Dense._loaded)

    def begin(self, first: int = 0) -> Dense:
        """Take the parameters as the servers hold them, and number the rounds from `first`, the same in all workers.

        A call that trains begins with it: after a resume or a recovery the servers hold other parameters.
        """
        self._parameters_on_servers.begin(first)
        self._fresh = False
        return self.refresh()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute by the module, with the parameters of the steps that the consistency model names."""
        self.refresh()
        return self.module(*args, **kwargs)

    def refresh(self) -> Dense:
        """Take the parameters from the servers; `forward` does it, too."""
        if not self._fresh:
            values, at = torch.from_numpy(self._parameters_on_servers.values), 0
            with torch.no_grad():
                for parameter in self.module.parameters():
                    parameter.copy_(values[at : at + parameter.numel()].view_as(parameter))
                    at += parameter.numel()
            self._fresh = True
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's parameters as the servers hold them."""
        self.refresh()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load parameters into the module, as `torch.nn.Module`, and set them at the servers.

        The state is one of this class, or of the module that it was made of. One worker loads it, or all do, while none
        trains; see `mpips.embedding.Dense.load`. A module that has this one loads a state with its parameters, too.
        """
        if any(name.startswith("module.") for name in state_dict):
            return super().load_state_dict(state_dict, *args, **kwargs)
        self.refresh()
        # If the state does not fit, the parameters are those of the servers again.
        self._fresh = False
        found = self.module.load_state_dict(state_dict, *args, **kwargs)
        self._set()
        return found

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the parameters, of which the state may have some. A hook sets them when they are loaded."""
        self.refresh()
        self._fresh = False
        self._wrong = [error_msgs, missing_keys, unexpected_keys] if strict else [error_msgs]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _loaded(self, _: Any) -> None:
        """Set the parameters that were loaded, unless the state does not fit."""
        if not any(self._wrong):
            self._set()

    def _set(self) -> None:
        """Set the module's parameters at the servers."""
        self._parameters_on_servers.load(_flat_values(self.module))
        self._fresh = False
        self.refresh()

    def step(self) -> Task:
        """Push the gradients in a round with all workers, and clear them."""
        gradients = []
        for parameter in self.module.parameters():
            found = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            gradients.append(_array(found).reshape(-1) * np.float32(self.scale))
            parameter.grad = None
        self._fresh = False
        return self._parameters_on_servers.step(np.concatenate(gradients))


def parameters_of(module: nn.Module) -> int:
    """Return the number of a module's parameters.

    >>> parameters_of(torch.nn.Linear(2, 1))
    3
    """
    return sum(parameter.numel() for parameter in module.parameters())


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array, bfloat16 as float32: numpy does not have it."""
    held = tensor.detach().cpu()
    array: np.ndarray[Any, Any] = (held.float() if held.dtype == torch.bfloat16 else held).numpy()
    return array


def _flat_values(module: nn.Module) -> np.ndarray[Any, Any]:
    found = [_array(parameter).reshape(-1) for parameter in module.parameters()]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def _flat(ids: Ids) -> np.ndarray[Any, Any]:
    check_unmasked(ids, "ids")
    return np.asarray(ids).reshape(-1)


def _keys_of(ids: NDArray[Any]) -> KeyArray:
    """Return the keys of the ids of a `state_dict`."""
    keys: KeyArray = np.ascontiguousarray(ids, np.int64).view(np.uint64)
    return from_pairs(keys) if keys.ndim == 2 else keys


def _places(found: table.Fetched, ids: Ids) -> Tensor:
    return torch.from_numpy(found.places).view(tuple(ids.shape))
