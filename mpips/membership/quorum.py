"""Quorum: whether this rank's side of the network may continue, by its votes or by a lease (see `agreement`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from logging import WARNING
from typing import Protocol

from mpips.cluster.layout import Role
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.membership.agreement import RENEWED, Ballot, Electorate, Identity, Outcome, lease_for
from mpips.membership.detection import REPORTED_AFTER, Detection, FailureDetector
from mpips.rundir.log import note

HALF_LASTS = 0.5
"""Times the patience for which a leader must have had half of the votes before it takes a lease.

One that is cut off loses them one after another, and has just half for a moment. A candidate waits longer, so that a
leader that lives stays the leader.
"""
LOOK = 0.5
"""Seconds between two accesses to the leases in the run's folder."""


def _identity(text: str | None) -> Identity | None:
    """Return the view that a lease contains; None if it was not written as a whole, or the lease cannot be read."""
    words = (text or "").split()
    try:
        return Identity(*map(int, words)) if len(words) == len(Identity._fields) else None
    except ValueError:
        return None


class Leases(Protocol):
    """The leases of a run; see `mpips.rundir.lease`."""

    @property
    def taking(self) -> bool:
        """Whether a request to take one is not answered: it may have been taken, or may be later."""

    def take(self, number: int, view: str) -> str | None:
        """Take a lease for a view; return the view that it has decided. None: the folder cannot be reached."""

    def holder(self, number: int) -> str | None:
        """Return the view for which a lease was taken, "" if it is free. None: the folder cannot be reached."""


class NoLeases:
    """Leases of a run without a folder: there are none."""

    taking = False

    def take(self, number: int, view: str) -> str | None:
        """Return None."""

    def holder(self, number: int) -> str | None:
        """Return None."""


