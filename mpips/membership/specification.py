"""The specification of views, chains, succession and migration, as an executable model.

A *behaviour* is a sequence of views. `of_view` says what holds in every view, `of_step` which view may follow which,
and `wrong_in` whether a log of a run is a behaviour, and where it is not. Nothing here is used to make views: the
functions that do so (`mpips.cluster.view`, `mpips.membership`) are checked by this.

**Views.** Views are ordered by epochs. An epoch has one view, so it has one leader, one set of workers, and one primary
for each shard. A rank adopts views in the order of their epochs, and may miss some. A lost rank is in no later view.

**Succession.** The epochs of one leader are a generation. A leader publishes its views one after the other. The first
view of another leader has a higher generation, and is agreed on by a majority, or by half of the votes and a lease; so
is each view that excludes a silent rank. The new leader was in the succession of the view that it continues from.

    view n, agreed --> n+1 --> n+2          of one leader
                        |
                        +--> m, agreed      of its successor, which may not have received n+2

The views that were agreed on form one chain. Those that a leader published without agreement since the last of them
(repairs, joins, deaths that MPI has reported) may be unknown to its successor: then they have no effect on later views.

**Chains.** The members of a chain have all acknowledged changes of the shard. So

    leave    any members may be lost, and those that the ring does not want may leave when all others are there; the
             others keep their order, and the first one is the primary
    copy     a chain that lacks a holder gets a learner, behind its last member
    join     a learner that has the whole copy becomes the last member
    close    a chain that has all its holders, but not in the order of the ring, accepts no changes until all
             members have the last one
    hand over    then it takes the order of the ring: the second stage of the migration

and no other server becomes a member. A chain that changes has the epoch of this view, in `since`: reports about its
former state, such as a complete copy, are void.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from mpips.cluster.layout import Cause, Role
from mpips.cluster.view import GENERATION, NOBODY, Chain, View

MOVES = frozenset(
    (
        (Role.SPARE, Role.SERVER),
        (Role.SPARE, Role.WORKER),
        (Role.SERVER, Role.SPARE),
        (Role.WORKER, Role.SPARE),
        # As a spare between two changes in one view.
        (Role.WORKER, Role.SERVER),
    )
)
"""The changes of a living rank's role in one view."""


# --- what holds in every view ----------------------------------------------------------------------------


def of_view(view: View) -> Iterator[str]:
    """Yield what is wrong with a view by itself."""
    alive, servers = set(view.alive), set(view.servers)
    if view.leader not in alive or view.roles[view.leader] is Role.WORKER:
        yield f"its leader {view.leader} is not in it, or a worker"
    if sorted(view.workers) != sorted(view.of(Role.WORKER)):
        yield f"its workers are {view.workers}, but the ranks of that role {view.of(Role.WORKER)}"
    if set(view.successors) != alive - set(view.workers):
        yield f"ranks {sorted(alive - set(view.workers))} may lead, but {view.successors} are listed"
    lost = [loss.rank for loss in view.losses]
    if len(set(lost)) < len(lost) or set(lost) != set(range(len(view.roles))) - alive:
        yield f"the losses are of {lost}, but {sorted(alive)} are left"
    if not max(view.workers_since, view.agreed) <= view.epoch:
        yield "something happens in it later than it"
    if not servers.issuperset(view.ring.servers):
        yield f"{view.ring.servers} are on the ring, but {view.servers} are servers"
    copying: list[int] = []
    for shard, chain in enumerate(view.chains):
        for wrong in _of_chain(chain, view, servers):
            yield f"shard {shard}: {wrong}"
        if chain.learner != NOBODY:
            copying += (chain.members[-1], chain.learner)
    if len(set(copying)) < len(copying):
        yield f"a server takes part in two copies at once: {sorted(copying)}"


def _of_chain(chain: Chain, view: View, servers: Collection[int]) -> Iterator[str]:
    everyone = chain.everyone
    if not chain.members:
        yield "no member holds it"
    if len(set(everyone)) < len(everyone) or not servers >= set(everyone):  # type: ignore[operator]
        yield f"its chain {everyone} has others than servers {sorted(servers)}, or one twice"
    if chain.closing and chain.learner != NOBODY:
        yield "a chain that is closing has a learner"
    if chain.since > view.epoch:
        yield "its chain has changed later than the view"


# --- which view may follow which -------------------------------------------------------------------------


def of_step(before: View, after: View, replicas: int) -> Iterator[str]:
    """Yield what is wrong with `after` as the view that follows `before`."""
    if after.epoch <= before.epoch:
        yield f"its epoch {after.epoch} is not later than {before.epoch}"
    yield from _of_leaders(before, after)
    yield from _of_ranks(before, after)
    if (after.origin, after.ring.hosts) != (before.origin, before.ring.hosts):
        yield "the origin of tasks, or the hosts of ranks, have changed"
    for shard, (old, new) in enumerate(zip(before.chains, after.chains, strict=True)):
        for wrong in _of_chains(old, new, shard, before, after, replicas):
            yield f"shard {shard}: {wrong}"


def _of_leaders(before: View, after: View) -> Iterator[str]:
    is_agreed = after.agreed > before.epoch
    if generation(after) == generation(before):
        if after.leader != before.leader:
            yield f"ranks {before.leader} and {after.leader} lead in one generation"
    else:
        if after.leader not in before.succession():
            yield f"rank {after.leader} was not in the succession {before.succession()}"
        if not is_agreed or after.agreed // GENERATION != generation(after):
            yield f"rank {after.leader} leads without agreement"
    silent = [loss.rank for loss in after.losses[len(before.losses) :] if loss.cause is Cause.HUNG]
    if silent and not is_agreed:
        yield f"silent ranks {silent} were excluded without agreement"
    if after.agreed < before.agreed or after.lease < before.lease:
        yield "an agreement, or a lease, is forgotten"


