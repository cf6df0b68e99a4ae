"""The orders of `mpips ctl`, at the leader: it takes them from the run's folder, one after the other, and answers them.

    read an order; note what the program has to do (`mpips.scheduler.pending_orders`)
    once the ranks that may succeed this one have it: let a server join or leave; answer

If the leader dies in between, the order stays open, and its successor takes it: by its name it knows what was done.
"""

from __future__ import annotations

from collections import deque

from mpips.cluster.view import without_server
from mpips.config.program import Program
from mpips.errors import InputError
from mpips.membership.membership import Membership
from mpips.rank.stacks import Stacks
from mpips.rank.status import Status
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import Order, Orders
from mpips.scheduler.scheduler import SET_TAU, Cluster

PATIENCE = 1.0
"""Seconds that an answer waits for the ranks that may succeed the leader: one of them may hang."""
REMEMBERED = 16
"""Orders whose ranks are remembered: an answer may be late where the disk is full."""


class LeaderOrders:
    """The orders to one leader."""

    def __init__(
        self,
        cluster: Cluster,
        folder: RunFolder,
        membership: Membership,
        status: Status,
        stacks: Stacks,
        program: Program,
    ) -> None:
        van = cluster.node.van
        self._cluster, self._orders, self._membership = cluster, cluster.orders, membership
        self._status, self._stacks, self._program = status, stacks, program
        self._files = Orders(folder.path, van.now, start=folder.start)
        self._open: deque[Order] = deque()
        # The order that is taken and not answered, its answer, and when it is answered at the latest.
        self._taken: tuple[Order, str, float] | None = None
        if self._orders.tau is not None:
            cluster.notify(SET_TAU, {"tau": self._orders.tau})

    def look(self) -> None:
        """Read, take and answer orders, between messages."""
        for order in self._files.poll():
            if order.verb == "status":
                self._status.ask(order)
            elif order.verb == "stacks":
                self._stacks.ask(order)
            else:
                self._open.append(order)
        for order in self._status.ready():
            title = f"{self._cluster.job.program}: {self._cluster.trained:.1f} s of training"
            self._files.answer(order, True, self._status.text(title))
        for order in self._stacks.ready():
            self._files.answer(order, True, self._stacks.text())
        if self._taken is not None:
            if self._orders.are_kept() or self._cluster.node.van.now() > self._taken[2]:
                self.answer()
        # One at a time: a server that joins is in the view when the next order is taken.
        elif self._open:
            self._take(self._open.popleft())

    def answer(self) -> None:
        """Answer the order that is taken, if there is one."""
        if self._taken is None:
            return
        order, text, _ = self._taken
        self._taken = None
        self._move_server(order)
        self._files.answer(order, True, text)

    def _take(self, order: Order) -> None:
        if not self._files.is_open(order):
            return
        try:
            text = self._note(order)
        except InputError as error:
            self._files.answer(order, False, str(error))
            return
        self._taken = order, text, self._cluster.node.van.now() + PATIENCE
        # A run that trains nothing yet ends before the next look.
        if self._orders.are_kept() or (order.verb == "stop" and self._cluster.untrained):
            self.answer()

    def _note(self, order: Order) -> str:
        """Note what is to be done, once for each order; return the answer."""
        verb, arguments = order.verb, order.arguments
        server = arguments.get("role") == "server" or arguments.get("rank") in self._cluster.node.view.servers
        if self._cluster.after_training and verb != "stop" and not server:
            raise InputError("training has ended: there is no further step")
        if verb == "checkpoint":
            self._orders.checkpoint = True
            return "a checkpoint will be written after the present step"
        if verb == "stop":
            self._orders.stop = self._orders.stop or str(arguments.get("by", "mpips ctl stop"))
            if self._cluster.untrained:
                return "nothing is trained yet: the run stops now, without a checkpoint"
            return "the run will stop with a checkpoint after the present step"
        if verb == "join":
            return self._join(order.name, str(arguments["role"]))
        if verb == "leave":
            return self._leave(order.name, int(arguments["rank"]))
        return self._set_tau(int(arguments["tau"]))

    def _join(self, name: str, role: str) -> str:
        taken = self._orders.taken
        if role == "server":
            if name not in taken:
                self._remember(name, self._membership.able_to_join())
            elif self._cluster.node.view.roles[taken[name]] is None:
                raise InputError(f"rank {taken[name]}, which was to join as a server, is lost")
            return f"rank {taken[name]} joins as a server; it gets its keys while the run continues"
        if name not in taken:
            # A successor that still repeats what its predecessor has done counts orders that are carried out, too.
            free = len(self._cluster.node.view.spares) - self._orders.joining
            if free <= 0 and not self._cluster.journal.replaying:
                raise InputError("no spare rank is left: start the job with --set layout.spares=N")
            self._remember(name, -1)
            self._orders.joining += 1
        return "a spare will join the workers after the present step"

    def _leave(self, name: str, rank: int) -> str:
        view, taken = self._cluster.node.view, self._orders.taken
        if rank in view.workers:
            if name not in taken and len(set(view.workers) - self._orders.leaving) <= 1:
                raise InputError(f"rank {rank} is the last worker: it cannot leave")
            self._remember(name, rank)
            self._orders.leaving.add(rank)
            return f"rank {rank} will leave the workers after the present step"
        if name not in taken:
            self._membership.check_leaves(rank)
            self._remember(name, rank)
        return f"rank {rank} moves its keys to the other servers, then becomes a spare"

    def _remember(self, name: str, rank: int) -> None:
        """Note the rank of an order; those that were answered long ago are left out."""
        taken = self._orders.taken
        taken[name] = rank
        while len(taken) > REMEMBERED:
            del taken[next(iter(taken))]

    def _move_server(self, order: Order) -> None:
        """Let a server join or leave; without effect if a leader before this one has done so."""
        rank = self._orders.taken.get(order.name, -1)
        if order.verb == "join" and rank >= 0:
            self._membership.join_server(rank)
        elif order.verb == "leave":
            self._membership.request_change(lambda view: without_server(view, rank))

    def _set_tau(self, tau: int) -> str:
        job = self._cluster.job
        if not getattr(getattr(self._program.worker, SET_TAU, None), "at_once", False):
            raise InputError(f"program {job.program!r} has no delay that can be changed")
        if tau and job.layout.exact_sums:
            raise InputError("tau stays 0 with [layout] exact_sums: only a sequential run is reproducible")
        self._orders.tau = tau
        self._cluster.notify(SET_TAU, {"tau": tau})
        return f"tau is {tau} from now on"
