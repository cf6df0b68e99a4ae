"""Look-up of ids in any order and with repeats, and the sum of what is pushed for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips import Answer, Context, RemoteError, UsageError, VectorSpec, text_keys
from mpips.scheduler.scheduler import Cluster
from mpips.worker.places import places_of

MASKED = np.ma.masked_array([1, 3, 5], [False, True, False])
MASKED_USES: dict[str, Callable[[Any], Any]] = {
    "keys": lambda w: w.push(MASKED.astype(np.uint64), np.ones(3)), "whole": lambda w: w.pull(MASKED),
    "list": lambda w: w.key_list(MASKED), "ids": lambda w: w.lookup(MASKED),
    "rows": lambda w: w.push_grad(w.lookup([1, 3, 5])[1], MASKED.astype(float)),
}  # fmt: skip


@pytest.mark.parametrize("use", MASKED_USES)
def test_what_is_masked_does_not_count_as_data(use: str) -> None:
    def schedule(cluster: Cluster) -> Any:
        return MASKED_USES[use](cluster.create_vector(VectorSpec("w")))

    with pytest.raises(UsageError, match="are a masked array"):
        simulate(schedule, lambda context: None)


def test_what_is_masked_does_not_count_as_data_of_a_call() -> None:
    class Worker:
        def __init__(self, context: Context) -> None:
            pass

        def echo(self, values: Any) -> Answer:
            return Answer(values=np.ma.masked_array(values, values > 1))

    for values in (MASKED, np.arange(3.0)):
        with pytest.raises((UsageError, RemoteError), match="values are a masked array"):
            simulate(lambda cluster, given=values: cluster.workers.gather("echo", values=given), Worker)


IDS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=60)


@given(IDS, st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_repeats_are_summed_in_their_order(ids: list[int], width: int, seed: int) -> None:
    where = places_of(np.array(ids, np.uint64), 64, "w")
    assert where.keys.tolist() == sorted(set(ids))
    assert where.keys[where.places].tolist() == ids
    rows = np.random.default_rng(seed).normal(size=(len(ids), width)).astype(np.float32)
    expected = np.zeros((len(where.keys), width), np.float32)
    for place, row in zip(where.places, rows, strict=True):
        expected[place] += row
    found = where.summed(rows)
    assert found.dtype == np.float32 and np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(where.summed(rows[:, 0]), found[:, 0])


def test_ids_of_128_bits() -> None:
    keys = text_keys(["b", "a", "b"])
    where = places_of(keys, 128, "w")
    assert len(where.keys) == 2 and np.array_equal(where.keys[where.places], keys)
    again = places_of(keys.view(np.uint64).reshape(-1, 2), 128, "w")
    assert np.array_equal(again.keys, where.keys) and np.array_equal(again.places, where.places)
    assert len(places_of([], 128, "w").keys) == 0


@pytest.mark.parametrize(
    ("ids", "bits", "said"),
    [
        ([-1, 2], 64, "an id is -1; ids are integers from 0"),
        ([1.0], 64, r"ids are float64 of shape \(1,\); give integers of shape \[n\]"),
        ([[1]], 64, r"of shape \(1, 1\)"),
        ([1], 128, "give KEY128 of shape"),
    ],
)
def test_what_is_no_id(ids: Any, bits: int, said: str) -> None:
    with pytest.raises(UsageError, match=f"vector w: {said}" if bits == 64 and said[0] == "a" else said):
        places_of(ids, bits, "w")


def test_a_step_of_a_factorisation_is_that_of_a_single_process() -> None:
    rng = np.random.default_rng(1)
    users, errors = rng.integers(0, 8, 40), rng.normal(size=(40, 3)).astype(np.float32)

    def schedule(cluster: Cluster) -> Any:
        spec = VectorSpec("u", "float32", width=3, update="sgd", settings={"rate": 0.5}, init=1.0)
        u = cluster.create_vector(spec)
        rows, where = u.lookup(users)
        assert rows.shape == (40, 3) and (rows == 1.0).all()
        u.push_grad(where, errors).result()
        with pytest.raises(UsageError, match=r"rows of shape \(3, 3\) for 40 ids that were looked up"):
            u.push_grad(where, errors[:3])
        with pytest.raises(UsageError, match="rows of float64, but its update 'sgd' takes float32"):
            u.push_grad(where, errors.astype(float))
        return u.lookup(np.arange(8))[0]

    expected = np.ones((8, 3), np.float32)
    np.add.at(expected, users, np.float32(-0.5) * errors)
    assert np.allclose(simulate(schedule, lambda _: None, servers=2), expected, atol=1e-5)


@pytest.mark.parametrize("span", [5, 300, 10**6, 2**63])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int16])
@pytest.mark.parametrize("width", [(), (3,)])
def test_places_are_those_of_numpy(span: int, dtype: type, width: tuple[int, ...]) -> None:
    random = np.random.default_rng(span % 1000)
    ids = random.integers(0, span, 50).astype(np.uint64) + np.uint64(3)
    where = places_of(ids, 64, "w")
    keys, inverse = np.unique(ids, return_inverse=True)
    assert np.array_equal(where.keys, keys) and np.array_equal(where.places, inverse)
    rows = random.integers(-9, 9, (50, *width)).astype(dtype)
    expected = np.zeros((len(keys), *width), dtype)
    np.add.at(expected, inverse, rows)
    assert np.array_equal(where.summed(rows), expected) and where.summed(rows).dtype == dtype
    assert np.array_equal(where.summed(np.asfortranarray(rows)), expected)
    assert np.array_equal(where.rows(expected), expected[inverse])


K = np.array([1, 2], np.uint64)


@pytest.mark.parametrize(
    ("keys", "values", "said"),
    [
        (K, np.ones(2, np.float16), "values must be an array .* are of type float16 in 1 dimensions"),
        (K, [1.0, 2.0], "values must be .* are of type list"),
        (K, np.ones((2, 2, 2)), "values must be .* in 3 dimensions"),
        (K, np.float64(1.0), "values must be .* of type float64"),
        (
            K.astype(np.int64),
            np.ones(2),
            "keys must be an array .n. of uint64 or KEY128, and are of type int64",
        ),
    ],
)
def test_arrays_that_cannot_be_sent_are_the_programs_error(keys: Any, values: Any, said: str) -> None:
    class Worker:
        def __init__(self, context: Any) -> None:
            pass

        def go(self, **arrays: Any) -> Any:
            return None if arrays else Answer(values=values, keys=keys)

    for schedule in (
        lambda cluster: cluster.workers.gather("go"),
        lambda cluster: cluster.workers.call("go", keys=keys, values=values),
    ):
        with pytest.raises((UsageError, RemoteError), match=said) as caught:
            simulate(schedule, Worker)
        assert isinstance(caught.value, UsageError) or (
            caught.value.is_usage and "test_places.py" in str(caught.value)
        )
