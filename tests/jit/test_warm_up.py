"""Kernels are compiled before the ranks start, once for each state of the source files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpips.jit import kernel_cache
from mpips.jit.warm_up import Mark


@pytest.fixture
def package(tmp_path: Path) -> Path:
    kernel_cache.place.cache_clear()
    (tmp_path / "package" / "jobs" / "__pycache__").mkdir(parents=True)
    (tmp_path / "package" / "jobs" / "job.py").write_text("x = 1")
    (tmp_path / "package" / "jobs" / "__pycache__" / "one.nbc").touch()
    (tmp_path / "package" / "mine.py").write_text("x = 1")
    (tmp_path / "own.py").write_text("x = 1")
    return tmp_path / "package"


def test_it_is_set_once_for_these_files(package: Path, tmp_path: Path) -> None:
    mark = Mark("own.py", tmp_path, ["zstd"], package)
    assert not mark.is_set
    mark.set()
    assert Mark("own.py", tmp_path, ["zstd"], package).is_set
    for other in (("own.py", []), ("another.py", ["zstd"]), ("sparse_lr", ["zstd"])):
        assert not Mark(other[0], tmp_path, other[1], package).is_set


@pytest.mark.parametrize("which", ["own.py", "package/jobs/job.py"])
def test_a_file_that_has_changed_is_compiled_again(package: Path, tmp_path: Path, which: str) -> None:
    Mark("own.py", tmp_path, [], package).set()
    os.utime(tmp_path / which, ns=(1, 1))
    assert not Mark("own.py", tmp_path, [], package).is_set


def test_a_cleared_cache_is_detected(package: Path, tmp_path: Path) -> None:
    mark = Mark("own.py", tmp_path, [], package)
    mark.set()
    (package / "jobs" / "__pycache__" / "one.nbc").unlink()
    assert not mark.is_set


def test_a_mark_is_for_the_folder_that_the_kernels_are_in(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mark("own.py", tmp_path, [], package).set()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "elsewhere"))
    kernel_cache.place.cache_clear()
    mark = Mark("own.py", tmp_path, [], package)
    assert not mark.is_set
    assert mark.path is not None and tmp_path / "elsewhere" in mark.path.parents
    kernel_cache.place.cache_clear()


def test_where_nothing_can_be_noted_nothing_is_compiled_beforehand(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = kernel_cache.Place(None, False, (), "")
    monkeypatch.setattr("mpips.jit.warm_up.choose", lambda sources: nowhere)
    mark = Mark("own.py", tmp_path, [], package)
    mark.set()
    assert mark.path is None and not mark.is_set
