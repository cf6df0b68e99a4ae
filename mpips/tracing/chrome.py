"""Traces as Chrome trace events, which Perfetto and chrome://tracing show.

One process per role and one thread per rank, with one more thread for its background work and one for brief spans that
were only summed. Arrows lead from the sending of a request to its execution, and on to the receipt of its answer. Times
are microseconds since the first span, to the nanosecond.

The format: "Trace Event Format", Google, 2016; the events used are X (a span), s, t, f (a flow), i (an instant), C (a
counter) and M (names).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import cannot_write
from mpips.files.safe_open import replacing
from mpips.tracing.analysis import KINDS
from mpips.tracing.one_clock import matched_requests
from mpips.tracing.rank_trace import RankTrace
from mpips.tracing.spans import Spans, spans
from mpips.tracing.trace_file import NOBODY, What

HEAD = '{"displayTimeUnit": "ms", "otherData": {"start": '
"""The beginning of every file of events."""
ROLES = ("scheduler", "server", "worker", "spare")
PROCESS = 10_001
"""The number of the first role's process: a thread of the same number would be shown as its main thread."""
BACKGROUND, SUMMED = 1_000_000, 2_000_000
"""Offset of the numbers of a rank's further threads."""
_PLAIN = {
    What.START: "start", What.PROGRAM: "program", What.COMPUTE: "compute", What.SERVE: "serve",
    What.IDLE: "idle", What.LEAVE: "leave",
}  # fmt: skip
_FIRST = {
    What.PHASE: "phase ", What.CALL: "", What.WAIT: "wait: ", What.EXECUTE: "", What.CHAIN: "chain: ",
    What.ENCODE: "encode ", What.DECODE: "decode ",
}  # fmt: skip


class Written(NamedTuple):
    """The contents of a file of events: spans, flows, and flows that were left out, since an end lies in no span."""

    spans: int
    flows: int
    unmatched: int


class _Event(NamedTuple):
    """One event of a thread: time (ns), whether it follows spans of the same time, and its text."""

    at: int
    late: int
    text: str


def write(
    traces: Sequence[RankTrace],
    path: Path,
    ranks: Sequence[int] | None = None,
    within: tuple[float, float] | None = None,
) -> Written:
    """Write the events of traces, of some ranks and `within` an interval; compressed if the name ends in .gz.

    Raises:
        InputError: the file cannot be written.
        OSError: there is no room for it.
    """
    chosen = [trace for trace in traces if ranks is None or trace.rank in ranks]
    start = within[0] if within is not None else min((trace.begin for trace in chosen), default=0.0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context(replacing(path, "wb" if path.suffix == ".gz" else "w"))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(file, "wt", 6))
            return _write(file, traces, chosen, start, within)
    except OSError as error:
        raise cannot_write(path, error) from None


