"""Clicks by a deep learning recommendation model (DLRM: Naumov et al. 2019), computed by PyTorch.

    worker, for each mini-batch, the rows of the next one on their way:
        pull the rows of its ids, and the layers -> scores, losses, gradients -> push the rows', step the layers

The servers hold the rows of all ids (AdaGrad) and the layers (Adam), which all workers step together. With tau = 0 the
rows are pushed in rounds, too, so that results do not depend on the number of servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpips import Answer, Cluster, Context, JobError, Normal, VectorSpec, bounded, progress
from mpips.embedding import Dense as Parameters
from mpips.jobs.ctr.clicks import Clicks, auc, of_job

# At the start of all ranks: loading PyTorch takes seconds, in which a rank does not answer.
try:
    import torch

    from mpips.jobs.ctr.model import begun, loss_of
    from mpips.torch import Dense, Embedding
except ImportError:
    torch = None

COLUMNS = (
    progress.Column("pass", "pass", 5),
    progress.Column("loss", "mean loss", 10, progress.significant(5)),
    progress.Column("auc", "test AUC", 9, progress.significant(5)),
)
SCORED = 8192
"""Clicks that are scored at once."""


@dataclass(frozen=True)
class Settings:
    """The job file's table [ctr]."""

    width: int = 16
    """Values per id."""
    hidden: int = 64
    """Units of each hidden layer."""
    batch: int = 1024
    """Clicks per mini-batch of each worker."""
    passes: int = 2
    alpha: float = 0.02
    """The step of AdaGrad for the rows of ids."""
    rate: float = 0.001
    """The step of Adam for the layers."""
    clicks: int = 200_000
    """How many are generated if [data] names no file, and a tenth of as many for the test."""
    seed: int = 0


def specs(settings: Settings, layers: int, rounds: bool = False) -> tuple[VectorSpec, VectorSpec]:
    """Return the vectors of the rows of ids, and of the layers."""
    normal = Normal(0.0, 0.05, seed=settings.seed)
    adagrad = {"alpha": settings.alpha, "beta": 1e-6}
    rows = VectorSpec("rows", "float32", settings.width, update="adagrad", settings=adagrad, init=normal,
                      aggregate=rounds)  # fmt: skip
    return rows, Parameters.spec("layers", layers, "adam", {"alpha": settings.rate})


def _check_installed() -> None:
    if torch is None:
        raise JobError("the program ctr needs PyTorch: pip install torch")


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train; return the mean loss and the AUC of the test clicks of each pass."""
    _check_installed()
    state = cluster.restore() or {"pass": 0, "curve": []}
    layers: Any = cluster.workers.call("layers")[0]
    for spec in specs(settings, layers, rounds=cluster.job.consistency.is_sequential):
        cluster.vector(spec)
    table, curve, learned = cluster.table(COLUMNS), state["curve"], 0
    for number in range(state["pass"], settings.passes):
        with cluster.phase("train"):
            found = cluster.workers.call("train", {"number": number})
        loss, clicks = (sum(each[name] for each in found) for name in ("loss", "clicks"))
        learned += clicks
        scores, labels = np.concatenate(
            [rows for _, rows in cluster.workers.gather("score", {"number": number})]
        ).T
        curve.append({"loss": loss / clicks, "auc": auc(scores, labels)})
        table.row({"pass": number + 1, **curve[-1]})
        if cluster.due(number + 1):
            cluster.checkpoint(number + 1, {"pass": number + 1, "curve": curve})
            if cluster.stopping():
                break
    table.close()
    return {**(curve[-1] if curve else {}), "clicks": learned, "curve": curve}


class Worker:
    """Holds its part of the clicks."""

    def __init__(self, context: Context) -> None:
        _check_installed()
        self.context, self.settings = context, context.job.settings
        settings = self.settings
        clicks, test = of_job(context.job)
        self.steps = -(-len(clicks.labels) // (settings.batch * context.count))
        self.clicks, self.test = (each.part(context.index, context.count) for each in (clicks, test))
        self.network = begun(clicks, settings.width, settings.hidden, settings.seed)
        self.on_servers: tuple[Embedding, Dense] | None = None

    def layers(self) -> int:
        """Return the number of parameters of the layers."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def begin(self, number: int) -> tuple[Embedding, Dense]:
        """Begin pass `number` with what the servers hold."""
        if self.on_servers is None:
            vectors, consistency = self.context.vectors, bounded(self.context.job.consistency.tau)
            layers = Dense(vectors["layers"], self.network, 1 / self.context.count, consistency)
            self.on_servers = Embedding(vectors["rows"], consistency), layers
        for each in self.on_servers:
            each.begin(number * self.steps)
        return self.on_servers

    def batches(self, number: int) -> Iterator[Clicks]:
        """Yield the mini-batches of a pass in random order; all workers have as many."""
        order = np.random.default_rng([number, self.context.index]).permutation(len(self.clicks.labels))
        for step in range(self.steps):
            yield self.clicks.at(order[step :: self.steps])

    def train(self, number: int) -> dict[str, float]:
        """Learn from each click once."""
        (rows, layers), total = self.begin(number), 0.0
        for step, batch in enumerate(rows.ahead(self.batches(number), lambda batch: batch.ids)):
            self.context.step(number * self.steps + step)
            loss = loss_of(layers(batch.numbers, rows(batch.ids)), batch)
            loss.backward()
            layers.step()
            total += loss.item() * len(batch.labels)
        return {"loss": total, "clicks": len(self.clicks.labels)}

    def score(self, number: int) -> Answer:
        """Return the log-odds of the test clicks, and their labels, [n, 2]."""
        rows, layers = self.begin(number + 1)
        parts = [self.test.at(slice(at, at + SCORED)) for at in range(0, len(self.test.labels), SCORED)]
        with torch.no_grad():
            found = [layers(each.numbers, rows(each.ids)).numpy() for each in parts]
        return Answer(values=np.stack([np.concatenate(found), self.test.labels], axis=1))
