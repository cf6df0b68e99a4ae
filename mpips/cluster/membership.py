"""Membership: detection of lost ranks, and the leader's decisions on the view (paper, section 4.5: server manager).

    leader                                               every other rank
    watch all ranks;                                     watch the leader and the ranks before it in the succession;
    when a rank is lost, a chain can be repaired,        adopt the views that arrive;
    or a rank joins or leaves: make the next view        if all those are lost: ask the others for their views,
    and send it to all ranks                             and continue from the latest, as leader

MPI reports a rank that ended, the heartbeat one that hangs. Both are excluded for good: a rank that resumes
finds that it is in no view, and exits. A view is also sent to a rank that it excludes.

A hung rank that holds the only copy of some keys is waited for, up to `give_up` seconds: then the run ends with an
error.

A successor uses its own generation of epochs, so that its views are later than any that its predecessor may have sent
to some ranks before it died. It asks only ranks other than workers for their views: no other rank depends on a
worker's view. The latest view determines the successor, otherwise two ranks might both become leader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from logging import ERROR, WARNING
from typing import NoReturn, Protocol

from mpips.cluster.departure import Fenced
from mpips.cluster.hash_ring import VACANT
from mpips.cluster.layout import Cause, Role
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import (
    GENERATION,
    Loss,
    View,
    next_epoch,
    next_spare,
    repaired,
    survives,
    with_learner_joined,
    with_ring_order,
    with_server,
    with_workers,
    without,
    without_server,
)
from mpips.errors import InputError, ShardLost
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

Change = Callable[[View], View]
REPORTED_AFTER = 10.0
"""Seconds of silence of an indispensable rank after which a message is printed."""
LEADERLESS = 20.0
"""Seconds without a leader after which a rank exits: the others have excluded it while it hung."""


class FailureDetector(Protocol):
    """Detects hung ranks; see `mpips.cluster.heartbeat`."""

    targets: Sequence[int]

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that were silent for `patience` seconds."""


