"""Aggregation: the pushes of all workers, summed round by round before one update (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import ProtocolError
from mpips.jit.kernel import kernel
from mpips.storage.segment import Array, Segment, Slots, one_by_one

_TYPES = ("f4", "f8", "i4", "i8")
MOST_UNIONS = 1 << 30
"""The number of a union from which on stamps begin anew."""


@kernel(*(f"i8(i8[::1], i8, i8, i4[::1], {t}[:,::1], i4[::1], {t}[:,::1], i4[::1])" for t in _TYPES))
def sum_into(
    stamps: NDArray[np.int64],
    number: int,
    count: int,
    slots: NDArray[np.int32],
    rows: Array,
    touched: NDArray[np.int32],
    sums: Array,
    places: NDArray[np.int32],
) -> int:
    """Add one worker's rows to the union of the round; places[i] is where row i went. Return its new length.

    stamps[slot] = number << 32 | place: the slot is already in this round's union, at this place.
    """
    width = sums.shape[1]
    # by far the most frequent case, without an inner loop
    if width == 1:
        total, mine = sums[:, 0], rows[:, 0]
        for i in range(len(slots)):
            s = np.uint32(slots[i])
            stamp = stamps[s]
            if stamp >> 32 == number:
                places[i] = stamp & 0xFFFFFFFF
                total[np.uint32(places[i])] += mine[i]
            else:
                stamps[s] = (number << 32) | count
                touched[count] = slots[i]
                total[count] = mine[i]
                places[i] = count
                count += 1
        return count
    for i in range(len(slots)):
        s = slots[i]
        stamp = stamps[s]
        if stamp >> 32 == number:
            place = stamp & 0xFFFFFFFF
            for j in range(width):
                sums[place, j] += rows[i, j]
        else:
            place = count
            stamps[s] = (number << 32) | count
            touched[count] = s
            for j in range(width):
                sums[count, j] = rows[i, j]
            count += 1
        places[i] = place
    return count


class Summed(NamedTuple):
    """A complete round: the sums of the pushed rows, and the places of each worker's keys among them."""

    slots: Slots
    """Slots of the union of all pushed keys."""
    rows: Array
    """[n, push width], one for each of `slots`."""
    places: dict[int, NDArray[np.int32] | slice]
    """By worker: the positions of its keys, in its order, among `slots`."""


class Aggregator:
    """Sums the pushes of all workers to one segment, round by round (paper, section 3.4).

    The pushes of a key are summed in the order of `workers`, not of arrival, so the result does not depend on timing,
    to the bit. Rounds may overlap; each is complete when its last push has arrived.
    """

    def __init__(self, segment: Segment, workers: Sequence[int]) -> None:
        self.segment = segment
        self.workers = tuple(workers)
        self._pending: dict[Hashable, dict[int, tuple[Slots, Array]]] = {}
        self.stamps = np.zeros(0, np.int64)
        """The number of the last union, then the stamp of each slot (see `sum_into`); kernels use it, too."""

    def pending(self) -> dict[Hashable, list[int]]:
        """Return, for every incomplete round, the workers whose pushes have arrived."""
        return {round_: list(parts) for round_, parts in self._pending.items()}

    def add(self, round_: Hashable, worker: int, slots: Slots, rows: Array) -> Summed | None:
        """Take a worker's part of a round (slots resolved with `create`, perhaps none, and rows [n, width]).

        Returns None while parts are missing, then the sum. `rows` is kept, not copied, until then. Raises
        ProtocolError for an unknown worker, a second part, or rows of another width.
        """
        parts = self._pending.get(round_, {})
        if worker not in self.workers or worker in parts:
            what = "has pushed twice" if worker in parts else f"is not one of {self.workers}"
            raise ProtocolError(f"vector {self.segment.spec.name!r}, round {round_}: worker {worker} {what}")
        parts[worker] = (slots, self.segment.shaped(slots, rows))
        self._pending[round_] = parts
        if len(parts) < len(self.workers):
            return None
        del self._pending[round_]
        return self._sum([parts[each] for each in self.workers])

    def drop(self, round_: Hashable) -> None:
        """Drop an incomplete round, if there is one."""
        self._pending.pop(round_, None)

    def _sum(self, parts: list[tuple[Slots, Array]]) -> Summed:
        segment = self.segment
        total = sum(len(rows) for _, rows in parts)
        widths = {rows.shape[1] for _, rows in parts}
        if total and len(widths) > 1:
            raise ProtocolError(f"vector {segment.spec.name!r}: rows of widths {sorted(widths)} in one round")
        same = _common_run([slots for slots, _ in parts])
        if same is not None:
            return self._sum_run(same, [rows for _, rows in parts])
        touched = np.empty(total, np.int32)
        sums = np.empty((total, widths.pop()), segment.push_row.dtype)
        stamps, count = self._next_stamps(), 0
        everyone: dict[int, NDArray[np.int32] | slice] = {}
        for worker, (part, rows) in zip(self.workers, parts, strict=True):
            slots = one_by_one(part)
            places = np.empty(len(slots), np.int32)
            count = sum_into(stamps[1:], stamps[0], count, slots, rows, touched, sums, places)
            everyone[worker] = places
        return Summed(touched[:count], sums[:count], everyone)

    def _sum_run(self, run: slice, parts: list[Array]) -> Summed:
        """Sum rows of the same run of slots: plain vector additions."""
        sums = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        for rows in parts[2:]:
            sums += rows
        return Summed(run, sums, dict.fromkeys(self.workers, slice(None)))

    def _next_stamps(self) -> NDArray[np.int64]:
        """Return the stamps, with the number of a new union."""
        room = self.segment.capacity
        # With a store, fewer rows may fit into memory than there are slots.
        slots = max(len(self.segment), room)
        if len(self.stamps) <= slots or self.stamps[0] >= MOST_UNIONS:
            self.stamps = np.zeros(1 + slots + (slots - room) // 8, np.int64)
        self.stamps[0] += 1
        return self.stamps


def _common_run(parts: list[Slots]) -> slice | None:
    first = parts[0]
    if isinstance(first, slice) and all(isinstance(part, slice) and part == first for part in parts):
        return first
    return None
