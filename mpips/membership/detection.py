"""Detection: which ranks are lost, as far as one rank can know, and which of them the run cannot continue without."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from logging import ERROR, WARNING
from typing import Protocol

from mpips.cluster.layout import Cause
from mpips.cluster.node import Node
from mpips.cluster.view import NOBODY, survives
from mpips.errors import ShardLost
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

REPORTED_AFTER = 10.0
"""Seconds of silence of an indispensable rank after which a message is printed."""


class FailureDetector(Protocol):
    """Detects silent ranks; see `mpips.membership.heartbeat`."""

    targets: Sequence[int]
    seldom: Sequence[int]
    follows: int
    muted: bool
    hears_muted: bool

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that were silent for `patience` seconds."""

    def unconfirmed(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have not confirmed in the last `patience` seconds that they follow this one."""

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have not confirmed in the last `patience` seconds that they hear this one."""


class Detection:
    """The lost ranks that one rank knows of.

    `detector` detects silent ranks (None: none is detected) after `patience` seconds times `oversubscription()`. An
    indispensable one ends the run after `give_up` seconds (0: never); `say` prints that it is waited for.
    """

    def __init__(
        self,
        node: Node,
        detector: FailureDetector | None,
        patience: float,
        give_up: float,
        say: Callable[[str], None],
        oversubscription: Callable[[], float],
    ) -> None:
        self.detector, self.patience, self.give_up = detector, patience, give_up
        self._node, self._say, self._oversubscription = node, say, oversubscription
        self.dead: dict[int, Cause] = {}
        """The ranks that MPI has reported, or that a view excludes."""
        self.silent: set[int] = set()
        """The watched ranks that are silent now."""
        self.hung: set[int] = set()
        """Those of them that the run can continue without."""
        self.gave_up = False
        """Whether the run ends because an indispensable rank hangs."""
        self.waiting_for: set[int] = set()
        """The indispensable ranks of which a message was printed."""
        # Deaths that other ranks have reported since the last look.
        self._told: list[int] = []
        # The leader whose view arrived last, and when.
        self._leader, self._led_at = NOBODY, 0.0

    @property
    def lost(self) -> dict[int, Cause]:
        """All ranks that the run can and must continue without, and the cause."""
        return {**dict.fromkeys(self.hung, Cause.HUNG), **self.dead}

    def look(self, watched: Collection[int], hearers: Collection[int]) -> list[int]:
        """Record the ranks that are lost; return those that MPI has reported now, here or to another rank.

        `watched` are those that send heartbeats to this rank, `hearers` those of them that it sends some to.
        """
        failed, self._told = [*self._node.van.failed(), *self._told], []
        for rank in failed:
            self.died(rank)
        self.hung.clear()
        self.silent = set(self._silent(watched, hearers))
        for rank in sorted(self.silent - self.dead.keys()):
            if self._dispensable(rank) and not self._has_led(rank):
                self.hung.add(rank)
        return failed

    def led(self, leader: int) -> None:
        """Record that a leader's view has arrived from it."""
        self._leader, self._led_at = leader, self._node.van.now()

    def _has_led(self, rank: int) -> bool:
        """Return whether a rank has published a view less than `patience` ago.

        It may have been muted until then, as one that could not lead: to whom it is new as leader, it was silent.
        """
        return rank == self._leader and self._node.van.now() - self._led_at < self.patience

    def died(self, rank: int, cause: Cause = Cause.DIED) -> None:
        """Record that a rank has ended, or is excluded."""
        self.dead.setdefault(rank, cause)
        self._node.departure.record_lost(rank)

    def tell(self, rank: int, died: Iterable[int]) -> None:
        """Tell a rank of deaths: the leader, or who may become it, may have no connection to who died."""
        roles = self._node.view.roles
        unknown = [each for each in died if roles[each] is not None and each != rank]
        if unknown and rank not in self.dead:
            self._node.control(rank, Command.DIED, {"ranks": unknown})

    def receive_deaths(self, message: Message) -> None:
        """Receive the deaths that another rank reports, unless its own was reported before.

        If only the connection of two ranks breaks, they report each other: the run needs to lose one of them only.
        """
        if message.sender in (*self._told, *self.dead):
            return
        self._told += [rank for rank in message.meta["ranks"] if rank not in (self._node.rank, *self.dead)]

    def _silent(self, watched: Collection[int], hearers: Collection[int]) -> list[int]:
        """List the watched ranks that are silent or deaf; on oversubscribed cores, where all are slow, later."""
        detector, patience = self.detector, self.patience
        if detector is None:
            return []
        silent, deaf = detector.silent(watched, patience), detector.deaf(hearers, patience)
        if not silent and not deaf:
            return []
        patience *= self._oversubscription()
        return detector.silent(silent, patience) + detector.deaf(deaf, patience)

    def _dispensable(self, rank: int) -> bool:
        """Return whether the run can continue without a rank that hangs; if not, it waits for it."""
        view = self._node.view
        if view.roles[rank] is None or not self._node.van.survives:
            return False
        gone = self.dead.keys() | self.hung
        # Where keys are lost already, no rank that resumes helps.
        return survives(view, gone | {rank}) or not survives(view, gone)

    def await_needed(self, decides: Callable[[int], bool]) -> None:
        """Wait for indispensable ranks that hang, and print a message about each.

        Only where `decides(number of them)`: this rank has to decide on them, and is certain that it is not itself
        excluded.

        Raises:
            ShardLost: one of them has been silent for `give_up` seconds.
        """
        needed = self.silent - self.hung - self.dead.keys()
        if self.detector is None or self.gave_up or not (needed or self.waiting_for):
            return
        waiting_for = self._silent_for(needed, REPORTED_AFTER, decides)
        limit = f"at most {self.give_up:g} s ([heartbeat] give_up)" if self.give_up else "without limit"
        for rank in sorted(waiting_for - self.waiting_for):
            note("silent", WARNING, silent=rank)
            self._say(
                f"{self._name(rank)} sends no heartbeats, and the run cannot continue without it: waiting, {limit}"
            )
        for rank in sorted(self.waiting_for - waiting_for - self.dead.keys()):
            self._say(f"{self._name(rank)} sends heartbeats again")
        self.waiting_for = waiting_for

    def given_up(self, decides: Callable[[int], bool]) -> set[int]:
        """Return the indispensable ranks that have been silent for `give_up` seconds."""
        needed = self.silent - self.hung - self.dead.keys()
        return self._silent_for(needed, self.give_up, decides) if self.give_up and needed else set()

    def _silent_for(
        self, needed: Collection[int], seconds: float, decides: Callable[[int], bool]
    ) -> set[int]:
        assert self.detector is not None
        found = set(self.detector.silent(needed, seconds))
        return found if decides(len(found)) else set()

    def end_for(self, hung: Collection[int]) -> ShardLost:
        """Return the error that ends the run, because of indispensable ranks that hang."""
        self.gave_up = True
        for rank in hung:
            note("lost", ERROR, lost=rank, cause=Cause.HUNG, error=Cause.HUNG.text, fatal=True)
            self._node.departure.record_lost(rank)
        return ShardLost(
            f"{', '.join(map(self._name, sorted(hung)))}: no heartbeat for {self.give_up:g} s ([heartbeat] "
            "give_up), and no other rank can replace it: resume from the last checkpoint with --resume latest"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self._node.layout.places[rank]})"