class Membership:
    """Membership protocol of one rank; see the module.

    `replicas` is the number of copies of each shard besides the primary's. `detector` detects hung ranks (None: hangs
    are not detected) after `patience` seconds. An indispensable one ends the run after `give_up` seconds (0: never);
    `say` prints that it is waited for. `oversubscription` returns the factor on `patience` at present.
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
    ) -> None:
        self._oversubscription = oversubscription
        self.node, self.replicas, self.detector, self.patience = node, replicas, detector, patience
        self._give_up, self._say = give_up, say
        # Hung ranks of which a message was printed.
        self._waiting_for: set[int] = set()
        self.gave_up = False
        """Whether the run ends because an indispensable rank hangs."""
        self.recovered: dict[int, float] = {}
        """By lost rank: the wall time at which all servers had the view without it."""
        self._dead: dict[int, Cause] = {}
        self._changes: deque[Change] = deque()
        # During a succession: the ranks whose view has not arrived yet.
        self._pending_views: set[int] | None = None
        # When the views were last asked for, and whether any rank has answered.
        self._views_asked_at, self._answered = 0.0, False
        self._latest = node.view
        # Leaders that a successor has declared lost, even if they resume.
        self._deposed: set[int] = set()
        # Time at which the leader was lost.
        self._leaderless_since = 0.0
        # By epoch: servers that have not acknowledged the view.
        self._unacknowledged: dict[int, set[int]] = {}
        # By epoch: the ranks lost in it.
        self._lost_at: dict[int, list[int]] = {}
        controls = {
            Command.VIEW: self._receive_view,
            Command.VIEW_SEEN: self._receive_view_seen,
            Command.ASK_VIEW: self._send_view,
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
    def waiting_for(self) -> list[int]:
        """The indispensable ranks that hang and are waited for."""
        return sorted(self._waiting_for)

    # --- failure detection -----------------------------------------------------------------------

    def _watch(self) -> None:
        if self.detector is not None:
            self.detector.targets = self._observers()

    def _observers(self) -> list[int]:
        """List the ranks that watch this one."""
        return [rank for rank in self._watchers() if rank != self.node.rank]

    def _watchers(self) -> list[int]:
        """List the ranks that watch those before them: the leader, those with its journal, and one more to report."""
        return self._successors(self.node.view)[: self.replicas + 3]

    def _successors(self, view: View) -> list[int]:
        """List the ranks of a view that are not lost and may lead, in order of succession."""
        return [rank for rank in view.succession() if rank not in self._dead]

    def _watched(self) -> list[int]:
        view, me = self.node.view, self.node.rank
        if self.leading or self._pending_views is not None:
            return [rank for rank in view.alive if rank != me]
        before = self._watchers()
        return before[: before.index(me)] if me in before else []

    def _detect(self) -> None:
        """Record ranks that were lost."""
        failed = self.node.van.failed()
        for rank in failed:
            self._dead[rank] = Cause.DIED
        if failed:
            self._watch()
        if self.detector is not None:
            needed = []
            for rank in self._silent(self.detector):
                if rank not in self._dead and self._dispensable(rank):
                    self._dead[rank] = Cause.HUNG
                elif rank not in self._dead:
                    needed.append(rank)
            if (needed or self._waiting_for) and not self.gave_up:
                self._await(self.detector, needed)
        for rank in self._dead:
            self.node.departure.record_lost(rank)

    def _silent(self, detector: FailureDetector) -> list[int]:
        """List the watched ranks that seem to hang; on oversubscribed cores, where healthy ranks are slow, later."""
        suspects = detector.silent(self._watched(), self.patience)
        return suspects and detector.silent(suspects, self.patience * self._oversubscription())

    def _await(self, detector: FailureDetector, needed: Collection[int]) -> None:
        """Wait for indispensable ranks that hang, and print a message about each.

        Raises:
            ShardLost: one of them has been silent for `give_up` seconds.
        """
        watched = [rank for rank in self._watched() if rank not in self._dead]

        def silent(seconds: float) -> set[int]:
            found = set(detector.silent(needed, seconds))
            # Only ranks that this rank has to decide on, and only once it is certain that it is not itself excluded.
            mine = (
                self._answered
                if self._pending_views is not None
                else self.leading or len(found) == len(watched)
            )
            return found if mine else set()

        waiting_for = silent(REPORTED_AFTER)
        limit = f"at most {self._give_up:g} s ([heartbeat] give_up)" if self._give_up else "without limit"
        for rank in sorted(waiting_for - self._waiting_for):
            note("silent", WARNING, silent=rank)
            self._say(
                f"{self._name(rank)} sends no heartbeats, and the run cannot continue without it: waiting, {limit}"
            )
        for rank in sorted(self._waiting_for - waiting_for - self._dead.keys()):
            self._say(f"{self._name(rank)} sends heartbeats again")
        self._waiting_for = waiting_for
        if self._give_up and (over := silent(self._give_up)):
            self._end_for(over)

    def _end_for(self, hung: Collection[int]) -> NoReturn:
        self.gave_up = True
        for rank in hung:
            note("lost", ERROR, lost=rank, cause=Cause.HUNG, error=Cause.HUNG.text, fatal=True)
            self.node.departure.record_lost(rank)
        raise ShardLost(
            f"{', '.join(map(self._name, sorted(hung)))}: no heartbeat for {self._give_up:g} s ([heartbeat] "
            "give_up), and no other rank can replace it: resume from the last checkpoint with --resume latest"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.node.layout.places[rank]})"

    def _dispensable(self, rank: int) -> bool:
        """Return whether the run can continue without a rank that hangs; if not, it waits for it."""
        view = self.node.view
        if view.roles[rank] is None or not self.node.van.survives:
            return False
        dead = set(self._dead)
        # Where keys are lost already, no rank that resumes helps.
        return survives(view, dead | {rank}) or not survives(view, dead)

    def tick(self) -> None:
        """Detect losses; decide or succeed as needed."""
        self._detect()
        view = self.node.view
        gone = [rank for rank in self._dead if view.roles[rank] is not None]
        if self.leading:
            if gone or self._changes:
                self._decide(gone)
        elif view.leader in self._dead:
            self._leaderless_since = self._leaderless_since or self.node.van.now()
            if self.node.van.now() - self._leaderless_since > LEADERLESS:
                raise Fenced
            successors = self._successors(view)
            if successors and successors[0] == self.node.rank:
                self._succeed()

    # --- the leader ------------------------------------------------------------------------------

    def request_change(self, change: Change) -> None:
        """Queue a change of the view; this rank is the leader."""
        self._changes.append(change)

    def _decide(self, gone: Collection[int]) -> None:
        view = self.node.view
        made = self._replaced(next_epoch(view), gone)
        while self._changes:
            made = self._changes.popleft()(made)
        made = repaired(made, self.replicas)
        if replace(made, epoch=view.epoch) != view:
            self._publish(made, gone)

    def _replaced(self, view: View, gone: Iterable[int]) -> View:
        """Return the view without lost ranks, with spares in place of servers; log each, as fatal if a shard is lost.

        A lost worker is replaced when the program calls `regroup`.
        """
        wall = self.node.van.wall()
        losses = [
            Loss(rank, str(role), self._dead[rank], wall) for rank in gone if (role := view.roles[rank])
        ]
        try:
            left = without(view, losses)
        except ShardLost:
            for loss in losses:
                note("lost", ERROR, lost=loss.rank, cause=loss.cause, error=loss.cause.text, fatal=True)
            raise
        for loss in losses:
            note("lost", WARNING, lost=loss.rank, cause=loss.cause, error=loss.cause.text)
            spare = next_spare(left)
            if loss.role == Role.SERVER and spare is not None:
                left = with_server(left, spare)
        return left

    def _publish(self, view: View, gone: Collection[int] = ()) -> None:
        node = self.node
        servers = {rank for rank in view.servers if rank != node.rank}
        if gone:
            self._unacknowledged[view.epoch], self._lost_at[view.epoch] = servers, list(gone)
        meta = view.to_meta()
        for rank in node.view.alive:
            if rank != node.rank:
                node.control(rank, Command.VIEW, meta)
        node.adopt(view)
        self._watch()
        self._check_acknowledged()
        # A chain may already be complete.
        if repaired(next_epoch(view), self.replicas) != next_epoch(view):
            self._changes.append(lambda same: same)

    def _receive_view_seen(self, message: Message) -> None:
        if self._pending_views is not None:
            self._receive_answer(message)
            return
        for epoch, missing in self._unacknowledged.items():
            if epoch <= int(message.meta["epoch"]):
                missing.discard(message.sender)
        self._check_acknowledged()

    def _check_acknowledged(self) -> None:
        alive = set(self.node.view.alive)
        for epoch in [epoch for epoch, missing in self._unacknowledged.items() if not missing & alive]:
            for rank in self._lost_at.pop(epoch):
                self.recovered[rank] = self.node.van.wall()
            del self._unacknowledged[epoch]

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

    def set_workers(self, workers: Collection[int]) -> None:
        """Make these the workers; former workers become spares. The view is adopted when this returns."""
        # A spare may have become a server meanwhile.
        able = (Role.WORKER, Role.SPARE)

        def change(view: View) -> View:
            servers = view.ring.servers
            return with_workers(view, [r for r in workers if view.roles[r] in able and r not in servers])

        self.request_change(change)
        self.tick()

    # --- every other rank ------------------------------------------------------------------------

    def _receive_view(self, message: Message) -> None:
        if message.sender in self._deposed:
            return
        view = View.from_meta(message.meta)
        if view.epoch > self.node.view.epoch:
            self._pending_views, self._leaderless_since = None, 0.0
            for loss in view.losses:
                self._dead.setdefault(loss.rank, loss.cause)
            self.node.adopt(view)
            self._watch()
        if self.node.role is Role.SERVER:
            self.node.control(view.leader, Command.VIEW_SEEN, {"epoch": view.epoch})

    def _send_view(self, message: Message) -> None:
        if self.node.view.leader != message.sender:
            self._deposed.add(self.node.view.leader)
        self._leaderless_since = 0.0
        view = self.node.view
        meta = {"epoch": view.epoch} if self.node.role is Role.WORKER else view.to_meta()
        self.node.control(message.sender, Command.VIEW_SEEN, meta)

    # --- succession --------------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Become the leader: first get the latest view from all ranks that may hold shards.

        While it waits for one that hangs, all are asked again, so that none of them exits as excluded.
        """
        view, me = self.node.view, self.node.rank
        others = {rank for rank in view.alive if rank != me and view.roles[rank] is not Role.WORKER}
        if self._pending_views is None:
            self._pending_views, self._latest, self._answered = others - set(self._dead), view, False
            self._ask_views(self._pending_views)
        self._pending_views -= set(self._dead)
        if not self._pending_views:
            self._take_over()
        elif self.node.van.now() - self._views_asked_at > LEADERLESS / 4:
            self._ask_views(rank for rank in view.alive if rank != me and rank not in self._dead)

    def _ask_views(self, ranks: Iterable[int]) -> None:
        self._views_asked_at = self.node.van.now()
        for rank in ranks:
            self.node.control(rank, Command.ASK_VIEW, {})

    def _receive_answer(self, message: Message) -> None:
        assert self._pending_views is not None
        self._leaderless_since, self._answered = 0.0, True
        view = View.from_meta(message.meta) if "leader" in message.meta else None
        if view is None:
            return
        if view.epoch > self._latest.epoch:
            self._latest = view
        self._pending_views.discard(message.sender)
        if not self._pending_views:
            self._take_over()

    def _take_over(self) -> None:
        """Lead, unless the latest view names another successor than the view of this rank did."""
        self._pending_views = None
        latest = self._latest
        successors = self._successors(latest)
        if successors and successors[0] != self.node.rank:
            self._hand_over(latest)
            return
        epoch = (latest.epoch // GENERATION + 1) * GENERATION
        gone = [rank for rank in self._dead if latest.roles[rank] is not None]
        made = self._replaced(replace(latest, epoch=epoch), gone)
        made = replace(repaired(made, self.replicas), leader=self.node.rank)
        self._publish(made, gone)

    def _hand_over(self, latest: View) -> None:
        """Adopt the lost leader's last view, and send it to all, since it names the leader."""
        for rank in latest.alive:
            if rank != self.node.rank and rank not in self._dead:
                self.node.control(rank, Command.VIEW, latest.to_meta())
        self.node.adopt(latest)
        self._watch()
