"""Evictions: which rows remain, compared with plain NumPy, on one and on several servers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips import Cluster, Column, RemoteError, VectorSpec, update
from mpips.storage.eviction import standings
from mpips.storage.segment import Segment
from mpips.transport.network_faults import Fault


@update("evicted_counted", columns=lambda spec: {"pushes": Column("int64"), "sum": Column("float64", 2)})
def counted(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    state["pushes"][slots] += 1
    state["sum"][slots] += rows
    values[slots] += rows


SPEC = VectorSpec("w", width=2, update="evicted_counted", init=0.5)


def test_kept_rows_and_notes_keep_their_keys() -> None:
    rng = np.random.default_rng(1)
    segment = Segment(SPEC)
    keys = rng.choice(10**9, 3000, replace=False).astype(np.uint64)
    for part in np.array_split(keys, 3):
        segment.push(np.sort(part), np.column_stack([np.sort(part)] * 2).astype(float))
    slots = rng.choice(3000, 500, replace=False).astype(np.int32)
    segment.notes["n"] = slots, segment.keys_of(slots)[:, None].astype(np.float64)
    kept = rng.random(3000) < 0.4
    stay = segment.keys_of(slice(0, 3000))[kept]
    noted = segment.keys_of(slots)[kept[slots]]
    segment.keep(kept)
    assert len(segment) == kept.sum()
    found, values = segment.items()
    assert np.array_equal(found, np.sort(stay))
    assert np.array_equal(values, np.column_stack([found] * 2) + 0.5)
    of, rows = segment.notes["n"]
    assert np.array_equal(segment.keys_of(of), noted) and np.array_equal(rows[:, 0], noted)
    gone = np.setdiff1d(keys, stay)
    assert (segment.pull(gone) == 0.5).all() and (
        segment.state["sum"][segment.resolve(found)] == values - 0.5
    ).all()
    segment.push(gone, np.ones((len(gone), 2)))
    assert len(segment) == 3000 and (segment.pull(gone) == 1.5).all()


KEYS = np.sort(np.random.default_rng(2).integers(0, 2**64, 400, np.uint64))
OFTEN = [KEYS, KEYS[::2], KEYS[::2], KEYS[::5], KEYS[100:110]]


def schedule(cluster: Cluster) -> Any:
    w = cluster.create_vector(SPEC)
    other = cluster.create_vector(VectorSpec("other", update="add"))
    lists = [w.key_list(keys) for keys in OFTEN]
    dropped = []
    for _ in range(2):
        for keys, listed in zip(OFTEN, lists, strict=True):
            w.push(listed, np.ones((len(keys), 2))).result()
        other.push(KEYS[:300], np.ones(300)).result()
        dropped.append(cluster.evict(w, 150, usage="pushes", also=[other]))
    assert cluster.evict(w, 150, usage="pushes") == 0
    return dropped, w.pull(KEYS).result(), other.pull(KEYS).result(), cluster.digest(w), cluster.digest(other)


def expected() -> tuple[list[int], np.ndarray, np.ndarray]:
    """The same in plain NumPy; the hash that decides among equals is that of a segment."""
    segment = Segment(SPEC)
    segment.push(KEYS, np.ones((len(KEYS), 2)))
    hashes = standings(segment, "pushes").astype(np.uint64) & np.uint64(0xFFFFFFFF)
    usage, values, others, dropped = np.zeros(400, np.int64), np.full(400, 0.5), np.zeros(400), []
    for _ in range(2):
        for keys in OFTEN:
            at = np.searchsorted(KEYS, keys)
            usage[at] += 1
            values[at] += 1.0
        others[:300] += 1.0
        rows = np.flatnonzero(values != 0.5)
        order = np.lexsort((hashes[rows], usage[rows]))
        gone = rows[order][: len(rows) - 135]
        dropped.append(len(gone))
        usage[gone], values[gone] = 0, 0.5
        others[values == 0.5] = 0.0
        usage //= 2
    return dropped, values, others


def test_the_same_rows_go_on_any_layout_and_when_a_server_is_killed() -> None:
    dropped, values, others = expected()
    lost = [Fault("kill", 2, after_messages=at) for at in (40, 80, 120, 160)]
    cases: list[dict[str, Any]] = [
        {"servers": 1},
        {"servers": 3},
        *({"servers": 3, "faults": [each]} for each in lost),
    ]
    for how in cases:
        found = simulate(schedule, lambda context: None, replicas=1, **how)
        assert found[0] == dropped == [265, 265]
        assert np.array_equal(found[1], np.column_stack([values] * 2)) and np.array_equal(found[2], others)


def test_what_cannot_be_evicted() -> None:
    def attempt(cluster: Cluster) -> None:
        w = cluster.create_vector(VectorSpec("w", update="adagrad"))
        cluster.evict(w, 10, usage="pushes")

    with pytest.raises(
        RemoteError, match=r"vector 'w': .* cannot be evicted by 'pushes'; its state columns are: n"
    ):
        simulate(attempt, lambda context: None)
