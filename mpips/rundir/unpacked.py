"""Decompressed files that the processes of a host share: one of them decompresses a file, and all read it.

Each worker has every n-th row of a file, and which rows these are is known only from all rows before. So each needs all
bytes of the file, and it saves nothing that some formats have parts which can be decompressed alone (blocks of xz,
frames of Zstandard, members of gzip).

One process decompresses the file to another one on the host's local disk, in a thread, from the first byte to the last,
and holds that file's lock meanwhile (flock). All read what is there, as it grows. If the writer dies, or leaves the
run, its lock is free: another reader takes it, decompresses anew what is there without writing it, and appends the
rest. So the file is a beginning of the same bytes at any time, and any reader may read it again.

No reader depends on it. Without the folder, room on the disk, locks, or a further byte for `PATIENCE` seconds, a reader
decompresses by itself, and goes on after the last byte that it has had. So damage is reported by each reader, as of a
file that is not shared.

The folder is in that of temporary files, for one start of a run, and only its user can open it. Its processes hold a
shared lock on it. The last one that leaves removes it; if all were killed, the next run of this user on this host
does.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import IO, Any, BinaryIO

from mpips.errors import DataError
from mpips.files.mounts import file_system
from mpips.process.host import machine
from mpips.rundir import log

GROWING, COMPLETE, GIVEN_UP = 0o600, 0o700, 0o610
"""The mode of a file says how far it is; no mode opens it to others, since they cannot reach its folder."""
PATIENCE = 10.0
"""Seconds that a reader waits for a byte of a writer, which may be stopped, or hang."""
WAIT = 0.005
"""Seconds between two looks for new bytes."""
ROOM = 1 << 30
"""Bytes that stay free on the disk: at least so many, and at least this part of all:"""
ROOM_PART = 0.05
GB = 1e9
NAME = re.compile("[0-9a-f]{32}")
"""Names of decompressed files, see `name_of`."""
IN_MEMORY = "tmpfs", "ramfs"
"""Types of file systems that would take the nodes' memory."""

Pieces = Callable[[str], Generator[bytes, None, None]]
"""Decompresses a file of a name, see `mpips.data.stream.chunks`."""


