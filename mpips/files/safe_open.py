"""Opens, reads and replaces files after a check of their type; all other modules use it.

A given name may be a named pipe, which blocks at open, a device without an end, a folder, or a symbolic link to
another user's file. Data that a user names may be reached through links (`follow=True`). Files in a run's folder or a
checkpoint were written by mpips as regular files, so a link among them is foreign: it is neither followed nor written
through (`follow=False`).

All functions raise `OSError` with the file's name and a readable `strerror`.
"""

from __future__ import annotations

import codecs
import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

LARGEST_TEXT = 1 << 28
"""The default limit for files that are read completely, in bytes."""

NON_UTF8_NOTE = "# names of files that are not UTF-8 stand here as their bytes\n"
"""The first line of such a TOML text."""

_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a named pipe"),
    (stat.S_ISSOCK, "is a socket"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
)


def open_regular(path: str | Path, *, follow: bool) -> BufferedReader:
    """Open a regular file to read its bytes; never blocks.

    Args:
        path: the file.
        follow: whether `path` may be a symbolic link.

    Raises:
        OSError: it is missing, cannot be read, or is not a regular file; `strerror` says which.
    """
    flags = os.O_RDONLY | (0 if follow else os.O_NOFOLLOW)
    advice = "; it can be read only once, by one process: write it to a file"
    return os.fdopen(_open_checked(path, flags, pipe_advice=advice), "rb")


def _open_checked(path: str | Path, flags: int, *, pipe_advice: str = "") -> int:
    """Open a regular file without blocking; return its descriptor. OSError if it is another kind of file."""
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", str(path)) from None
        # A socket, or a device without a driver.
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "is not a regular file", str(path)) from None
        raise
    try:
        kind = os.fstat(handle).st_mode
        if not stat.S_ISREG(kind):
            found = next((text for test, text in _KINDS if test(kind)), "is something else")
            number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
            advice = pipe_advice if stat.S_ISFIFO(kind) else ""
            raise OSError(number, f"{found}, not a regular file{advice}", str(path))
        os.set_blocking(handle, True)
        return handle
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | Path, *, follow: bool, most: int = LARGEST_TEXT) -> bytes:
    """Read a regular file whole.

    Raises:
        OSError: as `open_regular`; or it holds more than `most` bytes.
    """
    with open_regular(path, follow=follow) as file:
        # The size of a read is allocated at once, so `most` is not read in one call.
        size = os.fstat(file.fileno()).st_size
        found = file.read(size + 1) if size <= most else b""
        # It has grown, or its file system reports a size of 0.
        if size < len(found) <= most:
            found += file.read(most + 1 - len(found))
    if max(size, len(found)) > most:
        raise OSError(errno.EINVAL, f"holds more than the allowed {most:,} bytes", str(path))
    return found


def read_text(path: str | Path, *, follow: bool, most: int = LARGEST_TEXT) -> str:
    """Read a regular file of UTF-8 text whole; as `read_bytes`, and `UnicodeDecodeError` (a ValueError).

    A byte order mark is left out. A text that begins with `NON_UTF8_NOTE` may name files that are not UTF-8, as Python
    names them (surrogateescape).
    """
    found = read_bytes(path, follow=follow, most=most).removeprefix(codecs.BOM_UTF8)
    return found.decode("utf-8", "surrogateescape" if found.startswith(NON_UTF8_NOTE.encode()) else "strict")


def inside(folder: str | Path, name: str) -> Path:
    """Return the path of `name` in a folder; it must be a plain name, not a path or link.

    Args:
        folder: the folder.
        name: an untrusted string.

    Raises:
        OSError: `name` has a separator, is empty, "." or "..", or has a NUL byte; or is a symbolic link.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, f"{name!r} is not a plain file name", str(folder))
    path = Path(folder) / name
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", str(path))
    return path


def open_own(path: str | Path, *, append: bool = False) -> int:
    """Open a growing file of a run to read and write it; return its descriptor. Its folder is created if necessary.

    Args:
        path: the file; truncated unless `append`.
        append: write at its end, also with other writers.

    Raises:
        OSError: as `open_regular`; links are not followed.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if append else 0)
    handle = _open_checked(path, flags)
    try:
        if not append:
            os.ftruncate(handle, 0)
    except OSError as error:
        os.close(handle)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return handle


