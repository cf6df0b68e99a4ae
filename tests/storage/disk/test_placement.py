"""Where rows are: each has one place, whatever moves; those that are used stay in memory, and pinned ones, too."""

from __future__ import annotations

import numpy as np

from mpips.storage.disk.placement import NOWHERE, Placement


def placed(rows: int) -> Placement:
    """Return a placement of so many rows, each at its slot."""
    placement = Placement()
    placement.add(rows)
    slots = np.arange(rows, dtype=np.int32)
    placement.put(slots, placement.vacant(rows, rows))
    return placement


def test_rows_that_are_used_stay_in_memory() -> None:
    count, most = 4000, 1000
    placement = placed(most)
    placement.add(count)
    rng, missing = np.random.default_rng(1), []
    for _ in range(60):
        # Half of the accesses are to 500 rows that are not in memory at first.
        slots = np.unique(np.append(rng.integers(3000, 3500, 100), rng.integers(0, count, 100)))
        slots = slots.astype(np.int32)
        positions, absent, reading = placement.find(slots)
        assert not reading and np.array_equal(np.flatnonzero(positions < 0), absent)
        leaving = placement.least_used(len(absent))
        owners = placement.owner[leaving]
        assert len(leaving) == len(absent) and not set(owners.tolist()) & set(slots.tolist()), "pinned"
        placement.put(owners, np.full(len(owners), NOWHERE, np.int32))
        placement.put(slots[absent], leaving)
        placement.unpin(slots)
        missing.append(len(absent))
    # Of 100 that are not among the 500, 500 of 3500 are in memory.
    assert np.mean(missing[-20:]) < 95
    places, owner = placement.places, placement.owner
    here = np.flatnonzero(places >= 0)
    assert len(here) == most and np.array_equal(owner[places[here]], here)


def test_rows_that_are_read_ahead_do_not_leave_until_they_are_used() -> None:
    placement = placed(100)
    ahead = np.arange(10, dtype=np.int32)
    placement.expect(ahead)
    assert placement.find(ahead[3:5])[2] and not placement.find(np.array([50, -1], np.int32))[2]
    placement.unpin(np.arange(100, dtype=np.int32))
    assert not placement.find(ahead[3:5])[2], "they are used"
    placement.unpin(ahead[3:5])
    assert set(placement.least_used(92).tolist()) == {3, 4, *range(10, 100)}
    assert len(placement.least_used(93)) == 92
    placement.give_up(ahead)
    assert len(placement.least_used(100)) == 100


def test_rows_that_are_kept_have_new_slots() -> None:
    placement = placed(4)
    placement.add(6)
    placement.put(np.array([4], np.int32), np.array([-2], np.int32))
    assert placement.keep(np.array([3, 4, 5, 0], np.int32)).tolist() == [3, -1, -1, 0, 1, 2]
    assert placement.places.tolist() == [3, -2, NOWHERE, 0]
    assert placement.owner.tolist() == [3, -1, -1, 0]
    # Positions of dropped rows are taken again.
    assert placement.vacant(9, 5).tolist() == [1, 2, 4]
    placement.cut(2)
    assert placement.owner.tolist() == [3, -1]
