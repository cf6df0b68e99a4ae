"""The rounds of pushes on the server's fast path: the parts that wait for others, and the answers that are kept.

    WAITS     parts of some workers have arrived; nothing is changed
    APPLIED   the sum of all parts is applied; the answers wait until all copies have it
    ANSWERED      answered; at a copy: applied
    FREE      no request of the round can arrive again, or Python keeps its answers

Each part has a block of memory: its frame, keys and values, and later the answer to it
(`mpips.transport.fastpath.round_parts`). A round is summed, applied and answered by one call of a kernel when its last
part has arrived (`mpips.transport.fastpath.round_completion`), and only if nothing is missing for it: until then,
Python can take over the parts as messages (`take`, `take_round`). `marks` counts the rounds that Python has parts of,
by a hash: kernels leave to it what may belong to one of them.

An answer with rows is kept until its caller has acknowledged it, since a repeated push gets the same answer. A copy
keeps the rows of the whole round for that. What kernels cannot write down themselves, the vector's clock, they list in
`clock`, which Python reads before the clock is used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.transport.header import DETACHED, FLAGS, HEADER, HEADER_BYTES
from mpips.transport.key_cache import Name
from mpips.transport.message import DTYPES, INLINE, NO_SIGNATURE, Message, bodies, decode
from mpips.transport.mpi.memory import MEMORY

ROUNDS = 64
MOST_WORKERS = 128
"""Rounds of more workers are summed by Python; the callers of a change must fit into a frame."""
BLOCKS = 1024
MOST_BYTES = 1 << 28
"""Bytes of all blocks; rounds that need more are summed by Python."""
SMALL = 1 << 20
"""Bytes of a block of which more are made than are needed at once."""

STATE, SHARD, NAMESPACE, ROUND, FIRST, ARRIVED, KEPT, UNION = range(8)
"""Columns of `rounds`: state; shard, vector, round, and first key of its range; parts that have arrived; whether its
answers must be kept; whether the part of the first worker has the rows of all (at a copy)."""
FREE, WAITS, APPLIED, ANSWERED = range(4)

BLOCK, ADDRESS, FRAME_SIZE, PUSHED, COUNT, RUN, SLOTS, TIME, ROW_TYPE, ROW_WIDTH, ANSWER = range(11)
"""Columns of `parts`, by round and worker: 1 + its block (0: none), and its address; bytes of its frame; address
and number of its rows, which are those of a run of slots from RUN on, or of those listed at the address SLOTS (0: a
run); time of its request; at a copy, wire type and width of the answer's rows; their bytes (-1: it has none)."""

BUSY, PLACE, BYTES = range(3)
"""Columns of `blocks`: whether a part uses it; its address and size."""

MARKS = 1 << 10
CLOCK = 1 << 10
PROBES = 16
"""Entries of `clock` in which a range may be listed."""
ORDER, OF_SHARD, OF_VECTOR, BEGIN, LAST, REACHED = range(6)
"""Columns of `clock`: when it was set (0: empty); shard, vector, first and last key of a range; its last round."""

(
    ROUNDS_AT,
    PARTS_AT,
    SENDS_AT,
    BLOCKS_AT,
    MARKS_AT,
    CLOCK_AT,
    WORKERS_AT,
    INDEX_AT,
    ACKED_AT,
    MOST,
    WORKERS,
    MADE,
    STEPS,
    KEEPS,
    GROW,
    RANKS,
) = range(MEMORY, MEMORY + 16)
ROUNDS_MEMORY = RANKS + 1
"""In the memory of the fast path: the addresses of the arrays; columns of `parts`; number of workers; blocks that were
made; changes of `clock`; whether answers must be kept; address of a function (block, bytes) that gives a block more
memory, with the header at its beginning; number of ranks."""
_Grow = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)


@kernel("i8(i8, i8, i8, i8)")
def mark_of(shard: int, namespace: int, number: int, begin: int) -> int:
    """Return the place of a round among `marks`; `begin` is the first key of its range, as int64."""
    mixed = (number * 0x9E3779B1 + shard * 31 + namespace * 1021) ^ begin
    return (mixed ^ (mixed >> 17) ^ (mixed >> 41)) & (MARKS - 1)


class Kept(NamedTuple):
    """Answers of a round that are kept, at a copy: those of the requests (origin, time) with rows of these slots."""

    namespace: int
    callers: list[tuple[int, int]]
    slots: NDArray[np.int32] | slice
    rows: NDArray[Any]


