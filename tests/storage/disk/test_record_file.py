"""Records on disk: what was written is read, however often units are freed, and full or failing disks are told."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.storage.disk import direct_file
from mpips.storage.disk.direct_file import DirectFile, Reads
from mpips.storage.disk.disk_file import PAGE
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.disk.record_file import RecordFile

I32 = np.ndarray[Any, np.dtype[np.int32]]


class Kept:
    """A file, and what is in it by owner."""

    def __init__(self, folder: Path, size: int, reads: Reads | None = None, unit: int = 4 * PAGE) -> None:
        self.file = RecordFile(DirectFile(folder), reads or Reads(8 * PAGE), size, unit)
        self.size, self.records = size, dict[int, int]()
        self.content = dict[int, int]()
        self.file.moved = self._moved

    def _moved(self, owners: I32, records: I32) -> None:
        self.records |= zip(owners.tolist(), records.tolist(), strict=True)

    def append(self, owners: I32, content: I32) -> None:
        def fill(part: slice, raw: Any, at: Any) -> None:
            for begin, each in zip(at.tolist(), content[part].tolist(), strict=True):
                raw[begin : begin + self.size] = (each + np.arange(self.size)) % 251

        self.file.reserve(len(owners))
        self._moved(owners, self.file.append(owners, fill))
        self.content |= zip(owners.tolist(), content.tolist(), strict=True)

    def check(self, owners: I32) -> None:
        def spread(which: Any, raw: Any, at: Any) -> None:
            for place, begin in zip(which.tolist(), at.tolist(), strict=True):
                found[place] = raw[begin : begin + self.size]

        found = np.zeros((len(owners), self.size), np.uint8)
        self.file.read(np.array([self.records[each] for each in owners.tolist()], np.int32), spread)
        expected = np.array([self.content[each] for each in owners.tolist()])[:, None] + np.arange(self.size)
        assert np.array_equal(found, expected % 251)

    def free(self, owners: I32) -> None:
        self.file.free(np.array([self.records.pop(each) for each in owners.tolist()], np.int32))


@pytest.mark.parametrize("size", [8, 500, 3_000, 30_000])
@pytest.mark.parametrize("way", ["together", "one by one", "buffered"])
def test_records_are_what_was_written(
    tmp_path: Path, size: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "one by one":
        monkeypatch.setattr(direct_file, "_CALLS", {})
    if way == "buffered":
        monkeypatch.setattr(os, "O_DIRECT", 0)
    kept, rng = Kept(tmp_path, size, Reads(max(8 * PAGE, size + 2 * PAGE))), np.random.default_rng(1)
    count = max(min(400_000 // size, 600), 20)
    kept.append(np.arange(count, dtype=np.int32), rng.integers(0, 251, count).astype(np.int32))
    for _ in range(12):
        some = rng.permutation(count)[: count // 4].astype(np.int32)
        kept.check(some)
        kept.free(some)
        kept.append(some, rng.integers(0, 251, len(some)).astype(np.int32))
    kept.check(np.arange(count, dtype=np.int32))
    # Space is used again.
    assert kept.file.on_disk <= 3 * count * size + 24 * max(4 * PAGE, size + PAGE)


def test_a_full_disk_changes_nothing_and_is_used_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, real = Kept(tmp_path, 512), os.posix_fallocate

    def allocate(number: int, begin: int, size: int) -> None:
        if begin + size > 64 * PAGE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number, begin, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    owners = np.arange(100, dtype=np.int32)
    with pytest.raises(StoreFailed, match=f"store.folder: {tmp_path} has no room for .*: No space left"):
        for begin in range(0, 900, 100):
            kept.append(owners + begin, owners)
    held = np.array([*kept.records], np.int32)
    # Of 512 records at most, 32 are kept to free others.
    assert len(held) >= 300
    kept.check(held)
    for step in range(30):
        some = np.random.default_rng(step).permutation(held)[:60]
        kept.free(some)
        kept.append(some, some % 251)
    kept.check(held)


def test_a_record_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 512)
    owners = np.arange(100, dtype=np.int32)
    kept.append(owners, owners)
    os.ftruncate(kept.file._file.number(), 0)
    with pytest.raises(StoreFailed, match="rows cannot be read: the file is too short"):
        kept.check(owners[:20])
