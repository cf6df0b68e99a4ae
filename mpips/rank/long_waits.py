"""Long waits: each rank reports what it waits for; the leader collects the reports for `mpips ctl RUN status`.

A rank reports after `PATIENCE` seconds, and prints a message again when a wait is twice as long as the last printed
one, so that a run with long calls prints few messages. The log and the leader receive every report.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from logging import WARNING

from mpips.cluster.node import IDLE, Node
from mpips.cluster.registration import Registration
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

PATIENCE = 10.0
"""Seconds after which a wait is reported."""
EARLY = 0.7
"""Seconds after which the leader prints the first wait of the run: it reads its data, and has shown nothing yet."""
Rounds = Callable[[], Mapping[Hashable, str]]


class LongWaits:
    """The long waits of one rank, and at the leader those of all ranks; `say` prints a line.

    `rounds` returns other waits at this rank, by name: the incomplete aggregation rounds of a server. With `early`, the
    first wait of the run is printed early.
    """

    def __init__(
        self,
        node: Node,
        say: Callable[[str], None] = lambda text: None,
        rounds: Rounds = dict,
        early: bool = False,
    ) -> None:
        self.node, self._say, self._rounds, self._early = node, say, rounds, early
        # Start of each wait that `rounds` returned.
        self._since: dict[Hashable, float] = {}
        self._checked_at = self._reported_at = 0.0
        # A message is printed when a wait is as long as this.
        self._next = PATIENCE
        # The last wait written to the log.
        self._logged: Hashable = None
        # Whether the leader has a wait of this rank.
        self._reported = False
        # At the leader: start and description of the other ranks' waits; "" if a wait is over.
        self._others: dict[int, tuple[float, str]] = {}
        node.register(Registration(controls={Command.WAITS: self._receive}, ticks=(self.tick,)))

    def tick(self) -> None:
        """Report a long wait of this rank; checks once a second."""
        now = self.node.van.now()
        if self._early and self._waited(now, EARLY) is not None:
            self._early = False
            self._say(f"{self.node.who} waits for {self.node.waits_for()}")
        if now < self._checked_at + PATIENCE / 10:
            return
        self._checked_at = now
        found = self._longest(now)
        if found is None:
            if self._reported:
                self._report("", 0.0)
            return
        name, since, text = found
        seconds = now - since
        if name != self._logged:
            self._logged = name
            note("waits", WARNING, seconds=round(seconds, 1), waits=text)
        if seconds >= self._next:
            self._next = 2 * seconds
            self._say(f"{self.node.who} has waited {seconds:.0f} s for {text}")
        if not self._reported or now >= self._reported_at + PATIENCE:
            self._reported_at = now
            self._report(text, seconds)

    def _longest(self, now: float) -> tuple[Hashable, float, str] | None:
        """Return (name, start, description) of this rank's longest wait; None if no wait is long."""
        rounds = self._rounds()
        self._since = {name: self._since.get(name, now) for name in rounds}
        oldest = min(self._since, key=lambda name: self._since[name], default=None)
        if oldest is not None and now - self._since[oldest] >= PATIENCE:
            return oldest, self._since[oldest], rounds[oldest]
        return self._waited(now, PATIENCE)

    def _waited(self, now: float, patience: float) -> tuple[Hashable, float, str] | None:
        """Return (name, start, description) of what this rank waits for; None if it has not for `patience` seconds."""
        wait = self.node.time_use.since
        if wait is None or now - wait < patience:
            return None
        text = self.node.waits_for()
        return None if text in ("", IDLE) else (wait, wait, text)

    def _report(self, text: str, seconds: float) -> None:
        self._reported = text != ""
        leader = self.node.view.leader
        if leader == self.node.rank:
            return
        self.node.control(leader, Command.WAITS, {"for": text, "seconds": seconds})

    def _receive(self, message: Message) -> None:
        self._others[message.sender] = self.node.van.now() - message.meta["seconds"], message.meta["for"]

    def lines(self) -> list[str]:
        """Return at the leader a line for each rank that waits for long."""
        node, now = self.node, self.node.van.now()
        mine = self._longest(now)
        own = {} if mine is None else {node.rank: mine[1:]}
        waits = {rank: each for rank, each in self._others.items() if rank in node.view.alive} | own
        return [
            f"rank {rank} ({node.layout.places[rank]}) has waited {now - since:.0f} s for {text}"
            for rank, (since, text) in sorted(waits.items())
            if text
        ]
