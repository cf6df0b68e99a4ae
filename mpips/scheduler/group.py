"""Groups: the receivers of a scheduler's call, and their replies (paper, section 3.4: tasks of the scheduler)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import UsageError
from mpips.files.json_values import check_names
from mpips.keys import KeyArray
from mpips.process.program_line import innermost
from mpips.tasks.task import Task
from mpips.transport.message import Command, Kind, Message
from mpips.transport.sendable import check_arrays
from mpips.worker.vector import Vector

Arrays = tuple[KeyArray, NDArray[Any]]


class Group:
    """Receivers of calls: the workers, in worker order, or the shards, in key order.

    `addresses` are ranks, or ~shard for shards; `workers_since` is the epoch of the caller's set of workers.

    >>> from mpips import simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         self.index = context.index
    ...
    ...     def squared(self, of):
    ...         return {"index": self.index, "is": of * of}
    >>> def schedule(cluster):
    ...     assert isinstance(cluster.workers, Group)
    ...     return cluster.workers.call("squared", each=[{"of": 3}, {"of": 4}])
    >>> simulate(schedule, Worker, workers=2)
    [{'index': 0, 'is': 9}, {'index': 1, 'is': 16}]
    """

    def __init__(self, node: Node, addresses: Sequence[int], workers_since: int = 0) -> None:
        self.node, self.addresses, self.workers_since = node, tuple(addresses), workers_since

    def __len__(self) -> int:
        return len(self.addresses)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Return the ranks that the addresses mean now."""
        return tuple([self.node.view.rank_of(address) for address in self.addresses])

    def start(
        self,
        function: str,
        args: dict[str, Any] | None = None,
        *,
        each: Sequence[dict[str, Any]] | None = None,
        only: Sequence[int] | None = None,
        vector: Vector | None = None,
        keys: KeyArray | None = None,
        values: NDArray[Any] | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Call a function on all members of the group, or on those at the indices `only`.

        `args` go to all, `each[i]` to the i-th of them in addition: JSON-able tables; `keys` and `values` travel as
        arrays. On shards the function works on one `vector`. The call starts nowhere before every task of `after` is
        finished everywhere. The task's result is the list of replies (`Message`), in the group's order.

        Raises:
            UsageError: `each` has not one table for each of them, or a table has a key that is not a string; `keys` or
                `values` are no arrays that can be sent.
        """
        check_arrays(f"call of {function}", keys, values)
        self.node.step(self.node.tasks.issued)
        ranks = self.addresses if only is None else tuple([self.addresses[i] for i in only])
        if each is not None and len(each) != len(ranks):
            raise UsageError(f"call of {function}: each has {len(each)} tables for {len(ranks)} ranks")
        replies: list[Message | None] = [None] * len(ranks)
        parts = []
        for position, rank in enumerate(ranks):
            own = dict(args or {})
            if each is not None:
                own.update(each[position])
            check_names(own, f"the arguments of {function}")
            message = Message(Kind.REQUEST, Command.CALL, keys=keys, values=values)
            message.namespace = vector.number if vector is not None else 0
            message.meta = {"call": function, "args": own, "workers_since": self.workers_since}
            parts.append((rank, message))
        task = self.node.tasks.submit(parts, replies.__setitem__, after, whole=True)
        task.values, task.what, task.location = replies, f"call of {function}", innermost(sys._getframe(1))
        return task

    def call(self, function: str, args: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
        """Call and wait; return what each member returned."""
        return [reply.meta for reply in self.node.wait(self.start(function, args, **options))]

    def gather(self, function: str, args: dict[str, Any] | None = None, **options: Any) -> list[Arrays]:
        """Call and wait; return the (keys, rows) of each member."""
        replies = self.node.wait(self.start(function, args, **options))
        return [(reply.keys, reply.values) for reply in replies]

    def total(self, task: Task) -> NDArray[Any]:
        """Wait for a call; return the sum of the members' rows, added in their order.

        Raises:
            UsageError: a member has returned no rows, or they are of another shape or type than the first one's.
        """
        rows = [reply.values for reply in self.node.wait(task)]
        kinds = ["none" if each is None else f"{each.dtype} of shape {list(each.shape)}" for each in rows]
        if len(set(kinds)) != 1 or kinds == ["none"] * len(kinds):
            raise UsageError(
                f"{task.what}: the rows to add up are {', '.join(dict.fromkeys(kinds)) or 'none'}"
            )
        result: NDArray[Any] = rows[0].copy()
        for more in rows[1:]:
            result += more
        return result
