"""Listings of folders that other hosts write to."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

REFRESH = 2.0
"""Seconds after which a listing that the file system's client may have cached is refreshed."""


def refresh(folder: Path) -> None:
    """Set a folder's modification time: a client of NFS drops its listing, and the names that it knows not to exist.

    It would keep them for up to a minute.
    """
    with suppress(OSError):
        os.utime(folder)
