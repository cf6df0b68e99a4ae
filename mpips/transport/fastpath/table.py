"""The state that the server's fast path and Python share: which requests it may answer, and which it has answered.

The fast path (`mpips.transport.fastpath.server`) applies a push or pull where it receives it, if the request has no
dependencies; a program's update is called by its address. Where the shard has a copy, the primary's fast path sends it
the change, and answers once the copy has it; the copy's fast path applies it
(`mpips.transport.fastpath.unacknowledged`). All other requests go to Python, and also one with new keys for which the
index or the rows must grow. `FastPathTable` says which shards and vectors may be served (`parts`). Python takes over
the finished requests (`finished`) before it reads the shard, so that each push is applied exactly once, and is
recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.transport.fastpath.rounds import ROUNDS_MEMORY, Rounds
from mpips.transport.fastpath.unacknowledged import Taken, Unacknowledged
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import COUNT, KeyCache
from mpips.transport.message import INLINE, Message, bodies, decode
from mpips.transport.mpi.memory import HERE

(
    ME,
    EPOCH,
    NAMESPACES,
    SHARDS,
    VECTORS_AT,
    ROWS_AT,
    CALLERS_AT,
    LISTS_AT,
    SLOTS_AT,
    FRAMES_AT,
    BUFFERS_AT,
    RECEIVE_AT,
    RECEIVE_ROOM,
    SLEEPERS_AT,
    ASLEEP_AT,
    ASLEEP_STEP,
    PIDS_AT,
    LOG_AT,
    LOG_ROOM,
    LINKS_AT,
    CHANGES_AT,
    CHANGE_SENDS_AT,
    CHANGED_AT,
    CHANGED_BYTES,
    ANSWERS_AT,
    HELD_AT,
) = range(ROUNDS_MEMORY, ROUNDS_MEMORY + 26)
SERVER_MEMORY = HELD_AT + 1
"""In the memory of the fast path (`mpips.transport.mpi.memory`): this rank and the present epoch; vectors and shards of
`parts`; addresses of the arrays of `FastPathTable`, of `KeyCache.place` and of the arrays of `Unacknowledged`, with
sizes that vary; and, from the van, address and distance of the flags u1[ranks] of ranks that sleep, and the address of
i8[ranks], the processes whose memory answers may be written to (0: none)."""

OPEN, VALUES, DTYPE, WIDTH, BEGIN, LAST, ROWS, PUSH, PULL, CAPACITY = range(10)
HEAD, KNOWN, KNOWN_ROOM, ARENA, ARENA_ROOM, TOP, TOP_ROOM = range(10, 17)
STATE, SETTINGS, AGGREGATES, STAMPS, STAMPS_ROOM = 17, *range(20, 24)
PUSHED_TYPE, PUSHED_WIDTH, UPDATE, ANSWERS, INITIAL, CHANGES, NEWS, VERSION = range(24, 32)
"""Columns of `parts`, by shard and namespace: what may be served (CLOSED, REQUESTS or COPIES); address, wire type and
width of its rows; first and last key of the shard; number of rows (0: sparse); action of a push; whether it may be
pulled; rows that fit; the address of the counts of its key index (0: none), and address and length of each of its
arrays; addresses of up to three state columns, and of the settings, of its update; whether its pushes are summed over
all workers, and address and length of the stamps for that (`mpips.storage.aggregate`); wire type and width (0: any) of
pushed rows; address of a program's update, or of the words of its calls if it is a kernel
(`mpips.server.update_call`), and bytes of an answer's row as far as known; whether Python gives new keys their rows,
since these do not begin with 0;
changes since the last `changes`; and, for namespace 0, whether any request was finished at the shard since the last
`finished`, and the number of all changes of the shard."""
COLUMNS = VERSION + 1
CLOSED, REQUESTS, COPIES = range(3)
"""Values of OPEN: nothing is served; requests of callers; changes of the shard's primary."""
NO_PUSH, ADD, ASSIGN, SGD, ADAGRAD, FTRL, ADAM, PROGRAM, KERNEL = range(9)
"""The action of a push: one that the fast path does not apply, a built-in update, or a program's, which is called by
address: a Python function (PROGRAM), or a kernel (KERNEL)."""

HIGHEST, ACKED, NOTED, TIMES = range(4)
"""Columns of `callers`: the highest admitted time; the time that the caller has acknowledged; the number of finished
times listed from TIMES on, each as 2 * time + (1 for a push)."""
WINDOW = 64
SLOTS_OUT = 64
BUFFERS = 8
MOST_AT_ONCE = 256
"""Requests that one call of the fast path answers at most."""
MOST_BYTES = 1 << 28
"""Bytes of the receive buffer, and of all send buffers together; larger requests are handled in Python."""


Noted = Callable[[int, int, list[tuple[int, int]]], None]
"""Takes the shard of a change, the command of its first caller, and (origin, time) of all."""


class Finished(NamedTuple):
    """The requests of one caller to one shard that the fast path has finished: (time, whether it was a push)."""

    origin: int
    acked: int
    times: list[tuple[int, bool]]


