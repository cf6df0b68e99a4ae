"""Writes a rank's checkpoint files in a background thread, while training continues.

HDF5 serializes all threads, so one thread is enough. It holds the GIL only briefly: h5py releases it while HDF5 copies,
and writes, syncs and hashes run without it. The thread writes a copy (`saved.save`), so training waits for the
copy only, or, if it uses HDF5 itself, for the array that is being written.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from mpips.checkpoint.manifest import Entry
from mpips.errors import ClosedError


class CheckpointWriter(Protocol):
    """Starts the writing of checkpoint files."""

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Start `write(*arguments)`."""


class SynchronousWriter:
    """Writes in the caller's thread: for the simulation, which has no background threads."""

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Execute `write(*arguments)`."""
        done: Future[Entry] = Future()
        try:
            done.set_result(write(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class BackgroundWriter:
    """The background thread, one per process; files are written in the order of `start`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Start `write(*arguments)`: `saved.write_shard` or `write_worker`.

        Poll the future by `done()`; `result()` returns the entry for `checkpoint.commit`, or raises the CheckpointError
        that says why the file could not be written. The arguments must not change until then.
        """
        try:
            return self._pool.submit(write, *arguments)
        except RuntimeError:
            raise ClosedError("this writer of checkpoints is closed") from None

    def close(self) -> None:
        """Finish all started writes, and stop; idempotent."""
        self._pool.shutdown()

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
