"""Every part always has exactly one worker, and loads stay within one of each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.workload import Workload


@given(st.integers(1, 40), st.integers(1, 8), st.data())
def test_parts_stay_spread_whoever_is_lost(parts: int, workers: int, data: st.DataObject) -> None:
    table = Workload(parts, range(workers))
    left = list(range(workers))
    while True:
        given_out = sorted(part for worker in left for part in table.of(worker))
        assert given_out == list(range(parts))
        loads = [len(table.of(worker)) for worker in left]
        assert max(loads) - min(loads) <= 1
        if len(left) == 1:
            break
        gone = data.draw(st.sampled_from(left))
        before = {part: part_row.worker for part, part_row in enumerate(table.parts)}
        left.remove(gone)
        moved = table.lost(gone)
        assert set(moved) == {part for part, worker in before.items() if worker == gone}
        for part, worker in before.items():
            assert table.parts[part].worker == moved.get(part, worker)
    with pytest.raises(ValueError, match="the last one"):
        table.lost(left[0])


def test_a_lost_part_is_to_be_read_again() -> None:
    table = Workload(4, [0, 1])
    table.read(1, 100)
    table.read(2, 50)
    assert table.lost(1) == {1: 0, 3: 0}
    assert [part.examples for part in table.parts] == [None, None, 50, None]


@pytest.mark.parametrize(("parts", "workers"), [(0, 1), (1, 0)])
def test_there_must_be_parts_and_workers(parts: int, workers: int) -> None:
    with pytest.raises(ValueError, match="some of both"):
        Workload(parts, range(workers))
