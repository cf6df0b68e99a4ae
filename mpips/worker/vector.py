"""Vectors: a namespace of parameters, as a worker sees it (paper, sections 3.1 and 3.2).

A vector is a sparse vector or matrix over ordered keys of 64 or 128 bits (`mpips.keys`); a key that was never pushed
reads as its initial value, 0 unless the specification says otherwise (`VectorSpec.init`). Push and pull take a sorted
list of keys, or a range of 64-bit ones; either way the request goes to the primaries of the keys' shards, one message
per shard, and every message is a view of the caller's arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from mpips.calls import BuiltInCall
from mpips.cluster.node import Node
from mpips.cluster.observer import Operation
from mpips.errors import UsageError, WorkerLost
from mpips.keys import KeyArray, check_unmasked
from mpips.process.program_line import caller, innermost
from mpips.ranges import KeyRange
from mpips.storage.updates import VectorSpec, update_named
from mpips.tasks.task import Task
from mpips.transport.message import NO_ROUND, Command, Kind, Message
from mpips.worker.export import export
from mpips.worker.key_list import KeyList, Keys, Planner
from mpips.worker.places import Lookup, Places, places_of
from mpips.worker.plan import Plan
from mpips.worker.request import Request, RequestMaker, Rows

MOST_QUEUED, MOST_BYTES = 1 << 10, 1 << 30
"""Limits at which a program has to wait: parts queued behind unanswered ones, and bytes of rows of unfinished tasks."""


class Vector:
    """A handle on one vector; `number` is its namespace. See the module.

    Rows are `[n, width]` arrays of the vector's dtype (`[n]` when the width is 1); an update may take rows of another
    width or type, and answer a `push_pull` with rows of its own.

    >>> import numpy as np
    >>> from mpips import VectorSpec, simulate
    >>> def schedule(cluster):
    ...     w = cluster.create_vector(VectorSpec("w", width=2))
    ...     pushed = w.push(np.array([3, 8], np.uint64), np.ones((2, 2)))
    ...     assert isinstance(w, Vector)
    ...     return w.pull(np.array([8, 9], np.uint64), after=[pushed]).result().tolist()
    >>> simulate(schedule, worker=lambda context: None)
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        node.specs[number] = spec
        self._planner, self._maker = Planner(self, node), RequestMaker(node, spec, number)
        row = update_named(spec.update).push_row(spec)
        self._takes, self._width, self._dims = np.dtype(row.dtype), row.width, int(row.width < 2)
        """The type and width (0: any) of pushed rows, and their usual number of dimensions."""
        self._titles = {
            command: f"{command.name.lower()} of vector {spec.name}"
            for command in (Command.PUSH, Command.PULL, Command.PUSH_PULL)
        }

    def key_list(self, keys: KeyArray, within: KeyRange | None = None) -> KeyList:
        """Check, partition and sign keys once for repeated use; `within` as in later requests.

        Raises:
            UsageError: they are not sorted and unique, or not within `within`.
        """
        return self._planner.key_list(keys, within)

    def push(
        self,
        keys: Keys,
        rows: Rows,
        *,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        after: Iterable[Task] = (),
    ) -> Task:
        """Send rows for keys to the update on their servers; the task is finished when the update was applied.

        In an aggregating vector each worker of the group pushes once per `round` and `within`, with its keys there, if
        any; the update gets the sum, in worker order, and all these pushes finish together. All workers must issue the
        rounds in the same order, and either all by keys or all by range. The calls that push a round must be
        outstanding at the same time, since a call ends when its pushes have been applied. Keys and rows must not be
        written before the task is finished: they are sent without a copy.

        Raises:
            UsageError: the keys are not sorted and unique, there is not one row for each, the rows are not of the type
                and width that the update takes, or an aggregating vector is given no round.
            WorkerLost: the set of workers has changed since the present call began.
        """
        return self._submit(Command.PUSH, keys, rows, within, round, after, None)

    def pull(
        self,
        keys: Keys,
        *,
        out: Rows | None = None,
        within: KeyRange | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Request the rows of keys; the result is `out`, or a new array."""
        return self._submit(Command.PULL, keys, None, within, NO_ROUND, after, out)

    def push_pull(
        self,
        keys: Keys,
        rows: Rows,
        *,
        out: Rows | None = None,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        after: Iterable[Task] = (),
        exact: bool = False,
    ) -> Task:
        """Push, and get in the reply the rows that the update returns for these keys: one round trip for both.

        In an aggregating vector the task may finish before all copies of the shard have the round; all pushes of a
        worker's call are on all copies when the call has returned. Rounding filters do not change rows that are marked
        `exact`.
        """
        return self._submit(Command.PUSH_PULL, keys, rows, within, round, after, out, exact)

    def push_wait(
        self, keys: Keys, rows: Rows, *, within: KeyRange | None = None, round: int = NO_ROUND
    ) -> None:
        """Push as `push`, and wait until the update was applied; raises as `push` and `Task.result`."""
        self._submit(Command.PUSH, keys, rows, within, round, (), None).result()

    def pull_wait(self, keys: Keys, *, out: Rows | None = None, within: KeyRange | None = None) -> Rows:
        """Pull as `pull`, and wait for the rows: `out`, or a new array; raises as `pull` and `Task.result`.

        >>> import numpy as np
        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w, keys = cluster.create_vector(VectorSpec("w")), np.array([3, 8], np.uint64)
        ...     w.push_wait(keys, np.ones(2))
        ...     return w.pull_wait(keys).tolist()
        >>> simulate(schedule, worker=lambda context: None)
        [1.0, 1.0]
        """
        found: Rows = self._submit(Command.PULL, keys, None, within, NO_ROUND, (), out).result()
        return found

    def announce(self, keys: Keys, *, within: KeyRange | None = None) -> None:
        """Announce keys that are used soon, such as those of the next mini-batch; `keys` and `within` as of `pull`.

        Servers whose rows are larger than memory (`[store] memory`) read these from disk while the caller goes on.
        There is no answer, and no effect on results; with all rows in memory nothing is sent. `keys` may be changed at
        once.

        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", init=1.0))
        ...     w.announce(np.array([3, 8], np.uint64))
        ...     return w.pull_wait(np.array([3, 8], np.uint64)).tolist()
        >>> simulate(schedule, worker=lambda context: None)
        [1.0, 1.0]
        """
        node = self.node
        if not node.announces:
            return
        plan = self._planner.plan(keys, within, False, Command.PULL)
        for address, piece in zip(plan.addresses, plan.slices, strict=True):
            message = Message(Kind.CONTROL, Command.ANNOUNCE, shard=piece.shard, range=piece.range)
            message.namespace = self.number
            if plan.keys is not None:
                # Nobody waits for this message, so the caller may change its keys while it is sent.
                message.keys = plan.keys[piece.begin : piece.end].copy()
            node.outbox.send(node.view.rank_of(address), message)

    def start_lookup(self, ids: ArrayLike, *, after: Iterable[Task] = ()) -> Lookup:
        """Begin a `lookup`, such as of the next mini-batch; its `result()` waits for the rows.

        Its `pull.result()` are the rows of the distinct ids, `where.keys`, and `where.places` says which is whose: for
        a kernel that adds up gradients itself, and `push`.

        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", init=1.0))
        ...     following = w.start_lookup([7, 3, 7])
        ...     rows, where = following.result()
        ...     return rows.tolist()
        >>> simulate(schedule, worker=lambda context: None)
        [1.0, 1.0, 1.0]
        """
        where = places_of(ids, self.spec.key_bits, self.spec.name)
        return Lookup(where, self.pull(where.keys, after=after))

    def lookup(self, ids: ArrayLike, *, after: Iterable[Task] = ()) -> tuple[Rows, Places]:
        """Pull the rows of ids in any order and with repeats, such as those of a mini-batch, and wait for them.

        Args:
            ids: integers from 0, [n]; of a vector with 128-bit keys KEY128[n] or u8[n, 2].
            after: as of `pull`.

        Returns:
            The row of each id, [n, width] (or [n] if the width is 1), and the places of the ids, for `push_grad`.

        Raises:
            UsageError: the ids are not of this form.

        >>> import numpy as np
        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", update="sgd", settings={"rate": 0.5}, init=1.0))
        ...     rows, where = w.lookup([7, 3, 7])
        ...     w.push_grad(where, np.array([1.0, 2.0, 3.0])).result()
        ...     return rows.tolist(), w.lookup([3, 7])[0].tolist()
        >>> simulate(schedule, worker=lambda context: None)
        ([1.0, 1.0, 1.0], [0.0, -1.0])
        """
        return self.start_lookup(ids, after=after).result()

    def push_grad(
        self, where: Places, rows: ArrayLike, *, round: int = NO_ROUND, after: Iterable[Task] = ()
    ) -> Task:
        """Push rows for the ids that were looked up; those of an id that comes several times are summed first.

        Args:
            where: the places from `lookup`.
            rows: one for each id, [n, width] (or [n]) of the type that the update takes, such as its gradient.
            round: as of `push`.
            after: as of `push`.

        Raises:
            UsageError: there is not one row for each id; further errors as of `push`.
        """
        check_unmasked(rows, f"vector {self.spec.name}: rows")
        given = np.asarray(rows)
        if given.ndim not in (1, 2) or len(given) != len(where.places):
            raise UsageError(
                f"vector {self.spec.name}: rows of shape {given.shape} for {len(where.places)} ids that were looked up"
            )
        return self.push(where.keys, where.summed(given), round=round, after=after)

    def export(self) -> Iterator[tuple[KeyArray, Rows]]:
        """Yield all rows in key order, (keys, rows) in chunks of bounded size, without rows of initial values.

        Pushes that are not finished may be in them or not.

        >>> import numpy as np
        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", width=2))
        ...     w.push_wait(np.array([3, 8], np.uint64), np.ones((2, 2)))
        ...     return [(keys.tolist(), rows.tolist()) for keys, rows in w.export()]
        >>> simulate(schedule, worker=lambda context: None)
        [([3, 8], [[1.0, 1.0], [1.0, 1.0]])]
        """
        return export(self.node, self.spec, self.number)

    def set_rows(self, keys: Keys, rows: Rows, *, after: Iterable[Task] = ()) -> Task:
        """Set the rows of keys, whatever the update does; the task is finished when all copies have them.

        The update's state of these rows, such as AdaGrad's sums, is that of new rows. Other rows stay.

        Args:
            keys: sorted and unique, [n], or a range of n keys.
            rows: [n, width] of the vector's dtype ([n] for width 1).
            after: as of `push`.

        Raises:
            UsageError: as of `push`.
            RemoteError: pushes of a round are under way.

        >>> import numpy as np
        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", update="sgd"))
        ...     w.set_rows(np.array([3, 8], np.uint64), np.array([0.5, 2.0])).result()
        ...     return w.pull_wait(np.array([3, 5, 8], np.uint64)).tolist()
        >>> simulate(schedule, worker=lambda context: None)
        [0.5, 0.0, 2.0]
        """
        check_unmasked(rows, f"vector {self.spec.name}: rows")
        given, width = np.asarray(rows), self.spec.width
        plan = self._planner.plan(keys, None, False, Command.CALL)
        if given.dtype != self.spec.dtype or given.shape not in (
            (plan.n, width),
            (plan.n,) * int(width == 1),
        ):
            raise UsageError(
                f"vector {self.spec.name}: rows of {given.dtype} of shape {given.shape} to set, expected "
                f"{self.spec.dtype} of ({plan.n}, {width})"
            )
        listed = np.arange(*keys, dtype=np.uint64) if isinstance(keys, KeyRange) else plan.keys
        assert listed is not None
        given, parts = np.ascontiguousarray(given).reshape(plan.n, width), []
        for piece, address in zip(plan.slices, plan.addresses, strict=True):
            mine = slice(piece.begin, piece.end)
            message = Message(Kind.REQUEST, Command.CALL, namespace=self.number, range=piece.range)
            message.keys, message.values, message.exact = listed[mine], given[mine], True
            message.meta = {"call": BuiltInCall.SET_ROWS, "args": {"number": self.number}}
            parts.append((address, message))
        task = self.node.tasks.submit(parts, None, after)
        task.what, task.location = f"set rows of vector {self.spec.name}", innermost(sys._getframe())
        return task

    def flush(self, *, round: int = NO_ROUND, after: Iterable[Task] = ()) -> Task:
        """Push the parts of this vector's pushes that filters have held back; finished when they have been applied.

        In an aggregating vector it is a push of the `round`, in which every worker takes part.
        """
        if self.spec.aggregate:
            self._check_workers()
        parts: list[tuple[int, Message]] = []
        if self.spec.aggregate or self.node.codec.pushes.dropping:
            none, plan = np.empty((0, self.spec.width), self.spec.dtype), self._planner.plan_nothing()
            request = Request(self._maker, Command.PUSH, plan, none, round, None)
            parts = [(address, request.make(number)) for number, address in enumerate(plan.addresses)]
        for _, message in parts:
            message.flush = True
        task = self.node.tasks.submit(parts, None, after)
        task.what, task.location = f"flush of vector {self.spec.name}", innermost(sys._getframe())
        return task

    def _check_workers(self) -> None:
        """Raise WorkerLost if the set of workers has changed since the present call began."""
        view = self.node.view
        if self.node.workers_since < view.workers_since:
            lost = ", ".join(f"rank {loss.rank} ({loss.cause})" for loss in view.losses) or "none"
            raise WorkerLost(
                f"vector {self.spec.name}: the set of workers has changed in epoch {view.workers_since}, after "
                f"the present call began (epoch {self.node.workers_since}): workers are now ranks "
                f"{', '.join(map(str, view.workers))}; "
                f"lost ranks: {lost}; the scheduler's program can call cluster.regroup() and repeat the step"
            )

    def _submit(
        self,
        command: Command,
        keys: Keys,
        rows: Rows | None,
        within: KeyRange | None,
        round: int,
        after: Iterable[Task],
        out: Rows | None,
        exact: bool = False,
    ) -> Task:
        tasks = self.node.tasks
        if self._is_much() and not self.node.polling:
            self.node.wait_until(lambda: not self._is_much(), "room for more requests")
        together = self.spec.aggregate and command is not Command.PULL
        if together:
            self._check_workers()
        plan = self._planner.plan(keys, within, together, command)
        if plan.keys is not None:
            key_bytes = plan.keys.nbytes
            self.node.savings.key_bytes += key_bytes
            if command is not Command.PUSH:
                self.node.savings.answered_keys += key_bytes
        if rows is not None:
            usual = type(rows) is np.ndarray and rows.dtype is self._takes
            any_width = not self._width and usual and rows.ndim == 2 and len(rows) == plan.n
            if not (usual and rows.shape == (plan.n,) * self._dims) and not any_width:
                rows = self._checked(rows, plan.n)
            if not rows.flags.c_contiguous:
                # Now, and once: a part that is sent again has the same rows.
                rows = rows.copy()
            if together and round == NO_ROUND:
                raise UsageError(
                    f"vector {self.spec.name} aggregates: a push must name its round, as in round=0"
                )
            if together and not (isinstance(round, int | np.integer) and 0 <= round < 2**63):
                raise UsageError(
                    f"vector {self.spec.name}: round {round!r} is not an integer of 0 to 2**63 - 1"
                )
        if out is not None:
            self._check_out(out, plan.n, command)
        request = Request(self._maker, command, plan, rows, round, out)
        if self.node.observers.issuing:
            after = tuple(after)
            self._observe(command, plan, rows, round, after)
        if not after and self.node.direct and tasks.direct and request.is_direct():
            task = request.task = tasks.ask(request)
            task.values, task.what, task.location = request.out, self._titles[command], caller()
            if rows is not None:
                tasks.count_bytes(task, rows.nbytes)
            for issued in self.node.observers.issued:
                issued(task)
            return task
        parts = [(address, request.make(number)) for number, address in enumerate(plan.addresses)]
        for _, message in parts:
            message.exact = exact
        task = tasks.submit(parts, None if command is Command.PUSH else request, after)
        task.what, task.location = self._titles[command], caller()
        if rows is not None:
            tasks.count_bytes(task, rows.nbytes)
        if command is not Command.PUSH:
            request.task = task
            if not parts:
                request.allocate(self.spec.width, np.dtype(self.spec.dtype))
            elif request.places is not None:
                task.values = request.out
        for issued in self.node.observers.issued:
            issued(task)
        return task

    def _observe(
        self, command: Command, plan: Plan, rows: Rows | None, round: int, after: tuple[Task, ...]
    ) -> None:
        """Pass an operation to the observers before it is sent, since this rank may be stopped while it is."""
        spec = self.spec
        decodable = spec.update == "add" and spec.dtype == "int64" and spec.width == 1
        pulls = command is not Command.PUSH
        op = Operation(spec.name, decodable, plan.keys, rows, pulls, round, after, tuple(plan.addresses))
        for issuing in self.node.observers.issuing:
            issuing(op)

    def _is_much(self) -> bool:
        """Return whether so much is unanswered that the program should wait before it sends more."""
        tasks = self.node.tasks
        return tasks.nbytes > MOST_BYTES or tasks.queued > MOST_QUEUED

    def _check_out(self, out: Rows, n: int, command: Command) -> None:
        width = self.spec.width
        shapes = {(n, width), (n,)} if width == 1 else {(n, width)}
        fits = out.shape in shapes and out.dtype == self.spec.dtype
        # The update may answer with rows of its own.
        if command is Command.PUSH_PULL:
            fits = out.ndim in (1, 2) and len(out) == n
        if not fits or not out.flags.writeable:
            raise UsageError(
                f"vector {self.spec.name}: out must be writable, {self.spec.dtype} of shape ({n}, {width}), "
                f"not {out.dtype} of {out.shape}"
            )

    def _checked(self, rows: Rows, n: int) -> Rows:
        """Return rows as an array; UsageError unless they are `n`, of the type and width that the update takes."""
        check_unmasked(rows, f"vector {self.spec.name}: rows")
        rows = np.asarray(rows)
        dtype, width = self._takes, self._width
        if rows.ndim and len(rows) != n:
            raise UsageError(f"vector {self.spec.name}: {len(rows)} rows for {n} keys")
        if rows.dtype != dtype:
            raise UsageError(
                f"vector {self.spec.name}: rows of {rows.dtype}, but its update {self.spec.update!r} takes {dtype}"
            )
        if rows.ndim not in (1, 2) or (width and rows.size != n * width):
            raise UsageError(
                f"vector {self.spec.name}: rows of shape {rows.shape}, but its update {self.spec.update!r} takes "
                f"({n}, {width or 'any'})"
            )
        return rows


class Vectors(dict[str, Vector]):
    """The vectors by name."""

    def __missing__(self, name: str) -> Vector:
        """Raise UsageError with the names that exist."""
        raise UsageError(f"there is no vector {name!r}; there are: {', '.join(sorted(self)) or 'none yet'}")
