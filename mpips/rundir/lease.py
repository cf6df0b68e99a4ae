"""Leases: numbered, exclusive decisions in a run's folder, where the votes of ranks cannot decide.

Lease n is a file that only one rank can create. Each view says how many leases its predecessors have used, so sides of
a split network that both try the next one try the same number.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mpips.files.safe_open import create_exclusively

PREFIX = ".lease-"


class Leases:
    """The leases of one start of a run in `folder`; `start` is its id.

    A number would not do: a rank of an earlier start may take a lease after its run has ended.

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
        try:
            taken = create_exclusively(self._path(number), b"")
        except OSError:
            return None
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
