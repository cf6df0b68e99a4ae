"""The history of a recorded run: logs of several servers and leaders are merged, and damaged ones are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.errors import InputError, RecordError
from mpips.replay.history import (
    CELLS,
    Cells,
    LeaderHistory,
    ShardHistory,
    last_decisions,
    load_events,
    merged,
    read_cells,
)
from mpips.replay.recorder import CELL, CELL_BYTES, CHANGE, HEAD, MAGIC, MARK, NOTIFY, VERSION, WORKERS


def copies(*logs: list[tuple[int, int, int, int]]) -> list[Cells]:
    """Make the records of servers: (kind, epoch, number, time) each."""
    made = []
    for log in logs:
        cells = np.zeros(len(log), CELLS)
        for cell, (kind, epoch, number, time) in zip(cells, log, strict=True):
            cell["kind"], cell["epoch"], cell["value"], cell["time"], cell["more"] = (
                kind,
                epoch,
                number,
                time,
                1,
            )
        made.append(cells)
    return made


def test_changes_that_only_a_lost_primary_had_are_discarded() -> None:
    lost = [(CHANGE, 0, 1, 10), (CHANGE, 0, 2, 20), (CHANGE, 0, 3, 66), (CHANGE, 0, 4, 67)]
    heir = [(CHANGE, 0, 1, 10), (CHANGE, 0, 2, 20), (MARK, 1, 2, 0), (CHANGE, 1, 3, 30)]
    _, callers, _ = merged("shard 0", copies(lost, heir))
    assert callers["time"].tolist() == [10, 20, 30]


def test_contradicting_logs_of_servers_are_refused() -> None:
    one, other = [(CHANGE, 0, 1, 10), (CHANGE, 0, 2, 20)], [(CHANGE, 0, 1, 10), (CHANGE, 0, 2, 21)]
    with pytest.raises(RecordError, match="do not agree on what change 2 was"):
        merged("shard 0", copies(one, other))
    with pytest.raises(RecordError, match="change 1 of 2 is missing"):
        merged("shard 0", copies(one[1:]))


@given(st.data())
def test_logs_of_any_sequence_of_primaries_are_merged(data: st.DataObject) -> None:
    """Each primary logs further changes, some of which its successor has when it takes over."""
    truth: list[int] = []
    logs: list[list[tuple[int, int, int, int]]] = []
    times = count(1)
    for epoch in range(data.draw(st.integers(1, 5))):
        log = [(CHANGE, 0 if not epoch else epoch - 1, at + 1, time) for at, time in enumerate(truth)]
        from_copy = data.draw(st.integers(0, len(log)))  # what came as a copy is noted by others
        log = [*log[from_copy:], (MARK, epoch, len(truth), 0)]
        more = [next(times) for _ in range(data.draw(st.integers(0, 5)))]
        log += [(CHANGE, epoch, len(truth) + 1 + at, time) for at, time in enumerate(more)]
        logs.append(log)
        truth += more[: data.draw(st.integers(0, len(more)))] if data.draw(st.booleans()) else more
    kept = len(truth)
    logs.append(
        [(CHANGE, len(logs), at + 1, time) for at, time in enumerate(truth)]
        + [(MARK, len(logs) + 1, kept, 0)]
    )
    _, callers, _ = merged("shard 0", copies(*data.draw(st.permutations(logs))))
    assert callers["time"].tolist() == truth


def test_decisions_of_the_last_leader_count() -> None:
    lines = [(0, 0, "a"), (1, 0, "b"), (1, 9, "c"), (2, 9, "d")]
    assert last_decisions({"number": n, "epoch": e, "value": v} for n, e, v in lines) == ["a", "c", "d"]
    with pytest.raises(RecordError, match="decision 1 of the program is missing"):
        last_decisions({"number": n, "epoch": 0, "value": 0} for n in (0, 2))


def test_a_sparse_record_is_refused_without_being_read_to_its_end(tmp_path: Path) -> None:
    path, cells = tmp_path / "record", 1 << 35
    path.write_bytes(CELL.pack(HEAD, 0, 0, 0, MAGIC, VERSION, cells))
    os.truncate(path, cells * CELL_BYTES)
    with pytest.raises(RecordError, match="record: truncated"):
        read_cells(path)
    with pytest.raises(RecordError, match="record: truncated"):
        load_events(path)


@pytest.mark.parametrize("load", [load_events, LeaderHistory.load, ShardHistory.load])
@pytest.mark.parametrize(
    "spoilt", [b"", b"{}", CELL.pack(NOTIFY, 0, 0, 0, 0, 0, -1), CELL.pack(WORKERS, 0, 0, 0, 0, 0, 9), None]
)
def test_a_damaged_history_is_refused(
    tmp_path: Path, load: Callable[[Path], object], spoilt: bytes | None
) -> None:
    path = tmp_path / "history"
    if spoilt is None:
        os.mkfifo(path)
    else:
        path.write_bytes(spoilt)
    if load is load_events and spoilt == b"":
        assert load(path) == []
        return
    with pytest.raises(InputError, match="history"):
        load(path)
