"""The text parsers access no memory outside of their arrays, on any input; compiled code has no such checks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.data import kernels

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
words = st.sampled_from(
    (b"1|-1|0|+|-|.|e|E5|:|#| |\t|\n|"
     b"\r|\r\n|qid|q|qi|nan|9|18446744073709551615|1 2:3|1 1:1 2:1\n|1\ta\tb\n|\x00|\xff").split(b"|")
)  # fmt: skip
svmlight_lines = st.sampled_from(
    [b"1\n", b"0 \r\n", b"-1 3:1\n", b"1 1:1 2:0.5 7:1\n", b"1 5:1.0000000596046448 6:1.0000000596046448\n"]
)
rows_of = {
    columns: st.lists(st.sampled_from([b"7", b"ab", b"7", b""]), min_size=columns, max_size=columns).map(
        lambda fields: b"\t".join([b"1", *fields]) + b"\n"
    )
    for columns in (1, 2, 3)
}
garbage = st.one_of(st.binary(max_size=50), st.lists(words, max_size=25).map(b"".join))


def nearly(legal: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Mostly valid lines, for errors that occur only with a full batch or a long line; and random bytes."""
    return st.one_of(
        garbage,
        st.lists(legal, min_size=2, max_size=5).map(b"".join),
        st.lists(st.one_of(legal, words), max_size=8).map(b"".join),
    )


class Guarded(np.ndarray):
    """An array on which a read or write outside 0..n-1 fails."""

    def _check(self, place) -> None:  # type: ignore[no-untyped-def]
        places = place if isinstance(place, tuple) else (place,)
        assert all(0 <= at < size for at, size in zip(places, self.shape, strict=False))

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        self._check(place)
        return super().__getitem__(place)

    def __setitem__(self, place, value) -> None:  # type: ignore[no-untyped-def]
        self._check(place)
        super().__setitem__(place, value)


def guarded(*arrays: np.ndarray) -> list[Guarded]:
    return [array.view(Guarded) for array in arrays]


def reset(state: np.ndarray) -> None:
    """Start a new batch, as the reader does when one is full."""
    for place in (kernels.EXAMPLES, kernels.NONZEROS, kernels.HARD, kernels.ONES):
        state[place] = 0


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the kernels' helpers as plain Python, so that `Guarded` sees every access."""
    # Loaded with the compiled helpers.
    assert kernels.parse_svmlight.py_func and kernels.parse_rows.py_func  # type: ignore[attr-defined]
    for name in (
        "is_space",
        "next_line",
        "number",
        "starts_with_qid",
        "label_at",
        "mix",
        "sort_unique",
        "sort_unique_pairs",
    ):
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    with np.errstate(all="ignore"):
        yield


@quick
@given(nearly(svmlight_lines), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.booleans())
def test_svmlight_parser_never_leaves_its_block(
    interpreted: None, content: bytes, parts: int, rows: int, room: int, fielded: bool
) -> None:
    if fielded:
        content = content.replace(b":", b":3:")
    block = np.frombuffer(content + b"\n", np.uint8).astype(np.int64).view(Guarded)
    for part in range(parts):
        (state,) = guarded(np.zeros(kernels.STATE_SIZE, np.int64))
        arrays = guarded(
            np.zeros(rows, np.float32),
            np.zeros(rows + 1, np.int64),
            np.zeros(room, np.uint64),
            np.zeros(room if fielded else 0, np.uint64),
            np.zeros(room, np.float32),
        )
        hard = np.zeros((2, 2), np.int64)
        for _ in range(200):
            kernels.parse_svmlight.py_func(block, part, parts, *arrays, hard, state)  # type: ignore[attr-defined]
            if state[kernels.CODE] == kernels.DONE:
                break
            if state[kernels.CODE] == kernels.FULL:
                if state[kernels.EXAMPLES] == 0:
                    return  # the reader would make more room
                reset(state)
        assert state[kernels.POS] == len(block)


def walk_rows(
    content: bytes, parts: int, rows: int, columns: int, bucketed: bool, more: int, wide: bool
) -> None:
    """Parse `content` as the reader does, into arrays with `more` room than one row of keys needs."""
    block = np.frombuffer(content + b"\n", np.uint8).astype(np.int64).view(Guarded)
    crosses = [[0, columns - 1]] if columns > 1 else []
    for part in range(parts):
        (state,) = guarded(np.zeros(kernels.STATE_SIZE, np.int64))
        room = columns + len(crosses) + more
        places, marks, pointers, members, fields = guarded(
            np.arange(columns),
            np.full(columns, bucketed, np.uint8),
            np.cumsum([0] + [len(cross) for cross in crosses]),
            np.array([0, columns - 1] * len(crosses), np.int64),
            np.zeros((2, columns), np.uint64),
        )
        halves = np.zeros(room, np.uint64), np.zeros(room if wide else 0, np.uint64)
        arrays = guarded(np.zeros(rows, np.float32), np.zeros(rows + 1, np.int64), *halves)
        for _ in range(200):
            kernels.parse_rows.py_func(  # type: ignore[attr-defined]
                block, part, parts, 9, places, marks, pointers, members, fields, *arrays, False, state
            )
            if state[kernels.CODE] == kernels.DONE:
                break
            if state[kernels.CODE] == kernels.FULL:
                assert state[kernels.EXAMPLES] > 0
                reset(state)
        assert state[kernels.POS] == len(block)


@quick
@given(
    st.data(),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 6),
    st.booleans(),
)
def test_row_parser_never_leaves_its_block(
    interpreted: None,
    data: st.DataObject,
    parts: int,
    rows: int,
    columns: int,
    bucketed: bool,
    more: int,
    wide: bool,
) -> None:
    walk_rows(data.draw(nearly(rows_of[columns])), parts, rows, columns, bucketed, more, wide)


@pytest.mark.parametrize("more", range(9))
def test_rows_that_just_do_not_fit(interpreted: None, more: int) -> None:
    walk_rows(b"1\ta\tb\tc\n" * 4, 1, 4, 3, False, more, False)
