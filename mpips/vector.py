"""Vectors: a namespace of parameters, as a worker sees it (paper, sections 3.1 and 3.2).

A vector is a sparse vector or matrix over ordered 64-bit keys; a key that nobody pushed reads as 0. Push and pull name
a sorted list of keys, or a dense range of them; either way the request goes to whoever holds the keys, in one part per
shard, and every part is a view of the caller's arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError, WorkerLost
from mpips.kernel import kernel
from mpips.message import NO_ROUND, Command, Kind, Message
from mpips.node import Node
from mpips.ranges import KeyRange
from mpips.task import Task
from mpips.update import VectorSpec

Keys = NDArray[np.uint64] | KeyRange
Rows = NDArray[Any]


@kernel("b1(u8[::1])")
def ascending(keys: NDArray[np.uint64]) -> bool:
    """Tell whether keys are sorted and unique."""
    for at in range(1, len(keys)):  # noqa: SIM110 (a kernel)
        if keys[at] <= keys[at - 1]:
            return False
    return True


class _Slice(NamedTuple):
    """What of a request goes to one shard: its part of the range, and positions [begin, end) among the keys."""

    shard: int
    range: KeyRange
    begin: int
    end: int


class Vector:
    """A handle on one vector; `number` is its namespace. See the module.

    Rows are `[n, width]` arrays of the vector's dtype (`[n]` when the width is 1); an update may take rows of
    another width or type, and answer a `push_pull` with rows of its own.
    """

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        self._all = KeyRange(0, spec.extent)
        self._cuts = node.view.ring.cuts(spec.extent)

    def push(
        self,
        keys: Keys,
        rows: Rows,
        *,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        after: Iterable[Task] = (),
    ) -> Task:
        """Send rows for keys to the update of their servers; finished when it has been applied.

        In an aggregating vector each worker of the group pushes once per `round` and `within`, with the keys that
        it has there, if any; the update sees the sum, in worker order, and all these pushes finish together.
        All of them must issue the rounds in one order, and name them alike: by keys, or by range.
        Keys and rows must not be written before the task is finished: they are sent from where they stand.

        Raises:
            InputError: the keys are not sorted and unique, or there is not one row for each.
            WorkerLost: the round's other workers are not those any more with whom the call at hand began.
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
        """Ask for the rows of keys; the result is `out`, or a new array."""
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
    ) -> Task:
        """Push, and get in the reply the rows that the update gives for these keys: one round trip for both.

        In an aggregating vector the rows may be there before all copies of their shard have the round, and the task is
        finished then; what a worker's call has pushed is with all of them when the call has returned.
        """
        return self._submit(Command.PUSH_PULL, keys, rows, within, round, after, out)

    def _submit(
        self,
        command: Command,
        keys: Keys,
        rows: Rows | None,
        within: KeyRange | None,
        round: int,
        after: Iterable[Task],
        out: Rows | None,
    ) -> Task:
        if not isinstance(keys, KeyRange):
            keys = self._listed(keys)
        n, within = self._check(keys, rows, within)
        if out is not None:
            self._check_out(out, n, command)
        together = self.spec.aggregate and command is not Command.PULL
        if together and self.node.crew < self.node.view.crew:
            raise WorkerLost("the workers have changed")
        slices = self._cut(keys, within, together)
        parts = []
        for piece in slices:
            message = Message(Kind.REQUEST, command, namespace=self.number, round=round, range=piece.range)
            if not isinstance(keys, KeyRange):
                message.keys = keys[piece.begin : piece.end]
            if rows is not None:
                message.values = rows[piece.begin : piece.end]
            parts.append((~piece.shard, message))
        if command is Command.PUSH:
            return self.node.tasks.submit(parts, None, after)
        gather = _Gather(n, slices, out)
        task = self.node.tasks.submit(parts, gather, after)
        gather.task = task
        if not parts:
            gather.allocate(self.spec.width, np.dtype(self.spec.dtype))
        return task

    def _check(self, keys: Keys, rows: Rows | None, within: KeyRange | None) -> tuple[int, KeyRange]:
        whole = self._all
        if isinstance(keys, KeyRange):
            n, within = keys.span, keys
            if keys.empty:
                raise InputError(f"vector {self.spec.name}: the range [{keys.begin}, {keys.end}) is empty")
        else:
            if not ascending(keys):
                raise InputError(f"vector {self.spec.name}: keys must be sorted and unique")
            n = len(keys)
            within = within or whole
            if n and (int(keys[0]) < within.begin or int(keys[-1]) >= within.end):
                raise InputError(
                    f"vector {self.spec.name}: keys {keys[0]} to {keys[-1]} are not all in "
                    f"[{within.begin}, {within.end})"
                )
        if within.begin < whole.begin or within.end > whole.end:
            raise InputError(f"vector {self.spec.name}: its keys end at {whole.end}, not {within.end}")
        if rows is not None and len(rows) != n:
            raise InputError(f"vector {self.spec.name}: {len(rows)} rows for {n} keys")
        return n, within

    def _listed(self, keys: NDArray[Any]) -> NDArray[np.uint64]:
        """Give keys as they travel: uint64, one-dimensional, contiguous, writable."""
        if isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1 and keys.flags.carray:
            return keys
        array = np.asarray(keys)
        whole_numbers = array.dtype.kind in "ui" or not array.size
        if array.ndim != 1 or not whole_numbers or (array.dtype.kind == "i" and (array < 0).any()):
            raise InputError(f"vector {self.spec.name}: keys must be one list of whole numbers from 0 on")
        return array.astype(np.uint64)

    def _check_out(self, out: Rows, n: int, command: Command) -> None:
        width = self.spec.width
        shapes = {(n, width), (n,)} if width == 1 else {(n, width)}
        fits = out.shape in shapes and out.dtype == self.spec.dtype
        if command is Command.PUSH_PULL:  # the update may answer in rows of its own
            fits = out.ndim in (1, 2) and len(out) == n
        if not fits or not out.flags.writeable:
            raise InputError(
                f"vector {self.spec.name}: out must be writable, {self.spec.dtype} of shape ({n}, {width}), "
                f"not {out.dtype} of {out.shape}"
            )

    def _cut(self, keys: Keys, within: KeyRange, everywhere: bool) -> list[_Slice]:
        """Cut a request by shard; shards of `within` that hold none of the keys are left out unless `everywhere`."""
        cuts = self._cuts
        first = int(cuts.searchsorted(np.uint64(within.begin), "right")) - 1
        last = int(cuts.searchsorted(np.uint64(within.end - 1), "right"))
        if last - first == 1:
            n = keys.span if isinstance(keys, KeyRange) else len(keys)
            return [_Slice(first, within, 0, n)] if n or everywhere else []
        inner = cuts[first + 1 : last]
        bounds = [within.begin, *inner.tolist(), within.end]
        if isinstance(keys, KeyRange):
            at = [bound - keys.begin for bound in bounds]
        else:
            at = [0, *keys.searchsorted(inner).tolist(), len(keys)]
        return [
            _Slice(first + i, KeyRange(bounds[i], bounds[i + 1]), at[i], at[i + 1])
            for i in range(last - first)
            if at[i] < at[i + 1] or (everywhere and bounds[i] < bounds[i + 1])
        ]


