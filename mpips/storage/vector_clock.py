"""The ranged vector clock: which round was applied last, by key range (paper, section 4.1 and Algorithm 2).

Here the clock is a record: no decision reads it. A shard's clock of a vector has the number of the last aggregated
round for each range, under one node that stands for all workers (`AGGREGATE` in mpips/server/shard.py). Other pushes
are not in it. It is copied with the shard, saved in checkpoints, and continued after a restore by any number of
servers, so that users and tests can inspect which rounds the rows of a checkpoint include.

In the paper each message carries the time of its range. The servers' clocks record which pushes a key has received,
reject those that were already applied, and determine where to continue after a failure. A time by range is enough for
this where a node's tasks are applied in order. Here tasks run in parallel, a late one may be applied before an early
one (section 3.4), and a repeated `push_pull` needs the rows of its first answer. So each request has an identifier,
(origin, time), and other records serve these purposes:

- requests already applied: the shard's table of requests, which answers a repeated one (`mpips.tasks.request_dedup`);
- pushes received for a round: the aggregator (`mpips.storage.aggregate`);
- recovery of a chain that has lost a server: numbers of changes (`mpips.server.replication`), while callers send
  unanswered requests again (`mpips.tasks.caller`);
- recovery of the scheduler's program: the journal (`mpips.scheduler.journal`), or in another run the state that the
  program has saved with a checkpoint.

A vector clock per key would need nodes times keys entries. But nodes push ranges, so most keys share their times: the
clock keeps, for each node, a map from keys to times that is constant on ranges. At first, one range of all keys has
time NOTHING. The paper splits the ranges that a `set` intersects, so that m calls make O(m) ranges for each node, and
leaves merging to future work; this clock merges neighbours of equal time at once. So the map always has the fewest
ranges: at most 2 m + 1, and one again when the pushes of a round have covered all keys.

A node's map is two lists in key order, `begins` and `times`: entry i holds on [begins[i], begins[i + 1]),
the last one up to 2**64. To set exactly one entry, as nearly every round does, is one bisection and one
assignment.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.ranges import ALL, END, KeyRange

NOTHING = -1
"""The time of a node from which nothing was received; times are int64, those of rounds are >= 0."""


class ClockArrays(NamedTuple):
    """A clock as arrays of equal length, for files and messages: sorted by node, then key; NOTHING left out.

    `nodes` i8, `firsts` and `lasts` u64 (the last key of a range, since 2**64 is not a u64), `times` i8. Equal
    clocks give equal arrays.
    """

    nodes: NDArray[np.int64]
    firsts: NDArray[np.uint64]
    lasts: NDArray[np.uint64]
    times: NDArray[np.int64]


class RangedClock:
    """Map (node, key) to a time; nodes are ints, and NOTHING is the time of those never set."""

    __slots__ = ("_maps",)

    def __init__(self) -> None:
        # By node: (begins, times).
        self._maps: dict[int, tuple[list[int], list[int]]] = {}

    def set(self, keys: KeyRange, node: int, time: int) -> None:
        """Set the time of every key of a range (perhaps empty) for one node (the paper's Algorithm 2)."""
        begin, end = keys
        if begin >= end:
            return
        found = self._maps.get(node)
        if found is None:
            found = self._maps[node] = ([0], [NOTHING])
        begins, times = found
        first = bisect_right(begins, begin) - 1
        # Entries first .. stop - 1 intersect the range.
        stop = bisect_left(begins, end, first + 1)
        upper = begins[stop] if stop < len(begins) else END
        if (
            stop == first + 1
            and begins[first] == begin
            and upper == end
            and not (first and times[first - 1] == time)
            and not (stop < len(times) and times[stop] == time)
        ):
            times[first] = time
            return
        _replace(begins, times, first, stop, upper, begin, end, time)

    def get(self, keys: KeyRange | int, node: int) -> int:
        """Return a node's time at a key, or its least in a range; ValueError for an empty range."""
        begin, end = keys if isinstance(keys, KeyRange) else (keys, keys + 1)
        if begin >= end:
            raise ValueError(f"no key lies in [{begin}, {end})")
        found = self._maps.get(node)
        if found is None:
            return NOTHING
        begins, times = found
        if len(times) == 1:
            return times[0]
        first = bisect_right(begins, begin) - 1
        return min(times[first : bisect_left(begins, end, first + 1)])

    def nodes(self) -> tuple[int, ...]:
        """Return the nodes that have a time somewhere, in ascending order."""
        return tuple(sorted(node for node, (_, times) in self._maps.items() if times != [NOTHING]))

    def entries(self, node: int, within: KeyRange = ALL) -> Iterator[tuple[KeyRange, int]]:
        """Yield the ranges of equal time of a node inside `within`, in key order, each with its time."""
        begins, times = self._maps.get(node, ([0], [NOTHING]))
        if within.empty:
            return
        first = bisect_right(begins, within.begin) - 1
        stop = bisect_left(begins, within.end, first + 1)
        for at in range(first, stop):
            end = begins[at + 1] if at + 1 < len(begins) else END
            yield KeyRange(max(begins[at], within.begin), min(end, within.end)), times[at]

    def merge(self, other: RangedClock) -> None:
        """Set each time to the maximum of the two clocks' times."""
        for node in other.nodes():
            for keys, theirs in other.entries(node):
                for part, mine in list(self.entries(node, keys)):
                    if theirs > mine:
                        self.set(part, node, theirs)

    def __len__(self) -> int:
        """Count the ranges that are kept, over all nodes."""
        return sum(len(times) for _, times in self._maps.values())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RangedClock):
            return NotImplemented
        nodes = self.nodes()
        return nodes == other.nodes() and all(self._maps[node] == other._maps[node] for node in nodes)

    __hash__ = None  # type: ignore[assignment]

    def to_arrays(self) -> ClockArrays:
        """Return this clock as arrays, one row per range and node."""
        rows = [
            (node, keys.begin, keys.end - 1, time)
            for node in self.nodes()
            for keys, time in self.entries(node)
            if time != NOTHING
        ]
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        return ClockArrays(
            np.array(columns[0], np.int64),
            np.array(columns[1], np.uint64),
            np.array(columns[2], np.uint64),
            np.array(columns[3], np.int64),
        )

    @classmethod
    def from_arrays(
        cls,
        nodes: NDArray[np.int64],
        firsts: NDArray[np.uint64],
        lasts: NDArray[np.uint64],
        times: NDArray[np.int64],
    ) -> RangedClock:
        """Restore a clock from `to_arrays`; ValueError if its ranges overlap, are empty or out of order."""
        clock = cls()
        covered: dict[int, int] = {}
        columns = (nodes.tolist(), firsts.tolist(), lasts.tolist(), times.tolist())
        for node, first, last, time in zip(*columns, strict=True):
            if not covered.get(node, 0) <= first <= last:
                raise ValueError(
                    f"clock of node {node}: keys {first} to {last} are empty or overlap earlier ones"
                )
            covered[node] = last + 1
            clock.set(KeyRange(first, last + 1), node, time)
        return clock


def _replace(
    begins: list[int], times: list[int], first: int, stop: int, upper: int, begin: int, end: int, time: int
) -> None:
    """Put [begin, end) at `time` in place of entries first .. stop - 1, which reach up to `upper`.

    The times of these entries to the left of `begin` and to the right of `end` stay; equal neighbours merge.
    """
    new_begins, new_times = [begin], [time]
    if end < upper and times[stop - 1] != time:
        new_begins.append(end)
        new_times.append(times[stop - 1])
    elif end == upper and stop < len(times) and times[stop] == time:
        stop += 1
    if begins[first] < begin:
        if times[first] == time:
            new_begins[0] = begins[first]
        else:
            new_begins.insert(0, begins[first])
            new_times.insert(0, times[first])
    elif first and times[first - 1] == time:
        first -= 1
        new_begins[0] = begins[first]
    begins[first:stop] = new_begins
    times[first:stop] = new_times
