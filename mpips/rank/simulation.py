"""Simulation of a whole cluster: the real scheduler, servers and workers in one process, in simulated time."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from mpips.cluster.departure import Fenced, Stopped
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import View, first_view
from mpips.config.job_file import CheckpointSpec, Job
from mpips.exit_codes import ExitCode
from mpips.filters.chain import Chain
from mpips.membership.membership import Membership
from mpips.rank.roles import Roles
from mpips.replay.player import Player
from mpips.replay.recorder import Recorder
from mpips.rundir.folder import RunFolder
from mpips.rundir.lease import Leases
from mpips.scheduler.journal import COMPACTED_EVERY, Journal
from mpips.scheduler.pending_orders import PendingOrders, keep_for_successors
from mpips.scheduler.scheduler import Cluster
from mpips.server.server import Server
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.disk.store import Store
from mpips.transport.in_memory import Deadlock, Network, TwinVan
from mpips.transport.message import Command
from mpips.transport.network_faults import Arrives, Delays, Fault, Jump, Split, all_arrive, no_delay
from mpips.worker.worker import CallExecutor, Context

T = TypeVar("T")
Filters = Callable[[], tuple[Chain, Chain]]
RESEND = 0.05
"""Simulated seconds after which an unanswered request is sent again where messages are lost."""


class _NoJob:
    program = ""
    checkpoint = CheckpointSpec()

    def tables(self) -> dict[str, Any]:
        """Return the settings that a checkpoint describes."""
        return {"job": {"name": "simulation", "program": self.program}}


class ObservableJournal(Journal):
    """A journal that exposes its state to tests."""

    returned = 0
    """Number of decisions returned to the program."""

    def decide(self, make: Callable[[], T]) -> T:
        """Return the next decision; see `Journal`."""
        value = super().decide(make)
        self.returned = self._decided
        return value

    def compact(self, state: Callable[[], Any], since: int = 0) -> Any:
        """Pass the restart point; see `Journal`."""
        later = super().compact(state, since)
        if later is not None:
            self.returned = self._decided
        return later

    @property
    def followers(self) -> set[int]:
        """The ranks that must have an entry before the program goes on from it."""
        return set(self._followers)

    @property
    def stable(self) -> int:
        """The time below which callees have dropped their replies."""
        return self._stable


class ReachableLeases(Leases):
    """Leases in a folder that may be out of reach for a while, by the clock of a network."""

    def __init__(self, folder: Path, run: str, network: Network) -> None:
        super().__init__(folder, run)
        self._network = network
        self.unreachable_until = 0.0
        """The simulated time from which this rank reaches the folder."""

    @property
    def reachable(self) -> bool:
        """Whether this rank reaches the folder."""
        return self._network.time >= self.unreachable_until

    def take(self, number: int, view: str) -> str | None:
        """Take a lease; see `Leases`."""
        return super().take(number, view) if self.reachable else None

    def holder(self, number: int) -> str | None:
        """Return the view that a lease contains; see `Leases`."""
        return super().holder(number) if self.reachable else None

    def look(self, number: int) -> str | None:
        """Return the view that a lease contains, whether or not this rank reaches it."""
        return super().holder(number)


@dataclass
class Internals:
    """The internal state of a simulation, for tests that observe or disturb it; by rank unless stated otherwise."""

    network: Network | None = None
    nodes: dict[int, Node] = field(default_factory=dict)
    journals: dict[int, ObservableJournal] = field(default_factory=dict)
    memberships: dict[int, Membership] = field(default_factory=dict)
    leases: dict[int, ReachableLeases] = field(default_factory=dict)
    servers: dict[int, Server] = field(default_factory=dict)
    """Of ranks that are, or were, servers."""
    cluster: Cluster | None = None
    """The cluster of the present leader, once its program has started."""
    view: View | None = None
    """The last leader's view at the end."""
    left: set[int] = field(default_factory=set)
    """Ranks that have ended by themselves."""
    failed: bool = False
    """Whether the program has failed: then some ranks may not end."""
    published: list[tuple[View, int]] = field(default_factory=list)
    """The views that were published, each with the rank that did; the first one is the view of the start."""
    results: list[Any] = field(default_factory=list)
    """The results of all leaders that have ended the run."""
    uninformed: list[int] = field(default_factory=list)
    """Ranks that the others have excluded, and that have not received this view."""


