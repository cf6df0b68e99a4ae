"""Injected failures of the network between ranks: which links keep their messages back, and when.

Each rank knows the whole plan, and drops its own heartbeats and keeps back its own messages on the links that have
failed. They are sent when the network is whole again, as TCP has it. Times count from the start of each rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mpips.typed import LONGEST, MOST


@dataclass(frozen=True)
class Split:
    """A failure of the network between some ranks and all others."""

    at_seconds: float = field(default=1.0, metadata={"at_least": 0, "at_most": LONGEST})
    """Seconds after the start."""
    seconds: float = field(default=1.0, metadata={"above": 0, "at_most": LONGEST})
    """How long it lasts."""
    ranks: tuple[int, ...] = ()
    """These ranks on one side: `[3]` for one rank, `[0, 3]` for the first scheduler and another one."""
    host: int = field(default=-1, metadata={"at_least": -1, "at_most": MOST})
    """All ranks of a host on one side: hosts are numbered from 0, by their lowest ranks, and a number beyond the
    last host means the last; -1: `ranks` are given."""
    way: Literal["both", "from", "to"] = "both"
    """The messages that are kept back: in both directions, only those from this side, or only those to it."""
    times: int = field(default=1, metadata={"at_least": 1, "at_most": MOST})
    """How often it happens, with pauses of `seconds` between: more than 1 is a flapping link."""

    def __post_init__(self) -> None:
        if bool(self.ranks) == (self.host >= 0):
            raise ValueError("either ranks or host must be given, not both")

    def is_on(self, seconds: float) -> bool:
        """Return whether the network is split so many seconds after the start.

        >>> flapping = Split(1.0, 0.5, (3,), times=2)
        >>> [flapping.is_on(at) for at in (0.9, 1.2, 1.7, 2.2, 2.7, 3.2)]
        [False, True, False, True, False, False]
        """
        turn, part = divmod(seconds - self.at_seconds, 2 * self.seconds)
        return 0 <= turn < self.times and part < self.seconds


class Splits:
    """The links from one rank that have failed; `hosts` are the host names of all ranks."""

    def __init__(
        self, specs: Sequence[Split], rank: int, hosts: Sequence[str], now: Callable[[], float]
    ) -> None:
        self._now, self._start = now, now()
        order = list(dict.fromkeys(hosts))
        # By split: the ranks that messages of this one do not reach.
        self._kept: list[tuple[Split, frozenset[int]]] = []
        for spec in specs:
            side = set(spec.ranks)
            if spec.host >= 0:
                named = order[min(spec.host, len(order) - 1)]
                side = {each for each, host in enumerate(hosts) if host == named}
            inside = rank in side
            if spec.way != ("to" if inside else "from"):
                others = set(range(len(hosts))) - side if inside else side
                self._kept.append((spec, frozenset(others)))

    def keeps(self, dest: int) -> bool:
        """Return whether messages to a rank are kept back now."""
        seconds = self._now() - self._start
        return any(dest in others and spec.is_on(seconds) for spec, others in self._kept)
