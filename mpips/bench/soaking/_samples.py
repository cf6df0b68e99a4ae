"""Samples of what processes hold, and whether it grows: memory, open files, and shared memory. See `soak`."""

from __future__ import annotations

import os
from collections import Counter
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
    """The samples of one rank of a leg: of one process."""

    rank: int
    roles: list[str] = field(default_factory=list)
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

    def add(self, now: float, role: str, pid: int) -> None:
        """Sample a process; nothing if it has ended."""
        sizes = resident(pid)
        with suppress(OSError):
            files = len(os.listdir(f"/proc/{pid}/fd"))
            if sizes:
                self.roles.append(role)
                self.times.append(now)
                self.rss.append(sizes["Rss"])
                self.anonymous.append(sizes["Anonymous"])
                self.files.append(files)
                self.shared.append(len(shared_memory([pid])))

    def warm(self, count: int, begin: float) -> list[list[int]]:
        """Return the numbers of the samples from the time `begin` on, without the first `count` in any role.

        They are in runs of `count` or more, in which the rank has one role, perhaps several times, but no role that is
        new to it in between: the first minutes in a role load what it needs, which stays afterwards.
        """
        seen, runs = Counter[str](), dict[tuple[str, int], list[int]]()
        for at, (role, time) in enumerate(zip(self.roles, self.times, strict=True)):
            seen[role] += 1
            if seen[role] > count and time >= begin:
                news = sum(min(number, count) for number in seen.values())
                runs.setdefault((role, news), []).append(at)
        return [run for run in runs.values() if len(run) >= count]


def resident(pid: int) -> dict[str, int]:
    """Return sizes of a process in bytes by their names in /proc/PID/smaps_rollup; {} if it has ended."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
        return {name: int(rest.split()[0]) * KIB for name, _, rest in (line.partition(":") for line in lines)}
    return {}


def slope(series: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Return the median slope of all pairs of samples in one series of (times, values), per unit of time.

    A few steps do not change it (Theil and Sen).

    >>> slope([([0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 4.0, 90.0, 8.0]), ([5.0, 6.0], [70.0, 72.0])])
    2.0
    """
    slopes = []
    for times, values in series:
        every = -(-len(times) // MOST_PAIRS) or 1
        points = zip(times[::every], values[::every], strict=True)
        slopes += [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return median(slopes) if slopes else 0.0


def growth(values: Sequence[float]) -> float:
    """Return by how much the median of the last third of samples is above that of the first.

    >>> growth([1, 1, 9, 5, 2, 2])
    1.0
    """
    third = len(values) // 3
    return median(values[-third:]) - median(values[:third]) if third else 0.0
