"""The changes that the server's fast path has sent to copies, and the answers that wait until all copies have them.

The primary's fast path applies a push to a shard with copies, sends the change on, and keeps both the change and its
answer in a row of `changes`. A member that has a next one does the same with the change, without an answer. An
acknowledgement of the next member releases the answers, or is passed on, and frees the rows
(`mpips.transport.fastpath.chain`). Answers to pulls that read such changes wait in `held`.

Python may take over the rows of a shard at any time (`take_over`), and does so before it changes the shard itself or
adopts a view. So a change in Python that is not acknowledged is older than all rows of its shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.transport.fastpath.rounds import Rounds
from mpips.transport.header import HEADER, HEADER_BYTES
from mpips.transport.key_cache import Name
from mpips.transport.message import INLINE, Message, bodies, decode

FOLLOWING, PRECEDING, LAST_CHANGE, IN_PYTHON, KEEPS_LISTS, BACK, EVERYWHERE = range(7)
"""Columns of `links`, by shard: 1 + the rank of the next member (0: none); 1 + that of the previous one, if kernels
take its changes (0: none, or Python does); the number of the last change that is not acknowledged (0: none); whether
Python has such a change; whether the next member keeps lists of keys, which are sent to it once; 1 + the rank to which
acknowledgements are passed on (0: none, at the primary); the last change that the next member has acknowledged."""
SHARD, NUMBER, SIZE, KEY_BYTES, VALUE_BYTES, ROOM, ROOM_BYTES, CALLER, IN_ROUND = range(9)
"""Columns of `changes`: 1 + the shard (0: acknowledged); number of the change; bytes of its frame, and of the keys and
values that follow it; address and size of the memory for these; rank that gets the answer, or, behind the primary, has
sent the change; 1 + the row of the round whose answers wait instead (`mpips.transport.fastpath.rounds`; 0: none)."""
CHANGES_OUT = 256
"""Rows of `changes`."""
LARGE = 128
"""The first rows, which are for changes whose keys and values follow their frame."""
SENDS = 4
SEND_FRAME, SEND_KEYS, SEND_VALUES, SEND_ANSWER = range(SENDS)
"""Rows of `sends` for each row of `changes`."""
OF, AFTER, SLOT, TOTAL, BUFFER, BYTES, DEST = range(7)
"""Columns of `held`: shard; number of the change that the answer waits for; slot and bytes of its frame; send buffer
(-1: none) and bytes of its values; receiver."""
MOST_HELD = 64
CALLERS_BYTES = 32
"""Bytes of the caller of a change: origin, time, acknowledged time and command, i8 each."""
MOST_ROOM = 1 << 26
"""Bytes of memory for the keys and values of all changes; larger changes are sent by Python."""
LATEST = 1 << 62
"""A number above those of all changes."""


class Taken(NamedTuple):
    """A change that Python takes over: its message (None: an answer that only reads), its number, and the answers."""

    change: Message | None
    number: int
    answers: list[Message]


class Unacknowledged:
    """The unacknowledged changes of a server's shards on the fast path; see the module."""

    def __init__(self, shards: int, rounds: Rounds) -> None:
        self._rounds = rounds
        self.links = np.zeros((shards, EVERYWHERE + 1), np.int64)
        self.changes = np.zeros((CHANGES_OUT, IN_ROUND + 1), np.int64)
        self.sends = np.zeros((SENDS * CHANGES_OUT, 3), np.int64)
        callers = CALLERS_BYTES * max(1, rounds.most)
        # Not cleared: a frame is read as far as it was written.
        self.frames = np.empty((CHANGES_OUT, HEADER_BYTES + callers + INLINE), np.uint8)
        self.answers = np.zeros((CHANGES_OUT, HEADER_BYTES), np.uint8)
        self.held = np.zeros((1 + MOST_HELD, DEST + 1), np.int64)
        """How many answers to pulls wait, then each of them, in order."""
        self._rooms: list[NDArray[np.uint8] | None] = [None] * LARGE

    def last(self, shard: int) -> int:
        """Return the number of the last unacknowledged change of a shard on the fast path, 0 if there is none."""
        return int(self.changes[self.changes[:, SHARD] == shard + 1, NUMBER].max(initial=0))

    def set_unacknowledged(self, shard: int, last: int) -> None:
        """Set the number of the last unacknowledged change of a shard in Python, 0 if there is none."""
        link = self.links[shard]
        link[IN_PYTHON] = last > 0
        link[LAST_CHANGE] = last or self.last(shard)

    def lists(self) -> set[Name]:
        """Return the lists of keys that changes name."""
        rows = np.flatnonzero(self.changes[:, SHARD])
        heads = self.frames[rows, :HEADER_BYTES].view(HEADER)[:, 0]
        names = zip(heads["shard"].tolist(), heads["namespace"].tolist(), heads["signature"], strict=True)
        return {(shard, namespace, signature.tobytes()) for shard, namespace, signature in names}

    def take_over(
        self, shard: int, through: int, answer_to_pull: Callable[[int, int, int, int], Message]
    ) -> list[Taken]:
        """Remove and return, in order, the changes of a shard up to number `through` and the answers that wait.

        `answer_to_pull(slot, total, buffer, bytes)` returns the answer with these columns of `held`, and frees them.
        """
        if not self.links[shard, LAST_CHANGE]:
            return []
        taken = [*self._changes(shard, through), *self._held(shard, through, answer_to_pull)]
        # A stable sort: a change before what has read it.
        return sorted(taken, key=lambda each: each.number)

    def _changes(self, shard: int, through: int) -> Iterator[Taken]:
        rows = self.changes
        for row in np.flatnonzero((rows[:, SHARD] == shard + 1) & (rows[:, NUMBER] <= through)).tolist():
            change, *_ = decode(bytearray(self.frames[row, : rows[row, SIZE]].data))
            at = 0
            for body in bodies(change) if rows[row, KEY_BYTES] or rows[row, VALUE_BYTES] else ():
                room = self._rooms[row]
                assert room is not None
                body[:] = room[at : at + len(body)].data
                at += len(body)
            rows[row, SHARD] = 0
            yield Taken(change, int(rows[row, NUMBER]), self._answers(shard, row))

    def _answers(self, shard: int, row: int) -> list[Message]:
        """Take over the answers that wait for a change: none behind the primary."""
        if self.links[shard, BACK]:
            return []
        if in_round := int(self.changes[row, IN_ROUND]):
            return self._rounds.answers(in_round - 1)
        return [decode(bytearray(self.answers[row].data))[0]]

    def _held(
        self, shard: int, through: int, answer_to_pull: Callable[[int, int, int, int], Message]
    ) -> Iterator[Taken]:
        waiting = self.held[1 : 1 + self.held[0, 0]].copy()
        mine = (waiting[:, OF] == shard) & (waiting[:, AFTER] <= through)
        left = waiting[~mine]
        self.held[0, 0] = len(left)
        self.held[1 : 1 + len(left)] = left
        for _, number, *place, _ in waiting[mine].tolist():
            yield Taken(None, number, [answer_to_pull(*place)])

    def provide(self, size: int) -> bool:
        """Make memory of `size` bytes for the keys and values of changes; return whether it was made.

        Each call doubles the rows that have so much, since each change without a row costs time in Python.
        """
        more = max(1, int((self.changes[:, ROOM_BYTES] >= size).sum()))
        made = [self._provide_one(size) for _ in range(more)]
        return made[0]

    def _provide_one(self, size: int) -> bool:
        room = 1 << (size - 1).bit_length()
        for row in range(LARGE):
            busy = self.changes[row, SHARD] or self.sends[SENDS * row : SENDS * (row + 1), 0].any()
            if not busy and self.changes[row, ROOM_BYTES] < size:
                total = int(self.changes[:, ROOM_BYTES].sum()) - int(self.changes[row, ROOM_BYTES]) + room
                if total > MOST_ROOM:
                    return False
                made = np.empty(room, np.uint8)
                # So its pages are mapped already.
                made.fill(0)
                self._rooms[row] = made
                self.changes[row, ROOM : ROOM_BYTES + 1] = made.ctypes.data, room
                return True
        return False

    def give_up(self, row: int) -> NDArray[np.uint8]:
        """Abandon the memory of a row, into which keys and values may still be received."""
        room = self._rooms[row]
        assert room is not None
        self._rooms[row] = None
        self.changes[row, ROOM : ROOM_BYTES + 1] = 0
        return room
