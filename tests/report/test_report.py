"""The report: it shows the data of a run's folder, and is valid, self-contained HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.cli.main import main
from mpips.report.charts import Bar, BarPart, Series, bars, decades, lines, thinned, ticks
from mpips.report.report import HEAD, STYLES, page
from mpips.report.run_data import read, with_trace
from mpips.rundir.folder import RunFolder
from mpips.tracing.recorder import Trace
from mpips.tracing.trace_file import HEADER, RECORD, What

VOID = {"meta", "br", "hr", "img", "input", "link"}
SHAPES = {"rect", "line", "circle", "polyline"}
JOB = """[job]
program = "sparse_lr"
[layout]
servers = 2
workers = 2
spares = 1
[consistency]
model = "bounded"
tau = {tau}
[sparse_lr]
optimum = {optimum}
"""
RANKS = [
    {"rank": 0, "role": "scheduler", "index": 0, "host": "n1", "pid": 1},
    {"rank": 1, "role": "server", "index": 0, "host": "n1", "pid": 2},
    {"rank": 2, "role": "server", "index": 1, "host": "n2", "pid": 3},
    {"rank": 3, "role": "worker", "index": 0, "host": "n2", "pid": 4},
    {"rank": 4, "role": "worker", "index": 1, "host": "n1", "pid": 5},
    {"rank": 5, "role": "spare", "index": 0, "host": "n2", "pid": 6},
]
SPENT = {"worked": 3.0, "waited": 1.0, "cpu": 2.5, "sent": 10, "received": 20}
RESULT = {
    "status": "completed",
    "seconds": {"total": 10.0, "load": 1.0, "train": 8.0, "checkpoint": 0.0},
    "metrics": {"objective": 101.5, "passes": 3, "model": "/x/model.npz"},
    "waiting": 0.25,
    "traffic": {
        "worker_sent": 1000, "server_sent": 2000, "worker_raw": 5000, "server_raw": 2000,
        "per_filter": {"zstd<&>": {"worker": {"raw": 5000, "wire": 1000, "seconds": 0.5}},
                       "key_caching": {"server": {"raw": 7, "wire": 0, "seconds": 0.0}}},
    },
    "ranks": [
        {"rank": rank, "role": role, **SPENT}
        for rank, role in ((3, "worker"), (4, "worker"), (1, "server"), (5, "server"))
    ],
    "parameters_sha256": "ab" * 32,
    "recoveries": [
        {"rank": 2, "role": "server", "cause": "died", "at": 4.0, "seconds": 0.05, "noticed_after": 0.03},
        {"rank": 0, "role": "scheduler", "cause": "hung", "at": 6.0, "seconds": 0.4, "noticed_after": None},
    ],
}  # fmt: skip
METRICS = [
    {"event": "pass", "pass": n, "seconds": 2.0 * n, "objective": 100 + 6.0 / n, "waiting": 0.3}
    for n in (1, 2, 3)
]


class Strict(HTMLParser):
    """Raises unless every element is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "an attribute is there twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES or tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> where it is not open"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def folder(
    at: Path, result: Any = RESULT, *, tau: int = 0, optimum: float = 100.0, metrics: Any = METRICS
) -> Path:
    at.mkdir(parents=True)
    (at / "job.toml").write_text(JOB.format(tau=tau, optimum=optimum))
    about = {
        "started": "2026-01-01T00:00:00+00:00",
        "host": "n1",
        "packages": {"numpy": "2"},
        "argv": ["a<b"],
    }
    (at / "run.json").write_text(json.dumps({**about, "ranks": RANKS}))
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if result is not None:
        (at / "result.json").write_text(json.dumps(result))
    return at


