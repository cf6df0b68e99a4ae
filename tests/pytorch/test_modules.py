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

    for work, text in (
        (other_ids, "other ids than the mini-batch that was prefetched"),
        (no_backward, "mini-batch 0 was fetched, and its gradients are not pushed"),
        (twice, "make one Dense of it"),
        (buffers, "buffers .*num_batches_tracked"),
    ):
        with pytest.raises((UsageError, RemoteError), match=text):
            in_a_worker(work)


def test_rows_go_to_a_state_and_back_to_the_bit() -> None:
    """Of sparse ids, also those from 2^63 on; PyTorch's own layer loads the weight."""
    from mpips.torch import Embedding, EmbeddingBag

    ids = np.array([2**64 - 1, 5, 2**63, 0, 5], np.uint64)

    def trained(context: Context) -> Any:
        made = Embedding(context.vectors["w"])
        for step in range(3):
            (made(ids) * torch.arange(3) / (step + 3)).sum().backward()
        return made.state_dict()

    (state,) = in_a_worker(trained)
    assert state["ids"].tolist() == [0, 5, -(2**63), -1]
    assert state["weight"].shape == (4, 3)
    own = torch.nn.Embedding(4, 3)
    own.load_state_dict({"weight": state["weight"]})

    def loaded(context: Context) -> Any:
        bag = EmbeddingBag(context.vectors["w"], "sum")
        assert str(bag.load_state_dict(state)) == "<All keys matched successfully>"
        known = bag.eval()(np.array([[0], [5], [2**63], [2**64 - 1], [9]], np.uint64)).numpy()
        return bag.state_dict(), known

    ((again, known),) = in_a_worker(loaded)
    for name in ("ids", "weight"):
        assert torch.equal(again[name], state[name])
    assert np.array_equal(known[:4], own.weight.detach().numpy())
    # An id that was never trained.
    assert known[4].tolist() == [0.5] * 3


def test_the_state_of_pytorch_s_own_layers_is_loaded() -> None:
    from mpips.torch import Dense, Embedding

    own = torch.nn.ModuleDict({"users": torch.nn.Embedding(7, 3), "top": torch.nn.Linear(3, 2)})
    given = own.state_dict()
    of_top = {name[4:]: rows for name, rows in given.items() if name.startswith("top.")}

    def work(context: Context) -> Any:
        torch.manual_seed(5)
        rows, top = Embedding(context.vectors["w"]), Dense(context.vectors["layers"], torch.nn.Linear(3, 2))
        model = torch.nn.ModuleDict({"users": rows})
        model.load_state_dict({"users.weight": given["users.weight"]})
        top.load_state_dict(of_top)
        ids = torch.arange(7)
        found = top(model.eval()["users"](ids)).detach()
        # Training goes on from there, and a fresh handle sees it.
        model.train()
        top(model["users"](ids)).sum().backward()
        top.step()
        state = top.state_dict()
        torch.manual_seed(5)
        other = Dense(context.vectors["layers"], torch.nn.Linear(3, 2))
        assert all(torch.equal(state[name], other.state_dict()[name]) for name in state)
        return found, model.state_dict(), state

    ((found, rows, state),) = in_a_worker(work, layers=8)
    with torch.no_grad():
        torch.testing.assert_close(found, own["top"](own["users"](torch.arange(7))))
    assert rows["users.ids"].tolist() == list(range(7))
    step = own["top"](own["users"](torch.arange(7))).sum()
    step.backward()
    expected = given["users.weight"] - RATE * own["users"].weight.grad
    torch.testing.assert_close(rows["users.weight"], expected)

    def resumed(context: Context) -> Any:
        torch.manual_seed(5)
        top = Dense(context.vectors["layers"], torch.nn.Linear(3, 2))
        top.load_state_dict(state)
        return top.state_dict()

    # Trained from the same first values: to the bit.
    (again,) = in_a_worker(resumed, layers=8)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_states_and_layers_of_bfloat16_are_taken_as_float32() -> None:
    from mpips.torch import Dense, Embedding

    given = torch.tensor([[1.0, -0.5, 3.0], [0.25, 2.0, 0.0]], dtype=torch.bfloat16)

    def work(context: Context) -> Any:
        rows = Embedding(context.vectors["w"])
        rows.load_state_dict({"weight": given})
        top = Dense(context.vectors["layers"], torch.nn.Linear(3, 2, dtype=torch.bfloat16))
        before = [each.detach().clone() for each in top.module.parameters()]
        top(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        top.step()
        top.refresh()
        return rows.state_dict()["weight"], before, [each.detach() for each in top.module.parameters()]

    ((rows, before, after),) = in_a_worker(work, layers=8)
    assert torch.equal(rows, given.float())
    for was, now in zip(before, after, strict=True):
        torch.testing.assert_close(now.float(), was.float() - RATE, atol=0.02, rtol=0.01)


def test_a_state_that_does_not_fit_is_named() -> None:
    from mpips.torch import Embedding

    def loading(state: Any) -> Any:
        return lambda context: Embedding(context.vectors["w"]).load_state_dict(state)

    for state, text in (
        ({}, "Missing key.*weight"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(1)}, "Unexpected key.*bias"),
        (
            {"weight": torch.ones(3, 3), "ids": torch.tensor([4, 5, 4], dtype=torch.int32)},
            "3 ids to load, of which 2 are different",
        ),
        ({"weight": torch.ones(2, 4)}, r"rows of shape \(2, 4\) to load for 2 ids, and a width of 3"),
        (
            {"weight": torch.ones(2, 3), "ids": torch.tensor([4, 4])},
            "2 ids to load, of which 1 are different",
        ),
    ):
        with pytest.raises((RuntimeError, RemoteError), match=text):
            in_a_worker(loading(state))


def test_layers_of_a_larger_module_are_set_at_the_servers_and_a_state_that_does_not_fit_sets_nothing() -> (
    None
):
    from mpips.torch import Dense, Embedding

    def work(context: Context) -> Any:
        torch.manual_seed(5)
        layers = Dense(context.vectors["layers"], torch.nn.Linear(3, 2))
        model = torch.nn.ModuleDict({"users": Embedding(context.vectors["w"]), "top": layers})
        state = {name: torch.full_like(rows, 2.0) for name, rows in model.state_dict().items()}
        model.load_state_dict(state)
        first = layers.module.weight.tolist()
        layers.begin()
        wrong = [
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(3)},
            {"module.weight": torch.zeros(2, 3), "module.bias": torch.zeros(3)},
            {"module.weight": torch.zeros(2, 3)},
        ]
        for each in wrong:
            with pytest.raises(RuntimeError, match="in loading state_dict"):
                layers.load_state_dict(each)
            layers(torch.ones(1, 3))
            assert layers.module.weight.tolist() == first
        layers.load_state_dict({"bias": torch.ones(2)}, strict=False)
        return first, layers.begin().state_dict()

    ((first, state),) = in_a_worker(work, layers=8)
    assert first == state["module.weight"].tolist() == [[2.0] * 3] * 2
    assert state["module.bias"].tolist() == [1.0, 1.0]
