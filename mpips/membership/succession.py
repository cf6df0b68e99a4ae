"""Succession: how one rank becomes the leader after the loss of the present one (see `mpips.membership.membership`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from mpips.cluster.departure import Fenced
from mpips.cluster.layout import Cause, Role
from mpips.cluster.node import Node
from mpips.cluster.view import GENERATION, View, with_workers
from mpips.membership.agreement import Ballot, Identity, Known, Outcome, Proposed, base_of, is_outbid
from mpips.membership.consensus import Consensus
from mpips.membership.detection import Detection
from mpips.membership.quorum import Quorum
from mpips.transport.message import Command

LEADERLESS = 20.0
"""Seconds without a leader after which a rank exits: the others have excluded it while it hung."""
UNATTENDED = 5.0
"""Seconds without a leader or another candidate after which a rank that is not the first successor stands."""
STAGGER = 0.5
"""Seconds by which each further successor stands later."""
ASKED_AGAIN = 0.05
"""Seconds after which ranks that hear the leader are first asked again; the pause doubles."""
LONGEST_PAUSE = 1.0
EXCLUDED = 10.0
"""Seconds for which a rank that a proposed view excludes leaves the succession to others."""
SECOND_TRY = 2.0
"""Times the patience that another candidate has, once a rank has accepted its proposal."""


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
        self._ballot = Ballot.of(node.view)
        self._answers: dict[int, Known] = {}
        # Ranks that have answered that they are workers: they hold no shards, whatever this rank's view says.
        self._workers: set[int] = set()
        self._began, self._asked_at, self._asked_all_at, self._pause = 0.0, 0.0, 0.0, ASKED_AGAIN
        # Since when half of the votes have promised, and no more.
        self._half_since = 0.0
        # Until when this rank leaves the candidacy to others, since a proposed view excludes it.
        self._excluded_until = 0.0
        # The leader of the proposed view that this rank would follow.
        self._rival = node.view.leader
        # Since when this rank has heard of no leader, and of no other rank that may become it, 0 if it does; and since
        # when of no other candidate.
        self._leaderless_since = self._unattended_since = 0.0

    def rest(self) -> None:
        """End the candidacy: there is a leader."""
        self.leave_to_another()
        self._withdraw()

    def leave_to_another(self) -> None:
        """Record that another rank is a candidate."""
        self._leaderless_since = self._unattended_since = 0.0

    def has_contact(self) -> None:
        """Record that this rank has heard of another one that takes part in the succession."""
        self._leaderless_since = 0.0

    def succeed(self) -> View | None:
        """Be a candidate if this rank is the next one, or others do not stand; return the view to publish if elected.

        Raises:
            Fenced: no rank has become the leader for a long time.
        """
        now = self._node.van.now()
        self._leaderless_since = self._leaderless_since or now
        self._unattended_since = self._unattended_since or now
        voters = self._quorum.electorate.voters(self._quorum.living(self._node.view.alive))
        if now - self._leaderless_since > LEADERLESS or not voters:
            raise Fenced
        successors = self._successors()
        place = successors.index(self._node.rank) if self._node.rank in successors else len(successors)
        is_needed = now - self._unattended_since > UNATTENDED + place * STAGGER
        if place == len(successors) or (place > 0 and not is_needed):
            # A rank before this one is heard again.
            self._withdraw()
            return None
        return self.stand(UNATTENDED / 2)

    def _successors(self) -> list[int]:
        """List the ranks that are not lost and may lead, in order of succession.

        Those that a view excludes which was accepted here cannot lead, even if they are heard again.
        """
        lost, roles = self._detection.lost, self._consensus.known.latest.view.roles
        return [rank for rank in self._node.view.succession() if rank not in lost and roles[rank] is not None]

    def _withdraw(self) -> None:
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
        # Also while a proposal is pending.
        self._quorum.listen()
        if self._consensus.denied or now < self._excluded_until:
            return None
        everyone = self._quorum.living(self._node.view.alive)
        if not self.standing:
            self.standing, self._began, self._half_since, self._pause = True, now, now, ASKED_AGAIN
            self._ballot = self._consensus.new_ballot(())
            self._ask(now, everyone)
        elif now - self._asked_all_at > every:
            self._ask(now, everyone)
        proposal = self._consensus.proposal
        if proposal is not None:
            agreed = self._consensus.pursue()
            if agreed is not None or not self._is_outdated(proposal.proposed):
                return agreed
        if self._detection.hung - {self._node.view.leader} and not self._quorum.hears_enough:
            self._ask_again(now, everyone)
        elif self._awaited() <= self._answers.keys():
            self._count(now)
        return None

    def _ask(self, now: float, ranks: Iterable[int]) -> None:
        """Ask ranks to promise this rank's ballot; tell them whom MPI has reported dead."""
        self._asked_at = self._asked_all_at = now
        dead = [rank for rank, cause in self._detection.dead.items() if cause is Cause.DIED]
        for rank in ranks:
            if rank != self._node.rank:
                self._node.control(rank, Command.ASK_VIEW, {"died": dead, "ballot": self._ballot})

    def _awaited(self) -> set[int]:
        """Return the ranks that may hold shards, and whose views must be known."""
        view, lost = self._node.view, self._detection.lost
        return {
            rank
            for rank in view.alive
            if rank != self._node.rank and view.roles[rank] is not Role.WORKER and rank not in lost
        } - self._workers

    def _is_outdated(self, proposed: Proposed) -> bool:
        """Return whether another view is to be proposed.

        More ranks are lost, the ballot is too low, or a rank has received a last view of the lost leader meanwhile: it
        accepts none that follows an earlier one.
        """
        view, known = proposed.view, self._known().values()
        return (
            any(view.roles[rank] is not None for rank in self._detection.lost)
            or Ballot.of(view) != self._ballot
            or is_outbid(self._ballot, known)
            or any(_follows_earlier(proposed, each.view) for each in known)
        )

    def _known(self) -> dict[int, Known]:
        """Return what this rank knows, and those that have answered and are not lost, by rank."""
        lost = self._detection.lost
        answers = {rank: each for rank, each in self._answers.items() if rank not in lost}
        return {**answers, self._node.rank: self._consensus.known}

    def _count(self, now: float) -> None:
        """Propose to lead, if the ranks that have promised this rank's ballot can decide; else ask again later."""
        node, view, lost = self._node, self._node.view, self._detection.lost
        known, living = self._known(), self._quorum.living
        # Perhaps of a rank that has told it, and which this one must not adopt.
        settled = max((each.view for each in known.values()), key=Identity.of)
        base, outcome = base_of(self._ballot, known, settled, self._quorum.electorate, living)
        if base.view.roles[node.rank] is None:
            self._excluded_until = now + EXCLUDED
            return
        if base.view.leader != self._rival:
            self._rival, self._began = base.view.leader, now
        own = base.view.leader in (node.rank, view.leader)
        if (
            not own
            and base.view.leader not in lost
            and now - self._began < SECOND_TRY * self._detection.patience
        ):
            # Its candidate is likely to succeed.
            self._ask_again(now, known)
            return
        if is_outbid(self._ballot, known.values()):
            if now - self._asked_at > self._pause:
                self._ballot = self._consensus.new_ballot(known.values())
            self._ask_again(now, living(view.alive))
            return
        if outcome is not Outcome.HALF:
            self._half_since = now
        # Others may promise later. Half of the votes need a lease.
        waits = now - self._half_since < self._detection.patience or not self._quorum.can_lease
        if outcome is Outcome.MINORITY or (outcome is Outcome.HALF and waits):
            self._ask_again(now, living(view.alive))
            return
        again = Ballot.of(base.view) == self._ballot
        epoch = base.view.epoch + 1 if again else self._ballot.generation * GENERATION
        passed = is_passed(base, settled, node.rank)
        made = self._make(replace(settled if passed else base.view, epoch=epoch), lost)
        if made.roles[node.rank] is Role.WORKER:
            # A proposed view had made it one, and it has not begun to be one.
            made = with_workers(made, [rank for rank in made.workers if rank != node.rank])
        made = replace(made, leader=node.rank)
        self._consensus.propose(base.followed_by(made, settled, outcome is Outcome.HALF))

    def _ask_again(self, now: float, ranks: Iterable[int]) -> None:
        if now - self._asked_at > self._pause:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._ask(now, ranks)

    def receive_answer(self, sender: int, known: Known | None) -> None:
        """Receive what a rank knows; None: it is a worker.

        A later published view is adopted; it may name another successor.
        """
        self.answered = True
        self.has_contact()
        if known is None:
            self._workers.add(sender)
            return
        self._answers[sender] = known
        if Identity.of(known.view) > Identity.of(self._node.view) and not self._consensus.known.supersedes(
            known.view
        ):
            self._adopt(known.view)
        else:
            proposal, latest = self._consensus.proposal, known.latest
            if self.standing and proposal is not None and latest.identity > proposal.proposed.identity:
                self._consensus.withdraw()


def _follows_earlier(proposed: Proposed, published: View) -> bool:
    """Return whether a proposed view does not follow a published one, but an earlier one."""
    return (
        bool(proposed.ancestors)
        and proposed.ancestors[0].identity < Identity.of(published) < proposed.identity
    )


def is_passed(proposed: Proposed, published: View, rank: int) -> bool:
    """Return whether a proposed view has had no effect, and what it changes may be dropped for a published one.

    It is one of `rank`, which has not published it, and will not. What another rank has proposed after the published
    view, and it follows, may have taken effect meanwhile.
    """
    return (
        proposed.view.leader == rank
        and _follows_earlier(proposed, published)
        and all(
            each.identity.leader == rank
            for each in proposed.ancestors
            if each.identity > Identity.of(published)
        )
    )
