"""Each part has one worker, loads differ by at most one, and the parts cover the data."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.data import DataSpec, read
from mpips.scheduler.data_assignment import Cut, Workload


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 10**6))
def test_parts_stay_balanced_when_workers_leave_and_join(parts: int, workers: int, seed: int) -> None:
    rng, newest = random.Random(seed), 100
    table, now = Workload(parts, range(workers)), list(range(workers))
    for _ in range(8):
        before = {part.number: part.worker for part in table.parts}
        gone = [worker for worker in now if rng.random() < 0.3]
        come = list(range(newest, newest := newest + rng.randrange(3)))
        now = [worker for worker in now if worker not in gone] + come
        if not now:
            with pytest.raises(ValueError, match="no worker is left"):
                table.follow(now)
            return
        places = table.follow(now)
        assert list(places) == come[: len(gone)] and set(places.values()) <= set(gone)
        loads = [len(table.of(worker)) for worker in now]
        assert sum(loads) == parts
        assert max(loads) - min(loads) <= 1
        for part in table.parts:
            was = before[part.number]
            if part.worker != was:
                assert was in gone or part.worker in come, "a part moved between two workers that stay"
            if was in places.values() and len(come) <= len(gone):
                assert places[part.worker] == was


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 10**6))
def test_whatever_happens_each_part_is_finished_once(parts: int, workers: int, seed: int) -> None:
    """Workers that do some steps of a part, are lost, hand over: no step is done twice, none is left out."""
    steps, rng, newest = 3, random.Random(seed), 100
    table, now = Workload(parts, range(workers)), list(range(workers))
    done = [0] * parts
    while not table.finished:
        for worker in now:
            for part in table.of(worker)[:1]:
                some = rng.randint(0, steps - part.done)
                done[part.number] += some
                table.note(part.number, some, part.done + some == steps)
        held = {part.number: part.worker for part in table.parts if part.begun}
        event = rng.choice(["nothing", "loss", "join", "hand over"])
        if event == "loss" and len(now) > 1:
            gone = now.pop(rng.randrange(len(now)))
            table.follow(now)
            assert not table.of(gone)
        elif event == "join":
            now.append(newest := newest + 1)
            table.follow(now)
            assert {number: table.parts[number].worker for number in held} == held, "a begun part moved"
        elif event == "hand over":
            idle = [worker for worker in now if not table.of(worker)]
            moved = table.hand_over()
            assert all(number not in held and table.parts[number].worker in idle for number in moved)
            assert len(moved) == len(idle) or not any(
                sum(not part.begun for part in table.of(worker)) for worker in now if worker not in idle
            )
    assert done == [steps] * parts


def test_a_lost_part_continues_where_it_was() -> None:
    table = Workload(4, [7, 5])
    table.note(1, 10, False)
    table.note(3, 2, True)
    assert table.follow([7]) == {}
    assert [(part.number, part.done) for part in table.of(7)] == [(0, 0), (1, 10), (2, 0)]
    assert not table.parts[1].begun and table.parts[3].finished
    assert table.follow([9, 8]) == {9: 7}
    assert [part.number for part in table.of(8)] == [2]


@pytest.mark.parametrize(("parts", "workers"), [(0, 1), (1, 0)])
def test_there_must_be_parts_and_workers(parts: int, workers: int) -> None:
    with pytest.raises(ValueError, match="some of both"):
        Workload(parts, range(workers))


# --- Cutting -----------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 23))
def test_parts_cover_the_files_however_many_there_are(coarse: int, fine: int, count: int) -> None:
    """Whatever parts are cut from: every example of every file is in one, and whole coarse parts are read at once."""
    files, cut, rows = [f"f{number}" for number in range(count)], Cut(coarse, fine), 30

    def examples(parts: list[int]) -> list[tuple[str, int]]:
        found = []
        for chosen, part, of in cut.slices(files, parts):
            assert of == 1 or len(chosen) < of, "`read` would take these for whole files"
            place = 0
            for file in chosen:
                found += [(file, row) for row in range(rows) if (place + row) % of == part]
                place += rows
        return found

    each = [examples([part]) for part in range(cut.parts)]
    everything = sorted((file, row) for file in files for row in range(rows))
    assert sorted(example for part in each for example in part) == everything
    for first in range(coarse):
        whole = sorted(range(first, cut.parts, coarse), key=cut.order)
        assert len(list(cut.slices(files, whole))) == 1
        for some in [whole, *(whole[begin::step] for step in range(2, fine) for begin in range(step))]:
            assert sorted(examples(some)) == sorted(example for part in some for example in each[part])


def test_every_other_part_is_read_at_once() -> None:
    assert list(Cut(3, 4).slices(["f"], [1, 7, 4, 10, 2])) == [(["f"], 1, 6), (["f"], 4, 6), (["f"], 2, 12)]
    files = [f"f{number}" for number in range(6)]
    assert len(list(Cut(3, 4).slices(files, [1, 7]))) == 2, (
        "two files cannot be cut by whole files and by examples"
    )


def test_parts_are_what_the_reader_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parts")
    for number in range(3):
        rows = (f"+1 {10 * number + row + 1}:1\n" for row in range(7))
        (folder / f"{number}.svm").write_text("".join(rows))
    files = [str(folder / f"{number}.svm") for number in range(3)]
    for cut in (Cut(2, 2), Cut(4, 2), Cut(3, 1), Cut(1, 4)):
        keys: list[int] = []
        for part in range(cut.parts):
            for chosen, number, of in cut.slices(files, [part]):
                for batch in read(chosen, DataSpec(train=chosen), number, of):
                    keys += batch.keys.tolist()
        assert sorted(keys) == sorted(10 * file + row for file in range(3) for row in range(1, 8))
