"""The rounds of the fast path: what Python is given of them, and the memory of their parts."""

from __future__ import annotations

import numpy as np

from mpips.ranges import KeyRange
from mpips.transport.fastpath.rounds import (
    BUSY,
    BYTES,
    CLOCK,
    MOST_BYTES,
    ORDER,
    REACHED,
    ROUNDS_MEMORY,
    SMALL,
    Rounds,
)


def test_blocks_are_made_for_two_rounds_doubled_and_bounded() -> None:
    rounds = Rounds(4, np.zeros(ROUNDS_MEMORY, np.int64))
    rounds.set_workers([1, 3], keeps=True)
    assert rounds.provide(1000) and (rounds.blocks[:, BYTES] > 0).sum() == 4
    assert rounds.provide(1000) and (rounds.blocks[:, BYTES] > 0).sum() == 8
    for count in (1, 2, 4):
        assert rounds.provide(SMALL) and (rounds.blocks[:, BYTES] >= SMALL).sum() == count
    assert not rounds.provide(MOST_BYTES)
    assert rounds.blocks[:, BYTES].sum() <= MOST_BYTES
    assert len(rounds.give_up(2)) == 1024 and not rounds.blocks[2].any()
    assert not rounds.blocks[:, BUSY].any()


def test_the_clock_is_read_in_the_order_in_which_it_was_set() -> None:
    rounds = Rounds(2, np.zeros(ROUNDS_MEMORY, np.int64))
    top = np.array([2**64 - 1], np.uint64).view(np.int64)[0]
    entries = [(5, 1, 0, 0, top, 7), (2, 1, 0, 10, 19, 9), (3, 0, 0, 0, top, 1)]
    for place, entry in zip((3, 900, CLOCK - 1), entries, strict=True):
        rounds.clock[place, ORDER : REACHED + 1] = entry
    assert list(rounds.reached(1)) == [(0, KeyRange(10, 20), 9), (0, KeyRange(0, 2**64), 7)]
    assert list(rounds.reached(1)) == []
    assert list(rounds.reached(0)) == [(0, KeyRange(0, 2**64), 1)]
