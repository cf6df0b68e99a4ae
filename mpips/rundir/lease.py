"""Leases: numbered, exclusive decisions in a run's folder, where the votes of ranks cannot decide.

Lease n is a file that only one rank can create. Each view says how many leases its predecessors have used, so sides of
a split network that both try the next one try the same number. A file is created by a hard link, or where there are
none by exclusive creation (O_EXCL): both are atomic on NFS and Lustre, where locks may be missing.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

PREFIX = ".lease-"


class Leases:
    """The leases of one start of a run in `folder`; `start` distinguishes them from those of earlier starts.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     one, other = (Leases(Path(folder), "1") for _ in range(2))
    ...     one.take(1), one.take(1), other.take(1), other.is_taken(1), other.take(2)
    (True, True, False, True, True)
    """

    def __init__(self, folder: Path, start: str) -> None:
        self._folder, self._start = folder, start
        # Those of this rank.
        self._held: set[int] = set()

    def _path(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{self._start}-{number}"

    def take(self, number: int) -> bool | None:
        """Create a lease; return whether this rank has it. None: the folder cannot be reached or written."""
        if number in self._held:
            return True
        path = self._path(number)
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            with draft.open("x"):
                pass
            taken = _link(draft, path)
        except OSError:
            taken = None
        with suppress(OSError):
            draft.unlink()
        if taken:
            self._held.add(number)
        return taken

    def is_taken(self, number: int) -> bool | None:
        """Return whether another rank has a lease. None: the folder cannot be reached."""
        if number in self._held:
            return False
        try:
            # A new listing: clients of NFS cache the absence of a name.
            return self._path(number).name in os.listdir(self._folder)
        except OSError:
            return None


def remove(folder: Path) -> None:
    """Remove the leases of earlier starts from a folder."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(PREFIX):
                with suppress(OSError):
                    (folder / name).unlink()


def _link(draft: Path, path: Path) -> bool:
    """Give a file the exclusive name `path`; return whether it has it."""
    try:
        os.link(draft, path)
    except FileExistsError:
        # The answer to a first request was lost, and NFS has repeated it.
        return os.path.samefile(draft, path)
    except OSError:
        # A file system without hard links.
        try:
            with path.open("x"):
                return True
        except FileExistsError:
            return False
    return True
