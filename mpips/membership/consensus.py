"""Consensus: one rank's part in agreeing on a proposed view, as proposer and as acceptor (see `agreement`)."""

from __future__ import annotations

from collections.abc import Callable
from logging import WARNING
from typing import Any

from mpips.cluster.departure import Fenced
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.membership.agreement import Identity, Known, Outcome, Proposal
from mpips.membership.quorum import Quorum
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

AGAIN = 0.1
"""Seconds after which a proposal is sent again to ranks that have not accepted it: they may hear the leader."""


class Consensus:
    """The proposals of one rank, and those that it has accepted.

    `hears_leader()`: whether this rank hears the leader of its view. `answer(rank)` tells a rank the views that this
    one knows of.
    """

    def __init__(
        self, node: Node, quorum: Quorum, hears_leader: Callable[[], bool], answer: Callable[[int], None]
    ) -> None:
        self._node, self._quorum, self._hears_leader, self._answer = node, quorum, hears_leader, answer
        self.proposal: Proposal | None = None
        """This rank's pending proposal."""
        self._accepted: View | None = None
        # The last lease that another side of the network has taken before this one could.
        self._denied = 0
        self._sent_at = 0.0
        # Whether it was logged that a proposal waits for votes.
        self._waits = False

    @property
    def known(self) -> Known:
        """The views that this rank knows of."""
        return Known(self._node.view, self._accepted)

    def propose(self, view: View, base: View, over: tuple[View, ...]) -> None:
        """Propose a view that follows from `base`; majorities of the living ranks of each view in `over` decide."""
        self._accepted = view
        self.proposal = Proposal(view, base, over, frozenset((self._node.rank,)))
        self._waits = False
        note("propose", epoch=view.epoch, leader=view.leader)
        self._send()

    def _send(self) -> None:
        proposal = self.proposal
        assert proposal is not None
        self._sent_at = self._node.van.now()
        meta = {"view": proposal.view.to_meta(), "based_on": Identity.of(proposal.base)}
        for rank in self._quorum.electorate.voters(self._quorum.living(proposal.view)):
            if rank not in proposal.acceptors:
                self._node.control(rank, Command.PROPOSE, meta)

    def pursue(self) -> View | None:
        """Return this rank's proposed view if it is agreed on; else send it again from time to time.

        It is withdrawn if another side of the network has taken the lease that it needs.

        Raises:
            Fenced: as that, and its view cannot arrive any more, since the ranks of that side have ended.
        """
        proposal = self.proposal
        assert proposal is not None
        outcome = proposal.outcome(self._quorum.electorate, self._quorum.living)
        if outcome is not Outcome.MINORITY:
            taken = self._quorum.leases.take(proposal.view.lease)
            if taken is False:
                note("denied", WARNING, epoch=proposal.view.epoch, lease=proposal.view.lease)
                self.proposal, self._denied = None, proposal.view.lease
                if outcome is Outcome.MAJORITY:
                    raise Fenced
                return None
            if taken or outcome is Outcome.MAJORITY:
                self.proposal = None
                return proposal.view
        if self._node.van.now() - self._sent_at > AGAIN:
            if not self._waits:
                self._waits = True
                note("waits for votes", WARNING, epoch=proposal.view.epoch, has=outcome.name)
            self._send()
        return None

    @property
    def denied(self) -> bool:
        """Whether another side of the network has decided, and this rank does not know its view yet."""
        return self._denied > self._node.view.lease

    def withdraw(self) -> None:
        """Withdraw this rank's proposal; it stays accepted."""
        self.proposal = None

    # --- messages ----------------------------------------------------------------------------

    def receive_proposal(self, message: Message) -> None:
        """Accept a proposed view, or say why not."""
        view = View.from_meta(message.meta["view"])
        if Identity.of(view) == Identity.of(self.known.latest) or self.known.accepts(
            view, Identity(*message.meta["based_on"]), self._hears_leader()
        ):
            self.proposal = None
            self._accepted = view
            self._node.control(message.sender, Command.ACCEPTED, {"of": Identity.of(view)})
        else:
            self._answer(message.sender)

    def receive_acceptance(self, message: Message) -> None:
        """Count an acceptance."""
        proposal = self.proposal
        if proposal is not None and Identity(*message.meta["of"]) == Identity.of(proposal.view):
            self.proposal = proposal.accepted_by(message.sender)

    def supersedes(self, view: View) -> bool:
        """Return whether this rank has accepted a later view than one that was published, which it must not adopt.

        If the published view has used the lease that the accepted one needs, that one can never take effect.
        """
        accepted = self._accepted
        return (
            accepted is not None and Identity.of(view) < Identity.of(accepted) and view.lease < accepted.lease
        )

    def adopted(self, view: View) -> None:
        """Forget what a published view has settled."""
        if not self.supersedes(view):
            self._accepted = self.proposal = None

    def to_meta(self) -> dict[str, Any]:
        """Return the views that this rank knows of as JSON-able data."""
        accepted = self._accepted
        return {
            "view": self._node.view.to_meta(),
            "accepted": None if accepted is None else accepted.to_meta(),
            "hears_leader": self._hears_leader(),
        }
