"""A file of a node-local disk that is read and written past the page cache: what is in memory is what mpips holds.

The file has no name: nothing is left of it when the process ends, however that ends. Its blocks are allocated when it
grows, so that a full disk is an error then, before anything has changed.

Many reads are in flight at once (`Reads`), by the asynchronous interface of Linux (io_submit(2)): a disk answers 64 of
them in little more than the time of one, and no thread waits. Where a system or container refuses it, they are made one
after the other. Where a file system has no direct access, what it keeps of the file is dropped after each use.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from mpips.storage.disk.disk_file import PAGE
from mpips.storage.disk.failure import StoreFailed

Bytes = NDArray[np.uint8]
_SECTOR = 512
"""Bytes of the least part of most disks that can be read; a page where it cannot."""
_DEPTH = 512
"""Reads in flight."""
# Numbers of io_setup, io_destroy, io_getevents, io_submit.
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_REQUEST = np.dtype(
    {
        "names": ["number", "file", "memory", "size", "offset"],
        "formats": ["u8", "u4", "u8", "u8", "i8"],
        "offsets": [0, 20, 24, 32, 40],
        "itemsize": 64,
    }
)
"""`struct iocb` of a read, whose operation is 0; the rest is 0, too."""
_EVENT = np.dtype([("number", "u8"), ("request", "u8"), ("result", "i8"), ("more", "i8")])


def aligned(size: int) -> Bytes:
    """Return memory that a disk can be read to and written from directly, of whole pages."""
    return np.frombuffer(mmap.mmap(-1, -(-size // PAGE) * PAGE), np.uint8)


class DirectFile:
    """A file without a name in a folder, of `size` bytes; see the module. Accesses are of whole sectors of `sector`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.size, self.sector = folder, 0, PAGE
        self._file: Any = None
        self._direct = True

    def number(self) -> int:
        """Return the number of the open file."""
        number: int = self._file.fileno()
        return number

    def grow(self, size: int) -> None:
        """Allocate blocks of the disk for `size` bytes; StoreFailed if it is full. The first call opens the file."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
                finalize(self, self._file.close)
            os.posix_fallocate(self.number(), self.size, size - self.size)
        except OSError as error:
            raise StoreFailed(
                f"store.folder: {self.folder} has no room for {size:,} bytes of rows: {error.strerror}"
            ) from error
        if not self.size:
            self._open_directly()
        self.size = size

    def _open_directly(self) -> None:
        number = self.number()
        try:
            fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) | os.O_DIRECT)
            os.preadv(number, [aligned(PAGE).data], 0)
        except OSError:
            fcntl.fcntl(number, fcntl.F_SETFL, fcntl.fcntl(number, fcntl.F_GETFL) & ~os.O_DIRECT)
            self._direct = False
            return
        try:
            os.preadv(number, [aligned(PAGE)[:_SECTOR].data], _SECTOR)
            self.sector = _SECTOR
        except OSError:
            return

    def write(self, begin: int, raw: Bytes) -> None:
        """Write whole pages from `aligned` memory; StoreFailed if they cannot be."""
        done = 0
        try:
            while done < len(raw):
                done += os.pwrite(self.number(), raw[done:].data, begin + done)
            if not self._direct:
                os.fdatasync(self.number())
        except OSError as error:
            raise StoreFailed(
                f"store.folder: {self.folder}: rows cannot be written: {error.strerror}"
            ) from error
        self.forget(begin, len(raw))

    def forget(self, begin: int, size: int) -> None:
        """Drop what the system keeps of a part of the file, if it does."""
        if not self._direct:
            os.posix_fadvise(self.number(), begin, size, os.POSIX_FADV_DONTNEED)


def _nothing(raw: Bytes) -> None:
    pass


class Reads:
    """Reads that are in flight at once, into parts of `buffer`, which has `size` bytes."""

    def __init__(self, size: int) -> None:
        self.buffer = aligned(size)
        self._system: Any = None
        self._context = ctypes.c_ulong(0)
        self._file: DirectFile | None = None
        self._ops: NDArray[np.int64] = np.empty((0, 3), np.int64)
        self._requests: NDArray[Any] = np.empty(0, _REQUEST)
        self._flying = 0
        self._then: Callable[[Bytes], None] = _nothing
        calls = _CALLS.get(platform.machine())
        if calls is not None:
            system = ctypes.CDLL(None, use_errno=True).syscall
            setup, self._destroy, self._events, self._submit = map(ctypes.c_long, calls)
            if system(setup, ctypes.c_uint(_DEPTH), ctypes.byref(self._context)) == 0:
                self._system = system
                finalize(self, system, self._destroy, self._context)

    def begin(
        self, file: DirectFile, ops: NDArray[np.int64], then: Callable[[Bytes], None] = _nothing
    ) -> None:
        """Begin to read parts of a file: (offset, size, where in the buffer) i8[n, 3], of whole sectors.

        `finish` calls `then` with the buffer.
        """
        self.finish()
        self._file, self._ops, self._then = file, ops, then
        if self._system is None or len(ops) < 2:
            return
        requests = self._requests = np.zeros(len(ops), _REQUEST)
        requests["number"], requests["file"] = np.arange(len(ops)), file.number()
        requests["offset"], requests["size"] = ops[:, 0], ops[:, 1]
        requests["memory"] = self.buffer.ctypes.data + ops[:, 2]
        places = np.uint64(requests.ctypes.data) + np.arange(len(ops), dtype=np.uint64) * np.uint64(64)
        at = 0
        while at < len(ops):
            count = min(len(ops) - at, _DEPTH - self._flying)
            done = self._system(
                self._submit,
                self._context,
                ctypes.c_long(count),
                ctypes.c_void_p(places.ctypes.data + 8 * at),
            )
            if done <= 0 and not self._flying:
                # Refused: the rest is read by `finish`.
                self._ops = ops[at:]
                return
            at, self._flying = at + max(done, 0), self._flying + max(done, 0)
            if at < len(ops):
                self._reap(max(self._flying // 2, 1))
        self._ops = ops[:0]

    def _reap(self, least: int) -> None:
        """Wait for so many of the reads in flight."""
        events = np.zeros(self._flying, _EVENT)
        found = self._system(
            self._events, self._context, ctypes.c_long(least), ctypes.c_long(len(events)),
            ctypes.c_void_p(events.ctypes.data), None,
        )  # fmt: skip
        if found < 0:
            # Interrupted by a signal.
            return
        self._flying -= found
        events = events[:found]
        short = events["result"] != self._requests["size"][events["number"].astype(np.int64)]
        if short.any():
            self._fail(-int(events["result"][short][0]))

    def _fail(self, error: int) -> None:
        assert self._file is not None
        why = os.strerror(error) if error > 0 else "the file is too short"
        raise StoreFailed(f"store.folder: {self._file.folder}: rows cannot be read: {why}")

    def finish(self) -> None:
        """Wait until all is read, and use it; StoreFailed if it cannot be read."""
        while self._flying:
            self._reap(self._flying)
        file, ops, self._ops = self._file, self._ops, self._ops[:0]
        if file is None:
            return
        for offset, size, where in ops.tolist():
            try:
                done = os.preadv(file.number(), [self.buffer[where : where + size].data], offset)
            except OSError as error:
                self._fail(error.errno or 0)
            if done != size:
                self._fail(0)
            file.forget(offset, size)
        then, self._file, self._then = self._then, None, _nothing
        then(self.buffer)
