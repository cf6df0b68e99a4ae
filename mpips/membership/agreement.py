"""Agreement on views: of two sides of a network that is split, at most one continues (quorum, lease, fencing).

A rank that MPI reports as dead has ended, and everyone may know it. A rank that is merely silent may live on behind a
failed link, and think the same of this side. So a view that excludes a silent rank, and each view of a new leader, is
first *proposed*, and takes effect once it is accepted by ranks with a majority of the votes of all living ranks.

    candidate                                    every rank with votes
    ask with a new ballot ---------------------> promise to accept no view of a lower ballot,
    count promises <---------------------------- unless a higher ballot was promised, or the leader is heard;
                                                 tell the views known here, published or accepted
    propose a view that follows the latest ----> accept, unless a higher ballot was promised, a later view is
    count acceptances <------------------------- known, or the leader is heard
    majority: publish

This is Paxos, with a register that each proposal changes: CASPaxos, or "vertical" Paxos with views as configurations.
A leader's ballot lasts: its views have one generation of epochs, and it proposes the next ones without asking again,
until a rank has promised a higher ballot.

Why views that take effect form one chain: let a view have taken effect. Each candidate with a higher ballot has
promises of a majority, so of a rank that had accepted that view, or it would have refused to accept it later. So the
candidate knows that view, or a later one, which follows from it likewise.

Ranks vote on the successor of a view that are in the view. A proposed view may have taken effect without the knowledge
of the one that proposes the next, and may have other voters. So a proposed view needs a majority among the voters of
each of its *ancestors*: the last view known to have taken effect, and all proposed ones between them.

Each host has the same number of votes, divided among its ranks that vote: those that are not workers in the layout.
So a host that is lost costs one share, however many ranks it had. Votes never change; dead and excluded ranks have
none.

Between two hosts, or two ranks, there may be no majority: each side has half of the votes. Then the side that can
create the next *lease*, a file in the run's folder (`mpips.rundir.lease`), decides. It names the view that it has
decided, so that a later leader knows whether its view follows that one. A majority creates it too, where the folder can
be reached, so that a rank that was cut off finds out later. A view whose candidate has promises of one half only, and
each view that follows it before it has taken effect, needs a lease, whoever accepts it.

A leader that keeps half of the votes takes the lease, too, to continue. It does so only while it has promised no other
ballot, and publishes a view that says so before any new proposal or change: else the candidate of the other half, whose
view needs this lease, and this leader, which may not pass over that view, would wait for each other. Until that is
published, it promises and accepts nothing.

A rank that dies takes with it what it has accepted, and its vote, without anybody's agreement: else nobody could
continue after the deaths of more than half. So the argument above holds while no voter dies. If voters die on one side
of a split that have just agreed on a view, and the others, who do not know it, see their deaths when the network is
mended, these may agree on another one. Mostly the lease prevents that, where it can be reached.

References: Lamport, "Paxos made simple" (2001); Lamport, Malkhi and Zhou, "Vertical Paxos and primary-backup
replication" (2009); Rystsov, "CASPaxos" (2018); Gray and Cheriton, "Leases" (1989); Burrows, "The Chubby lock service"
(2006); Ongaro and Ousterhout, "In search of an understandable consensus algorithm" (2014).
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mpips.cluster.layout import Layout, Role
from mpips.cluster.view import GENERATION, View


class Outcome(enum.IntEnum):
    """Which part of the living votes agrees, from least to most."""

    MINORITY = 0
    HALF = 1
    """Exactly half: a lease decides."""
    MAJORITY = 2


RENEWED = GENERATION
"""Stands for the number of a view in a lease that a leader has taken to continue at half of the votes."""


class Ballot(NamedTuple):
    """The right of one candidate to propose the views of one generation of epochs; a higher one is greater."""

    generation: int
    leader: int

    @classmethod
    def of(cls, view: View) -> Ballot:
        """Return the ballot under which a view was proposed, or published."""
        return cls(view.epoch // GENERATION, view.leader)


class Identity(NamedTuple):
    """Identifies a view, also among proposals of rivals; a later view is greater.

    >>> Identity(1, 7, 0) > Identity(1, 3, 5) > Identity(0, 0, 9)
    True
    """

    generation: int
    leader: int
    number: int
    """In its generation; or `RENEWED`."""

    @classmethod
    def of(cls, view: View) -> Identity:
        """Return the identity of a view."""
        return cls(*Ballot.of(view), view.epoch % GENERATION)


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
                [
                    whole // shares[host_of[rank]] if rank in host_of else 0
                    for rank in range(len(layout.places))
                ]
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


class Ancestor(NamedTuple):
    """A view from which a proposed one follows: its identity, and its ranks, of which those with votes decide.

    `by_lease`: it needs a lease to take effect.
    """

    identity: Identity
    ranks: tuple[int, ...]
    by_lease: bool = False

    @classmethod
    def of(cls, view: View, by_lease: bool = False) -> Ancestor:
        """Return a view as an ancestor."""
        return cls(Identity.of(view), tuple(view.alive), by_lease)


class Proposed(NamedTuple):
    """A proposed view, or a published one, which has no ancestors: nobody decides on it any more.

    Its first ancestor has taken effect; that of the others is not known. `by_lease`: it needs a lease.
    """

    view: View
    ancestors: tuple[Ancestor, ...] = ()
    by_lease: bool = False

    @property
    def identity(self) -> Identity:
        """The identity of the view."""
        return Identity.of(self.view)

    def has_used(self, holder: Identity) -> bool:
        """Return whether the lease of a view was used before this one, since this one follows from it.

        Views that have taken effect form one chain, so those before the first ancestor are ancestors, too.
        """
        return holder <= self.ancestors[0].identity or any(each.identity == holder for each in self.ancestors)

    def deciding(self, settled: View) -> tuple[Ancestor, ...]:
        """Return the ancestors of a view that follows this one; `settled` is the latest published one."""
        first = max((Ancestor.of(settled), *self.ancestors[:1]), key=lambda each: each.identity)
        later = [*self.ancestors, Ancestor.of(self.view, self.by_lease)]
        return (first, *(each for each in later if each.identity > first.identity))

    def followed_by(self, view: View, settled: View, by_lease: bool) -> Proposed:
        """Return a proposed view that follows this one, and the lease that it needs; see `deciding`."""
        made = replace(view, lease=settled.lease + 1, agreed=view.epoch)
        return Proposed(made, self.deciding(settled), by_lease or self.by_lease)

    def is_void(self, published: View) -> bool:
        """Return whether this view can never take effect: it needs a lease, and does not follow a published one.

        That one's decision has used the lease, or was a majority's. If this view follows from one that needs no lease,
        it is not certain that it cannot take effect.
        """
        agreed = Identity.of(replace(published, epoch=published.agreed))
        if not self.by_lease or not self.ancestors[0].identity < agreed < self.identity:
            return False
        since = [each for each in self.ancestors if each.identity >= agreed]
        follows = any(each.identity[:2] == agreed[:2] for each in since)
        return not follows and all(each.by_lease for each in since)

    def to_meta(self) -> dict[str, Any]:
        """Return the proposal as JSON-able data."""
        return {"view": self.view.to_meta(), "ancestors": self.ancestors, "by_lease": self.by_lease}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Proposed:
        """Return the proposal that `to_meta` encoded."""
        ancestors = tuple(
            [Ancestor(Identity(*each), tuple(ranks), by_lease) for each, ranks, by_lease in meta["ancestors"]]
        )
        return cls(View.from_meta(meta["view"]), ancestors, meta["by_lease"])


class Known(NamedTuple):
    """What one rank knows: its view, the latest proposed one that it has accepted, and the ballot that it promised."""

    view: View
    accepted: Proposed | None = None
    promised: Ballot = Ballot(0, 0)

    @property
    def latest(self) -> Proposed:
        """The later of the two views."""
        accepted = self.accepted
        is_settled = accepted is None or accepted.identity <= Identity.of(self.view)
        return Proposed(self.view) if accepted is None or is_settled else accepted

    def next_ballot(self, rank: int) -> Ballot:
        """Return a ballot for a candidate that is higher than all that are known here."""
        return Ballot(1 + max(self.promised.generation, self.latest.identity.generation), rank)

    def promises(self, ballot: Ballot, hears_leader: bool) -> bool:
        """Return whether this rank promises a ballot. `hears_leader`: whether the leader of its view is heard.

        A ballot of the generation of a known view is refused, so that one leader at most is elected in a generation.
        """
        return (
            ballot > self.promised
            and ballot.generation > self.latest.identity.generation
            and (ballot.leader == self.view.leader or not hears_leader)
        )

    def accepts(self, proposed: Proposed, hears_leader: bool) -> bool:
        """Return whether this rank accepts a proposed view.

        A rank that has promised this ballot has told what it knew. Of any other it must be the latest that it knows.
        Promises of one half only are not enough for that: the view may follow from less than this rank has accepted,
        and never take effect, since another one has the lease. The leader's own proposals do not need its silence.
        """
        ballot, base = Ballot.of(proposed.view), proposed.ancestors[-1].identity
        latest = self.latest.identity
        return (
            ballot >= self.promised
            and (not proposed.by_lease or proposed.has_used(latest) or self.latest.is_void(self.view))
            and proposed.identity > latest
            and Identity.of(self.view) <= base
            and (ballot == self.promised or latest <= base)
            and (ballot.leader == self.view.leader or not hears_leader)
        )

    def supersedes(self, view: View) -> bool:
        """Return whether the accepted view is later than one that was published, which this rank must not adopt."""
        accepted = self.accepted
        return accepted is not None and Identity.of(view) < accepted.identity and not accepted.is_void(view)

    def to_meta(self) -> dict[str, Any]:
        """Return this as JSON-able data."""
        accepted = None if self.accepted is None else self.accepted.to_meta()
        return {"view": self.view.to_meta(), "accepted": accepted, "promised": self.promised}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Known:
        """Return what `to_meta` encoded."""
        accepted = None if meta["accepted"] is None else Proposed.from_meta(meta["accepted"])
        return cls(View.from_meta(meta["view"]), accepted, Ballot(*meta["promised"]))


Living = Callable[[Collection[int]], Collection[int]]
"""Returns those of some ranks that are not known to be dead."""


def least(
    electorate: Electorate,
    agreed: Collection[int],
    ancestors: Iterable[Ancestor],
    living: Living,
) -> Outcome:
    """Return which part of the votes `agreed` have at least, among the living voters of each ancestor."""
    return min(electorate.outcome(agreed, living(each.ranks)) for each in ancestors)


def is_outbid(ballot: Ballot, known: Iterable[Known]) -> bool:
    """Return whether some rank refuses a ballot: it has promised a higher one, or knows a later view of another."""
    return any(
        each.promised > ballot
        or (Ballot.of(each.latest.view) != ballot and each.latest.identity.generation >= ballot.generation)
        for each in known
    )


def base_of(
    ballot: Ballot, known: Mapping[int, Known], settled: View, electorate: Electorate, living: Living
) -> tuple[Proposed, Outcome]:
    """Return the view that one under a ballot must follow, and which part of the votes has promised the ballot.

    `known` is what the candidate and the ranks that have answered know, by rank; `settled` is the candidate's view.
    """
    latest = [each.latest for each in known.values()]
    valid = [each for each in latest if not each.is_void(settled)]
    base = max((Proposed(settled), *valid), key=lambda each: each.identity)
    promised = [rank for rank, each in known.items() if each.promised == ballot]
    return base, least(electorate, promised, base.deciding(settled), living)


def lease_for(
    mine: Identity,
    number: int,
    used: Callable[[Identity], bool],
    take: Callable[[int, Identity], Identity | None],
) -> tuple[int, Identity | None]:
    """Take the lease that decides on a view; return its number, and the view that it has decided.

    Args:
        mine: the view, or `RENEWED`.
        number: the first lease that may decide on it.
        used: whether the lease that a view has taken is used, since `mine` follows from it: then the next one decides.
            One that the same rank has taken, to continue or for a view before this one, is its own.
        take: takes a lease for a view, and returns the view that it was taken for; None: leases cannot be reached.
    """
    while True:
        holder = take(number, mine)
        if holder is None or not used(holder):
            is_own = holder is not None and holder.leader == mine.leader
            return number, mine if is_own else holder
        number += 1
