"""Fixed point is unbiased, exact where documented, and reproducible; with feedback, errors do not accumulate.

The statistical tests have fixed seeds: they fail always or never. For a wrong implementation's sake each bound is
at a normal deviate of 6.1, which chance passes with a probability of 1e-9.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from contents import about, content, contents, damaged, survives
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips import typed
from mpips.errors import FilterError, InputError
from mpips.filters import fixed_point as module
from mpips.filters.filter import About, Coder, Content, State, known
from mpips.filters.fixed_point import FixedPoint, fixed_point
from mpips.keys import KeyArray, from_pairs
from mpips.ranges import KeyRange
from mpips.transport.message import DTYPES

SIGMAS = 6.1
FLOATS = DTYPES[:2]
CODERS = {size: fixed_point(FixedPoint(size, least=0)) for size in (1, 2)}
STEPS = {1: 254, 2: 65534}
sizes = st.sampled_from((1, 2))
Rows = NDArray[np.float64]


def arrives(coder: Coder, values: Rows, where: About | None = None) -> Rows:
    _, sent = coder.encode({}, Content(None, values), where or about())
    assert sent.note and sent.values.dtype == np.uint8
    return coder.decode(sent).values


# -- what is exact -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(sizes, contents())
def test_numbers_are_off_by_less_than_a_step_and_what_is_exact_is(
    size: Literal[1, 2], given: Content
) -> None:
    _, sent = CODERS[size].encode({}, given, about())
    if not sent.note:
        assert sent is given
        return
    assert sent.keys is given.keys
    assert sent.nbytes + len(sent.note) < given.nbytes
    read = CODERS[size].decode(sent).values
    assert (read.dtype, read.shape) == (given.values.dtype, given.values.shape)
    pushed = given.values.astype(np.float64)
    for before, after in zip(pushed.T, read.T.astype(np.float64), strict=True):
        np.testing.assert_array_equal(after[before == 0], 0)
        if not before.any():
            continue
        low, high = before[before != 0].min(), before[before != 0].max()
        step = (high - low) / STEPS[size]
        assert (abs(after - before) <= step + np.spacing(read.dtype.type(max(-low, high)))).all()
        assert set(after[before == low]) == {low} and set(after[before == high]) == {high}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_lies_on_a_step_stays_there(size: Literal[1, 2], dtype: np.dtype[np.float32]) -> None:
    values = np.arange(-100, STEPS[size] - 99, dtype=dtype)[:, None]
    np.testing.assert_array_equal(arrives(CODERS[size], values), values)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_each_column_has_its_own_range(size: Literal[1, 2], dtype: np.dtype[np.float32]) -> None:
    rng = np.random.default_rng(2)
    columns = [rng.normal(0, 1e-6, 999), rng.random(999) * 1e6, np.full(999, -3.7), np.zeros(999)]
    values = np.stack(columns, axis=1).astype(dtype)
    read = arrives(CODERS[size], values)
    widths = values.max(axis=0) - values.min(axis=0)
    assert (abs(read - values).max(axis=0) <= 1.001 * widths / STEPS[size]).all()
    np.testing.assert_array_equal(read[:, 2:], values[:, 2:])


@pytest.mark.parametrize("odd", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_messages_with_non_finite_numbers_are_sent_unchanged(odd: float, dtype: np.dtype[np.float32]) -> None:
    values = np.random.default_rng(1).normal(0, 1, (500, 2)).astype(dtype)
    values[77, 1] = odd
    for coder in (CODERS[1], CODERS[2], fixed_point(FixedPoint(feedback=True, least=0))):
        given = Content(np.arange(500, dtype=np.uint64), values)
        assert coder.encode({}, given, about())[1] is given and coder.decode(given) is given


def test_what_it_cannot_or_need_not_round_is_sent_unchanged() -> None:
    normal = np.random.default_rng(1).normal(0, 1, (500, 1))
    for values in (
        np.where(normal < 0, -1.7e308, 1e308),  # the range overflows
        normal * 5e-323,  # the steps underflow
        (normal * 9).astype(np.int64),
        normal[:3],
        normal[:0],
        np.zeros((9, 0)),
        np.zeros(500, np.uint8),
    ):
        few = Content(None, values)
        assert CODERS[1].encode({}, few, about())[1] is few
    coder = fixed_point(FixedPoint(vectors=("v",), least=0))
    few = Content(None, normal)
    assert coder.encode({}, few, about())[1] is few
    assert coder.encode({}, few, about(vector="v"))[1].note


def test_arrays_of_any_layout_are_taken() -> None:
    wide = np.random.default_rng(1).normal(0, 1, (3000, 4))
    for values in (wide[:, 1:3], wide[::2], np.asfortranarray(wide)):
        np.testing.assert_array_equal(arrives(CODERS[2], values), arrives(CODERS[2], values.copy()))


# -- what is random ------------------------------------------------------------------------------------


def steps_up(fraction: float, n: int, where: About) -> NDArray[np.bool_]:
    """Which of n equal numbers, that lie so far up in a step, are rounded up."""
    values = np.full((n + 2, 1), 100 + fraction)
    values[-2:, 0] = 1, 255
    read = arrives(CODERS[1], values, where)[:-2, 0]
    assert np.isin(read, (100, 101)).all()
    return read == 101


def within(count: float, trials: int, probability: float) -> bool:
    return bool(
        abs(count - trials * probability) < SIGMAS * np.sqrt(trials * probability * (1 - probability))
    )


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 0.7, 0.999])
def test_numbers_are_rounded_up_as_often_as_they_should_be(fraction: float) -> None:
    up = steps_up(fraction, 1_000_000, about())
    assert within(up.sum(), len(up), fraction)
    assert within(
        (up[1:] & up[:-1])[::2].sum(), len(up) // 2, fraction**2
    )  # neighbours know nothing of each other


@pytest.mark.parametrize("change", ["seed", "origin", "shard", "time"])
def test_rounding_is_independent_between_messages(change: str) -> None:
    first = steps_up(0.5, 100_000, about())
    np.testing.assert_array_equal(steps_up(0.5, 100_000, about()), first)
    for value in (0, 2**31, -1):
        other = steps_up(0.5, 100_000, about(**{change: value}))
        for shift in (0, 1, 2):
            assert within((first[shift:] & other[: len(other) - shift]).sum(), len(first) - shift, 0.25)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_mean_of_what_arrives_is_what_was_pushed(
    size: Literal[1, 2], dtype: np.dtype[np.float32]
) -> None:
    """Per number over many messages, its variance being known: f (1 - f) of a step, squared."""
    rng = np.random.default_rng(5)
    values = (rng.normal(0, 1, (400, 2)) * [1, 1e-4]).astype(dtype)
    times = 1000
    mean = np.mean(
        [arrives(CODERS[size], values, about(time=t)) for t in range(times)], axis=0, dtype=np.float64
    )
    exact = values.astype(np.float64)
    step = (exact.max(axis=0) - exact.min(axis=0)) / STEPS[size]
    fraction = (exact - exact.min(axis=0)) / step % 1
    z = (mean - exact) / (step * np.sqrt(fraction * (1 - fraction) / times) + 1e-300)
    z = z[(fraction > 0.02) & (fraction < 0.98)]
    assert len(z) > 700
    assert abs(z).max() < SIGMAS + 1  # the largest of 800
    assert abs(z.sum()) < SIGMAS * np.sqrt(len(z))
    assert abs((z**2).sum() - len(z)) < SIGMAS * np.sqrt(2 * len(z))


# -- feedback ------------------------------------------------------------------------------------------


def tracked(
    size: Literal[1, 2], dtype: np.dtype[np.float32], pushes: list[tuple[KeyArray, KeyRange]]
) -> State:
    """Push random rows for each list of keys, dense where it is its range; check sums against sums after each."""
    coder = fixed_point(FixedPoint(size, feedback=True, least=0))
    rng = np.random.default_rng(8)
    pushed, arrived, worst = {}, {}, {}
    state: State = {}
    for time, (keys, range_) in enumerate(pushes):
        values = (rng.normal(0, 1, (len(keys), 2)) * [1, 1e3]).astype(dtype)
        values[rng.random(values.shape) < 0.3] = 0
        listed = None if len(keys) == range_.span else keys
        state, sent = coder.encode(state, Content(listed, values), about(time=time, range=range_))
        assert sent.keys is listed
        read = coder.decode(sent).values
        np.testing.assert_array_equal(read[values == 0], 0)
        if not sent.note:  # too few to pay: they have arrived as they are, and what was owed still is
            np.testing.assert_array_equal(read, values)
            continue
        bounds = sent.values[:32].copy().view(np.float64).reshape(2, 2)
        step = (bounds[:, 1] - bounds[:, 0]) / STEPS[size]
        for row, key in enumerate(keys.tolist()):
            pushed[key] = pushed.get(key, 0) + values[row].astype(np.float64)
            arrived[key] = arrived.get(key, 0) + read[row].astype(np.float64)
            last = worst.get(key, np.zeros(2))
            worst[key] = np.where(values[row] != 0, step, last)
            assert (abs(pushed[key] - arrived[key]) <= 1.0001 * worst[key]).all()
    assert state["keys"].tolist() == sorted(pushed)
    owed = np.array([pushed[key] - arrived[key] for key in sorted(pushed)])
    np.testing.assert_allclose(state["rows"], owed, rtol=1e-3, atol=1e-5)
    assert state["rows"].dtype == dtype
    return state


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", [1, 2])
def test_with_feedback_sums_keep_track_of_sums(size: Literal[1, 2], dtype: np.dtype[np.float32]) -> None:
    rng = np.random.default_rng(9)
    every = np.unique(rng.integers(0, 2**64, 60, np.uint64))
    everything = KeyRange(0, 2**64)
    block = KeyRange(2**63, 2**63 + 40)
    dense = np.arange(block.begin, block.end, dtype=np.uint64)
    lists = [
        (every, everything),
        (every[10:30], everything),
        (every[::3], everything),
        (dense, block),
        (dense[5:30], block),
    ]
    lists += [(dense[7:37], KeyRange(block.begin + 7, block.begin + 37))]
    tracked(size, dtype, [lists[int(rng.integers(len(lists)))] for _ in range(60)])
    grown = [(np.unique(rng.choice(every, 20)), everything) for _ in range(40)]
    tracked(size, dtype, grown)


def test_feedback_is_kept_by_keys_of_128_bits_too() -> None:
    rng = np.random.default_rng(9)
    every = np.unique(from_pairs(rng.integers(0, 9, (300, 2), np.uint64)))
    everything = KeyRange(0, 2**64)
    tracked(1, FLOATS[0], [(every[at : at + 40], everything) for at in rng.integers(0, 40, 30).tolist()])


def test_without_feedback_the_sum_drifts_and_with_it_it_does_not() -> None:
    values = np.random.default_rng(3).normal(0, 1, (200, 1))
    keys = np.arange(200, dtype=np.uint64)
    off = {}
    for feedback in (False, True):
        coder, state, total = fixed_point(FixedPoint(feedback=feedback, least=0)), {}, np.zeros((200, 1))
        for time in range(400):
            state, sent = coder.encode(state, Content(keys, values), about(time=time))
            total += coder.decode(sent).values
        off[feedback] = abs(total - 400 * values).max()
    step = np.ptp(values) / 254
    assert off[True] < 1.1 * step < 5 * step < off[False]


def test_feedback_is_for_changes_that_add_up_and_for_known_keys() -> None:
    coder = fixed_point(FixedPoint(feedback=True, least=0))
    given = Content(None, np.random.default_rng(1).normal(0, 1, (50, 1)))
    for where in (about(sums=False, range=KeyRange(0, 50)), about(range=KeyRange(0, 51))):
        state, sent = coder.encode({}, given, where)
        assert sent.note and state == {}
    state, _ = coder.encode({}, given, about(range=KeyRange(5, 55)))
    np.testing.assert_array_equal(state["keys"], np.arange(5, 55))
    hidden = np.arange(50, dtype=np.uint64) * 3
    state, sent = coder.encode({}, given, about(keys=hidden))
    np.testing.assert_array_equal(state["keys"], hidden)
    assert sent.keys is None


def test_a_state_from_a_checkpoint_that_cannot_be_written_is_copied() -> None:
    coder = fixed_point(FixedPoint(feedback=True, least=0))
    given = Content(np.arange(50, dtype=np.uint64), np.random.default_rng(1).normal(0, 1, (50, 1)))
    state, _ = coder.encode({}, given, about())
    kept = {name: array.copy() for name, array in state.items()}
    for array in kept.values():
        array.flags.writeable = False
    one, first = coder.encode(state, given, about(time=6))
    two, second = coder.encode(kept, given, about(time=6))
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(one["rows"], two["rows"])


def test_rows_of_another_kind_than_before_are_refused() -> None:
    coder = fixed_point(FixedPoint(feedback=True, least=0))
    keys = np.arange(50, dtype=np.uint64)
    state, _ = coder.encode({}, Content(keys, np.ones((50, 1))), about())
    with pytest.raises(InputError, match=r"a push to 'w' has rows of 2 float32, the errors .* are 1 float64"):
        coder.encode(state, Content(keys, np.ones((50, 2), np.float32)), about())


# -- what is damaged -----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data(), sizes, contents())
def test_damage_is_refused_or_read_in_the_right_shape(data: st.DataObject, size: int, given: Content) -> None:
    _, whole = CODERS[size].encode({}, given, about())
    if whole.note:
        survives(CODERS[size], given, whole, damaged(data.draw, whole))


@given(sizes, st.binary(min_size=1, max_size=60), st.binary(max_size=300))
def test_noise_is_refused(size: int, note: bytes, payload: bytes) -> None:
    with pytest.raises(FilterError):
        CODERS[size].decode(Content(None, np.frombuffer(payload, np.uint8), note))


def test_a_truncated_payload_is_refused_at_every_length() -> None:
    _, whole = CODERS[2].encode({}, content(3, DTYPES[0], 500, 1, "normal", "none"), about())
    for size in range(len(whole.values)):
        with pytest.raises(FilterError):
            CODERS[2].decode(whole._replace(values=whole.values[:size]))


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (np.nan, 1.0), (0.0, np.inf)])
def test_invalid_bounds_are_refused(bounds: tuple[float, float]) -> None:
    _, whole = CODERS[1].encode({}, content(3, DTYPES[0], 500, 1, "normal", "none"), about())
    payload = whole.values.copy()
    payload[:16] = np.array(bounds).view(np.uint8)
    with pytest.raises(FilterError, match="of a column are not in order"):
        CODERS[1].decode(whole._replace(values=payload))


@pytest.mark.parametrize(
    "at, value", [(0, 2), (0, 4), (1, 3), (3, 2**61), (3, -1), (3, 0), (4, 2**60), (4, 0)]
)
def test_a_note_of_other_numbers_takes_no_memory(at: int, value: int) -> None:
    _, whole = CODERS[1].encode({}, content(3, DTYPES[0], 500, 1, "normal", "none"), about())
    fields = list(module._NOTE.unpack(whole.note))
    fields[at] = value
    with pytest.raises(FilterError):
        CODERS[1].decode(whole._replace(note=module._NOTE.pack(*fields)))
    with pytest.raises(FilterError, match=r"payload is .*, expected 1-d uint8"):
        CODERS[1].decode(whole._replace(values=np.zeros((500, 1))))


def test_settings_are_checked() -> None:
    assert known["fixed_point"].settings is FixedPoint
    assert typed.build(FixedPoint, {"bytes": 2, "vectors": ["w"]}) == FixedPoint(2, vectors=("w",))
    with pytest.raises(typed.InvalidValue, match="bytes"):
        typed.build(FixedPoint, {"bytes": 3})
