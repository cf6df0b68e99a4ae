"""The report: what stands in a run's folder is on the page, which is sound HTML and needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.chart import Bar, Part, Series, bars, decades, lines, thinned, ticks
from mpips.cli.main import main
from mpips.report import page, read

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
    for said in ("completed", "F / F* − 1", "died at 4.00s; the others went on after 50ms", "hung at 6.00s",
                 "rank 5 is a server from here on", "computing 3.00s", "5 times less", "tau = 0", "n2"):  # fmt: skip
        assert said in text, said
    spans = [tag for tag in found.tags if tag[0] == "rect" and tag[1]["class"] in ("server", "spare")]
    assert [tag[1]["class"] for tag in spans] == ["server", "server", "spare", "server"]
    assert "model.npz" not in text, "tiles are figures"


def test_it_needs_nothing_else(tmp_path: Path) -> None:
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
    assert "is no run's folder: it has no job.toml" in capsys.readouterr().err
    assert main(["report", str(a), "-o", str(a / "job.toml" / "x.html")]) == 2


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
    assert parsed(bars([Bar("b", [Part(0.0, "busy")])], label="l")).tags


@given(st.integers(0, 5000))
def test_long_lines_keep_their_ends(count: int) -> None:
    points = [(float(n), 0.0) for n in range(count)]
    kept = thinned(points)
    assert len(kept) <= 402 and kept[:1] == points[:1] and kept[-1:] == points[-1:]
    assert kept == sorted(set(kept))
