"""The key ring: which server owns which keys, and which servers hold copies of them (paper, section 4.3).

Keys and virtual servers sit on one ring of 2**64 positions, on which keys grow counter-clockwise. A range
belongs to the server at whose point it begins, and a server also holds copies of the k ranges that follow,
counter-clockwise, those of its own. So the replicas of a range are the k distinct servers met going back
(clockwise) from it, and the first of them is just the server that owns the range once its owner has left.

The paper throws points at random. The fullest server then has, with v points each, about 2/sqrt(v) more
than its share: hundreds of points per server to come within 15 %, and each boundary in a block of keys
costs every push of the block one more message. So points are placed by rule instead. Servers sit in slots
0, 1, 2 ...; the points of slot s are a fixed function of s, found by letting slots join in order: a
newcomer places each of its points in the longest range of the server that has most, so as to take an equal
part of what it needs. That keeps what consistent hashing is for: points do not depend on who else is there,
so a server that joins only takes ranges, one that leaves only gives them up, and nothing else moves. With
all slots taken, the fullest server has at most 1 % more than its share up to 16 servers and 6 % beyond, by
max(1, s), at most 16, points for slot s: two segments for 2 servers, 22 for 7, 121 for 16. A vacant slot is
filled by the next server to join, which then owns just what the departed one did. While it is vacant, so
few points may leave one server with up to twice its share; 16 virtual servers make that 1.35 times.

A namespace with keys in [0, extent) sees the ring scaled to its extent, so that dense keys spread as hashed
ones do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.ranges import END, KeyRange, coalesce

VACANT = -1
"""Stands in a slot that no server has."""

_MOST_POINTS = 16  # of a slot, unless more are asked for


class Segments(NamedTuple):
    """The key space cut by owner: keys from begins[i] to the next begin, or the extent, belong to owners[i].

    `begins` u64[n], ascending from 0; `owners` i4[n]. Neighbours differ, unless the extent is so small that a
    range between them vanished; so all keys of a segment have the same replicas. Read-only, shared by all.
    """

    begins: NDArray[np.uint64]
    owners: NDArray[np.int32]


class Move(NamedTuple):
    """A range that changes its owner."""

    keys: KeyRange
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Ring:
    """The ring of some servers: pure data, equal on every rank that was given the same.

    Servers are ints >= 0 (their ranks). ValueError for a repeated, negative or missing one.
    """

    slots: tuple[int, ...]
    """The server in each slot, or VACANT."""

    virtual_servers: int = 0
    """Points for each server, at least; 0: as few as keep the load even. More spread a departed server's
    ranges over more of the others, and cost messages."""

    def __post_init__(self) -> None:
        servers = self.servers
        if not servers:
            raise ValueError("a ring needs at least one server")
        if len(set(servers)) < len(servers) or min(self.slots) < VACANT:
            raise ValueError(f"servers must be distinct and not negative, got {self.slots}")
        if self.virtual_servers < 0:
            raise ValueError(f"virtual_servers must be at least 0, got {self.virtual_servers}")

    @classmethod
    def of(cls, servers: Iterable[int], virtual_servers: int = 0) -> Ring:
        """Return a new ring; `servers` take the slots in their order."""
        return cls(tuple(servers), virtual_servers)

    @property
    def servers(self) -> tuple[int, ...]:
        """Return the servers on the ring, in slot order."""
        return tuple(server for server in self.slots if server != VACANT)

    def join(self, server: int) -> Ring:
        """Return the ring with one server more, in the first vacant slot."""
        slots = list(self.slots)
        if VACANT in slots:
            slots[slots.index(VACANT)] = server
        else:
            slots.append(server)
        return Ring(tuple(slots), self.virtual_servers)

    def leave(self, server: int) -> Ring:
        """Return the ring without a server; its slot stays vacant until another joins."""
        if server not in self.servers:
            raise ValueError(f"server {server} is not on the ring")
        slots = tuple(VACANT if each == server else each for each in self.slots)
        return Ring(slots, self.virtual_servers)

    def segments(self, extent: int = END) -> Segments:
        """Return the owners of all keys in [0, extent): cached. ValueError unless 0 < extent <= 2**64."""
        return _segments(self, extent)

    def owner(self, key: int, extent: int = END) -> int:
        """Return the server that owns a key."""
        begins, owners = _segments(self, extent)
        return int(owners[begins.searchsorted(np.uint64(key), "right") - 1])

    def owners(self, within: KeyRange, extent: int = END) -> list[tuple[KeyRange, int]]:
        """Return the parts of `within` that one server owns, in key order, each with its owner."""
        begins, owners = _segments(self, extent)
        within = KeyRange(within.begin, min(within.end, extent))
        if within.empty:
            return []
        first = int(begins.searchsorted(np.uint64(within.begin), "right")) - 1
        last = int(begins.searchsorted(np.uint64(within.end - 1), "right"))
        cuts = [within.begin, *begins[first + 1 : last].tolist(), within.end]
        ranges = (KeyRange(begin, end) for begin, end in pairwise(cuts))
        return list(zip(ranges, owners[first:last].tolist(), strict=True))

    def owned(self, server: int, extent: int = END) -> list[KeyRange]:
        """Return the ranges that a server owns, in key order; none if it is not on the ring."""
        return [keys for keys, owner in self.owners(KeyRange(0, extent), extent) if owner == server]

    def replicas(self, key: int, k: int, extent: int = END) -> tuple[int, ...]:
        """Return the servers that hold copies of a key, in the order in which they would own it.

        They are `k`, or all others where there are fewer; the same for all keys of a segment.
        """
        points = _points(self)
        at = _bisect(points, key, extent)
        found = [points[at][1]]
        for back in range(1, len(points)):
            if len(found) > k:
                break
            server = points[at - back][1]
            if server not in found:
                found.append(server)
        return tuple(found[1:])

    def copied(self, server: int, k: int, extent: int = END) -> list[KeyRange]:
        """Return the ranges that a server holds copies of, its own not among them, as few as can be."""
        parts = self.owners(KeyRange(0, extent), extent)
        return coalesce(keys for keys, _ in parts if server in self.replicas(keys.begin, k, extent))


def difference(old: Ring, new: Ring, extent: int = END) -> list[Move]:
    """Return the ranges whose owner differs between two rings, in key order, as few as can be."""
    moves: list[Move] = []
    for keys, source in old.owners(KeyRange(0, extent), extent):
        for part, target in new.owners(keys, extent):
            if source == target:
                continue
            last = moves[-1] if moves else None
            if last and last.keys.end == part.begin and last[1:] == (source, target):
                moves[-1] = Move(KeyRange(last.keys.begin, part.end), source, target)
            else:
                moves.append(Move(part, source, target))
    return moves


def _count(slot: int, virtual_servers: int) -> int:
    """Return how many points a slot has: enough to take a little from each slot before it."""
    return max(1, virtual_servers, min(slot, _MOST_POINTS) if slot > 1 else 1)


@lru_cache(maxsize=32)
def _placement(slots: int, virtual_servers: int) -> tuple[tuple[int, int], ...]:
    """Return the points (position, slot) of the first slots of every ring, in ring order.

    Those of a slot do not depend on how many slots come after it.
    """
    count = _count(0, virtual_servers)
    cuts = [END * i // count for i in range(count + 1)]
    ranges = [[(begin - end, begin) for begin, end in pairwise(cuts)]]  # by slot: a heap of (-length, begin)
    heapify(ranges[0])
    loads = [(-END, 0)]  # a heap of (-load, slot)
    for slot in range(1, slots):
        count = _count(slot, virtual_servers)
        needed = END // (slot + 1)
        mine: list[tuple[int, int]] = []
        for left in range(count, 0, -1):
            load, donor = heappop(loads)
            length, begin = heappop(ranges[donor])
            part = min(needed // left, -length * 3 // 4)
            heappush(ranges[donor], (length + part, begin))
            heappush(loads, (load + part, donor))
            heappush(mine, (-part, begin - length - part))
            needed -= part
        ranges.append(mine)
        heappush(loads, (sum(length for length, _ in mine), slot))
    return tuple(sorted((begin, slot) for slot, own in enumerate(ranges) for _, begin in own))


@lru_cache(maxsize=64)
def _points(ring: Ring) -> tuple[tuple[int, int], ...]:
    """Return the points (position, server) of a ring, in ring order."""
    placed = _placement(len(ring.slots), ring.virtual_servers)
    return tuple((position, ring.slots[slot]) for position, slot in placed if ring.slots[slot] != VACANT)


def _bisect(points: tuple[tuple[int, int], ...], key: int, extent: int) -> int:
    """Return the index of the last point at or before `key` on the scaled ring; -1 is the last of all."""
    low, high = 0, len(points)
    while low < high:
        middle = (low + high) // 2
        if points[middle][0] * extent >> 64 <= key:
            low = middle + 1
        else:
            high = middle
    return low - 1


@lru_cache(maxsize=256)
def _segments(ring: Ring, extent: int) -> Segments:
    if not 0 < extent <= END:
        raise ValueError(f"the extent of a key space is in [1, 2**64], got {extent}")
    points = _points(ring)
    before = points[-1][1]  # the range of the last point goes on round the ring, through 0
    begins, owners = [0], [before]
    for position, server in points:
        begin = position * extent >> 64
        if server == before:
            continue
        before = server
        if begin == begins[-1]:  # the range before this point is empty
            owners[-1] = server
        else:
            begins.append(begin)
            owners.append(server)
    segments = Segments(np.array(begins, np.uint64), np.array(owners, np.int32))
    for array in segments:
        array.setflags(write=False)
    return segments
