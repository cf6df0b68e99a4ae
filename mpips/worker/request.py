"""Requests for the keys of a vector: a push, a pull or both, of one part for each shard (paper, sections 3.2 and 4.2).

A request creates the message of each part, or sends it on the client fast path if that can carry it. It copies the rows
of the replies to the places of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import UsageError
from mpips.ranges import KeyRange
from mpips.storage.updates import BUILT_IN, VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import CODES, NO_ROUND, NO_SIGNATURE, Command, Kind, Message, header_of
from mpips.transport.van import NO_KEYS
from mpips.worker.plan import Head, Plan

Rows = NDArray[Any]
MOST_HEADS = 1 << 10
"""Largest number of headers that a vector keeps for requests that list their keys; then they are cleared."""
MOST_SIGNATURES = 1 << 16
"""Largest number of signatures that a vector assumes to be cached at the servers; then they are cleared."""


class RequestMaker:
    """The common state of one vector's requests, and the key lists that the servers have cached."""

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        self.dtype = np.dtype(spec.dtype)
        self.kind = CODES[self.dtype]
        """The type code of the values in messages."""
        self.row_bytes = spec.width * self.dtype.itemsize
        # Other updates may take rows of their own, or answer with them.
        self.is_plain = spec.update in BUILT_IN
        # Shard and signature of lists that were sent there.
        self._sent: set[tuple[int, bytes]] = set()
        # Headers of requests that list their keys, by command, shard and range.
        self._heads: dict[tuple[Command, int, KeyRange], Head] = {}

    def head(self, request: Request, number: int) -> Head:
        """Return the header of a part that lists its keys, without the number of keys."""
        piece = request.plan.slices[number]
        name = request.command, piece.shard, piece.range
        found = self._heads.get(name)
        if found is None:
            if len(self._heads) >= MOST_HEADS:
                self._heads.clear()
            found = self._heads[name] = request.write_head(number, 0)
        return found

    def name(self, message: Message, plan: Plan, number: int) -> None:
        """Set the keys of a slice, or only their signature if the server has it."""
        keys, piece = plan.keys, plan.slices[number]
        assert keys is not None
        mine = keys if len(keys) == piece.end - piece.begin else keys[piece.begin : piece.end]
        signatures = plan.signatures if self.node.signs else None
        signature = signatures[number] if signatures is not None else NO_SIGNATURE
        message.signature = signature
        if signature == NO_SIGNATURE:
            message.keys = mine
            self.node.savings.sent_keys += mine.nbytes
        elif (piece.shard, signature) in self._sent:
            message.unsent_keys = mine
            plan.sent(number)
        else:
            message.keys = mine
            self.node.savings.sent_keys += mine.nbytes
            if len(self._sent) >= MOST_SIGNATURES:
                self._sent.clear()
            self._sent.add((piece.shard, signature))
            plan.sent(number)


