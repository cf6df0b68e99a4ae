"""Embeddings and layers on the servers, beside PyTorch's own; skipped without PyTorch (`make test-torch`)."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips import Context, RemoteError, UsageError, VectorSpec, bounded, testing
from mpips.embedding import Dense as Parameters
from mpips.scheduler.scheduler import Cluster

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch")

RATE = 0.1


def spec(width: int = 3, **fields: Any) -> VectorSpec:
    return VectorSpec("w", "float32", width, update="sgd", settings={"rate": RATE}, init=0.5, **fields)


def in_a_worker(work: Any, layers: int = 1, workers: int = 1, **fields: Any) -> list[Any]:
    """Run `work(context)` in all workers of a simulated cluster with vectors w and layers."""
    found = []

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self) -> None:
            found.append(work(self.context))

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(spec(**fields))
        cluster.create_vector(Parameters.spec("layers", layers, "sgd", {"rate": RATE}))
        cluster.workers.call("train")

    simulate(schedule, Worker, servers=2, workers=workers)
    return found


def test_examples_of_docstrings() -> None:
    import mpips.torch

    failed, tried = doctest.testmod(mpips.torch)
    assert tried
    assert not failed


def test_the_example_of_the_documentation_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text()
    first, worker, _ = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "embedded.py").write_text(first + worker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # That of an answer which does not depend on the id is 0.69.
    assert testing.simulate("embedded.py", servers=2, workers=2)["loss"] < 0.5


def batches(count: int = 10) -> Any:
    random = np.random.default_rng(5)
    for _ in range(count):
        ids = torch.from_numpy(random.integers(0, 12, (6, 2)))
        yield ids, (ids.sum(1) % 2).float()


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("bag", ["none", "sum", "mean"])
def test_training_is_that_of_pytorch(bag: Any, ahead: int) -> None:
    from mpips.torch import Dense, Embedding, EmbeddingBag

    def layer() -> Any:
        torch.manual_seed(3)
        return torch.nn.Linear(6 if bag == "none" else 3, 1)

    def loss_of(rows: Any, layers: Any, ids: Any, labels: Any) -> Any:
        scores = layers(rows(ids).reshape(len(ids), -1))[:, 0]
        return torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)

    def work(context: Context) -> list[float]:
        made = Embedding(context.vectors["w"]) if bag == "none" else EmbeddingBag(context.vectors["w"], bag)
        layers, losses = Dense(context.vectors["layers"], layer()), []
        for ids, labels in made.ahead(batches(), lambda batch: batch[0], depth=ahead):
            loss = loss_of(made, layers, ids, labels)
            loss.backward()
            layers.step()
            losses.append(loss.item())
        made.table.settle()
        return losses

    layers = layer()
    own = torch.nn.Embedding(12, 3) if bag == "none" else torch.nn.EmbeddingBag(12, 3, mode=bag)
    torch.nn.init.constant_(own.weight, 0.5)
    sgd, expected = torch.optim.SGD([*layers.parameters(), *own.parameters()], lr=RATE), []
    for ids, labels in batches():
        sgd.zero_grad()
        loss = loss_of(own, layers, ids, labels)
        loss.backward()
        sgd.step()
        expected.append(loss.item())
    (losses,) = in_a_worker(work, layers=sum(each.numel() for each in layers.parameters()))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_two_workers_step_the_layers_by_the_sum() -> None:
    from mpips.torch import Dense

    def work(context: Context) -> list[float]:
        layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(layer.weight)
        made = Dense(context.vectors["layers"], layer, scale=0.5)
        for _ in range(3):
            made(torch.tensor([[float(1 + context.index)]])).sum().backward()
            made.step()
        return [made.state_dict()["module.weight"].item()]

    # The mean gradient is 1.5.
    np.testing.assert_allclose(in_a_worker(work, workers=2), [[1 - 3 * RATE * 1.5]] * 2, rtol=1e-6)


def test_nothing_is_pushed_for_what_is_only_scored() -> None:
    from mpips.torch import Embedding

    def work(context: Context) -> list[float]:
        rows = Embedding(context.vectors["w"])
        rows.eval()(torch.tensor([1, 2]))
        rows.train()
        with torch.no_grad():
            rows(torch.tensor([3]))
        rows.table.settle()
        return rows.eval()(torch.tensor([1, 2, 3])).unique().tolist()

    assert in_a_worker(work) == [[0.5]]


def test_mistakes_are_named() -> None:
    from mpips.torch import Dense, Embedding

    def other_ids(context: Context) -> None:
        rows = Embedding(context.vectors["w"], bounded(1))
        rows.prefetch(torch.tensor([1]))
        rows(torch.tensor([2]))

    def no_backward(context: Context) -> None:
        rows = Embedding(context.vectors["w"])
        rows(torch.tensor([1]))
        rows(torch.tensor([1]))

    def twice(context: Context) -> None:
        layers = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
        Dense(context.vectors["layers"], layers)
        Dense(context.vectors["layers"], layers[0])

    def buffers(context: Context) -> None:
        Dense(context.vectors["layers"], torch.nn.BatchNorm1d(1))

    def loads(context: Context) -> None:
        made = Dense(context.vectors["layers"], torch.nn.Linear(1, 1, bias=False))
        made.load_state_dict(made.state_dict())

    for work, text in (
        (other_ids, "other ids than the mini-batch that was prefetched"),
        (no_backward, "mini-batch 0 was fetched, and its gradients are not pushed"),
        (twice, "make one Dense of it"),
        (buffers, "buffers .*num_batches_tracked"),
        (loads, "load them into the module before"),
    ):
        with pytest.raises((UsageError, RemoteError), match=text):
            in_a_worker(work)
