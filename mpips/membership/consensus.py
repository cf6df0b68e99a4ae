"""Consensus: one rank's part in agreeing on a proposed view, as proposer and as acceptor (see `agreement`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from logging import WARNING
from typing import NamedTuple

from mpips.cluster.departure import Fenced
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.membership.agreement import Ballot, Identity, Known, Outcome, Proposed, lease_for, least
from mpips.membership.quorum import Quorum
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

AGAIN = 0.1
"""Seconds after which a proposal is sent again to ranks that have not accepted it: they may hear the leader."""


class Proposal(NamedTuple):
    """This rank's proposed view, and the ranks that have accepted it."""

    proposed: Proposed
    acceptors: frozenset[int]


class Consensus:
    """The promises, proposals and acceptances of one rank.

    `hears_leader()`: whether this rank hears the leader of its view. `answer(rank)` tells a rank the views that this
    one knows of.
    """

    def __init__(
        self, node: Node, quorum: Quorum, hears_leader: Callable[[], bool], answer: Callable[[int], None]
    ) -> None:
        self._node, self._quorum, self._hears_leader, self._answer = node, quorum, hears_leader, answer
        self.proposal: Proposal | None = None
        """This rank's pending proposal."""
        self._accepted: Proposed | None = None
        self._promised = Ballot.of(node.view)
        # The view for which another side of the network has taken the lease that this one needs.
        self._denied: Identity | None = None
        self._sent_at = 0.0
        # Whether it was logged that a proposal waits for votes.
        self._waits = False

    @property
    def known(self) -> Known:
        """What this rank knows of views."""
        return Known(self._node.view, self._accepted, self._promised)

    # --- proposer ------------------------------------------------------------------------------

    def new_ballot(self, others: Iterable[Known]) -> Ballot:
        """Return a ballot of this rank that is higher than all that it and others know, and promise it."""
        self._promised = max(each.next_ballot(self._node.rank) for each in (self.known, *others))
        return self._promised

    def is_outbid(self, ballot: Ballot) -> bool:
        """Return whether this rank has promised a higher ballot."""
        return self._promised > ballot

    def propose(self, proposed: Proposed) -> None:
        """Propose a view; this rank has promised no higher ballot."""
        view = proposed.view
        self._accepted, self._promised = proposed, Ballot.of(view)
        self.proposal = Proposal(proposed, frozenset((self._node.rank,)))
        self._waits = False
        note("propose", epoch=view.epoch, leader=view.leader)
        self._send()

    def _send(self) -> None:
        proposal = self.proposal
        assert proposal is not None
        self._sent_at = self._node.van.now()
        meta = proposal.proposed.to_meta()
        # Also ranks that it excludes: they may be heard again, and the others have too few votes without theirs.
        ranks = {rank for each in proposal.proposed.ancestors for rank in each.ranks}
        for rank in self._quorum.electorate.voters(self._quorum.living(sorted(ranks))):
            if rank not in proposal.acceptors:
                self._node.control(rank, Command.PROPOSE, meta)

    def pursue(self) -> View | None:
        """Return this rank's proposed view if it is agreed on; else send it again from time to time.

        It is withdrawn if another side of the network has taken the lease that it needs.

        Raises:
            Fenced: as that, and its view cannot arrive any more, since the ranks of that side have ended.
        """
        assert self.proposal is not None
        proposed, acceptors = self.proposal
        quorum, view = self._quorum, proposed.view
        outcome = least(quorum.electorate, acceptors, proposed.ancestors, quorum.living)
        if outcome is not Outcome.MINORITY:
            number, holder = lease_for(proposed.identity, view.lease, proposed.has_used, quorum.take)
            if holder not in (None, proposed.identity):
                note("denied", WARNING, epoch=view.epoch, lease=number)
                self.proposal, self._denied = None, holder
                if outcome is Outcome.MAJORITY:
                    raise Fenced
                return None
            if holder is not None or (outcome is Outcome.MAJORITY and not proposed.by_lease):
                self.proposal = None
                return replace(view, lease=number if holder is not None else number - 1)
        if self._node.van.now() - self._sent_at > AGAIN:
            if not self._waits:
                self._waits = True
                note("waits for votes", WARNING, epoch=view.epoch, has=outcome.name)
            self._send()
        return None

    @property
    def denied(self) -> bool:
        """Whether another side of the network has decided, and this rank does not know its view yet."""
        return self._denied is not None

    def withdraw(self) -> None:
        """Withdraw this rank's proposal; it stays accepted."""
        self.proposal = None

    # --- acceptor ------------------------------------------------------------------------------

    @property
    def _is_bound(self) -> bool:
        """Whether this rank may promise and accept nothing: it has a lease to publish, or may take one late."""
        return self._quorum.leases.taking or self._quorum.has_new_lease

    def receive_ballot(self, ballot: Ballot) -> None:
        """Promise a ballot, unless a higher one is promised or the leader is heard."""
        if not self._is_bound and self.known.promises(ballot, self._hears_leader()):
            self._promised = ballot

    def receive_proposal(self, message: Message) -> None:
        """Accept a proposed view, or say why not."""
        proposed = Proposed.from_meta(message.meta)
        known = self.known
        is_same = proposed.identity == known.latest.identity
        if is_same or (not self._is_bound and known.accepts(proposed, self._hears_leader())):
            self.proposal = None
            self._accepted = proposed
            self._promised = max(self._promised, Ballot.of(proposed.view))
            self._node.control(message.sender, Command.ACCEPTED, {"of": proposed.identity})
        else:
            self._answer(message.sender)

    def receive_acceptance(self, message: Message) -> None:
        """Count an acceptance."""
        proposal = self.proposal
        if proposal is not None and Identity(*message.meta["of"]) == proposal.proposed.identity:
            self.proposal = proposal._replace(acceptors=proposal.acceptors | {message.sender})

    def adopted(self, view: View) -> None:
        """Forget what a published view has settled."""
        if not self.known.supersedes(view):
            self._accepted = self.proposal = self._denied = None