class Request:
    """A push or a pull: creates its messages, and copies the rows of each reply to the places of its keys."""

    __slots__ = (
        "command", "fresh", "heads", "late", "maker", "out", "places", "plan", "raw", "raw_out", "round", "rows",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        maker: RequestMaker,
        command: Command,
        plan: Plan,
        rows: Rows | None,
        round: int,
        out: Rows | None,
    ) -> None:
        self.maker, self.command, self.plan = maker, command, plan
        self.rows, self.round, self.out = rows, round, out
        self.heads: list[Head] | None = None
        # The bytes of `rows` and `out`.
        self.raw: NDArray[np.uint8] | None = None
        self.raw_out: NDArray[np.uint8] | None = None
        # Rows of answers after a part was sent again to another server.
        self.late: dict[int, Rows] | None = None
        # Whether `out` was allocated here.
        self.fresh = False
        self.task: Task | None = None
        self.places: list[Rows] | None = None

    def is_direct(self) -> bool:
        """Return whether the request may take the client fast path, and prepare it for that."""
        maker, command, plan, rows = self.maker, self.command, self.plan, self.rows
        in_round = self.round != NO_ROUND
        # A push and pull at once is one part of a round.
        if not plan.addresses or (command is Command.PUSH_PULL and not in_round):
            return False
        if (in_round and not (maker.is_plain and maker.spec.aggregate)) or (
            command is not Command.PUSH and self.out is None and not maker.is_plain
        ):
            return False
        if not all(each is None or self._is_simple(each) for each in (rows, self.out)):
            return False
        self.heads = plan.heads.get(command)
        if self.heads is None:
            if plan.cached:
                self.heads = plan.heads[command] = [
                    self.write_head(number, piece.end - piece.begin)
                    for number, piece in enumerate(plan.slices)
                ]
            elif plan.signatures is None and maker.spec.key_bits == 64:
                self.heads = [maker.head(self, number) for number in range(len(plan.slices))]
            else:
                return False
        if command is not Command.PUSH and self.out is None:
            shape = (plan.n,) if maker.spec.width == 1 else (plan.n, maker.spec.width)
            room = maker.node.van.buffers(plan.n * maker.row_bytes)
            self.out = room.view(maker.dtype).reshape(shape)
            self.fresh = command is Command.PULL
        self.raw = None if rows is None else _raw(rows)
        self.raw_out = None if self.out is None else _raw(self.out)
        return True

    def _is_simple(self, rows: Rows) -> bool:
        """Return whether an array has the rows of all keys, as they are sent."""
        maker = self.maker
        fits = rows.dtype == maker.dtype and rows.size == self.plan.n * maker.spec.width
        return fits and bool(rows.flags.carray)

    def write_head(self, number: int, size: int) -> Head:
        """Write the header of a part with rows for `size` keys; the keys follow separately, or are cached."""
        maker, piece = self.maker, self.plan.slices[number]
        message = Message(
            Kind.REQUEST,
            self.command,
            maker.node.rank,
            maker.node.tasks.origin,
            piece.shard,
            namespace=maker.number,
            range=piece.range,
        )
        if self.plan.signatures is not None:
            message.signature = self.plan.signatures[number]
        if self.plan.keys is not None and message.signature == NO_SIGNATURE:
            # Listed, perhaps none.
            message.keys = self.plan.keys[:0]
        pushes = self.command is not Command.PULL
        head = header_of(message, size, maker.dtype, maker.spec.width) if pushes else header_of(message)
        return head, head.ctypes.data

    @property
    def addresses(self) -> Sequence[int]:
        """Return the receivers of the parts."""
        return self.plan.addresses

    def send(self, number: int, time: int, acked: int) -> int:
        """Send a part on the client fast path."""
        assert self.heads is not None
        maker, piece, keys, count = self.maker, self.plan.slices[number], NO_KEYS, 0
        node, size = maker.node, maker.row_bytes
        if not self.plan.cached:
            assert self.plan.keys is not None
            keys, count = self.plan.keys, piece.end - piece.begin
        slot = node.van.ask(
            node.view.rank_of(~piece.shard),
            self.heads[number][1],
            time,
            acked,
            self.raw,
            self.raw_out,
            piece.begin * size,
            (piece.end - piece.begin) * size,
            maker.kind,
            self.fresh,
            keys,
            piece.begin,
            count,
            self.round,
        )
        if slot >= 0:
            node.savings.sent_keys += 8 * count
        return slot

    def make(self, number: int) -> Message:
        """Create the message of a part."""
        plan = self.plan
        piece = plan.slices[number]
        message = Message(
            Kind.REQUEST,
            self.command,
            origin=self.maker.node.tasks.origin,
            namespace=self.maker.number,
            round=self.round,
            range=piece.range,
        )
        if plan.keys is not None:
            self.maker.name(message, plan, number)
        if self.rows is not None:
            message.values = self.rows if len(plan.slices) == 1 else self.rows[piece.begin : piece.end]
        elif self.fresh and self.task is not None:
            self._leave_room()
        elif self.out is not None:
            self._set_places(self.out)
            if self.places is not None:
                message.place = self.places[number]
        return message

    def _leave_room(self) -> None:
        """Use another array as the result: the server of the first attempt may still write into this one."""
        if self.late is None:
            self.late = {}
            assert self.task is not None
            self.task.then(self._put_together)

    def _put_together(self, task: Task) -> None:
        assert self.out is not None and self.late is not None
        result = task.values = self.out.copy()
        rows = result.reshape(self.plan.n, self.maker.spec.width)
        for part, values in self.late.items():
            piece = self.plan.slices[part]
            rows[piece.begin : piece.end] = values

    def _set_places(self, out: Rows) -> None:
        """Cut `out` into the rows of each slice."""
        if self.places is None and out.flags.c_contiguous:
            rows = out.reshape(self.plan.n, self.maker.spec.width)
            self.places = [rows[piece.begin : piece.end] for piece in self.plan.slices]

    def __call__(self, part: int, reply: Message) -> None:
        """Receive the rows of a part's reply; UsageError if `out` has another width."""
        rows, slices, n = reply.values, self.plan.slices, self.plan.n
        if self.command is Command.PUSH:
            return
        if self.late is not None and rows is not None:
            self.late[part] = rows
            return
        if self.command is Command.PULL and self.out is not None:
            self._set_places(self.out)
        if self.places is not None and rows is not None:
            place = self.places[part]
            if rows is not place:
                if rows.shape != place.shape:
                    raise UsageError(
                        f"rows of width {rows.shape[1]} do not fit into out of width {place.shape[1]}"
                    )
                place[...] = rows
            return
        assert self.task is not None
        if rows is None or (n and slices[part].begin == slices[part].end):
            # Without keys the update did not run, so the width of the rows is not its answer's.
            return
        if self.out is None and len(slices) == 1 and len(rows) == n:
            self.task.values = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        # Of empty answers the widest counts, in any order of arrival.
        if not n and self.out is None:
            if self.task.values is None or rows.shape[1] > self.task.values.shape[-1]:
                self.task.values = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        out = self.allocate(rows.shape[1], rows.dtype)
        if rows.shape[1] != (1 if out.ndim == 1 else out.shape[1]):
            raise UsageError(f"rows of width {rows.shape[1]} do not fit into out of shape {out.shape}")
        out[slices[part].begin : slices[part].end] = rows[:, 0] if out.ndim == 1 else rows

    def allocate(self, width: int, dtype: np.dtype[Any]) -> Rows:
        """Return the array of results, [n, width] ([n] for width 1) of `dtype`; zero where no server answers."""
        assert self.task is not None
        if self.task.values is None:
            shape = (self.plan.n,) if width == 1 else (self.plan.n, width)
            self.task.values = np.zeros(shape, dtype) if self.out is None else self.out
            if self.out is not None:
                self.out[...] = 0
        result: Rows = self.task.values
        return result


def _raw(rows: Rows) -> NDArray[np.uint8]:
    return (rows if rows.ndim == 1 else rows.reshape(-1)).view(np.uint8)
