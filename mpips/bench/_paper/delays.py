"""Figure 13: time and waiting by maximal delay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mpips.bench._paper.experiment import (
    CHANCE,
    SLOW,
    SLOWER,
    WORKERS,
    Claim,
    Picture,
    Section,
    Setup,
    agreement,
    table,
)
from mpips.bench.applications import delay
from mpips.errors import InputError
from mpips.rundir.progress import seconds, share

ITEM = "Figure 13"
PAPERS = 8
"""The best delay in the paper."""


def measure(setup: Setup) -> dict[str, Any]:
    """Train with several delays, alternating; return the benchmark's report."""
    report = setup.folder / "delay.json"
    arguments = ["--slow", str(SLOW), "--chance", str(CHANCE), "--repeat", str(setup.repeat)]
    arguments += ["--workers", str(WORKERS), "--slower", str(SLOWER)]
    delay.main([*arguments, "--json", str(report), *setup.arguments])
    found: dict[str, Any] = json.loads(report.read_text())
    kept = ("target", "optimum", "layout", "slow", "chance", "spell", "slower", "table")
    return {"examples": setup.examples} | {key: found[key] for key in kept}


def compare(found: Mapping[str, Any]) -> Section:
    """Compare the report with the paper's figures."""
    rows = {row["tau"]: row for row in found["table"]}
    first, most = rows[0], rows[max(rows)]
    timed = [row for row in found["table"] if row.get("seconds") is not None]
    if first not in timed:
        raise InputError("no run with tau = 0 reached the target: check the optimum")
    best = min(timed, key=lambda row: row["seconds"])
    gain = first["seconds"] / best["seconds"]
    slow = [row for row in timed if row["tau"] == PAPERS]
    claims = [
        Claim("Fig. 13: waiting at tau = 0", "50 %", share(first["waiting"]),
              agreement(first["waiting"], (0.35, 0.65))),
        Claim(f"Fig. 13: waiting at tau = {max(rows)}", "1.7 %", share(most["waiting"]),
              agreement(most["waiting"], (0.0, 0.05))),
        Claim("Fig. 13: best delay", f"{PAPERS}", f"{best['tau']}", agreement(best["tau"], (4, 16))),
        _gain("Fig. 13: best delay, faster than tau = 0", gain),
        *[_gain(f"Fig. 13: tau = {PAPERS}, faster than tau = 0", first["seconds"] / row["seconds"]) for row in slow],
    ]  # fmt: skip
    picture = Picture(
        delay.chart(timed),
        f"Time to {found['target'] / found['optimum']:.4g} times the optimum, by delay.",
        delay.LEGEND,
    )
    cells = [
        (f"{row['tau']}", seconds(row["seconds"]), share(row["waiting"]), f"{row['passes']:g}",
         f"{row['seconds'] / row['passes'] * 1e3:.3g} ms")
        for row in timed
    ]  # fmt: skip
    facts = {
        "examples": found["examples"], "workers": WORKERS, "slow": f"{found['slow']:g}",
        "chance": f"{found['chance']:g}",
        "slower": f"{found['slower']:g}", "straggler": delay.straggler(dict(found)), "gain": f"{gain:.2f}",
        "best": best["tau"], "first": share(first["waiting"]), "most": share(most["waiting"]), "last": max(rows),
    }  # fmt: skip
    head = ("tau", "to the target", "waiting", "passes", "a pass")
    return Section(claims, table(head, cells), facts, {"fig13": picture})


def _gain(what: str, gain: float) -> Claim:
    return Claim(what, "1.6 times", f"{gain:.2f} times", agreement(gain, (1.4, 2.5), (1.1, 100.0)))
