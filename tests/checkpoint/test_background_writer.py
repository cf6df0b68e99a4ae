"""Shards written in the background equal those written in the foreground."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from files.test_error_latching_file import part

from mpips.checkpoint.background_writer import BackgroundWriter
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.manifest import Entry
from mpips.checkpoint.writing import write_shard
from mpips.errors import CheckpointError, ClosedError


def test_the_same_bytes_as_in_the_foreground(tmp_path: Path) -> None:
    parts, meta = {"w": part(100_000)}, {"clocks": {"w": [1]}}
    plain, folder = begin(tmp_path / "plain", 1), begin(tmp_path, 1)
    entry = write_shard(plain, 3, parts, meta)
    with BackgroundWriter() as background:
        assert background.start(write_shard, folder, 3, parts, meta).result() == entry
    commit(folder, [entry])
    assert verify(folder) == []
    assert (plain / "server-0003.h5").read_bytes() == (folder / "server-0003.h5").read_bytes()


def test_the_caller_continues_while_it_is_written(tmp_path: Path) -> None:
    """The caller may even use HDF5 itself; what was started is finished in its order before the writer closes."""
    gate, threads, order = threading.Event(), set(), []

    def held_up(folder: Path, number: int, *rest: Any) -> Entry:
        gate.wait()
        threads.add(threading.get_ident())
        order.append(number)
        return write_shard(folder, number, *rest)

    folder = begin(tmp_path, 1)
    background = BackgroundWriter()
    handles = [background.start(held_up, folder, n, {f"w{n}": part(1000)}) for n in (2, 0, 1)]
    assert not any(handle.done() for handle in handles)
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        gate.set()
        for n in range(50):
            file[f"{n}"] = np.arange(n)
    background.close()
    background.close()
    assert all(handle.done() for handle in handles)
    assert order == [2, 0, 1] and len(threads) == 1 and threading.get_ident() not in threads
    commit(folder, [handle.result() for handle in handles])
    assert verify(folder) == []
    with pytest.raises(ClosedError):
        background.start(write_shard, folder, 0, {})


def test_a_failure_is_raised_by_the_result_and_the_next_file_is_written(tmp_path: Path) -> None:
    with BackgroundWriter() as background:
        failed = background.start(write_shard, tmp_path / "nowhere", 0, {"w": part(10)})
        fine = background.start(write_shard, begin(tmp_path, 1), 0, {"w": part(10)})
        with pytest.raises(
            CheckpointError, match=r"cannot write .*server-0000\.h5: No such file or directory"
        ):
            failed.result()
        assert fine.result()["name"] == "server-0000.h5"
