"""The server: holds shards of every vector, and executes pushes, pulls and calls on them (paper, Algorithm 1).

while not stopped:
    push: aggregate if the vector does; update; send the change down the chain; answer the callers
    pull: answer with the rows
    call: run the function that the scheduler names
    change of another primary: apply it; forward it

Any rank that is not a worker can be a server: a spare is a server without shards until the view assigns it some.

A message to a shard goes to its chain, or through `admission` to the `executor`. The `fast_path` serves simple
requests and changes in addition. This module connects these to the node, and passes them new views.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from mpips.calls import BuiltInCall
from mpips.checkpoint.shard_writer import ShardWriter
from mpips.checkpoint.writing import write_shard
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.errors import ProtocolError, WorkerLost
from mpips.server.acknowledgements import Acknowledgements, Push
from mpips.server.admission import Admission
from mpips.server.applied_rounds import applied_rounds
from mpips.server.chains import Chains
from mpips.server.checkpoint_copy import copied
from mpips.server.executor import Executor
from mpips.server.fast_path import FastPath
from mpips.server.shard import Shard
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.disk.store import Store
from mpips.storage.updates import VectorSpec
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import Command, Kind, Message

KEY_CACHE = 256e6
"""Default number of bytes of cached key lists."""
FIGURES_EVERY = 10.0
"""Seconds between a server's messages about its store."""


