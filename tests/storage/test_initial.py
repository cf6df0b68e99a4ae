"""Initial values: the documented function of seed, key and column, and their use by segments."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import UsageError
from mpips.ranges import ALL, KeyRange
from mpips.storage import initial
from mpips.storage.initial import Normal, Uniform
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update

EDGES = np.array([0, 1, 2**32, 2**63, 2**64 - 1], np.uint64)
MASK = 2**64 - 1


# --- the function, by numpy and Python's integers ------------------------------------------------------


def mixed(state: int) -> int:
    """Return SplitMix64's output after a state, as in the paper."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def outputs(seed: int, key: int, count: int) -> list[int]:
    """Return the upper 53 bits of a key's first outputs."""
    state = mixed((key + mixed(seed)) & MASK)
    return [mixed((state + j * 0x9E3779B97F4A7C15) & MASK) >> 11 for j in range(count)]


def log(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return fdlibm's logarithm."""
    m, k = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, k = np.where(low, 2 * m, m), (k - low).astype(float)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even, odd = [0.3999999999940941908, 0.2222219843214978396, 0.1531383769920937332], [
        0.6666666666666735130, 0.2857142874366239149, 0.1818357216161805012, 0.1479819860511658591,
    ]  # fmt: skip
    half = 0.5 * f * f
    r = z * np.polynomial.polynomial.polyval(w, odd) + w * np.polynomial.polynomial.polyval(w, even)
    return k * 6.93147180369123816490e-01 - ((half - (s * (half + r) + k * 1.90821492927058770002e-10)) - f)


def cosine(part: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return cos(2 pi part / 2^53) by fdlibm's polynomials."""
    quarter = (part + (1 << 50)) >> 51
    t = (part - (quarter << 51)).astype(float) * (2 * math.pi * 2.0**-53)
    z = t * t
    c = [4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
         -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11]  # fmt: skip
    s = [8.33333333332248946124e-03, -1.98412698298579493134e-04, 2.75573137070700676789e-06,
         -2.50507602534068634195e-08, 1.58969099521155010221e-10]  # fmt: skip
    polyval = np.polynomial.polynomial.polyval
    even = 1.0 - (0.5 * z - z * (z * polyval(z, c)))
    odd = t + z * t * (-1.66666666666666324348e-01 + z * polyval(z, s))
    return np.select([quarter % 4 == 0, quarter % 4 == 1, quarter % 4 == 2], [even, -odd, -even], odd)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.integers(0, MASK), st.lists(st.integers(0, MASK), min_size=1, max_size=20, unique=True))
@settings(max_examples=30)
def test_the_kernel_gives_the_bits_of_the_documented_function(
    dtype: str, seed: int, listed: list[int]
) -> None:
    keys, width = np.array(listed, np.uint64), 3
    unit = np.array([outputs(seed, key, width) for key in listed]) * 2.0**-53
    uniform = (-2.0 + 5.0 * unit).astype(dtype)
    assert initial.rows(Uniform(-2.0, 3.0, seed), keys, width, dtype).tobytes() == uniform.tobytes()
    pairs = np.array([outputs(seed, key, 2 * width) for key in listed]).reshape(len(listed), width, 2)
    radius = np.sqrt(-2.0 * log((pairs[..., 0] + 1) * 2.0**-53))
    normal = (1.0 + 0.5 * (radius * cosine(pairs[..., 1]))).astype(dtype)
    assert initial.rows(Normal(1.0, 0.5, seed), keys, width, dtype).tobytes() == normal.tobytes()
    # Of other implementations, to the last digits.
    exact = np.sqrt(-2 * np.log((pairs[..., 0] + 1) * 2.0**-53)) * np.cos(
        2 * np.pi * pairs[..., 1] * 2.0**-53
    )
    np.testing.assert_allclose(
        normal, 1.0 + 0.5 * exact, rtol=1e-14 if dtype == "float64" else 1e-6, atol=1e-15
    )


def test_splitmix64_is_that_of_the_literature() -> None:
    # The first outputs for the seed 1234567 of Vigna's reference implementation, splitmix64.c.
    gamma = 0x9E3779B97F4A7C15
    found = [mixed((1234567 + i * gamma) & MASK) for i in range(3)]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_uniform_values_have_their_moments() -> None:
    u = initial.rows(Uniform(-1.0, 3.0, 5), np.arange(200_000, dtype=np.uint64), 2, "float64")
    assert -1.0 <= u.min() < -0.9999 and 2.9999 < u.max() < 3.0
    # Standard errors: 4 / sqrt(12 n) of the mean.
    np.testing.assert_allclose(u.mean(0), 1.0, atol=5 * 4 / math.sqrt(12 * 200_000))
    np.testing.assert_allclose(u.var(0), 16 / 12, rtol=0.02)
    counts = np.histogram(u[:, 0], bins=64, range=(-1.0, 3.0))[0]
    chi2 = float(((counts - 3125) ** 2 / 3125).sum())
    assert 20 < chi2 < 130  # 63 degrees of freedom.


def test_normal_values_have_their_moments_and_are_independent() -> None:
    x = initial.rows(Normal(0.0, 1.0, 5), np.arange(200_000, dtype=np.uint64), 4, "float64")
    n = x.size
    moments = [float((x**power).mean()) for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=5 * math.sqrt(96 / n))
    assert 4.3 < abs(x).max() < 8.6
    off = np.corrcoef(np.hstack([x[:-1], x[1:]]).T) - np.eye(8)
    assert abs(off).max() < 5 / math.sqrt(len(x))
    inside = float((abs(x) < 1).mean())
    assert inside == pytest.approx(0.6827, abs=0.003)


def test_seeds_keys_and_columns_differ_and_a_wider_row_begins_alike() -> None:
    for kind in (Uniform, Normal):
        a, b = (initial.rows(kind(0.0, 1.0, seed), EDGES, 4, "float64") for seed in (1, 2))
        assert len(np.unique([a, b])) == 2 * a.size
        assert np.array_equal(initial.rows(kind(0.0, 1.0, 1), EDGES, 2, "float64"), a[:, :2])


# --- the specification ---------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [0.0, 2, -1.5, Uniform(-1, 1), Normal(0.5, 0.1, 2**64 - 1)])
def test_a_specification_survives_json(init: Any) -> None:
    spec = VectorSpec("w", width=2, init=init)
    again = VectorSpec(**json.loads(json.dumps(asdict(spec))))
    assert again == spec and again.init == init
    assert np.array_equal(again.initial(EDGES), spec.initial(EDGES))


def test_numbers_of_numpy_are_taken() -> None:
    spec = VectorSpec("w", init=Uniform(np.float32(0.5), np.int64(2), np.uint64(7)))  # type: ignore[arg-type]
    assert json.dumps(asdict(spec)["init"]) == '{"low": 0.5, "high": 2.0, "seed": 7}'
    assert VectorSpec("w", "int64", init=np.int64(2**62 + 1)).initial(EDGES[:1]).tolist() == [[2**62 + 1]]


@pytest.mark.parametrize(
    ("dtype", "init", "said"),
    [
        ("int32", Uniform(0, 1), "needs float32 or float64, not int32"),
        ("int64", Normal(0, 1), "needs float32 or float64, not int64"),
        ("int32", 2**31, "init 2147483648 is not of type int32"),
        ("int64", 0.5, "init 0.5 is not of type int64"),
        ("float32", 1e39, "init 1e+39 does not fit into float32"),
        ("float64", math.nan, "init is not a number"),
        ("float64", math.inf, "init inf is not a number, Uniform or Normal"),
        ("float64", True, "init True is not a number, Uniform or Normal"),
        ("float64", "small", "init 'small' is not a number, Uniform or Normal"),
        ("float64", {"low": 1}, "init {'low': 1} is not a number, Uniform or Normal"),
        ("float64", Uniform(1, 0), "low 1.0 is above high 0.0"),
        ("float64", Uniform(0, 1, -1), "seed -1 is not an integer from 0 to 2**64 - 1"),
        ("float64", Uniform(0, 1, 0.5), "seed 0.5 is not an integer"),  # type: ignore[arg-type]
        ("float64", Uniform(-1.7e308, 1.7e308), "high - low inf does not fit into float64"),
        ("float64", Normal(0, -1), "std -1.0 is negative"),
        ("float64", Normal("0", 1), "mean '0' is not a number"),  # type: ignore[arg-type]
        ("float32", Normal(0, 1e38), "|mean| + 9 std 9e+38 does not fit into float32"),
    ],
)
def test_initial_values_that_cannot_be_are_refused(dtype: str, init: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        VectorSpec("w", dtype, init=init)
    assert str(caught.value).startswith("vector 'w': init") and said in str(caught.value)


# --- a segment -----------------------------------------------------------------------------------------

INITS = [0.25, Uniform(-1.0, 1.0, 3), Normal(0.0, 2.0, 4)]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 3])
def test_an_absent_key_reads_as_its_initial_value_and_gets_no_row(init: Any, dtype: str, width: int) -> None:
    spec = VectorSpec("w", dtype, width=width, init=init)
    segment, keys = Segment(spec), np.arange(10, dtype=np.uint64) * np.uint64(2**60)
    assert segment.pull(keys).tobytes() == spec.initial(keys).tobytes() and len(segment) == 0
    some, rows = keys[2:9:3], np.ones((3, width), dtype)
    segment.push(some, rows)
    wanted = spec.initial(keys)
    wanted[2:9:3] += rows
    assert segment.pull(keys).tobytes() == wanted.tobytes() and len(segment) == 3
    out = np.empty((10, width), dtype)
    segment.pull_slots(segment.resolve(keys), out, keys)
    assert out.tobytes() == wanted.tobytes()
    read_only = keys[:2].copy()
    read_only.flags.writeable = False
    assert segment.pull(read_only).tobytes() == wanted[:2].tobytes()
    assert segment.push(keys[:1], rows[:1], reply=True).tobytes() == (wanted[:1] + rows[:1]).tobytes()  # type: ignore[union-attr]


