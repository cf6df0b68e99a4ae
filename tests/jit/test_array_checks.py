"""Invalid arrays from files are detected before a kernel reads them, however large their numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.jit.array_checks import bad_row, cells_flaw, rows_flaw

BIG = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 12)


@given(st.lists(BIG, min_size=1, max_size=8), st.integers(0, 10))
def test_a_row_is_bad_exactly_if_it_is_for_python(places: list[int], entries: int) -> None:
    indptr = np.array(places, np.int64)
    bad = [row for row in range(len(places) - 1) if not 0 <= places[row] <= places[row + 1] <= entries]
    assert bad_row(indptr, entries) == (bad[0] if bad else -1)
    if min(places) >= 0:
        assert bad_row(indptr.astype(np.uint64), entries) == (bad[0] if bad else -1)


def test_differences_that_wrap_around_are_seen() -> None:
    assert bad_row(np.array([0, 2**62 + 1, 3 * 2**62 - 2**64, 4]), 4) == 0
    assert bad_row(np.array([0, 2**62 + 1, 3 * 2**62, 4], np.uint64), 4) == 0


@pytest.mark.parametrize(
    ("indptr", "columns", "said"),
    [
        ([0, 1, 3], [0, 4, 2], ""),
        ([0, 1], [0], "do not go from 0"),
        ([1, 1, 3], [0, 4, 2], "do not go from 0"),
        ([0, 1, 4], [0, 4, 2], "do not go from 0"),
        ([0, 9, 3], [0, 4, 2], "row 0"),
        ([0, -1, 3], [0, 4, 2], "row 0"),
        ([0, 1, 3], [0, 5, 2], "beyond the 5 columns"),
        ([0, 1, 3], [0, -1, 2], "beyond the 5 columns"),
        ([0.0, 1.0, 3.0], [0, 1, 2], "whole numbers"),
        ([[0, 1, 3]], [0, 1, 2], "one-dimensional"),
    ],
)
def test_flaws_of_compressed_rows_are_described(indptr: list[int], columns: list[int], said: str) -> None:
    flaw = rows_flaw(np.array(indptr), np.array(columns), 2, 5)
    assert said in flaw and bool(said) is bool(flaw)


def test_flaws_of_tables_are_described() -> None:
    assert not cells_flaw(np.zeros(6, np.int64), 2, 3)
    assert "has 5 cells" in cells_flaw(np.zeros(5, np.int64), 2, 3)
    assert cells_flaw(np.zeros(6), 2, 3) and cells_flaw(np.zeros((2, 3), np.int64), 2, 3)
    assert cells_flaw(np.zeros(0, np.int64), 0, 3) and cells_flaw(np.zeros(6, np.int64), -2, -3)
    assert cells_flaw(np.zeros(6, np.int64), 2**32, 2**32)
