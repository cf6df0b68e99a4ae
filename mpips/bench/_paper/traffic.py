"""Figures 11 and 12: traffic by filters, and the share of features that the KKT filter leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mpips.bench._paper.experiment import Claim, Picture, Section, Setup, agreement, table
from mpips.bench.applications import filters
from mpips.rundir.progress import bytes_si, share, si

ITEM = "Figures 11 and 12"
CACHING, KKT, ALL = "key caching", "KKT, key caching", "+ zstd"


def measure(setup: Setup) -> dict[str, Any]:
    """Train with every combination of filters; return the benchmark's report."""
    report = setup.folder / "filters.json"
    arguments = ["--keep", str(setup.folder / "filters"), "--json", str(report), *setup.arguments]
    filters.main([*arguments, "--repeat", "1"])
    found: dict[str, Any] = json.loads(report.read_text())
    return {"examples": setup.examples} | {
        key: found[key] for key in ("target", "optimum", "layout", "table", "filtered")
    }


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the report with the paper's figures."""
    rows = {row["name"]: row for row in found["table"]}
    caching, packed = rows[CACHING], rows[ALL]
    course = next(iter(found["filtered"].values()))
    last, mean = course[-1], sum(course) / len(course)
    claims = [
        _claim("Fig. 11: workers, key caching", "about 2 times less", caching["worker_fewer"], 1.5),
        _claim("... KKT and compression in addition", "over 6 times less", caching["worker"] / packed["worker"], 6.0),
        _claim("... all three", "about 12 times less", packed["worker_fewer"], 9.0),
        _claim("Fig. 11: servers, KKT and compression", "over 20 times less", packed["server_fewer"], 20.0),
        _claim("... all three, in the paper's count", "about 40 times less", packed["server_counted"], 30.0),
        Claim("Fig. 12: features that KKT leaves out", "> 93 %",
              f"{100 * mean:.1f} % on average, {100 * last:.1f} % at the end",
              agreement(mean, (0.93, 1.0))),
    ]  # fmt: skip
    pictures = {
        "fig11": Picture(
            filters.bytes_chart(found["table"]),
            "Bytes sent until training reaches 1.001 times the optimum; servers in the paper's count.",
            (("k0", "workers"), ("k1", "servers")),
        ),
        "fig12": Picture(
            filters.left_out_chart({KKT: course}),
            "Features that the KKT filter leaves out, by pass.",
            (("k0", KKT),),
        ),
    }
    cells = [
        (
            row["name"],
            bytes_si(row["worker"]),
            _fewer(row, "worker_fewer"),
            bytes_si(row["server"]),
            _fewer(row, "server_fewer"),
            _fewer(row, "server_counted") or f"{bytes_si(row['counted'])}",
            f"{row['passes']:g}",
            share(row["filtered"]) if "filtered" in row else "",
        )
        for row in found["table"]
    ]
    facts = {
        "examples": found["examples"], "workers": found["layout"]["workers"], "mean": share(mean),
        "caching": f"{caching['worker_fewer']:.2g}", "zstd": f"{packed['worker_fewer']:.3g}",
        "besides": f"{caching['worker'] / packed['worker']:.3g}", "zstd_servers": f"{packed['server_fewer']:.3g}",
    }  # fmt: skip
    head = (
        "filters",
        "workers sent",
        "fewer",
        "servers sent",
        "fewer",
        "paper's count",
        "passes",
        "KKT leaves out",
    )
    return Section(claims, table(head, cells), facts, pictures)


def _claim(what: str, paper: str, ours: float, least: float) -> Claim:
    return Claim(what, paper, f"{si(ours)} times less", agreement(ours, (least, float("inf"))))


def _fewer(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.3g} times" if row.get(key) is not None else ""