def test_a_run_with_two_recoveries(tmp_path: Path) -> None:
    html = page([read(folder(tmp_path / "run<1>"))])
    found = parsed(html)
    text = " ".join(" ".join(found.texts).split())
    assert "run<1>" in text and "<1>" not in html, "names are escaped"
    assert "zstd<&>" in text and "zstd<&>" not in html
    for said in ("completed", "F / F* − 1", "died at 4.00s; recovered after 50ms", "hung at 6.00s",
                 "rank 5 is a server from here on", "computing 3.00s", "5 times less", "tau = 0", "n2"):  # fmt: skip
        assert said in text, said
    spans = [tag for tag in found.tags if tag[0] == "rect" and tag[1]["class"] in ("server", "spare")]
    assert [tag[1]["class"] for tag in spans] == ["server", "server", "spare", "server"]
    assert "model.npz" not in text, "tiles are figures"


def test_rows_on_disk_are_shown_by_server(tmp_path: Path) -> None:
    store = {
        "limit": 32e6, "memory": 30e6, "disk": 2e8, "reads": 8_000, "writes": 16_000, "asked": 100_000, "hits": 92_000,
    }  # fmt: skip
    ranks = [{**each, "store": store} if each["role"] == "server" else each for each in RESULT["ranks"]]
    text = " ".join(
        " ".join(parsed(page([read(folder(tmp_path / "a", {**RESULT, "ranks": ranks}))])).texts).split()
    )
    assert "Rows on disk" in text and "rank 1 30.0MB 32.0MB 200MB 92 % 1.00k 2.00k" in text
    assert "Rows on disk" not in page([read(folder(tmp_path / "b"))])


def test_a_page_has_no_script_and_no_external_content(tmp_path: Path) -> None:
    html = page([read(folder(tmp_path / "a"))])
    assert not re.search(r"https?:|//[a-z]|<script|<link|<img|@import|url\(", html)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    other = {**RESULT, "metrics": {**RESULT["metrics"], "objective": 103.0}, "recoveries": []}  # type: ignore[dict-item]
    html = page([read(folder(tmp_path / "a")), read(folder(tmp_path / "b", other, tau=4))])
    found = parsed(html)
    text = " ".join(found.texts)
    assert "2 runs side by side" in text and "consistency.tau" in text and "tau 4" in text
    differing = re.findall(r'<tr class="differs"><td>([^<]*)</td>', html)
    assert "objective" in differing and "recoveries" in differing and "passes" not in differing
    assert len([tag for tag in found.tags if tag[0] == "polyline"]) == 6  # by time, by passes, waiting


def test_without_an_optimum_the_least_is_what_counts(tmp_path: Path) -> None:
    html = page([read(folder(tmp_path / "a", optimum=0.0))])
    assert "F / least F − 1" in html and "102" in html


@pytest.mark.parametrize("result", [None, {"status": "failed", "error": "rank 3: <boom>"}])
def test_a_run_that_did_not_end_well_is_reported(tmp_path: Path, result: Any) -> None:
    html = page([read(folder(tmp_path / "a", result, metrics=[]))])
    parsed(html)
    assert "no result" in html if result is None else "rank 3: &lt;boom&gt;" in html


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(a)]) == 0 and (a / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["report", str(a), str(b)]) == 0 and (tmp_path / "report.html").is_file()
    capsys.readouterr()
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run's folder: it has no job.toml" in capsys.readouterr().err
    assert main(["report", str(a), "-o", str(a / "job.toml" / "x.html")]) == 2
    assert main(["report", str(traced(a))]) == 0
    assert "waits by cause" in (a / "report.html").read_text()


# --- Where the time went, by a trace -------------------------------------------------------------------------------