class Server:
    """A server: its shards, and the execution of requests; see the module."""

    def __init__(
        self,
        node: Node,
        repair_bandwidth: float = 0.0,
        file: SnapshotFile | None = None,
        key_cache: float = KEY_CACHE,
        ahead: bool = True,
        store: Store | None = None,
    ) -> None:
        """Create the server; `ahead`: pushes of a round are answered before copies have them, and acknowledged later.

        This hides the latency of replication where each rank has a core. Where ranks outnumber cores there is no gain,
        since the later acknowledgement wakes each worker once more. Rows are in `store`, if there is one, and in memory
        otherwise.
        """
        self.node, self._file, self._store = node, file or SnapshotFile(node), store
        self._shard_writer, self._next_figures = ShardWriter(), 0.0
        self.lists = KeyCache(key_cache)
        self.fast_path = FastPath(node, self.lists)
        self._acknowledgements = Acknowledgements(self._acknowledge)
        self.chains = Chains(node, self._acknowledgements, repair_bandwidth, self.fast_path, store)
        self.executor = Executor(node, self.lists, self.chains, self.fast_path, self._acknowledgements, ahead)
        self.admission = Admission(
            node, self.lists, self.chains, self.fast_path, self.executor, self._acknowledgements
        )
        self._built_in: dict[str, Callable[..., dict[str, Any]]] = {
            BuiltInCall.ACCOUNT: self._account,
            BuiltInCall.SNAPSHOT: self._snapshot,
        }
        self._request_order = node.policy.request_order(self)
        for link in self.chains:
            self.fast_path.open(link)
        self._role = Registration(handlers={Command.CALL: self._call_rank})
        # Not of the role: in a replay, a rank serves the shards of its former role as a worker, too.
        node.serve_shards(self._to_shard, self.chains.apply_queued, self._spec_of, self.fast_path.table)
        node.register(
            Registration(
                controls={
                    Command.ASK_ACKNOWLEDGED: self._ask_acknowledged,
                    Command.COPY_CHUNK: self.chains.take_chunk,
                    Command.COPY_RECEIVED: self.chains.chunk_received,
                    Command.ASK_ROUNDS: self._send_rounds,
                    Command.ANNOUNCE: self._announced,
                },
                ticks=(self._tick,),
                views=(self._rewire,),
            )
        )

    def enter(self) -> None:
        """Take the role: execute calls of the scheduler to this rank."""
        self.node.register(self._role)

    def leave(self) -> None:
        """Leave the role; the shards are still served."""
        self.node.unregister(self._role)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Run the server's loop until `until()` is true; `Stopped` ends it earlier."""
        node = self.node
        idle = node.observers.wrapped(node.observers.idling, node.van.idle)
        while not until():
            if not node.poll():
                idle()

    @property
    def shards(self) -> list[Shard]:
        """Return the shards of which this server is the primary, in key order."""
        links = sorted(self.chains.primary_links(), key=lambda link: link.number)
        return [link.shard for link in links if link.shard is not None]

    def _spec_of(self, namespace: int) -> VectorSpec | None:
        shards = (link.shard for link in self.chains if link.shard is not None)
        found = (shard.vectors[namespace].segment.spec for shard in shards if namespace in shard.vectors)
        return next(found, self.node.specs.get(namespace))

    def _to_shard(self, message: Message) -> None:
        link = self.chains.links.get(message.shard)
        if link is None:
            return
        if message.kind is Kind.CHAIN:
            self.chains.take(link, message)
        elif not link.primary:
            # Its sender gets the view with the new primary, and sends the request there.
            return
        elif message.kind is Kind.PROBE:
            self.admission.probed(link, message)
        elif self._request_order is not None:
            if not message.filtered or self.node.decoded(message):
                self._request_order.admit(link, message)
        else:
            self.admission.admit(link, message)
            self.chains.apply_queued()

    def _ask_acknowledged(self, message: Message) -> None:
        self._acknowledgements.ask(message.origin, message.after)

    def _send_rounds(self, message: Message) -> None:
        for shard in self.shards:
            self.fast_path.record(shard)
        if self._store is not None:
            self._tell_figures(self._store)
        self.node.control(message.sender, Command.ROUNDS, applied_rounds(self.shards))

    def _announced(self, message: Message) -> None:
        """Begin to read rows that will be used soon."""
        link = self.chains.links.get(message.shard)
        if link is not None and link.shard is not None and message.namespace in link.shard.vectors:
            link.shard.vectors[message.namespace].segment.announce(
                message.range if message.keys is None else message.keys
            )

    def _acknowledge(self, origin: int, pushes: tuple[Push, ...]) -> None:
        """Send acknowledgements to a caller in a message of their own."""
        message = Message(Kind.CONTROL, Command.ACKNOWLEDGED, origin=origin, after=pushes)
        self.node.outbox.send(self.node.view.caller(origin), message)

    def unfinished_rounds(self) -> dict[Hashable, str]:
        """Describe the incomplete rounds and the workers whose pushes are missing."""
        found: dict[Hashable, str] = {}
        for shard in self.shards:
            for namespace, round_, there in self.fast_path.waiting(shard):
                aggregator = shard.vectors[namespace].aggregator
                missing = [rank for rank in aggregator.workers if rank not in there]
                names = ", ".join(f"rank {rank} ({self.node.layout.places[rank]})" for rank in missing)
                found[shard.number, namespace, round_] = (
                    f"round {round_[0]} of vector {aggregator.segment.spec.name}: no push from {names}"
                )
        return found

    # --- calls ---------------------------------------------------------------------------------

    def _call_rank(self, request: Message) -> None:
        """Run a function that the scheduler calls on this server as a whole."""
        name = request.meta["call"]
        if name == BuiltInCall.WRITTEN:
            self._file.await_written(request)
        elif name in self._built_in:
            with self.node.observers.calling(request):
                self.node.callee.reply(request, meta=self._built_in[name](**request.meta["args"]))
        else:
            raise ProtocolError(f"a server has no function {name!r}")

    def _account(self) -> dict[str, Any]:
        held = [hosted for shard in self.shards for hosted in shard.vectors.values()]
        store = {} if self._store is None else {"store": self._store.account()}
        return {**self.node.account(), "keys": sum(len(hosted.segment) for hosted in held), **store}

    def _snapshot(
        self,
        folder: str,
        shards: list[int],
        number: int,
        incremental: bool = False,
        follows: str | None = None,
    ) -> dict[str, Any]:
        """Copy shards, and start to write them; if `incremental`, see `ShardWriter`."""
        # A replay writes no checkpoints.
        if self.node.policy.is_replay:
            self._file.skip()
            return {}
        parts, clocks = copied(self._copy_complete(each) for each in shards)
        meta = {"server": number, "clocks": clocks}
        if incremental:
            self._file.start(self._shard_writer.write, Path(folder), number, parts, meta, follows)
        else:
            self._file.start(write_shard, Path(folder), number, parts, meta)
        return {}

    def _copy_complete(self, number: int) -> Shard:
        link = self.chains.links.get(number)
        if link is None or link.shard is None or link.learning:
            raise WorkerLost(f"rank {self.node.rank} no longer holds shard {number}")
        self.fast_path.record(link.shard)
        return link.shard

    # --- views and time ------------------------------------------------------------------------

    def _rewire(self, before: View, view: View) -> None:
        """Adopt the chains of a new view."""
        while self.chains.apply_queued():
            pass
        for link in self.chains:
            if view.workers_since == before.workers_since:
                self.executor.take_parts(link)
            elif link.shard is not None:
                # Their senders have dropped them.
                self.fast_path.take_parts(link.shard)
            self.fast_path.close(link)
        self.fast_path.set_workers()
        for number in self.chains.rewire(view):
            self.lists.forget(number)
        for link in self.chains:
            # The slots of a new copy may be others.
            if link.shard is None:
                self.lists.forget(link.number)
        if view.workers_since != before.workers_since:
            self.chains.change_workers(view.workers)
        self.admission.reopen()
        own = {link.number for link in self.chains.primary_links()}
        self._acknowledgements.retain(own, lambda origin: view.roles[view.caller(origin)] is not None)
        self.fast_path.mark_all(self.chains)
        for link in self.chains:
            self.fast_path.open(link)
        self.chains.report()

    def _tick(self) -> None:
        self.executor.tick()
        self.admission.admit_keyless()
        self.chains.tick()
        if self._store is not None:
            self._store.settle(seldom=True)
            self._store.hold(self._shard_writer, self._shard_writer.nbytes)
            if self.node.van.now() >= self._next_figures:
                self._tell_figures(self._store)

    def _tell_figures(self, store: Store) -> None:
        self._next_figures = self.node.van.now() + FIGURES_EVERY
        self.node.control(self.node.view.leader, Command.STORE, store.figures())
