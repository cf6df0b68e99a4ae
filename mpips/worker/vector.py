"""Vectors: a namespace of parameters, as a worker sees it (paper, sections 3.1 and 3.2).

A vector is a sparse vector or matrix over ordered 64-bit keys; a key that was never pushed reads as 0. Push and pull
take a sorted list of keys, or a dense range; either way the request goes to the primaries of the keys' shards, one
message per shard, and every message is a view of the caller's arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.errors import UsageError, WorkerLost
from mpips.jit.kernel import kernel
from mpips.process.program_line import caller, here
from mpips.ranges import KeyRange
from mpips.storage.updates import VectorSpec, update_named
from mpips.tasks.task import Task
from mpips.transport.key_cache import sign
from mpips.transport.message import CODES, NO_ROUND, NO_SIGNATURE, Command, Kind, Message, heading

Rows = NDArray[Any]
MOST_SIGNATURES = 1 << 16
"""Most signatures that a vector assumes to be cached at the servers; then it clears them."""
MOST_QUEUED, MOST_BYTES = 1 << 10, 1 << 30
"""Parts that may wait until others are answered, and bytes of rows of unfinished tasks; then a program has to wait."""
MOST_PLANS = 1 << 10
"""Most ranges and samples of lists that a vector caches; then it clears them."""


@kernel("b1(u8[::1])")
def ascending(keys: NDArray[np.uint64]) -> bool:
    """Return whether keys are sorted and unique."""
    total, block = len(keys), 4096
    for start in range(1, total, block):
        earlier, later = keys[start - 1 :], keys[start:]
        wrong = 0
        # Without an early exit, so that the compiler vectorizes it.
        for i in range(min(block, total - start)):
            wrong += later[i] <= earlier[i]
        if wrong:
            return False
    return True


class _Slice(NamedTuple):
    """The part of a request for one shard: its part of the range, and positions [begin, end) among the keys."""

    shard: int
    range: KeyRange
    begin: int
    end: int


_Head = tuple[NDArray[np.uint8], int]
"""A request's header, and its memory address."""


class _Plan:
    """Partition of some keys by shard; `keys` if they are a list, and `signatures` of the slices if signed."""

    __slots__ = ("_unsent", "addresses", "heads", "keys", "n", "signatures", "slices")

    def __init__(
        self,
        n: int,
        slices: list[_Slice],
        keys: NDArray[np.uint64] | None,
        signatures: list[bytes] | None,
    ) -> None:
        self.n, self.slices, self.keys, self.signatures = n, slices, keys, signatures
        self.addresses = tuple(~piece.shard for piece in slices)
        self.heads: dict[Command, list[_Head]] = {}
        self._unsent = set(range(len(slices))) if keys is not None else set[int]()

    @property
    def cached(self) -> bool:
        """Whether requests need no keys: it is a range, or all slices were sent before with keys and signature."""
        return not self._unsent

    def sent(self, number: int) -> None:
        """Record that a slice was sent with its signature."""
        self._unsent.discard(number)


class KeyList:
    """Keys for repeated use: checked, partitioned by shard and signed once. `Vector.key_list` creates it.

    `keys` u64[n] is a read-only copy. Wherever a vector takes keys it takes a list that it has created.
    """

    __slots__ = ("everywhere", "keys", "plan", "vector", "within")

    def __init__(
        self, vector: Vector, keys: NDArray[np.uint64], within: KeyRange, slices: list[_Slice]
    ) -> None:
        self.vector, self.keys, self.within = vector, keys, within
        signatures = _signed(keys, slices)
        keys.flags.writeable = False
        self.everywhere = self.plan = _Plan(len(keys), slices, keys, signatures)
        # Shards of which it has no keys take part in rounds only.
        if NO_SIGNATURE in signatures:
            held = [pair for pair in zip(slices, signatures, strict=True) if pair[1] != NO_SIGNATURE]
            self.plan = _Plan(len(keys), [each for each, _ in held], keys, [each for _, each in held])

    def __len__(self) -> int:
        return len(self.keys)


