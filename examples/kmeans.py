"""K-means by Lloyd's algorithm: the servers sum what the workers push, and divide (an update of one's own).

    mpips run examples/kmeans.toml
    mpips run examples/kmeans.toml --set data.train=points.tsv      a line of numbers for each point

Row j of the vector `centers` is a center and the number of its points. In each pass every worker pulls the centers, and
pushes for each of them the sum of its nearest points and their number. The servers sum these over the workers (an
aggregating vector), and replace the center by the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, KeyRange, VectorSpec, progress, update

COLUMNS = (
    progress.Column("pass", "pass", 5),
    progress.Column("inertia", "inertia", 12, progress.significant(8)),
)
F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """The job file's table [kmeans]."""

    clusters: int = 8
    passes: int = 100
    """At most; a run ends when the inertia no longer decreases."""


@update("cluster_means", sums=True)
def cluster_means(values: F8, state: Any, slots: NDArray[np.int32], rows: F8, settings: Any) -> None:
    """Set each center to the mean of its points; one without points stays."""
    found = rows[:, -1] > 0
    values[slots[found], :-1] = rows[found, :-1] / rows[found, -1:]
    values[slots, -1] = rows[:, -1]


def generated(count: int = 4_000, seed: int = 0) -> F8:
    """Draw points in the plane, f8[count, 2], around 8 centers."""
    random = np.random.default_rng(seed)
    centers = random.uniform(-10, 10, (8, 2))
    return centers[random.integers(0, 8, count)] + random.normal(0, 1, (count, 2))


def nearest(points: F8, centers: F8) -> tuple[NDArray[np.int64], float]:
    """Return each point's nearest center, i8[n], and the sum of the squared distances."""
    squares = ((points[:, None] - centers[None]) ** 2).sum(2)
    return squares.argmin(1), float(squares.min(1).sum())


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Move the centers until they stay; return the inertia, the sum of squared distances, of each pass."""
    width = cluster.workers.call("measure")[0]["width"]
    cluster.create_vector(
        VectorSpec(
            "centers",
            "float64",
            extent=settings.clusters,
            width=width + 1,
            update="cluster_means",
            aggregate=True,
        )
    )
    table, curve = cluster.table(COLUMNS), []
    cluster.workers.call("start", {"count": settings.clusters})
    with cluster.phase("train"):
        while len(curve) < settings.passes and (len(curve) < 2 or curve[-1] < curve[-2]):
            found = cluster.workers.call("move", {"number": len(curve) + 1})
            curve.append(sum(each["inertia"] for each in found))
            table.row({"pass": len(curve), "inertia": curve[-1]})
    table.close()
    return {"inertia": curve[-1], "curve": curve}


class Worker:
    """Holds its part of the points."""

    def __init__(self, context: Context) -> None:
        self.context = context
        files = context.job.data.train
        points = np.loadtxt(str(context.base / files), ndmin=2) if files else generated()
        self.points = points[context.index :: context.count]

    def measure(self) -> dict[str, int]:
        """Return the number of coordinates of a point."""
        return {"width": self.points.shape[1]}

    def start(self, count: int) -> None:
        """Let the centers begin at the first points of the first worker."""
        rows = np.zeros((count, self.points.shape[1] + 1))
        if self.context.index == 0:
            rows[:, :-1], rows[:, -1] = self.points[:count], 1
        self.context.vectors["centers"].push(KeyRange(0, count), rows, round=0)

    def move(self, number: int) -> dict[str, float]:
        """Push the sums and numbers of the points that are nearest to each center."""
        centers = self.context.vectors["centers"]
        everything = KeyRange(0, centers.spec.extent)
        found = centers.pull(everything).result()[:, :-1]
        with self.context.working():
            of, inertia = nearest(self.points, found)
            rows = np.zeros((len(found), found.shape[1] + 1))
            np.add.at(rows[:, :-1], of, self.points)
            rows[:, -1] = np.bincount(of, minlength=len(found))
        centers.push(everything, rows, round=number)
        return {"inertia": inertia}