class Unpacked:
    """The decompressed files of one start of a run on this host, of `most` bytes together.

    Raises:
        OSError: the folder cannot be made, is in memory, or can be reached by others.
    """

    def __init__(self, run: str, most: float, base: str = "") -> None:
        base = base or tempfile.gettempdir()
        if file_system(os.stat(base).st_dev) in IN_MEMORY:
            raise OSError(errno.ENOTSUP, "is in memory", base)
        begin = f"mpips-unpacked-{os.geteuid()}-"
        self.path = Path(base, f"{begin}{run}-{machine().hex()}")
        self._most, self._left = most, Event()
        self._writers: list[Thread] = []
        self._folder = _own_folder(self.path)
        for other in Path(base).glob(f"{begin}*"):
            if other != self.path:
                _remove_unused(other)

    def leave(self) -> None:
        """Stop writing; remove the folder if no other process uses it."""
        self._left.set()
        for writer in self._writers:
            writer.join()
        if self._folder >= 0:
            # This gives up the shared lock in any case, so that the last one succeeds.
            with suppress(OSError):
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(self.path, self._folder)
            os.close(self._folder)
            self._folder = -1

    def open(
        self, path: str, file: BinaryIO, decompress: Pieces, alone: Callable[[], IO[bytes]]
    ) -> IO[bytes]:
        """Return the decompressed bytes of an open file.

        Args:
            path: its name.
            file: the file, open; its end is sought when all is read.
            decompress: decompresses the file of a name.
            alone: decompresses `file`, which nobody else knows.
        """
        return io.BufferedReader(_Reader(self, path, file, decompress, alone), 1 << 16)

    def find(self, name: str) -> int:
        """Open a decompressed file, perhaps a new one, to read and write it; -1: there is none."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(name, flags, GROWING, dir_fd=self._folder)
        except OSError:
            return -1

    def write(self, name: str, path: str, decompress: Pieces) -> bool:
        """Decompress a file in a thread unless another process does; return False if that is not possible."""
        if self._left.is_set() or (handle := self.find(name)) < 0:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            return error.errno in (errno.EAGAIN, errno.EACCES, errno.EINTR)
        if _state(handle) != GROWING:
            os.close(handle)
            return True
        writer = Thread(target=self._write, args=(handle, name, path, decompress), daemon=True)
        self._writers.append(writer)
        writer.start()
        return True

    def _write(self, handle: int, name: str, path: str, decompress: Pieces) -> None:
        """Append what is missing of a file, whose lock is held; closing it frees the lock."""
        try:
            missing = -os.fstat(handle).st_size
            os.lseek(handle, 0, os.SEEK_END)
            # Before its first byte, too: readers take each one at once.
            _check_same(path, name)
            with closing(decompress(path)) as pieces:
                for piece in pieces:
                    if self._left.is_set():
                        return
                    before, missing = missing, missing + len(piece)
                    if missing > 0:
                        self._check_room(handle, missing - max(before, 0))
                        _write_all(handle, memoryview(piece)[max(-before, 0) :])
            _check_same(path, name)
            os.fchmod(handle, COMPLETE)
        # Whatever it is, each reader meets it by itself, or does not need to.
        except Exception as error:
            log.note("not_shared", path=path, why=str(error) or type(error).__name__)
            with suppress(OSError):
                self._give_up(handle, name)
        finally:
            os.close(handle)

    def _give_up(self, handle: int, name: str) -> None:
        """Free the file's space once its readers have closed it, and put an empty one in its place."""
        os.fchmod(handle, GIVEN_UP)
        os.unlink(name, dir_fd=self._folder)
        empty = self.find(name)
        if empty >= 0:
            os.fchmod(empty, GIVEN_UP)
            os.close(empty)

    def _check_room(self, handle: int, size: int) -> None:
        disk, used = os.fstatvfs(handle), 0
        for name in os.listdir(self._folder):
            with suppress(OSError):
                used += os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_size
        if used + size > self._most:
            raise OSError(
                errno.EFBIG, f"more than the {self._most / GB:g} GB of [data] keep_unpacked", str(self.path)
            )
        free = max(ROOM, int(ROOM_PART * disk.f_blocks * disk.f_frsize))
        if disk.f_bavail * disk.f_frsize - size < free:
            raise OSError(errno.ENOSPC, f"less than {free / GB:.3g} GB would be free", str(self.path))


