"""Agreement on views: of two sides of a network that is split, at most one continues (quorum, lease, fencing).

A rank that MPI reports as dead has ended, and everyone may know it. A rank that is merely silent may live on behind a
failed link, and think the same of this side. So a view that excludes a silent rank, and each view of a new leader, is
first *proposed*, and takes effect once it is accepted by ranks with a majority of the votes of all living ranks.

    leader or candidate                          every rank with votes
    propose a view, based on the latest one ---> accept, if that is the latest one known here,
                                                 and the leader is not heard
    count acceptances <------------------------- accepted, or: my latest view is ..., and my leader is alive
    majority: publish

An accepted view is the latest one known to its acceptor, so each later proposal that it accepts is based on it, or on a
later one. Two views that were each accepted by a majority share an acceptor: so the second is based on the first, and
views that take effect form one chain. (This is single-decree Paxos per view, in the form of a compare-and-swap on a
majority.)

Known fault: the argument needs that candidates propose one after the other. A rank that is asked for its views promises
nothing, as it would in the first phase of Paxos. If two candidates ask before either proposes, the view of the one may
take effect, and a third candidate may follow the view of the other. Its candidate waits for all ranks that may hold
shards, and gives the other one `SECOND_TRY` patiences, so this needs a third failure within seconds.

Each host has the same number of votes, divided among its ranks that vote: those that are not workers in the layout.
So a host that is lost costs one share, however many ranks it had. Votes never change; dead and excluded ranks have
none.

Between two hosts, or two ranks, there may be no majority: each side has half of the votes. Then the side that can
create the next *lease*, a file in the run's folder (`mpips.rundir.lease`), decides. A majority creates it too, where
the folder can be reached, so that a rank that was cut off finds out later.

References: Lamport, "Paxos made simple" (2001); Gray and Cheriton, "Leases" (1989); Burrows, "The Chubby lock service"
(2006); Ongaro and Ousterhout, "In search of an understandable consensus algorithm" (2014).
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple

from mpips.cluster.layout import Layout, Role
from mpips.cluster.view import View


class Outcome(enum.IntEnum):
    """Which part of the living votes agrees, from least to most."""

    MINORITY = 0
    HALF = 1
    """Exactly half: a lease decides."""
    MAJORITY = 2


class Identity(NamedTuple):
    """Identifies a view, also among proposals of rivals; a later view is greater."""

    epoch: int
    leader: int

    @classmethod
    def of(cls, view: View) -> Identity:
        """Return the identity of a view."""
        return cls(view.epoch, view.leader)


class Electorate(NamedTuple):
    """The votes of each rank, by rank; see the module.

    >>> electorate = Electorate((3, 3, 2, 2, 2))
    >>> electorate.outcome([0, 1], living=range(5)).name, electorate.outcome([0, 2, 3], living=range(5)).name
    ('HALF', 'MAJORITY')
    """

    votes: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout, hosts: Sequence[Hashable] = ()) -> Electorate:
        """Return the electorate of a layout whose ranks are on these hosts (empty: all on one)."""
        voters = [place.rank for place in layout.places if place.role is not Role.WORKER]
        host_of = {rank: hosts[rank] if hosts else 0 for rank in voters}
        shares = Counter(host_of.values())
        whole = math.lcm(*shares.values())
        return cls(
            tuple(
                whole // shares[host_of[rank]] if rank in host_of else 0 for rank in range(len(layout.places))
            )
        )

    def voters(self, ranks: Collection[int]) -> list[int]:
        """Return those of some ranks that have votes."""
        return [rank for rank in ranks if self.votes[rank]]

    def outcome(self, agreed: Collection[int], living: Collection[int]) -> Outcome:
        """Return which part of the votes of the `living` ranks `agreed` have."""
        whole = sum(self.votes[rank] for rank in living)
        part = sum(self.votes[rank] for rank in set(agreed) & set(living))
        return Outcome(1 + (2 * part > whole) - (2 * part < whole))


class Known(NamedTuple):
    """What one rank knows of views: the one that it has, and the latest proposed one that it has accepted since."""

    view: View
    accepted: View | None = None

    @property
    def latest(self) -> View:
        """The later of the two."""
        accepted = self.accepted
        return self.view if accepted is None or Identity.of(accepted) <= Identity.of(self.view) else accepted

    def accepts(self, proposed: View, based_on: Identity, hears_leader: bool) -> bool:
        """Return whether this rank accepts a proposed view.

        `based_on` is the view from which the proposed one follows; `hears_leader`: whether the leader of this rank's
        view is heard. Its own proposals do not need its silence.
        """
        own = proposed.leader == self.view.leader
        return (
            Identity.of(self.latest) <= based_on
            and Identity.of(proposed) > based_on
            and (own or not hears_leader)
        )


class Proposal(NamedTuple):
    """A proposed view, at the rank that proposes it: what it is based on, and the ranks that have accepted it.

    `over` are the views whose electorates decide: the last one known to have taken effect, and those that were proposed
    since and that it follows from, since nobody can know whether they have taken effect.
    """

    view: View
    base: View
    over: tuple[View, ...]
    acceptors: frozenset[int]

    def outcome(self, electorate: Electorate, living: Callable[[View], Collection[int]]) -> Outcome:
        """Return which part of the living votes of each electorate has accepted it, at least."""
        return min(electorate.outcome(self.acceptors, living(view)) for view in self.over)

    def accepted_by(self, rank: int) -> Proposal:
        """Return the proposal with one more acceptor."""
        return self._replace(acceptors=self.acceptors | {rank})
