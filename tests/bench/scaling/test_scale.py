"""`mpips bench scale`: fits, comparisons, verdicts, and a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.bench.scaling import _simulated_ranks, scale
from mpips.bench.scaling._growth import fitted
from mpips.cli import main


@given(st.floats(0.001, 1e6), st.floats(-2, 2))
def test_a_power_law_is_found(a: float, b: float) -> None:
    law = fitted([(ranks, a * ranks**b) for ranks in (4, 8, 32, 64)])
    assert law is not None
    assert law.b == pytest.approx(b, abs=1e-6) and law.at(1000) == pytest.approx(a * 1000**b, rel=1e-4)


def test_no_law_is_fitted_to_too_few_points() -> None:
    assert fitted([]) is None and fitted([(4, 1.0)]) is None
    assert fitted([(4, 1.0), (4, 2.0)]) is None and fitted([(4, 0.0), (8, 1.0)]) is None


@pytest.mark.parametrize(
    ("b", "kind"),
    [(-1, "falls"), (0, "constant"), (0.5, "less than N"), (1, "as N"), (2, "more than N")],
)
def test_growth_is_described_by_its_exponent(b: float, kind: str) -> None:
    law = fitted([(ranks, ranks**b) for ranks in (4, 16, 64)])
    assert law is not None and law.kind == kind


def a_row(ranks: int, replicas: int, sha: str = "same", **changed: Any) -> dict[str, Any]:
    costs = {cost: float(ranks) for cost in scale.COSTS if cost != "survived"}
    about = {"program": "darlin", "ranks": ranks, "replicas": replicas, "killed": False, "sent_again": {}}
    return {**about, **costs, "parameters_sha256": sha, **changed}


def a_death(ranks: int, sha: str = "same", survived: float | None = 0.2) -> dict[str, Any]:
    about = {"program": "darlin", "ranks": ranks, "replicas": 1, "killed": True, "sent_again": {"moved": 3}}
    return {**about, "parameters_sha256": sha, "noticed": 0.1, "survived": survived}


def test_undisturbed_runs_that_are_the_same_are_good() -> None:
    rows = [a_row(8, 0), a_row(8, 1), a_death(8), a_row(16, 0, "other"), a_row(16, 1, "other")]
    assert scale.problems(rows) == []
    lines = scale.table(rows)
    assert [(line["ranks"], line["replicas"], line["survived"], line["same"]) for line in lines] == [
        (8, 0, None, "yes"), (8, 1, 0.2, "yes"), (16, 0, None, "yes"), (16, 1, None, "yes"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "reported"),
    [
        ([a_row(8, 0), a_row(8, 1, sent_again={"chain": 2})], "sent again: {'chain': 2}"),
        ([a_row(8, 0), a_row(8, 1, lost=2)], "healthy ranks excluded: 2"),
        ([a_row(8, 0), a_row(8, 1, "other")], "other bits"),
        ([a_row(8, 1), a_death(8, "other")], "a server killed: other bits"),
        ([a_row(8, 1), a_death(8, survived=None)], "the death was not detected"),
    ],
)
def test_violations_are_reported(rows: list[dict[str, Any]], reported: str) -> None:
    (problem,) = scale.problems(rows)
    assert reported in problem


def test_the_report_is_drawn_and_written() -> None:
    rows = [a_row(ranks, replicas) for ranks in (4, 8, 16) for replicas in (0, 1)]
    facts = {"cpu": "a machine", "cores": 2, "load": 0.1, "load_after": 0.2}
    report = {"conditions": facts, "passes": 3, "rows": rows, "fits": scale.fits(rows), "problems": []}
    said = scale.text(report)
    assert "+1.00         as N" in said and "no message was sent twice" in said
    assert scale.draw_plot(rows).count("<polyline") == len(scale.DRAWN)


def test_costs_are_means_of_a_rank_and_pass() -> None:
    ranks = [
        {"role": role, "messages": n, "sent": 10 * n, "cpu": 0.1 * n, "pss": 5, "private": n}
        for role, n in (("scheduler", 8), ("server", 4), ("worker", 2), ("worker", 6))
    ]
    found = scale.usage_by_role(ranks, 2)
    assert (found["messages_scheduler"], found["messages_worker"], found["bytes_server"]) == (4, 2, 20)
    assert found["private"] == 5 and found["cpu_worker"] == pytest.approx(0.2)


@pytest.mark.long
def test_only_the_schedulers_messages_grow_on_the_twin() -> None:
    """Two for each worker: a call, and an order; one more for each copy.

    A server with a copy has at most three messages for each that it has without: a change and its acknowledgement go
    along the chain beside it. How many of them are combined depends on the number of servers.
    """
    bound = 0.0
    for replicas in (0, 1):
        small, large = (_simulated_ranks.measured(workers, replicas) for workers in (64, 128))
        for row in (small, large):
            assert row["sent_again"] == {}
            assert row["messages_scheduler"] <= (2 + replicas) * row["workers"]
            assert row["messages_worker"] <= 2 + 4 * _simulated_ranks.ROUNDS
        bound = bound or 1.05 * small["messages_server"]
        assert large["messages_server"] <= bound * (1 + 2 * replicas)


@pytest.mark.parametrize("asked", [["--ranks", "3"], ["--plot", "x.png"], ["--programs", "lda"]])
def test_impossible_runs_are_refused_first(asked: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["bench", "scale", *asked])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2 and "error" in capfd.readouterr().err


@pytest.mark.ranks
@pytest.mark.once
def test_real_ranks_are_measured_with_and_without_a_death(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report, plot = tmp_path / "scale.json", tmp_path / "scale.svg"
    asked = ["--ranks", "6", "--replicas", "0,1", "--programs", "rounds", "--passes", "6", "--keys", "1000"]
    code = main(["bench", "scale", *asked, "--twin", "0", "--json", str(report), "--plot", str(plot)])
    said = capfd.readouterr().out
    assert code == 0, said
    rows = json.loads(report.read_text())["rows"]
    assert [row["replicas"] for row in rows if not row["killed"]] == [0, 1]
    assert all(row["start"] > 0 and row["private"] > 0 for row in rows if not row["killed"])
    assert np.isfinite([row["survived"] for row in rows if row["killed"]]).all()
    assert plot.read_text().startswith("<svg")
