"""Stop requests outside of the program's own steps, and the time limit.

The leader asks the run to stop in time, and ends one that does not. A run that has trained nothing yet ends at once:
it has nothing to write into a checkpoint, so reading the rest of its data is useless.

    leader                                                    worker, server
    signal, order or clock: note the request
    in its event loop, while nothing is trained: leave the
        program (`NothingTrained`), write the result, send STOP
                                                              at the next message: leave

A rank polls between two pieces of data. One that does not get there in time is ended by the leader's MPI_Abort. If the
leader dies meanwhile, its successor decides: signals reach all ranks, and the leader passes any request on
(`mpips.scheduler.pending_orders`).
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from typing import Self

from mpips.calls import BuiltInCall
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.errors import StopOverdue
from mpips.process.stop_signals import WARNINGS
from mpips.scheduler.pending_orders import PendingOrders
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.time_limit import reserve
from mpips.transport.message import Command, Message


class NothingTrained(BaseException):
    """The run was asked to stop, and has trained nothing: it leaves the program, which has nothing to save."""


LAST = 5.0
"""Seconds before the end of its allocation at which a run that has not stopped ends itself."""


def enforce(cluster: Cluster, end: float | None) -> None:
    """End a run that was asked to stop and does not in time; its allocation ends at `end` (wall, s), or never if None.

    Otherwise its batch system would kill it without an error message.
    """
    van, grace = cluster.node.van, cluster.job.checkpoint.grace
    asked_at: float | None = None
    over = False

    def tick() -> None:
        nonlocal asked_at, over
        if cluster.orders.stop is None or over:
            return
        asked_at = van.now() if asked_at is None else asked_at
        waited, left = van.now() - asked_at, math.inf if end is None else end - van.wall()
        over = 0 < grace <= waited or left <= LAST
        if over:
            raise StopOverdue(
                f"asked to stop by {cluster.orders.stop} {waited:.0f} s ago, and the present step has not ended; "
                f"the scheduler waits for {cluster.node.waits_for() or 'nothing'}"
            )

    cluster.node.register(Registration(ticks=(tick,)))


def pass_on(
    node: Node,
    orders: PendingOrders,
    asked: Sequence[int],
    name_of: Callable[[int], str] = lambda number: signal.Signals(number).name,
) -> None:
    """Report the warning signals that this rank has received (`asked`) to the leader: a limit may hold for it alone.

    SIGTERM is not passed on: a node that shuts down sends it to its ranks, and the run continues without them.
    """
    told = -1

    def take(message: Message) -> None:
        orders.stop = orders.stop or str(message.meta["by"])

    def look() -> None:
        nonlocal told
        leader = node.view.leader
        if leader not in (told, node.rank):
            for kind in [kind for kind in asked if kind in WARNINGS][:1]:
                told = leader
                node.control(leader, Command.ASKED_TO_STOP, {"by": name_of(kind)})

    node.register(Registration(controls={Command.ASKED_TO_STOP: take}, ticks=(look,)))


def leave_untrained(cluster: Cluster) -> None:
    """Raise NothingTrained, here or in the program, once the cluster is asked to stop while nothing is trained.

    Not while the journal of an earlier leader is replayed: that leader may have trained.
    """

    def check() -> None:
        if cluster.orders.stop is not None and not cluster.journal.replaying:
            raise NothingTrained

    def tick() -> None:
        if cluster.untrained:
            check()

    check()
    cluster.node.register(Registration(ticks=(tick,)))


LONG = 5.0
"""Seconds after a request to stop for which an evaluation continues."""
AGAIN = 0.5
"""Seconds between two messages that cut it short: a call may begin after the first."""


class Evaluation:
    """Steps after training that are skipped if the run is to stop and they take long; a context manager."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._asked_at: float | None = None
        # The time from which on calls belong to the present step; none before the first.
        self._since: int | None = None
        self._next = -math.inf
        self._registration = Registration(ticks=(self._look,))

    def __enter__(self) -> Self:
        """Begin to look for requests to stop."""
        if not self._cluster.node.policy.is_replay:
            self._cluster.node.register(self._registration)
        return self

    def __exit__(self, *_: object) -> None:
        """End to look for them."""
        if not self._cluster.node.policy.is_replay:
            self._cluster.node.unregister(self._registration)

    def goes_on(self) -> bool:
        """Return whether to begin another step; its calls can be cut short."""
        self._since = self._cluster.node.tasks.time
        return not self._cluster.decide(self._is_over)

    def _is_over(self) -> bool:
        if self._cluster.orders.stop is None:
            return False
        now = self._cluster.node.van.now()
        self._asked_at = now if self._asked_at is None else self._asked_at
        return now - self._asked_at >= LONG

    def _look(self) -> None:
        now = self._cluster.node.van.now()
        if self._is_over() and self._since is not None and now >= self._next:
            self._next = now + AGAIN
            self._cluster.notify(BuiltInCall.CUT_SHORT, {"since": self._since})


def watch(cluster: Cluster, started: float, end: float | None) -> None:
    """Ask the cluster to stop before its time is over; `started` and `end` are wall time (s), `end` None: no limit."""
    if end is None:
        return
    wall, before_end = cluster.node.van.wall, cluster.job.checkpoint.before_end

    def tick() -> None:
        left = end - wall()
        if cluster.orders.stop is None and left <= reserve(before_end, end - started, cluster.durations):
            cluster.orders.stop = f"the end of its time, {max(left, 0.0):.0f} s before it"

    cluster.node.register(Registration(ticks=(tick,)))