@contextmanager
def replacing(path: str | Path, mode: str = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Write a file atomically.

    The bytes go to a new file with an unpredictable name in the same folder, which replaces `path` when the block ends
    without an error. If `path` is a symbolic link, the link is replaced, not its target.

    Args:
        path: the file.
        mode: how it is opened; text is UTF-8, with line ends as they are written.
        durable: the file survives a crash of the machine.

    Raises:
        OSError: it cannot be written, or is a device, a named pipe or a socket; names `path`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder, "scores.txt"), "w") as file:
    ...         size = file.write("0.93")
    ...     Path(folder, "scores.txt").read_text()
    '0.93'
    """
    path = Path(path)
    temporary: str | None = None
    try:
        if kind := _protected_kind(path):
            raise OSError(errno.EINVAL, f"{kind}, not a regular file")
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        except OSError as error:
            raise OSError(error.errno, error.strerror) from error
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with os.fdopen(handle, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.filename in (None, temporary):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def create_exclusively(path: str | Path, content: bytes) -> bool:
    """Create a file with its content; return whether this call has created it, and not another one.

    The content is written to another file, which then gets the name by a hard link: no reader finds the file without
    it. Links are atomic on NFS and Lustre, too, where locks may be missing. Where there are no links, the file is
    created by O_EXCL, and is empty for a moment.

    Raises:
        OSError: it cannot be written; then there is no file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [create_exclusively(Path(folder, "owner"), name) for name in (b"a", b"b")], os.listdir(folder)
    ([True, False], ['owner'])
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as file:
            file.write(content)
        try:
            os.link(draft, path)
        except FileExistsError:
            # The answer to a first request may have been lost, and NFS has repeated it.
            return os.path.samefile(draft, path)
        except OSError:
            return _create_without_link(path, content)
        return True
    finally:
        with suppress(OSError):
            draft.unlink()


def _create_without_link(path: Path, content: bytes) -> bool:
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise
    return True


def _protected_kind(path: Path) -> str:
    """Return the kind of a path that a file must not replace, though a privileged user could; "" for all others.

    These are devices, including links in /dev such as /dev/stdout, named pipes and sockets.
    """
    if os.path.realpath(path.parent) == "/dev":
        return "is a device"
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return ""
    # A folder is replaced by no file.
    return next((text for test, text in _KINDS if test(kind) and not stat.S_ISDIR(kind)), "")


def make_folder(path: str | Path, *, exist_ok: bool = False) -> None:
    """Create a folder, and those above it, durably: their names survive a crash of the machine.

    Raises:
        OSError: one cannot be created; FileExistsError: `path` exists, and is no folder, or `exist_ok` is not set.
    """
    path = Path(path)
    missing = [path, *path.parents]
    while len(missing) > 1 and missing[-2].exists():
        missing.pop()
    above = missing[1:] if len(missing) > 1 else [path.parent]
    path.mkdir(parents=True, exist_ok=exist_ok)
    for each in above:
        try:
            sync(each)
        except OSError as error:
            # Some file systems sync no folders, and this user may not read all of them.
            if error.errno == errno.EIO:
                raise


def sync(path: str | Path) -> None:
    """Sync a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the process's umask, by which a temporary file gets the mode of an ordinary one."""
    with suppress(OSError, ValueError, StopIteration), open("/proc/self/status", "rb") as file:
        return int(next(line for line in file if line.startswith(b"Umask:")).split()[1], 8)
    # Files that other threads create meanwhile may get another mode.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
