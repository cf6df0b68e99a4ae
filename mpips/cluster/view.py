"""Views: the ranks, their roles, and the holders of each shard in one epoch (paper, sections 4.3 and 4.5).

The leader (the paper's server manager) owns the view; every other rank has the last one that it received. Each message
carries its sender's epoch, and a rank in an earlier epoch keeps the message until it has adopted that view. So no rank
sees an effect of a change of the view, directly or through other ranks, before the change itself.

A view is an immutable value; a rank's death, join or departure is a function from a view to the next.

A shard's chain consists of the servers that hold it in full, the primary first, and at most one `learner` after them,
to which the last member is sending a copy. A change that a member has applied was applied by all members before it: so
members may leave, and a complete learner may become the last member, at any time. The order may change only while all
members have the same state: the chain is `closing`, and its primary accepts no changes until all members have applied
the last one; then the new order takes effect. These are the two stages of a migration: copy, then hand over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from mpips.cluster.hash_ring import VACANT, Ring
from mpips.cluster.layout import Cause, Layout, Role
from mpips.errors import ShardLost

NOBODY = -1
GENERATION = 1 << 20
"""Number of epochs of one leader: those of its successor are higher than any that it may have published."""


class Chain(NamedTuple):
    """Holders of a shard: `members` in full, primary first; `learner` in part. It last changed in epoch `since`."""

    members: tuple[int, ...]
    learner: int = NOBODY
    closing: bool = False
    since: int = 0

    @property
    def everyone(self) -> tuple[int, ...]:
        """Return the members, and the learner if there is one."""
        return self.members if self.learner == NOBODY else (*self.members, self.learner)


class Loss(NamedTuple):
    """A lost rank: its role, the cause, and the time of its detection (wall, s)."""

    rank: int
    role: str
    cause: Cause
    noticed: float


@dataclass(frozen=True)
class View:
    """The cluster at one epoch."""

    epoch: int
    leader: int
    roles: tuple[Role | None, ...]
    """By rank; None for lost ranks."""
    workers: tuple[int, ...]
    """In worker order: the order in which contributions are added."""
    workers_since: int
    """The epoch at which the workers last changed."""
    ring: Ring
    chains: tuple[Chain, ...]
    """By shard."""
    successors: tuple[int, ...] = ()
    """The ranks that may lead, but for their hosts in order of succession."""
    losses: tuple[Loss, ...] = ()
    origin: int = 0
    """The scheduler's id as the caller of tasks, the same for all its successors."""
    lease: int = 0
    """The number of leases that are known to have decided this view or an earlier one."""
    agreed: int = 0
    """The last epoch that was agreed on (`mpips.membership.agreement`): later ones are its leader's decisions."""

    @property
    def alive(self) -> list[int]:
        """Return the ranks that are not lost."""
        return [rank for rank, role in enumerate(self.roles) if role is not None]

    def of(self, role: Role) -> tuple[int, ...]:
        """Return the ranks of a role, in ascending order."""
        return tuple([rank for rank, each in enumerate(self.roles) if each is role])

    @property
    def servers(self) -> tuple[int, ...]:
        """Return the ranks that hold shards, or are to."""
        return self.of(Role.SERVER)

    @property
    def spares(self) -> tuple[int, ...]:
        """Return the spares that can take another role: all but the leader."""
        return tuple([rank for rank in self.of(Role.SPARE) if rank != self.leader])

    def rank_of(self, address: int) -> int:
        """Return the rank that an address means now: a rank itself, or the primary of shard ~address."""
        return address if address >= 0 else self.chains[~address].members[0]

    def caller(self, origin: int) -> int:
        """Return the rank of a task's caller."""
        return self.leader if origin == self.origin else origin

    def succession(self) -> list[int]:
        """Return the ranks that may lead, in order of succession: the leader first.

        The first ones have its journal, and watch it: so they are on as many hosts as there can be.
        """
        return list(_spread(self.leader, self.successors, self.ring.hosts))

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
            "workers_since": self.workers_since,
            "slots": self.ring.slots,
            "virtual": self.ring.virtual_servers,
            "hosts": self.ring.hosts,
            "chains": self.chains,
            "successors": self.successors,
            "losses": self.losses,
            "origin": self.origin,
            "lease": self.lease,
            "agreed": self.agreed,
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> View:
        """Return the view that `to_meta` encoded."""
        # Of tuples from generators, CPython keeps 2,000 of each length when they are freed, and uses none again.
        return cls(
            meta["epoch"],
            meta["leader"],
            tuple([Role(role) if role else None for role in meta["roles"]]),
            tuple(meta["workers"]),
            meta["workers_since"],
            Ring(tuple(meta["slots"]), meta["virtual"], tuple(meta["hosts"])),
            tuple(
                [
                    Chain(tuple(members), learner, closing, since)
                    for members, learner, closing, since in meta["chains"]
                ]
            ),
            tuple(meta["successors"]),
            tuple([Loss(rank, role, Cause(cause), noticed) for rank, role, cause, noticed in meta["losses"]]),
            meta["origin"],
            meta.get("lease", 0),
            meta.get("agreed", 0),
        )


