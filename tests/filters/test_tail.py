"""Frequent keys are never left out; rare keys are rarely sent."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips import typed
from mpips.errors import FilterError, InputError
from mpips.filters.filter import About, Content, State, known
from mpips.filters.tail import Tail, tail
from mpips.keys import from_pairs
from mpips.ranges import ALL, KeyRange
from mpips.transport.message import Command

EDGES = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 2, 2**64 - 1]
key = st.one_of(st.sampled_from(EDGES), st.integers(0, 30))
messages = st.lists(st.sets(key, max_size=15).map(sorted), max_size=20)


def about(**changes: Any) -> About:
    return About("w", Command.PUSH, ALL, True, 7, 3, 1, 5)._replace(**changes)


def let_through(
    settings: Tail, pushes: list[list[int]], dtype: str = "<f4", width: int = 1
) -> list[set[int]]:
    """Push lists of keys; return the keys of each that were sent, after a check of their rows."""
    coder, state, passed = tail(settings), State(), []
    for listed in pushes:
        keys = np.array(listed, np.uint64)
        values = np.arange(len(keys) * width).reshape(len(keys), width).astype(dtype)
        for array in (keys, values):
            array.flags.writeable = False
        state, sent = coder.encode(state, Content(keys, values), about())
        sent = coder.decode(sent)
        assert sent.keys is not None
        found = np.isin(keys, sent.keys)
        np.testing.assert_array_equal(sent.keys, keys[found])
        np.testing.assert_array_equal(sent.values, values[found])
        assert sent.values.dtype == dtype
        passed.append(set(sent.keys.tolist()))
    return passed


# --- the count ---------------------------------------------------------------------------------


@given(
    messages,
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 4),
    st.sampled_from(["<f4", "<f8", "<i4", "<i8"]),
    st.integers(1, 3),
)
def test_a_key_seen_often_enough_is_never_left_out(
    pushes: list[list[int]], least: int, width: int, depth: int, dtype: str, columns: int
) -> None:
    seen: Counter[int] = Counter()
    for listed, passed in zip(
        pushes, let_through(Tail(least, width, depth), pushes, dtype, columns), strict=True
    ):
        seen.update(listed)
        assert {key for key in listed if seen[key] >= least} <= passed


@given(messages, st.integers(1, 5))
def test_a_sketch_of_ample_width_counts_exactly(pushes: list[list[int]], least: int) -> None:
    """One of 37 keys has to share both of its counters with a probability of 1e-5; of these none does."""
    seen: Counter[int] = Counter()
    for listed, passed in zip(pushes, let_through(Tail(least, 2**16), pushes), strict=True):
        seen.update(listed)
        assert {key for key in listed if seen[key] >= least} == passed


def test_keys_of_128_bits_are_counted_by_both_halves() -> None:
    keys = from_pairs(np.stack(np.divmod(np.arange(100, dtype=np.uint64), np.uint64(10)), axis=1))
    coder, state = tail(Tail(2, 2**16, 2)), State()
    for pushed, passed in ((keys[::2], 0), (keys, 50), (keys, 100)):
        state, sent = coder.encode(state, Content(pushed, np.ones((len(pushed), 1))), about())
        assert sent.keys is not None and len(sent.keys) == passed


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_new_keys_pass_at_most_at_the_error_rate_of_the_sketch(depth: int) -> None:
    """After j keys a fresh one finds all its counters taken with a probability of at most (j / width) ** depth.

    Fixed keys, bound at five standard deviations: a wrong choice of keys had a probability of 3e-7.
    """
    width, count = 2**13, 4000
    keys = np.unique(np.random.default_rng(depth).integers(0, 2**64, count, np.uint64))
    for listed in (
        keys,
        np.arange(count, dtype=np.uint64),
        np.arange(count, dtype=np.uint64) << np.uint64(40),
    ):
        [passed] = let_through(Tail(2, width, depth), [listed.tolist()])
        chances = (np.arange(len(listed)) / width) ** depth
        assert len(passed) < chances.sum() + 5 * np.sqrt((chances * (1 - chances)).sum())
        assert passed  # at this width some are: the bound is not an empty one


@pytest.mark.parametrize(("least", "dtype"), [(255, "u1"), (256, "u2"), (65535, "u2"), (65536, "u4")])
def test_counters_are_as_small_as_they_may_be_and_do_not_wrap(least: int, dtype: str) -> None:
    coder, content = tail(Tail(least, 64)), Content(np.array([5], np.uint64), np.ones((1, 1)))
    state, _ = coder.encode({}, content, about())
    assert state["sketch"].dtype == dtype and state["sketch"].shape == (2, 64)
    state["sketch"][state["sketch"] > 0] = least - 2  # as so many pushes leave it
    state, sent = coder.encode(state, content, about())
    assert len(sent.values) == 0
    for _ in range(300):
        state, sent = coder.encode(state, content, about())
        assert sent is content
    assert state["sketch"].max() == least


def test_rows_left_out_do_not_come_back() -> None:
    coder, keys = tail(Tail(3)), np.array([5, 6], np.uint64)
    state = State()
    for turn in (1, 2, 3):
        state, sent = coder.encode(state, Content(keys, np.full((2, 1), turn)), about(flush=turn == 2))
        assert sent.values.tolist() == ([[3], [3]] if turn == 3 else [])


# --- ranges, and what it leaves alone ----------------------------------------------------------


def test_all_of_a_range_is_listed_once_rows_are_left_out() -> None:
    coder, where = tail(Tail(2)), about(range=KeyRange(2**64 - 3, 2**64))
    state, _ = coder.encode({}, Content(np.array([2**64 - 2], np.uint64), np.ones((1, 1))), where)
    content = Content(None, np.array([[1.0], [2], [3]]))
    state, sent = coder.encode(state, content, where)
    assert sent.keys is not None and sent.keys.tolist() == [2**64 - 2]
    assert sent.values.tolist() == [[2]]
    assert coder.encode(state, content, where)[1] is content


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (Tail(1), np.ones((3, 1))),
        (Tail(2, vectors=("v",)), np.ones((3, 1))),
        (Tail(2), np.ones(3, np.uint8)),
        (Tail(2), np.ones((0, 1))),
    ],
)
def test_other_vectors_are_unchanged(settings: Tail, values: NDArray[Any]) -> None:
    content = Content(None, values)
    state, sent = tail(settings).encode({}, content, about(range=KeyRange(0, len(values))))
    assert sent is content
    assert state == {}


def test_a_sketch_of_other_settings_is_refused() -> None:
    content = Content(np.array([5], np.uint64), np.ones((1, 1)))
    state, _ = tail(Tail(2, 64)).encode({}, content, about())
    for other in (Tail(2, 128), Tail(2, 64, 3), Tail(500, 64)):
        with pytest.raises(
            InputError, match=r"^filter tail: the sketch of 'w' is 2 x 64 uint8, the settings"
        ):
            tail(other).encode(state, content, about())


def test_a_note_is_refused_by_its_decoder() -> None:
    with pytest.raises(FilterError, match="note has 1 bytes, expected 0"):
        tail(Tail(2)).decode(Content(None, np.ones((1, 1)), b"a"))


def test_it_is_found_by_its_name_with_its_settings() -> None:
    found = known["tail"]
    settings: Any = typed.build(found.settings, {"at_least": 3})
    assert settings == Tail(3, 2**20, 2, ())
    assert found.make(settings).drops
    with pytest.raises(typed.InvalidValue, match="at_least must be at least 1"):
        typed.build(Tail, {"at_least": 0})