def _write(
    file: IO[str],
    traces: Sequence[RankTrace],
    chosen: Sequence[RankTrace],
    start: float,
    within: tuple[float, float] | None,
) -> Written:
    labels = {trace.rank: trace.label for trace in traces}
    began = ""
    # The clock of a damaged trace may say any year.
    with suppress(ValueError, OverflowError, OSError):
        began = datetime.fromtimestamp(start, UTC).isoformat()
    file.write(f'{HEAD}"{began}"}}, "traceEvents": [\n')
    file.write(",\n".join(_names(chosen)))
    found = {trace.rank: spans(trace, within) for trace in chosen}
    flows, unmatched = _flows(traces, found, start)
    count = 0
    for trace in chosen:
        events = list(_spans(trace, found[trace.rank], labels, start))
        count += len(events)
        events += flows.get(trace.rank, [])
        for event in sorted(events, key=lambda each: each[:2]):
            file.write(",\n" + event.text)
        for text in _beside(trace, start, within):
            file.write(",\n" + text)
    file.write("\n]}\n")
    return Written(count, sum(len(each) for each in flows.values()) // 3, unmatched)


def _names(traces: Sequence[RankTrace]) -> Iterator[str]:
    """Yield the names and the order of processes and threads."""
    for number, role in enumerate(ROLES):
        if any(trace.role == role for trace in traces):
            yield _meta("process_name", PROCESS + number, 0, name=role if role == "scheduler" else role + "s")
            yield _meta("process_sort_index", PROCESS + number, 0, sort_index=number)
    for trace in traces:
        pid = _pid(trace)
        lanes = [(trace.rank, trace.label)]
        if len(trace.of(What.WRITE)):
            lanes.append((BACKGROUND + trace.rank, f"{trace.label}: background"))
        if len(trace.of(What.UNSEEN)):
            lanes.append((SUMMED + trace.rank, f"{trace.label}: brief, summed"))
        for place, (tid, label) in enumerate(lanes):
            yield _meta("thread_name", pid, tid, name=label)
            yield _meta("thread_sort_index", pid, tid, sort_index=3 * trace.rank + place)


def _pid(trace: RankTrace) -> int:
    """Return the number of the process in which a rank is shown."""
    return PROCESS + ROLES.index(trace.role)


def _meta(what: str, pid: int, tid: int, **args: Any) -> str:
    return json.dumps({"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args})


def _ns(times: NDArray[np.float64], start: float) -> NDArray[np.int64]:
    """Return times as nanoseconds since the start."""
    return np.rint((times - start) * 1e9).astype(np.int64)


def _us(ns: int) -> str:
    """Format nanoseconds as microseconds."""
    return f"{ns // 1000}.{ns % 1000:03d}"


def _span(pid: int, tid: int, name: str, kind: str, begin: int, end: int, args: dict[str, Any]) -> str:
    said = f', "args": {json.dumps(args)}' if args else ""
    return (
        f'{{"ph": "X", "name": {json.dumps(name)}, "cat": "{kind}", "pid": {pid}, "tid": {tid}, "ts": {_us(begin)}, '
        f'"dur": {_us(end - begin)}{said}}}'
    )


def _spans(trace: RankTrace, found: Spans, labels: dict[int, str], start: float) -> Iterator[_Event]:
    """Return the spans of a rank's main thread."""
    pid = _pid(trace)
    begins, ends = _ns(found.begin, start).tolist(), _ns(found.end, start).tolist()
    for each, begin, end in zip(found.records.tolist(), begins, ends, strict=True):
        _, last, time, size, peer, _, _, name, what = each
        text = trace.names.get(name, "")
        args: dict[str, Any] = {}
        if what == What.WAIT and peer != NOBODY:
            args = {"last answer": labels.get(peer, f"rank {peer}"), "task": time}
        elif what in (What.EXECUTE, What.CALL) and peer != NOBODY:
            args = {"from": labels.get(peer, f"rank {peer}"), "task": time, "bytes": size}
        elif what in (What.ENCODE, What.DECODE):
            args = {"with": labels.get(peer, f"rank {peer}"), "bytes": size}
        elif what == What.SERVE:
            args = {"requests": size}
        if what in (What.PROGRAM, What.PHASE, What.CALL) and peer == NOBODY and last >= trace.end:
            args = {"unfinished": True}
        shown = _PLAIN.get(what) or _FIRST[what] + (text or "others")
        yield _Event(begin, 0, _span(pid, trace.rank, shown, KINDS[what], begin, end, args))


def _beside(trace: RankTrace, start: float, within: tuple[float, float] | None) -> Iterator[str]:
    """Yield the events of the other threads: background work, sums of brief spans, views, bytes per second."""
    pid, rank = _pid(trace), trace.rank
    low, high = within or (-np.inf, np.inf)
    events: list[_Event] = []
    records = trace.of(What.WRITE, What.UNSEEN, What.VIEW, What.MOVED)
    records = records[(records["end"] > low) & (records["begin"] < high)]
    begins, ends = _ns(records["begin"], start).tolist(), _ns(records["end"], start).tolist()
    before: tuple[int, int, int] | None = None
    gaps: dict[tuple[int, int], dict[str, Any]] = {}
    for each, begin, end in zip(records.tolist(), begins, ends, strict=True):
        _, _, time, size, _, _, _, name, what = each
        if what == What.WRITE:
            text = _span(pid, BACKGROUND + rank, trace.names.get(name, ""), "checkpoint", begin, end, {})
            events.append(_Event(begin, 0, text))
        elif what == What.UNSEEN:
            args = gaps.setdefault((begin, end), {"requests": 0})
            args[f"{KINDS[What(name)]}, ms"] = args.get(f"{KINDS[What(name)]}, ms", 0) + round(size * 1e-6, 6)
            args["requests"] += time
        elif what == What.VIEW:
            text = (
                f'{{"ph": "i", "s": "t", "name": "view {time}", "cat": "view", "pid": {pid}, "tid": {rank}, '
            )
            events.append(_Event(begin, 0, text + f'"ts": {_us(begin)}}}'))
        else:
            if before is not None and end > before[0]:
                since, sent, received = before
                # Bytes per ns to MB/s.
                per = 1e3 / (end - since)
                text = (
                    f'{{"ph": "C", "name": "MB/s, {trace.role} {trace.index}", "pid": {pid}, "tid": {rank}, '
                    f'"ts": {_us(since)}, "args": {{"sent": {(time - sent) * per:.3f}, '
                    f'"received": {(size - received) * per:.3f}}}}}'
                )
                events.append(_Event(since, 0, text))
            before = (end, time, size)
    for (begin, end), args in gaps.items():
        events.append(_Event(begin, 0, _span(pid, SUMMED + rank, "brief spans", "summed", begin, end, args)))
    yield from (event.text for event in sorted(events, key=lambda each: each.at))


def _flows(
    traces: Sequence[RankTrace], found: dict[int, Spans], start: float
) -> tuple[dict[int, list[_Event]], int]:
    """Return the flows from requests to executions and answers, by rank, and the number of those left out."""
    pairs = matched_requests(traces)
    ranks = np.array([trace.rank for trace in traces])
    ends = (
        (ranks[pairs.caller], _ns(pairs.request["begin"], start), "s"),
        (ranks[pairs.callee], _ns(pairs.execution["begin"], start), "t"),
        (ranks[pairs.caller], _ns(pairs.request["end"], start), "f"),
    )
    held = np.ones(len(pairs.request), bool)
    for rank, at, _ in ends:
        inside = np.zeros(len(at), bool)
        for one, its in found.items():
            mine = rank == one
            inside[mine] = _within(its, at[mine], start)
        held &= inside
    pids = {trace.rank: _pid(trace) for trace in traces}
    events: dict[int, list[_Event]] = {}
    for number in np.flatnonzero(held).tolist():
        for ranks_of, times, phase in ends:
            where, when = int(ranks_of[number]), int(times[number])
            bound = ', "bp": "e"' if phase == "f" else ""
            text = (
                f'{{"ph": "{phase}", "name": "request", "cat": "flow", "id": {number + 1}, "pid": {pids[where]}, '
                f'"tid": {where}, "ts": {_us(when)}{bound}}}'
            )
            events.setdefault(where, []).append(_Event(when, 1, text))
    return events, int(np.count_nonzero(~held))


def _within(found: Spans, at: NDArray[np.int64], start: float) -> NDArray[np.bool_]:
    """Return which times lie in a span."""
    outermost = found.outer < 0
    begin, end = _ns(found.begin[outermost], start), _ns(found.end[outermost], start)
    if not len(begin):
        return np.zeros(len(at), bool)
    place = np.searchsorted(begin, at, "right") - 1
    return (place >= 0) & (at < end[np.maximum(place, 0)])