def first_view(
    layout: Layout, virtual_servers: int = 0, replicas: int = 0, hosts: Sequence[Hashable] = ()
) -> View:
    """Return the initial view; each rank computes it from the layout, without messages.

    `hosts` are the ranks' host names, so that copies are on different hosts; without them all ranks count as on one.
    """
    ring = Ring.of(layout.servers, virtual_servers, len(layout.servers) + len(layout.spares), hosts)
    chains = tuple([Chain(members) for members in ring.chains(replicas)])
    roles = tuple([place.role for place in layout.places])
    leader, successors = layout.schedulers[0], layout.schedulers + layout.spares + layout.servers
    return View(0, leader, roles, layout.workers, 0, ring, chains, successors, origin=leader)


@lru_cache(maxsize=16)
def _spread(first: int, others: tuple[int, ...], hosts: tuple[int, ...]) -> tuple[int, ...]:
    """Return `first` and the others, of which the first one of each host comes before the second one of any host."""
    ranks = [first, *(rank for rank in others if rank != first)]
    levels: dict[int, int] = {}
    count: Counter[int] = Counter()
    for rank in ranks:
        host = hosts[rank] if hosts else rank
        levels[rank] = count[host]
        count[host] += 1
    return tuple(sorted(ranks, key=levels.__getitem__))


def next_epoch(view: View) -> View:
    """Return the view with the next epoch, in which all changes since `view` are published."""
    return replace(view, epoch=view.epoch + 1)


def without(view: View, losses: Iterable[Loss]) -> View:
    """Return the view without lost ranks, in its epoch.

    Raises:
        ShardLost: some shard has no member left.
    """
    losses = [loss for loss in losses if view.roles[loss.rank] is not None]
    gone = {loss.rank for loss in losses}
    chains = tuple([_without_members(view, chain, gone) for chain in view.chains])
    if not all(chain.members for chain in chains):
        raise ShardLost(_shard_lost_text(view, gone))
    slots = tuple([VACANT if rank in gone else rank for rank in view.ring.slots])
    ring = view.ring
    if any(rank != VACANT for rank in slots):
        ring = replace(ring, slots=slots)
    else:
        # Only servers that were leaving are left: one of them stays.
        ring = replace(ring, slots=(chains[0].members[0], *slots[1:]))
    workers = tuple([rank for rank in view.workers if rank not in gone])
    return replace(
        view,
        roles=tuple([None if rank in gone else role for rank, role in enumerate(view.roles)]),
        workers=workers,
        workers_since=view.epoch if workers != view.workers else view.workers_since,
        ring=ring,
        chains=chains,
        successors=tuple([rank for rank in view.successors if rank not in gone]),
        losses=view.losses + tuple(losses),
    )


def _without_members(view: View, chain: Chain, gone: set[int]) -> Chain:
    if not gone & set(chain.everyone):
        return chain
    members = tuple([rank for rank in chain.members if rank not in gone])
    # An incomplete copy is started again.
    return Chain(members, since=view.epoch)


def _shard_lost_text(view: View, gone: set[int]) -> str:
    names = ", ".join(f"rank {rank}" for rank in sorted(gone & set(view.servers)))
    return (
        f"{names} died, and no other server holds a copy of its keys: resume from the last checkpoint with "
        "--resume latest; with ring.replicas = k a run survives the loss of k servers at once"
    )


def survives(view: View, gone: Collection[int]) -> bool:
    """Return whether every shard has a member without these ranks."""
    return all(any(rank not in gone for rank in chain.members) for chain in view.chains)


