"""The output of ranks that outlive their launcher: files in the run's folder, which `mpips run` follows and prints.

    RUN/output/host-0003.out, host-0003.err     stdout and stderr of the ranks of one host; 3 is the lowest of them

The ranks of a host append to the same two files, as they write to one pipe of their launcher otherwise. Files of an
earlier start are continued; a follower begins at their end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mpips.files.listing import REFRESH, refresh
from mpips.files.safe_open import open_own, open_regular

FOLDER = "output"
STREAMS = {".out": 1, ".err": 2}
"""The descriptors of the streams, by the end of a file's name."""
PERIOD = 0.1
"""Seconds between two looks of a follower, at least."""
SHARE = 0.05
"""The largest share of a follower's time that it looks, however many files there are."""
PIECE = 1 << 20
"""Bytes that are read of a file at once."""
PIECES = 16
"""Pieces of a file in one look, at most: where the reader of the output is slow, files grow meanwhile."""


def redirect(run: Path, first: int) -> None:
    """Write the standard streams of this process to the files of its host, of which `first` is the lowest rank.

    Raises:
        OSError: they cannot be opened; the streams are then unchanged.
    """
    handles = {
        stream: open_own(run / FOLDER / f"host-{first:04d}{end}", append=True)
        for end, stream in STREAMS.items()
    }
    sys.stdout.flush()
    sys.stderr.flush()
    for stream, handle in handles.items():
        os.dup2(handle, stream)
        os.close(handle)


class Follower:
    """Reads what ranks append to the files of a run from now on."""

    def __init__(self, run: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._now, self._next = run / FOLDER, now, 0.0
        # When the files of other hosts are looked for again.
        self._refresh = 0.0
        self._read = {name: self._size(name) for name in self._names()}

    def poll(self, at_once: bool = False) -> list[tuple[int, bytes]]:
        """Return (stream, bytes) of what is new, or its beginning; looks after some time only, unless `at_once`."""
        began = self._now()
        if began < self._next and not at_once:
            return []
        if began >= self._refresh or at_once:
            self._refresh = began + REFRESH
            refresh(self._folder)
        found = [(STREAMS[name[-4:]], data) for name in self._names() for data in self._new(name)]
        self._next = began + max(PERIOD, (self._now() - began) / SHARE)
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._folder) if name[-4:] in STREAMS)
        except OSError:
            return []

    def _size(self, name: str) -> int:
        # Another user may have put anything there.
        with suppress(OSError):
            return (self._folder / name).lstat().st_size
        return 0

    def _new(self, name: str) -> list[bytes]:
        found: list[bytes] = []
        # Opened at each look: clients of NFS check then what other hosts have written.
        with suppress(OSError), open_regular(self._folder / name, follow=False) as file:
            file.seek(self._read.get(name, 0))
            while len(found) < PIECES and (data := file.read(PIECE)):
                found.append(data)
                self._read[name] = self._read.get(name, 0) + len(data)
        return found
