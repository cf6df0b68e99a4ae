"""Clicks by a deep learning recommendation model (DLRM: Naumov et al. 2019), computed by PyTorch.

    worker, for each mini-batch, the rows of the next one on their way:
        pull the rows of its ids, and the layers -> scores, losses, gradients -> push the rows', step the layers

The servers hold the rows of all ids (AdaGrad) and the layers (Adam), which all workers step together. With tau = 0 the
rows are pushed in rounds, too, so that results do not depend on the number of servers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpips import (
    COUNT,
    NUMBER,
    Answer,
    Cluster,
    Context,
    Each,
    InputError,
    JobError,
    Model,
    Normal,
    VectorSpec,
    finish,
    progress,
    push_pull,
    regroup,
    retry_on_loss,
    schema_error,
)
from mpips.embedding import Dense as Parameters
from mpips.jobs.ctr import trained
from mpips.jobs.ctr.clicks import Clicks, crc, of_job
from mpips.jobs.ctr.trained import MODEL, SCORED
from mpips.jobs.sparse_lr.evaluate import measures

# At the start of all ranks: loading PyTorch takes seconds, in which a rank does not answer.
try:
    import torch

    from mpips.jobs.ctr.model import begun, loss_of, parameters
    from mpips.torch import Dense, Embedding
except ImportError:
    torch = None

COLUMNS = (
    progress.Column("pass", "pass", 5),
    progress.Column("loss", "mean loss", 10, progress.significant(5)),
    progress.Column("auc", "test AUC", 9, progress.significant(5)),
)
MOST_LOSS = 10.0 * math.log(2.0)
"""The largest mean loss of the last pass."""
SCHEMA = {
    "pass": COUNT, "rounds": COUNT, "clicks": COUNT, "layers": str, "shape?": Each(COUNT),
    "curve": Each({"loss": NUMBER, "auc": (int, float, None)}),
}  # fmt: skip
"""The form of the state in a checkpoint; `layers`: a digest of their first values; `shape`: numbers and fields."""
OUTPUTS = (MODEL,)
"""The file that a run writes."""


@dataclass(frozen=True)
class Settings:
    """The job file's table [ctr]."""

    width: int = field(default=16, metadata={"at_least": 1, "at_most": 1024})
    """Values per id."""
    hidden: int = field(default=64, metadata={"at_least": 1, "at_most": 2**16})
    """Units of each hidden layer."""
    batch: int = field(default=1024, metadata={"at_least": 2, "at_most": 2**24})
    """Clicks per mini-batch of each worker."""
    passes: int = field(default=2, metadata={"at_least": 1, "at_most": 2**31})
    alpha: float = field(default=0.02, metadata={"above": 0.0, "at_most": 1e6})
    """The step of AdaGrad for the rows of ids."""
    rate: float = field(default=0.001, metadata={"above": 0.0, "at_most": 1e6})
    """The step of Adam for the layers."""
    clicks: int = field(default=200_000, metadata={"at_least": 1, "at_most": 2**31})
    """How many are generated if [data] names no file, and a tenth of as many for the test."""
    seed: int = field(default=0, metadata={"at_least": 0, "at_most": 2**31})


def rows_spec(width: int, seed: int, alpha: float = 0.02, rounds: bool = False) -> VectorSpec:
    """Return the vector of the rows of ids."""
    normal, adagrad = Normal(0.0, 0.05, seed=seed), {"alpha": alpha, "beta": 1e-6}
    return VectorSpec(
        "rows", "float32", width, update="adagrad", settings=adagrad, init=normal, aggregate=rounds
    )


def specs(settings: Settings, layers: int, rounds: bool = False) -> tuple[VectorSpec, VectorSpec]:
    """Return the vectors of the rows of ids, and of the layers."""
    rows = rows_spec(settings.width, settings.seed, settings.alpha, rounds)
    return rows, Parameters.spec("layers", layers, "adam", {"alpha": settings.rate})


