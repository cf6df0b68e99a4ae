"""The key ring: which server owns which keys, and which servers hold copies of them (paper, section 4.3).

Keys and virtual servers are placed on one ring of 2**64 positions, on which keys increase counter-clockwise. A range
belongs to the server at whose point it begins, and a server also holds copies of the k ranges that follow
its own counter-clockwise. So the replicas of a range are on the next k distinct servers clockwise from it, and the
first of them becomes the owner of the range when its owner leaves.

The range between two neighbouring points is a *shard*: the keys of one virtual server. The points of all slots, taken
or vacant, exist from the start, so shards are fixed: when a server joins, leaves or dies, only their holders change.
Neither the rows of a shard nor its record of applied requests are ever split or merged.

The paper places points at random. With v points per server, the fullest server then has about 2/sqrt(v) more
than its share. To keep this below 15 %, each server needs hundreds of points, and each point inside a block of keys
adds a message to every push of the block. So points are placed by a deterministic rule instead. Servers take slots
0, 1, 2 ...; the points of slot s are a fixed function of s, computed by adding slots in order: a new slot
places each of its points in the longest range of the server with the largest share, and takes an equal
part of its share there. This keeps the property of consistent hashing: points do not depend on the other servers,
so a server that joins only receives shards, one that leaves only loses them, and no other shard moves. When
the first slots are taken and the others vacant, the fullest server has at most 1 % more than its share up to 16
servers, and 6 % beyond. Slot s has max(1, s) points, at most 16: two shards for 2 slots, 22 for 7, 121 for 16. A slot
that a server has left is taken by the next one to join, which then owns the same shards. While the slot is vacant,
one server may have up to twice its share, since points are few; 16 virtual servers reduce this to 1.35 times.

The failure of a host takes all its ranks, so copies are placed on different hosts. Ownership does not depend on
hosts, so loads stay even. Among the servers clockwise from the owner, the first one of each host is chosen
before the second one of any host: a replica is on its primary's host only where no other host has a server. On one
host, or where hosts are not known, this is the plain order. When an owner dies, its first replica becomes primary
at once. If the next owner on the ring is another server, on the host of the dead one, that server receives a copy in
the background and then takes over the shard, like a server that joins.

A namespace with keys in [0, extent) uses the ring scaled to its extent, so that dense keys spread as hashed ones do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mpips.ranges import END, KeyRange

VACANT = -1
"""The entry of a slot without a server."""

MOST_POINTS = 16
"""Most points of a slot, unless more are configured."""
MOST_HOLDERS = 1 << 18
"""Upper bound for the shards times the servers that hold each, which every rank computes: in some seconds."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The ring of some servers: pure data, equal on all ranks that have the same arguments.

    Servers are ints >= 0 (their ranks). ValueError for a repeated, negative or missing one.
    """

    slots: tuple[int, ...]
    """The server in each slot, or VACANT."""

    virtual_servers: int = 0
    """Least number of points per server; 0: as few as keep the load even. More points spread a departed server's
    ranges over more servers, and cost messages."""

    hosts: tuple[int, ...] = ()
    """By rank: the number of its host; empty where all are on one host, or hosts do not matter."""

    def __post_init__(self) -> None:
        servers = self.servers
        if not servers:
            raise ValueError("a ring needs at least one server")
        if len(set(servers)) < len(servers) or min(self.slots) < VACANT:
            raise ValueError(f"servers must be distinct and not negative, got {self.slots}")
        if self.virtual_servers < 0:
            raise ValueError(f"virtual_servers must be at least 0, got {self.virtual_servers}")
        if self.hosts and max(servers) >= len(self.hosts):
            raise ValueError(f"server {max(servers)} has no host: there are {len(self.hosts)}")

    @classmethod
    def of(
        cls, servers: Iterable[int], virtual_servers: int = 0, slots: int = 0, hosts: Sequence[Hashable] = ()
    ) -> Ring:
        """Return a new ring of `slots` slots; `servers` take the first ones, in order.

        `hosts` are host names of any type, by rank.
        """
        taken = tuple(servers)
        return cls(taken + (VACANT,) * (slots - len(taken)), virtual_servers, numbered(hosts))

    @property
    def servers(self) -> tuple[int, ...]:
        """Return the servers on the ring, in slot order."""
        return tuple([server for server in self.slots if server != VACANT])

    @property
    def shards(self) -> int:
        """Return the number of shards: a function of the number of slots."""
        return len(_placement(len(self.slots), self.virtual_servers))

    def join(self, server: int) -> Ring:
        """Return the ring with `server` in the first vacant slot; ValueError if no slot is vacant."""
        slots = list(self.slots)
        if VACANT not in slots:
            raise ValueError(f"no slot is left for server {server}: the ring has {len(slots)}")
        slots[slots.index(VACANT)] = server
        return replace(self, slots=tuple(slots))

    def leave(self, server: int) -> Ring:
        """Return the ring without a server; its slot stays vacant until another joins."""
        if server not in self.servers:
            raise ValueError(f"server {server} is not on the ring")
        slots = tuple([VACANT if each == server else each for each in self.slots])
        return replace(self, slots=slots)

    def host(self, server: int) -> int:
        """Return the number of a server's host."""
        return self.hosts[server] if self.hosts else 0

    def cuts(self, extent: int = END) -> NDArray[np.uint64]:
        """Return the first key of each shard of a key space [0, extent), u64[shards]; read-only.

        A shard that is empty in a small extent begins where the next does. ValueError unless 0 < extent <= 2**64.
        """
        return _cuts(len(self.slots), self.virtual_servers, extent)

    def range(self, shard: int, extent: int = END) -> KeyRange:
        """Return the key range of a shard in a key space [0, extent); it may be empty."""
        cuts = self.cuts(extent)
        return KeyRange(int(cuts[shard]), int(cuts[shard + 1]) if shard + 1 < len(cuts) else extent)

    def holders(self, shard: int, k: int = 0) -> tuple[int, ...]:
        """Return the servers that hold a shard: its owner, then those of the `k` replicas, or all if there are fewer.

        On one host they are in the order of succession to its ownership; see the module for several hosts.
        """
        return _holders(self, k)[shard]

    def chains(self, k: int = 0) -> tuple[tuple[int, ...], ...]:
        """Return `holders` of every shard."""
        return _holders(self, k)


