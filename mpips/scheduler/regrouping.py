"""The choice of the workers when some are lost, join or leave.

For the migration of key ranges between servers see `mpips.server.migration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mpips.cluster.layout import Role
from mpips.cluster.view import View, spare_worker, with_workers
from mpips.membership.membership import Membership
from mpips.scheduler.pending_orders import PendingOrders


class Regrouped(NamedTuple):
    """A change of the workers, in ranks: `before`, `now`, and the new ones (`joined`), which hold no state yet."""

    before: tuple[int, ...]
    now: tuple[int, ...]
    joined: tuple[int, ...]

    @property
    def departed(self) -> list[int]:
        """Return the ranks that are no longer workers."""
        return [rank for rank in self.before if rank not in self.now]


def still_workers(view: View, ranks: Sequence[int]) -> list[int]:
    """Return those of some ranks that are workers in a view."""
    return [rank for rank in ranks if view.roles[rank] is Role.WORKER]


def new_workers(
    membership: Membership, former: Sequence[int], orders: PendingOrders, secure: Callable[[View], None]
) -> tuple[list[int], int, list[int], int]:
    """Replace the workers, at the leader, once its successors in the next view can succeed it: `secure(view)`.

    Returns:
        The new ones, the epoch of this set, those that have been workers throughout, and how many join by orders.
    """
    while True:
        view = membership.node.view
        workers, joined = choose_workers(view, former, orders)
        secure(with_workers(view, workers))
        were = still_workers(view, former)
        made = membership.node.view is view and membership.set_workers(workers)
        membership.await_agreement()
        if made:
            break
    orders.leaving.clear()
    view = membership.node.view
    return list(view.workers), view.workers_since, [rank for rank in were if rank in view.workers], joined


def choose_workers(view: View, former: Sequence[int], orders: PendingOrders) -> tuple[list[int], int]:
    """Return the new workers, and how many of them join by orders: spares replace lost ones, others join or leave.

    A spare on another host than the lost worker is preferred. If all others have died meanwhile, those that were to
    leave stay.
    """
    spares = list(view.spares)
    now: list[int] = []
    for rank in former:
        works = view.roles[rank] is Role.WORKER
        if works and rank not in orders.leaving:
            now.append(rank)
        elif not works and spares:
            now.append(spare_worker(view, spares, rank))
            spares.remove(now[-1])
    joining = [spares.pop() for _ in range(min(orders.joining, len(spares)))]
    return [*now, *joining] or still_workers(view, former), len(joining)
