"""Rows on disk: the same rows as in memory, under a limit that is kept."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.errors import InputError, LayoutError
from mpips.storage.aggregate import Aggregator
from mpips.storage.disk.disk_file import PAGE, DiskFile
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.disk.spec import LEAST
from mpips.storage.disk.store import Store
from mpips.storage.initial import Uniform
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update

MEMORY = 8 << 20
ROWS = 60_000


@update("disk_test_mean", columns=lambda spec: {"pushes": Column("int64", fill=1)})
def mean(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
    """A program's update, with a state whose fill is not 0, and an answer."""
    state["pushes"][slots] += 1
    values[slots] += (rows - values[slots]) / state["pushes"][slots]
    return rows * 2


def in_memory(segment: Segment) -> int:
    """Return the bytes of a segment's mapped arrays that the system says are in memory."""
    system, total = ctypes.CDLL(None, use_errno=True), 0
    for column in segment._columns.values():
        if column._map is not None:
            found = np.zeros(-(-len(column._map) // PAGE), np.uint8)
            begin = np.frombuffer(column._map, np.uint8).ctypes.data
            size = ctypes.c_size_t(len(column._map))
            assert system.mincore(ctypes.c_void_p(begin), size, ctypes.c_void_p(found.ctypes.data)) == 0
            total += int((found & 1).sum()) * PAGE
    return total


@pytest.mark.parametrize("update", ["add", "adagrad", "adam", "disk_test_mean"])
def test_rows_on_disk_have_the_same_bits_and_no_more_than_the_limit_is_in_memory(
    tmp_path: Path, update: str
) -> None:
    spec = VectorSpec("w", "float32", width=64, update=update, init=Uniform(-1, 1, seed=3))
    store = Store(MEMORY, tmp_path)
    alone, twin = Segment(spec), Segment(spec, store=store)
    rng = np.random.default_rng(1)
    for step in range(25):
        keys = np.unique((ROWS * rng.random(1_500) ** 1.5).astype(np.uint64))
        rows = rng.normal(size=(len(keys), 64)).astype(np.float32)
        answers = [each.push(keys, rows.copy(), reply=step % 2 == 0) for each in (alone, twin)]
        assert step % 2 or np.array_equal(*answers)  # type: ignore[arg-type]
        asked = np.unique(rng.integers(0, ROWS, 500).astype(np.uint64))
        assert np.array_equal(alone.pull(asked), twin.pull(asked))
        assert store.used <= 1.05 * MEMORY
        index = store.used - store.resident
        # What one request has brought in more than once is counted once.
        assert in_memory(twin) + index <= 1.15 * MEMORY
    assert store.writes_made > 0 and store.reads_made > 0
    mine, its = alone.export_state(), twin.export_state()
    assert np.array_equal(mine.keys, its.keys) and mine.values.tobytes() == its.values.tobytes()
    assert all(mine.state[name].tobytes() == its.state[name].tobytes() for name in mine.state)
    store.settle()
    assert in_memory(twin) + store.used - store.resident <= 1.02 * MEMORY
    for each in (alone, twin):
        each.set_rows(mine.keys[::2], np.ones((len(mine.keys[::2]), 64), np.float32))
    kept = np.arange(len(alone)) % 3 == 0
    alone.keep(kept)
    twin.keep(kept)
    assert all(np.array_equal(*each) for each in zip(alone.export(), twin.export(), strict=True))


def test_a_dense_vector_is_on_disk_from_the_start(tmp_path: Path) -> None:
    spec = VectorSpec("w", width=8, extent=200_000, dense=True, init=Uniform(0, 1, seed=2))
    store = Store(MEMORY, tmp_path)
    alone, twin = Segment(spec), Segment(spec, store=store)
    assert store.on_disk >= 200_000 * 64 and store.used <= 1.05 * MEMORY
    for each in (alone, twin):
        each.push(each.ranges[0], np.ones((200_000, 8)))
    assert np.array_equal(alone.pull(alone.ranges[0]), twin.pull(twin.ranges[0]))
    assert store.used <= 1.05 * MEMORY and in_memory(twin) <= 1.1 * MEMORY


def test_new_rows_are_new_after_a_function_has_seen_all(tmp_path: Path) -> None:
    """Rows were behind those of the slots while they moved."""
    spec = VectorSpec("w", "float32", width=64, update="adagrad", init=Uniform(-1, 1, seed=3))
    alone, twin = Segment(spec), Segment(spec, store=Store(LEAST, tmp_path))
    rng = np.random.default_rng(1)
    for _ in range(6):
        keys = np.unique(rng.integers(0, 20_000, 2_500).astype(np.uint64))
        for each in (alone, twin):
            each.push(keys, np.ones((len(keys), 64), np.float32))
    assert np.array_equal(*(each.values[: len(alone)] for each in (alone, twin)))
    keys = np.arange(30_000, 34_000, dtype=np.uint64)
    for each in (alone, twin):
        each.push(keys, np.ones((len(keys), 64), np.float32))
    mine, its = alone.export_state(), twin.export_state()
    assert mine.values.tobytes() == its.values.tobytes() and np.array_equal(mine.state["n"], its.state["n"])


def test_rows_move_when_another_vector_takes_their_memory(tmp_path: Path) -> None:
    spec, store = VectorSpec("w", "float32", width=64, update="add"), Store(LEAST, tmp_path)
    alone, twin, other = Segment(spec), Segment(spec, store=store), Segment(spec, store=store)
    ones = np.ones((9_000, 64), np.float32)
    for part in np.array_split(np.arange(9_000, dtype=np.uint64), 6):
        for each in (alone, twin):
            each.push(part, ones[: len(part)])
    for begin in range(0, 48_000, 3_000):
        other.push(np.arange(begin, begin + 3_000, dtype=np.uint64), ones[:3_000])
    rng = np.random.default_rng(1)
    for _ in range(40):
        keys = np.unique(rng.integers(0, 9_000, 600).astype(np.uint64))
        for each in (alone, twin):
            each.push(keys, ones[: len(keys)])
    assert alone.export()[1].tobytes() == twin.export()[1].tobytes()


def test_keys_without_rows_are_not_read_one_by_one(tmp_path: Path) -> None:
    paging = Segment(VectorSpec("w", width=8), store=Store(LEAST, tmp_path))._paging
    assert paging is not None
    assert len(list(paging.parts(np.full(2_000, -1, np.int32)))) < 20


def test_small_vectors_open_no_files(tmp_path: Path) -> None:
    # Those of earlier tests.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    store = Store(MEMORY, tmp_path)
    segments = [Segment(VectorSpec("w", update="adam"), store=store) for _ in range(3)]
    segments[0].push(np.array([1], np.uint64), np.ones((1, 1)))
    assert len(os.listdir("/proc/self/fd")) == before


def test_rows_that_cannot_be_written_are_an_error_and_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    store = Store(MEMORY, tmp_path)
    segment = Segment(VectorSpec("w", width=64, extent=30_000, dense=True), store=store)
    for column in segment._columns.values():
        monkeypatch.setattr(column.on_disk, "_write", fails)
    with pytest.raises(StoreFailed, match=f"store.folder: {tmp_path}: rows cannot be written: Input/output"):
        segment.push(segment.ranges[0], np.ones((30_000, 64)))


def test_nothing_is_left_in_the_folder_and_the_space_is_given_back(tmp_path: Path) -> None:
    store = Store(MEMORY, tmp_path)
    segment = Segment(VectorSpec("w", width=64, extent=10_000, dense=True), store=store)
    assert store.on_disk > 0 and not os.listdir(tmp_path)
    del segment
    assert store.on_disk == 0 and store.resident == 0


def test_an_index_that_takes_all_memory_is_an_error_that_says_what_would_be_enough(tmp_path: Path) -> None:
    segment = Segment(VectorSpec("w"), store=Store(MEMORY, tmp_path))
    with pytest.raises(
        LayoutError, match=r"store.memory = 8,388,608: key indexes and the like take [0-9,]+ bytes"
    ):
        for begin in range(0, 10**7, 10**5):
            segment.resolve(np.arange(begin, begin + 10**5, dtype=np.uint64) * np.uint64(7919), create=True)


def test_a_full_disk_is_an_error_when_the_file_grows(tmp_path: Path) -> None:
    file = DiskFile(tmp_path)
    with pytest.raises(
        StoreFailed, match=rf"store.folder: {tmp_path} has no room for [0-9,]+ bytes of rows: "
    ):
        file.grow(1 << 50)


@pytest.mark.parametrize(("folder", "says"), [("/dev/shm", "is in memory"), ("/nowhere", "is not a folder")])
def test_folders_that_are_no_use_are_refused(folder: str, says: str) -> None:
    if folder == "/dev/shm" and not os.path.isdir(folder):
        pytest.skip("this system has none")
    with pytest.raises(InputError, match=f"store.folder: {folder} {says}"):
        Store(MEMORY, folder)


def test_the_figures_are_those_since_the_last_ones(tmp_path: Path) -> None:
    clock = iter(np.arange(0.0, 1000.0, 2.0).tolist())
    store = Store(LEAST, tmp_path, now=lambda: next(clock))
    segment = Segment(VectorSpec("w", "float32", width=64), store=store)
    for begin in range(0, 40_000, 2_000):
        segment.push(np.arange(begin, begin + 2_000, dtype=np.uint64), np.ones((2_000, 64), np.float32))
    first, account = store.figures(), store.account()
    assert first["writes_per_s"] == account["writes"] / first["seconds"] > 0 and first["limit"] == LEAST
    rows = segment.pull(np.arange(0, 4_000, dtype=np.uint64))
    assert np.array_equal(rows, np.ones((4_000, 64)))
    found, now = store.figures(), store.account()
    read = now["reads"] - account["reads"]
    assert found["reads_per_s"] == read / found["seconds"] and read > 300
    assert found["hit_rate"] == (now["hits"] - account["hits"]) / 4_000 == 1 - read / 4_000


@pytest.mark.parametrize("update", ["adagrad", "disk_test_mean"])
def test_rows_that_are_read_ahead_are_the_same_whatever_comes_between(tmp_path: Path, update: str) -> None:
    """Arrays grow, others take the memory, and rows are dropped while rows are being read."""
    spec = VectorSpec("w", "float32", width=64, update=update, init=Uniform(-1, 1, seed=3))
    store, rng = Store(LEAST, tmp_path), np.random.default_rng(1)
    pairs = [(Segment(spec), Segment(spec, store=store)) for _ in range(3)]
    for step in range(60):
        now, other = pairs[step % 3], pairs[int(rng.integers(3))]
        many = int(rng.integers(20, 600))
        ahead = np.unique((20_000 * rng.random(many) ** 1.5).astype(np.uint64))
        now[1].announce(ahead)
        keys = np.unique((20_000 * rng.random(many) ** 1.5).astype(np.uint64))
        rows = rng.normal(size=(len(keys), 64)).astype(np.float32)
        for each in other:
            each.push(keys, rows.copy())
        if step % 20 == 19:
            for each in other:
                each.keep(np.arange(len(each)) % 5 != 0)
        assert np.array_equal(now[0].pull(ahead), now[1].pull(ahead))
    for mine, its in pairs:
        assert all(np.array_equal(*each) for each in zip(mine.export(), its.export(), strict=True))


def test_rows_that_are_read_ahead_stay_until_they_are_used(tmp_path: Path) -> None:
    """Also where the present mini-batch needs room after the next one was announced."""
    spec, found = VectorSpec("w", "float32", width=64, update="adagrad"), dict[bool, Any]()
    for ahead in (False, True):
        store = Store(LEAST, tmp_path)
        segment, rng = Segment(spec, store=store), np.random.default_rng(1)
        batches = [np.unique((16_000 * rng.random(800) ** 2).astype(np.uint64)) for _ in range(60)]
        segment.push(np.arange(16_000, dtype=np.uint64), np.ones((16_000, 64), np.float32))
        before = store.account()
        for keys, following in pairwise(batches):
            if ahead:
                segment.announce(following)
            segment.push(keys, segment.pull(keys))
        found[ahead] = {name: number - before[name] for name, number in store.account().items()}
    assert found[True]["reads"] < 1.1 * found[False]["reads"]
    missed = [each["asked"] - each["hits"] for each in (found[True], found[False])]
    assert missed[0] < 0.4 * missed[1]


def test_rounds_and_functions_that_go_through_all_rows_leave_them_where_they_are(tmp_path: Path) -> None:
    """More slots than rows in memory: a worker's keys are beyond those in the round of both."""
    spec = VectorSpec("w", "float32", width=64, update="adagrad", aggregate=True)
    pair, rng = (Segment(spec), Segment(spec, store=Store(LEAST, tmp_path))), np.random.default_rng(1)
    keys = np.arange(16_000, dtype=np.uint64)
    for each in pair:
        each.push(keys, np.ones((len(keys), 64), np.float32))
    assert pair[1].capacity < len(keys)
    sums = [Aggregator(each, [1, 2]) for each in pair]
    moves = pair[1].moves
    for number in range(3):
        parts = [np.sort(rng.choice(keys, 300, replace=False)) for _ in sums]
        rows = rng.normal(size=(2, 300, 64)).astype(np.float32)
        for segment, aggregator in zip(pair, sums, strict=True):
            slots = [segment.resolve(each, create=True) for each in parts]
            assert aggregator.add(number, 2, slots[1], rows[1]) is None
            summed = aggregator.add(number, 1, slots[0], rows[0])
            assert summed is not None and len(aggregator.stamps) > len(keys)
            segment.push_slots(summed.slots, summed.rows)
    found = [[0.0, 0], [0.0, 0]]
    for segment, total in zip(pair, found, strict=True):
        for slots_of_part, rows_of_part in segment.everything():
            total[0] += float(rows_of_part["n"].sum(dtype=float))
            total[1] += len(rows_of_part[""])
            assert np.array_equal(segment.taken("", slots_of_part), rows_of_part[""])
    assert found[0][1] == found[1][1] == len(keys) and found[0][0] == pytest.approx(found[1][0])
    assert pair[1].moves == moves
    assert all(np.array_equal(*each) for each in zip(*(each.export() for each in pair), strict=True))
