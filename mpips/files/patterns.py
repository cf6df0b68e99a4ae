"""The files of a pattern, as `glob` finds them, within a number of entries of folders.

A job file of a stranger may have a pattern like `/**/*`, for which `glob` searches all file systems, and follows links
that lead back to a folder above them forty times.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Iterator
from contextlib import suppress

from mpips.errors import InputError

MOST_ENTRIES = 500_000
"""Entries of folders that are looked at for one pattern."""


def matching(pattern: str, most: int = MOST_ENTRIES) -> list[str]:
    """Return the paths that match a pattern, sorted: `*`, `?`, `[abc]`, and `**` for any number of folders.

    Raises:
        InputError: more entries of folders than `most` would have to be looked at.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     os.mkdir(os.path.join(folder, "part"))
    ...     _ = open(os.path.join(folder, "part", "a.svm"), "w").write("+1 3:1")
    ...     [os.path.relpath(path, folder) for path in matching(f"{folder}/**/*.svm")]
    ['part/a.svm']
    """
    # `**` alone also matches the working folder, without a name.
    return sorted(path for path in _Search(pattern, most).paths(pattern) if path)


class _Search:
    """A search for the paths of one pattern, which counts the entries that it looks at."""

    def __init__(self, pattern: str, most: int) -> None:
        self._pattern, self._most, self._seen = pattern, most, 0

    def paths(self, pattern: str) -> Iterator[str]:
        """Yield the paths that match a pattern, or the beginning of one."""
        folder, name = os.path.split(pattern)
        if not glob.has_magic(pattern):
            if os.path.lexists(pattern) if name else os.path.isdir(folder):
                yield pattern
            return
        folders = self.paths(folder) if folder != pattern and glob.has_magic(folder) else iter((folder,))
        for each in folders:
            if name == "**":
                if os.path.isdir(each or os.curdir):
                    yield os.path.join(each, "")
                    yield from self._below(each, ())
            elif glob.has_magic(name):
                fits = fnmatch.filter((entry for entry, _ in self._entries(each)), name)
                yield from (os.path.join(each, entry) for entry in fits if name[0] == "." or entry[0] != ".")
            elif os.path.lexists(path := os.path.join(each, name)) if name else os.path.isdir(each):
                yield path if name else os.path.join(each, "")

    def _below(self, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        """Yield all that is below a folder and not hidden; no folder that is also one of those above it."""
        here = _identity(folder)
        for entry, is_folder in self._entries(folder):
            path = os.path.join(folder, entry)
            if entry[0] == "." or (is_folder and _identity(path) in (*above, here)):
                continue
            yield path
            if is_folder:
                yield from self._below(path, (*above, here))

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Yield the entries of a folder, and which are folders; none of what cannot be listed."""
        with suppress(OSError), os.scandir(folder or os.curdir) as entries:
            for entry in entries:
                self._seen += 1
                if self._seen > self._most:
                    raise InputError(
                        f"{self._pattern!r} was given up after {self._most:,} entries of folders: name a folder "
                        "with fewer files"
                    )
                is_folder = False
                with suppress(OSError):
                    is_folder = entry.is_dir()
                yield entry.name, is_folder


def _identity(folder: str) -> tuple[int, int]:
    with suppress(OSError):
        status = os.stat(folder or os.curdir)
        return status.st_dev, status.st_ino
    return 0, 0
