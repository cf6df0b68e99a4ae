"""A file of a node-local disk that holds an array: mapped, so that its pages are read when they are first touched.

The file has no name: nothing is left of it when the process ends, however that ends. Its blocks are allocated when it
grows, so that a full disk is an error then; without them, a write to the mapping would end the process (SIGBUS). A disk
that fails to read does so all the same, and the shard's copy on another server takes over.

Its pages are in the page cache of the system, which would keep all of them as long as nobody else needs memory; `drop`
gives some back.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from mpips.errors import InputError
from mpips.storage.disk.failure import StoreFailed

PAGE = mmap.PAGESIZE
"""Bytes of a page."""
_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "hugetlbfs")
"""File systems that are memory."""
# sync_file_range(2): start writing; and wait until all is written.
_START, _COMPLETE = 2, 7
_LOST = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
"""Errors after which what has changed is not on the disk."""


def check_folder(folder: str | Path) -> Path:
    """Return the folder of a store's files, by default the system's temporary one; InputError if it is not usable.

    >>> check_folder("/dev/shm")
    Traceback (most recent call last):
    mpips.errors.InputError: store.folder: /dev/shm is in memory (tmpfs): name a folder of a disk of the node
    """
    path = Path(folder or tempfile.gettempdir())
    if sys.platform != "linux":
        raise InputError("store.memory: rows on disk need Linux; leave it out")
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"store.folder: {path} is not a folder that can be written to")
    kind = _file_system(path)
    if kind in _MEMORY:
        raise InputError(f"store.folder: {path} is in memory ({kind}): name a folder of a disk of the node")
    return path


def _file_system(path: Path) -> str:
    """Return the type of the file system of a path, "" if it is unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        words, _, rest = line.partition(" - ")
        if words.split()[2:3] == [wanted]:
            return rest.split()[0]
    return ""


def _system_call(name: str, *kinds: Any) -> Any:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.argtypes = kinds
    return function


class DiskFile:
    """A file without a name in a folder, of `size` bytes; see the module.

    Pages are counted from the begin of the file. `heat` u1[pages] belongs to `mpips.storage.disk.page_clock`, and
    `present` is the number of pages that are in memory, as far as known.
    """

    def __init__(self, folder: Path) -> None:
        self._file: Any = None
        self._folder, self._failure = folder, ""
        self.size = self.present = 0
        self.heat: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.map: mmap.mmap | None = None
        """The present mapping of the whole file; set by the array."""
        self._write = _system_call(
            "sync_file_range", *[ctypes.c_int] + 2 * [ctypes.c_int64] + [ctypes.c_uint]
        )
        self._residence = _system_call("mincore", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def grow(self, size: int) -> None:
        """Allocate blocks of the disk for `size` bytes; StoreFailed if it is full. The first call opens the file."""
        try:
            if self._file is None:
                # Without a name from the start where the file system can do that; open as long as the array lives.
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                finalize(self, self._file.close)
            os.posix_fallocate(self._file.fileno(), self.size, size - self.size)
        except OSError as error:
            raise StoreFailed(
                f"store.folder: {self._folder} has no room for {size:,} bytes of rows: {error.strerror}"
            ) from error
        self.size = size
        heat = np.zeros(-(-size // PAGE), np.uint8)
        heat[: len(self.heat)] = self.heat
        self.heat = heat

    def mapped(self) -> mmap.mmap:
        """Map the whole file."""
        return mmap.mmap(self._file.fileno(), self.size, flags=mmap.MAP_SHARED)

    def prefetch(self, first: int, count: int) -> None:
        """Start to read some pages, without waiting for them."""
        assert self.map is not None
        self.map.madvise(mmap.MADV_WILLNEED, first * PAGE, count * PAGE)

    def start_writing(self, first: int, count: int) -> None:
        """Start to write what has changed in some pages, without waiting for it."""
        self._write(self._file.fileno(), first * PAGE, count * PAGE, _START)

    def drop(self, first: int, count: int) -> None:
        """Remove some pages from memory, once what has changed in them is written; StoreFailed if it cannot be."""
        assert self.map is not None
        fd, begin, size = self._file.fileno(), first * PAGE, count * PAGE
        if self._write(fd, begin, size, _COMPLETE) and ctypes.get_errno() in _LOST:
            self._failure = os.strerror(ctypes.get_errno())
        if self._failure:
            # The system says it once, and takes all pages for written: they would be read as they were before.
            raise StoreFailed(f"store.folder: {self._folder}: rows cannot be written: {self._failure}")
        # A mapped page cannot be removed.
        self.map.madvise(mmap.MADV_DONTNEED, begin, size)
        os.posix_fadvise(fd, begin, size, os.POSIX_FADV_DONTNEED)

    def resident(self) -> NDArray[np.uint8]:
        """Return which pages are in memory: u1[pages], odd for those that are."""
        out = np.zeros(len(self.heat), np.uint8)
        if self.map is not None and self.size:
            view = np.frombuffer(self.map, np.uint8)
            if self._residence(view.ctypes.data, self.size, out.ctypes.data):
                raise OSError(ctypes.get_errno(), "mincore")
        return out
