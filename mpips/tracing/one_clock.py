"""The traces of a run on one clock.

Monotonic clocks are a machine's own: its ranks share one. At first all are set by the time of day. Then each request
that one machine has asked another says more: it was executed after it was sent and before its answer came. What all of
them leave possible is narrower than what clocks are off, and its middle is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.rundir.folder import RunFolder
from mpips.tracing.rank_trace import RankTrace, Records, TraceError, load
from mpips.tracing.trace_file import What


def read(folder: Path) -> list[RankTrace]:
    """Read all traces of a run, by rank, on one clock.

    Raises:
        TraceError: there is none, or one is no trace.
    """
    traces, problems = readable(folder)
    if problems:
        raise problems[0]
    return traces


def readable(folder: Path) -> tuple[list[RankTrace], list[TraceError]]:
    """Read those traces of a run that can be read, by rank, on one clock; return what is wrong with the others, too.

    Raises:
        TraceError: there is none.
    """
    paths = sorted(RunFolder(folder).trace.glob("rank-*.bin"))
    if not paths:
        raise TraceError(f"{folder}: has no trace; run the job with --set trace.on=true")
    traces, problems = [], []
    walls: dict[str, float] = {}
    for path in paths:
        try:
            trace, wall = load(path)
        except TraceError as error:
            problems.append(error)
            continue
        trace.set_forward(walls.setdefault(trace.clock, wall))
        traces.append(trace)
    if traces:
        align(traces)
    return traces, problems


class Tied(NamedTuple):
    """Requests and their executions: `request[i]` of `caller[i]` was executed as `execution[i]` by `callee[i]`.

    The ranks are positions in the list of traces.
    """

    caller: NDArray[np.int64]
    request: Records
    callee: NDArray[np.int64]
    execution: Records


def _names_of(records: Records) -> NDArray[np.uint64]:
    """Mix (origin, address, time) into one number each."""
    mixed = records["time"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= records["origin"].astype(np.int64).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= records["address"].astype(np.int64).astype(np.uint64) * np.uint64(0x165667B19E3779F9)
    return mixed


def tied(traces: Sequence[RankTrace], on_one_clock: bool = True) -> Tied:
    """Find the requests whose execution is recorded, each with one execution.

    What was asked again as its server had died may have been executed twice: the last one before the answer counts, if
    it came after the request was sent (again). Without common clock those are left out.
    """
    asked, done = (
        [trace.of(*what) for trace in traces] for what in ((What.REQUEST,), (What.EXECUTE, What.CALL))
    )
    caller, callee = (
        np.repeat(np.arange(len(traces)), [len(each) for each in some]) for some in (asked, done)
    )
    requests, executions = np.concatenate(asked), np.concatenate(done)
    names = _names_of(executions)
    order = np.lexsort((executions["begin"], names))
    names, executions, callee = names[order], executions[order], callee[order]
    wanted = _names_of(requests)
    first, last = np.searchsorted(names, wanted), np.searchsorted(names, wanted, "right")
    which = last - 1
    if on_one_clock:
        for again in np.flatnonzero(last - first > 1):
            at, before = slice(first[again], last[again]), requests[again]["end"]
            which[again] = first[again] + max(1, np.count_nonzero(executions[at]["begin"] <= before)) - 1
    found = np.flatnonzero(last > first if on_one_clock else last - first == 1)
    which = which[found]
    if on_one_clock:
        began = executions["begin"][which]
        kept = (requests["begin"][found] <= began) & (began <= requests["end"][found])
        found, which = found[kept], which[kept]
    return Tied(caller[found], requests[found], callee[which], executions[which])


def align(traces: Sequence[RankTrace]) -> dict[str, float]:
    """Set all traces to the clock of the first one's machine; return by how many seconds each clock was changed."""
    clocks = list(dict.fromkeys(trace.clock for trace in traces))
    changed = {clocks[0]: 0.0}
    if len(clocks) > 1:
        number = np.array([clocks.index(trace.clock) for trace in traces])
        pairs = tied(traces, on_one_clock=False)
        here, there = number[pairs.caller], number[pairs.callee]
        # By how much the callee's clock may be set forward, relative to the caller's: at least, at most.
        least = pairs.request["begin"] - pairs.execution["begin"]
        most = pairs.request["end"] - pairs.execution["begin"]
        reached = [0]
        for one in reached:
            for other in range(len(clocks)):
                if other in reached:
                    continue
                ahead, back = (here == one) & (there == other), (here == other) & (there == one)
                low, high = [*least[ahead], *-most[back]], [*most[ahead], *-least[back]]
                if low:
                    changed[clocks[other]] = changed[clocks[one]] + (max(low) + min(high)) / 2
                    reached.append(other)
    for trace in traces:
        trace.set_forward(changed.setdefault(trace.clock, 0.0))
    return changed
