"""Aggregation: the sums of rounds do not depend on the order of arrival, and invalid parts are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import ProtocolError
from mpips.ranges import KeyRange
from mpips.storage.aggregate import Aggregator, Summed
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update


@update("any_width", push_row=lambda spec: Column("float64", 0))
def any_width(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add the sum of each row."""
    values[slots, 0] += rows.sum(axis=1)


def u64(numbers: Any) -> Any:
    return np.array(numbers, np.uint64)


def applied(segment: Segment, summed: Summed | None, reply: bool = False) -> dict[int, Any]:
    """Apply a round that is complete; return what each worker is answered (None without `reply`)."""
    assert summed is not None
    answer = segment.push_slots(summed.slots, summed.rows, reply)
    assert (answer is not None) == reply
    return {worker: None if answer is None else answer[places] for worker, places in summed.places.items()}


def parts_of_round(seed: int, workers: int, width: int) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(workers):
        size = int(rng.integers(0, 30))
        chosen = np.sort(rng.choice(40, size, replace=False)).astype(np.uint64) << np.uint64(50)
        parts.append((chosen, rng.normal(size=(size, width)) * 10.0 ** rng.integers(-8, 9, (size, width))))
    return parts


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 2), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rounds_give_the_same_bits_for_any_arrival_order(
    seed: int, workers: int, width: int, random: Any
) -> None:
    rounds = [parts_of_round(seed + r, workers, width) for r in range(3)]
    expected: dict[int, Any] = {}
    for parts in rounds:
        sums: dict[int, Any] = {}
        for chosen, rows in parts:  # worker order, one addition after the other
            for k, row in zip(chosen.tolist(), rows, strict=True):
                sums[k] = sums[k] + row if k in sums else row
        for k, row in sums.items():
            expected[k] = expected.get(k, np.zeros(width)) + row
    segment = Segment(VectorSpec("w", width=width, aggregate=True))
    aggregator = Aggregator(segment, range(workers))
    for r, parts in enumerate(rounds):
        order = list(range(workers))
        random.shuffle(order)
        for i, worker in enumerate(order):
            chosen, rows = parts[worker]
            done = aggregator.add(r, worker, segment.resolve(chosen, create=True), rows)
            assert (done is not None) == (i == workers - 1)
        replies = applied(segment, done, reply=True)
        for worker, (chosen, _) in enumerate(parts):
            reply = replies[worker]
            assert reply.tobytes() == segment.pull(chosen).tobytes()
    found, values = segment.items()
    assert found.tolist() == sorted(expected)
    assert values.tobytes() == np.array([expected[k] for k in sorted(expected)]).reshape(-1, width).tobytes()


def test_overlapping_rounds_are_applied_each_when_complete() -> None:
    segment = Segment(VectorSpec("w", update="assign", aggregate=True))
    aggregator = Aggregator(segment, [4, 9])
    slots = segment.resolve(u64([1]), create=True)
    one = np.ones((1, 1))
    assert aggregator.add(0, 4, slots, one) is None
    assert aggregator.add(1, 9, slots, 2 * one) is None
    assert aggregator.pending() == {0: [4], 1: [9]}
    done = aggregator.add(1, 4, slots, 3 * one)
    assert segment.pull(u64([1])).tolist() == [[0]], "a sum is applied by whoever gets it"
    assert applied(segment, done) == {4: None, 9: None}
    assert segment.pull(u64([1])).tolist() == [[5]]
    assert applied(segment, aggregator.add(0, 9, slots, one), reply=True)[4].tolist() == [[2]]
    assert segment.pull(u64([1])).tolist() == [[2]]
    assert aggregator.pending() == {}


def test_unknown_and_repeated_parts_are_refused() -> None:
    segment = Segment(VectorSpec("w", aggregate=True))
    aggregator = Aggregator(segment, [0, 1])
    nothing = (segment.resolve(u64([]), create=True), np.empty((0, 1)))
    with pytest.raises(ProtocolError, match=r"worker 5 is not one of \(0, 1\)"):
        aggregator.add(0, 5, *nothing)
    assert aggregator.pending() == {}
    aggregator.add(0, 0, *nothing)
    with pytest.raises(ProtocolError, match="worker 0 has pushed twice"):
        aggregator.add(0, 0, *nothing)
    assert aggregator.add(0, 1, *nothing) is not None
    aggregator.add((1, 2**63), 0, *nothing)
    aggregator.drop((1, 2**63))
    aggregator.drop((1, 2**63))
    assert aggregator.pending() == {}


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_dense_range_rounds_equal_key_by_key_rounds(workers: int) -> None:
    rng = np.random.default_rng(5)
    rows = [rng.normal(size=(20, 1)) * 10.0 ** rng.integers(-9, 9, (20, 1)) for _ in range(workers)]
    spec = VectorSpec("w", extent=50, dense=True, aggregate=True)
    results = []
    for form in (KeyRange(10, 30), u64(range(10, 30)), None):
        segment = Segment(spec)
        aggregator = Aggregator(segment, range(workers))
        for worker in range(workers):
            keys_of_part = form
            if form is None:  # a mixture of both
                keys_of_part = KeyRange(10, 30) if worker == 0 else u64(range(10, 30))
            slots = segment.resolve(keys_of_part, create=True)
            done = aggregator.add(0, worker, slots, rows[worker].copy())
        replies = applied(segment, done, reply=True)
        results.append(
            (segment.pull(KeyRange(0, 50)).tobytes(), [replies[w].tobytes() for w in range(workers)])
        )
    assert results[0] == results[1] == results[2]
    assert len(results[0][1]) == workers


@pytest.mark.parametrize("others", [[1, 2, 3], [1, 2, 4]])
def test_rows_of_different_widths_are_refused(others: list[int]) -> None:
    segment = Segment(VectorSpec("w", update="any_width", aggregate=True))
    aggregator = Aggregator(segment, [0, 1])
    one, other = (segment.resolve(u64(each), create=True) for each in ([1, 2, 3], others))
    aggregator.add(0, 0, one, np.ones((3, 2)))
    # NumPy would add the one column to both.
    with pytest.raises(ProtocolError, match=r"rows of widths \[1, 2\] in one round"):
        aggregator.add(0, 1, other, np.ones(3))