def numbered(hosts: Sequence[Hashable]) -> tuple[int, ...]:
    """Return the number of each host, in order of first appearance; empty where all are the same."""
    numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    return tuple([numbers[host] for host in hosts]) if len(numbers) > 1 else ()


def moved(old: Ring, new: Ring) -> list[int]:
    """Return the shards whose owner differs between two rings with the same number of slots."""
    return [shard for shard in range(old.shards) if old.holders(shard) != new.holders(shard)]


def _count(slot: int, virtual_servers: int) -> int:
    """Return the number of points of a slot: enough to take a part from each slot before it."""
    return max(1, virtual_servers, min(slot, MOST_POINTS) if slot > 1 else 1)


@lru_cache(maxsize=32)
def _placement(slots: int, virtual_servers: int) -> tuple[tuple[int, int], ...]:
    """Return the points (position, slot) of the first slots of every ring, in ring order.

    The points of a slot do not depend on later slots.
    """
    count = _count(0, virtual_servers)
    cuts = [END * i // count for i in range(count + 1)]
    # By slot: a heap of (-length, begin).
    ranges = [[(begin - end, begin) for begin, end in pairwise(cuts)]]
    heapify(ranges[0])
    # A heap of (-load, slot).
    loads = [(-END, 0)]
    for slot in range(1, slots):
        count = _count(slot, virtual_servers)
        needed = END // (slot + 1)
        mine: list[tuple[int, int]] = []
        for remaining in range(count, 0, -1):
            load, donor = heappop(loads)
            length, begin = heappop(ranges[donor])
            part = min(needed // remaining, -length * 3 // 4)
            heappush(ranges[donor], (length + part, begin))
            heappush(loads, (load + part, donor))
            heappush(mine, (-part, begin - length - part))
            needed -= part
        ranges.append(mine)
        heappush(loads, (sum(length for length, _ in mine), slot))
    return tuple(sorted((begin, slot) for slot, own in enumerate(ranges) for _, begin in own))


@lru_cache(maxsize=64)
def _holders(ring: Ring, k: int) -> tuple[tuple[int, ...], ...]:
    """Return `Ring.holders` of every shard."""
    at = [ring.slots[slot] for _, slot in _placement(len(ring.slots), ring.virtual_servers)]
    most = min(k + 1, len(ring.servers))
    count = Counter(ring.host(server) for server in ring.servers)
    wanted = _wanted(list(count.values()), most)
    chains = []
    for shard in range(len(at)):
        # The first servers of their hosts, the second ones ...
        by_level: list[list[int]] = [[] for _ in wanted]
        chosen, remaining = set(), most
        seen = dict.fromkeys(count, 0)
        for back in range(len(at)):
            server = at[shard - back]
            if server == VACANT or server in chosen:
                continue
            chosen.add(server)
            level = seen[ring.host(server)]
            seen[ring.host(server)] += 1
            if level < len(wanted) and len(by_level[level]) < wanted[level]:
                by_level[level].append(server)
                remaining -= 1
                if not remaining:
                    break
        chains.append(tuple([server for level in by_level for server in level]))
    return tuple(chains)


def _wanted(counts: list[int], most: int) -> list[int]:
    """Return how many of `most` servers are the first of their host, the second ...; hosts have `counts` servers."""
    wanted: list[int] = []
    while most:
        wanted.append(min(most, sum(count > len(wanted) for count in counts)))
        most -= wanted[-1]
    return wanted


@lru_cache(maxsize=256)
def _cuts(slots: int, virtual_servers: int, extent: int) -> NDArray[np.uint64]:
    if not 0 < extent <= END:
        raise ValueError(f"the extent of a key space is in [1, 2**64], got {extent}")
    cuts = np.array(
        [position * extent >> 64 for position, _ in _placement(slots, virtual_servers)], np.uint64
    )
    cuts.setflags(write=False)
    return cuts
