"""Rows of mini-batches: fetched ahead, pushed once each, seen as the consistency model says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips import Bounded, Context, RemoteError, UsageError, VectorSpec, bounded, eventual
from mpips.embedding import Embedding, field_keys
from mpips.scheduler.scheduler import Cluster

SPEC = VectorSpec("w", width=2, update="sgd", settings={"rate": 0.5}, init=1.0)
BATCHES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=8)


def gradient(rows: Any, number: int) -> Any:
    """Return a gradient that depends on the rows: a push that is not seen changes all later ones."""
    return 0.5 * rows + number


def plain(batches: list[list[int]]) -> Any:
    """Learn in NumPy; return the rows of ids 0 to 5."""
    rows = np.ones((6, 2))
    for number, ids in enumerate(batches):
        change = np.zeros_like(rows)
        np.add.at(change, ids, gradient(rows[ids], number))
        rows -= 0.5 * change
    return rows


def on_one_worker(work: Callable[[Embedding], Any], spec: VectorSpec = SPEC, **options: Any) -> Any:
    """Run `work` with an embedding in a worker of a simulated cluster; return what it returns."""
    found = []

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self) -> None:
            found.append(work(Embedding(self.context.vectors["w"], **options)))

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(spec)
        cluster.workers.call("train")

    simulate(schedule, Worker, servers=2)
    return found[0]


@given(BATCHES, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_what_is_fetched_ahead_has_the_same_rows(batches: list[list[int]], ahead: int) -> None:
    def work(table: Embedding) -> Any:
        waiting = []
        for number, ids in enumerate([*batches, *[None] * ahead]):
            if ids is not None:
                waiting.append(table.fetch(ids))
            if number >= ahead:
                fetched = waiting.pop(0)
                fetched.push_of_ids(gradient(fetched.rows_of_ids, number - ahead))
        table.settle()
        return table.read(range(6)).rows

    np.testing.assert_allclose(on_one_worker(work), plain(batches), rtol=1e-12)


def test_with_a_delay_rows_are_pulled_before_the_gradients_of_the_last_mini_batches_are_known() -> None:
    def work(table: Embedding) -> list[list[float]]:
        first, second = table.fetch([3]), table.fetch([3])
        seen = [first.rows[0].tolist(), second.rows[0].tolist()]
        first.push(np.ones((1, 2)))
        third = table.fetch([3])
        second.push(np.ones((1, 2)))
        seen.append(third.rows[0].tolist())
        third.drop()
        return seen

    *early, third = on_one_worker(work, consistency=bounded(1))
    assert early == [[1.0, 1.0], [1.0, 1.0]]
    # The push before the last one is in it, and the last one may be.
    assert third in ([0.5, 0.5], [0.0, 0.0])


def test_a_mini_batch_that_is_never_pushed_is_named() -> None:
    def work(table: Embedding) -> None:
        table.fetch([3])
        table.fetch([4]).rows  # noqa: B018

    with pytest.raises(
        (UsageError, RemoteError), match="the rows of mini-batch 1 wait: mini-batch 0 was fetched"
    ):
        on_one_worker(work)
    with pytest.raises(
        (UsageError, RemoteError), match="mini-batch 0 was fetched, and its gradients are not"
    ):
        on_one_worker(lambda table: (table.fetch([3]), table.settle()))


def test_a_dropped_mini_batch_is_not_waited_for() -> None:
    def work(table: Embedding) -> Any:
        table.fetch([3]).drop()
        return table.fetch([3]).rows.tolist()

    assert on_one_worker(work) == [[1.0, 1.0]]


def test_gradients_are_pushed_once_and_never_for_rows_that_were_read() -> None:
    def twice(table: Embedding) -> None:
        batch = table.fetch([3])
        batch.push(np.ones((1, 2)))
        batch.push(np.ones((1, 2)))

    with pytest.raises((UsageError, RemoteError), match="mini-batch 0 are pushed already"):
        on_one_worker(twice)
    with pytest.raises((UsageError, RemoteError), match="were read, not fetched"):
        on_one_worker(lambda table: table.read([3]).push(np.ones((1, 2))))
    with pytest.raises((UsageError, RemoteError), match="1 rows for 2 ids"):
        on_one_worker(lambda table: table.fetch([3, 3]).push_of_ids(np.ones((1, 2))))


def test_a_delay_that_grows_lets_a_fetch_go_that_waited() -> None:
    def work(table: Embedding) -> Any:
        model = table.consistency = bounded(0)
        first, second = table.fetch([3]), table.fetch([3])
        model.tau = 1
        seen = second.rows.tolist()
        first.drop()
        second.drop()
        return seen

    assert on_one_worker(work) == [[1.0, 1.0]]


def test_a_loop_that_is_left_early_leaves_nothing_behind() -> None:
    def work(table: Embedding) -> Any:
        for ids, fetched in table.ahead([[1], [2], [3], [4]], lambda ids: ids, depth=2):
            fetched.push(np.ones((1, 2)))
            if ids == [2]:
                break
        table.settle()
        return table.read(range(1, 5)).rows[:, 0].tolist()

    assert on_one_worker(work) == [0.5, 0.5, 1.0, 1.0]


def test_masked_gradients_are_refused() -> None:
    masked = np.ma.masked_array(np.ones((1, 2)), [[True, False]])
    for push in (lambda batch: batch.push(masked), lambda batch: batch.push_of_ids(masked)):
        with pytest.raises((UsageError, RemoteError), match="are a masked array"):
            on_one_worker(lambda table, push=push: push(table.fetch([3])))


@pytest.mark.parametrize("model", [bounded(0), bounded(2), eventual])
def test_workers_of_an_aggregating_vector_push_in_rounds(model: Any) -> None:
    spec = VectorSpec("w", width=2, update="sgd", settings={"rate": 0.5}, aggregate=True)
    # With a delay of 0 all rounds before are in the rows, so gradients may depend on them.
    exact = isinstance(model, Bounded) and model.tau == 0

    class Worker:
        def __init__(self, context: Context) -> None:
            self.context = context

        def train(self) -> None:
            table = Embedding(self.context.vectors["w"], model)
            for number in range(4):
                batch = table.fetch([3, 4 + self.context.index])
                batch.push(gradient(batch.rows, number) if exact else np.ones_like(batch.rows))
            table.settle()

    def schedule(cluster: Cluster) -> Any:
        w = cluster.create_vector(spec)
        cluster.workers.call("train")
        return w.pull(np.arange(3, 6, dtype=np.uint64)).result()[:, 0].tolist()

    found = simulate(schedule, Worker, servers=2, workers=2)
    # Worker 0 has ids 3 and 4, worker 1 has 3 and 5: each of four rounds steps by -0.5 for each push.
    expected = [-4.0, -2.0, -2.0]
    if exact:
        both, own = np.zeros(2), np.zeros(2)
        for number in range(4):
            both, own = both - 0.5 * 2 * gradient(both, number), own - 0.5 * gradient(own, number)
        expected = [both[0], own[0], own[0]]
    assert found == expected


def test_keys_of_fields_are_of_the_field_and_the_id() -> None:
    ids = np.array([[1, 1], [2, 1], [1, 2**63]], np.uint64)
    keys = field_keys(ids)
    assert keys[0, 0] == keys[2, 0] != keys[0, 1]
    assert len(np.unique(keys)) == 4
    # The definition, in Python's integers.
    mask = 2**64 - 1

    def mix(state: int) -> int:
        z = (state + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert keys.tolist() == [[mix(mix(field) ^ int(each)) for field, each in enumerate(row)] for row in ids]


@pytest.mark.parametrize("ids", [[[-1]], [1, 2], [[0.5]]])
def test_ids_of_fields_are_checked(ids: Any) -> None:
    with pytest.raises(UsageError, match="id"):
        field_keys(ids)
