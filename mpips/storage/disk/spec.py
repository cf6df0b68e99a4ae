"""The job file's table of rows larger than memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from mpips import typed

LEAST = 1 << 22
"""The least memory of a store: 4 MiB."""


@dataclass(frozen=True)
class StoreSpec:
    """Tables larger than memory: rows on a disk of each server's node."""

    memory: float = field(
        default=0.0, metadata={"or_zero": True, "at_least": LEAST, "at_most": typed.LARGEST}
    )
    """Bytes of memory for rows, update state and key index of each server rank; rows that are used less are in a file
    of a disk of its node. 0: all are in memory."""
    folder: str = ""
    """The folder of these files, on each node, not in memory (tmpfs); default: $TMPDIR, or /tmp. They have no names,
    and vanish with the process."""