def traced(run: Path, more: str = "") -> Path:
    """Trace a run's ranks: training from 100 s to 108 s; worker 0 waits for server 1, and worker 1 for nobody.

    `more` stands after the name of what is waited for, and after hosts.
    """
    spans: dict[int, list[tuple[What, float, float, str, int]]] = {
        0: [(What.PHASE, 100.0, 108.0, "train", -1), (What.WAIT, 100.5, 107.5, "iterate", 4)],
        1: [(What.EXECUTE, 101.0, 103.0, "", -1), (What.IDLE, 103.0, 108.0, "", -1)],
        2: [(What.SERVE, 100.0, 101.0, "", -1), (What.CHAIN, 101.0, 102.0, "", -1), (What.IDLE, 102.5, 108.0, "", -1)],
        3: [(What.CALL, 100.0, 107.0, "iterate", -1), (What.COMPUTE, 100.0, 103.0, "", -1),
            (What.WAIT, 103.0, 105.0, "push_pull", 2), (What.ENCODE, 105.0, 105.5, "", -1),
            (What.WAIT, 107.0, 108.0, "the next call", -1)],
        4: [(What.COMPUTE, 100.0, 107.75, "", -1), (What.WAIT, 107.75, 108.0, "the <next> thing", -1)],
        5: [(What.START, 90.0, 91.0, "", -1), (What.IDLE, 91.0, 110.0, "", -1)],
    }  # fmt: skip
    for number, rank in enumerate(RANKS):
        at = RunFolder(run).trace_of(number)
        facts = {**rank, "clock": "c", "host": rank["host"] + more}
        trace = Trace(at, facts, now=lambda: 100.0, wall=lambda: 100.0)
        for what, begin, end, name, peer in spans[number]:
            trace.add(what, begin, end, trace.file.name(name + more * (what is What.WAIT)), peer)
        trace.close()
    return run


