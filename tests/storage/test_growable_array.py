"""Arrays that grow in place, compared with arrays that are copied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.storage.growable_array import GrowableArray


@given(
    st.sampled_from(["int8", "int32", "float64", "uint64"]),
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([0, 7]),
    st.lists(st.integers(0, 600_000), max_size=5),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_rows_stay_and_new_ones_are_filled(
    dtype: str, shape: tuple[int, ...], fill: int, sizes: list[int], touch: bool
) -> None:
    pages = GrowableArray(dtype, shape, 10, fill, touch)
    written: dict[int, int] = {}
    for step, size in enumerate(sizes):
        pages.reserve(size, touch)
        assert len(pages) >= size and pages.array.shape[1:] == shape
        assert pages.array.flags.carray and pages.array.dtype == dtype
        assert pages.nbytes >= pages.array.nbytes
        for at in {0, len(pages) // 2, len(pages) - 1} - written.keys():
            assert (pages.array[at] == fill).all()
            pages.array[at] = written[at] = step + 1
        assert all((pages.array[at] == value).all() for at, value in written.items())
    others = np.ones(len(pages), bool)
    others[list(written)] = False
    assert (pages.array[others] == fill).all()


@pytest.mark.parametrize("rows", [1000, 1_000_000])
def test_a_view_in_use_is_unchanged(rows: int) -> None:
    pages = GrowableArray(np.int64, (), rows)
    pages.array[:] = 5
    view = pages.array[: rows // 2]
    pages.reserve(4 * rows)
    pages.array[:] = 6
    assert (view == 5).all() and len(view) == rows // 2


def test_a_large_array_grows_without_a_copy() -> None:
    pages = GrowableArray(np.float32, (1,), 2_000_000)
    pages.array[:] = 1
    had = len(pages)

    class Copied(Exception):
        pass

    def copied(*_: Any) -> None:
        raise Copied

    pages._copy = copied  # type: ignore[method-assign]
    pages.reserve(4_000_000)
    assert (pages.array[:had] == 1).all() and not pages.array[had:].any()
    view = pages.array
    with pytest.raises(Copied):
        pages.reserve(8_000_000)
    assert (view[:10] == 1).all()


def test_capacity_grows_by_a_factor_and_at_least_as_requested() -> None:
    small, large = GrowableArray(np.int64, (), 100), GrowableArray(np.int64, (), 10_000_000)
    assert small.next_capacity(101) == 200
    assert small.next_capacity(5000) == 5000
    assert len(large) < large.next_capacity(len(large) + 1) < 1.04 * len(large)
    assert large.next_capacity(30_000_000) == 30_000_000
