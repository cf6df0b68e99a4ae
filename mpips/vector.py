"""Vectors: a namespace of parameters, as a worker sees it (paper, sections 3.1 and 3.2).

A vector is a sparse vector or matrix over ordered 64-bit keys; a key that nobody pushed reads as 0. Push and pull name
a sorted list of keys, or a dense range of them; either way the request goes to whoever owns the keys, in one part per
server where it can, and every part is a view of the caller's arrays unless its keys interleave with another server's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError
from mpips.kernel import kernel
from mpips.membership import View
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


class Piece(NamedTuple):
    """What one server owns of a range: its rank, the sub-ranges in key order, their first and last keys."""

    server: int
    ranges: tuple[KeyRange, ...]
    firsts: NDArray[np.uint64]
    lasts: NDArray[np.uint64]


def pieces(view: View, extent: int, within: KeyRange) -> tuple[Piece, ...]:
    """Say who owns which part of `within`, servers in the order of their first sub-range."""
    owned: dict[int, list[KeyRange]] = {}
    for part, server in view.ring.owners(within, extent):
        owned.setdefault(server, []).append(part)
    return tuple(
        Piece(
            server,
            tuple(ranges),
            np.array([each.begin for each in ranges], np.uint64),
            np.array([each.end - 1 for each in ranges], np.uint64),
        )
        for server, ranges in owned.items()
    )


class _Slice(NamedTuple):
    """Which of a request's keys go to one server: positions [begin, end) each."""

    server: int
    range: KeyRange
    at: tuple[tuple[int, int], ...]


class Vector:
    """A handle on one vector; `number` is its namespace. See the module.

    Rows are `[n, width]` arrays of the vector's dtype (`[n]` when the width is 1); an update may take rows of
    another width or type, and answer a `push_pull` with rows of its own.
    """

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        self._all = KeyRange(0, spec.extent)
        self._owners: dict[KeyRange, tuple[Piece, ...]] = {}
        self._epoch = node.view.epoch

    def push(
        self,
        keys: Keys,
        rows: Rows,
        *,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        to: int | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Send rows for keys to the update of their servers; finished when it has been applied.

        In an aggregating vector each worker of the group pushes once per `round` and `within`, with the keys that
        it has there, if any; the update sees the sum, in worker order, and all these pushes finish together.
        All of them must issue the rounds in one order, and name them alike: by keys, or by range.
        `to` sends to that server's rank only, with the keys that it owns. Keys and rows must not be written before
        the task is finished: they are sent from where they stand.

        Raises:
            InputError: the keys are not sorted and unique, or there is not one row for each.
        """
        return self._submit(Command.PUSH, keys, rows, within, round, to, after, None)

    def pull(
        self,
        keys: Keys,
        *,
        out: Rows | None = None,
        within: KeyRange | None = None,
        to: int | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Ask for the rows of keys; the result is `out`, or a new array."""
        return self._submit(Command.PULL, keys, None, within, NO_ROUND, to, after, out)

    def push_pull(
        self,
        keys: Keys,
        rows: Rows,
        *,
        out: Rows | None = None,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        to: int | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Push, and get in the reply the rows that the update gives for these keys: one round trip for both."""
        return self._submit(Command.PUSH_PULL, keys, rows, within, round, to, after, out)

    def _submit(
        self,
        command: Command,
        keys: Keys,
        rows: Rows | None,
        within: KeyRange | None,
        round: int,
        to: int | None,
        after: Iterable[Task],
        out: Rows | None,
    ) -> Task:
        if not isinstance(keys, KeyRange):
            keys = self._listed(keys)
        n, within = self._check(keys, rows, within)
        if out is not None:
            self._check_out(out, n, command)
        everywhere = self.spec.aggregate and command is not Command.PULL
        slices = self._dense(keys) if isinstance(keys, KeyRange) else self._sparse(keys, within, everywhere)
        if to is not None:
            slices = [piece for piece in slices if piece.server == to]
        parts = []
        for piece in slices:
            message = Message(Kind.REQUEST, command, namespace=self.number, round=round, range=piece.range)
            message.epoch = self.node.view.epoch  # that by which it was cut; a later view refuses it
            if not isinstance(keys, KeyRange):
                message.keys = _take(keys, piece.at)
            if rows is not None:
                message.values = _take(rows, piece.at)
            parts.append((piece.server, message))
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

    def _pieces(self, within: KeyRange) -> tuple[Piece, ...]:
        """`pieces`, remembered while the view holds: an algorithm asks for the same blocks again and again."""
        view = self.node.view
        if view.epoch != self._epoch or len(self._owners) > 8192:
            self._owners.clear()
            self._epoch = view.epoch
        found = self._owners.get(within)
        if found is None:
            found = self._owners[within] = pieces(view, self.spec.extent, within)
        return found

    def _dense(self, keys: KeyRange) -> list[_Slice]:
        """One part per owned sub-range, so that every part is contiguous."""
        return [
            _Slice(piece.server, part, ((part.begin - keys.begin, part.end - keys.begin),))
            for piece in self._pieces(keys)
            for part in piece.ranges
        ]

    def _sparse(self, keys: NDArray[np.uint64], within: KeyRange, everywhere: bool) -> list[_Slice]:
        """One part per server; servers that own none of the keys are left out unless `everywhere`."""
        owners = self._pieces(within)
        if len(owners) == 1:
            return [_Slice(owners[0].server, within, ((0, len(keys)),))] if len(keys) or everywhere else []
        slices = []
        for piece in owners:
            begins = np.searchsorted(keys, piece.firsts, "left").tolist()
            ends = np.searchsorted(keys, piece.lasts, "right").tolist()
            at = tuple((b, e) for b, e in zip(begins, ends, strict=True) if b < e)
            if at or everywhere:
                slices.append(_Slice(piece.server, within, at))
        return slices


class _Gather:
    """Puts the rows of each reply where the request's keys are."""

    def __init__(self, n: int, slices: list[_Slice], out: Rows | None) -> None:
        self._n, self._slices, self._out = n, slices, out
        self.task: Task | None = None

    def __call__(self, part: int, reply: Message) -> None:
        assert self.task is not None
        rows, slices = reply.values, self._slices
        if rows is None or (self._n and not slices[part].at):
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
        flat = rows[:, 0] if out.ndim == 1 else rows
        start = 0
        for begin, end in slices[part].at:
            out[begin:end] = flat[start : start + end - begin]
            start += end - begin

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


def _take(rows: NDArray[Any], at: tuple[tuple[int, int], ...]) -> NDArray[Any]:
    if len(at) == 1:
        return rows[at[0][0] : at[0][1]]
    if not at:
        return rows[:0]
    return np.concatenate([rows[begin:end] for begin, end in at])
