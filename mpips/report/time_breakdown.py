"""The time breakdown and waits of a traced run's ranks, as bars of the report (the paper's Fig. 10).

`read_breakdown` reads the trace as far as possible: damaged or missing parts are reported in a line each. All other
functions are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from mpips.report.charts import COLOURS, Bar, BarPart, bars
from mpips.report.html import Html, html, table
from mpips.rundir.folder import RunFolder
from mpips.rundir.progress import seconds, share

PHASE = "train"
USES = (
    ("compute", "computing", ("compute",)),
    ("program", "the program's own code", ("program",)),
    ("apply", "executing requests", ("apply", "serve")),
    ("copies", "copies along chains", ("copies",)),
    ("encode", "filters", ("encode",)),
    ("checkpoint", "checkpoints", ("checkpoint",)),
    ("start", "starting", ("start",)),
    ("moving", "moving messages", ("other",)),
    ("waiting", "waiting", ("wait",)),
    ("idle", "nothing to do", ("idle",)),
)
"""The rows shown, in this order: the CSS class, the title, and the kinds of `mpips.tracing.analysis.USES`."""
KINDS = {"answers": "answers: {}", "calls": "the call {}", "others": "{}"}
"""Titles of causes, by the kind of wait (`mpips.tracing.analysis.summary`)."""
WORK, LONGEST_NOTE = "work", 24
MOST_PARTS, MOST_WAITS, MOST_LINES = 4, 8, 4
"""Largest number of waits per cause in a bar, of listed waits, and of listed problems."""


class Traced(NamedTuple):
    """The summary of a run's trace (None: unreadable), and the problems, a line each."""

    found: Mapping[str, Any] | None = None
    problems: tuple[str, ...] = ()


UNTRACED = Traced()


def read_breakdown(folder: RunFolder, ranks: Iterable[int]) -> Traced:
    """Return the time breakdown of a run's training; UNTRACED without a trace.

    `ranks` are expected to have a trace.
    """
    if not any(folder.trace.glob("rank-*.bin")):
        return UNTRACED
    from mpips.tracing.analysis import phases, summed
    from mpips.tracing.one_clock import readable
    from mpips.tracing.rank_trace import TraceError

    try:
        traces, damaged = readable(folder.path)
    except TraceError as error:
        # The trace was removed meanwhile.
        return Traced(None, (str(error),))
    missing = [rank for rank in ranks if not folder.trace_of(rank).is_file()]
    problems = list(map(str, damaged))
    problems += [f"{folder.trace}: there is no trace of rank {rank}" for rank in missing]
    if not traces:
        return Traced(None, tuple(problems))
    trained = PHASE in phases(traces)
    if not trained:
        problems.append("the trace has no phase 'train': these are the sums of the whole run")
    return Traced(summed(traces, PHASE if trained else ""), tuple(problems))


# --- output ----------------------------------------------------------------------------------------------------------


def drawn(traced: Traced, name: str = "") -> Html:
    """Draw a traced run, `name` before the titles if there are several; problems come first."""
    title = f"{name}: " if name else ""
    shown = [title + problem for problem in traced.problems[:MOST_LINES]]
    if len(traced.problems) > MOST_LINES:
        shown.append(f"and {len(traced.problems) - MOST_LINES} more")
    lines = Html().join(html.note(each, "bad") for each in shown)
    if traced.found is None:
        return lines
    ranks, whole = traced.found["ranks"], max(traced.found["seconds"], 0.0)
    when, dropped = "training" if traced.found["phase"] else "the run", traced.found["dropped"]
    full = f"{dropped:,} records exceeded [trace] limit, and are only in the sums."
    note = html.note(full, "soft") if dropped > 0 else ""
    drawing = html.pair(
        html.card(f"{title}time breakdown of {when}, by the trace", _uses(ranks, whole), note),
        html.card(f"{title}waits by cause", _waits(ranks, whole)),
    )
    waits = _longest(traced.found["waits"], {rank["rank"]: _name(rank) for rank in ranks}, whole)
    longest = html.pair(html.card(f"{title}the longest waits", waits)) if waits else ""
    return lines + drawing + longest


def _name(rank: Mapping[str, Any]) -> str:
    return f"{rank['role']}, rank {rank['rank']}"