class _Gather:
    """Puts the rows of each reply where the request's keys are."""

    def __init__(self, n: int, slices: list[_Slice], out: Rows | None) -> None:
        self._n, self._slices, self._out = n, slices, out
        self.task: Task | None = None

    def __call__(self, part: int, reply: Message) -> None:
        assert self.task is not None
        rows, slices = reply.values, self._slices
        if rows is None or (self._n and slices[part].begin == slices[part].end):
            return  # where nobody had keys the update did not run, and the rows' width is not its answer's
        if self._out is None and len(slices) == 1 and len(rows) == self._n:
            self.task.result = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        if not self._n and self._out is None:  # of empty answers the widest counts, whichever comes first
            if self.task.result is None or rows.shape[1] > self.task.result.shape[-1]:
                self.task.result = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        out = self.allocate(rows.shape[1], rows.dtype)
        if rows.shape[1] != (1 if out.ndim == 1 else out.shape[1]):
            raise InputError(f"rows of width {rows.shape[1]} do not fit into out of shape {out.shape}")
        out[slices[part].begin : slices[part].end] = rows[:, 0] if out.ndim == 1 else rows

    def allocate(self, width: int, dtype: np.dtype[Any]) -> Rows:
        """Give the array of results, zero where no server answers."""
        assert self.task is not None
        if self.task.result is None:
            shape = (self._n,) if width == 1 else (self._n, width)
            self.task.result = np.zeros(shape, dtype) if self._out is None else self._out
            if self._out is not None:
                self._out[...] = 0
        result: Rows = self.task.result
        return result
