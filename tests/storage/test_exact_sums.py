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

from mpips.jit.kernel import kernel
from mpips.storage.exact_sums import (
    BITS,
    LIMBS,
    SIZE,
    ExactSum,
    accumulate,
    anchor_of,
    anchors,
    normalise,
    quantum,
    rounded,
    snap,
    sums_of,
)

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
    monkeypatch.setattr("mpips.storage.exact_sums._ROOM", 8)
    monkeypatch.setattr("mpips.storage.exact_sums._BLOCK", 3)
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


# --- Sums of terms that are rounded beforehand ------------------------------------------------------------------------

bounded = st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=60)
scales = st.integers(-200, 200).map(lambda e: 2.0**e * 0.7)


@given(bounded, scales, st.randoms(use_true_random=False))
def test_rounded_terms_add_up_the_same_in_any_order_and_grouping(
    shares: list[float], bound: float, rng: random.Random
) -> None:
    values = [share * bound for share in shares]
    q = quantum(bound, len(values))
    terms = rounded(values, q)
    whole = sum(terms.tolist())
    order = terms.tolist()
    rng.shuffle(order)
    parts = [0.0] * rng.randint(1, 5)
    for term in order:
        parts[rng.randrange(len(parts))] += term
    rng.shuffle(parts)
    assert bits(sum(parts)) == bits(whole)
    assert Fraction(whole) == sum(map(Fraction, order)), "no addition has rounded"
    off = abs(Fraction(whole) - sum(map(Fraction, values)))
    assert off <= Fraction(q) / 2 * len(values)
    assert off <= len(values) * Fraction(bound) * len(values) * Fraction(2) ** -BITS


def test_sums_of_terms_that_are_not_rounded_depend_on_their_order() -> None:
    """The opposite, so that the test above means something."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=1000)
    assert len({sum(rng.permutation(values).tolist()) for _ in range(20)}) > 1
    terms = rounded(values, quantum(5.0, 1000))
    assert len({sum(rng.permutation(terms).tolist()) for _ in range(20)}) == 1


def test_ties_are_rounded_by_the_term_alone() -> None:
    """A running sum in place of the anchor would round a half by whether it is odd itself."""
    q = quantum(1.0)
    halves = [q / 2, q * 1.5, -q / 2, q * 2.5]
    assert rounded(halves, q).tolist() == [0.0, 2 * q, 0.0, 2 * q]


@pytest.mark.parametrize("terms", [1, 3, 2**20, 2**31])
def test_the_fullest_sum_is_still_exact(terms: int) -> None:
    bound = math.nextafter(4.0, 0.0)
    q = quantum(bound, terms)
    assert math.frexp(q)[0] == 0.5 and q <= 2.0 ** (1 - BITS) * bound * terms
    whole = terms * rounded(bound, q)  # as so many equal terms add up to, if no addition rounds
    assert Fraction(whole) == terms * Fraction(float(rounded(bound, q)))
    assert abs(whole) < 2.0**53 * q


def test_a_quantum_for_each_sum() -> None:
    q = quantum([1.0, 0.0, 1e6], 10)
    assert q.tolist() == [quantum(1.0, 10), quantum(0.0), quantum(1e7)]
    assert rounded([[0.1, 0.0, 1e5], [1.0, 0.0, -1e6]], q).shape == (2, 3)
    assert np.array_equal(anchors([1.0, 1e6], 10), quantum([1.0, 1e6], 10) * 3.0 * 2.0**BITS)


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf, 2.0**960])
def test_bounds_without_a_quantum_are_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        quantum(bound)
    with pytest.raises(ValueError, match="must lie in"):
        quantum([1.0, bound])


@pytest.mark.parametrize("value", [5.0, -5.0, math.inf, math.nan])
def test_a_value_beyond_its_bound_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="smaller bound"):
        rounded([1.0, value], quantum(1.0, 2))


@given(st.floats(0.0, 2.0**959), st.integers(-899, 959))
def test_an_anchor_is_thrice_the_next_power_of_two(bound: float, exponent: int) -> None:
    out = np.empty(1)
    for each in (
        bound,
        2.0**exponent,
        math.nextafter(2.0**exponent, 0.0),
        math.nextafter(2.0**exponent, 1e300),
    ):
        anchor_into(each, out)
        power = Fraction(out[0]) / 3
        assert out[0] == anchors(each)
        assert power >= Fraction(each) and (power < 2 * Fraction(each) or power == Fraction(2.0**-900))
        assert power.numerator.bit_count() == power.denominator.bit_count() == 1


@kernel("void(f8, f8[::1])")
def anchor_into(bound: float, out: NDArray[np.float64]) -> None:
    """Let a kernel make an anchor."""
    out[0] = anchor_of(bound)


@kernel("void(f8[::1], f8, f8[::1])")
def snapped(values: NDArray[np.float64], bound: float, out: NDArray[np.float64]) -> None:
    """Round values in a kernel, one by one and as vectors, as the compiler likes."""
    anchor = anchor_of(bound)
    for i in range(len(values)):
        out[i] = snap(values[i], anchor)


@given(bounded, scales)
def test_kernels_round_alike(shares: list[float], bound: float) -> None:
    """No compiler takes (x + a) - a for x."""
    values, out = np.array(shares) * bound, np.empty(len(shares))
    snapped(values, bound * len(values), out)
    assert out.tobytes() == rounded(values, quantum(bound, len(values))).tobytes()


def test_accumulators_of_several_ranks_are_added_as_they_are() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(4, 300)) * 10.0 ** rng.integers(-9, 9, (4, 300))
    limbs = np.zeros((2, 4, SIZE), np.int64)
    for rank, part in enumerate((values[:, :100], values[:, 100:])):
        for row in range(4):
            accumulate(part[row].copy(), limbs[rank, row])
            normalise(limbs[rank, row])
    assert sums_of(limbs.sum(axis=0)).tolist() == [math.fsum(row) for row in values.tolist()]
