"""Parsed parts in files: found again as they were, or not at all."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpips.data import DataSpec, KeptColumns, Tally, load_columns, read
from mpips.data.matrix import Columns

TEXT = "+1 3:1.5 9:2\n-1 4:1\nbad\n+1 3:2 18446744073709551614:0.25\n"


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    path = tmp_path / "train.svm"
    path.write_text(TEXT)
    return DataSpec(train=[str(path)], on_error="skip")


def parsed(spec: DataSpec) -> tuple[Columns, Tally]:
    tally = Tally()
    return load_columns(read(list(spec.train), spec, tally=tally)), tally


def kept(spec: DataSpec, folder: Path) -> tuple[KeptColumns, str]:
    """Keep all of the data; return the name under which it is kept."""
    if not folder.exists():
        folder.mkdir()
    store = KeptColumns(folder, spec)
    name = store.name([(list(spec.train), 0, 1)])
    store.keep(name, *parsed(spec))
    store.settle()
    return store, name


def test_what_was_kept_is_found_by_another_worker(spec: DataSpec, tmp_path: Path) -> None:
    _, name = kept(spec, tmp_path / "shared")
    other = KeptColumns(tmp_path / "shared", spec)
    assert other.name([(list(spec.train), 0, 1)]) == name
    found = other.find(name)
    assert found is not None
    (columns, tally), (want, counts) = found, parsed(spec)
    assert tally == counts and tally.skipped == 1
    for each in ("keys", "colptr", "rows", "values", "labels"):
        mine, theirs = getattr(columns, each), getattr(want, each)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs) and mine.flags.writeable
    assert [each.name for each in (tmp_path / "shared").iterdir()] == [name]


def test_other_data_have_other_names(spec: DataSpec, tmp_path: Path) -> None:
    store, files = KeptColumns(tmp_path, spec), list(spec.train)
    name = store.name([(files, 0, 1)])
    assert store.name([(files, 0, 2)]) != name
    assert KeptColumns(tmp_path, replace(spec, on_error="stop")).name([(files, 0, 1)]) != name
    os.utime(files[0], ns=(1, 1))
    assert store.name([(files, 0, 1)]) != name
    os.unlink(files[0])
    assert store.name([(files, 0, 1)]) == "" and store.find("") is None


def test_nothing_is_kept_without_a_folder_or_beyond_the_limit(spec: DataSpec, tmp_path: Path) -> None:
    store, name = kept(replace(spec, keep_parsed=0.0), tmp_path / "shared")
    assert store.find(name) is None and not os.listdir(tmp_path / "shared")
    assert KeptColumns(None, spec).name([(list(spec.train), 0, 1)]) == ""


def test_a_worker_that_still_writes_when_the_run_is_over_does_not_make_the_folder_again(
    spec: DataSpec, tmp_path: Path
) -> None:
    store, name = kept(spec, tmp_path / "shared")
    (tmp_path / "shared" / name).unlink()
    (tmp_path / "shared").rmdir()
    store.keep(name, *parsed(spec))
    store.settle()
    assert not (tmp_path / "shared").exists()


def test_a_folder_that_cannot_be_written_changes_nothing(spec: DataSpec, tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file")
    store, name = kept(spec, tmp_path / "shared")
    assert store.find(name) is None


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("rows", np.array([0, 2, 1, 0, 3], np.int32)),
        ("rows", np.array([0, 2, -1, 0, 2], np.int32)),
        ("rows", np.array([0, 2, 1, 0], np.int32)),
        ("rows", np.array([0, 2, 1, 0, 2], np.int64)),
        ("colptr", np.array([0, 3, 2, 4, 5], np.int64)),
        ("colptr", np.array([0, 2, 3, 5], np.int64)),
        # All differences, as int64, are at least 0.
        ("colptr", np.array([0, 2**63 - 1, -(2**63), -1, 5], np.int64)),
        ("keys", np.array([3, 9, 4, 10], np.uint64)),
        ("values", np.ones(4, np.float32)),
        ("values", np.ones((5, 1), np.float32)),
        ("labels", np.array([1, -1, 2], np.float32)),
        ("tally", np.array('{"examples": -1}')),
        ("tally", np.array("[")),
        ("more", np.zeros(1)),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_not_found(
    name: str, array: np.ndarray, spec: DataSpec, tmp_path: Path
) -> None:
    store, of = kept(spec, tmp_path / "shared")
    path = tmp_path / "shared" / of
    with np.load(path) as archive:
        arrays = dict(archive)
    assert store.find(of) is not None
    with path.open("wb") as file:
        np.savez(file, **{**arrays, name: array})
    assert store.find(of) is None


def test_a_damaged_file_is_not_found(spec: DataSpec, tmp_path: Path) -> None:
    store, name = kept(spec, tmp_path / "shared")
    path = tmp_path / "shared" / name
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = store.find(name)
        assert found is None or np.array_equal(found[0].rows, parsed(spec)[0].rows)
        path.write_bytes(whole[:at])
        assert store.find(name) is None
