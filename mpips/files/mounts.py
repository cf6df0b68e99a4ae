"""The types of mounted file systems."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")


def file_system(device: int, mounts: Path = MOUNTS) -> str:
    """Return the type of the file system of a device number, such as "ext4"; "" if it is not known."""
    with suppress(OSError, ValueError, IndexError):
        number = f"{os.major(device)}:{os.minor(device)}"
        for line in mounts.read_text(errors="replace").splitlines():
            fields = line.split(" ")
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return ""
