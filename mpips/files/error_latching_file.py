"""A file object for HDF5 that keeps the first write error and raises it at `close`.

When the disk is full while HDF5 (2.0 and earlier) writes to a path, closing the file fails as well, its objects stay
open, and the process later ends in a segmentation fault: a failed checkpoint would cost a server its data. So HDF5
is given a Python object instead of a path. After the first failed write, `ErrorLatchingFile` keeps that error, writes
nothing more and reports success, so that HDF5 closes normally; `close` then raises the error. The cost is one Python
call per chunk of 1 MiB; the GIL is not held while the kernel writes.
"""

from __future__ import annotations

import os
from pathlib import Path

from mpips.errors import ClosedError

_WRITE_BYTES = 2**23
"""Bytes of one write."""


class ErrorLatchingFile:
    """A new file at `path`, as `h5py.File` accepts it; `error` is the first error.

    `path` may be the descriptor of a file that is open to read and write, which stays open. A symbolic link is refused.
    `close` syncs the file and raises the first error.
    """

    def __init__(self, path: Path | int) -> None:
        self.error: OSError | None = None
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor: int | None = os.dup(path) if isinstance(path, int) else os.open(path, flags, 0o666)
        self._offset = self._end = 0

    def _check_open(self) -> int:
        if self._descriptor is None:
            raise ClosedError("this file is closed")
        return self._descriptor

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset from the beginning, from the current position or from the end."""
        self._offset = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: self._end}[whence]
        return self._offset

    def tell(self) -> int:
        """Return the current offset."""
        return self._offset

    def write(self, data: memoryview) -> int:
        """Write `data`; after an error, only advance the offset."""
        handle, view = self._check_open(), memoryview(data).cast("B")
        start = self._offset
        try:
            while self._offset - start < len(view) and self.error is None:
                done = self._offset - start
                self._offset += os.pwrite(handle, view[done : done + _WRITE_BYTES], self._offset)
        except OSError as error:
            self.error = error
        self._offset = start + len(view)
        self._end = max(self._end, self._offset)
        return len(view)

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes; those that could not be written are zeros."""
        handle, view = self._check_open(), memoryview(buffer).cast("B")
        found = os.pread(handle, len(view), self._offset)
        view[: len(found)] = found
        view[len(found) :] = bytes(len(view) - len(found))
        self._offset += len(view)
        return len(view)

    def read(self, size: int) -> bytes:
        """Read `size` bytes."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size; after an error, only record it."""
        self._end = self._offset if size is None else size
        try:
            if self.error is None:
                os.ftruncate(self._check_open(), self._end)
        except OSError as error:
            self.error = error
        return self._end

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def close(self) -> None:
        """Sync and close the file; raise the first error there was. Idempotent."""
        if self._descriptor is None:
            return
        try:
            if self.error is None:
                os.fsync(self._descriptor)
        except OSError as error:
            self.error = error
        try:
            os.close(self._descriptor)
        # A network file system may report a failed write only at close.
        except OSError as error:
            self.error = self.error or error
        self._descriptor = None
        if self.error is not None:
            raise self.error