def next_spare(view: View, lost: int = NOBODY) -> int | None:
    """Return the spare to become the next server, in place of the `lost` one if there is one; None without spares.

    It is on a host with fewest servers, so that copies can be on as many different hosts as possible; among those
    rather on another host than the lost one's. Among equals it is the last: the first ones lead sooner.
    """
    host = view.ring.host
    servers_on = Counter(host(server) for server in view.ring.servers)
    before = NOBODY if lost == NOBODY else host(lost)
    return min(
        reversed(view.spares), key=lambda rank: (servers_on[host(rank)], host(rank) == before), default=None
    )


def spare_worker(view: View, spares: Sequence[int], lost: int) -> int:
    """Return which of some spares takes the place of a lost worker: the last one on another host, or else the last."""
    host = view.ring.host
    return min(reversed(spares), key=lambda rank: host(rank) == host(lost))


def with_server(view: View, rank: int) -> View:
    """Return the view with a spare as an additional server, if a slot is vacant; it gets its shards one by one."""
    if view.roles[rank] is not Role.SPARE or VACANT not in view.ring.slots:
        return view
    roles = tuple([Role.SERVER if each == rank else role for each, role in enumerate(view.roles)])
    return replace(view, roles=roles, ring=view.ring.join(rank))


def without_server(view: View, rank: int) -> View:
    """Return the view in which a server, if not the last one, gives up its shards; then it is a spare."""
    if rank not in view.ring.servers or len(view.ring.servers) == 1:
        return view
    return replace(view, ring=view.ring.leave(rank))


def with_workers(view: View, workers: Iterable[int]) -> View:
    """Return the view with these workers, in this order; spares among them become workers, other workers spares."""
    workers = tuple(workers)
    roles = list(view.roles)
    for rank in view.workers:
        if roles[rank] is Role.WORKER and rank not in workers:
            roles[rank] = Role.SPARE
    for rank in workers:
        roles[rank] = Role.WORKER
    workers_since = view.epoch if workers != view.workers else view.workers_since
    successors = [rank for rank in view.successors if rank not in workers]
    successors += [rank for rank in view.workers if roles[rank] is Role.SPARE]
    return replace(
        view, roles=tuple(roles), workers=workers, workers_since=workers_since, successors=tuple(successors)
    )


def with_learner_joined(view: View, shard: int, rank: int, since: int) -> View:
    """Return the view in which a shard's learner has become a member of its chain.

    `rank` reports a complete copy for the chain of epoch `since`; a report for another chain changes nothing.
    """
    chain = view.chains[shard]
    if chain.learner != rank or chain.since != since:
        return view
    return _set_chain(view, shard, Chain((*chain.members, rank), since=view.epoch))


def with_ring_order(view: View, shard: int, since: int, replicas: int) -> View:
    """Return the view in which a closed chain has the order that the ring prescribes.

    Its primary reports, for the chain of epoch `since`, that all members have the same state.
    """
    chain = view.chains[shard]
    wanted = view.ring.holders(shard, replicas)
    if not chain.closing or chain.since != since or not set(wanted) <= set(chain.members):
        return view
    return _set_chain(view, shard, Chain(wanted, since=view.epoch))


def repaired(view: View, replicas: int) -> View:
    """Return the view in which each chain is one step nearer to the order that the ring prescribes.

    A chain with a missing member gets a learner, to which its last member sends the shard. No server takes part in two
    such copies at once, so that the load of repair on a server is bounded.
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
            in_order = wanted == tuple([rank for rank in chain.members if rank in wanted])
            if in_order:
                view = _set_chain(view, shard, Chain(wanted, since=view.epoch))
            elif not chain.closing:
                view = _set_chain(view, shard, Chain(chain.members, closing=True, since=view.epoch))
    holding = {rank for chain in view.chains for rank in chain.everyone} | set(view.ring.servers)
    roles = tuple(
        [
            Role.SPARE if role is Role.SERVER and rank not in holding else role
            for rank, role in enumerate(view.roles)
        ]
    )
    return view if roles == view.roles else replace(view, roles=roles)


def _set_chain(view: View, shard: int, chain: Chain) -> View:
    chains = list(view.chains)
    chains[shard] = chain
    return replace(view, chains=tuple(chains))
