"""The settings of sketch."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_CELLS = 2**32
"""Largest number of cells of a table: workers number them with 32 bits."""


@dataclass(frozen=True)
class Settings:
    """The job file's table [sketch]."""

    depth: int = field(default=4, metadata={"at_least": 1, "at_most": 32})
    """Rows of the table: an estimate exceeds its error bound with probability e^-depth."""
    width: int = field(default=1 << 20, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Columns of the table: the error bound is e/width of the total count."""
    conservative: bool = False
    """Conservative update within a batch: estimates are lower, but never too low, and counting takes longer."""
    top: int = field(default=100, metadata={"at_least": 0, "at_most": 2**31 - 1})
    """Number of the most frequent keys to list at the end."""
    exact: int = field(default=1024, metadata={"at_least": 0, "at_most": 2**62})
    """One in this many keys is also counted exactly, to measure errors; 1: every key, 0: none."""
    batch: int = field(default=1 << 24, metadata={"at_least": 1, "at_most": 2**30})
    """Items of a batch, which a worker counts locally before it pushes; at most 64 MB of text."""
    zipf: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 20.0})
    """Instead of data: draw keys, the k-th most frequent with probability proportional to k^-zipf."""
    items: int = field(default=100_000_000, metadata={"at_least": 1, "at_most": 2**62})
    """zipf: the number of drawn items."""
    keys: int = field(default=100_000_000, metadata={"at_least": 1, "at_most": 2**48})
    """zipf: the number of different keys."""
    hold: bool = False
    """zipf: draw all items before the measurement starts, and keep them in memory."""

    def __post_init__(self) -> None:
        """Raise ValueError for a table that is too large."""
        if self.depth * self.width > MOST_CELLS:
            raise ValueError(
                f"width: depth x width is {self.depth * self.width:,}; it must be at most {MOST_CELLS:,}"
            )
