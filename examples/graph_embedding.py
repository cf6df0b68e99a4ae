"""Embed the nodes of a graph as LINE does (skip-gram embeds words so): nodes with common neighbours are near.

    mpips run examples/graph_embedding.toml
    mpips run examples/graph_embedding.toml --set data.train=edges.tsv      lines NODE<TAB>NODE

For each edge (i, j) and some random nodes k: minimise -log s(x_i . c_j) - sum_k log s(-x_i . c_k), s the sigmoid, x the
embeddings, c those as a neighbour. One edge of ten is left out; the AUC says how well the others predict it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Cluster, Context, KeyRange, Uniform, VectorSpec, progress

COLUMNS = (progress.Column("pass", "pass", 5), progress.Column("auc", "auc", 8, progress.significant(4)))
I8 = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """The job file's table [graph_embedding]."""

    width: int = 16
    alpha: float = 0.3
    negatives: int = 4
    batch: int = 1000
    passes: int = 15


def generated(nodes: int = 1_000, groups: int = 10, degree: int = 30, seed: int = 0) -> I8:
    """Draw a graph, edges i8[n, 2]: four of five edges are inside a group of nodes."""
    random = np.random.default_rng(seed)
    left = random.integers(0, nodes, nodes * degree // 2)
    inside = (left % groups) + groups * random.integers(0, nodes // groups, len(left))
    right = np.where(random.random(len(left)) < 0.8, inside, random.integers(0, nodes, len(left)))
    return np.stack([left, right], axis=1)[left != right]


def gradients(x: NDArray[Any], c: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the gradients by x [n, width] and c [n, 1 + negatives, width], whose first are neighbours."""
    slope = 0.5 + 0.5 * np.tanh(0.5 * np.einsum("nw,nkw->nk", x, c))
    slope[:, 0] -= 1
    return np.einsum("nk,nkw->nw", slope, c), (slope[:, :, None] * x[:, None]).reshape(-1, x.shape[1])


def auc_of(x: NDArray[Any], c: NDArray[Any], edges: I8, count: int) -> float:
    """Return the probability that an edge has a higher product than a random pair of nodes."""
    pairs = np.random.default_rng(0).integers(0, count, edges.shape)
    good, bad = ((x[each[:, 0]] * c[each[:, 1]]).sum(1) for each in (edges, pairs))
    return float((np.searchsorted(np.sort(bad), good) / len(bad)).mean())


def specs(settings: Settings) -> tuple[VectorSpec, VectorSpec]:
    """Return the vectors of embeddings, and of those as a neighbour."""
    half, alpha = 0.5 / settings.width, {"alpha": settings.alpha}
    nodes, contexts = (
        VectorSpec(
            name, "float32", settings.width, update="adagrad", settings=alpha, init=Uniform(-half, half, seed)
        )
        for seed, name in enumerate(("nodes", "contexts"))
    )
    return nodes, contexts


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train; return the AUC after each pass."""
    for spec in specs(settings):
        cluster.create_vector(spec)
    table, curve = cluster.table(COLUMNS), []
    with cluster.phase("train"):
        for number in range(1, settings.passes + 1):
            cluster.workers.call("train", {"number": number})
            curve.append(cluster.workers.call("score", only=[0])[0]["auc"])
            table.row({"pass": number, "auc": curve[-1]})
    table.close()
    return {"auc": curve[-1], "curve": curve}


class Worker:
    """Holds its part of the edges."""

    def __init__(self, context: Context) -> None:
        self.context, self.settings = context, context.job.settings
        files = context.job.data.train
        edges = np.loadtxt(str(context.base / files), np.int64) if files else generated()
        edges = np.concatenate([edges, edges[:, ::-1]])
        self.count = int(edges.max()) + 1
        test = np.arange(len(edges)) % (len(edges) // 2) % 10 == 9
        self.train_edges, self.test_edges = edges[~test][context.index :: context.count], edges[test]

    def batches(self, number: int) -> Iterator[tuple[I8, I8]]:
        """Yield nodes i8[n] and, for each, a neighbour and some random nodes, i8[n, 1 + negatives]."""
        random = np.random.default_rng([number, self.context.index])
        order = random.permutation(len(self.train_edges))
        for begin in range(0, len(order), self.settings.batch):
            batch = self.train_edges[order[begin : begin + self.settings.batch]]
            others = random.integers(0, self.count, (len(batch), self.settings.negatives))
            yield batch[:, 0], np.concatenate([batch[:, 1:], others], axis=1)

    def train(self, number: int) -> None:
        """Learn from each edge once."""
        nodes, contexts = self.context.vectors["nodes"], self.context.vectors["contexts"]
        for node, others in self.batches(number):
            (x, at_x), (c, at_c) = nodes.lookup(node), contexts.lookup(others.ravel())
            with self.context.working():
                by_x, by_c = gradients(x, c.reshape(*others.shape, -1))
            self.context.wait_all([nodes.push_grad(at_x, by_x), contexts.push_grad(at_c, by_c)])

    def score(self) -> dict[str, float]:
        """Return the AUC of the edges that were left out, beside random pairs."""
        everything = KeyRange(0, self.count)
        x, c = (self.context.vectors[name].pull(everything).result() for name in ("nodes", "contexts"))
        return {"auc": auc_of(x, c, self.test_edges, self.count)}
