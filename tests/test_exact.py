"""Exact sums against fractions and math.fsum, in any order and grouping."""

from __future__ import annotations

import json
import math
import random
import struct
from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from mpips.exact import LIMBS, SIZE, ExactSum, normalise

HUGE = 1.7976931348623157e308
TINY = 5e-324

finite = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, -0.0, 1.0, HUGE, -HUGE, TINY, -TINY, 2.2250738585072014e-308, 2.0**53, -1e-16]),
)


def bits(number: float) -> bytes:
    return struct.pack("<d", number)


def judge(values: list[float]) -> float:
    """The correctly rounded sum, by rational arithmetic."""
    total = sum((Fraction(value) for value in values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


@given(st.lists(finite, max_size=40))
def test_the_sum_is_rounded_correctly(values: list[float]) -> None:
    assert bits(ExactSum(values).value()) == bits(judge(values))


@given(st.lists(finite, max_size=30), st.randoms(use_true_random=False))
def test_order_and_grouping_change_no_bit(values: list[float], rng: random.Random) -> None:
    whole = ExactSum(values)
    order = values[:]
    rng.shuffle(order)
    parts = [ExactSum() for _ in range(rng.randint(1, 4))]
    for value in order:
        rng.choice(parts).add(value)
    merged = ExactSum()
    for part in parts:
        travelled = ExactSum.from_list(json.loads(json.dumps(part.to_list())))
        merged.merge(rng.choice([part, travelled]))
    assert merged.to_list() == whole.to_list()
    assert bits(merged.value()) == bits(whole.value())


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=6), elements=finite))
def test_arrays_of_any_shape_layout_and_access(array: NDArray[np.float64]) -> None:
    expected = bits(judge(array.ravel().tolist()))
    frozen = np.frombuffer(array.tobytes(), np.float64)
    crooked = np.frombuffer(b"x" + array.tobytes(), np.uint8)[1:].view(np.float64)
    assert not frozen.flags.writeable
    assert not crooked.flags.aligned
    for form in (array, array.T, frozen, crooked, array.astype(">f8"), np.repeat(array, 2, axis=0)[::2]):
        assert bits(ExactSum(form).value()) == expected


def test_a_long_array_agrees_with_fsum() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=200_000) * 2.0 ** rng.integers(-400, 400, 200_000)
    assert ExactSum(values).value() == math.fsum(values.tolist())
    single = values.clip(-1e30, 1e30).astype(np.float32)
    assert ExactSum(single).add(-values[0]).value() == math.fsum([*single.tolist(), -values[0]])


def test_a_sum_that_leaves_the_range_on_the_way_comes_back() -> None:
    assert ExactSum([HUGE, HUGE, HUGE, -HUGE, -HUGE, 1.0, -HUGE]).value() == 1.0
    assert ExactSum([HUGE, HUGE]).value() == math.inf
    assert ExactSum([-HUGE, -HUGE]).value() == -math.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, math.inf], math.inf),
        ([-math.inf, -math.inf, HUGE], -math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, math.inf], math.nan),
        ([1.0, -math.nan], math.nan),
    ],
)
def test_infinities_and_nan_propagate(values: list[float], expected: float) -> None:
    split = ExactSum(values[:1]).merge(ExactSum(values[1:]))
    for total in (ExactSum(values), split, ExactSum.from_list(split.to_list())):
        np.testing.assert_equal(float(total), expected)


def test_carries_move_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for 8 terms, limbs stay as small as 8 terms make them, and no bit is lost."""
    monkeypatch.setattr("mpips.exact._ROOM", 8)
    monkeypatch.setattr("mpips.exact._BLOCK", 3)
    values = [math.nextafter(2.0, 1.0)] * 1000 + [-math.nextafter(2.0**20, 1.0)] * 999
    total = ExactSum()
    for start in range(0, len(values), 7):
        total.add(values[start : start + 7])
        assert np.abs(total._limbs[: LIMBS - 1]).max() < 9 * 2**33
    assert total.value() == judge(values)


def test_the_fullest_limbs_do_not_overflow() -> None:
    """2**30 copies of the term that fills a limb most, made from one by scaling, still normalise exactly."""
    term = math.ldexp(2**53 - 1, -1074 + 31)
    limbs = ExactSum(term)._limbs * (1 << 30)
    assert np.abs(limbs).max() > 2**61  # close to the edge, so the test means something
    total = ExactSum()
    total._limbs[:] = limbs
    normalise(total._limbs)
    assert total.value() == term * 2.0**30


@pytest.mark.parametrize("state", [[], [0] * (SIZE - 1), [0.0] * SIZE, [True] * SIZE, [2**60] * SIZE])
def test_a_wrong_state_is_refused(state: list[int]) -> None:
    with pytest.raises(ValueError, match="70 integers"):
        ExactSum.from_list(state)


def test_its_text_shows_the_value() -> None:
    assert repr(ExactSum([0.1] * 10)) == "ExactSum(1.0)"