def load_model(source: Path, job: Mapping[str, Any]) -> Model:
    """Load a trained network; see `mpips.Model`."""
    _check_installed()
    return trained.load(source, job, rows_spec)


def _check_installed() -> None:
    if torch is None:
        raise JobError("the program ctr needs PyTorch: pip install torch")


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Train; return the mean loss, and the AUC of the test clicks if there are any, of each pass."""
    _check_installed()
    layers = cluster.workers.call("layers")
    check_alike(layers)
    begun = {"pass": 0, "rounds": 0, "clicks": 0, "curve": [], "layers": layers[0]["digest"]}
    state = cluster.restore(partial(unfit, layers[0]["digest"])) or begun
    for spec in specs(settings, layers[0]["count"], rounds=cluster.job.consistency.is_sequential):
        cluster.vector(spec)
    table = cluster.table(COLUMNS)
    while state["pass"] < settings.passes:
        state = cluster.compact(partial(dict, state)) or state
        if cluster.renewed():
            regroup(cluster)
        arguments = {"number": state["pass"], "first": state["rounds"]}
        with cluster.phase("train"):
            found = retry_on_loss(cluster, partial(cluster.workers.call, "train", arguments))
        check_alike([*found, layers[0]])
        loss, clicks = (sum(each[name] for each in found) for name in ("loss", "clicks"))
        scored = retry_on_loss(cluster, partial(cluster.workers.gather, "score"))
        scores, labels = np.concatenate([rows for _, rows in scored]).T
        last = state["pass"] + 1 == settings.passes
        check_loss(loss / clicks, bool(np.isfinite(scores).all()), last)
        line = {"loss": loss / clicks, "auc": measures(scores.astype(float), labels > 0)["auc"]}
        state = {
            "pass": state["pass"] + 1, "rounds": state["rounds"] + found[0]["steps"],
            "clicks": state["clicks"] + clicks, "curve": [*state["curve"], line], "layers": state["layers"],
            "shape": layers[0]["shape"],
        }  # fmt: skip
        table.row({"pass": state["pass"], **line})
        if cluster.due(state["pass"]):
            cluster.checkpoint(state["pass"], state)
            if cluster.stopping():
                break
    table.close()
    metrics = {**state["curve"][-1], "clicks": state["clicks"], "curve": state["curve"]}
    return metrics if cluster.stopped_early else finish(cluster, metrics, lambda: trained.export(cluster))


def unfit(layers: str, about: dict[str, Any]) -> str:
    """Return why a run whose layers begin with the values of a digest cannot continue from a state; "" if it can."""
    state, where = about["state"], "about.state"
    if problem := schema_error(state, SCHEMA, where):
        return problem
    if not len(state["curve"]) == state["pass"] > 0:
        return f"{where}.curve is of {len(state['curve'])} passes, and {where}.pass is {state['pass']}"
    if state["layers"] != layers:
        return (
            "the layers begin with other values than those to which the servers' steps belong: set [ctr] seed, width"
            " and hidden as they were, and use the same version of PyTorch, and clicks of the same form"
        )
    return ""


def check_alike(found: list[dict[str, Any]]) -> None:
    """Check that all workers have read the same `data`, and begin with the same layers, also those that join later.

    Raises:
        InputError: they have read others.
        JobError: they begin with others.
    """
    if len({each["data"] for each in found}) > 1:
        raise InputError(
            "[data] the workers have read different clicks: give a run files that stay as they are, the same on all"
            " hosts"
        )
    if len({each["digest"] for each in found}) > 1:
        raise JobError(
            "the layers of the workers begin with different values: they need the same version of PyTorch"
        )


def check_loss(loss: float, scored: bool, last: bool) -> None:
    """Check a pass by its mean loss, and by whether all scores of the test are finite; `last`: the last pass.

    Raises:
        InputError: training has diverged.

    >>> check_loss(50.0, True, last=False)
    >>> check_loss(50.0, True, last=True)
    Traceback (most recent call last):
        ...
    mpips.errors.InputError: training diverged: the mean loss is 50, and 0.693 of a guess. Lower [ctr] alpha or rate
    """
    most = MOST_LOSS if last else math.inf
    if not (loss < most and scored):
        found = f"the mean loss is {loss:.3g}, and {math.log(2.0):.3g} of a guess"
        raise InputError(
            f"training diverged: {found if scored else 'scores are not finite'}. Lower [ctr] alpha or rate"
        )


class Worker:
    """Holds the clicks, of which it learns its part."""

    def __init__(self, context: Context) -> None:
        _check_installed()
        torch.set_num_threads(1)
        self.context, self.settings = context, context.job.settings
        self.clicks, self.test = of_job(context.job)
        settings = self.settings
        self.shape = self.clicks.numbers.shape[1], self.clicks.ids.shape[1]
        self.network = begun(*self.shape, settings.width, settings.hidden, settings.seed)
        # What all workers must have in common.
        self.digests = {
            "data": f"{crc(self.clicks):08x}{crc(self.test):08x}",
            "digest": Parameters.digest_of(parameters(self.network)),
        }
        self.on_servers: tuple[Embedding, Dense] | None = None

    def layers(self) -> dict[str, Any]:
        """Return the number of the layers' parameters, digests of their first values and of the clicks, and a click's
        numbers and fields.
        """
        return {"count": len(parameters(self.network)), "shape": self.shape, **self.digests}

    def parameters(self) -> Answer:
        """Return the parameters of the layers, [n, 1], and what they are of: numbers, fields and hidden units."""
        _, layers = self.begin()
        return Answer({"shape": [*self.shape, self.settings.hidden]}, parameters(layers.module)[:, None])

    def begin(self, first: int = 0) -> tuple[Embedding, Dense]:
        """Take what the servers hold, and number the mini-batches from `first`."""
        if self.on_servers is None:
            vectors, model = self.context.vectors, push_pull(self.context.job.consistency).pull
            layers = Dense(vectors["layers"], self.network, consistency=model)
            self.on_servers = Embedding(vectors["rows"], model), layers
        rows, layers = self.on_servers
        # A lost worker's part is learned by the others.
        layers.scale = 1 / self.context.count
        rows.begin(first)
        layers.begin(first)
        return rows, layers

    def batches(self, number: int, steps: int) -> Iterator[Clicks]:
        """Yield the mini-batches of a pass in random order; all workers have as many."""
        part = self.clicks.part(self.context.index, self.context.count)
        order = np.random.default_rng([number, self.context.index]).permutation(len(part.labels))
        for step in range(steps):
            yield part.at(order[step::steps])

    def train(self, number: int, first: int) -> dict[str, Any]:
        """Learn from each click of its part once."""
        (rows, layers), total, clicks = self.begin(first), 0.0, 0
        steps = -(-len(self.clicks.labels) // (self.settings.batch * self.context.count))
        for step, batch in enumerate(rows.ahead(self.batches(number, steps), lambda batch: batch.ids), first):
            self.context.step(step)
            loss = loss_of(layers(batch.numbers, rows(batch.ids)), batch)
            loss.backward()
            layers.step()
            # Of no clicks it is not a number: with more workers than clicks some have none.
            total += loss.item() * len(batch.labels) if len(batch.labels) else 0.0
            clicks += len(batch.labels)
        return {"loss": total, "clicks": clicks, "steps": steps, **self.digests}

    def score(self) -> Answer:
        """Return the log-odds of its part of the test clicks, and their labels, [n, 2]."""
        rows, layers = self.begin()
        test = self.test.part(self.context.index, self.context.count)
        parts = [test.at(slice(at, at + SCORED)) for at in range(0, len(test.labels), SCORED)]
        with torch.no_grad():
            found = [layers(each.numbers, rows(each.ids)).numpy() for each in parts]
        return Answer(values=np.stack([np.concatenate([test.labels[:0], *found]), test.labels], axis=1))
