"""Orders that wait for the program: it carries them out between two steps.

They result from users' commands, signals and the clock, at any time. The program sees them through decisions of the
journal, so that a successor carries out the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class PendingOrders:
    """The orders that the leader has received and the program has not carried out yet."""

    stop: str | None = None
    """The source of the request to stop, or None; it stays."""
    checkpoint: bool = False
    """Whether to write a checkpoint."""
    joining: int = 0
    """The number of spares to make workers."""
    leaving: set[int] = field(default_factory=set)
    """The ranks of workers to make spares."""
