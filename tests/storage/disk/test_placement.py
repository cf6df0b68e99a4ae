"""Where rows are: each slot has one position of its own, whatever moves, and pinned rows stay."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.storage.disk.placement import SPARE, Placement


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_that_move_keep_their_content(data: st.DataObject) -> None:
    placement, count = Placement(), 0
    content = np.full(0, -1, np.int64)
    for _ in range(data.draw(st.integers(1, 12))):
        hot = data.draw(st.integers(0, 3000))
        more = data.draw(st.integers(0, 1500))
        capacity = max(len(content), Placement.room(count + more, hot))
        content = np.append(content, np.full(capacity - len(content), -1))
        new = placement.add(count + more, hot, capacity)
        assert len(set(new.tolist())) == more
        content[new] = np.arange(count, count + more)
        count += more
        seed = data.draw(st.integers(0, 99))
        slots = np.unique(np.random.default_rng(seed).integers(0, max(count, 1), 400)).astype(np.int32)[
            :count
        ]
        positions, cold = placement.find(slots, hot)
        assert np.array_equal(content[positions], slots)
        for which in np.array_split(cold, 3):
            leaving, targets, sources, found = placement.exchange(slots[which], hot, capacity)
            assert not set(leaving.tolist()) & set(positions.tolist()), "rows of the request stay"
            assert (targets >= hot).all() and (found < hot).all() and len(leaving) == len(targets)
            content[targets] = content[leaving]
            content[found] = content[sources]
            positions[which[: len(found)]] = found
        assert np.array_equal(content[positions], slots) and np.array_equal(placement.at(slots), positions)
        placement.unpin(positions)
        everyone = placement.at(np.arange(count, dtype=np.int32))
        assert len(set(everyone.tolist())) == count and np.array_equal(content[everyone], np.arange(count))
        owned = placement.owner[:capacity]
        assert np.array_equal(np.flatnonzero(owned >= 0), np.sort(everyone))


def test_rows_that_are_used_stay_in_memory() -> None:
    count, hot = 4000, 1000
    placement = Placement()
    capacity = Placement.room(count, hot)
    placement.add(count, hot, capacity)
    rng, moved = np.random.default_rng(1), []
    for _ in range(60):
        # Half of the accesses are to 500 rows that lie behind at first.
        slots = np.unique(np.append(rng.integers(3000, 3500, 100), rng.integers(0, count, 100))).astype(
            np.int32
        )
        positions, cold = placement.find(slots, hot)
        found = placement.exchange(slots[cold], hot, capacity)[3]
        positions[cold[: len(found)]] = found
        placement.unpin(positions)
        moved.append(len(cold) / len(slots))
    assert (placement.at(np.arange(3000, 3500, dtype=np.int32)) < hot).mean() > 0.8
    assert np.mean(moved[-20:]) < 0.5 < moved[0] and capacity > SPARE
