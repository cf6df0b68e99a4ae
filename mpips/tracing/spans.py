"""Spans of a rank: their nesting, and the own time of each: its duration without its inner spans."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.tracing.rank_trace import SPANS, RankTrace, Records
from mpips.tracing.trace_file import What


class Spans(NamedTuple):
    """A rank's spans by begin, inner ones after enclosing ones: records; begin and end as nested; own seconds."""

    records: Records
    begin: NDArray[np.float64]
    end: NDArray[np.float64]
    own: NDArray[np.float64]
    outer: NDArray[np.int64]
    """The index of the enclosing span; -1: none."""


@kernel("void(f8[::1], f8[::1], f8[::1], i8[::1])")
def nest(begin: Any, end: Any, own: Any, outer: Any) -> None:
    """Find the enclosing span of each, sorted by begin and descending end; inner spans are cut at its end."""
    inside = -1
    for i in range(len(begin)):
        while inside >= 0 and end[inside] <= begin[i]:
            inside = outer[inside]
        outer[i] = inside
        if inside >= 0:
            end[i] = min(end[i], end[inside])
            own[inside] -= end[i] - begin[i]
        own[i] = end[i] - begin[i]
        inside = i


def spans(trace: RankTrace, within: tuple[float, float] | None = None) -> Spans:
    """Return a rank's spans, or their parts `within` an interval; unfinished ones end with the trace."""
    found = np.concatenate([trace.of(*SPANS), unfinished(trace)])
    begin, end = found["begin"], np.maximum(found["end"], found["begin"])
    if within is not None:
        begin, end = np.maximum(begin, within[0]), np.minimum(end, within[1])
        kept = end > begin
        found, begin, end = found[kept], begin[kept], end[kept]
    order = np.lexsort((-end, begin))
    found, begin, end = found[order], begin[order].copy(), end[order].copy()
    own, outer = np.zeros(len(found)), np.full(len(found), -1, np.int64)
    nest(begin, end, own, outer)
    return Spans(found, begin, end, own, outer)


def unfinished(trace: RankTrace) -> Records:
    """Return spans for the recorded begins without an end: the rank was killed in them."""
    begun = trace.of(What.BEGUN).copy()
    begun["what"], begun["end"], begun["size"] = begun["size"], trace.end, 0
    ended = trace.of(What.PROGRAM, What.PHASE, What.CALL, What.LEAVE)
    return begun[~np.isin(begun["begin"], ended["begin"])]
