"""The example programs give the same numbers as a single process, on any layout, and learn."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import simulate

from examples import reference
from mpips.config.job_file import load
from mpips.config.program import load_program
from mpips.scheduler.scheduler import Cluster
from mpips.storage import updates

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def own_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program registers goes with the test."""
    monkeypatch.setattr("mpips.storage.updates._updates", dict(updates._updates))
    for path in EXAMPLES.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)


def run(
    name: str, servers: int = 2, workers: int = 1, tau: int = 0, **settings: Any
) -> tuple[dict[str, Any], Any]:
    """Run an example in a simulation; return its metrics, and its module."""
    job = load(EXAMPLES / f"{name}.toml")
    settings_ = replace(job.settings, **settings)
    job = replace(job, settings=settings_, consistency=replace(job.consistency, tau=tau))
    program = load_program(job.program, job.base)

    def schedule(cluster: Cluster) -> Any:
        return program.schedule(cluster, settings_)

    metrics = simulate(schedule, program.worker, servers=servers, workers=workers, job=job)
    return metrics, program.module


@pytest.mark.parametrize("name", ["matrix_factorization", "graph_embedding", "kmeans"])
def test_examples_are_short(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 120


def test_matrix_factorization_is_that_of_plain_numpy() -> None:
    how = {"ratings": 4_000, "batch": 500, "passes": 3, "rank": 4, "rate": 0.05}
    metrics, module = run("matrix_factorization", **how)
    expected = reference.matrix_factorization(module, replace(module.Settings(), **how))
    assert metrics["curve"] == pytest.approx(expected, rel=1e-5)


def test_graph_embedding_is_that_of_plain_numpy() -> None:
    how = {"passes": 2, "width": 8}
    metrics, module = run("graph_embedding", **how)
    expected = reference.graph_embedding(module, replace(module.Settings(), **how))
    # The servers' rows are of float32.
    assert metrics["curve"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("workers", "tau"), [(1, 0), (2, 0), (2, 2)])
def test_matrix_factorization_finds_the_factors(workers: int, tau: int) -> None:
    metrics, _ = run("matrix_factorization", 2, workers, tau, ratings=40_000, passes=12, batch=400, rate=0.03)
    # The mean alone has an error of 1.3, the noise is 0.3.
    assert metrics["curve"][0] > 1.2 and metrics["rmse"] < 0.75


def test_graph_embedding_predicts_edges_that_were_left_out() -> None:
    metrics, _ = run("graph_embedding", 2, 2, passes=6)
    assert metrics["curve"][0] < metrics["auc"]
    # Inside a group 79 % of the edges are predictable, those between groups are not.
    assert metrics["auc"] > 0.8


@pytest.mark.parametrize("workers", [1, 3])
def test_kmeans_is_lloyds_algorithm(workers: int) -> None:
    metrics, module = run("kmeans", 2, workers)
    points = module.generated()
    first = points[::workers][:8]
    # The order of sums differs, and so may the last pass.
    expected = reference.lloyd(points, first)
    assert metrics["curve"][: len(expected) - 1] == pytest.approx(expected[:-1], rel=1e-9)
    if workers == 1:
        from sklearn.cluster import KMeans

        theirs = KMeans(8, init=first, n_init=1, max_iter=1_000, tol=0.0, algorithm="lloyd").fit(points)
        assert metrics["inertia"] == pytest.approx(theirs.inertia_, rel=1e-9)