class Quorum:
    """The quorum of one rank: which votes it has seen, and its lease."""

    def __init__(
        self,
        node: Node,
        detection: Detection,
        leases: Leases,
        say: Callable[[str], None],
    ) -> None:
        self.electorate = Electorate.of(node.layout, node.view.ring.hosts)
        self.leases = leases
        self._node, self._detection, self._say = node, detection, say
        # The number of the lease that this rank has, or 0; whether it still decides, and when that was checked.
        self._lease, self._holds, self._looked_at = 0, False, -LOOK
        # Since when half of the votes have confirmed it, and no more.
        self._half_since = 0.0
        # Since when this rank has been frozen, and whether it has said so.
        self._frozen_since, self._said = 0.0, False
        self._mended_at = -math.inf
        # Until when a candidate excludes no silent ranks, since it did not hear enough.
        self._deaf_until = -math.inf

    def living(self, ranks: Collection[int]) -> list[int]:
        """Return those of some ranks that are not dead."""
        return [rank for rank in ranks if rank not in self._detection.dead]

    def take(self, number: int, view: Identity) -> Identity | None:
        """Take a lease for a view; return the view that it has decided. None: the folder cannot be reached."""
        return _identity(self.leases.take(number, " ".join(map(str, view))))

    def includes(self, agreed: Collection[int]) -> bool:
        """Return whether `agreed` have a majority of the living votes, or half of them and the next lease."""
        outcome = self.electorate.outcome(agreed, self.living(self._node.view.alive))
        if outcome is not Outcome.HALF and not self.has_new_lease:
            self._lease = 0
        return outcome is Outcome.MAJORITY or (outcome is Outcome.HALF and self._has_lease())

    def _has_lease(self) -> bool:
        """Return whether this rank has the next lease, or can take it, and no other has one after it."""
        now, number = self._node.van.now(), self._lease or self._node.view.lease + 1
        if now - self._looked_at >= LOOK:
            self._looked_at = now
            mine = Identity(Ballot.of(self._node.view).generation, self._node.rank, RENEWED)
            number, holder = lease_for(mine, number, self._has_used, self.take)
            self._holds = holder == mine and not self._is_taken_after(number)
            self._lease = number if self._holds else 0
        return self._holds

    def _has_used(self, holder: Identity) -> bool:
        """Return whether the lease of a view was used before this rank's view, which follows from it."""
        return holder <= Identity.of(self._node.view)

    def _is_taken_after(self, number: int) -> bool:
        """Return whether another rank has the lease that decides after one."""
        while True:
            number += 1
            text = self.leases.holder(number)
            if not text:
                return False
            holder = _identity(text)
            if holder is None or (holder.leader != self._node.rank and not self._has_used(holder)):
                return True

    def with_lease(self, view: View) -> View:
        """Return a view that says which lease was taken; a new one has decided it."""
        if self.lease <= view.lease:
            return view
        return replace(view, lease=self.lease, agreed=view.epoch)

    @property
    def can_lease(self) -> bool:
        """Whether the leases can be reached."""
        return self.leases.holder(self.lease + 1) is not None

    @property
    def has_new_lease(self) -> bool:
        """Whether this rank has taken a lease that its view does not know of."""
        return self.lease > self._node.view.lease

    @property
    def lease(self) -> int:
        """The number of leases that this rank knows to be used."""
        return max(self._lease, self._node.view.lease)

    def confirmed(self) -> bool:
        """Return whether a majority has confirmed in the last `patience` seconds that it hears this leader."""
        node, detection = self._node, self._detection
        if detection.detector is None or not node.van.survives or node.policy.is_replay:
            return True
        living, now = self.living(node.view.alive), node.van.now()
        confirming = self._confirming(detection.detector, living, detection.patience)
        if self.electorate.outcome(confirming, living) is not Outcome.HALF:
            self._half_since = now
        elif now - self._half_since < HALF_LASTS * detection.patience and not self._lease:
            return False
        return confirming.issuperset(self.electorate.voters(living)) or self.includes(confirming)

    def _confirming(self, detector: FailureDetector, living: Collection[int], seconds: float) -> set[int]:
        """Return this leader, and those of the living voters that have confirmed in the last `seconds`."""
        others = [rank for rank in self.electorate.voters(living) if rank != self._node.rank]
        return {self._node.rank, *others} - set(detector.unconfirmed(others, seconds))

    @property
    def can_exclude(self) -> bool:
        """Whether this leader may exclude silent ranks: not if it is itself being cut off, or was a moment ago.

        Of ranks that fall silent together, one is the first. So half of the votes must have confirmed this leader since
        then; and after it was frozen, or heard less than half of the votes, silences count from when it is in touch
        again.
        """
        node, detection = self._node, self._detection
        if detection.detector is None:
            return True
        if node.van.now() - self._mended_at < detection.patience or not self.hears_enough:
            return False
        living = self.living(node.view.alive)
        fresh = self._confirming(detection.detector, living, detection.patience / 2)
        return self.electorate.outcome(fresh, living) is not Outcome.MINORITY

    @property
    def hears_enough(self) -> bool:
        """Whether this rank, as candidate or leader, has heard half of the votes for `patience` (`listen`).

        Else it may be cut off itself, and would exclude those that are heard again a moment later.
        """
        return self._node.van.now() >= self._deaf_until

    def listen(self) -> None:
        """Record whether half of the votes are heard, all the time that this rank leads or is a candidate."""
        node, detection = self._node, self._detection
        if detection.detector is None:
            return
        living = self.living(node.view.alive)
        others = [rank for rank in self.electorate.voters(living) if rank != node.rank]
        heard = {node.rank, *others} - set(detection.detector.silent(others, detection.patience / 2))
        if self.electorate.outcome(heard, living) is Outcome.MINORITY:
            self._deaf_until = node.van.now() + detection.patience

    def heard(self) -> bool:
        """Return whether this rank hears a majority."""
        node, detection = self._node, self._detection
        if detection.detector is None or not node.van.survives:
            return True
        return self.includes(set(self.living(node.view.alive)) - detection.silent)

    def is_deposed(self) -> bool:
        """Return whether another side has taken the lease after this rank's view."""
        return self._is_taken_after(self.lease)

    # --- freezing ----------------------------------------------------------------------------

    def should_freeze(self, leading: bool, outbid: bool) -> bool:
        """Return whether this rank may do nothing: as leader unless it is confirmed, else if its leader is silent."""
        node = self._node
        if not node.van.survives or node.policy.is_replay or node.role is None:
            return False
        if leading:
            return outbid or not self.confirmed()
        leader = node.view.leader
        silent = leader in self._detection.silent and leader not in self._detection.dead
        return silent and node.role is not Role.WORKER

    def freeze(self) -> None:
        """Freeze this rank."""
        self._frozen_since, self._said = self._node.van.now(), False
        note("frozen", WARNING, epoch=self._node.view.epoch)
        self._mute(self._node.view.leader == self._node.rank)
        self._node.freeze()

    def _mute(self, muted: bool) -> None:
        """Let the other ranks know, if they hear this leader at all, that it cannot lead."""
        if self._detection.detector is not None:
            self._detection.detector.muted = muted

    def thaw(self) -> None:
        """End the freeze."""
        self._mute(False)
        if not self._lease:
            self._mended_at = self._node.van.now()
        note("thawed", WARNING, epoch=self._node.view.epoch)
        if self._said:
            self._say(f"{self._node.who} is in touch with the others again")
        self._node.thaw()

    def frozen_for(self) -> float:
        """Return for how many seconds this rank has been frozen; say so if it is long."""
        seconds = self._node.van.now() - self._frozen_since
        if seconds > REPORTED_AFTER and not self._said:
            self._said = True
            self._say(
                f"{self._node.who} is cut off from half or more of the ranks that vote: it waits, and writes nothing"
            )
        return seconds
