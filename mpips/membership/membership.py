"""Membership: the leader's decisions on the view, and its succession (paper, section 4.5: server manager).

    leader                                               every other rank
    watch all ranks;                                     watch the leader and the ranks before it in the succession;
    when a rank is lost, a chain can be repaired,        adopt the views that arrive;
    or a rank joins or leaves: make the next view        if all those are lost: ask the others for their promise and
    and send it to all ranks                             views, and propose to continue from the latest, as leader

MPI reports a rank that ended, to any rank, which tells the leader; the heartbeat one that is silent: it hangs, or the
network is split. Both are excluded for good: a rank that resumes finds that it is in no view, and exits. A view is also
sent to a rank that it excludes.

A view that excludes a silent rank, and each view of a successor, takes effect only with the acceptance of a majority
(`mpips.membership.agreement`). A leader that cannot be sure of a majority, and a rank that does not hear its leader,
are *frozen*: they take part in the membership protocol only. They execute and acknowledge no requests, and a frozen
leader publishes no view, completes no checkpoint and writes no result (`Membership.confirm`). A leader that is being
cut off itself, or was a moment ago, excludes no silent rank (`Quorum.can_exclude`); nor does such a candidate
(`Quorum.hears_enough`).

A hung rank that holds the only copy of some keys is waited for, up to `give_up` seconds: then the run ends with an
error.

A successor uses its own generation of epochs, so that its views are later than any that its predecessor may have sent
to some ranks before it died. It asks all ranks for their views and their promise, and waits for those that hold shards.
If the first of the succession does not become the leader, the others stand one after the other (`succession`).
A rank that hears its leader promises nothing, so a rank that was cut off does not disturb the others when it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

from mpips.cluster.departure import Fenced
from mpips.cluster.hash_ring import VACANT
from mpips.cluster.layout import Cause, Role
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import (
    NOBODY,
    View,
    next_epoch,
    next_spare,
    repaired,
    survives,
    with_learner_joined,
    with_ring_order,
    with_server,
    with_workers,
    without_server,
)
from mpips.errors import InputError, MpipsError
from mpips.membership.agreement import Ballot, Identity, Known, Proposed
from mpips.membership.consensus import Consensus
from mpips.membership.detection import Detection, FailureDetector
from mpips.membership.losses import without_lost
from mpips.membership.quorum import Leases, NoLeases, Quorum
from mpips.membership.recoveries import Recoveries
from mpips.membership.succession import LEADERLESS, Succession
from mpips.transport.message import Command, Message

Change = Callable[[View], View]


class Membership:
    """Membership protocol of one rank; see the module.

    `replicas` is the number of copies of each shard besides the primary's. `detector` detects hung ranks (None: hangs
    are not detected) after `patience` seconds. An indispensable one ends the run after `give_up` seconds (0: never);
    `say` prints that it is waited for. `oversubscription` returns the factor on `patience` at present. `leases` decide
    where votes cannot.
    """

    def __init__(
        self,
        node: Node,
        replicas: int = 0,
        detector: FailureDetector | None = None,
        patience: float = 1.0,
        give_up: float = 0.0,
        say: Callable[[str], None] = lambda text: None,
        oversubscription: Callable[[], float] = lambda: 1.0,
        leases: Leases | None = None,
    ) -> None:
        self.node, self.replicas = node, replicas
        self._detection = Detection(node, detector, patience, give_up, say, oversubscription)
        self._quorum = Quorum(node, self._detection, leases or NoLeases(), say)
        if detector is not None:
            # A rank without a vote only needs to know whether its leader lives.
            detector.hears_muted = not self._quorum.electorate.votes[node.rank]
        self._consensus = Consensus(node, self._quorum, self._hears_leader, self._answer)
        self._succession = Succession(
            node, self._detection, self._quorum, self._consensus, self._next, self._hand_on
        )
        self.on_publish: Callable[[View], None] = lambda view: None
        """Callback for each view that this rank publishes."""
        self._recoveries = Recoveries(node)
        self._changes: deque[Change] = deque()
        # At the leader: whether others have refused its views for those of another rank, or it has done so itself.
        self._refused = False
        controls = {
            Command.VIEW: self._receive_view,
            Command.VIEW_SEEN: self._recoveries.receive_view_seen,
            Command.ASK_VIEW: self._receive_ask,
            Command.VIEWS: self._receive_answer,
            Command.PROPOSE: self._receive_proposal,
            Command.ACCEPTED: self._consensus.receive_acceptance,
            Command.DIED: self._detection.receive_deaths,
            Command.COPY_COMPLETE: self._copy_complete,
            Command.DRAINED: self._drained,
        }
        node.register(Registration(controls=controls, ticks=(self.tick,)))
        self._watch()

    @property
    def leading(self) -> bool:
        """Whether this rank is the leader."""
        return self.node.view.leader == self.node.rank

    @property
    def recovered(self) -> dict[int, float]:
        """By lost rank: the wall time at which all servers had the view without it."""
        return self._recoveries.done

    @property
    def dead(self) -> Mapping[int, Cause]:
        """By rank that has ended, or is excluded, as far as this rank knows: the cause."""
        return self._detection.dead

    @property
    def waiting_for(self) -> list[int]:
        """The indispensable ranks that hang and are waited for."""
        return sorted(self._detection.waiting_for)

    @property
    def gave_up(self) -> bool:
        """Whether the run ends because an indispensable rank hangs."""
        return self._detection.gave_up

    @property
    def _outbid(self) -> bool:
        """Whether this leader must be elected again: others do not follow it, or it has promised another ballot.

        One that has promised one takes no lease to continue: if it is elected, it is by a view that needs the lease.
        """
        return self._refused or (self.leading and self._consensus.is_outbid(Ballot.of(self.node.view)))

    def confirm(self) -> None:
        """Wait until this rank is certain that it leads the run: before it writes what others read as the run's.

        Raises:
            Fenced: another rank leads it.
        """
        while not self.is_confirmed:
            # An error that has ended the program may be raised again.
            with suppress(MpipsError):
                self.node.wait_until(lambda: self.is_confirmed, "a majority of the ranks that vote")

    @property
    def is_confirmed(self) -> bool:
        """Whether this rank is certain now that it leads the run. Fenced if another rank does."""
        if self._quorum.should_freeze(self.leading, self._outbid):
            return False
        if self._quorum.is_deposed():
            raise Fenced
        return not self.node.frozen

    # --- failure detection -----------------------------------------------------------------------

    def _watch(self) -> None:
        """Send heartbeats to the ranks that watch this one; as leader, to all that vote, and seldom to the others."""
        detector = self._detection.detector
        if detector is None:
            return
        watchers = self._watchers(self.node.view)
        if self.leading or self._succession.standing:
            voters = self._quorum.electorate.voters(self._quorum.living(self.node.view.alive))
            watchers += [rank for rank in voters if rank not in watchers]
        detector.targets = [rank for rank in watchers if rank != self.node.rank]
        others = self._quorum.living(self.node.view.alive) if self.leading else []
        detector.seldom = [rank for rank in others if rank not in watchers]
        self._follow()

    def _follow(self) -> None:
        """Confirm the heartbeats of the leader, unless this rank leads, or has accepted another leader."""
        detector, leader = self._detection.detector, self.node.view.leader
        if detector is not None:
            follows = not self.leading and self._consensus.known.latest.view.leader == leader
            detector.follows = leader if follows else NOBODY

    def _watchers(self, view: View) -> list[int]:
        """List the ranks that watch those before them: the leader, those with its journal, and one more to report."""
        dead = self._detection.dead
        return [rank for rank in view.succession() if rank not in dead][: self.replicas + 3]

    def _watched(self) -> list[int]:
        view, me = self.node.view, self.node.rank
        before = self._watchers(view)
        if self.leading or (me in before and self._succession.standing):
            return [rank for rank in view.alive if rank != me]
        if me in before:
            return before[: before.index(me)]
        return [view.leader] if self._quorum.electorate.votes[me] else []

    def _hears_leader(self) -> bool:
        """Return whether the leader of this rank's view lives, as far as this rank knows."""
        if self.leading:
            return not self.node.frozen
        leader = self.node.view.leader
        return leader not in self._detection.dead and leader not in self._detection.silent

    def _detect(self) -> None:
        """Record ranks that were lost."""
        watched, detector = self._watched(), self._detection.detector
        hearers: list[int] = []
        if detector is not None and (self.leading or self._succession.standing):
            hearers = [rank for rank in watched if rank in detector.targets]
        if died := self._detection.look(watched, hearers):
            self._watch()
            if not self.leading:
                self._detection.tell(self.node.view.leader, died)
        self._detection.await_needed(self._decides)
        if hung := self._detection.given_up(self._decides):
            if not self._quorum.heard():
                raise Fenced
            raise self._detection.end_for(hung)

    def _decides(self, count: int) -> bool:
        """Return whether this rank has to decide on `count` silent ranks, and is not itself excluded for certain."""
        if self._succession.standing:
            return self._succession.answered
        return self.leading or count == len(
            [rank for rank in self._watched() if rank not in self._detection.dead]
        )

    def tick(self) -> None:
        """Detect losses; decide or succeed as needed."""
        self._detect()
        if self.leading:
            # It may be a candidate next, if others do not follow it.
            self._quorum.listen()
        self._freeze()
        if self.leading and not self._outbid:
            if not self.node.frozen:
                self._lead()
        elif self._outbid or self.node.view.leader in self._detection.lost or self._is_cut_off():
            self._succeed()
        else:
            self._succession.rest()

    def _is_cut_off(self) -> bool:
        """Return whether this rank, if it has no vote, has not heard its leader for long, and others could lead."""
        detector, view = self._detection.detector, self.node.view
        if detector is None or not detector.hears_muted or not self.node.van.survives:
            return False
        silent = detector.silent([view.leader], max(LEADERLESS / 2, self._detection.patience))
        return bool(silent) and survives(view, [view.leader])

    def _freeze(self) -> None:
        """Freeze or thaw this rank.

        Raises:
            Fenced: another side of the network continues the run, or this one has been frozen for too long.
        """
        quorum, frozen = self._quorum, self.node.frozen
        if quorum.should_freeze(self.leading, self._outbid):
            if not frozen:
                quorum.freeze()
            elif quorum.frozen_for() > self._detection.give_up > 0:
                raise Fenced
        elif frozen:
            if self.leading and quorum.is_deposed():
                raise Fenced
            quorum.thaw()

    # --- the leader ------------------------------------------------------------------------------

    def request_change(self, change: Change) -> None:
        """Queue a change of the view; this rank is the leader."""
        self._changes.append(change)

    def _lead(self) -> None:
        view, proposal = self.node.view, self._consensus.proposal
        gone = [rank for rank in self._detection.lost if view.roles[rank] is not None]
        if gone and not self._quorum.can_exclude:
            gone = [rank for rank in gone if rank in self._detection.dead]
        if proposal is not None:
            agreed = self._consensus.pursue()
            if agreed is not None:
                self._publish(agreed)
            elif self._consensus.denied:
                self._refused = True
            elif any(proposal.proposed.view.roles[rank] is not None for rank in gone):
                self._propose(proposal.proposed, gone)
        elif gone or self._changes or self._quorum.has_new_lease:
            self._decide(gone)

    def _decide(self, gone: Collection[int]) -> None:
        view, latest = self.node.view, self._consensus.known.latest
        if latest.identity > Identity.of(view) and not latest.is_void(view):
            # A proposed view may have taken effect: the next one follows it.
            if Ballot.of(latest.view) == Ballot.of(view):
                self._propose(latest, gone)
            else:
                self._refused = True
            return
        if self._quorum.has_new_lease:
            # Before any new proposal or change: the lease denies the views of other candidates, which must know why.
            self._publish(self._quorum.with_lease(next_epoch(view)))
            return
        if any(rank in self._detection.hung for rank in gone):
            self._propose(Proposed(view), gone)
            return
        made = self._next(next_epoch(view), gone, self._requested())
        if replace(made, epoch=view.epoch) != view:
            self._publish(made)

    def _requested(self) -> Iterator[Change]:
        """Take the requested changes."""
        while self._changes:
            yield self._changes.popleft()

    def _next(self, view: View, gone: Iterable[int], changes: Iterable[Change] = ()) -> View:
        """Return a view without the lost ranks, and with these changes."""
        made = without_lost(view, gone, self._detection.lost, self.node.van.wall())
        for change in changes:
            made = change(made)
        return repaired(made, self.replicas)

    def _propose(self, base: Proposed, gone: Collection[int]) -> None:
        """Propose the view that follows one, without ranks of which some are merely silent."""
        if self._consensus.is_outbid(Ballot.of(base.view)):
            self._refused = True
            return
        made = self._next(next_epoch(base.view), gone, self._requested())
        self._consensus.propose(base.followed_by(made, self.node.view, by_lease=False))
        agreed = self._consensus.pursue()
        if agreed is not None:
            self._publish(agreed)

    def _publish(self, view: View) -> None:
        node, before = self.node, self.node.view
        self.on_publish(view)
        gone = [rank for rank in before.alive if view.roles[rank] is None]
        self._recoveries.begin(view, gone)
        meta = view.to_meta()
        for rank in before.alive:
            if rank != node.rank:
                node.control(rank, Command.VIEW, meta)
        self._adopt(view)
        self._recoveries.check()
        # A chain may already be complete.
        if self.leading and repaired(next_epoch(view), self.replicas) != next_epoch(view):
            self._changes.append(lambda same: same)

    def _adopt(self, view: View) -> None:
        """Adopt a published view."""
        self._refused = False
        self._consensus.adopted(view)
        self._succession.rest()
        for loss in view.losses:
            self._detection.died(loss.rank, loss.cause)
        led = self.leading
        self.node.adopt(view)
        self._watch()
        if led and not self.leading:
            # The program runs on another rank now.
            raise Fenced

    def _copy_complete(self, message: Message) -> None:
        shard, since, rank = int(message.meta["shard"]), int(message.meta["since"]), message.sender
        self._changes.append(lambda view: with_learner_joined(view, shard, rank, since))

    def _drained(self, message: Message) -> None:
        shard, since = int(message.meta["shard"]), int(message.meta["since"])
        if self.node.view.chains[shard].closing:
            self._changes.append(lambda view: with_ring_order(view, shard, since, self.replicas))

    # --- joining and leaving ---------------------------------------------------------------------

    def able_to_join(self) -> int:
        """Return the spare that can become a server. InputError if there is none, or no vacant slot."""
        view = self.node.view
        rank = next_spare(view)
        if rank is None:
            raise InputError("no spare rank is left: start the job with --set layout.spares=N")
        if VACANT not in view.ring.slots:
            taken = f"all {len(view.ring.slots)} slots of the ring are taken"
            raise InputError(f"{taken}: one for each server and spare of the start")
        return rank

    def join_server(self, rank: int | None = None) -> int:
        """Make a spare a server, by default one that is `able_to_join`; return its rank."""
        joining = self.able_to_join() if rank is None else rank
        self.request_change(lambda view: with_server(view, joining))
        return joining

    def check_leaves(self, rank: int) -> None:
        """Raise InputError if a rank is the last server, or not a server."""
        view = self.node.view
        if rank not in view.ring.servers:
            raise InputError(
                f"rank {rank} is not a server; servers are {', '.join(map(str, view.ring.servers))}"
            )
        if len(view.ring.servers) == 1:
            raise InputError(f"rank {rank} is the last server: it cannot leave")

    def leave_server(self, rank: int) -> None:
        """Let a server give up its shards and become a spare. Raises as `check_leaves`."""
        self.check_leaves(rank)
        self.request_change(lambda view: without_server(view, rank))

    def await_agreement(self) -> None:
        """Wait until this leader can publish views: it is not frozen, and none that it has proposed is pending.

        Raises:
            Fenced: another rank leads the run.
        """

        def settled() -> bool:
            busy = self._outbid or self._quorum.has_new_lease or self._consensus.proposal is not None
            return self.leading and not self.node.frozen and not busy

        self.node.wait_until(settled, "a majority of the ranks that vote")

    def set_workers(self, workers: Collection[int]) -> bool:
        """Make these the workers, at the leader; former workers become spares. Return whether the next view has them.

        It is adopted when this returns, or proposed: see `await_agreement`. If not, nothing changes: this leader can
        publish no view now, such as while it is frozen.
        """
        # A spare may have become a server meanwhile.
        able = (Role.WORKER, Role.SPARE)

        def change(view: View) -> View:
            servers = view.ring.servers
            return with_workers(view, [r for r in workers if view.roles[r] in able and r not in servers])

        self.request_change(change)
        self.tick()
        taken = change not in self._changes
        if not taken:
            self._changes.remove(change)
        return taken

    # --- every other rank ------------------------------------------------------------------------

    def _receive_view(self, message: Message) -> None:
        view = View.from_meta(message.meta)
        if self._consensus.known.supersedes(view):
            # Its leader is deposed, or will be.
            self._answer(message.sender)
            return
        if Identity.of(view) > Identity.of(self.node.view):
            if message.sender == view.leader:
                self._detection.led(view.leader)
            self._adopt(view)
        if self.node.role is Role.SERVER:
            self.node.control(view.leader, Command.VIEW_SEEN, {"epoch": view.epoch})

    def _receive_ask(self, message: Message) -> None:
        """Promise a candidate's ballot, unless the leader is heard; tell it what views this rank knows of."""
        for rank in message.meta["died"]:
            if rank != self.node.rank:
                self._detection.died(rank)
        self._succession.leave_to_another()
        self._detection.tell(message.sender, self._detection.dead.keys() - set(message.meta["died"]))
        self._consensus.receive_ballot(Ballot(*message.meta["ballot"]))
        self._answer(message.sender)

    def _answer(self, rank: int) -> None:
        holds = self._quorum.electorate.votes[self.node.rank] or self.node.role is not Role.WORKER
        self.node.control(rank, Command.VIEWS, self._consensus.known.to_meta() if holds else {})

    def _receive_answer(self, message: Message) -> None:
        known = Known.from_meta(message.meta) if "view" in message.meta else None
        if self.leading and known is not None:
            self._refused |= self._is_outbid(known)
        self._succession.receive_answer(message.sender, known)

    def _is_outbid(self, known: Known) -> bool:
        """Return whether a rank that this leader has sent a view, or proposed one, refuses it for that of another."""
        mine, latest = self._consensus.known.latest, known.latest
        refused = self._consensus.proposal is not None and known.promised > Ballot.of(mine.view)
        rival = latest.identity > mine.identity and latest.view.leader != self.node.rank
        return refused or (rival and not latest.is_void(self.node.view))

    def _receive_proposal(self, message: Message) -> None:
        self._succession.has_contact()
        self._consensus.receive_proposal(message)
        self._follow()

    # --- succession --------------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Become the leader, if this rank is elected; see `Succession.succeed`."""
        agreed = self._succession.succeed()
        if self._succession.standing:
            self._watch()
        if agreed is not None:
            self._publish(agreed)

    def _hand_on(self, view: View) -> None:
        """Adopt the lost leader's last view, and send it to all, since it names the next successor."""
        for rank in self._quorum.living(view.alive):
            if rank != self.node.rank:
                self.node.control(rank, Command.VIEW, view.to_meta())
        self._adopt(view)