@pytest.mark.parametrize("init", INITS)
def test_dense_and_sparse_segments_begin_alike(init: Any) -> None:
    ranges = [KeyRange(3, 70_100), KeyRange(70_200, 70_300)]  # Longer than what is filled at once.
    dense = Segment(VectorSpec("w", "float32", width=2, extent=80_000, dense=True, init=init), ranges)
    sparse = Segment(VectorSpec("w", "float32", width=2, extent=80_000, init=init), ranges)
    keys = dense.listed(ALL)
    wanted = dense.spec.initial(keys)
    assert dense.pull(KeyRange(0, 80_000)).tobytes() == wanted.tobytes()
    assert sparse.pull(KeyRange(0, 80_000)).tobytes() == wanted.tobytes() and len(sparse) == 0
    for segment in (dense, sparse):
        segment.push(keys[5:9], np.zeros((4, 2), np.float32))
        segment.push(keys[7:8], -segment.pull(keys[7:8]))
        # What was not changed says no more than what is missing; a row of zeros does.
        changed, values = segment.export()
        assert changed.tolist() == keys[7:8].tolist() and values.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("name", ["add", "assign", "sgd", "adagrad", "ftrl", "adam"])
def test_every_update_starts_from_the_initial_value(name: str) -> None:
    spec, keys = VectorSpec("w", width=2, update=name, init=Normal(0.0, 1.0, 1)), EDGES
    rows = np.linspace(-1, 1, 10).reshape(5, 2)
    segment, twin = Segment(spec), Segment(VectorSpec("w", width=2, update=name))
    # The same update of a segment whose rows were set to these by hand; its state starts as always.
    twin.resolve(keys, create=True)
    twin.values[:5] = spec.initial(keys)
    for each in (segment, twin):
        each.push(keys, rows.copy())
    assert segment.pull(keys).tobytes() == twin.pull(keys).tobytes()
    assert all(np.array_equal(segment.state[column][:5], twin.state[column][:5]) for column in twin.state)


@update("test_initial_read", columns=lambda spec: {"n": Column("float64", 1, 5.0)},
        read=lambda values, state, slots: values[slots] * 10 + state["n"][slots])  # fmt: skip
def reading(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    values[slots] += rows
    state["n"][slots] += 1


def test_what_a_pull_computes_is_computed_for_absent_keys_too() -> None:
    spec = VectorSpec("w", update="test_initial_read", init=0.5)
    segment, keys = Segment(spec), np.array([1, 2, 3], np.uint64)
    segment.push(keys[1:2], np.ones((1, 1)))
    assert segment.pull(keys).tolist() == [[10.0], [21.0], [10.0]] and len(segment) == 1


def test_integers_begin_with_a_number() -> None:
    spec = VectorSpec("w", "int32", width=2, init=-3)
    segment = Segment(spec)
    segment.push(EDGES[:2], np.ones((2, 2), np.int32))
    assert segment.pull(EDGES[:3]).tolist() == [[-2, -2], [-2, -2], [-3, -3]]