class Simulation:
    """One run of a cluster; see `simulate` for the arguments."""

    def __init__(
        self,
        layout: Layout,
        view: View,
        replicas: int,
        worker: Callable[[Context], Any],
        *,
        job: Job | None = None,
        window: int = 64,
        resend: float | None = None,
        bandwidth: float = 0.0,
        patience: float = 0.75,
        give_up: float = 5.0,
        internals: Internals | None = None,
        filters: Filters = lambda: (Chain(), Chain()),
        record: Path | None = None,
        replay: Path | None = None,
        compacted_every: int = COMPACTED_EVERY,
        attach: Callable[[Node], object] = lambda node: None,
        out: TextIO | None = None,
        store: Callable[[], Store | None] = lambda: None,
    ) -> None:
        self.layout, self.view, self.replicas, self.worker = layout, view, replicas, worker
        self.internals = internals or Internals()
        self._job, self._window, self._resend = job, window, resend
        self._bandwidth, self._patience, self._give_up = bandwidth, patience, give_up
        # The folder may hold leases of other starts.
        self._start = os.urandom(8).hex()
        self._filters = filters
        self._record, self._replay, self._compacted_every = record, replay, compacted_every
        self._out = out
        self._attach, self._store = attach, store

    def run(
        self, network: Network, schedule: Callable[[Cluster], Any], place: Path, horizon: float = 60.0
    ) -> Any:
        """Run the program on a network until all ranks have ended; return the result of the last leader, or None."""
        self.internals.network = network
        self.internals.published.append((self.view, self.view.leader))
        results = self.internals.results
        live = partial(self._live, network=network, schedule=schedule, place=place, results=results)
        try:
            network.run([live] * self.layout.size, horizon)
        except Deadlock:
            view, left = self.internals.view, self.internals.left
            if not results or view is None or not left.issuperset(view.alive):
                raise
            self.internals.uninformed = [
                r for r in range(self.layout.size) if r not in left and network.lives(r)
            ]
        return results[-1] if results else None

    def _live(
        self,
        van: TwinVan,
        network: Network,
        schedule: Callable[[Cluster], Any],
        place: Path,
        results: list[Any],
    ) -> None:
        """Run one rank, as `mpips.rank.main` does."""
        pushes, pulls = self._filters()
        # Ranks share a process here: no memory is that of one of them.
        me = Node(
            van, self.layout, self.view, window=self._window, resend=self._resend, pushes=pushes, pulls=pulls,
            held=dict,
        )  # fmt: skip
        self._attach(me)
        if self._record is not None:
            Recorder(me, self._record)
        if self._replay is not None:
            me.follow(Player(me, self._replay))
        leases = self.internals.leases[van.rank] = ReachableLeases(place, self._start, network)
        membership = Membership(
            me,
            self.replicas,
            network.heartbeat(van.rank),
            self._patience,
            self._give_up,
            leases=leases,
        )
        membership.on_publish = lambda view: self.internals.published.append((view, van.rank))
        journal = ObservableJournal(me, self.replicas + 1, self._compacted_every)
        orders = PendingOrders()
        keep_for_successors(me, orders)
        internals, rank = self.internals, van.rank
        internals.nodes[rank], internals.journals[rank], internals.memberships[rank] = me, journal, membership
        file, store = SnapshotFile(me), self._store()
        me.announces = store is not None

        def serve() -> Server:
            internals.servers[rank] = Server(me, self._bandwidth, file, store=store)
            return internals.servers[rank]

        roles = Roles(
            me,
            membership,
            serve,
            partial(CallExecutor, me, self.worker, cast(Job, self._job), None, file),
            partial(self._lead, me, journal, membership, orders, schedule, place, results),
        )
        with ExitStack() as opened, suppress(Fenced):
            for close in me.observers.close:
                opened.callback(close)
            try:
                roles.run()
            except Stopped:
                left = me.departure.leave()
                assert left or self._is_disturbed(me)
            except StoreFailed:
                if not self.replicas:
                    raise
                network.kill(rank)
        internals.left.add(rank)

    def _lead(
        self,
        me: Node,
        journal: Journal,
        membership: Membership,
        orders: PendingOrders,
        schedule: Callable[[Cluster], Any],
        place: Path,
        results: list[Any],
    ) -> None:
        internals = self.internals
        with Cluster(
            me,
            cast(Job, self._job or _NoJob()),
            RunFolder(place),
            self._out or io.StringIO(),
            journal,
            membership,
            orders,
        ) as cluster:
            internals.cluster = cluster
            try:
                result = schedule(cluster)
                cluster.settle()
                membership.confirm()
                results.append(result)
            except Fenced:
                raise
            except BaseException:
                internals.failed = True
                self._stop(me)
                raise
            left = self._stop(me)
            assert left or self._is_disturbed(me)

    def _is_disturbed(self, me: Node) -> bool:
        """Return whether some ranks may not end with the others: a fault at the very end, or a failed run."""
        network = self.internals.network
        assert network is not None
        return self.internals.failed or any(network.silence(me.rank, rank) > 0 for rank in me.view.alive)

    def _stop(self, me: Node) -> bool:
        for rank in me.view.alive:
            if rank != me.rank:
                me.control(rank, Command.STOP, {"code": ExitCode.COMPLETED})
        left = me.departure.leave()
        self.internals.view = me.view
        return left


