"""Data files that are replaced while a run reads them, and that differ between hosts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.data import DataSpec, SameFiles, check_sizes, resolve, same_files
from mpips.errors import DataError


def replace(path: Path, text: str) -> None:
    """Replace a file by rename, by one that has the same time."""
    before = path.stat()
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.rename(path)


@pytest.fixture
def spec(tmp_path: Path) -> DataSpec:
    for name in ("a.svm", "b.svm", "test.svm"):
        (tmp_path / name).write_text("+1 3:1\n")
    return resolve(DataSpec(train=["a.svm", "b.svm"], test="test.svm"), str(tmp_path))


def overwrite(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [replace, overwrite])
@pytest.mark.parametrize("name", ["b.svm", "test.svm"])
def test_another_file_of_the_same_name_is_refused(
    spec: DataSpec, tmp_path: Path, name: str, change: Callable[[Path, str], None]
) -> None:
    files = SameFiles(spec)
    assert files.check_all().tolist()[1:] == [7, 7, 7]
    change(tmp_path / name, "-1 3:1\n")
    files.check(str(tmp_path / "a.svm"))
    for check in (lambda: files.check(str(tmp_path / name)), files.check_all):
        with pytest.raises(DataError) as found:
            check()
        assert str(found.value) == (
            f"{tmp_path / name}: was replaced or changed since this run began; give a run files that stay as they are"
        )


def test_a_missing_file_is_left_to_its_reader(spec: DataSpec, tmp_path: Path) -> None:
    (tmp_path / "b.svm").unlink()
    files = SameFiles(spec)
    (tmp_path / "a.svm").unlink()
    assert files.check_all().tolist()[1:] == [7, -1, 7]


@pytest.mark.parametrize(
    ("kind", "seen"), [("fuse.sshfs", False), ("fuseblk", False), ("vboxsf", False), ("ext4", True)]
)
def test_the_inode_does_not_count_where_files_are_numbered_anew(
    spec: DataSpec, tmp_path: Path, kind: str, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = (tmp_path / "a.svm").stat().st_dev
    mounts = tmp_path / "mounts"
    mounts.write_text(f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw shared:1 - {kind} host: rw\n")
    monkeypatch.setattr(same_files, "MOUNTS", mounts)
    files = SameFiles(spec)
    replace(tmp_path / "a.svm", "-1 3:1\n")
    if seen:
        with pytest.raises(DataError, match="was replaced"):
            files.check_all()
    else:
        files.check_all()


def test_files_have_the_same_sizes_on_all_hosts(spec: DataSpec, tmp_path: Path) -> None:
    how: dict[str, Any] = {"spec": spec, "base": str(tmp_path)}
    check_sizes(**how, sizes=[np.array([5, 7, 8, 9])] * 3)
    check_sizes(**how, sizes=[np.array([5])] * 2)
    with pytest.raises(
        DataError, match=r"b\.svm: 1,000 bytes where worker 0 runs, and 8 bytes where worker 2 runs"
    ):
        check_sizes(**how, sizes=[np.array([5, 7, 1000, 9])] * 2 + [np.array([5, 7, 8, 9])])
    with pytest.raises(
        DataError, match=r"b\.svm: 7 bytes where worker 0 runs, and no readable file where worker 1"
    ):
        check_sizes(**how, sizes=[np.array([5, 6, 7, 9]), np.array([5, 6, -1, 9])])
    # The scheduler's host may find fewer.
    with pytest.raises(DataError, match=r"^\[data\] file 4: 1 bytes where worker 0 runs"):
        check_sizes(**how, sizes=[np.array([5, 1, 1, 1, 1]), np.array([5, 1, 1, 1, 2])])


def test_all_hosts_find_the_same_files(spec: DataSpec, tmp_path: Path) -> None:
    """A file that appears between the looks of two workers at a folder would shift the parts of one of them."""
    pattern = DataSpec(train="*.svm")
    (tmp_path / "c.svm").write_text("+1 3:1\n")
    found = [SameFiles(resolve(pattern, str(tmp_path))).check_all()]
    (tmp_path / "c.svm").rename(tmp_path / "0.svm")
    found.append(SameFiles(resolve(pattern, str(tmp_path))).check_all())
    check_sizes(pattern, str(tmp_path), found[1:] * 2)
    with pytest.raises(
        DataError, match=r"^\[data\] worker 1 finds other files than worker 0 \(4 and 4\); all hosts need"
    ):
        check_sizes(pattern, str(tmp_path), found)
    with pytest.raises(DataError, match=r"worker 2 finds other files than worker 0 \(2 and 4\)"):
        check_sizes(pattern, str(tmp_path), [found[0], found[0], found[1][:3]])
