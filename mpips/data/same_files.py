"""Data files must stay the same files while a run reads them, and have the same names and sizes on all hosts.

A file that is replaced by rename is read on by a rank that has it open, and another one is read by a rank that opens it
later: the run would mix the two. (A change of the open file itself: `mpips.data.stream`.) So each rank notes the inode,
size and time of every file before it reads any, and compares them whenever it opens one, and once more when all ranks
have read theirs. A rank compares its files only with what it has seen itself: device and inode numbers differ between
hosts, and so do the times of copies on local disks. Names and sizes do not, and are compared between ranks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from mpips.data.compression import open_data
from mpips.data.spec import DataSpec, as_list, resolve
from mpips.errors import DataError
from mpips.files.mounts import MOUNTS, file_system


class Identity(NamedTuple):
    """The identity of a file on one host; `inode` is 0 where the file system may number files anew."""

    inode: int
    size: int
    mtime_ns: int


class SameFiles:
    """The files of resolved [data], as they are now.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path, new = Path(folder, "a.svm"), Path(folder, "new")
    ...     _ = path.write_text("+1 3:1"), new.write_text("-1 3:1")
    ...     files = SameFiles(resolve(DataSpec(train="a.svm"), folder))
    ...     files.check(str(path))
    ...     _ = new.rename(path)
    ...     try:
    ...         files.check(str(path))
    ...     except DataError as error:
    ...         print(str(error).partition(": ")[2])
    was replaced or changed since this run began; give a run files that stay as they are
    """

    def __init__(self, spec: DataSpec) -> None:
        self._files = _all(spec)
        # Files that cannot be opened are reported by their reader.
        self._found = {path: found for path in self._files if (found := _identity(path)) is not None}

    def check(self, path: str) -> None:
        """Raise `DataError` if a file is another one than at first; not if it is missing."""
        before = self._found.get(path)
        if before is not None and _identity(path) not in (None, before):
            raise DataError(
                f"{path}: was replaced or changed since this run began; give a run files that stay as they are"
            )

    def check_all(self) -> NDArray[np.int64]:
        """Check all files; return a checksum of their names, and the sizes that they had at first: i8[1 + files].

        -1 stands for a file that could not be opened.
        """
        for path in self._found:
            self.check(path)
        sizes = [self._found[path].size if path in self._found else -1 for path in self._files]
        names = "\0".join(os.path.basename(path) for path in self._files)
        return np.array([crc32(os.fsencode(names)), *sizes], np.int64)


def check_sizes(spec: DataSpec, base: str, sizes: Sequence[NDArray[np.int64]]) -> None:
    """Compare what each worker has found.

    Args:
        spec: [data] as in the job file.
        base: the job file's folder.
        sizes: what `SameFiles.check_all` has returned on each worker, i8[1 + files].

    Raises:
        DataError: two workers have found different files, or a file of different sizes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _, spec = Path(folder, "a.svm").write_text("+1 3:1"), DataSpec(train="a.svm")
    ...     sizes = SameFiles(resolve(spec, folder)).check_all()
    ...     check_sizes(spec, folder, [sizes, sizes])
    ...     sizes[1:].tolist()
    [6]
    """
    first = sizes[0]
    for worker, other in enumerate(sizes):
        if len(other) != len(first) or other[0] != first[0]:
            raise DataError(
                f"[data] worker {worker} finds other files than worker 0 ({len(other) - 1:,} and {len(first) - 1:,}); "
                "all hosts need the same"
            )
        if (differ := np.flatnonzero(other != first)).size:
            at = int(differ[0])
            names = _all(resolve(spec, base))
            name = names[at - 1] if len(names) == len(first) - 1 else f"[data] file {at}"
            here, there = (
                f"{size:,} bytes" if size >= 0 else "no readable file" for size in (first[at], other[at])
            )
            raise DataError(
                f"{name}: {here} where worker 0 runs, and {there} where worker {worker} runs; all hosts need the same"
            )


def _all(spec: DataSpec) -> list[str]:
    """Return each file of resolved [data] once."""
    return list(dict.fromkeys([*as_list(spec.train), *as_list(spec.test), *as_list(spec.vocab)]))


def _identity(path: str) -> Identity | None:
    """Return the identity of the file that an open would find now; None if it cannot be opened."""
    try:
        # A client of NFS may answer `stat` from its cache, but not an open.
        with open_data(path) as file:
            found = os.fstat(file.fileno())
    except DataError:
        return None
    inode = found.st_ino if _keeps_numbers(found.st_dev, MOUNTS) else 0
    return Identity(inode, found.st_size, found.st_mtime_ns)


RENUMBERED = "fuse", "vfat", "msdos", "exfat", "cifs", "smb3", "vboxsf"
"""Types of file systems, or their beginnings, that may number files anew while they are mounted."""


@lru_cache
def _keeps_numbers(device: int, mounts: Path) -> bool:
    """Return whether files of a mounted file system keep their inode numbers; those of `RENUMBERED` need not."""
    return not file_system(device, mounts).startswith(RENUMBERED)