def simulate(
    schedule: Callable[[Cluster], Any],
    worker: Callable[[Context], Any],
    *,
    servers: int = 1,
    workers: int | dict[str, int] = 1,
    spares: int = 0,
    schedulers: int = 1,
    replicas: int = 0,
    virtual_servers: int = 0,
    delays: Delays = no_delay,
    seed: int = 0,
    job: Job | None = None,
    window: int = 64,
    resend: float | None = None,
    horizon: float = 60.0,
    folder: Path | None = None,
    faults: Sequence[Fault | Split | Jump] = (),
    bandwidth: float = 0.0,
    patience: float = 0.75,
    give_up: float = 5.0,
    detection: float = 0.03,
    tick: float = 1e-3,
    arrives: Arrives = all_arrive,
    internals: Internals | None = None,
    filters: Filters = lambda: (Chain(), Chain()),
    hosts: Sequence[str] = (),
    record: Path | None = None,
    replay: Path | None = None,
    compacted_every: int = COMPACTED_EVERY,
    rates: Mapping[int, float] | None = None,
    attach: Callable[[Node], object] = lambda node: None,
    out: TextIO | None = None,
    store: Callable[[], Store | None] = lambda: None,
) -> Any:
    """Run `schedule(cluster)` with workers made by `worker(context)`; return its result once all ranks have ended.

    Unanswered requests are sent again after `resend` seconds. By default they are not, as on MPI, unless `delays` is a
    `random_delays` that loses messages. Simulated time ends at `horizon`, and advances in steps of `tick` where
    nothing else happens. `faults` are faults of ranks; the result is that of the last leader. `internals` exposes the
    state during the run, and at its end. `filters` creates a rank's chains: for messages to the servers, and for
    answers. `hosts` are the ranks' host names; by default all are on one host. The order of effects is written to the
    folder `record`, or read from `replay` (`mpips.replay.history`). `compacted_every`: see `Journal`.
    `rates`: by rank, the seconds of its clocks in a second. `attach(node)` may observe a rank. The
    program's table and messages go to `out`; None: nowhere. `store` makes a server's store, for rows on disk.

    >>> simulate(lambda cluster: len(cluster.workers), worker=lambda context: None, servers=2, workers=3)
    3
    """
    if resend is None and getattr(delays, "loses", False):
        resend = RESEND
    spec = LayoutSpec(servers=servers, workers=workers, spares=spares, schedulers=schedulers)
    layout = Layout.of(spec.size(), spec)
    view = first_view(layout, virtual_servers, replicas, hosts)
    network = Network(
        layout.size, delays, seed, tick, faults=faults, detection=detection, arrives=arrives, rates=rates
    )
    simulation = Simulation(
        layout, view, replicas, worker,
        job=job, window=window, resend=resend, bandwidth=bandwidth, patience=patience, give_up=give_up,
        internals=internals, filters=filters, record=record, replay=replay, compacted_every=compacted_every,
        attach=attach, out=out, store=store,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        return simulation.run(network, schedule, folder or Path(temporary), horizon)