def _of_ranks(before: View, after: View) -> Iterator[str]:
    if after.losses[: len(before.losses)] != before.losses:
        yield "losses have been forgotten"
    for rank, (old, new) in enumerate(zip(before.roles, after.roles, strict=True)):
        if old is None and new is not None:
            yield f"rank {rank} was lost, and is back"
        elif old is not None and new not in (old, None) and (old, new) not in MOVES:
            yield f"rank {rank} becomes {new}, but was {old}"
    expected = before.workers_since
    if after.workers == before.workers:
        # They may have changed, and changed back, in proposals that were not published.
        if after.workers_since != expected and not before.epoch < after.workers_since <= after.epoch:
            yield f"the workers are the same, but since epoch {after.workers_since}, not {expected}"
    elif not before.epoch < after.workers_since <= after.epoch:
        yield f"the workers change, but since epoch {after.workers_since}"


def _of_chains(old: Chain, new: Chain, shard: int, before: View, after: View, replicas: int) -> Iterator[str]:
    if new == old:
        if lost := [rank for rank in new.everyone if after.roles[rank] is None]:
            yield f"lost ranks {lost} are still in its chain"
        return
    if not before.epoch < new.since <= after.epoch:
        yield f"its chain has changed, but since epoch {new.since}"
    wanted = after.ring.holders(shard, replicas)
    if strangers := set(new.members) - set(old.everyone):
        yield f"ranks {sorted(strangers)} have become members without a copy"
    kept = [rank for rank in old.everyone if rank in new.members]
    if old.learner in new.members and new.members[-1] != old.learner:
        yield f"the learner {old.learner} has not become the last member"
    # The ring may have changed again in the view that completes a hand-over.
    orders = wanted, before.ring.holders(shard, replicas)
    handed_over = old.closing and new.members in orders
    if list(new.members) != kept and not handed_over:
        yield f"its members {old.members} have become {new.members} without being closed"
    left = [rank for rank in old.members if after.roles[rank] is not None and rank not in new.members]
    if left and new.members not in orders:
        yield f"members {left} have left, and the holders {wanted} are not all there"
    if new.learner not in (NOBODY, *wanted):
        yield f"the learner {new.learner} is none of the holders {wanted}"
    if new.closing and (set(wanted) - set(new.members) or new.members == wanted):
        yield f"it is closed, though {new.members} need not take the order {wanted}"


def generation(view: View) -> int:
    """Return the generation of a view."""
    return view.epoch // GENERATION


def of_behaviour(published: Iterable[View], replicas: int) -> Iterator[str]:
    """Yield what is wrong with all views that were published in a run, the first one included, in any order."""
    by_epoch: dict[int, View] = {}
    for view in published:
        if by_epoch.setdefault(view.epoch, view) != view:
            yield f"epoch {view.epoch}: two views, of ranks {by_epoch[view.epoch].leader} and {view.leader}"
    views = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    for number, view in enumerate(views):
        yield from (f"epoch {view.epoch}: {wrong}" for wrong in of_view(view))
        if number:
            found = [list(of_step(base, view, replicas)) for base in _bases(views[:number], view)]
            if all(found):
                yield from (f"epoch {view.epoch}: {wrong}" for wrong in found[0])


def _bases(earlier: Sequence[View], view: View) -> list[View]:
    """List the views that a later one may follow, the latest first.

    It is the last one; but a successor may not have received those since the last one that was agreed on.
    """
    bases = [earlier[-1]]
    if generation(view) > generation(earlier[-1]):
        for following, base in pairwise(reversed(earlier)):
            if following.agreed == following.epoch:
                break
            bases.append(base)
    return bases


# --- logs ------------------------------------------------------------------------------------------------


def wrong_in(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return where the log of a run is not a behaviour; [] if it is.

    Records have the fields of the lines of a run's logs; those of one rank are in the order of time. An event "view"
    says that `rank` has adopted the view of an `epoch`, with its `leader`; "published" that it publishes one (see
    `published`). Others do not count. The first view of a run is published, too.

    >>> wrong_in([{"event": "view", "rank": rank, "epoch": 1, "leader": rank} for rank in (0, 2)])
    ['epoch 1: ranks 0 and 2 lead']
    """
    found: list[str] = []
    leaders, latest = dict[int, int](), dict[int, int]()
    views: dict[View, int] = {}
    for record in records:
        if record["event"] not in ("view", "published"):
            continue
        rank, epoch, leader = int(record["rank"]), int(record["epoch"]), int(record["leader"])
        if leaders.setdefault(epoch, leader) != leader:
            found.append(f"epoch {epoch}: ranks {leaders[epoch]} and {leader} lead")
        if epoch < latest.get(rank, 0):
            found.append(f"epoch {epoch}: rank {rank} adopts it after {latest[rank]}")
        latest[rank] = epoch
        if record["event"] == "published":
            if rank != leader:
                found.append(f"epoch {epoch}: rank {rank} publishes it, which rank {leader} leads")
            views[View.from_meta(record["meta"])] = int(record["replicas"])
    return [*found, *of_behaviour(views, max(views.values(), default=0))]


def published(view: View, rank: int, replicas: int) -> dict[str, Any]:
    """Return the record of a view that a rank publishes in a run with so many copies of each shard."""
    about = {"rank": rank, "epoch": view.epoch, "leader": view.leader, "replicas": replicas}
    return {"event": "published", **about, "meta": view.to_meta()}
