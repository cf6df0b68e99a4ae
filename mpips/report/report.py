"""The report: the outcome of one run, or of several side by side, as one self-contained HTML page.

    results; convergence; time breakdown (the paper's Fig. 10); traffic, and the savings of filters (Fig. 11); the
    effect of delay (Fig. 13); lost ranks and their cost; the layout; provenance

It is made from a run's folder alone (`mpips.report.run_data`), for any program: the curve is the first of `CURVES` that
the run's `metrics.jsonl` has. The report of a run that is in progress or has failed has what is known.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from importlib.resources import files

from mpips.cluster.layout import Role
from mpips.files.safe_open import read_text
from mpips.report import time_breakdown
from mpips.report.charts import COLOURS, Bar, BarPart, Lane, Mark, Series, bars, is_drawable, lines, timeline
from mpips.report.html import ALL, TEMPLATES, Html, figure, html, table
from mpips.report.run_data import Curve, Run
from mpips.rundir.progress import bytes_si, seconds, share, si

LOST = "lost"
STYLES = ("charts.css", "report.css")
ROLES = tuple(role.value for role in Role)

# --- Sections --------------------------------------------------------------------------------------------------------


def heading(runs: Sequence[Run]) -> Html:
    """The names of the runs and their main results."""
    if len(runs) > 1:
        return html.heading_of_several(len(runs), summary(runs))
    (run,) = runs
    kind = "good" if run.status in ("completed", "stopped") else "bad"
    layout = run.job["layout"]
    workers = layout.get("workers", "?")
    count = sum(workers.values()) if isinstance(workers, dict) else workers
    roles = f"{layout.get('servers', '?')} servers, {count} workers, {layout.get('spares', '?')} spares"
    about = f"{run.job['job']['program']} · {run.about.get('started', '')} · {roles}"
    return html.heading(run.name, run.status, kind, about, run.result.get("error", ""), tiles(run))


def tiles(run: Run) -> list[tuple[str, str]]:
    """Return the most important figures: (title, value)."""
    traffic = run.result.get("traffic", {})
    shown = [("training", seconds(run.seconds["train"]))] if "train" in run.seconds else []
    shown += [("in all", seconds(run.seconds["total"]))] if "total" in run.seconds else []
    for name, value in run.result.get("metrics", {}).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and len(shown) < 7:
            shown.append((name.replace("_", " "), figure(value)))
    if "waiting" in run.result:
        shown.append(("workers waited", share(run.result["waiting"])))
    if traffic:
        shown.append(("sent", bytes_si(traffic["worker_sent"] + traffic["server_sent"])))
    if run.recoveries:
        worst = max(each["seconds"] for each in run.recoveries)
        shown.append((f"{len(run.recoveries)} recoveries, at most", seconds(worst)))
    return shown


def summary(runs: Sequence[Run]) -> Html:
    """Compare the results of several runs."""
    keys = dict.fromkeys(
        key
        for run in runs
        for key, value in run.result.get("metrics", {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    rows, differs = [], []

    def row(name: str, cells: Sequence[str]) -> None:
        rows.append([name, *cells])
        differs.append(len(set(cells)) > 1)

    row("status", [run.status for run in runs])
    for phase in ("train", "total"):
        row(
            f"seconds, {phase}", [f"{run.seconds[phase]:.2f}" if phase in run.seconds else "" for run in runs]
        )
    for key in keys:
        cells = [run.result.get("metrics", {}).get(key) for run in runs]
        row(key.replace("_", " "), ["" if cell is None else figure(cell) for cell in cells])
    row("workers waited", [share(run.result["waiting"]) if "waiting" in run.result else "" for run in runs])
    for role in ("worker", "server"):
        sent = [run.result.get("traffic", {}).get(f"{role}_sent") for run in runs]
        row(f"sent by {role}s", ["" if each is None else bytes_si(each) for each in sent])
    row("recoveries", [str(len(run.recoveries)) for run in runs])
    row("parameters", [str(run.result.get("parameters_sha256", ""))[:16] for run in runs])
    names = [f"{run.name}" for run in runs]
    return html.framed(table(["", *names], rows, differs))


def _excess(runs: Sequence[Run], curve: Curve) -> tuple[float | None, str]:
    """Return the value used as the optimum of a curve, and the title of the excess over it."""
    optima = [run.settings.get(curve.optimum, 0) for run in runs if curve.optimum]
    if optima and all(isinstance(each, int | float) and each and is_drawable(each) for each in optima):
        return min(optima), "F / F* − 1"
    seen = [value for run in runs for _, _, value in run.values(curve.key) if is_drawable(value)]
    if curve.optimum and seen and min(seen):
        return min(seen), "F / least F − 1"
    return None, curve.title


def convergence(runs: Sequence[Run]) -> Html:
    """Draw the objective of each run against time and against passes."""
    shown = [run for run in runs if run.curve is not None]
    curve = shown[0].curve if shown else None
    if curve is None:
        return Html()
    shown = [run for run in shown if run.curve == curve]
    best, title = _excess(shown, curve)
    by_time, by_step = [], []
    for number, run in enumerate(runs):
        if run in shown:
            points = [(t, s, v if best is None else v / best - 1) for t, s, v in run.values(curve.key)]
            by_time.append(Series(run.name, [(t, v) for t, _, v in points], number))
            by_step.append(Series(run.name, [(s, v) for _, s, v in points], number))
    marks = [
        Mark(each["at"], f"{each['role']}, rank {each['rank']}, {each['cause']}", number)
        for number, run in enumerate(runs)
        for each in run.recoveries
        if "at" in each
    ]
    log, label = best is not None, f"{title} over"

    def show_y(value: float) -> str:
        return f"{value:.0e}" if log else f"{value:.5g}" if abs(value) < 1e4 else si(value)

    drawn = lines(by_time, label=f"{label} time", x="seconds of training", y=title, log=log,
                  show_x=seconds, show_y=show_y, marks=marks)  # fmt: skip
    steps = lines(by_step, label=f"{label} passes", x="passes", y=title, log=log, show_y=show_y)
    if best is not None:
        star = (
            "the optimum in the job file" if title.startswith("F / F*") else "the least value of these runs"
        )
        intro = f"{curve.title} F relative to {star}, {best:.10g}."
    else:
        intro = f"{curve.title} during the run."
    intro += " Dashed lines: a rank was lost." if marks else ""
    names = (
        html.legend([(f"k{number % COLOURS}", run.name) for number, run in enumerate(runs)])
        if len(runs) > 1
        else Html()
    )
    return html.section(
        "Convergence",
        intro,
        names,
        html.pair(html.card("against time", drawn), html.card("against passes", steps)),
    )


def time_spent(runs: Sequence[Run]) -> Html:
    """The time breakdown of each rank (the paper's Fig. 10); for a traced run in detail, with its waits."""
    cards, several = [], len(runs) > 1
    traced = [time_breakdown.drawn(run.trace, run.name if several else "") for run in runs]
    for run in runs:
        whole, rows = max(run.seconds.get("train", 0.0), 1e-9), []
        for each in run.result.get("ranks", []):
            name = f"{each['role']}, rank {each['rank']}"
            if each["role"] == "worker":
                worked, waited = each["worked"], each["waited"]
                rest = max(whole - worked - waited, 0.0)
                parts = [
                    BarPart(worked, "busy", "computing"),
                    BarPart(waited, "waiting"),
                    BarPart(rest, "other", "else"),
                ]
                note = f"{share(worked / whole)} computing"
            else:
                cpu = min(each["cpu"], whole)
                parts = [BarPart(cpu, "busy", "processor time"), BarPart(whole - cpu, "waiting", "idle")]
                note = f"{share(cpu / whole)} busy"
            rows.append(Bar(name, parts, note))
        if rows:
            drawn = bars(rows, label=f"time of each rank of {run.name}", show=seconds)
            cards.append(html.card(run.name if several else "seconds of training", drawn))
    intro = "Workers: computing, waiting for messages, and all else (sending, checkpoints). Others: processor time."
    key = html.legend([("busy", "computing"), ("waiting", "waiting, or idle"), ("other", "else")])
    counted = [key, html.pair(*cards)] if cards else []
    return html.section("Where the time went", intro, *counted, *traced)


def rows_on_disk(runs: Sequence[Run]) -> Html:
    """What of the rows on disk each server had in memory, and how often it used the disk."""
    cards, several = [], len(runs) > 1
    for run in runs:
        whole, rows = max(run.seconds.get("train", 0.0), 1e-9), []
        for each in run.result.get("ranks", []):
            store = each.get("store")
            # Those of earlier versions have no counts.
            if store and "asked" in store:
                sizes = [bytes_si(store[name]) for name in ("memory", "limit", "disk")]
                rates = [si(store[name] / whole) for name in ("reads", "writes")]
                rows.append(
                    [f"rank {each['rank']}", *sizes, share(store["hits"] / max(store["asked"], 1)), *rates]
                )
        if rows:
            titles = ["server", "in memory", "limit", "on disk", "found in memory", "read/s", "written/s"]
            cards.append(html.card(run.name if several else "rows", table(titles, rows)))
    intro = "Rows that were used, those that were in memory, and rows read from the disk and written, in training."
    return html.section("Rows on disk", intro, html.pair(*cards)) if cards else Html()


def traffic(runs: Sequence[Run]) -> Html:
    """Bytes sent, and bytes saved by each filter (the paper's Fig. 11)."""
    cards = []
    for run in runs:
        sums = run.result.get("traffic")
        if not sums:
            continue
        rows = []
        most = max(sums["worker_raw"], sums["server_raw"], 1)
        for role in ("worker", "server"):
            raw, sent = sums[f"{role}_raw"], sums[f"{role}_sent"]
            parts = [
                BarPart(sent, "busy", "sent"),
                BarPart(max(raw - sent, 0), "waiting", "saved by filters"),
            ]
            rows.append(Bar(f"{role}s", parts, f"{bytes_si(sent)}, {raw / max(sent, 1):.2g} times less"))
        drawn = bars(rows, label=f"bytes sent in {run.name}", show=bytes_si, most=most)
        cells = []
        for name, by in sums["per_filter"].items():
            for role, each in by.items():
                fewer = f"{each['raw'] / each['wire']:.3g}" if each["wire"] else ALL
                sizes = bytes_si(each["raw"]), bytes_si(each["wire"])
                cells.append([name, role, *sizes, fewer, seconds(each["seconds"])])
        heads = ["filter", "by", "given", "made of it", "times fewer", "time"]
        cards.append(
            html.card(run.name if len(runs) > 1 else "bytes", drawn, table(heads, cells) if cells else "")
        )
    intro = "Bytes sent, and the additional bytes without filters."
    return (
        html.section(
            "Traffic", intro, html.legend([("busy", "sent"), ("waiting", "saved")]), html.pair(*cards)
        )
        if cards
        else Html()
    )


def delay(runs: Sequence[Run]) -> Html:
    """The effect of delay: waiting during the run, and over runs with different tau (the paper's Fig. 13)."""
    series = [
        Series(run.name, [(t, 100 * v) for t, _, v in run.values("waiting")], number)
        for number, run in enumerate(runs)
    ]
    waited = [each for each in series if each.points]
    drawn = lines(waited, label="share of time that workers waited", x="seconds of training", y="waiting, %",
                  show_x=seconds) if waited else ""  # fmt: skip
    taus = {run.name: _tau(run) for run in runs}
    rows = [
        Bar(
            f"tau {taus[run.name]}",
            [
                BarPart(run.seconds["train"] * (1 - run.result["waiting"]), "busy", "computing"),
                BarPart(run.seconds["train"] * run.result["waiting"], "waiting"),
            ],
            f"{seconds(run.seconds['train'])}, {share(run.result['waiting'])}",
        )
        for run in sorted(runs, key=_delays)
        if "waiting" in run.result and "train" in run.seconds
    ]
    several = (
        bars(rows, label="time of training by delay", show=seconds) if len(set(taus.values())) > 1 else ""
    )
    intro = f"Tasks may run ahead by tau = {', '.join(dict.fromkeys(taus.values()))}."
    cards = html.pair(html.card("waiting, mean of the workers", drawn) if drawn else Html(),
                 html.card("training by delay", several) if several else Html())  # fmt: skip
    return html.section("Delay", intro, cards)


def _tau(run: Run) -> str:
    consistency = run.job.get("consistency", {})
    return {"sequential": "0", "eventual": "infinite"}.get(
        str(consistency.get("model")), str(consistency.get("tau", 0))
    )


def _delays(run: Run) -> float:
    """Return a run's delay, as a sort key."""
    try:
        return float(_tau(run).replace("infinite", "inf"))
    except ValueError:
        return math.inf


def losses(runs: Sequence[Run]) -> Html:
    """Lost ranks on a timeline, and the cost of recoveries."""
    cards = [html.card(run.name, _timeline(run), _lost(run)) for run in runs if run.recoveries]
    intro = "Each rank by its role at the start; a dot marks the loss of a rank, after which the others continued."
    key = html.legend([(role, role) for role in ("scheduler", "server", "worker", "spare")])
    return html.section("Recoveries", intro, key, *cards) if cards else Html()


def _timeline(run: Run) -> Html:
    end = run.seconds.get("total", max(each.get("at", 0.0) for each in run.recoveries))
    lost, places = {each["rank"]: each for each in run.recoveries}, _places(run)
    lanes = []
    for rank in run.about.get("ranks", []):
        gone = lost.get(rank["rank"])
        until = gone.get("at", end) if gone else end
        name = f"{rank['role']} {rank['index']}, rank {rank['rank']}"
        moments = []
        if gone:
            after = seconds(gone["seconds"])
            moments.append((until, LOST, f"{gone['cause']} at {seconds(until)}; recovered after {after}"))
        since, role = places.get(rank["rank"], (until, ""))
        spans = [(0.0, min(since, until), _kind(rank["role"]), f"{name} on {rank['host']}")]
        if since < until:
            spans.append((since, until, _kind(role), f"rank {rank['rank']} is a {role} from here on"))
        lanes.append(Lane(name, spans, moments))
    return timeline(lanes, end, label=f"ranks over time in {run.name}", show=seconds)


def _kind(role: str) -> str:
    """Return the CSS class of a role."""
    return role if role in ROLES else "other"


def _places(run: Run) -> dict[int, tuple[float, str]]:
    """Return for each spare that replaced a lost rank (time, role): the spares with that role at the end, in order."""
    roles = {each["rank"]: each["role"] for each in run.result.get("ranks", [])}
    spares = [each["rank"] for each in run.about.get("ranks", []) if each["role"] == "spare"]
    taken: dict[int, tuple[float, str]] = {}
    for loss in run.recoveries:
        spare = next((r for r in spares if roles.get(r) == loss["role"] and r not in taken), None)
        if spare is not None and "at" in loss:
            taken[spare] = (loss["at"] + loss["seconds"], loss["role"])
    return taken


def _lost(run: Run) -> Html:
    rows = [
        [each["role"], str(each["rank"]), each["cause"], seconds(each["at"]) if "at" in each else "",
         "" if each.get("noticed_after") is None else seconds(each["noticed_after"]), seconds(each["seconds"])]
        for each in run.recoveries
    ]  # fmt: skip
    return table(["lost", "rank", "cause", "at", "noticed after", "recovered after"], rows)


def layout(runs: Sequence[Run]) -> Html:
    """The roles of the ranks, by host."""
    cards = []
    for run in runs:
        hosts: dict[str, list[tuple[int, str]]] = {}
        for rank in run.about.get("ranks", []):
            hosts.setdefault(rank["host"], []).append((rank["rank"], f"{rank['role']} {rank['index']}"))
        if hosts:
            rows = [[host, html.roles(ranks)] for host, ranks in hosts.items()]
            cards.append(
                html.card(run.name if len(runs) > 1 else "ranks by host", table(["host", "ranks"], rows))
            )
    return html.section("Layout", "Roles as they were at the start.", html.pair(*cards))


FACTS = ("started", "host", "platform", "cores", "python", "mpi", "working_directory", "job_digest")


def provenance(runs: Sequence[Run]) -> Html:
    """Provenance of the runs; differences are highlighted."""
    rows, differs = [], []

    def row(name: str, cells: Sequence[object]) -> None:
        texts = ["" if cell is None else str(cell) for cell in cells]
        rows.append([name, *(html.code(cell) for cell in texts)])
        differs.append(len(set(texts)) > 1)

    row("parameters_sha256", [run.result.get("parameters_sha256") for run in runs])
    for fact in FACTS:
        row(fact, [run.about.get(fact) for run in runs])
    row("source", [_source(run) for run in runs])
    for package in dict.fromkeys(name for run in runs for name in run.about.get("packages", {})):
        row(package, [run.about.get("packages", {}).get(package) for run in runs])
    row("command", [" ".join(run.about.get("argv", [])) for run in runs])
    heads = ["", *(run.name for run in runs)]
    facts = html.framed(table(heads, rows, differs if len(runs) > 1 else ()))
    return html.section("Provenance", "Program, versions and machines.", facts, _jobs(runs))


def _source(run: Run) -> str:
    source = run.about.get("source") or {}
    return f"{source.get('commit', 'unknown')}{' and changes' if source.get('dirty') else ''}"


def _jobs(runs: Sequence[Run]) -> Html:
    if len(runs) == 1:
        text = read_text(runs[0].folder.job, follow=False)
        return html.job(text)
    keys = dict.fromkeys((table, key) for run in runs for table in run.job for key in run.job[table])
    rows = []
    for name, key in keys:
        cells = [json.dumps(run.job.get(name, {}).get(key), default=str) for run in runs]
        if len(set(cells)) > 1:
            rows.append([f"{name}.{key}", *(html.code(cell) for cell in cells)])
    if not rows:
        return html.note("All keys of the jobs are the same.", "none")
    heads = ["job key that differs", *(run.name for run in runs)]
    return html.framed(table(heads, rows))


# --- The page --------------------------------------------------------------------------------------------------------

SECTIONS = (convergence, time_spent, traffic, rows_on_disk, delay, losses, layout, provenance)


HEAD = '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>\n<meta http-equiv="Content-Security-Policy" '
"""The beginning of every page."""


def page(runs: Sequence[Run]) -> Html:
    """Return the report of one run, or of several side by side; its policy allows no script and no external content."""
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs of {runs[0].job['job']['program']}"
    style = "\n" + "".join(
        files("mpips.report").joinpath(name).read_text(encoding="utf-8") for name in STYLES
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    sections = [part for part in (each(runs) for each in SECTIONS) if part]
    made = TEMPLATES.get_template("page.html").render(
        title=title, style=Html(style), policy=policy, heading=heading(runs), sections=sections
    )
    return Html(f"{made}\n")
