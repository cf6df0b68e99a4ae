"""Requests for the keys of a vector: a push, a pull or both, of one part for each shard (paper, sections 3.2 and 4.2).

A request creates the message of each part, or sends it on the client fast path if that can carry it. It copies the rows
of the replies to the places of their keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import UsageError
from mpips.storage.updates import VectorSpec, update_named
from mpips.tasks.task import Task
from mpips.transport.header import NO_VALUES
from mpips.transport.message import CODES, NO_ROUND, NO_SIGNATURE, Command, Kind, Message
from mpips.transport.van import NO_BYTES, NO_KEYS
from mpips.worker.plan import Plan

Rows = NDArray[Any]


class RowType(NamedTuple):
    """Type and width of rows."""

    dtype: np.dtype[Any]
    width: int

    @classmethod
    def of(cls, rows: Rows) -> RowType:
        """Return those of rows [n] or [n, width]."""
        return cls(rows.dtype, 1 if rows.ndim < 2 else rows.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of a row."""
        return self.width * self.dtype.itemsize

    def empty(self, room: NDArray[np.uint8], n: int) -> Rows:
        """Return `n` rows, [n] or [n, width], in memory of so many bytes, u8[bytes]."""
        return room.view(self.dtype).reshape((n,) if self.width == 1 else (n, self.width))


MOST_SIGNATURES = 1 << 16
"""Largest number of signatures that a vector assumes to be cached at the servers; then they are cleared."""


class RequestMaker:
    """The common state of one vector's requests, and the key lists that the servers have cached."""

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        update = update_named(spec.update)
        reply = update.reply_row(spec)
        takes = update.push_row(spec)
        self.takes = RowType(np.dtype(takes.dtype), takes.width)
        """The rows that are pushed; width 0: any."""
        self.pulled = RowType(np.dtype(spec.dtype), spec.width) if update.read is None else None
        """The rows that answer a pull; None if unknown."""
        # By width of the pushed rows: those of the last answer to a push; and what they are if none has come.
        self._answers: dict[int, RowType] = {}
        self._answer = RowType(np.dtype(reply.dtype), reply.width) if reply.width else None
        self.wire_type = CODES.get(self.takes.dtype, NO_VALUES)
        """That of pushed rows."""
        # Shard and signature of lists that were sent there.
        self._sent: set[tuple[int, bytes]] = set()

    def answer(self, width: int) -> RowType | None:
        """Return the rows that probably answer pushed rows of a width; None if unknown."""
        return self._answers.get(width, self._answer)

    def answered(self, width: int, answer: RowType) -> None:
        """Record what rows have answered pushed rows of a width."""
        self._answers[width] = answer

    def signature(self, plan: Plan, number: int) -> bytes:
        """Return the signature of a slice."""
        return NO_SIGNATURE if plan.signatures is None else plan.signatures[number]

    def is_known(self, plan: Plan, number: int) -> bool:
        """Return whether the server needs only the signature of a slice."""
        name = plan.slices[number].shard, self.signature(plan, number)
        return name in self._sent and name[1] != NO_SIGNATURE

    def sent(self, plan: Plan, number: int) -> None:
        """Record that a slice was sent: with its keys, or because the server has them."""
        name = plan.slices[number].shard, self.signature(plan, number)
        if name[1] == NO_SIGNATURE:
            return
        if name not in self._sent and len(self._sent) >= MOST_SIGNATURES:
            self._sent.clear()
        self._sent.add(name)
        plan.parts.sent(number)

    def name(self, message: Message, plan: Plan, number: int) -> None:
        """Set the keys of a slice, or only their signature if the server has it."""
        keys, piece = plan.keys, plan.slices[number]
        assert keys is not None
        mine = keys if len(keys) == piece.end - piece.begin else keys[piece.begin : piece.end]
        message.signature = self.signature(plan, number)
        if self.is_known(plan, number):
            message.unsent_keys = mine
        else:
            message.keys = mine
            self.node.savings.sent_keys += mine.nbytes
        self.sent(plan, number)


