"""Traces, read back: what each rank did when, on one clock, and where its time went (`mpips.tracing.recorder` writes
them).

The spans of a rank nest. What a span took for itself is what its inner ones leave of it, so the shares of a rank's
time add up to all of it. Where brief spans were only summed, the sums count, and are taken from what lies around them.

Monotonic clocks are a machine's own: its ranks share one. At first all are set by the time of day. Then each request
that one machine has asked another says more: it was executed after it was sent and before its answer came. What all of
them leave possible is narrower than what clocks are off, and its middle is taken.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.calls import Own
from mpips.errors import InputError
from mpips.files.safe_open import open_regular
from mpips.jit.kernel import kernel
from mpips.rundir.folder import RunFolder
from mpips.tracing.recorder import COUNTS, FACTS, HEADER, MAGIC, NAMES, NOBODY, What

DTYPE = np.dtype(
    [
        ("begin", "<f8"), ("end", "<f8"), ("time", "<i8"), ("size", "<i8"), ("peer", "<i4"), ("address", "<i4"),
        ("origin", "<i4"), ("name", "<u2"), ("what", "<u2"),
    ]
)  # fmt: skip
Records = NDArray[Any]

SPANS = (
    What.START, What.PROGRAM, What.PHASE, What.CALL, What.COMPUTE, What.WAIT, What.EXECUTE, What.CHAIN,
    What.ENCODE, What.DECODE, What.SERVE, What.IDLE, What.LEAVE,
)  # fmt: skip
"""What a rank does with its own time, as far as it is recorded."""
KINDS = {
    What.START: "start", What.PROGRAM: "program", What.PHASE: "program", What.CALL: "program", What.COMPUTE: "compute",
    What.WAIT: "wait", What.EXECUTE: "apply", What.CHAIN: "copies", What.ENCODE: "encode",
    What.DECODE: "encode", What.SERVE: "serve", What.IDLE: "idle", What.LEAVE: "other",
}  # fmt: skip
USES = (
    "compute",
    "program",
    "wait",
    "encode",
    "apply",
    "serve",
    "copies",
    "checkpoint",
    "idle",
    "start",
    "other",
)
"""What a rank's time goes to. program: the program's own Python outside `working()`; apply: requests executed; serve:
those by compiled code; copies: what comes along chains; other: moving messages, and leaving."""
CHECKPOINTING = frozenset(("checkpoint", Own.SNAPSHOT, Own.RESTORE, Own.REBUILD, Own.RESTORE_FILTERS))
"""Names of calls and phases that are about checkpoints."""
FAR = 1e12
"""Seconds: no time of any clock is beyond."""
_KNOWN = tuple(What)[1:]
BRIEF = "brief waits, summed"
NEXT_CALL = "the next call"
ANSWERS = frozenset(("push", "pull", "push_pull", "export", BRIEF))
"""Waits for the answers of servers."""


class TraceError(InputError):
    """A trace is missing or damaged."""


@dataclass
class RankTrace:
    """One rank's trace: records in the order in which they were written, times in seconds since the epoch.

    `unseen` are seconds by `What`, from `unseen_since` on, that are in no record; `dropped` counts records for which
    there was no room; `end` is when the trace ended.
    """

    rank: int
    role: str
    index: int
    host: str
    clock: str
    records: Records
    names: dict[int, str]
    end: float
    dropped: int
    unseen: dict[int, float]
    unseen_since: float

    @property
    def begin(self) -> float:
        """When it begins."""
        return float(self.records["begin"].min()) if len(self.records) else self.end

    @property
    def label(self) -> str:
        """Its name: worker 2 (rank 5, host)."""
        return f"{self.role} {self.index} (rank {self.rank}, {self.host})"

    def of(self, *what: What) -> Records:
        """Return its records of some kinds."""
        return self.records[np.isin(self.records["what"], what)]


class Spans(NamedTuple):
    """A rank's spans by begin, inner ones after those around them: records; begin and end as they nest; own seconds."""

    records: Records
    begin: NDArray[np.float64]
    end: NDArray[np.float64]
    own: NDArray[np.float64]
    outer: NDArray[np.int64]
    """The span around each; -1: none."""


@kernel("void(f8[::1], f8[::1], f8[::1], i8[::1])")
def _nest(begin: Any, end: Any, own: Any, outer: Any) -> None:
    """Find what is around each of the spans, sorted by begin and then the later end first; inner ones end with it."""
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
    """Give a rank's spans, or what lies of them `within` a time; those that never ended end with the trace."""
    found = np.concatenate([trace.of(*SPANS), _unfinished(trace)])
    begin, end = found["begin"], np.maximum(found["end"], found["begin"])
    if within is not None:
        begin, end = np.maximum(begin, within[0]), np.minimum(end, within[1])
        kept = end > begin
        found, begin, end = found[kept], begin[kept], end[kept]
    order = np.lexsort((-end, begin))
    found, begin, end = found[order], begin[order].copy(), end[order].copy()
    own, outer = np.zeros(len(found)), np.full(len(found), -1, np.int64)
    _nest(begin, end, own, outer)
    return Spans(found, begin, end, own, outer)


def _unfinished(trace: RankTrace) -> Records:
    """Make spans of what has begun and was never recorded as ended: the rank was killed in it."""
    begun = trace.of(What.BEGUN).copy()
    begun["what"], begun["end"], begun["size"] = begun["size"], trace.end, 0
    ended = trace.of(What.PROGRAM, What.PHASE, What.CALL, What.LEAVE)
    return begun[~np.isin(begun["begin"], ended["begin"])]