class _Reader(io.RawIOBase):
    """The decompressed bytes of a file, by this process or another one; see `Unpacked.open`."""

    def __init__(
        self,
        unpacked: Unpacked,
        path: str,
        file: BinaryIO,
        decompress: Pieces,
        alone: Callable[[], IO[bytes]],
    ) -> None:
        self._unpacked, self._path, self._file = unpacked, path, file
        self._decompress, self._alone = decompress, alone
        self._name = name_of(os.fstat(file.fileno()))
        self._shared = unpacked.find(self._name)
        self._own: IO[bytes] | None = None
        self._at = 0

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of `buffer`; return how many bytes, 0 at the end."""
        size = self._read_shared(buffer) if self._own is None else None
        if size is None:
            if self._own is None:
                self._own = self._read_alone()
            size = self._own.readinto(buffer)  # type: ignore[attr-defined]
        self._at += size
        return int(size)

    def close(self) -> None:
        """Close the shared file."""
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1
        super().close()

    def _read_shared(self, buffer: Any) -> int | None:
        """Wait for bytes of the shared file, and read them; None: there will be none."""
        until, seen = time.monotonic() + PATIENCE, -1
        while self._shared >= 0:
            # Before the read: what is complete has no more bytes afterwards.
            state = _state(self._shared)
            try:
                if size := os.preadv(self._shared, [buffer], self._at):
                    return size
                length = os.fstat(self._shared).st_size
            except OSError:
                return None
            if state == COMPLETE:
                self._file.seek(0, os.SEEK_END)
                return 0
            if state == GIVEN_UP or not self._unpacked.write(self._name, self._path, self._decompress):
                return None
            if length != seen:
                until, seen = time.monotonic() + PATIENCE, length
            elif time.monotonic() > until:
                log.note("not_shared", path=self._path, why=f"no byte has come for {PATIENCE:g} seconds")
                return None
            time.sleep(WAIT)
        return None

    def _read_alone(self) -> IO[bytes]:
        """Decompress up to where this reader is."""
        if self._shared >= 0:
            os.close(self._shared)
            self._shared = -1
        own, left = self._alone(), self._at
        while left and (skipped := len(own.read(min(left, 1 << 20)))):
            left -= skipped
        return own


class _Sharing:
    """The shared files of this process, which are opened when they are first needed."""

    def __init__(self, run: str, most: float) -> None:
        self._open: Callable[[], Unpacked] | None = partial(Unpacked, run, most) if most > 0 else None
        self.unpacked: Unpacked | None = None

    def get(self) -> Unpacked | None:
        """Return them; None: they cannot be shared."""
        if self._open is not None:
            opener, self._open = self._open, None
            try:
                self.unpacked = opener()
            except OSError as error:
                log.note("not_shared", path=error.filename, why=error.strerror or str(error))
        return self.unpacked


_sharing: _Sharing | None = None


@contextmanager
def sharing(run: str, most: float) -> Iterator[None]:
    """Share decompressed files with the processes of this host that name the same run; `most`: GB, 0: none.

    If that is not possible, each process decompresses by itself.
    """
    global _sharing
    before, _sharing = _sharing, _Sharing(run, most * GB)
    try:
        yield
    finally:
        own, _sharing = _sharing, before
        if own.unpacked is not None:
            own.unpacked.leave()


def shared() -> Unpacked | None:
    """Return the decompressed files that this process shares; None: it shares none."""
    return None if _sharing is None else _sharing.get()


def name_of(file: os.stat_result) -> str:
    """Return the name of a file's decompressed bytes; a file that is replaced or changed has another one."""
    about = file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
    return hashlib.blake2b(repr(about).encode(), digest_size=16).hexdigest()


def _check_same(path: str, name: str) -> None:
    if name_of(os.stat(path)) != name:
        raise DataError(f"{path}: was replaced while it was read")


def _state(handle: int) -> int:
    return stat.S_IMODE(os.fstat(handle).st_mode)


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _own_folder(path: Path) -> int:
    """Make or find a folder that only this user can open; return it open, with a shared lock.

    Raises:
        OSError: it is another's.
    """
    for _ in range(3):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            about = os.fstat(folder)
            # A folder that gives its group to new ones gives them a bit of the mode, too.
            if about.st_uid != os.geteuid() or about.st_mode & 0o777 != 0o700:
                raise OSError(errno.EPERM, "belongs to another user, or is open to others", str(path))
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
            # A run that ends may have removed it before the lock.
            with suppress(FileNotFoundError):
                if os.path.samestat(about, os.lstat(path)):
                    return folder
        except OSError as error:
            os.close(folder)
            raise OSError(error.errno, error.strerror, str(path)) from None
        os.close(folder)
    raise OSError(errno.ENOENT, "is removed again and again", str(path))


def _remove_unused(path: Path) -> None:
    """Remove the folder of a start whose processes have all ended."""
    with suppress(OSError):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(folder).st_uid == os.geteuid():
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path, folder)
        finally:
            os.close(folder)


def _remove(path: Path, folder: int) -> None:
    """Remove an open folder, if nothing but decompressed files is in it: another one may have its name by now."""
    for name in filter(NAME.fullmatch, os.listdir(folder)):
        os.unlink(name, dir_fd=folder)
    os.rmdir(path)
