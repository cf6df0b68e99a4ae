"""Waits that are long: who waits for what, said by who waits and kept by the leader, which `mpips ctl RUN status` asks.

A rank says so after `PATIENCE` seconds, and again when a wait is twice as long as the last one that it has told people
of: a run that has long calls by its nature is not talked over. Its log and the leader have each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from logging import WARNING

from mpips.cluster.node import IDLE, Node
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

PATIENCE = 10.0
"""Seconds after which a wait is long."""
Rounds = Callable[[], Mapping[Hashable, str]]


class Waits:
    """The long waits of one rank, and at the leader those of all; `say` tells people.

    `rounds` are what else waits at this rank, by name: what a server cannot sum yet.
    """

    def __init__(self, node: Node, say: Callable[[str], None] = lambda text: None) -> None:
        self.node, self._say = node, say
        self.rounds: Rounds = dict
        self._since: dict[Hashable, float] = {}  # of what `rounds` gave
        self._looked = self._told_at = 0.0
        self._next = PATIENCE
        self._noted: Hashable = None  # the wait that stands in the log
        self._told = False  # whether the leader has one of this rank's
        self._others: dict[int, tuple[float, str]] = {}
        node.controls[Command.WAITS] = self._hear
        node.on_tick.append(self.tick)

    def tick(self) -> None:
        """Look whether this rank waits for long, about once a second."""
        now = self.node.van.now()
        if now < self._looked + PATIENCE / 10:
            return
        self._looked = now
        found = self._longest(now)
        if found is None:
            if self._told:
                self._tell("", 0.0)
            return
        name, since, text = found
        seconds = now - since
        if name != self._noted:
            self._noted = name
            note("waits", WARNING, seconds=round(seconds, 1), waits=text)
        if seconds >= self._next:
            self._next = 2 * seconds
            self._say(f"{self.node.who} has waited {seconds:.0f} s for {text}")
        if not self._told or now >= self._told_at + PATIENCE:
            self._told_at = now
            self._tell(text, seconds)

    def _longest(self, now: float) -> tuple[Hashable, float, str] | None:
        """Give what this rank has waited for longest, since when, and in words; None if for nothing for long."""
        rounds = self.rounds()
        self._since = {name: self._since.get(name, now) for name in rounds}
        late = min(self._since, key=lambda name: self._since[name], default=None)
        if late is not None and now - self._since[late] >= PATIENCE:
            return late, self._since[late], rounds[late]
        wait = self.node.waits_since
        if wait is None or now - wait < PATIENCE:
            return None
        text = self.node.waits_for()
        return None if text in ("", IDLE) else (wait, wait, text)

    def _tell(self, text: str, seconds: float) -> None:
        self._told = text != ""
        leader = self.node.view.leader
        if leader == self.node.rank:
            return
        self.node.control(leader, Command.WAITS, {"for": text, "seconds": seconds})

    def _hear(self, message: Message) -> None:
        self._others[message.sender] = self.node.van.now() - message.meta["seconds"], message.meta["for"]

    def lines(self) -> list[str]:
        """Say at the leader who waits for what, a line each."""
        node, now = self.node, self.node.van.now()
        mine = self._longest(now)
        own = {} if mine is None else {node.rank: mine[1:]}
        waits = {rank: each for rank, each in self._others.items() if rank in node.view.alive} | own
        return [
            f"rank {rank} ({node.layout.places[rank]}) has waited {now - since:.0f} s for {text}"
            for rank, (since, text) in sorted(waits.items())
            if text
        ]
