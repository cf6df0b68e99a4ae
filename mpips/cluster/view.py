"""Views: who is there, and who holds which shard, as of one epoch (paper, section 4.3).

The leader (the paper's server manager) owns the view, everyone else has the last one that it was sent. Each message
carries its sender's epoch, and a rank that is behind keeps the message until it has caught up: what happens after a
change of the view, also by way of other ranks, happens nowhere before it.

A view is a value; what becomes of it when a rank dies, joins or leaves is a function to another view.

A shard's chain is the servers that hold it in full, the primary first, and at most one `learner` behind them, which is
still being fed its copy by the last member. What a member has applied, all before it have: so members may go, and a
whole learner may become the last one, at any instant. For another order all must stand alike: the chain is `closing`,
its primary takes no changes until the last one is applied by all, and then the new order holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mpips.cluster.hash_ring import VACANT, Ring
from mpips.cluster.layout import Layout, Role
from mpips.errors import ShardLost

NOBODY = -1
GENERATION = 1 << 20
"""Epochs of one leader: those of its successor are higher, whatever the last one did unseen."""


class Chain(NamedTuple):
    """Who holds a shard: `members` in full, primary first; `learner` not yet. It last changed at epoch `since`."""

    members: tuple[int, ...]
    learner: int = NOBODY
    closing: bool = False
    since: int = 0

    @property
    def everyone(self) -> tuple[int, ...]:
        """Return the members, and the learner if there is one."""
        return self.members if self.learner == NOBODY else (*self.members, self.learner)


class Loss(NamedTuple):
    """A rank that is no longer there: what it was, why ("died", "hung"), and when that was noticed (wall, s)."""

    rank: int
    role: str
    cause: str
    noticed: float


@dataclass(frozen=True)
class View:
    """The cluster at one epoch."""

    epoch: int
    leader: int
    roles: tuple[Role | None, ...]
    """By rank; None for those that are gone."""
    workers: tuple[int, ...]
    """In worker order: that in which contributions are added."""
    crew: int
    """The epoch at which the workers last changed."""
    ring: Ring
    chains: tuple[Chain, ...]
    """By shard."""
    heirs: tuple[int, ...] = ()
    """Who may lead, in the order in which they would; it stays, since the first ones have the journal."""
    losses: tuple[Loss, ...] = ()
    origin: int = 0
    """The name of the scheduler, whoever it is by now, as the caller of tasks."""

    @property
    def alive(self) -> list[int]:
        """Return the ranks that are there."""
        return [rank for rank, role in enumerate(self.roles) if role is not None]

    def of(self, role: Role) -> tuple[int, ...]:
        """Return the ranks of a role, in ascending order."""
        return tuple(rank for rank, each in enumerate(self.roles) if each is role)

    @property
    def servers(self) -> tuple[int, ...]:
        """Return the ranks that hold shards, or will."""
        return self.of(Role.SERVER)

    @property
    def spares(self) -> tuple[int, ...]:
        """Return the spares that can take another role: not one that leads."""
        return tuple(rank for rank in self.of(Role.SPARE) if rank != self.leader)

    def rank_of(self, address: int) -> int:
        """Return who answers to an address now: a rank, or the primary of shard ~address."""
        return address if address >= 0 else self.chains[~address].members[0]

    def caller(self, origin: int) -> int:
        """Return the rank of a task's caller."""
        return self.leader if origin == self.origin else origin

    def succession(self) -> list[int]:
        """Return the ranks that may lead, in the order in which they would: the leader first."""
        return [self.leader, *(rank for rank in self.heirs if rank != self.leader)]

    def primary_of(self, rank: int) -> list[int]:
        """Return the shards whose primary a rank is."""
        return [shard for shard, chain in enumerate(self.chains) if chain.members[0] == rank]

    def to_meta(self) -> dict[str, Any]:
        """Return the view as JSON-able data."""
        return {
            "epoch": self.epoch,
            "leader": self.leader,
            "roles": [role and role.value for role in self.roles],
            "workers": self.workers,
            "crew": self.crew,
            "slots": self.ring.slots,
            "virtual": self.ring.virtual_servers,
            "hosts": self.ring.hosts,
            "chains": self.chains,
            "heirs": self.heirs,
            "losses": self.losses,
            "origin": self.origin,
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> View:
        """Return the view that `to_meta` was given."""
        return cls(
            meta["epoch"],
            meta["leader"],
            tuple(Role(role) if role else None for role in meta["roles"]),
            tuple(meta["workers"]),
            meta["crew"],
            Ring(tuple(meta["slots"]), meta["virtual"], tuple(meta["hosts"])),
            tuple(
                Chain(tuple(members), learner, closing, since)
                for members, learner, closing, since in meta["chains"]
            ),
            tuple(meta["heirs"]),
            tuple(Loss(*each) for each in meta["losses"]),
            meta["origin"],
        )


def first_view(
    layout: Layout, virtual_servers: int = 0, replicas: int = 0, hosts: Sequence[Hashable] = ()
) -> View:
    """Return the view that every rank starts from; it needs no message, since the layout is known to all.

    `hosts` names each rank's host, so that copies are kept apart; without them all count as on one.
    """
    ring = Ring.of(layout.servers, virtual_servers, len(layout.servers) + len(layout.spares), hosts)
    chains = tuple(map(Chain, ring.chains(replicas)))
    roles = tuple(place.role for place in layout.places)
    leader, heirs = layout.schedulers[0], layout.schedulers + layout.spares + layout.servers
    return View(0, leader, roles, layout.workers, 0, ring, chains, heirs, origin=leader)


def next_epoch(view: View) -> View:
    """Return the view under the next epoch, under which all changes since `view` are to be known."""
    return replace(view, epoch=view.epoch + 1)


def without(view: View, losses: Iterable[Loss]) -> View:
    """Return the view without ranks that are gone, at its epoch.

    Raises:
        ShardLost: some shard has no member left.
    """
    losses = [loss for loss in losses if view.roles[loss.rank] is not None]
    gone = {loss.rank for loss in losses}
    chains = tuple(_bereft(view, chain, gone) for chain in view.chains)
    if not all(chain.members for chain in chains):
        raise ShardLost(_nothing_left(view, gone))
    slots = tuple(VACANT if rank in gone else rank for rank in view.ring.slots)
    ring = view.ring
    if any(rank != VACANT for rank in slots):
        ring = replace(ring, slots=slots)
    else:  # only servers that were about to leave are left: one of them stays
        ring = replace(ring, slots=(chains[0].members[0], *slots[1:]))
    workers = tuple(rank for rank in view.workers if rank not in gone)
    return replace(
        view,
        roles=tuple(None if rank in gone else role for rank, role in enumerate(view.roles)),
        workers=workers,
        crew=view.epoch if workers != view.workers else view.crew,
        ring=ring,
        chains=chains,
        heirs=tuple(rank for rank in view.heirs if rank not in gone),
        losses=view.losses + tuple(losses),
    )


def _bereft(view: View, chain: Chain, gone: set[int]) -> Chain:
    if not gone & set(chain.everyone):
        return chain
    members = tuple(rank for rank in chain.members if rank not in gone)
    return Chain(members, since=view.epoch)  # a copy that was not whole is begun anew


def _nothing_left(view: View, gone: set[int]) -> str:
    names = ", ".join(f"rank {rank}" for rank in sorted(gone & set(view.servers)))
    return (
        f"{names} died, and no other server holds a copy of its keys: go on from the last checkpoint with "
        "--resume latest; with ring.replicas = k a run survives the loss of k servers at once"
    )


def stand_in(view: View) -> int | None:
    """Choose the spare that is to be the next server: one of a host with as few servers as any; None without spares.

    So copies find as many different hosts as there are. Of equals it is the last, as the first ones lead sooner.
    """
    host = view.ring.host
    crowd = Counter(host(server) for server in view.ring.servers)
    return min(reversed(view.spares), key=lambda rank: crowd[host(rank)], default=None)


def with_server(view: View, rank: int) -> View:
    """Return the view with a spare as a server more, if the ring has room; its shards come to it one by one."""
    if view.roles[rank] is not Role.SPARE or VACANT not in view.ring.slots:
        return view
    roles = tuple(Role.SERVER if each == rank else role for each, role in enumerate(view.roles))
    return replace(view, roles=roles, ring=view.ring.join(rank))


def without_server(view: View, rank: int) -> View:
    """Return the view in which a server, if not the last one, gives its shards up; it is a spare once it has."""
    if rank not in view.ring.servers or len(view.ring.servers) == 1:
        return view
    return replace(view, ring=view.ring.leave(rank))


def with_workers(view: View, workers: Iterable[int]) -> View:
    """Return the view with these workers, in this order; spares among them are workers now, others are spares."""
    workers = tuple(workers)
    roles = list(view.roles)
    for rank in view.workers:
        if roles[rank] is Role.WORKER and rank not in workers:
            roles[rank] = Role.SPARE
    for rank in workers:
        roles[rank] = Role.WORKER
    crew = view.epoch if workers != view.workers else view.crew
    heirs = [rank for rank in view.heirs if rank not in workers]
    heirs += [rank for rank in view.workers if roles[rank] is Role.SPARE]
    return replace(view, roles=tuple(roles), workers=workers, crew=crew, heirs=tuple(heirs))


def whole(view: View, shard: int, rank: int, since: int) -> View:
    """Return the view in which a shard's learner has become a member of its chain.

    `rank` says that its copy is whole, of the chain that there has been `since`: any other copy is begun anew.
    """
    chain = view.chains[shard]
    if chain.learner != rank or chain.since != since:
        return view
    return _set_chain(view, shard, Chain((*chain.members, rank), since=view.epoch))


def drained(view: View, shard: int, since: int, replicas: int) -> View:
    """Return the view in which a chain that stands still has the order that the ring wants.

    Its primary says so, of the chain that there has been `since`.
    """
    chain = view.chains[shard]
    wanted = view.ring.holders(shard, replicas)
    if not chain.closing or chain.since != since or not set(wanted) <= set(chain.members):
        return view
    return _set_chain(view, shard, Chain(wanted, since=view.epoch))


def mended(view: View, replicas: int) -> View:
    """Return the view in which chains that are not what the ring wants are a step nearer to it.

    A chain that lacks someone gets a learner, fed by its last member; nobody feeds or learns two at once, so that
    what making chains whole takes of a server is bounded.
    """
    busy = {
        rank
        for chain in view.chains
        if chain.learner != NOBODY
        for rank in (chain.members[-1], chain.learner)
    }
    holders = view.ring.chains(replicas)
    for shard, chain in enumerate(view.chains):
        if chain.learner != NOBODY:
            continue
        wanted = holders[shard]
        missing = [rank for rank in wanted if rank not in chain.members]
        if missing and not busy & {chain.members[-1], missing[0]}:
            busy |= {chain.members[-1], missing[0]}
            view = _set_chain(view, shard, Chain(chain.members, missing[0], False, view.epoch))
        elif not missing and wanted != chain.members:
            in_order = wanted == tuple(rank for rank in chain.members if rank in wanted)
            if in_order:
                view = _set_chain(view, shard, Chain(wanted, since=view.epoch))
            elif not chain.closing:
                view = _set_chain(view, shard, Chain(chain.members, closing=True, since=view.epoch))
    held = {rank for chain in view.chains for rank in chain.everyone} | set(view.ring.servers)
    roles = tuple(
        Role.SPARE if role is Role.SERVER and rank not in held else role
        for rank, role in enumerate(view.roles)
    )
    return view if roles == view.roles else replace(view, roles=roles)


def _set_chain(view: View, shard: int, chain: Chain) -> View:
    chains = list(view.chains)
    chains[shard] = chain
    return replace(view, chains=tuple(chains))