def _share(rank: Mapping[str, Any], key: str) -> str:
    return share(rank[key] / (rank["seconds"] or 1.0))


def _uses(ranks: Sequence[Mapping[str, Any]], whole: float) -> Html:
    """Draw the time breakdown of each rank."""
    rows, seen = [], set()
    for rank in ranks:
        spent = [(kind, text, sum(rank["uses"][use] for use in uses)) for kind, text, uses in USES]
        parts = [BarPart(value, kind, text) for kind, text, value in spent if value > 0]
        seen |= {part.kind for part in parts}
        rows.append(Bar(_name(rank), parts, f"{_share(rank, 'busy')} busy"))
    key = html.legend([(kind, text) for kind, text, _ in USES if kind in seen])
    return Html(key + bars(rows, label="time breakdown by rank", show=seconds, most=whole))


def cause(wait: Mapping[str, Any]) -> str:
    """Return the title of a wait's cause (`mpips.tracing.analysis.summary`)."""
    called = wait["kind"] == "calls" and wait["from"] is not None
    return KINDS[wait["kind"] if called or wait["kind"] == "answers" else "others"].format(wait["for"])


def causes(ranks: Iterable[Mapping[str, Any]]) -> list[str]:
    """List the causes of waits, longest total first."""
    total: dict[str, float] = {}
    for wait in (wait for rank in ranks for wait in rank["waits"]):
        total[cause(wait)] = total.get(cause(wait), 0.0) + wait["seconds"]
    return sorted(total, key=lambda each: -total[each])


def _waits(ranks: Sequence[Mapping[str, Any]], whole: float) -> Html:
    """Draw the waits of each rank: for others by cause, and for work."""
    order = causes(ranks)
    kinds = {each: f"k{number}" if number < COLOURS else "waiting" for number, each in enumerate(order)}
    rows = []
    for rank in ranks:
        waits = sorted(rank["waits"], key=lambda wait: (order.index(cause(wait)), -wait["seconds"]))
        parts = []
        for each, some in groupby(waits, cause):
            parts += _parts(each, kinds[each], list(some))
        idle = rank["uses"]["idle"]
        most = max([(wait["seconds"], wait["for"]) for wait in waits] + [(idle, WORK)])
        parts += [BarPart(idle, "idle", f"for {WORK}")] if idle > 0 else []
        note = f"{_share(rank, 'waiting')}: {most[1]}"[:LONGEST_NOTE] if most[0] > 0 else ""
        rows.append(Bar(_name(rank), [part for part in parts if part.value > 0], note))
    key = [(kinds[each], each) for each in order[:COLOURS]]
    key += [("waiting", "all else")] if len(order) > COLOURS else []
    key += [("idle", WORK)] if any(rank["uses"]["idle"] > 0 for rank in ranks) else []
    drawing = bars(rows, label="waits by rank", show=seconds, most=whole)
    return html.legend(key) + drawing


def _parts(name: str, kind: str, waits: Sequence[Mapping[str, Any]]) -> list[BarPart]:
    """Draw the waits for one cause: the longest by the rank of the last answer, the others together."""
    shown = []
    for wait in waits[:MOST_PARTS]:
        last = "" if wait["from"] is None else f", the last one from rank {wait['from']}"
        often = {0: "", 1: ", once"}.get(wait["count"], f", {wait['count']:,} times")
        shown.append(BarPart(wait["seconds"], kind, f"for {name}{last}{often}"))
    rest = sum(wait["seconds"] for wait in waits[MOST_PARTS:])
    return [*shown, BarPart(rest, kind, f"for {name}, from others")]


def _longest(waits: Sequence[Mapping[str, Any]], names: Mapping[int, str], whole: float) -> Html:
    """List the longest waits of all."""
    rows = [
        [names[wait["rank"]], cause(wait),
         "" if wait["from"] is None else names.get(wait["from"], f"rank {wait['from']}"),
         seconds(wait["seconds"]), share(wait["seconds"] / (whole or 1.0))]
        for wait in waits[:MOST_WAITS] if wait["seconds"] > 0
    ]  # fmt: skip
    return table(["who waited", "for", "last answer from", "time", "share"], rows) if rows else Html()
