"""A server's progress: the last applied round by key range, from the ranged vector clocks (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mpips.server.shard import AGGREGATE, Shard

MOST = 4
"""Largest number of ranges that are listed for a vector."""


class AppliedRounds(NamedTuple):
    """The rounds of one vector that a server has applied; NOTHING (-1): none."""

    latest: int
    """The highest round of all ranges."""
    behind: list[list[int]]
    """[begin, end, round] of the ranges with a lower round, the lowest first; at most `MOST`."""
    more: int
    """The number of further such ranges."""


def applied_rounds(shards: Iterable[Shard]) -> dict[str, AppliedRounds]:
    """Return the applied rounds of each aggregating vector; `shards` are in key order."""
    ranges: dict[str, list[list[int]]] = {}
    for shard in shards:
        for hosted in shard.vectors.values():
            segment = hosted.segment
            if not segment.spec.aggregate:
                continue
            found = ranges.setdefault(segment.spec.name, [])
            for owned in segment.ranges:
                for (begin, end), round_ in hosted.clock.entries(AGGREGATE, owned):
                    if found and found[-1][1:] == [begin, round_]:
                        found[-1][1] = end
                    else:
                        found.append([begin, end, round_])
    return {name: _compact(each) for name, each in ranges.items() if each}


def _compact(ranges: list[list[int]]) -> AppliedRounds:
    latest = max(round_ for _, _, round_ in ranges)
    behind = sorted((each for each in ranges if each[2] < latest), key=lambda each: each[2])
    return AppliedRounds(latest, behind[:MOST], max(len(behind) - MOST, 0))
