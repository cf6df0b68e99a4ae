"""The settings of sketch."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_CELLS = 2**32
"""Largest number of cells of a table: workers number them with 32 bits."""


@dataclass(frozen=True)
class Settings:
    """The job file's table [sketch]."""

    depth: int = field(default=4, metadata={"at_least": 1, "at_most": 32})
    """Rows of the table: an estimate is beyond its bound with chance e^-depth."""
    width: int = field(default=1 << 20, metadata={"at_least": 1, "at_most": 2**31 - 1})
    """Columns of the table: that bound is e/width of all that was counted."""
    conservative: bool = False
    """Raise, within a batch, no cell further than needed: estimates are lower, never too low, and take longer."""
    top: int = field(default=100, metadata={"at_least": 0, "at_most": 2**31 - 1})
    """How many of the most frequent keys are listed in the end."""
    exact: int = field(default=1024, metadata={"at_least": 0, "at_most": 2**62})
    """Of so many keys one is counted exactly too, to measure errors; 1: every key, 0: none."""
    batch: int = field(default=1 << 24, metadata={"at_least": 1, "at_most": 2**30})
    """Items that a worker counts by itself before it pushes; of text at most 64 MB."""
    zipf: float = field(default=0.0, metadata={"at_least": 0.0, "at_most": 20.0})
    """Instead of data: generate keys, the k-th of which is drawn with probability proportional to k^-zipf."""
    items: int = field(default=100_000_000, metadata={"at_least": 1, "at_most": 2**62})
    """zipf: how many are drawn."""
    keys: int = field(default=100_000_000, metadata={"at_least": 1, "at_most": 2**48})
    """zipf: how many keys there are to be drawn."""
    hold: bool = False
    """zipf: draw all of it before the clock starts, and keep it in memory."""

    def __post_init__(self) -> None:
        """Raise ValueError for a table that is too large."""
        if self.depth * self.width > MOST_CELLS:
            raise ValueError(
                f"width: depth x width is {self.depth * self.width:,}; at most {MOST_CELLS:,} cells will do"
            )
