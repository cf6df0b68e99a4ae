"""Membership: who notices that a rank is gone, and who decides what then (paper, section 4.3: the server manager).

    leader                                               everyone else
    watch all ranks;                                     watch the leader and those before oneself in the succession;
    when one is gone, or a chain can be mended,          adopt what views come;
    or someone is to join or leave: the next view        if all those are gone: ask the others for their views,
    send it to everyone                                  and go on from the latest, as leader

A rank that ended is noticed by MPI, one that hangs by its heartbeat. Either way it is out for good: a rank that wakes
up finds that it is in no view any more, and leaves. A view is sent to a rank that it leaves out as well.

A rank that hangs and that the others cannot do without, since nobody else has what it holds, is waited for, but not for
ever: then the run ends with an error.

A successor takes over within its own generation of epochs, so that whatever its predecessor may have told some
ranks before it died, its own views are later. Only ranks that hold no data need be asked by it for what they know: a
worker's view matters to nobody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import ERROR, WARNING
from typing import NoReturn, Protocol

from mpips.cluster.hash_ring import VACANT
from mpips.cluster.layout import Role
from mpips.cluster.node import Fenced, Node
from mpips.cluster.view import (
    GENERATION,
    Loss,
    View,
    drained,
    mended,
    next_epoch,
    stand_in,
    whole,
    with_server,
    with_workers,
    without,
    without_server,
)
from mpips.errors import InputError, ShardLost
from mpips.rundir.log import note
from mpips.transport.message import Command, Message

Change = Callable[[View], View]
LOST = {"died": "it ended without a word: killed, crashed, or out of memory", "hung": "it hung"}
"""What is said of a loss."""
WAITS = 10.0
"""Seconds for which a rank is silent and cannot be done without, until people are told."""
ORPHANED = 20.0
"""Seconds without a leader after which a rank leaves: those who have one have forgotten it while it hung."""


def _bears(view: View, gone: Collection[int]) -> bool:
    """Tell whether all keys are left without these ranks."""
    return all(any(rank not in gone for rank in chain.members) for chain in view.chains)


class Heart(Protocol):
    """What notices hung ranks; see `mpips.cluster.heartbeat`."""

    targets: Sequence[int]

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Give those of `ranks` that were not heard from for so many seconds."""


