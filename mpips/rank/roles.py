"""The role loop of a rank: it runs the role that the view gives it, and the next one when that changes.

    until this rank leads:
        worker: execute calls
        any other: serve shards, also those that the view gives it later
    lead

A real rank (`mpips.rank.main`) and a simulated one (`mpips.rank.simulation`) differ in what they pass in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

from mpips.cluster.layout import Role
from mpips.cluster.membership import Membership
from mpips.cluster.node import Node
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

    def run(self) -> T:
        """Run each role until this rank leads; return the result of `lead`. Ends by `Stopped` or `Fenced` before."""
        node, membership = self._node, self._membership
        if node.role is not Role.WORKER:
            self._serve()
        while not membership.leading:
            role = node.role

            def is_over(role: Role | None = role) -> bool:
                return membership.leading or node.role is not role

            self._begins(role)
            if role is Role.WORKER:
                self._make_worker().run(is_over)
            else:
                self._serve().run(is_over)
        return self._lead()

    def _serve(self) -> Server:
        if self._server is None:
            self._server = self._make_server()
        return self._server

    def unfinished_rounds(self) -> Mapping[Hashable, str]:
        """Describe the incomplete aggregation rounds of this rank's shards; see `Server.unfinished_rounds`."""
        return {} if self._server is None else self._server.unfinished_rounds()
