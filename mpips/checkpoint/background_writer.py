"""Writes a rank's files of checkpoints in the background, while training goes on.

HDF5 does one thing at a time, in whichever threads, so there is one thread. It needs the interpreter for moments only:
h5py gives the lock back while HDF5 copies, and the kernel writes, syncs and hashes without it. What is written is a
copy (`checkpoint.save`), so nobody has to wait for anything but the copying; unless he uses HDF5 himself meanwhile,
then he waits for the array that is being written.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from mpips.checkpoint.manifest import Entry
from mpips.errors import ClosedError


class Writes(Protocol):
    """What writes files of checkpoints."""

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Begin to `write(*arguments)`."""


class AtOnce:
    """Writes in the caller's thread, who waits: for the twin, where nothing goes on beside."""

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Do `write(*arguments)`."""
        done: Future[Entry] = Future()
        try:
            done.set_result(write(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class Writer:
    """One per process; files are written in the order in which they were started."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def start(self, write: Callable[..., Entry], *arguments: Any) -> Future[Entry]:
        """Begin to `write(*arguments)`: `checkpoint.write_shard` or `write_worker`.

        Ask the future with `done()`; `result()` gives the entry for `checkpoint.commit`, or raises the CheckpointError
        that says why the file could not be written. Nothing that it was given may be changed until then.
        """
        try:
            return self._pool.submit(write, *arguments)
        except RuntimeError:
            raise ClosedError("this writer of checkpoints is closed") from None

    def close(self) -> None:
        """Finish what was started, and stop; idempotent."""
        self._pool.shutdown()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
