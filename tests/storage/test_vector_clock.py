"""The ranged vector clock, compared with a dict from (node, key) to time, on a small key space."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mpips.ranges import ALL, END, KeyRange
from mpips.storage.vector_clock import NOTHING, RangedClock

SIZE = 12
NODES = (3, 5, 8)
bounds = st.integers(0, SIZE)
ranges = st.builds(KeyRange, bounds, bounds)
nodes = st.sampled_from(NODES)
times = st.integers(-1, 3)
settings_ = st.lists(st.tuples(ranges, nodes, times), max_size=12)

Model = dict[tuple[int, int], int]


def key_of(at: int) -> int:
    """The model's last key stands for the upper end of the real space."""
    return at if at < SIZE - 1 else END - 1


def stretch(keys: KeyRange) -> KeyRange:
    """Stretch a range of the model: its last key holds all the keys up to 2**64."""
    return KeyRange(*(END if bound == SIZE else bound for bound in keys))


def build(settings: list[tuple[KeyRange, int, int]]) -> tuple[RangedClock, Model]:
    clock, model = RangedClock(), dict[tuple[int, int], int]()
    for keys, node, time in settings:
        clock.set(stretch(keys), node, time)
        model.update({(node, key): time for key in range(*keys)})
    return clock, model


def check(clock: RangedClock, model: Model) -> None:
    """Check that the clock equals the model, with the fewest ranges."""
    for node in NODES:
        expected = [model.get((node, key), NOTHING) for key in range(SIZE)]
        assert [clock.get(key_of(key), node) for key in range(SIZE)] == expected
        entries = list(clock.entries(node))
        assert entries[0][0].begin == 0
        assert entries[-1][0].end == END
        assert all(left[0].end == right[0].begin for left, right in pairwise(entries))
        assert all(left[1] != right[1] for left, right in pairwise(entries))
        assert len(entries) == 1 + sum(left != right for left, right in pairwise(expected))
        assert (node in clock.nodes()) == any(time != NOTHING for time in expected)


class ClockMachine(RuleBasedStateMachine):
    """Any sequence of operations, compared with a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.clock, self.model = RangedClock(), dict[tuple[int, int], int]()
        self.sets = 0

    @rule(keys=ranges, node=nodes, time=times)
    def assign(self, keys: KeyRange, node: int, time: int) -> None:
        before = len(list(self.clock.entries(node)))
        self.clock.set(stretch(keys), node, time)
        self.model.update({(node, key): time for key in range(*keys)})
        assert len(list(self.clock.entries(node))) <= before + 2

    @rule(settings=settings_)
    def merge(self, settings: list[tuple[KeyRange, int, int]]) -> None:
        other, theirs = build(settings)
        self.clock.merge(other)
        for at, time in theirs.items():
            self.model[at] = max(time, self.model.get(at, NOTHING))
        check(other, theirs)

    @rule()
    def save_and_restore(self) -> None:
        restored = RangedClock.from_arrays(*self.clock.to_arrays())
        assert restored == self.clock
        self.clock = restored

    @rule(keys=ranges, node=nodes)
    def read(self, keys: KeyRange, node: int) -> None:
        if keys.empty:
            with pytest.raises(ValueError, match="no key"):
                self.clock.get(keys, node)
            return
        expected = min(self.model.get((node, key), NOTHING) for key in range(*keys))
        assert self.clock.get(stretch(keys), node) == expected
        parts = list(self.clock.entries(node, stretch(keys)))
        assert (parts[0][0].begin, parts[-1][0].end) == stretch(keys)
        assert min(time for _, time in parts) == expected

    @invariant()
    def agrees(self) -> None:
        check(self.clock, self.model)


TestClockMachine = ClockMachine.TestCase


@given(settings_)
def test_ranges_are_at_most_two_per_set_and_one(settings: list[tuple[KeyRange, int, int]]) -> None:
    clock, model = build(settings)
    check(clock, model)
    for node in NODES:
        sets = sum(each == node for _, each, _ in settings)
        assert len(list(clock.entries(node))) <= 2 * sets + 1
    assert len(clock) <= 2 * len(settings) + len(NODES)


def test_a_finished_round_is_one_range_again() -> None:
    clock = RangedClock()
    cuts = [0, *range(7, 7000, 7), END]
    for time in (0, 1):
        for begin, end in sorted(pairwise(cuts), key=lambda block: block[0] * 2654435761 % 4093):
            clock.set(KeyRange(begin, end), 2, time)
        assert list(clock.entries(2)) == [(ALL, time)]
        assert len(clock) == 1


@given(settings_, settings_, settings_)
def test_merge_is_idempotent_and_order_free(first: Any, second: Any, third: Any) -> None:
    def merged(*order: Any) -> RangedClock:
        total = RangedClock()
        for settings in order:
            total.merge(build(settings)[0])
        return total

    assert merged(first, second, third) == merged(third, first, second, first)


@given(settings_)
def test_equal_clocks_give_equal_arrays(settings: list[tuple[KeyRange, int, int]]) -> None:
    clock, model = build(settings)
    other = RangedClock()
    for (node, key), time in model.items():
        other.set(stretch(KeyRange(key, key + 1)), node, time)
    assert clock == other
    for mine, theirs in zip(clock.to_arrays(), other.to_arrays(), strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)
    assert (clock == RangedClock()) == all(time == NOTHING for time in model.values())


def test_arrays_hold_the_last_key() -> None:
    clock = RangedClock()
    clock.set(KeyRange(2**63, END), 1, 2**62)
    arrays = clock.to_arrays()
    assert arrays.firsts.tolist() == [2**63]
    assert arrays.lasts.tolist() == [END - 1]
    assert arrays.times.dtype == np.int64
    assert arrays.lasts.dtype == np.uint64
    assert RangedClock.from_arrays(*arrays).get(END - 1, 1) == 2**62
    assert clock != 3


@pytest.mark.parametrize(
    ("firsts", "lasts"),
    [([5], [4]), ([0, 3], [3, 9]), ([5, 0], [9, 4]), ([0, 3], [2])],
)
def test_wrong_arrays_are_refused(firsts: list[int], lasts: list[int]) -> None:
    ones = np.ones(len(firsts), np.int64)
    with pytest.raises(ValueError, match=r"clock of node 1|shorter"):
        RangedClock.from_arrays(ones, np.array(firsts, np.uint64), np.array(lasts, np.uint64), ones)