# --- reading -------------------------------------------------------------------------------------------


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
    """Read those traces of a run that can be read, by rank, on one clock; give what is wrong with the others, too.

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
            trace, wall = _read(path)
        except TraceError as error:
            problems.append(error)
            continue
        _set_forward(trace, walls.setdefault(trace.clock, wall))
        traces.append(trace)
    if traces:
        align(traces)
    return traces, problems


def _set_forward(trace: RankTrace, seconds: float) -> None:
    """Add so much to all times of a trace."""
    trace.records["begin"] += seconds
    trace.records["end"] += seconds
    trace.end += seconds
    trace.unseen_since += seconds


def _read(path: Path) -> tuple[RankTrace, float]:
    """Read a trace as it was written, and by how much the time of day was ahead of its clock."""
    try:
        with open_regular(path, follow=False) as file:
            head = file.read(HEADER)
            if len(head) < HEADER or head[: len(MAGIC)] != MAGIC:
                raise TraceError(f"{path}: is no trace, or was cut off")
            records = np.fromfile(file, DTYPE)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    blank = np.flatnonzero(records["what"] == What.NOTHING)
    records = records[: blank[0]] if len(blank) else records
    size = struct.unpack_from("<q", head, len(MAGIC))[0]
    try:
        facts = json.loads(head[FACTS : FACTS + size])
        lines = [line.split(b" ", 1) for line in head[NAMES:].rstrip(b"\0").splitlines()]
        names = {int(number): str(json.loads(text)) for number, text in lines}
        end, dropped, _, since, *unseen = struct.unpack_from(f"<dqqd{len(What)}d", head, COUNTS)
        wall = float(facts["wall"])
        last = float(records["end"].max()) if len(records) else 0.0
        trace = RankTrace(
            int(facts["rank"]), str(facts["role"]), int(facts["index"]), str(facts["host"]), str(facts["clock"]),
            records, names, max(end, last), int(dropped),
            {int(what): unseen[what] for what in SPANS}, since,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise TraceError(f"{path}: is damaged: {error}") from None
    wrong = _wrong(records)
    if len(wrong):
        raise TraceError(f"{path}: is damaged: record {wrong[0]} is none")
    if not (np.abs([wall, end, since, *unseen]) < FAR).all():
        raise TraceError(f"{path}: is damaged: it has no sound times")
    return trace, wall


def _wrong(records: Records) -> NDArray[np.int64]:
    """Find the records that no rank has written."""
    what, size = records["what"], records["size"]
    sound = (np.abs(records["begin"]) < FAR) & (np.abs(records["end"]) < FAR) & np.isin(what, _KNOWN)
    sound &= np.where(what == What.BEGUN, np.isin(size, SPANS), True)
    sound &= np.where(what == What.UNSEEN, np.isin(records["name"], SPANS), True)
    return np.flatnonzero(~sound)


# --- one clock -----------------------------------------------------------------------------------------


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
    """Set all traces to the clock of the first one's machine; give by how many seconds each clock was changed."""
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
        _set_forward(trace, changed.setdefault(trace.clock, 0.0))
    return changed


# --- where the time went -------------------------------------------------------------------------------


def phases(traces: Iterable[RankTrace]) -> dict[str, tuple[float, float]]:
    """Give from when to when each phase of the program went on, by name."""
    found: dict[str, tuple[float, float]] = {}
    for trace in traces:
        for each in np.concatenate([trace.of(What.PHASE), _unfinished(trace)]):
            name = trace.names.get(int(each["name"]), "")
            if each["what"] == What.PHASE:
                begin, end = found.get(name, (np.inf, -np.inf))
                found[name] = min(begin, float(each["begin"])), max(end, float(each["end"]))
    return found


def summary(run: Path, phase: str = "") -> dict[str, Any]:
    """Say where each rank's time went, in one phase of the program ("train") or in the whole run: seconds.

    `ranks`: rank, role, index, host, `seconds` in all, `uses` (by `USES`), `busy`, `waiting` (for others, or for
    work), `waits` and `calls` by what they took; `dropped` and `unseen` say what is in no record: how many, and seconds
    that are known as sums only. `waits`: the longest of all ranks; `from`: the rank whose answer came last, or None;
    `kind`: whether for "answers" of servers, for "calls" (the next one, or what was called), or for "others".

    Raises:
        TraceError: there is no trace, or no such phase in it.
    """
    return summed(read(run), phase)


def summed(traces: Sequence[RankTrace], phase: str = "") -> dict[str, Any]:
    """Sum up traces; see `summary`."""
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
    # Brief spans that were only summed lie in what is around them.
    inner = sum(seconds for number, seconds in unseen.items() if number not in (What.IDLE, What.EXECUTE))
    uses["program"] -= min(inner, uses["program"])
    over, known = sum(uses.values()) - (end - begin), sum(unseen.values())
    if over > 0.0 < known:  # sums are of some milliseconds each, and a phase may begin or end within those
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
    """Say what kind of thing a wait was for."""
    if name in ANSWERS:
        return "answers"
    return "calls" if name == NEXT_CALL or peer != NOBODY else "others"


def _grouped(found: Spans) -> list[tuple[int, int, int, float, float, int]]:
    """Sum spans by what, name and peer: own seconds, seconds with what is inside, how many."""
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
    """Give the seconds that are known as sums only, by `What`: those of a gap that reaches out of the time in part."""
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
