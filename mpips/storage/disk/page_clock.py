"""Which pages of a file go when memory is full: a clock, whose hand gives each page a few more chances.

`heat` u1[pages] has for each page: ABSENT, not in memory; LEAVING, on its way out; or else its chances, one more for
each request that has touched it since the hand was there last, up to MOST (generalized CLOCK: Smith, ACM TODS 3(3),
1978). The hand takes one chance from each page, and one without any more leaves. So pages that requests touch often
stay, and those that were touched once go first. A new page has two chances: it is not to leave before it is used.

All functions are pure but for `heat`. Runs of pages are rows (first page, number of pages, of these to be handled) of
i8[n, 3]. Runs that leave go on over pages that are absent: far from the rows that are used often, most pages are, and
the system is called once for many that leave.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel

ABSENT, LEAVING, COLD, MOST = 0, 1, 2, 6
"""Values of `heat`; COLD is a page with one chance."""
Heat = NDArray[np.uint8]
Runs = NDArray[np.int64]


@kernel(inline=True)
def _add(runs: Runs, count: int, page: int) -> int:
    """Add a page to the last of `count` runs, if it is the next one, or as a new run; return their number."""
    if count > 0 and runs[count - 1, 0] + runs[count - 1, 1] == page:
        runs[count - 1, 1] += 1
        runs[count - 1, 2] += 1
        return count
    runs[count, 0], runs[count, 1], runs[count, 2] = page, 1, 1
    return count + 1


@kernel(inline=True)
def _add_over_absent(runs: Runs, count: int, page: int, goes_on: bool) -> int:
    """Add a page as `_add` does; if the last run goes on, it also gets the pages between."""
    if count > 0 and goes_on:
        runs[count - 1, 1] = page + 1 - runs[count - 1, 0]
        runs[count - 1, 2] += 1
        return count
    runs[count, 0], runs[count, 1], runs[count, 2] = page, 1, 1
    return count + 1


@kernel("i8(u1[::1], i4[::1], i8, i8, i8[:,::1])")
def touch(heat: Heat, slots: NDArray[np.int32], row: int, page: int, runs: Runs) -> int:
    """Heat the pages with the rows of slots, of `row` bytes each (-1: none); return the number of runs of new ones.

    `runs` has room for all pages of all slots.
    """
    count = 0
    for i in range(len(slots)):
        if slots[i] < 0:
            continue
        begin = np.int64(slots[i]) * row
        for at in range(begin // page, (begin + row - 1) // page + 1):
            if heat[at] == ABSENT:
                count = _add(runs, count, at)
            heat[at] = min(max(heat[at], COLD) + 1, MOST)
    return count


@kernel("i8(u1[::1], i8, i8, i8[:,::1])")
def touch_run(heat: Heat, first: int, last: int, runs: Runs) -> int:
    """Heat the pages from `first` to `last`, as `touch` does; `runs` has room for half of them, and one."""
    count = 0
    for at in range(first, last + 1):
        if heat[at] == ABSENT:
            count = _add(runs, count, at)
        heat[at] = min(max(heat[at], COLD) + 1, MOST)
    return count


@kernel("void(u1[::1], i8[::1], i8, i8[:,::1])")
def sweep(heat: Heat, hand: Any, wanted: int, runs: Runs) -> None:
    """Move the hand on until so many pages leave, or to the end of the file.

    `hand` i8[3] is the page where it stands, and gets the numbers of pages that leave, and of their runs.
    """
    at, found, count, goes_on = hand[0], 0, 0, False
    while at < len(heat) and found < wanted:
        if heat[at] == COLD:
            heat[at] = LEAVING
            count = _add_over_absent(runs, count, at, goes_on)
            found += 1
            goes_on = True
        elif heat[at] != ABSENT:
            goes_on = False
            if heat[at] > COLD:
                heat[at] -= 1
        at += 1
    hand[0], hand[1], hand[2] = at, found, count


@kernel("i8(u1[::1], i8, i8, i8[:,::1])")
def leave(heat: Heat, first: int, count: int, runs: Runs) -> int:
    """Let the pages of a run be absent that were not touched since they began to leave; return their runs."""
    found, goes_on = 0, False
    for at in range(first, first + count):
        if heat[at] == LEAVING:
            heat[at] = ABSENT
            found = _add_over_absent(runs, found, at, goes_on)
            goes_on = True
        elif heat[at] != ABSENT:
            goes_on = False
    return found


@kernel("i8(u1[::1], u1[::1])")
def settle(heat: Heat, resident: Heat) -> int:
    """Correct `heat` by what is in memory (odd: the page is); return the number of these pages."""
    count = 0
    for at in range(len(heat)):
        if resident[at] & 1 == 0:
            heat[at] = ABSENT
        else:
            count += 1
            if heat[at] == ABSENT:
                heat[at] = COLD
    return count
