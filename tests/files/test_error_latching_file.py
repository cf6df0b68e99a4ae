"""A failing disk is reported in one line, and affects neither the process nor earlier checkpoints."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpips.checkpoint.checkpoint import abandon, begin, commit
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import latest
from mpips.checkpoint.writing import Saved, write_shard
from mpips.errors import CheckpointError, ClosedError
from mpips.files.error_latching_file import ErrorLatchingFile
from mpips.ranges import ALL
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec


def part(rows: int) -> Saved:
    """Return `rows` rows of 32 bytes."""
    columns = [np.random.default_rng(n).random((rows, 1)) for n in range(3)]
    state = {"n": columns[0], "z": columns[1]}
    return Saved(
        VectorSpec("w", update="ftrl"), {}, [ALL], Rows(np.arange(rows, dtype=np.uint64), columns[2], state)
    )


def write(directory: Path, step: int, rows: int = 100_000) -> Path:
    folder = begin(directory, step)
    commit(folder, [write_shard(folder, 0, {"w": part(rows)})])
    return folder


def test_hdf5_writes_into_it_and_reads_it_by_itself(tmp_path: Path) -> None:
    sink = ErrorLatchingFile(tmp_path / "file.h5")
    with h5py.File(sink, "w") as file:
        file.create_dataset("a", data=np.arange(300_000.0), chunks=(1000,), fletcher32=True)
        file["group/b"] = np.arange(7)
        file["group/b"][3] = 70
        assert file["a"][299_999] == 299_999
    sink.close()
    sink.close()
    with h5py.File(tmp_path / "file.h5") as file:
        assert file["a"][()].tolist() == list(range(300_000))
        assert file["group/b"][()].tolist() == [0, 1, 2, 70, 4, 5, 6]
    with pytest.raises(ClosedError):
        sink.write(memoryview(b"more"))


def test_what_was_written_can_be_read_back_and_the_rest_is_zeros(tmp_path: Path) -> None:
    sink = ErrorLatchingFile(tmp_path / "file")
    assert sink.write(memoryview(b"abcdef")) == 6 and sink.tell() == 6
    assert sink.seek(-4, os.SEEK_END) == 2 and sink.seek(1, os.SEEK_CUR) == 3
    assert sink.read(5) == b"def\0\0" and sink.tell() == 8
    assert sink.truncate(2) == 2 and sink.seek(0, os.SEEK_END) == 2
    sink.close()
    assert (tmp_path / "file").read_bytes() == b"ab"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Count the calls that write, and let those from number `limit` on fail with `error`."""
    state: dict[str, Any] = {"done": 0, "limit": 10**9, "error": errno.ENOSPC}

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            state["done"] += 1
            if state["done"] > state["limit"]:
                raise OSError(state["error"], os.strerror(state["error"]))
            return function(*args, **kwargs)

        return wrapped

    for name in ("pwrite", "ftruncate", "fsync", "replace"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    return state


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_at_any_write(tmp_path: Path, disk: dict[str, Any], error: int) -> None:
    """The error says which file and why; the former checkpoint is untouched; the next attempt succeeds."""
    former = write(tmp_path, 1)
    before = {path.name: path.read_bytes() for path in former.iterdir()}
    handles = len(os.listdir("/proc/self/fd"))
    failures = 0
    while True:
        disk.update(done=0, limit=failures, error=error)
        try:
            write(tmp_path, 2, rows=50_000)
        except CheckpointError as caught:
            text = str(caught)
        else:
            break
        disk["limit"] = 10**9
        assert text.startswith(("cannot write ", "cannot make ")) and text.endswith(f": {os.strerror(error)}")
        assert str(tmp_path) in text and "\n" not in text
        assert {path.name: path.read_bytes() for path in former.iterdir()} == before
        assert verify(latest(tmp_path) or tmp_path) == []
        assert len(os.listdir("/proc/self/fd")) == handles
        abandon(tmp_path / "step-000002")
        failures += 1
    assert failures > 20
    assert verify(tmp_path / "step-000002") == []


def test_a_removed_folder_is_reported_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begin(tmp_path, 1)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"cannot write .*server-0000\.h5: No such file or directory"):
        write_shard(folder, 0, {"w": part(10)})
    folder = begin(tmp_path, 1)
    pwrite = os.pwrite

    def last(*args: Any) -> int:
        shutil.rmtree(folder, ignore_errors=True)
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", last)
    with pytest.raises(CheckpointError, match=r"cannot write .*server-0000\.h5: No such file or directory"):
        write_shard(folder, 0, {"w": part(10)})
    abandon(folder)


SCRIPT = """
import resource, sys
from pathlib import Path
from files.test_error_latching_file import part
from mpips.checkpoint.checkpoint import abandon, begin, commit
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import latest
from mpips.checkpoint.writing import write_shard
from mpips.errors import CheckpointError
directory = Path(sys.argv[1])
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for step, rows in enumerate((9_000, 200_000, 30_000, 9_000)):
    folder = begin(directory, step)
    try:
        commit(folder, [write_shard(folder, n, {"w" if n == 0 else "v": part(rows)}) for n in range(2)])
    except CheckpointError as error:
        print(error)
        abandon(folder)
    assert verify(latest(directory)) == []
print(latest(directory).name, sorted(path.name for path in directory.iterdir()))
"""


def in_a_process(*arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["..", os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """HDF5 by itself would end the process by a segmentation fault here."""
    lines = in_a_process(str(tmp_path), str(2**20))
    assert lines[0] == f"cannot write {tmp_path}/step-000001/server-0000.h5: File too large"
    assert lines[1:] == ["step-000003 ['step-000000', 'step-000002', 'step-000003']"]


def test_a_full_disk(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(place)], capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"cannot mount a small disk: {tried.stderr.decode().strip()}")
    try:
        lines = in_a_process(str(place))
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert lines[0] == f"cannot write {place}/step-000001/server-0000.h5: No space left on device"
    assert lines[1] == f"cannot write {place}/step-000002/server-0001.h5: No space left on device"
    assert lines[2:] == ["step-000003 ['step-000000', 'step-000003']"]