class Request:
    """A push or a pull: creates its messages, and copies the rows of each reply to the places of its keys."""

    __slots__ = (
        "code", "command", "expected", "fresh", "late", "maker", "out", "places", "plan", "raw", "raw_out", "round",
        "rows", "size", "task", "width",
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
        self.width = 0 if rows is None else maker.takes.width or RowType.of(rows).width
        """Values of a pushed row."""
        # For what rows `out` was allocated here, although an update may answer a push with others.
        self.expected: RowType | None = None
        # Bytes of an answer's row, and its wire type.
        self.size = self.code = 0
        # The bytes of `rows` and `out`.
        self.raw = self.raw_out = NO_BYTES
        # Rows of answers after a part was sent again to another server.
        self.late: dict[int, Rows] | None = None
        # Whether `out` was allocated here.
        self.fresh = False
        self.task: Task | None = None
        self.places: list[Rows] | None = None

    def is_direct(self) -> bool:
        """Return whether the request may take the client fast path, and prepare it for that."""
        maker, command, plan = self.maker, self.command, self.plan
        in_round = self.round != NO_ROUND
        # A push and pull at once is one part of a round.
        if not plan.addresses or (in_round and not maker.spec.aggregate):
            return False
        if command is Command.PUSH_PULL and not in_round:
            return False
        # The fast path lists keys of 64 bits only.
        if maker.spec.key_bits != 64 and plan.lists:
            return False
        if self.rows is not None and (maker.wire_type == NO_VALUES or not self.rows.flags.carray):
            return False
        if self.out is not None and not (self.out.dtype in CODES and self.out.flags.carray):
            return False
        answer = None
        if command is not Command.PUSH and self.out is None:
            if command is Command.PULL:
                answer = maker.pulled
            elif plan.n:
                answer = self.expected = maker.answer(self.width)
            if answer is None:
                return False
        if answer is not None:
            self.out = answer.empty(maker.node.van.buffers(plan.n * answer.nbytes), plan.n)
            self.fresh = command is Command.PULL
        if self.rows is not None:
            self.raw = _raw(self.rows)
        if self.out is not None:
            out = answer or RowType.of(self.out)
            self.raw_out, self.size, self.code = _raw(self.out), out.nbytes, CODES[out.dtype]
        return True

    @property
    def addresses(self) -> Sequence[int]:
        """Return the receivers of the parts."""
        return self.plan.addresses

    def send(self, time: int, acked: int) -> list[int]:
        """Send the parts on the client fast path; return their slots, none if it takes no part."""
        maker, plan, parts, keys = self.maker, self.plan, self.plan.parts, NO_KEYS
        node = maker.node
        if parts.unsent:
            for number in sorted(parts.unsent):
                if maker.is_known(plan, number):
                    maker.sent(plan, number)
        if plan.keys is not None and (plan.signatures is None or parts.unsent):
            keys = plan.keys
        slots = node.van.ask(
            parts.table, parts.located(node.view), keys, self.raw, self.raw_out, time, acked, self.round,
            int(self.command), node.tasks.origin, maker.number, maker.wire_type, self.width, self.code, self.size,
            self.fresh,
        )  # fmt: skip
        if keys is not NO_KEYS:
            self._count_keys(slots)
        return slots

    def _count_keys(self, slots: Sequence[int]) -> None:
        """Count the keys that were sent with parts, and record those that need not be sent again."""
        maker, plan = self.maker, self.plan
        if plan.signatures is None and slots and min(slots) >= 0:
            maker.node.savings.sent_keys += 8 * plan.n
            return
        for number, slot in enumerate(slots):
            if slot >= 0 and (plan.signatures is None or number in plan.parts.unsent):
                piece = plan.slices[number]
                maker.node.savings.sent_keys += 8 * (piece.end - piece.begin)
                maker.sent(plan, number)

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
        """Receive the rows of a part's reply; UsageError if they do not fit its keys, or `out` has another width."""
        rows, slices, n = reply.values, self.plan.slices, self.plan.n
        if self.command is Command.PUSH:
            return
        if rows is not None:
            self._check(rows, slices[part].end - slices[part].begin)
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
        if n and self.command is Command.PUSH_PULL:
            self._expect(part, RowType.of(rows))
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

    def _check(self, rows: Rows, count: int) -> None:
        """Raise UsageError unless rows of a reply are those of `count` keys; numpy would repeat a single one."""
        type_ = self.maker.pulled if self.command is Command.PULL else None
        if rows.ndim != 2 or len(rows) != count or (type_ is not None and RowType.of(rows) != type_):
            want = "" if type_ is None else f", {type_.dtype} of width {type_.width}"
            raise UsageError(
                f"vector {self.maker.spec.name}: a server's answer for {count} keys{want}, is {rows.dtype} of shape "
                f"{list(rows.shape)}: a filter of [filters] pull changes rows"
            )

    def _expect(self, part: int, found: RowType) -> None:
        """Record the rows of an answer; if others were expected, give up the array that was allocated for them."""
        self.maker.answered(self.width, found)
        if self.expected is None or self.expected == found:
            return
        task, slices = self.task, self.plan.slices
        assert task is not None
        waiting = {~slices[part].shard, *self.maker.node.tasks.unanswered(task)}
        if any(piece.begin < piece.end and ~piece.shard not in waiting for piece in slices):
            raise UsageError(
                f"rows of width {found.width} from one server, of {self.expected.width} from another"
            )
        self.maker.node.tasks.withdraw(task)
        task.values = self.out = self.expected = None

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
