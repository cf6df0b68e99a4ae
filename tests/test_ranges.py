"""Ranges and runs against plain sets of ints."""

from __future__ import annotations

import random
from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from mpips.ranges import ALL, END, Intervals, KeyRange, coalesce, intersection, split, subtract

SIZE = 24
small = st.builds(KeyRange, st.integers(0, SIZE), st.integers(0, SIZE))


def keys(*ranges: KeyRange) -> set[int]:
    return {key for piece in ranges for key in range(piece.begin, piece.end)}


@given(small, small)
def test_intersection_and_difference_partition_a_range(a: KeyRange, b: KeyRange) -> None:
    common, rest = intersection(a, b), subtract(a, b)
    assert (keys(common) if common else set()) == keys(a) & keys(b)
    assert a.intersection(b) == common
    assert common is None or not common.empty
    assert keys(*rest) == keys(a) - keys(b)
    assert not any(piece.empty for piece in rest)
    assert len(rest) <= 2
    assert rest == sorted(rest)


@given(small, small, st.integers(0, SIZE))
def test_contains_and_span(a: KeyRange, b: KeyRange, key: int) -> None:
    assert a.contains(key) == (key in keys(a))
    assert a.contains(b) == (keys(b) <= keys(a))
    assert a.span == len(keys(a))
    assert a.empty == (not keys(a))


@given(small, st.lists(st.integers(0, SIZE)))
def test_split_cuts_at_every_cut_and_nowhere_else(whole: KeyRange, cuts: list[int]) -> None:
    pieces = split(whole, cuts)
    assert [key for piece in pieces for key in range(*piece)] == list(range(*whole))
    assert not any(piece.empty for piece in pieces)
    assert {piece.begin for piece in pieces[1:]} == {c for c in cuts if whole.begin < c < whole.end}


@given(st.lists(small))
def test_coalesce_gives_the_fewest_ranges_of_the_union(ranges: list[KeyRange]) -> None:
    union = coalesce(ranges)
    assert keys(*union) == keys(*ranges)
    assert all(left.end < right.begin for left, right in pairwise(union))
    assert not any(piece.empty for piece in union)


def test_the_last_key_belongs_to_the_whole_space() -> None:
    assert ALL.contains(END - 1)
    assert not ALL.contains(END)
    assert ALL.span == END
    assert subtract(ALL, KeyRange(1, END - 1)) == [KeyRange(0, 1), KeyRange(END - 1, END)]
    assert split(ALL, [0, END, 7]) == [KeyRange(0, 7), KeyRange(7, END)]
    assert coalesce([KeyRange(7, END), KeyRange(0, 7)]) == [ALL]


@given(st.lists(st.integers(-5, 30)), st.integers(-5, 31), st.integers(-5, 31))
def test_intervals_are_a_set(times: list[int], begin: int, end: int) -> None:
    mine, model = Intervals(), set[int]()
    for time in times:
        assert mine.add(time) == (time not in model)
        model.add(time)
    assert list(mine) == sorted(model)
    assert len(mine) == len(model)
    assert all((time in mine) == (time in model) for time in range(-6, 32))
    assert mine.covers(begin, end) == set(range(begin, end)).issubset(model)
    assert mine.first_missing(begin) == next(t for t in range(begin, 99) if t not in model)
    assert all(left[1] < right[0] for left, right in pairwise(mine.runs()))
    assert Intervals(mine.runs()) == mine
    assert "time" not in mine


def test_a_finished_history_is_one_run_whatever_its_order() -> None:
    times = list(range(5000))
    random.Random(3).shuffle(times)
    done = Intervals()
    for time in times:
        done.add(time)
    assert done.runs() == [(0, 5000)]
    assert repr(done) == "Intervals([(0, 5000)])"
    assert done != Intervals()
    assert done != 3
