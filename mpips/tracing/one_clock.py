"""Clock synchronization of the traces of a run.

The ranks of a machine share its monotonic clock. First all clocks are aligned by the time of day. Each request between
two machines then bounds the offset of their clocks: it was executed after it was sent and before its answer arrived.
The middle of the interval that all requests allow is used.
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
        TraceError: there is none, or one is invalid.
    """
    traces, problems = readable(folder)
    if problems:
        raise problems[0]
    return traces


def readable(folder: Path) -> tuple[list[RankTrace], list[TraceError]]:
    """Read the valid traces of a run, by rank, on one clock; return them, and the errors of the others.

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


class MatchedRequests(NamedTuple):
    """Requests and their executions: `request[i]` of `caller[i]` was executed as `execution[i]` by `callee[i]`.

    The ranks are positions in the list of traces.
    """

    caller: NDArray[np.int64]
    request: Records
    callee: NDArray[np.int64]
    execution: Records


def _names_of(records: Records) -> NDArray[np.uint64]:
    """Hash (origin, address, time) of each record to a number."""
    mixed = records["time"].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= records["origin"].astype(np.int64).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= records["address"].astype(np.int64).astype(np.uint64) * np.uint64(0x165667B19E3779F9)
    return mixed


def matched_requests(traces: Sequence[RankTrace], on_one_clock: bool = True) -> MatchedRequests:
    """Find the requests whose execution is recorded, each with one execution.

    A request that was repeated after the death of a server may have two executions: the last one before the answer is
    used, if it follows the (last) sending. Without a common clock such requests are left out.
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
    return MatchedRequests(caller[found], requests[found], callee[which], executions[which])


def align(traces: Sequence[RankTrace]) -> dict[str, float]:
    """Set all traces to the clock of the first one's machine; return the offset in seconds of each clock."""
    clocks = list(dict.fromkeys(trace.clock for trace in traces))
    changed = {clocks[0]: 0.0}
    if len(clocks) > 1:
        number = np.array([clocks.index(trace.clock) for trace in traces])
        pairs = matched_requests(traces, on_one_clock=False)
        here, there = number[pairs.caller], number[pairs.callee]
        # The bounds of the callee's offset relative to the caller's clock: lower, upper.
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
