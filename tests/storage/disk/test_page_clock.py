"""Which pages go: the kernels of the clock, compared with the same steps in Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mpips.storage.disk.page_clock import (
    ABSENT,
    COLD,
    LEAVING,
    MOST,
    Heat,
    leave,
    settle,
    sweep,
    touch,
    touch_run,
)

HEATS = st.lists(st.integers(ABSENT, MOST), min_size=1, max_size=40).map(
    lambda each: np.array(each, np.uint8)
)


def runs_of(pages: list[int]) -> list[list[int]]:
    """Join pages that follow each other, in the order in which they come."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and sum(runs[-1][:2]) == page:
            runs[-1][1] += 1
            runs[-1][2] += 1
        else:
            runs.append([page, 1, 1])
    return runs


def over_absent(pages: list[int], heat: list[int]) -> list[list[int]]:
    """Join pages between which all are absent."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and not any(heat[sum(runs[-1][:2]) : page]):
            runs[-1][1:] = [page + 1 - runs[-1][0], runs[-1][2] + 1]
        else:
            runs.append([page, 1, 1])
    return runs


def room(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.empty((count, 3), np.int64)


@given(HEATS, st.integers(1, 40), st.integers(1, 16), st.data())
def test_touched_pages_get_a_chance_each_time_and_new_ones_are_reported_once(
    heat: Heat, row: int, page: int, data: st.DataObject
) -> None:
    rows = len(heat) * page // row
    slots = data.draw(st.lists(st.integers(-1, rows - 1), max_size=20, unique=True)) if rows else [-1]
    expected, new = heat.tolist(), []
    for slot in (each for each in slots if each >= 0):
        for at in range(slot * row // page, (slot * row + row - 1) // page + 1):
            new += [at] if expected[at] == ABSENT else []
            expected[at] = min(max(expected[at], COLD) + 1, MOST)
    runs = room(len(slots) * (row // page + 2))
    found = touch(heat, np.array(slots, np.int32), row, page, runs)
    assert heat.tolist() == expected
    assert runs[:found].tolist() == runs_of(new)


@given(HEATS, st.data())
def test_a_run_is_touched_as_its_pages_are(heat: Heat, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(heat) - 1))
    last = data.draw(st.integers(first, len(heat) - 1))
    twin, runs, others = heat.copy(), room(len(heat) // 2 + 2), room(2 * len(heat))
    pages = np.arange(first, last + 1, dtype=np.int32)
    found, same = touch_run(heat, first, last, runs), touch(twin, pages, 1, 1, others)
    assert heat.tolist() == twin.tolist() and runs[:found].tolist() == others[:same].tolist()


@given(HEATS, st.integers(1, 50))
def test_the_hand_takes_a_chance_from_each_page_and_pages_without_one_leave(heat: Heat, wanted: int) -> None:
    before, hand, runs = heat.tolist(), np.zeros(3, np.int64), room(wanted)
    sweep(heat, hand, wanted, runs)
    end = int(hand[0])
    gone = [at for at in range(end) if before[at] == COLD]
    assert len(gone) == hand[1] <= wanted and (hand[1] == wanted or end == len(before))
    assert runs[: hand[2]].tolist() == over_absent(gone, before)
    assert heat[:end].tolist() == [each - 1 if each >= COLD else each for each in before[:end]]
    assert heat[end:].tolist() == before[end:]


@given(HEATS, st.data())
def test_a_page_that_was_touched_since_does_not_leave(heat: Heat, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(heat) - 1))
    count, before = len(heat) - begin, heat.tolist()
    runs = room(count)
    found = leave(heat, begin, count, runs)
    gone = [at for at in range(begin, len(before)) if before[at] == LEAVING]
    assert runs[:found].tolist() == over_absent(gone, before)
    assert heat.tolist() == [ABSENT if at in gone else each for at, each in enumerate(before)]


@given(HEATS)
def test_what_the_system_says_counts(heat: Heat) -> None:
    before = heat.tolist()
    resident = np.arange(len(heat)).astype(np.uint8) % 2 * 129
    assert settle(heat, resident) == len(before) // 2
    assert all((each == ABSENT) == (at % 2 == 0) for at, each in enumerate(heat.tolist()))
    assert all(heat[at] == before[at] for at in range(1, len(before), 2) if before[at] != ABSENT)
