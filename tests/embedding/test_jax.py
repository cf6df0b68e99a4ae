"""Embeddings and layers with JAX, beside the same in JAX alone."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import simulate

import mpips.jax
from mpips import Context, UsageError, VectorSpec, testing
from mpips.embedding import Dense, Embedding
from mpips.scheduler.scheduler import Cluster

RATE = 0.1
SPEC = VectorSpec("w", "float32", 4, update="sgd", settings={"rate": RATE}, init=0.5)


def test_examples_of_docstrings() -> None:
    failed, tried = doctest.testmod(mpips.jax)
    assert tried
    assert not failed


def test_the_example_of_the_documentation_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text()
    first, _, worker = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "embedded.py").write_text(first + worker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # That of an answer which does not depend on the id is 0.69.
    assert testing.simulate("embedded.py", servers=2, workers=2)["loss"] < 0.5


def batches() -> Any:
    random = np.random.default_rng(7)
    for _ in range(12):
        ids = random.integers(0, 20, (8, 3))
        yield ids, (ids.sum(1) % 2).astype(np.float32)


def test_training_is_that_of_one_process() -> None:
    import jax
    import jax.numpy as jnp

    begin = {"w": jnp.linspace(-1, 1, 12).reshape(12, 1), "b": jnp.zeros(1)}

    def loss(layers: Any, rows: Any, places: Any, labels: Any) -> Any:
        score = (rows[places].reshape(len(labels), -1) @ layers["w"])[:, 0] + layers["b"]
        return jnp.mean(jnp.logaddexp(0, score) - labels * score)

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self) -> list[float]:
            table = mpips.jax.Embedding(self.context.vectors["w"])
            layers = mpips.jax.Dense(self.context.vectors["layers"], begin)
            losses = []
            for ids, labels in batches():
                batch = table.fetch(ids)
                value, (of_layers, of_rows) = both(layers.values, batch.rows, batch.places, labels)
                batch.push(of_rows)
                layers.step(of_layers)
                losses.append(float(value))
            table.settle()
            layers.settle()
            return losses

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(SPEC)
        cluster.create_vector(Dense.spec("layers", 13, "sgd", {"rate": RATE}))
        return cluster.workers.call("train")[0]

    layers, rows, expected = begin, jnp.full((20, 4), 0.5), []
    for ids, labels in batches():
        value, (of_layers, of_rows) = both(layers, rows, ids, labels)
        layers = jax.tree.map(lambda each, step: each - RATE * step, layers, of_layers)
        rows = rows - RATE * of_rows
        expected.append(float(value))
    np.testing.assert_allclose(simulate(schedule, Worker, servers=2), expected, rtol=1e-5)


def test_shapes_are_few_since_rows_are_padded() -> None:
    def schedule(cluster: Cluster) -> Any:
        table = mpips.jax.Embedding(cluster.create_vector(SPEC))
        shapes = {table.read(np.arange(count)).rows.shape for count in range(1, 17)}
        batch = table.fetch([[5, 6, 7]])
        batch.push(np.ones((4, 4), np.float32))
        table.settle()
        return shapes, Embedding(cluster.vectors["w"]).read([5, 7, 8]).rows[:, 0].tolist()

    def one_for_each_id(cluster: Cluster) -> None:
        batch = mpips.jax.Embedding(cluster.create_vector(SPEC)).fetch([7, 3, 7, 7])
        batch.push(np.ones((4, 4), np.float32))

    with pytest.raises(UsageError, match=r"but `rows` are \(2, 4\)"):
        simulate(one_for_each_id, worker=lambda context: None)
    shapes, after = simulate(schedule, worker=lambda context: None)
    assert {each[0] for each in shapes} == {1, 2, 4, 8, 16}
    np.testing.assert_allclose(after, [0.4, 0.4, 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    "gradients", [{"b": np.ones(1), "w": np.ones((2, 1))}, {"w": np.ones((1, 2)), "z": np.ones(1)}]
)
def test_gradients_of_another_tree_are_refused(gradients: Any) -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(Dense.spec("layers", 3, "sgd", {"rate": RATE}))
        mpips.jax.Dense(vector, {"w": np.ones((1, 2)), "b": np.ones(1)}).step(gradients)

    with pytest.raises(UsageError, match="dense parameters layers: gradients PyTreeDef"):
        simulate(schedule, worker=lambda context: None)


def test_masked_ids_are_refused() -> None:
    def schedule(cluster: Cluster) -> None:
        mpips.jax.Embedding(cluster.create_vector(SPEC)).fetch(np.ma.array([7, 3], mask=[1, 0]))

    with pytest.raises(UsageError, match="ids are a masked array"):
        simulate(schedule, worker=lambda context: None)


def test_states_go_to_trees_and_back_to_the_bit() -> None:
    first = {"w": np.array([0.5, -3.0], np.float32), "b": np.ones(1, np.float32)}

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self) -> Any:
            items = mpips.jax.Embedding(self.context.vectors["w"])
            layers = mpips.jax.Dense(self.context.vectors["layers"], first)
            for _ in range(3):
                batch = items.fetch([2**40, 3])
                batch.push(0.1 * np.arange(8, dtype=np.float32).reshape(2, 4))
                layers.step({"w": np.array([0.1, 0.7], np.float32), "b": np.ones(1, np.float32)})
            trained = items.state(), layers.values
            items.load({"ids": [3, 9], "rows": np.zeros((2, 4))})
            layers.load(first)
            assert [array.tolist() for array in layers.values.values()] == [[1.0], [0.5, -3.0]]
            items.load(trained[0])
            layers.load(trained[1])
            again = items.state()
            assert again["ids"].tolist() == [3, 9, 2**40]
            kept = again["ids"] != 9
            assert np.array_equal(again["rows"][kept], trained[0]["rows"]) and not again["rows"][~kept].any()
            return [np.array_equal(layers.values[name], trained[1][name]) for name in first]

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(SPEC)
        cluster.create_vector(Dense.spec("layers", 3, "sgd", {"rate": RATE}))
        return cluster.workers.call("train")

    assert simulate(schedule, Worker, servers=2) == [[True, True]]
