"""Succession: how one rank becomes the leader after the loss of the present one (see `mpips.membership.membership`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

from mpips.cluster.layout import Cause, Role
from mpips.cluster.node import Node
from mpips.cluster.view import GENERATION, View
from mpips.membership.agreement import Identity, Known, Outcome
from mpips.membership.consensus import Consensus
from mpips.membership.detection import Detection
from mpips.membership.quorum import Quorum
from mpips.transport.message import Command, Message

ASKED_AGAIN = 0.05
"""Seconds after which ranks that hear the leader are first asked again; the pause doubles."""
LONGEST_PAUSE = 1.0
SECOND_TRY = 2.0
"""Times the patience that another candidate has, once a rank has accepted its proposal."""


class _Answer(NamedTuple):
    """A rank's answer to a candidate."""

    known: Known
    hears_leader: bool


class Succession:
    """The candidacy of one rank, while its leader is lost.

    `make(view, lost)` makes the next view from one without the lost ranks; `adopt(view)` adopts a published one that
    this rank has missed, and sends it to all.
    """

    def __init__(
        self,
        node: Node,
        detection: Detection,
        quorum: Quorum,
        consensus: Consensus,
        make: Callable[[View, Iterable[int]], View],
        adopt: Callable[[View], None],
    ) -> None:
        self._node, self._detection, self._quorum, self._consensus = node, detection, quorum, consensus
        self._make, self._adopt = make, adopt
        self.standing = False
        """Whether this rank is a candidate."""
        self.answered = False
        """Whether any rank has answered."""
        self._answers: dict[int, _Answer] = {}
        # Ranks that have answered that they are workers: they hold no shards, whatever this rank's view says.
        self._workers: set[int] = set()
        self._began, self._asked_at, self._asked_all_at, self._pause = 0.0, 0.0, 0.0, ASKED_AGAIN

    def withdraw(self) -> None:
        """End the candidacy: there is a leader."""
        if self.standing:
            self.standing = self.answered = False
            self._answers.clear()
            self._workers.clear()
            self._consensus.withdraw()

    def stand(self, every: float) -> View | None:
        """Be a candidate for another moment; return the view to publish once this rank is elected.

        All ranks are asked every `every` seconds, so that none of them leaves as excluded.
        """
        now = self._node.van.now()
        if self._consensus.denied:
            return None
        if not self.standing:
            self.standing, self._began, self._pause = True, now, ASKED_AGAIN
            self._ask(now, self._quorum.living(self._node.view))
        elif now - self._asked_all_at > every:
            self._ask(now, self._quorum.living(self._node.view))
        if self._consensus.proposal is not None:
            agreed = self._consensus.pursue()
            if agreed is not None or not self._more_are_lost():
                return agreed
        if self._awaited() <= self._answers.keys():
            self._count(now)
        return None

    def _ask(self, now: float, ranks: Iterable[int]) -> None:
        """Ask ranks for their views; tell them whom MPI has reported dead."""
        self._asked_at = self._asked_all_at = now
        dead = [rank for rank, cause in self._detection.dead.items() if cause is Cause.DIED]
        for rank in ranks:
            if rank != self._node.rank:
                self._node.control(rank, Command.ASK_VIEW, {"died": dead})

    def _awaited(self) -> set[int]:
        """Return the ranks that may hold shards, and whose views must be known."""
        view, lost = self._node.view, self._detection.lost
        return {
            rank
            for rank in view.alive
            if rank != self._node.rank and view.roles[rank] is not Role.WORKER and rank not in lost
        } - self._workers

    def _more_are_lost(self) -> bool:
        proposal = self._consensus.proposal
        return proposal is not None and any(
            proposal.view.roles[rank] is not None for rank in self._detection.lost
        )

    def _count(self, now: float) -> None:
        """Propose to lead, if the ranks that do not hear the leader can decide; else ask again later."""
        node, view = self._node, self._node.view
        lost = self._detection.lost
        answers = {rank: each for rank, each in self._answers.items() if rank not in lost}
        agreeing = [node.rank, *(rank for rank, each in answers.items() if not each.hears_leader)]
        if (
            self._quorum.electorate.outcome(agreeing, self._quorum.living(view)) is Outcome.MINORITY
            and self._consensus.proposal is None
        ):
            self._ask_again(now, [rank for rank in self._quorum.living(view) if rank not in agreeing])
            return
        known = [self._consensus.known.latest, *(each.known.latest for each in answers.values())]
        base = max(known, key=Identity.of)
        if base.roles[node.rank] is None:
            # Whoever has proposed it decides.
            return
        own = base.leader in (node.rank, view.leader)
        if not own and base.leader not in lost and now - self._began < SECOND_TRY * self._detection.patience:
            # Its candidate is likely to succeed.
            self._ask_again(now, answers)
            return
        over = (view,) if Identity.of(base) == Identity.of(view) else (view, base)
        if self._consensus.proposal is not None:
            over = (*self._consensus.proposal.over, *over[1:])
        epoch = (base.epoch // GENERATION + 1) * GENERATION
        made = self._make(replace(base, epoch=epoch, lease=base.lease + 1), lost)
        able = [rank for rank in made.succession() if rank not in lost and made.roles[rank] is not None]
        leader = node.rank if node.rank in able else able[0]
        self._consensus.propose(replace(made, leader=leader), base, over)

    def _ask_again(self, now: float, ranks: Iterable[int]) -> None:
        if now - self._asked_at > self._pause:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._ask(now, ranks)

    def receive_answer(self, message: Message) -> None:
        """Receive a rank's answer. A later published view is adopted; it may name another successor."""
        self.answered = True
        meta = message.meta
        if "view" not in meta:
            self._workers.add(message.sender)
            return
        view = View.from_meta(meta["view"])
        accepted = None if meta["accepted"] is None else View.from_meta(meta["accepted"])
        answer = _Answer(Known(view, accepted), bool(meta["hears_leader"]))
        self._answers[message.sender] = answer
        if Identity.of(view) > Identity.of(self._node.view) and not self._consensus.supersedes(view):
            self._adopt(view)
        elif self._consensus.proposal is not None and Identity.of(answer.known.latest) > Identity.of(
            self._consensus.proposal.view
        ):
            self._consensus.withdraw()