class Membership:
    """One rank's part in it; see the module.

    `replicas` is how many copies each shard is to have beside the primary's, `heart` notices hung ranks (None: nobody
    does) after `patience` seconds. One that cannot be done without ends the run after `give_up` seconds (0: never);
    `say` tells people that it is waited for. `crowding` gives by how much longer patience is now.
    """

    def __init__(
        self,
        node: Node,
        replicas: int = 0,
        heart: Heart | None = None,
        patience: float = 1.0,
        give_up: float = 0.0,
        say: Callable[[str], None] = lambda text: None,
        crowding: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self._crowding = crowding
        self.node, self.replicas, self.heart, self.patience = node, replicas, heart, patience
        self._give_up, self._say = give_up, say
        self._awaited: set[int] = set()  # hung ranks that people were told of
        self.gave_up = False
        """Whether the run ends because a rank hangs that cannot be done without."""
        self.recovered: dict[int, float] = {}
        """When all servers had heard of a rank's loss, by rank: wall time."""
        self._dead: dict[int, str] = {}
        self._changes: deque[Change] = deque()
        self._asked: set[int] | None = None  # who has not told a successor its view yet
        self._asked_at, self._answered = 0.0, False  # when it asked last, and whether anybody has answered
        self._latest = node.view
        self._forsworn: set[int] = set()  # leaders who a successor has said are gone, even if they wake up
        self._orphaned = 0.0  # since when the leader is gone
        self._unseen: dict[int, set[int]] = {}  # by epoch: servers that have not said that they have seen it
        self._lost_at: dict[int, list[int]] = {}  # by epoch: whose loss it tells of
        node.controls[Command.VIEW] = self._heed
        node.controls[Command.VIEW_SEEN] = self._seen
        node.controls[Command.ASK_VIEW] = self._tell
        node.controls[Command.WHOLE] = self._whole
        node.controls[Command.DRAINED] = self._drained
        node.on_tick.append(self.tick)
        self._watch()

    @property
    def leading(self) -> bool:
        """Whether this rank is the leader."""
        return self.node.view.leader == self.node.rank

    @property
    def awaited(self) -> list[int]:
        """The ranks that hang and are waited for, since the run cannot go on without them."""
        return sorted(self._awaited)

    # --- noticing --------------------------------------------------------------------------------

    def _watch(self) -> None:
        if self.heart is not None:
            self.heart.targets = self._observers()

    def _observers(self) -> list[int]:
        """List the ranks that watch this one."""
        return [rank for rank in self._wardens() if rank != self.node.rank]

    def _wardens(self) -> list[int]:
        """List who watches those before: the leader, those who have its journal, and one who has not, to say so."""
        return [rank for rank in self.node.view.succession() if rank not in self._dead][: self.replicas + 3]

    def _watched(self) -> list[int]:
        view, me = self.node.view, self.node.rank
        if self.leading or self._asked is not None:
            return [rank for rank in view.alive if rank != me]
        before = self._wardens()
        return before[: before.index(me)] if me in before else []

    def _notice(self) -> None:
        """Take note of ranks that are gone."""
        failed = self.node.van.failed()
        for rank in failed:
            self._dead[rank] = "died"
        if failed:
            self._watch()
        if self.heart is not None:
            needed = []
            for rank in self._silent(self.heart):
                if rank not in self._dead and self._bearable(rank):
                    self._dead[rank] = "hung"
                elif rank not in self._dead:
                    needed.append(rank)
            if (needed or self._awaited) and not self.gave_up:
                self._await(self.heart, needed)
        for rank in self._dead:
            self.node.absent(rank)

    def _silent(self, heart: Heart) -> list[int]:
        """List the watched ranks that hang, as far as one can tell: on a crowded machine healthy ones are slow."""
        suspects = heart.silent(self._watched(), self.patience)
        return suspects and heart.silent(suspects, self.patience * self._crowding())

    def _await(self, heart: Heart, needed: Collection[int]) -> None:
        """Wait for hung ranks that cannot be done without, and let people know; but not for ever.

        Raises:
            ShardLost: one of them has been silent for too long.
        """
        watched = [rank for rank in self._watched() if rank not in self._dead]

        def silent(seconds: float) -> set[int]:
            found = set(heart.silent(needed, seconds))
            # Not for whom somebody else sees to, nor before it is sure that this rank is not the one that is forgotten.
            mine = self._answered if self._asked is not None else self.leading or len(found) == len(watched)
            return found if mine else set()

        awaited = silent(WAITS)
        limit = f"at most {self._give_up:g} s ([heartbeat] give_up)" if self._give_up else "for ever"
        for rank in sorted(awaited - self._awaited):
            note("silent", WARNING, silent=rank)
            self._say(f"{self._name(rank)} is silent, and the run cannot go on without it: it waits, {limit}")
        for rank in sorted(self._awaited - awaited - self._dead.keys()):
            self._say(f"{self._name(rank)} is back")
        self._awaited = awaited
        if self._give_up and (over := silent(self._give_up)):
            self._end_for(over)

    def _end_for(self, hung: Collection[int]) -> NoReturn:
        self.gave_up = True
        for rank in hung:
            note("lost", ERROR, lost=rank, error=LOST["hung"], fatal=True)
            self.node.absent(rank)
        raise ShardLost(
            f"{', '.join(map(self._name, sorted(hung)))}: no sign of life for {self._give_up:g} s ([heartbeat] "
            "give_up), and nobody can take over from it: go on from the last checkpoint with --resume latest"
        )

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.node.layout.places[rank]})"

    def _bearable(self, rank: int) -> bool:
        """Tell whether the run can go on without a rank that hangs: if not, it had better wait for it."""
        view = self.node.view
        if view.roles[rank] is None or not self.node.van.survives:
            return False
        dead = set(self._dead)
        return _bears(view, dead | {rank}) or not _bears(view, dead)  # else it is over, whoever wakes up

    def tick(self) -> None:
        """Look whether anything is to be done."""
        self._notice()
        view = self.node.view
        gone = [rank for rank in self._dead if view.roles[rank] is not None]
        if self.leading:
            if gone or self._changes:
                self._decide(gone)
        elif view.leader in self._dead:
            self._orphaned = self._orphaned or self.node.van.now()
            if self.node.van.now() - self._orphaned > ORPHANED:
                raise Fenced
            heirs = [rank for rank in view.succession() if rank not in self._dead]
            if heirs and heirs[0] == self.node.rank:
                self._succeed()

    # --- the leader ------------------------------------------------------------------------------

    def ask(self, change: Change) -> None:
        """Have the leader, this rank, change the view as soon as it can."""
        self._changes.append(change)

    def _decide(self, gone: Collection[int]) -> None:
        view = self.node.view
        made = next_epoch(view)
        roles = {rank: view.roles[rank] for rank in gone}
        made = self._mourn(made, roles)
        for role in roles.values():
            made = self._promote(made, role)
        while self._changes:
            made = self._changes.popleft()(made)
        made = mended(made, self.replicas)
        if replace(made, epoch=view.epoch) != view:
            self._publish(made, gone)

    def _mourn(self, view: View, gone: Mapping[int, Role | None]) -> View:
        """Return the view without ranks that are gone; says so in the log, and which of them were too many."""
        wall = self.node.van.wall()
        losses = [Loss(rank, str(role), self._dead[rank], wall) for rank, role in gone.items() if role]
        try:
            left = without(view, losses)
        except ShardLost:
            for loss in losses:
                note("lost", ERROR, lost=loss.rank, error=LOST[loss.cause], fatal=True)
            raise
        for loss in losses:
            note("lost", WARNING, lost=loss.rank, error=LOST[loss.cause])
        return left

    def _promote(self, view: View, lost: Role | None) -> View:
        """Put a spare in a lost server's place; a lost worker's is filled when its program says so."""
        spare = stand_in(view)
        return with_server(view, spare) if lost is Role.SERVER and spare is not None else view

    def _publish(self, view: View, gone: Collection[int] = ()) -> None:
        node = self.node
        servers = {rank for rank in view.servers if rank != node.rank}
        if gone:
            self._unseen[view.epoch], self._lost_at[view.epoch] = servers, list(gone)
        meta = view.to_meta()
        for rank in node.view.alive:
            if rank != node.rank:
                node.control(rank, Command.VIEW, meta)
        node.adopt(view)
        self._watch()
        self._check_seen()
        # A chain may have become whole with what was known already.
        if mended(next_epoch(view), self.replicas) != next_epoch(view):
            self._changes.append(lambda same: same)

    def _seen(self, message: Message) -> None:
        if self._asked is not None:
            self._told(message)
            return
        for epoch, unseen in self._unseen.items():
            if epoch <= int(message.meta["epoch"]):
                unseen.discard(message.sender)
        self._check_seen()

    def _check_seen(self) -> None:
        alive = set(self.node.view.alive)
        for epoch in [epoch for epoch, unseen in self._unseen.items() if not unseen & alive]:
            for rank in self._lost_at.pop(epoch):
                self.recovered[rank] = self.node.van.wall()
            del self._unseen[epoch]

    def _whole(self, message: Message) -> None:
        shard, since, rank = int(message.meta["shard"]), int(message.meta["since"]), message.sender
        self._changes.append(lambda view: whole(view, shard, rank, since))

    def _drained(self, message: Message) -> None:
        shard, since = int(message.meta["shard"]), int(message.meta["since"])
        if self.node.view.chains[shard].closing:
            self._changes.append(lambda view: drained(view, shard, since, self.replicas))

    # --- joining and leaving ---------------------------------------------------------------------

    def join_server(self) -> int:
        """Make a spare a server; give its rank. InputError if there is none."""
        view = self.node.view
        rank = stand_in(view)
        if rank is None:
            raise InputError("no spare rank is left to join: start the job with --set layout.spares=N")
        if VACANT not in view.ring.slots:
            raise InputError(
                f"the ring's {len(view.ring.slots)} slots are taken: it has one for each server and spare at the start"
            )
        self.ask(lambda view: with_server(view, rank))
        return rank

    def leave_server(self, rank: int) -> None:
        """Let a server give up its shards and become a spare. InputError if it is the last one, or none."""
        view = self.node.view
        if rank not in view.ring.servers:
            raise InputError(
                f"rank {rank} is no server; servers are {', '.join(map(str, view.ring.servers))}"
            )
        if len(view.ring.servers) == 1:
            raise InputError(f"rank {rank} is the last server: it cannot leave")
        self.ask(lambda view: without_server(view, rank))

    def set_workers(self, workers: Collection[int]) -> None:
        """Let these be the workers from now on; others that were are spares. Adopted when this returns."""
        able = (Role.WORKER, Role.SPARE)  # a spare may have become a server just now

        def change(view: View) -> View:
            servers = view.ring.servers
            return with_workers(view, [r for r in workers if view.roles[r] in able and r not in servers])

        self.ask(change)
        self.tick()

    # --- everyone else ---------------------------------------------------------------------------

    def _heed(self, message: Message) -> None:
        if message.sender in self._forsworn:
            return
        view = View.from_meta(message.meta)
        if view.epoch > self.node.view.epoch:
            self._asked, self._orphaned = None, 0.0
            for loss in view.losses:
                self._dead.setdefault(loss.rank, loss.cause)
            self.node.adopt(view)
            self._watch()
        if self.node.role is Role.SERVER:
            self.node.control(view.leader, Command.VIEW_SEEN, {"epoch": view.epoch})

    def _tell(self, message: Message) -> None:
        if self.node.view.leader != message.sender:
            self._forsworn.add(self.node.view.leader)
        self._orphaned = 0.0
        view = self.node.view
        told = {"epoch": view.epoch} if self.node.role is Role.WORKER else view.to_meta()
        self.node.control(message.sender, Command.VIEW_SEEN, told)

    # --- succession --------------------------------------------------------------------------------

    def _succeed(self) -> None:
        """Become the leader: first learn the latest view from all that may have shards.

        While it waits for one that hangs, all are asked again: nobody is to take itself for forgotten.
        """
        view, me = self.node.view, self.node.rank
        others = {rank for rank in view.alive if rank != me and view.roles[rank] is not Role.WORKER}
        if self._asked is None:
            self._asked, self._latest, self._answered = others - set(self._dead), view, False
            self._ask_views(self._asked)
        self._asked -= set(self._dead)
        if not self._asked:
            self._take_over()
        elif self.node.van.now() - self._asked_at > ORPHANED / 4:
            self._ask_views(rank for rank in view.alive if rank != me and rank not in self._dead)

    def _ask_views(self, ranks: Iterable[int]) -> None:
        self._asked_at = self.node.van.now()
        for rank in ranks:
            self.node.control(rank, Command.ASK_VIEW, {})

    def _told(self, message: Message) -> None:
        assert self._asked is not None
        self._orphaned, self._answered = 0.0, True
        told = View.from_meta(message.meta) if "leader" in message.meta else None
        if told is None:
            return
        if told.epoch > self._latest.epoch:
            self._latest = told
        self._asked.discard(message.sender)
        if not self._asked:
            self._take_over()

    def _take_over(self) -> None:
        self._asked = None
        latest = self._latest
        epoch = (latest.epoch // GENERATION + 1) * GENERATION
        gone = [rank for rank in self._dead if latest.roles[rank] is not None]
        roles = {rank: latest.roles[rank] for rank in gone}
        made = self._mourn(replace(latest, epoch=epoch), roles)
        for role in roles.values():
            made = self._promote(made, role)
        made = replace(mended(made, self.replicas), leader=self.node.rank)
        self._publish(made, gone)
