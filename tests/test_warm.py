"""Kernels are compiled before the ranks start, once for each state of the files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpips.warm import is_warm, mark_of, set_warm


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "package" / "jobs" / "__pycache__").mkdir(parents=True)
    (tmp_path / "package" / "jobs" / "job.py").write_text("x = 1")
    (tmp_path / "package" / "jobs" / "__pycache__" / "one.nbc").touch()
    (tmp_path / "own.py").write_text("x = 1")
    return tmp_path / "package"


def test_it_is_warm_once_for_these_files(package: Path, tmp_path: Path) -> None:
    mark = mark_of("own.py", tmp_path, ["zstd"], package)
    assert not is_warm(mark, package)
    set_warm(mark, package)
    assert is_warm(mark_of("own.py", tmp_path, ["zstd"], package), package)
    for other in (("own.py", []), ("another.py", ["zstd"]), ("sparse_lr", ["zstd"])):
        assert not is_warm(mark_of(other[0], tmp_path, other[1], package), package)


@pytest.mark.parametrize("which", ["own.py", "package/jobs/job.py"])
def test_a_file_that_has_changed_is_compiled_again(package: Path, tmp_path: Path, which: str) -> None:
    set_warm(mark_of("own.py", tmp_path, [], package), package)
    os.utime(tmp_path / which, ns=(1, 1))
    assert not is_warm(mark_of("own.py", tmp_path, [], package), package)


def test_a_cache_that_was_cleared_is_seen(package: Path, tmp_path: Path) -> None:
    mark = mark_of("own.py", tmp_path, [], package)
    set_warm(mark, package)
    (package / "jobs" / "__pycache__" / "one.nbc").unlink()
    assert not is_warm(mark, package)


def test_where_nothing_can_be_noted_nothing_is_warm(package: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()  # a file where the folder would be
    mark = mark_of("own.py", tmp_path, [], package)
    set_warm(mark, package)
    assert not is_warm(mark, package)
