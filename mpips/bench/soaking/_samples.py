"""Samples of what processes hold, and whether it grows: memory, open files, and shared memory. See `soak`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

from mpips.bench.failures._killing import shared_memory

KIB = 1024
MOST_PAIRS = 400
"""Samples of a slope, at most: the median is over all pairs."""


@dataclass
class Held:
    """The samples of one rank while it has one role, perhaps several times."""

    rank: int
    role: str
    times: list[float] = field(default_factory=list)
    """Seconds."""
    rss: list[int] = field(default_factory=list)
    """Resident set size, bytes. The proportional size changes with the number of processes that share pages."""
    anonymous: list[int] = field(default_factory=list)
    """The part of it that is the process's own, bytes."""
    files: list[int] = field(default_factory=list)
    """Number of open files."""
    shared: list[int] = field(default_factory=list)
    """Number of mapped files in /dev/shm."""

    def add(self, now: float, pid: int) -> None:
        """Sample a process; nothing if it has ended."""
        sizes = resident(pid)
        with suppress(OSError):
            files = len(os.listdir(f"/proc/{pid}/fd"))
            if sizes:
                self.times.append(now)
                self.rss.append(sizes["Rss"])
                self.anonymous.append(sizes["Anonymous"])
                self.files.append(files)
                self.shared.append(len(shared_memory([pid])))

    def warm(self, count: int) -> Held:
        """Return the samples without the first ones."""
        return Held(
            self.rank,
            self.role,
            self.times[count:],
            self.rss[count:],
            self.anonymous[count:],
            self.files[count:],
            self.shared[count:],
        )


def resident(pid: int) -> dict[str, int]:
    """Return sizes of a process in bytes by their names in /proc/PID/smaps_rollup; {} if it has ended."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        return {name: int(rest.split()[0]) * KIB for name, _, rest in (line.partition(":") for line in lines)}
    return {}


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the median slope of all pairs of samples (Theil and Sen), per unit of time: few steps do not change it.

    >>> slope([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 4.0, 90.0, 8.0])
    2.0
    """
    every = -(-len(times) // MOST_PAIRS)
    points = list(zip(times[::every], values[::every], strict=True)) if every else []
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return median(slopes) if slopes else 0.0


def growth(values: Sequence[float]) -> float:
    """Return by how much the median of the last third of samples is above that of the first.

    >>> growth([1, 1, 9, 5, 2, 2])
    1.0
    """
    third = len(values) // 3
    return median(values[-third:]) - median(values[:third]) if third else 0.0


def existing(paths: Iterable[Path]) -> list[Path]:
    """Return the paths that exist, sorted."""
    return sorted(path for path in paths if path.exists())
