"""Rows that are set, and whole vectors that are exported, also by workers and when a server dies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips import Context, KeyRange, UsageError, VectorSpec
from mpips.embedding import Dense, Embedding
from mpips.embedding.dense import offsets_between
from mpips.keys import from_pairs
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault

KEYS = np.array([3, 7, 2**40, 2**63, 2**64 - 1], np.uint64)
ADAGRAD = VectorSpec("w", "float32", 2, update="adagrad", settings={"alpha": 0.5}, init=1.0)


@pytest.mark.parametrize("at", [0, 8, 14, 20, 30])
def test_rows_are_those_that_were_set_also_when_a_server_dies(
    at: int, caplog: pytest.LogCaptureFixture
) -> None:
    def schedule(cluster: Cluster) -> Any:
        w, other = cluster.create_vector(ADAGRAD), cluster.create_vector(replace(ADAGRAD, name="other"))
        rows, g = np.arange(10, dtype=np.float32).reshape(5, 2), np.ones((5, 2), np.float32)
        w.push_wait(KEYS, 3 * g)
        task = w.set_rows(KEYS, rows)
        pushed = w.push(KEYS[1:3], g[1:3], after=[task])
        after = w.pull(KEYS, after=[pushed]).result()
        other.set_rows(KEYS, rows, after=[task]).result()
        other.push_wait(KEYS[1:3], g[1:3])
        found = list(w.export())
        return after, other.pull_wait(KEYS), found, rows

    faults = {"replicas": 1, "faults": [Fault("kill", 2, after_messages=at)]} if at else {}
    after, other, found, rows = simulate(schedule, lambda context: None, servers=3, **faults)
    assert caplog.messages.count("lost") == bool(at)
    # The state of the first push is forgotten.
    assert np.array_equal(after, other) and not np.array_equal(after[1:3], rows[1:3])
    assert np.array_equal(after[[0, 3, 4]], rows[[0, 3, 4]])
    keys, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    assert np.array_equal(keys, KEYS) and np.array_equal(values, after)


def test_keys_of_128_bits() -> None:
    keys = from_pairs(np.array([[0, 5], [5, 0], [5, 1]], np.uint64))

    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(VectorSpec("w", key_bits=128))
        w.set_rows(keys, np.array([1.0, 2.0, 3.0])).result()
        return w.pull_wait(keys), list(w.export())

    rows, ((found, values),) = simulate(schedule, lambda context: None)
    assert (
        rows.tolist() == [1.0, 2.0, 3.0]
        and np.array_equal(found, keys)
        and values[:, 0].tolist() == rows.tolist()
    )


def test_workers_load_and_read_states() -> None:
    initial = np.array([0.5, -0.25, 3.0], np.float32)

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self, index: int) -> Any:
            table = Embedding(self.context.vectors["w"])
            layers = Dense(self.context.vectors["layers"], initial)
            if index == self.context.index:
                table.load(np.array([2**63, 5], np.uint64), [[1.0, 2.0], [3.0, 4.0]])
                layers.load(np.array([0.1, 0.2, 0.3], np.float32))
            return None

        def read(self) -> Any:
            table, layers = (
                Embedding(self.context.vectors["w"]),
                Dense(self.context.vectors["layers"], initial),
            )
            ids, rows = table.state()
            layers.step(np.ones(3, np.float32))
            return [ids.tolist(), rows.tolist(), layers.values.tolist()]

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(ADAGRAD)
        cluster.create_vector(Dense.spec("layers", 3, "sgd", {"rate": 0.5}))
        cluster.workers.call("train", {"index": 1})
        return cluster.workers.call("read")

    one, other = simulate(schedule, Worker, servers=2, workers=2)
    assert one == other
    assert one[:2] == [[5, 2**63], [[3.0, 4.0], [1.0, 2.0]]]
    assert one[2] == pytest.approx([-0.9, -0.8, -0.7], abs=1e-6)


def test_what_was_trained_from_the_same_values_is_loaded_to_the_bit() -> None:
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        initial = (rng.normal(size=20_000) * 10.0 ** rng.integers(-8, 8, 20_000)).astype(dtype)
        steps = (rng.normal(size=20_000) * 10.0 ** rng.integers(-8, 8, 20_000)).astype(dtype)
        trained = initial + steps
        again = initial + offsets_between(initial, trained)
        if dtype == np.float32:
            assert np.array_equal(again, trained)
        assert np.allclose(again, trained, rtol=1e-6, atol=0)


def test_keys_can_be_a_range_as_elsewhere() -> None:
    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(VectorSpec("w", width=2, extent=9))
        w.set_rows(KeyRange(2, 6), np.arange(8.0).reshape(4, 2)).result()
        with pytest.raises(UsageError, match=r"of shape \(4, 2\) to set, expected float64 of \(9, 2\)"):
            w.set_rows(KeyRange(0, 9), np.ones((4, 2)))
        wide = cluster.create_vector(VectorSpec("wide", key_bits=128))
        with pytest.raises(UsageError, match="128-bit keys must be listed"):
            wide.set_rows(KeyRange(0, 1), np.ones(1))
        return w.pull_wait(KeyRange(1, 7)).tolist()

    rows = [[0.0, 0.0], [0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0], [0.0, 0.0]]
    assert simulate(schedule, lambda context: None, servers=2) == rows


def test_mistakes_are_named() -> None:
    def schedule(cluster: Cluster) -> Any:
        w, keys = cluster.create_vector(ADAGRAD), KEYS[:2]
        sums = cluster.create_vector(VectorSpec("sums", extent=4, dense=True, aggregate=True))
        for text, rows in (
            ("rows of float64", np.ones((2, 2))),
            (r"of shape \(2,\)", np.ones(2, np.float32)),
        ):
            with pytest.raises(UsageError, match=text):
                w.set_rows(keys, rows)
        with pytest.raises(UsageError, match="sorted and unique"):
            w.set_rows(keys[::-1], np.ones((2, 2), np.float32))
        sums.set_rows(np.array([1, 3], np.uint64), np.array([5.0, 7.0])).result()
        return sums.pull_wait(np.arange(4, dtype=np.uint64)).tolist()

    assert simulate(schedule, lambda context: None) == [0.0, 5.0, 0.0, 7.0]
