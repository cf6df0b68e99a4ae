"""The time breakdown of each rank of a traced run (`mpips.tracing.recorder` writes the traces).

The shares of a rank's time add up to all of it: they are the own times of its spans (`mpips.tracing.spans`).
Where brief spans were only summed, the sums are used, and are subtracted from the enclosing spans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpips.calls import BuiltInCall
from mpips.tracing.one_clock import read
from mpips.tracing.rank_trace import RankTrace, TraceError
from mpips.tracing.spans import Spans, spans, unfinished
from mpips.tracing.trace_file import NOBODY, What

KINDS = {
    What.START: "start", What.PROGRAM: "program", What.PHASE: "program", What.CALL: "program", What.COMPUTE: "compute",
    What.WAIT: "wait", What.EXECUTE: "apply", What.CHAIN: "copies", What.ENCODE: "encode",
    What.DECODE: "encode", What.SERVE: "serve", What.IDLE: "idle", What.LEAVE: "other",
}  # fmt: skip
USES = (
    "compute", "program", "wait", "encode", "apply", "serve", "copies", "checkpoint", "idle", "start", "other",
)  # fmt: skip
"""The uses of a rank's time. program: the program's Python code outside `working()`; apply: execution of requests;
serve: that in compiled code; copies: changes of other primaries; other: sending, receiving, and leaving."""
CHECKPOINTING = frozenset((
    "checkpoint", BuiltInCall.SNAPSHOT, BuiltInCall.RESTORE, BuiltInCall.REBUILD, BuiltInCall.RESTORE_FILTERS,
))  # fmt: skip
"""Names of calls and phases of checkpoints."""
BRIEF = "brief waits, summed"
NEXT_CALL = "the next call"
ANSWERS = frozenset(("push", "pull", "push_pull", "export", BRIEF))
"""Waits for the answers of servers."""


def phases(traces: Iterable[RankTrace]) -> dict[str, tuple[float, float]]:
    """Return (begin, end) of each phase of the program, by name."""
    found: dict[str, tuple[float, float]] = {}
    for trace in traces:
        for each in np.concatenate([trace.of(What.PHASE), unfinished(trace)]):
            name = trace.names.get(int(each["name"]), "")
            if each["what"] == What.PHASE:
                begin, end = found.get(name, (np.inf, -np.inf))
                found[name] = min(begin, float(each["begin"])), max(end, float(each["end"]))
    return found


def summary(run: Path, phase: str = "") -> dict[str, Any]:
    """Return each rank's time breakdown in seconds, in one phase of the program ("train") or in the whole run.

    `ranks`: rank, role, index, host, total `seconds`, `uses` (by `USES`), `busy`, `waiting` (for others, or for
    work), `waits` and `calls` by duration; `dropped` is the number of lost records, `unseen` the seconds that are known
    only as sums. `waits`: the longest of all ranks; `from`: the rank of the last answer, or None; `kind`: "answers" of
    servers, "calls" (for the next call, or for its answers), or "others".

    Raises:
        TraceError: there is no trace, or no such phase in it.
    """
    return summed(read(run), phase)


def summed(traces: Sequence[RankTrace], phase: str = "") -> dict[str, Any]:
    """Summarize traces; see `summary`."""
    known = phases(traces)
    if phase and phase not in known:
        raise TraceError(f"the trace knows no phase {phase!r}; valid: {', '.join(sorted(known)) or 'none'}")
    within = known[phase] if phase else None
    ranks = [_rank_summary(trace, within) for trace in traces]
    waits = [{"rank": rank["rank"], **wait} for rank in ranks for wait in rank["waits"]]
    start, end = within or (min(trace.begin for trace in traces), max(trace.end for trace in traces))
    return {
        "phase": phase,
        "begin": start,
        "seconds": end - start,
        "ranks": ranks,
        "waits": sorted(waits, key=lambda wait: -wait["seconds"])[:20],
        "dropped": sum(trace.dropped for trace in traces),
    }


def _rank_summary(trace: RankTrace, within: tuple[float, float] | None) -> dict[str, Any]:
    begin, end = within or (trace.begin, trace.end)
    begin, end = max(begin, trace.begin), max(min(end, trace.end), max(begin, trace.begin))
    found = spans(trace, (begin, end))
    uses = dict.fromkeys(USES, 0.0)
    waits: dict[tuple[str, int], list[float]] = {}
    calls: dict[str, list[float]] = {}
    grouped = _grouped(found)
    for what, name, peer, seconds, whole, count in grouped:
        text = trace.names.get(name, "?")
        kind = KINDS[What(what)]
        uses["checkpoint" if kind == "program" and text in CHECKPOINTING else kind] += seconds
        if what == What.WAIT:
            waits[text or "others", peer] = [seconds, count]
        elif what == What.CALL:
            each = calls.setdefault(text, [0.0, 0])
            each[0] += whole
            each[1] += count
    unseen = _unseen(trace, begin, end)
    for number, seconds in unseen.items():
        uses[KINDS[What(number)]] += seconds
    if unseen.get(What.WAIT):
        waits[BRIEF, NOBODY] = [unseen[What.WAIT], 0]
    # Brief spans that were only summed lie inside other spans.
    inner = sum(seconds for number, seconds in unseen.items() if number not in (What.IDLE, What.EXECUTE))
    uses["program"] -= min(inner, uses["program"])
    over, known = sum(uses.values()) - (end - begin), sum(unseen.values())
    if over > 0.0 < known:
        # Each sum covers some milliseconds, in which a phase may begin or end.
        for number, seconds in unseen.items():
            uses[KINDS[What(number)]] -= seconds * min(over / known, 1.0)
    uses["other"] += max(0.0, end - begin - sum(uses.values()))
    waiting = uses["wait"] + uses["idle"]
    return {
        "rank": trace.rank,
        "role": trace.role,
        "index": trace.index,
        "host": trace.host,
        "seconds": end - begin,
        "uses": uses,
        "busy": max(0.0, end - begin - waiting),
        "waiting": waiting,
        "waits": [
            {
                "for": name,
                "from": None if peer == NOBODY else peer,
                "kind": _kind(name, peer),
                "seconds": seconds,
                "count": int(count),
            }
            for (name, peer), (seconds, count) in sorted(waits.items(), key=lambda each: -each[1][0])
        ],
        "calls": {
            name: {"seconds": seconds, "count": int(count)} for name, (seconds, count) in calls.items()
        },
        "records": len(trace.records),
        "dropped": trace.dropped,
        "unseen": sum(unseen.values()),
    }


def _kind(name: str, peer: int) -> str:
    """Return the kind of a wait; see `summary`."""
    if name in ANSWERS:
        return "answers"
    return "calls" if name == NEXT_CALL or peer != NOBODY else "others"


def _grouped(found: Spans) -> list[tuple[int, int, int, float, float, int]]:
    """Sum spans by kind, name and peer: own seconds, seconds including inner spans, number."""
    kinds = found.records[["what", "name", "peer"]].copy()
    kinds["peer"][found.records["what"] != What.WAIT] = NOBODY
    groups, which = np.unique(kinds, return_inverse=True)
    own, whole, count = (
        np.bincount(which, weights, len(groups))
        for weights in (found.own, found.end - found.begin, np.ones(len(which)))
    )
    return [
        (
            int(group["what"]),
            int(group["name"]),
            int(group["peer"]),
            float(own[i]),
            float(whole[i]),
            int(count[i]),
        )
        for i, group in enumerate(groups)
    ]


def _unseen(trace: RankTrace, begin: float, end: float) -> dict[int, float]:
    """Return the seconds known only as sums, by `What`; of a gap that is only partly in the interval, that part."""
    total: dict[int, float] = {}
    gaps = [
        (float(each["begin"]), float(each["end"]), int(each["name"]), int(each["size"]) * 1e-9)
        for each in trace.of(What.UNSEEN)
    ]
    gaps += [
        (float(each["begin"]), float(each["end"]), int(What.IDLE), int(each["address"]) * 1e-6)
        for each in trace.of(What.MOVED)
    ]
    gaps += [
        (trace.unseen_since, trace.end, what, seconds)
        for what, seconds in trace.unseen.items()
        if seconds > 0
    ]
    for since, until, what, seconds in gaps:
        inside = max(0.0, min(end, until) - max(begin, since)) / max(until - since, 1e-9)
        if inside:
            total[what] = total.get(what, 0.0) + seconds * inside
    return total
