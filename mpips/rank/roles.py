"""The role loop of a rank: it runs the role that the view assigns to it, and the next one when that changes.

    until this rank leads:
        worker: execute calls
        any other: serve shards, also those that the view assigns to it later
    lead

A role is entered, run and left. The callbacks that it registers when it is entered are removed when it is left.

A real rank (`mpips.rank.main`) and a simulated one (`mpips.rank.simulation`) differ in the arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from mpips.cluster.layout import Role
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.membership.membership import Membership
from mpips.server.server import Server
from mpips.worker.worker import CallExecutor

T = TypeVar("T")


class Roles(Generic[T]):
    """The roles of one rank, one after the other.

    `make_server` is called once, and `make_worker` each time the rank becomes a worker. `lead` runs the leader, which
    keeps its shards. `begins` is called with each role.
    """

    def __init__(
        self,
        node: Node,
        membership: Membership,
        make_server: Callable[[], Server],
        make_worker: Callable[[], CallExecutor],
        lead: Callable[[], T],
        begins: Callable[[Role | None], None] = lambda role: None,
    ) -> None:
        self._node, self._membership, self._lead, self._begins = node, membership, lead, begins
        self._make_server, self._make_worker = make_server, make_worker
        self._server: Server | None = None
        self._changed = False

    def run(self) -> T:
        """Run each role until this rank leads; return the result of `lead`. `Stopped` or `Fenced` ends it earlier.

        A rank that ends keeps its last role: it serves the others until all leave together.
        """
        node = self._node
        node.register(Registration(views=(self._follow,)))
        while not self._membership.leading:
            self._changed = False
            self._begins(node.role)
            role = self._make_worker() if node.role is Role.WORKER else self._serve()
            role.enter()
            role.run(self._is_over)
            role.leave()
        self._serve().enter()
        return self._lead()

    def _follow(self, before: View, view: View) -> None:
        """Record a change of this rank's role, even if it is reverted before the present call ends."""
        rank = self._node.rank
        self._changed |= before.roles[rank] is not view.roles[rank]

    def _is_over(self) -> bool:
        return self._changed or self._membership.leading

    def _serve(self) -> Server:
        if self._server is None:
            self._server = self._make_server()
        return self._server

    def unfinished_rounds(self) -> Mapping[Hashable, str]:
        """Describe the incomplete aggregation rounds of this rank's shards; see `Server.unfinished_rounds`."""
        return {} if self._server is None else self._server.unfinished_rounds()