def drawn(html: str) -> dict[str, dict[str, float]]:
    """Return the seconds of each part of each bar, by their labels."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    traced = html.partition("by the trace")[2]
    for title in map(unescape, re.findall(r"<title>([^<]*)</title></rect>", traced)):
        bar, _, reported = title.partition(": ")
        text, _, value = reported.rpartition(" ")
        if value.endswith("s"):
            found[bar][text] = float(value[:-2]) / 1000 if value.endswith("ms") else float(value[:-1])
    return found


def test_a_trace_shows_where_the_time_of_each_rank_went(tmp_path: Path) -> None:
    html = page([with_trace(read(traced(folder(tmp_path / "a"))))])
    found = drawn(html)
    parsed(html)
    worker, server, other = found["worker, rank 3"], found["server, rank 1"], found["server, rank 2"]
    assert worker == {
        "computing": 3.0, "the program's own code": 1.5, "filters": 0.5, "waiting": 3.0,
        "for answers: push_pull, the last one from rank 2, once": 2.0, "for the next call, once": 1.0,
    }  # fmt: skip
    assert server == {"executing requests": 2.0, "nothing to do": 5.0, "for work": 5.0}
    assert other == {
        "executing requests": 1.0, "copies along chains": 1.0, "moving messages": 0.5, "nothing to do": 5.5,
        "for work": 5.5,
    }  # fmt: skip
    assert found["scheduler, rank 0"]["for the call iterate, the last one from rank 4, once"] == 7.0
    assert found["worker, rank 4"]["for the <next> thing, once"] == 0.25
    assert "computing 3.00s" in html, "what the ranks themselves have counted is there as ever"


def test_the_longest_waits_are_listed(tmp_path: Path) -> None:
    html = page([with_trace(read(traced(folder(tmp_path / "a"))))])
    rows = re.findall(r"<tr><td>(.*?)</td>" + r"<td[^>]*>(.*?)</td>" * 4, html)
    assert ("scheduler, rank 0", "the call iterate", "worker, rank 4", "7.00s", "88 %") in rows
    assert ("worker, rank 3", "answers: push_pull", "server, rank 2", "2.00s", "25 %") in rows
    assert ("worker, rank 3", "the next call", "", "1.00s", "12 %") in rows


def test_without_a_trace_the_report_does_not_mention_one(tmp_path: Path) -> None:
    run = read(folder(tmp_path / "a"))
    assert page([with_trace(run)]) == page([run])
    assert "trace" not in page([run]) and "waited for" not in page([run])


def test_runs_with_and_without_a_trace_stand_side_by_side(tmp_path: Path) -> None:
    runs = [with_trace(read(traced(folder(tmp_path / "a")))), with_trace(read(folder(tmp_path / "b")))]
    html = page(runs)
    assert html.count("waits by cause") == html.count("a: waits by cause") == 1
    parsed(html)


def broken(tmp_path: Path, number: int, content: bytes | None) -> str:
    run = traced(folder(tmp_path / "a"))
    path = RunFolder(run).trace_of(number)
    path.unlink() if content is None else path.write_bytes(content)
    html = page([with_trace(read(run))])
    parsed(html)
    return html


def test_a_trace_that_is_damaged_in_part_is_shown_in_part(tmp_path: Path) -> None:
    html = broken(tmp_path, 4, b"mpi")
    assert re.search(r'class="bad">[^<]*rank-0004\.bin: is not a trace, or was truncated', html)
    assert drawn(html)["worker, rank 3"]["computing"] == 3.0
    assert "computing" not in drawn(html)["worker, rank 4"]


def test_a_rank_without_a_trace_is_named(tmp_path: Path) -> None:
    html = broken(tmp_path, 3, None)
    assert "there is no trace of rank 3" in html and drawn(html)["server, rank 1"]["nothing to do"] == 5.0


def test_a_trace_that_does_not_know_of_the_training_is_shown_whole(tmp_path: Path) -> None:
    html = broken(tmp_path, 0, None)
    assert "the trace has no phase" in html and "there is no trace of rank 0" in html
    assert drawn(html)["worker, rank 3"]["computing"] == 3.0
    assert drawn(html)["spare, rank 5"]["starting"] == 1.0


def test_a_trace_that_is_all_damaged_is_no_reason_to_stop(tmp_path: Path) -> None:
    run = traced(folder(tmp_path / "a"))
    for path in RunFolder(run).trace.iterdir():
        path.write_bytes(b"")
    html = page([with_trace(read(run))])
    assert html.count("is not a trace, or was truncated") == 4 and "and 2 more" in html
    assert "waits by cause" not in html and "computing 3.00s" in html


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_trace_stops_the_report(tmp_path: Path, data: st.DataObject) -> None:
    run = tmp_path / "a"
    if not run.exists():
        traced(folder(run))
        shutil.copytree(run / "trace", tmp_path / "sound")
    shutil.rmtree(run / "trace")
    shutil.copytree(tmp_path / "sound", run / "trace")
    path = RunFolder(run).trace_of(data.draw(st.sampled_from([0, 3])))
    content = bytearray(path.read_bytes())
    places = st.integers(0, 200) | st.integers(4096, 4096 + 200) | st.integers(8192, 8192 + 300)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(places | st.integers(HEADER, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    html = page([with_trace(read(run))])
    parsed(html)
    assert "server, rank 1" in html, "the others' traces are shown in any case"


@pytest.mark.parametrize("part", [(0, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"), (46, b"\xff"), (44, b"\xff\xff")])
def test_an_invalid_record_of_a_trace_is_reported(tmp_path: Path, part: tuple[int, bytes]) -> None:
    run = traced(folder(tmp_path / "a"))
    path = RunFolder(run).trace_of(3)
    content, at = bytearray(path.read_bytes()), HEADER + RECORD.size + part[0]
    content[at : at + len(part[1])] = part[1]
    path.write_bytes(content)
    html = page([with_trace(read(run))])
    assert ("rank-0003.bin: is damaged: record 1" in html) == (part[0] != 44), "a name may be any"


def test_all_that_is_drawn_has_its_colour_in_both_schemes(tmp_path: Path) -> None:
    html = page([with_trace(read(traced(folder(tmp_path / "a"))))])
    style = files("mpips.report").joinpath("charts.css").read_text()
    used = {name for kinds in re.findall(r'(?:<rect|<i) class="([^"]*)"', html) for name in kinds.split()}
    assert {"compute", "apply", "idle", "k0"} <= used
    for name in used - {"rail"}:
        rule = rf"\.{name}\b[^{{]*{{[^}}]*fill: var\((--[a-z0-9]+)\); background: var\(\1\)"
        assert re.search(rule, style), name
    light, dark = re.findall(r":root {([^}]*)}", style)[:2]
    colours = set(re.findall(r"(--[a-z0-9]+):", light))
    assert colours == set(re.findall(r"(--[a-z0-9]+):", dark)) and {"--wait", "--c0"} <= colours


# --- Charts ----------------------------------------------------------------------------------------------------------


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, size: float) -> None:
    found = ticks(low, low + size)
    assert len(found) <= 9
    slack = 1e-6 * size + 1e-12 * abs(low)
    assert all(low - slack <= each <= low + size + slack for each in found)


@given(st.floats(1e-300, 1e300), st.floats(1, 1e6))
def test_decades_enclose_the_values(low: float, by: float) -> None:
    found = decades(low, low * by)
    assert found[0] <= low * (1 + 1e-6) and 1 <= len(found) <= 8


def test_a_line_goes_where_its_points_are() -> None:
    svg = lines([Series("s", [(0.0, 1.0), (1.0, 0.1), (2.0, 0.01)])], label="l", x="x", y="y", log=True)
    ((_, at),) = [tag for tag in parsed(svg).tags if tag[0] == "polyline"]
    points = [tuple(map(float, pair.split(","))) for pair in str(at["points"]).split()]
    assert points == [(64.0, 16.0), (305.0, 138.0), (546.0, 260.0)]


def test_what_cannot_be_drawn_is_left_out() -> None:
    odd = [(0.0, 0.0), (1.0, float("nan")), (2.0, -1.0)]
    assert "nothing to draw" in lines([Series("s", odd)], label="l", x="x", y="y", log=True)
    assert "nothing to draw" in bars([], label="l")
    assert parsed(bars([Bar("b", [BarPart(0.0, "busy")])], label="l")).tags


@given(st.integers(0, 5000))
def test_long_lines_keep_their_ends(count: int) -> None:
    points = [(float(n), 0.0) for n in range(count)]
    kept = thinned(points)
    assert len(kept) <= 402 and kept[:1] == points[:1] and kept[-1:] == points[-1:]
    assert kept == sorted(set(kept))


# --- Folders of others -----------------------------------------------------------------------------------------------

EVIL = "\"'><script>alert(1)</script><img src=javascript:x onerror=x>\x1b[2J\x00\u202e\ud800\n"
NUMBERS = (math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0, -1, 10**30)
ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "h3", "p", "div", "span",
    "b", "i", "code", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre",
    "svg", "text", "line", "g", "polyline", "circle", "rect",
}  # fmt: skip
ATTRIBUTES = {
    "lang", "charset", "http-equiv", "content", "name", "class", "viewbox", "role", "aria-label", "x", "y", "x1", "y1",
    "x2", "y2", "cx", "cy", "r", "rx", "width", "height", "points", "text-anchor",
}  # fmt: skip


def harmless(html: str) -> Strict:
    """Check that a page has only known elements, attributes and classes, and valid numbers."""
    html.encode("utf-8")
    assert not [each for each in html if each in "\x00\x1b\u202e"]
    found = parsed(html)
    styles = "".join(files("mpips.report").joinpath(name).read_text() for name in STYLES)
    classes = set(re.findall(r"\.([a-z][a-z0-9]*)", styles)) | {"hash", "mark", "row", "name"}
    for tag, attributes in found.tags:
        assert tag in ELEMENTS and attributes.keys() <= ATTRIBUTES
        assert set((attributes.get("class") or "").split()) <= classes, attributes
        for name in attributes.keys() & {"x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "width", "height"}:
            assert -1 <= float(attributes[name] or "") < 1e6, (tag, attributes)
    (policy,) = [
        each["content"] for tag, each in found.tags if each.get("http-equiv") == "Content-Security-Policy"
    ]
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy is not None and policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    return found


def spoilt(value: Any, texts: Callable[[str], Any], numbers: Callable[[float], Any], keys: str = "") -> Any:
    """Return JSON with other texts and numbers in it, and `keys` after every key of a table with free keys."""
    if isinstance(value, dict):
        free = "zstd<&>" in value or "objective" in value or "numpy" in value
        return {
            key + keys * (free and key not in ("seconds", "objective")): spoilt(each, texts, numbers, keys)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [spoilt(each, texts, numbers, keys) for each in value]
    if isinstance(value, str):
        return texts(value)
    return numbers(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def test_texts_of_others_are_never_markup(tmp_path: Path) -> None:
    at = traced(folder(tmp_path / '"><script>alert(1)<'))
    for name in ("run.json", "result.json"):
        reported = json.loads((at / name).read_text())
        (at / name).write_text(
            json.dumps(spoilt(reported, lambda each: each + EVIL, lambda each: each, EVIL))
        )
    lines = [spoilt(each, lambda each: each + EVIL, lambda each: each, EVIL) for each in METRICS]
    (at / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = JOB.format(tau=0, optimum=100.0).replace('"sparse_lr"', json.dumps(EVIL.replace("\ud800", "")))
    (at / "job.toml").write_text(job + '"<script>" = "</pre><script>"\n')
    found = harmless(page([with_trace(read(at))]))
    assert "<script>alert(1)</script>" in "".join(found.texts), "it is shown as text"
    harmless(page([with_trace(read(at)), read(folder(tmp_path / "b"))]))


@pytest.mark.parametrize("number", NUMBERS)
def test_no_number_stops_the_report(tmp_path: Path, number: float) -> None:
    def some(each: float) -> float:
        return each if isinstance(each, int) and 0 <= each < 6 else number

    a, b = folder(tmp_path / "a"), folder(tmp_path / "b", tau=4)
    reported = json.loads((a / "result.json").read_text())
    (a / "result.json").write_text(json.dumps(spoilt(reported, lambda each: each, some)))
    (a / "metrics.jsonl").write_text(
        "".join(json.dumps(spoilt(line, lambda each: each, lambda _: number)) + "\n" for line in METRICS)
    )
    harmless(page([read(a)]))
    harmless(page([read(a), read(b)]))
    (a / "job.toml").write_text(JOB.format(tau=0, optimum="0.0"))
    harmless(page([read(a)]))


@pytest.mark.parametrize(
    ("tau", "optimum"), [('"x"', "nan"), ("nan", '"x"'), ("[1]", "inf"), ("-1", "true"), ("1e400", "{a=1}")]
)
def test_no_setting_stops_the_report(tmp_path: Path, tau: Any, optimum: Any) -> None:
    runs = [read(folder(tmp_path / "a", tau=tau, optimum=optimum)), read(folder(tmp_path / "b"))]
    harmless(page(runs))
    harmless(page(runs[:1]))


def test_the_page_of_a_huge_folder_is_bounded(tmp_path: Path) -> None:
    ranks = [{"rank": n, "role": "worker", "index": n, "host": f"n{n}", "pid": 1} for n in range(5000)]
    result = {**RESULT, "ranks": [{"rank": n, "role": "worker", **SPENT} for n in range(5000)]}
    lines = (
        {"event": "pass", "pass": n, "seconds": float(n), "objective": 1 + 1 / n} for n in range(1, 100_001)
    )
    at = folder(tmp_path / "a", result, metrics=lines)
    about = json.loads((at / "run.json").read_text())
    (at / "run.json").write_text(
        json.dumps({**about, "ranks": ranks, "packages": dict.fromkeys(map(str, range(9999)), "1")})
    )
    html = page([read(at)])
    harmless(html)
    assert len(html) < 10e6 and "and 3,000 more" in html


@pytest.mark.parametrize("several", [False, True])
def test_a_page_replaces_no_file_of_the_users_own(
    tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(folder(tmp_path / name)) for name in ("a", "b")[: 2 if several else 1]]
    own = tmp_path / "report.html" if several else tmp_path / "a" / "report.html"
    own.write_text("<!DOCTYPE html>\n<html><body>mine</body></html>")
    for named in ([], ["--out", str(own)]):
        assert main(["report", *runs, *named]) == 2
        assert "report.html: exists, and is no earlier output of this command" in capsys.readouterr().err
    assert own.read_text().endswith("mine</body></html>")
    assert main(["report", *runs, "--force"]) == 0
    assert main(["report", *runs]) == 0, "it is a report now"
    assert own.read_text().startswith(HEAD)
