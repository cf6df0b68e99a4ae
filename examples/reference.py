"""The examples in a single process of plain NumPy, and figures of both: `python -m examples.reference FOLDER`.

Each function takes the example's module and settings, and learns from the same mini-batches as one worker.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
HERE = Path(__file__).parent


def worker_of(module: ModuleType, settings: Any) -> Any:
    """Return the example's worker as the only one, without vectors: it cuts the data into mini-batches."""
    job = SimpleNamespace(settings=settings, data=SimpleNamespace(train=""))
    return module.Worker(SimpleNamespace(index=0, count=1, base=HERE, job=job))


def matrix_factorization(module: ModuleType, settings: Any) -> list[float]:
    """Return the root of the mean squared error of each pass."""
    worker = worker_of(module, settings)
    u, v = (spec.initial(np.arange(2_000, dtype=np.uint64)) for spec in module.specs(settings))
    rate, curve = np.float32(settings.rate), []
    for number in range(1, settings.passes + 1):
        squares = 0.0
        for i, j, ratings in worker.batches(number):
            error = ratings - (u[i] * v[j]).sum(1)
            squares += float(error @ error)
            shortfall, l2 = error[:, None].astype(np.float32), np.float32(settings.l2)
            by_user, by_item = l2 * u[i] - shortfall * v[j], l2 * v[j] - shortfall * u[i]
            np.add.at(u, i, -rate * by_user)
            np.add.at(v, j, -rate * by_item)
        curve.append((squares / len(worker.ratings)) ** 0.5)
    return curve


def graph_embedding(module: ModuleType, settings: Any) -> list[float]:
    """Return the AUC after each pass."""
    worker, curve = worker_of(module, settings), []
    keys = np.arange(worker.count, dtype=np.uint64)
    rows = [spec.initial(keys).astype(float) for spec in module.specs(settings)]
    sums = [np.zeros_like(each) for each in rows]
    for number in range(1, settings.passes + 1):
        for node, others in worker.batches(number):
            steps = module.gradients(rows[0][node], rows[1][others])
            for vector, total, at, gradients in zip(rows, sums, (node, others.ravel()), steps, strict=True):
                gradient = np.zeros_like(vector)
                np.add.at(gradient, at, gradients)
                named = np.unique(at)
                total[named] = np.hypot(total[named], gradient[named])
                vector[named] -= settings.alpha * gradient[named] / (1.0 + total[named])
        curve.append(module.auc_of(rows[0], rows[1], worker.test_edges, worker.count))
    return curve


def kmeans(module: ModuleType, settings: Any) -> list[float]:
    """Return the inertia of each pass."""
    points = worker_of(module, settings).points
    return lloyd(points, points[: settings.clusters])


def lloyd(points: F8, centers: F8) -> list[float]:
    """Return the inertia of each pass of Lloyd's algorithm; a center without points stays."""
    curve: list[float] = []
    while len(curve) < 2 or curve[-1] < curve[-2]:
        squares = ((points[:, None] - centers) ** 2).sum(2)
        of = squares.argmin(1)
        curve.append(float(squares.min(1).sum()))
        centers = np.array(
            [points[of == at].mean(0) if (of == at).any() else center for at, center in enumerate(centers)]
        )
    return curve


FIGURES = {
    "matrix_factorization": ("error of ratings (RMSE)", [(1, 0), (2, 1), (4, 4)]),
    "graph_embedding": ("AUC of edges left out", [(1, 0), (4, 0)]),
    "kmeans": ("inertia", [(1, 0), (4, 0)]),
}
"""What each curve shows, and the workers and tau of its runs."""


def main(folder: Path) -> None:
    """Draw the curves of each example, of the reference and of simulated runs."""
    from mpips import charts, simulate
    from mpips.config.job_file import load
    from mpips.config.program import load_program

    for name, (what, layouts) in FIGURES.items():
        job = load(HERE / f"{name}.toml")
        program = load_program(job.program, job.base)
        curves = {"NumPy, one process": globals()[name](program.module, job.settings)}
        for workers, tau in layouts:
            own = replace(job, consistency=replace(job.consistency, tau=tau))
            found = simulate(
                lambda cluster: program.schedule(cluster, job.settings), program.worker,  # noqa: B023
                servers=2, workers=workers, job=own,
            )  # fmt: skip
            curves[f"{workers} worker{'s' * (workers > 1)}, tau = {tau}"] = found["curve"]
        series = [
            charts.Series(each, list(enumerate(map(float, curve), 1)), at % 8)
            for at, (each, curve) in enumerate(curves.items())
        ]
        chart = charts.lines(
            series, label=f"{name}: {what} by pass", x="pass", y=what, show_y=lambda y: f"{y:.4g}"
        )
        legend = [(f"k{each.colour}", each.name) for each in series]
        (folder / f"{name}.svg").write_text(str(charts.standalone(chart, legend)) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