class ServedRows(NamedTuple):
    """A vector's rows at one shard, as columns of `parts`."""

    address: int
    dtype: int
    """The wire type."""
    width: int
    begin: int
    last: int
    """The last key, as int64."""
    rows: int
    push: int
    pull: bool
    capacity: int = 0
    key_index: tuple[int, ...] = (0,) * (STATE - HEAD)
    state: tuple[int, ...] = (0,) * (SETTINGS - STATE)
    settings: int = 0
    aggregates: bool = False
    stamps: tuple[int, int] = (0, 0)
    pushed: tuple[int, int] = (0, 0)
    """Wire type and width of pushed rows; the width of a program's update may be 0: any."""
    update: int = 0
    answer: int = 0
    """Bytes of an answer's row, as far as they are known."""
    initial: bool = False
    """Whether a new key's row is not 0, so that Python answers requests for it."""

    def columns(self) -> Iterator[int]:
        """Yield the columns from the second on."""
        for each in self:
            yield from each if isinstance(each, tuple) else (each,)


class FastPathTable:
    """What the fast path may serve, and what it has finished, for `ranks` ranks and the key lists of `cache`."""

    def __init__(self, shards: int, ranks: int, cache: KeyCache) -> None:
        self.cache = cache
        self.memory = np.zeros(SERVER_MEMORY, np.int64)
        """What kernels are given; the van writes down what is its own."""
        self.parts = np.zeros((shards, 4, COLUMNS), np.int64)
        # Zeros: the rows of shards that this rank does not hold occupy no memory. Row 0 of `callers` is unused.
        self.rows_of = np.zeros((shards, ranks), np.int32)
        self.callers = np.zeros((1, TIMES + WINDOW), np.int64)
        self._count = 1
        self.slots = np.zeros((SLOTS_OUT, 3), np.int64)
        # Not cleared: a frame is read as far as it was written.
        self.frames = np.empty((SLOTS_OUT, HEADER_BYTES + INLINE), np.uint8)
        self.buffers = np.zeros((BUFFERS, 5), np.int64)
        self.receive_buffer = np.empty(0, np.uint8)
        self.sleepers = np.zeros(max(MOST_AT_ONCE, ranks), np.int32)
        self.push_log = np.zeros((0, 5), np.int64)
        """If the run is recorded: the number of pushes, then each in order: shard, origin, time, command, and how many
        are one change (0: it belongs to that of the push before)."""
        self._noted: Noted = lambda shard, command, callers: None
        self.served: Callable[[int], None] | None = None
        """Callback: the number of requests that a call of the fast path has answered."""
        self._kept: list[Any] = [None] * BUFFERS
        self.rounds = Rounds(ranks, self.memory)
        self.unacknowledged = chain = Unacknowledged(shards, self.rounds)
        cache.in_use = lambda: self.unacknowledged.lists() | self.rounds.lists()
        for at, array in (
            (HERE, self.memory), (ROWS_AT, self.rows_of), (LISTS_AT, cache.place), (SLOTS_AT, self.slots),
            (FRAMES_AT, self.frames), (BUFFERS_AT, self.buffers), (SLEEPERS_AT, self.sleepers), (LINKS_AT, chain.links),
            (CHANGES_AT, chain.changes), (CHANGE_SENDS_AT, chain.sends), (CHANGED_AT, chain.frames),
            (ANSWERS_AT, chain.answers), (HELD_AT, chain.held),
        ):  # fmt: skip
            self.memory[at] = array.ctypes.data
        self.memory[SHARDS], self.memory[CHANGED_BYTES] = shards, chain.frames.shape[1]
        self._publish()

    def _publish(self) -> None:
        """Write down where the arrays are that may be replaced, and their sizes."""
        memory = self.memory
        memory[VECTORS_AT], memory[NAMESPACES] = self.parts.ctypes.data, self.parts.shape[1]
        memory[CALLERS_AT] = self.callers.ctypes.data
        memory[RECEIVE_AT], memory[RECEIVE_ROOM] = self.receive_buffer.ctypes.data, len(self.receive_buffer)
        memory[LOG_AT], memory[LOG_ROOM] = self.push_log.ctypes.data, len(self.push_log)

    # What may be served.

    def open(self, shard: int, namespace: int, rows: ServedRows, what: int = REQUESTS) -> None:
        """Let the fast path serve a vector's rows at a shard, or update their address; `what` is a value of OPEN."""
        if namespace >= self.parts.shape[1]:
            grown = np.zeros((len(self.parts), 2 * (namespace + 1), self.parts.shape[2]), np.int64)
            grown[:, : self.parts.shape[1]] = self.parts
            self.parts = grown
            self._publish()
        self.parts[shard, namespace, :CHANGES] = (what, *rows.columns())

    def close(self, shard: int) -> None:
        """Stop serving a shard, and forget its callers; call `finished` and `take_over` before."""
        self.parts[shard] = 0
        self.rows_of[shard] = 0
        self.unacknowledged.links[shard] = 0
        self.cache.forget_forwarded(shard)

    def admitted(self, shard: int, origin: int, time: int) -> None:
        """Record that Python has admitted a request: the fast path may serve its caller from now on."""
        row = self.rows_of[shard, origin]
        if row == 0:
            row = self.rows_of[shard, origin] = self._new_row()
        self.callers[row, HIGHEST] = max(self.callers[row, HIGHEST], time)

    def _new_row(self) -> int:
        if self._count == len(self.callers):
            known = self.rows_of > 0
            used = np.unique(self.rows_of[known])
            grown = np.zeros((max(16, 2 * (1 + len(used))), TIMES + WINDOW), np.int64)
            grown[1 : 1 + len(used)] = self.callers[used]
            self.rows_of[known] = 1 + np.searchsorted(used, self.rows_of[known])
            self.callers, self._count = grown, 1 + len(used)
            self._publish()
        self.callers[self._count] = 0
        self.callers[self._count, HIGHEST] = -1
        self._count += 1
        return self._count - 1

    def forget(self, shard: int, origin: int) -> None:
        """Stop serving a caller at a shard until it is `admitted` again."""
        self.rows_of[shard, origin] = 0

    # What was finished.

    def has_news(self, shard: int) -> bool:
        """Return whether the fast path has finished a request at a shard since the last `finished`."""
        return bool(self.parts[shard, 0, NEWS])

    def finished(self, shard: int) -> Iterable[Finished]:
        """Take over the requests that the fast path has finished at a shard since the last call."""
        self.parts[shard, 0, NEWS] = 0
        for origin in np.flatnonzero(self.rows_of[shard]).tolist():
            caller = self.callers[self.rows_of[shard, origin]]
            if caller[NOTED]:
                noted = caller[TIMES : TIMES + caller[NOTED]].tolist()
                caller[NOTED] = 0
                yield Finished(origin, int(caller[ACKED]), [(each >> 1, bool(each & 1)) for each in noted])

    def changes(self, shard: int) -> int:
        """Take over the number of pushes that the fast path has applied to a shard."""
        count = int(self.parts[shard, :, CHANGES].sum())
        if count:
            self.parts[shard, :, CHANGES] = 0
        return count

    def take_over(self, shard: int, through: int) -> list[Taken]:
        """Take over the unacknowledged changes of a shard up to number `through`, and the answers that wait."""
        return self.unacknowledged.take_over(shard, through, self._answer_to_pull)

    def _answer_to_pull(self, slot: int, total: int, buffer: int, nbytes: int) -> Message:
        """Return an answer that was not sent yet, and free its slot and buffer."""
        answer, *_ = decode(bytearray(self.frames[slot, :total].data))
        self.slots[slot, 0] = 0
        if buffer >= 0:
            (body,) = bodies(answer)
            body[:] = self._kept[buffer][:nbytes].data
            self.buffers[buffer, 0] = 0
        return answer

    # What is recorded.

    def observe_pushes(self, noted: Noted) -> None:
        """Call `noted` for each change by pushes, in order."""
        self.push_log, self._noted = np.zeros((1 + MOST_AT_ONCE + self.rounds.most, 5), np.int64), noted
        self._publish()

    def report_pushes(self) -> None:
        """Report the pushes since the last call."""
        count = int(self.push_log[0, 0])
        self.push_log[0, 0] = 0
        pushes = self.push_log[1 : 1 + count].tolist()
        for at, (shard, _, _, command, callers) in enumerate(pushes):
            if callers:
                self._noted(
                    shard, command, [(origin, time) for _, origin, time, *_ in pushes[at : at + callers]]
                )

    # Lists of keys.

    def learn(self, row: list[int]) -> None:
        """After each call of the fast path: cache the list that was new to it, and free what it used until then."""
        if row[COUNT]:
            self.cache.take(row)
        self.rounds.drop_outgrown()

    # Buffers for large values.

    def provide(self, size: int) -> bool:
        """Make a receive buffer, or a send buffer for answers, of `size` bytes; return whether one was made."""
        if size > MOST_BYTES:
            return False
        room = 1 << (size - 1).bit_length()
        if len(self.receive_buffer) < size:
            self.receive_buffer = _touched(room)
            self._publish()
            return True
        for row in range(BUFFERS):
            if not self.buffers[row, 0] and self.buffers[row, 3] < size:
                total = sum(int(each) for each in self.buffers[:, 3]) - int(self.buffers[row, 3]) + room
                if total > MOST_BYTES:
                    return False
                self._kept[row] = _touched(room)
                self.buffers[row, 2:4] = self._kept[row].ctypes.data, room
                return True
        return False

    def give_up(self, row: int) -> NDArray[np.uint8]:
        """Abandon memory into which keys or values may still be received: `LATE_ROW` of the kernels' cells."""
        if row > 0:
            return self.unacknowledged.give_up(row - 1)
        if row < 0:
            return self.rounds.give_up(-1 - row)
        receive_buffer, self.receive_buffer = self.receive_buffer, np.empty(0, np.uint8)
        self._publish()
        return receive_buffer


def _touched(size: int) -> NDArray[np.uint8]:
    """Allocate memory whose pages are mapped already."""
    made = np.empty(size, np.uint8)
    made.fill(0)
    return made