Keys = NDArray[np.uint64] | KeyRange | KeyList


def _signed(keys: NDArray[np.uint64], slices: Sequence[_Slice]) -> list[bytes]:
    return [
        sign(keys[piece.begin : piece.end]) if piece.begin < piece.end else NO_SIGNATURE for piece in slices
    ]


class Vector:
    """A handle on one vector; `number` is its namespace. See the module.

    Rows are `[n, width]` arrays of the vector's dtype (`[n]` when the width is 1); an update may take rows of another
    width or type, and answer a `push_pull` with rows of its own.
    """

    def __init__(self, node: Node, spec: VectorSpec, number: int) -> None:
        self.node, self.spec, self.number = node, spec, number
        node.specs[number] = spec
        self._all = KeyRange(0, spec.extent)
        self._cuts = node.view.ring.cuts(spec.extent)
        self._dtype = np.dtype(spec.dtype)
        self.kind = CODES[self._dtype]
        """The type code of the values in messages."""
        self.row_bytes = spec.width * self._dtype.itemsize
        # Other updates may answer with rows of their own.
        self._reads_plainly = spec.update in ("add", "assign")
        row = update_named(spec.update).push_row(spec)
        self._takes, self._width, self._dims = np.dtype(row.dtype), row.width, int(row.width < 2)
        """The type and width (0: any) of pushed rows, and their usual number of dimensions."""
        self._titles = {
            command: f"{command.name.lower()} of vector {spec.name}"
            for command in (Command.PUSH, Command.PULL, Command.PUSH_PULL)
        }
        self._plans: dict[tuple[KeyRange, bool], _Plan] = {}
        # Of lists that were passed as arrays.
        self._samples: set[tuple[int, ...]] = set()
        # Shard and signature of lists that were sent there.
        self._sent: set[tuple[int, bytes]] = set()

    def key_list(self, keys: NDArray[np.uint64], within: KeyRange | None = None) -> KeyList:
        """Check, partition and sign keys once for repeated use; `within` as in later requests.

        Raises:
            UsageError: they are not sorted and unique, or not within `within`.
        """
        listed = self._listed(keys).copy()
        _, within = self._check(listed, within)
        return KeyList(self, listed, within, self._cut(listed, within, self.spec.aggregate))

    def push(
        self,
        keys: Keys,
        rows: Rows,
        *,
        within: KeyRange | None = None,
        round: int = NO_ROUND,
        after: Iterable[Task] = (),
    ) -> Task:
        """Send rows for keys to the update on their servers; finished when it has been applied.

        In an aggregating vector each worker of the group pushes once per `round` and `within`, with its keys there, if
        any; the update gets the sum, in worker order, and all these pushes finish together. All workers must issue the
        rounds in one order, and by keys or by range alike; and in calls that are outstanding together, since a call
        ends when its pushes have been applied. Keys and rows must not be written before the task is finished: they are
        sent without a copy.

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

    def flush(self, *, round: int = NO_ROUND, after: Iterable[Task] = ()) -> Task:
        """Push what filters have held back of this vector's pushes; finished when it has been applied.

        In an aggregating vector it is a push of the `round`, in which every worker takes part.
        """
        if self.spec.aggregate:
            self._check_workers()
        none = np.empty((0, self.spec.width), self._dtype)
        extent, ring = self.spec.extent, self.node.view.ring
        shards = len(self._cuts) if self.spec.aggregate or self.node.codec.pushes.drops else 0
        ranges = [(shard, ring.range(shard, extent)) for shard in range(shards)]
        slices = [_Slice(shard, each, 0, 0) for shard, each in ranges if not each.empty]
        plan = _Plan(0, slices, np.empty(0, np.uint64), None)
        request = _Request(self, Command.PUSH, plan, none, round, None)
        parts = [(address, request.make(number)) for number, address in enumerate(plan.addresses)]
        for _, message in parts:
            message.flush = True
        task = self.node.tasks.submit(parts, None, after)
        task.what, task.spot = f"flush of vector {self.spec.name}", here(sys._getframe())
        return task

    def _check_workers(self) -> None:
        """Raise WorkerLost if the set of workers has changed since the present call began."""
        view = self.node.view
        if self.node.crew < view.crew:
            lost = ", ".join(f"rank {loss.rank} ({loss.cause})" for loss in view.losses) or "none"
            raise WorkerLost(
                f"vector {self.spec.name}: the set of workers has changed in epoch {view.crew}, after the present call "
                f"began (epoch {self.node.crew}): workers are now ranks {', '.join(map(str, view.workers))}; "
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
        if self._is_much() and not self.node.moving:
            self.node.wait_until(lambda: not self._is_much(), "room for more requests")
        together = self.spec.aggregate and command is not Command.PULL
        if together:
            self._check_workers()
        plan = self._plan(keys, within, together)
        if plan.keys is not None:
            self.node.savings.key_bytes += 8 * plan.n
            if command is not Command.PUSH:
                self.node.savings.answered_keys += 8 * plan.n
        if rows is not None:
            if (
                type(rows) is not np.ndarray
                or rows.dtype is not self._takes
                or rows.shape != (plan.n,) * self._dims
            ):
                rows = self._checked(rows, plan.n)
            if together and round == NO_ROUND:
                raise UsageError(f"vector {self.spec.name} aggregates: each push names its round")
        if out is not None:
            self._check_out(out, plan.n, command)
        request = _Request(self, command, plan, rows, round, out)
        if self._is_direct(request) and not after and self.node.direct and tasks.direct:
            task = request.task = tasks.ask(request)
            task.result, task.what, task.spot = request.out, self._titles[command], caller()
            if rows is not None:
                tasks.weigh(task, rows.nbytes)
            return task
        parts = [(address, request.make(number)) for number, address in enumerate(plan.addresses)]
        for _, message in parts:
            message.exact = exact
        task = tasks.submit(parts, None if command is Command.PUSH else request, after)
        task.what, task.spot = self._titles[command], caller()
        if rows is not None:
            tasks.weigh(task, rows.nbytes)
        if command is Command.PUSH:
            return task
        request.task = task
        if not parts:
            request.allocate(self.spec.width, np.dtype(self.spec.dtype))
        elif request.places is not None:
            task.result = request.out
        return task

    def _is_much(self) -> bool:
        """Tell whether so much is under way that a program should wait before it asks for more."""
        tasks = self.node.tasks
        return tasks.nbytes > MOST_BYTES or tasks.queued > MOST_QUEUED

    def _is_direct(self, request: _Request) -> bool:
        """Return whether a request may take the client fast path, and prepare it for that."""
        command, plan, rows = request.command, request.plan, request.rows
        if command is Command.PUSH_PULL or request.round != NO_ROUND or not plan.addresses:
            return False
        if command is Command.PULL:
            if request.out is None:
                if not self._reads_plainly:
                    return False
                shape = (plan.n,) if self.spec.width == 1 else (plan.n, self.spec.width)
                room = self.node.van.buffers(plan.n * self.row_bytes)
                rows = request.out = room.view(self._dtype).reshape(shape)
                request.fresh = True
            else:
                rows = request.out
        assert rows is not None
        if rows.dtype != self._dtype or rows.size != plan.n * self.spec.width or not rows.flags.carray:
            return False
        request.heads = plan.heads.get(command)
        if request.heads is None:
            if not plan.cached:
                return False
            request.heads = plan.heads[command] = self._write_heads(request)
        request.raw = (rows if rows.ndim == 1 else rows.reshape(-1)).view(np.uint8)
        return True

    def _write_heads(self, request: _Request) -> list[_Head]:
        """Write the headers of a plan's requests, which are the same each time."""
        heads: list[_Head] = []
        for number, piece in enumerate(request.plan.slices):
            message = request.make(number)
            message.sender, message.shard = self.node.rank, piece.shard
            # The server has cached them, or asks for them.
            message.keys = None
            if request.command is Command.PUSH:
                size, width = piece.end - piece.begin, self.spec.width
                head = heading(message, size, self._dtype, width)
            else:
                head = heading(message)
            heads.append((head, head.ctypes.data))
        return heads

    def _plan(self, keys: Keys, within: KeyRange | None, together: bool) -> _Plan:
        """Check keys, and partition them by shard."""
        if isinstance(keys, KeyRange):
            plan = self._plans.get((keys, together))
            if plan is None:
                self._check(keys, within)
                plan = _Plan(keys.span, self._cut(keys, keys, together), None, None)
                if len(self._plans) >= MOST_PLANS:
                    self._plans.clear()
                self._plans[keys, together] = plan
            return plan
        if isinstance(keys, KeyList):
            if keys.vector is not self or (within is not None and within != keys.within):
                asked = keys.within if within is None else within
                raise UsageError(
                    f"vector {self.spec.name}, range [{asked.begin}, {asked.end}): the key list was made for vector "
                    f"{keys.vector.spec.name}, range [{keys.within.begin}, {keys.within.end})"
                )
            return keys.everywhere if together else keys.plan
        listed = self._listed(keys)
        n, within = self._check(listed, within)
        slices = self._cut(listed, within, together)
        return _Plan(n, slices, listed, self._sign_again(listed, slices))

    def _sign_again(self, keys: NDArray[np.uint64], slices: Sequence[_Slice]) -> list[bytes] | None:
        """Sign a list that was probably used before: the signature of a list that is used once is wasted work."""
        n = len(keys)
        if not n or not self.node.signs:
            return None
        sample = (n, int(keys[0]), int(keys[n // 3]), int(keys[n // 2]), int(keys[-1]))
        if sample in self._samples:
            return _signed(keys, slices)
        if len(self._samples) >= MOST_PLANS:
            self._samples.clear()
        self._samples.add(sample)
        return None

    def _name(self, message: Message, plan: _Plan, number: int) -> None:
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
            message.withheld = mine
            plan.sent(number)
        else:
            message.keys = mine
            self.node.savings.sent_keys += mine.nbytes
            if len(self._sent) >= MOST_SIGNATURES:
                self._sent.clear()
            self._sent.add((piece.shard, signature))
            plan.sent(number)

    def _check(self, keys: NDArray[np.uint64] | KeyRange, within: KeyRange | None) -> tuple[int, KeyRange]:
        whole = self._all
        if isinstance(keys, KeyRange):
            n, within = keys.span, keys
            if keys.empty:
                raise UsageError(f"vector {self.spec.name}: the range [{keys.begin}, {keys.end}) is empty")
        else:
            if not ascending(keys):
                raise UsageError(f"vector {self.spec.name}: keys must be sorted and unique")
            n = len(keys)
            within = within or whole
            if n and (int(keys[0]) < within.begin or int(keys[-1]) >= within.end):
                raise UsageError(
                    f"vector {self.spec.name}: keys {keys[0]} to {keys[-1]} are not all in "
                    f"[{within.begin}, {within.end})"
                )
        if within.begin < whole.begin or within.end > whole.end:
            raise UsageError(f"vector {self.spec.name}: its keys end at {whole.end}, not {within.end}")
        return n, within

    def _listed(self, keys: NDArray[Any]) -> NDArray[np.uint64]:
        """Return keys as they are sent: uint64, one-dimensional, contiguous, writable."""
        if isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1 and keys.flags.carray:
            return keys
        array = np.asarray(keys)
        whole_numbers = array.dtype.kind in "ui" or not array.size
        if array.ndim != 1 or not whole_numbers or (array.dtype.kind == "i" and (array < 0).any()):
            raise UsageError(f"vector {self.spec.name}: keys must be one list of whole numbers from 0 on")
        return array.astype(np.uint64)

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

    def _cut(self, keys: NDArray[np.uint64] | KeyRange, within: KeyRange, everywhere: bool) -> list[_Slice]:
        """Partition a request by shard; shards of `within` without any of the keys are left out unless `everywhere`."""
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


class _Request:
    """A push or a pull: creates its messages, and copies the rows of each reply to the places of its keys."""

    __slots__ = (
        "command",
        "fresh",
        "heads",
        "late",
        "out",
        "places",
        "plan",
        "raw",
        "round",
        "rows",
        "task",
        "vector",
    )

    def __init__(
        self, vector: Vector, command: Command, plan: _Plan, rows: Rows | None, round: int, out: Rows | None
    ) -> None:
        self.vector, self.command, self.plan = vector, command, plan
        self.rows, self.round, self.out = rows, round, out
        self.heads: list[_Head] | None = None
        self.raw: NDArray[np.uint8] | None = None
        # Rows of answers after a part was sent again to another server.
        self.late: dict[int, Rows] | None = None
        # Whether `out` was allocated here.
        self.fresh = False
        self.task: Task | None = None
        self.places: list[Rows] | None = None

    @property
    def addresses(self) -> Sequence[int]:
        """Return the receivers of the parts."""
        return self.plan.addresses

    def send(self, number: int, time: int, acked: int) -> int:
        """Send a part on the client fast path."""
        assert self.heads is not None and self.raw is not None
        vector, piece = self.vector, self.plan.slices[number]
        node, size = vector.node, vector.row_bytes
        return node.van.ask(
            node.view.rank_of(~piece.shard),
            self.heads[number][1],
            time,
            acked,
            self.raw,
            piece.begin * size,
            (piece.end - piece.begin) * size,
            vector.kind,
            self.command is Command.PUSH,
            self.fresh,
        )

    def make(self, number: int) -> Message:
        """Create the message of a part."""
        plan = self.plan
        piece = plan.slices[number]
        message = Message(
            Kind.REQUEST,
            self.command,
            origin=self.vector.node.tasks.origin,
            namespace=self.vector.number,
            round=self.round,
            range=piece.range,
        )
        if plan.keys is not None:
            self.vector._name(message, plan, number)
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
        result = task.result = self.out.copy()
        rows = result.reshape(self.plan.n, self.vector.spec.width)
        for part, values in self.late.items():
            piece = self.plan.slices[part]
            rows[piece.begin : piece.end] = values

    def _set_places(self, out: Rows) -> None:
        """Cut `out` into the rows of each slice."""
        if self.places is None and out.flags.c_contiguous:
            rows = out.reshape(self.plan.n, self.vector.spec.width)
            self.places = [rows[piece.begin : piece.end] for piece in self.plan.slices]

    def __call__(self, part: int, reply: Message) -> None:
        """Receive the rows of a part's reply."""
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
            self.task.result = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        # Of empty answers the widest counts, in any order of arrival.
        if not n and self.out is None:
            if self.task.result is None or rows.shape[1] > self.task.result.shape[-1]:
                self.task.result = rows[:, 0] if rows.shape[1] == 1 else rows
            return
        out = self.allocate(rows.shape[1], rows.dtype)
        if rows.shape[1] != (1 if out.ndim == 1 else out.shape[1]):
            raise UsageError(f"rows of width {rows.shape[1]} do not fit into out of shape {out.shape}")
        out[slices[part].begin : slices[part].end] = rows[:, 0] if out.ndim == 1 else rows

    def allocate(self, width: int, dtype: np.dtype[Any]) -> Rows:
        """Return the array of results, zero where no server answers."""
        assert self.task is not None
        if self.task.result is None:
            shape = (self.plan.n,) if width == 1 else (self.plan.n, width)
            self.task.result = np.zeros(shape, dtype) if self.out is None else self.out
            if self.out is not None:
                self.out[...] = 0
        result: Rows = self.task.result
        return result


class Vectors(dict[str, Vector]):
    """The vectors by name."""

    def __missing__(self, name: str) -> Vector:
        """Raise UsageError with the names that exist."""
        raise UsageError(f"there is no vector {name!r}; there are: {', '.join(sorted(self)) or 'none yet'}")
