"""Ranges, compared with sets of ints."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from mpips.ranges import ALL, END, KeyRange, coalesce, intersection

SIZE = 24
small = st.builds(KeyRange, st.integers(0, SIZE), st.integers(0, SIZE))


def keys(*ranges: KeyRange) -> set[int]:
    return {key for piece in ranges for key in range(piece.begin, piece.end)}


@given(small, small)
def test_intersection_gives_the_keys_of_both(a: KeyRange, b: KeyRange) -> None:
    common = intersection(a, b)
    assert (keys(common) if common else set()) == keys(a) & keys(b)
    assert a.intersection(b) == common
    assert common is None or not common.empty


@given(small)
def test_span_counts_the_keys(a: KeyRange) -> None:
    assert a.span == len(keys(a))
    assert a.empty == (not keys(a))


@given(st.lists(small))
def test_coalesce_gives_the_fewest_ranges_of_the_union(ranges: list[KeyRange]) -> None:
    union = coalesce(ranges)
    assert keys(*union) == keys(*ranges)
    assert all(left.end < right.begin for left, right in pairwise(union))
    assert not any(piece.empty for piece in union)


def test_the_last_key_belongs_to_the_whole_space() -> None:
    assert ALL.span == END
    assert coalesce([KeyRange(7, END), KeyRange(0, 7)]) == [ALL]