class Rounds:
    """The rounds of a server's shards on the fast path, of workers among `ranks` ranks; see the module.

    `memory` is that of the fast path, i8[n].
    """

    def __init__(self, ranks: int, memory: NDArray[np.int64]) -> None:
        self.most = most = min(ranks, MOST_WORKERS)
        self.rounds = np.zeros((ROUNDS, UNION + 1), np.int64)
        self.parts = np.zeros((ROUNDS * most, ANSWER + 1), np.int64)
        self.sends = np.zeros((2 * ROUNDS * most, 3), np.int64)
        self.blocks = np.zeros((BLOCKS, BYTES + 1), np.int64)
        self.marks = np.zeros(MARKS, np.int64)
        self.clock = np.zeros((CLOCK, REACHED + 1), np.int64)
        self._workers = np.zeros(most, np.int64)
        # By rank: 1 + its position among the workers, 0: none.
        self._index = np.zeros(ranks, np.int64)
        # By rank: the time that it has acknowledged.
        self._acked = np.zeros(ranks, np.int64)
        self._kept: list[NDArray[np.uint8] | None] = [None] * BLOCKS
        # Memory of blocks that have got more; slots in it may still be read until the kernel ends.
        self._outgrown: list[NDArray[np.uint8]] = []
        self._grow_function = _Grow(self._grow)
        arrays = (
            self.rounds, self.parts, self.sends, self.blocks, self.marks, self.clock,
            self._workers, self._index, self._acked,
        )  # fmt: skip
        self.memory = memory
        memory[ROUNDS_AT : ROUNDS_AT + len(arrays)] = [array.ctypes.data for array in arrays]
        self.memory[MOST], self.memory[RANKS] = most, ranks
        self.memory[GROW] = ctypes.cast(self._grow_function, ctypes.c_void_p).value or 0

    def set_workers(self, workers: Sequence[int], keeps: bool) -> None:
        """Set the workers whose parts make a round, in the order of its sum; no part may be waiting."""
        known = workers if len(workers) <= self.most else ()
        self.memory[WORKERS], self.memory[KEEPS] = len(known), keeps
        self._index[:] = 0
        self._workers[: len(known)] = known
        self._index[list(known)] = np.arange(1, 1 + len(known))

    def mark(self, shard: int, namespace: int, number: int, begin: int, by: int) -> None:
        """Count one more, or one less, round of which Python has parts."""
        self.marks[mark_of(shard, namespace, number, _signed(begin))] += by

    # Parts.

    def take(self, index: int) -> Message:
        """Take over a part as the message that it came in; `index` is its row in `parts`."""
        part, row = self.parts[index], self.rounds[index // self.most]
        message = self._message(part, int(part[FRAME_SIZE]))
        self._release(part)
        row[ARRIVED] -= 1
        if row[ARRIVED] == 0:
            row[STATE] = FREE
        return message

    def take_round(self, shard: int, namespace: int, number: int, begin: int) -> list[Message]:
        """Take over the waiting parts of a round."""
        rows = self.rounds[:, :ARRIVED] == (WAITS, shard, namespace, number, _signed(begin))
        return self._take(rows.all(axis=1))

    def take_all(self, shard: int) -> list[Message]:
        """Take over all waiting parts of a shard."""
        return self._take((self.rounds[:, STATE] == WAITS) & (self.rounds[:, SHARD] == shard))

    def waiting(self, shard: int) -> Iterator[tuple[int, tuple[int, int], list[int]]]:
        """Yield the rounds of a shard that wait for parts: vector, (round, first key), workers whose parts are here."""
        for row in np.flatnonzero(
            (self.rounds[:, STATE] == WAITS) & (self.rounds[:, SHARD] == shard)
        ).tolist():
            _, _, namespace, number, begin = self.rounds[row, :ARRIVED].tolist()
            there = [self.parts[index, BLOCK] > 0 for index in self._indices(row)]
            workers = [rank for rank, has in zip(self._workers.tolist(), there, strict=True) if has]
            yield namespace, (number, begin % 2**64), workers

    def _take(self, chosen: NDArray[np.bool_]) -> list[Message]:
        rows = np.flatnonzero(chosen).tolist()
        return [self.take(index) for row in rows for index in self._indices(row) if self.parts[index, BLOCK]]

    def _indices(self, row: int) -> range:
        return range(row * self.most, (row + 1) * self.most)

    def _message(self, part: NDArray[np.int64], size: int) -> Message:
        raw = self._kept[part[BLOCK] - 1]
        assert raw is not None
        message, *_ = decode(bytearray(raw[:size].data))
        if raw[FLAGS] & DETACHED:
            for body in bodies(message):
                body[:] = raw[size : size + len(body)].data
                size += len(body)
        return message

    def _release(self, part: NDArray[np.int64]) -> None:
        self.blocks[part[BLOCK] - 1, BUSY] = 0
        part[BLOCK] = 0

    def lists(self) -> set[Name]:
        """Return the lists of keys whose slots waiting parts use."""
        found: set[Name] = set()
        for row in np.flatnonzero(self.rounds[:, STATE] == WAITS).tolist():
            for index in self._indices(row):
                if self.parts[index, BLOCK]:
                    raw = self._kept[self.parts[index, BLOCK] - 1]
                    assert raw is not None
                    head = raw[:HEADER_BYTES].view(HEADER)[0]
                    found.add((int(head["shard"]), int(head["namespace"]), head["signature"].tobytes()))
        return {name for name in found if name[2] != NO_SIGNATURE}

    # Answers.

    def answers(self, row: int) -> list[Message]:
        """Take over the unsent answers of a round."""
        self.rounds[row, STATE] = ANSWERED
        return [self._answer(self.parts[index]) for index in self._indices(row) if self.parts[index, BLOCK]]

    def _answer(self, part: NDArray[np.int64]) -> Message:
        rows = max(int(part[ANSWER]), 0)
        return self._message(part, HEADER_BYTES + (rows if rows <= INLINE else 0))

    def kept(self, shard: int) -> Iterator[Message | Kept]:
        """Take over the answers with rows that are kept for a shard."""
        table = self.rounds
        chosen = (table[:, SHARD] == shard) & (table[:, KEPT] != 0) & (table[:, STATE] >= APPLIED)
        for row in np.flatnonzero(chosen).tolist():
            table[row, KEPT] = 0
            parts = [self.parts[index] for index in self._indices(row)]
            if table[row, UNION]:
                first = parts[0]
                count = int(first[COUNT])
                raw = self._kept[first[BLOCK] - 1]
                assert raw is not None
                slots: NDArray[np.int32] | slice = slice(int(first[RUN]), int(first[RUN]) + count)
                if first[SLOTS]:
                    at = int(first[SLOTS] - first[ADDRESS])
                    slots = raw[at : at + 4 * count].view(np.int32).copy()
                times = [int(part[TIME]) for part in parts[: self.memory[WORKERS]]]
                callers = list(zip(self._workers.tolist(), times, strict=False))
                rows = raw[: first[ANSWER]].view(DTYPES[first[ROW_TYPE]]).reshape(count, first[ROW_WIDTH])
                yield Kept(int(table[row, NAMESPACE]), callers, slots, rows.copy())
                continue
            for part in parts:
                if part[BLOCK] and part[ANSWER] >= 0:
                    yield self._answer(part)

    # The clock.

    def reached(self, shard: int) -> Iterator[tuple[int, KeyRange, int]]:
        """Take over the rounds that were applied to a shard, in order: vector, range and round."""
        rows = np.flatnonzero((self.clock[:, ORDER] > 0) & (self.clock[:, OF_SHARD] == shard))
        listed = sorted(self.clock[rows].tolist())
        self.clock[rows, ORDER] = 0
        for _, _, namespace, begin, last, number in listed:
            yield namespace, KeyRange(begin % 2**64, last % 2**64 + 1), number

    # Memory.

    def provide(self, size: int) -> bool:
        """Make blocks of `size` bytes; return whether one was made.

        Each call doubles the number of such blocks, since each part without one costs time in Python. Small ones are
        made for two rounds at once.
        """
        least = 2 * int(self.memory[WORKERS]) if size < SMALL else 1
        more = max(least, int((self.blocks[:, BYTES] >= size).sum()))
        made = [self._provide_one(size) for _ in range(more)]
        return made[0]

    def _grow(self, block: int, size: int) -> int:
        """Give a block that is in use more memory."""
        old = self._kept[block]
        assert old is not None
        self._outgrown.append(old)
        memory = self._kept[block] = np.empty(1 << (size - 1).bit_length(), np.uint8)
        head = old[:HEADER_BYTES]
        memory[: len(head)] = head
        self.blocks[block, PLACE:] = memory.ctypes.data, len(memory)
        return 0

    def drop_outgrown(self) -> None:
        """Free the memory of blocks that have got more; no kernel may be running."""
        self._outgrown.clear()

    def _provide_one(self, size: int) -> bool:
        room = 1 << (size - 1).bit_length()
        made = int(self.memory[MADE])
        smaller = np.flatnonzero((self.blocks[:made, BUSY] == 0) & (self.blocks[:made, BYTES] < size))
        if made < BLOCKS:
            block = made
        elif len(smaller):
            block = int(smaller[0])
        else:
            return False
        if int(self.blocks[:, BYTES].sum()) + room > MOST_BYTES:
            return False
        memory = np.empty(room, np.uint8)
        # So its pages are mapped already.
        memory.fill(0)
        self._kept[block] = memory
        self.blocks[block] = 0, memory.ctypes.data, room
        self.memory[MADE] = max(made, block + 1)
        return True

    def give_up(self, block: int) -> NDArray[np.uint8]:
        """Abandon a block, into which keys and values may still be received."""
        memory = self._kept[block]
        assert memory is not None
        self._kept[block] = None
        self.blocks[block] = 0
        return memory


def _signed(key: int) -> int:
    """Return the int64 with the bits of a uint64 key."""
    return key - 2**64 if key >= 2**63 else key
