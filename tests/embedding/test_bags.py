"""Pooled bags, beside the same in plain NumPy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips import UsageError, VectorSpec
from mpips.embedding import Bags, Dense, Embedding
from mpips.scheduler.scheduler import Cluster


@given(
    st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=5),
    st.sampled_from(["sum", "mean"]),
    st.sampled_from(["float32", "float64"]),
)
@settings(max_examples=30, deadline=None)
def test_bags_and_their_gradients(bags: list[list[int]], mode: Literal["sum", "mean"], dtype: str) -> None:
    begins = np.arange(12, dtype=dtype).reshape(6, 2)
    gradients = np.arange(1, 2 * len(bags) + 1, dtype=dtype).reshape(-1, 2)

    def schedule(cluster: Cluster) -> Any:
        vector = cluster.create_vector(VectorSpec("w", dtype, 2, update="add"))
        vector.push(np.arange(6, dtype=np.uint64), begins).result()
        table = Embedding(vector)
        ids = np.array([each for bag in bags for each in bag], np.int64)
        fetched = Bags(table.fetch(ids), np.cumsum([0, *map(len, bags)]), mode)
        pooled = fetched.pooled()
        fetched.push(gradients)
        return pooled, table.read(range(6)).rows

    pooled, after = simulate(schedule, worker=lambda context: None)
    scale = [1 / max(len(bag), 1) if mode == "mean" else 1.0 for bag in bags]
    expected = [factor * begins[bag].sum(0) for bag, factor in zip(bags, scale, strict=True)]
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)
    stepped = begins.copy()
    for bag, factor, row in zip(bags, scale, gradients, strict=True):
        np.add.at(stepped, bag, factor * row)
    np.testing.assert_allclose(after, stepped, rtol=1e-6)


@pytest.mark.parametrize("starts", [[0, 1], [1, 2], [0, 2, 1, 2], [], [[0, 2]]])
def test_starts_are_checked(starts: Any) -> None:
    def schedule(cluster: Cluster) -> None:
        Bags(Embedding(cluster.create_vector(VectorSpec("w"))).read([3, 4]), starts)

    with pytest.raises(UsageError, match="starts must ascend from 0 to the number of ids, 2"):
        simulate(schedule, worker=lambda context: None)


@pytest.mark.parametrize(
    ("starts", "gradients", "text"),
    [
        ([0, 0.9, 2], np.ones((2, 1)), "starts are float64; give integers"),
        (np.ma.array([0, 1, 2], mask=[0, 1, 0]), np.ones((2, 1)), "starts are a masked array"),
        ([0, 1, 2], np.full((2, 1), 1j), "gradients are complex128; give numbers"),
    ],
)
def test_what_would_be_rounded_or_cut_is_refused(starts: Any, gradients: Any, text: str) -> None:
    def schedule(cluster: Cluster) -> None:
        Bags(Embedding(cluster.create_vector(VectorSpec("w"))).fetch([3, 4]), starts).push(gradients)

    with pytest.raises(UsageError, match=text):
        simulate(schedule, worker=lambda context: None)


def test_masked_dense_gradients_and_complex_parameters_are_refused() -> None:
    def schedule(cluster: Cluster) -> None:
        vector = cluster.create_vector(Dense.spec("layers", 2, "sgd", {"rate": 1.0}))
        with pytest.raises(UsageError, match="layers: they are complex128; give numbers"):
            Dense(vector, [1j, 2])
        with pytest.raises(UsageError, match="layers are a masked array"):
            Dense(vector, np.ma.array([1.0, 2.0], mask=[1, 0]))
        Dense(vector, np.ones(2)).step(np.ma.array(np.ones(2, np.float32), mask=[1, 0]))

    with pytest.raises(UsageError, match="layers: gradients are a masked array"):
        simulate(schedule, worker=lambda context: None)
