"""The choice of the workers when some are lost, join or leave.

For the migration of key ranges between servers see `mpips.cluster.view`, `mpips.server.replication` and
`mpips.server.shard_snapshot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mpips.cluster.layout import Role
from mpips.cluster.view import View
from mpips.scheduler.pending_orders import PendingOrders


class Regrouped(NamedTuple):
    """A change of the workers, in ranks: `before`, `now`, and the new ones (`come`), which hold no state yet."""

    before: tuple[int, ...]
    now: tuple[int, ...]
    come: tuple[int, ...]

    @property
    def gone(self) -> list[int]:
        """Return the ranks that are no longer workers."""
        return [rank for rank in self.before if rank not in self.now]


def still_workers(view: View, ranks: Sequence[int]) -> list[int]:
    """Return those of some ranks that are workers in a view."""
    return [rank for rank in ranks if view.roles[rank] is Role.WORKER]


def choose_workers(view: View, former: Sequence[int], orders: PendingOrders) -> list[int]:
    """Return the new workers: spares replace lost ones, and the orders to join and to leave are carried out.

    If all others have died meanwhile, those that were to leave stay.
    """
    spares = list(view.spares)
    now: list[int] = []
    for rank in former:
        works = view.roles[rank] is Role.WORKER
        if works and rank not in orders.leaving:
            now.append(rank)
        elif not works and spares:
            now.append(spares.pop())
    while orders.joining and spares:
        now.append(spares.pop())
        orders.joining -= 1
    orders.leaving.clear()
    return now or still_workers(view, former)
