"""Injects faults into a simulated cluster, between any two of its messages, and decides which ranks must survive.

A run survives the loss of any `replicas` servers at once, and of more one after the other when the copies are complete
again; of all workers but one; of the scheduler, with as many of its successors as there are copies of the journal; and
of a host, if its ranks may be lost at once. Half of the votes must be left (`mpips.membership.agreement`).
So before a fault, the other ranks must hold everything that must survive; while the network is split, also without
either side that may be excluded. A fault that would violate this is postponed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import product
from math import inf
from typing import Any, NamedTuple

from mpips.bench.failures._witness import Witness
from mpips.cluster.layout import Role
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.errors import InputError
from mpips.membership.agreement import Electorate, Outcome
from mpips.rank.simulation import Internals, ObservableJournal
from mpips.scheduler.scheduler import Cluster
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message, unbundle
from mpips.transport.network_faults import Delays, Fault, Jump, Split

EVERY = 4
"""Messages between two checks whether a postponed fault is possible."""
ROLES = {"server": Role.SERVER, "worker": Role.WORKER, "spare": Role.SPARE, "scheduler": Role.SCHEDULER}


class Disturbance(NamedTuple):
    """A fault or a change, after a number of posted messages."""

    what: str
    after: int
    act: str
    """kill, stop, suspend, split, jump, join, leave, or unreach: the run's folder is out of reach."""
    role: str
    """The role of the ranks, "host": all ranks of a host, "minority": the leader and others with it, "everybody", or of
    the message at the instant its "sender" or "receiver"."""
    ranks: int
    """Number of ranks of a role at once, if so many may be lost."""
    duration: float | None
    """Duration of a stop or a split, or what is added to a time of day (s); None: a stop does not end."""
    order_seed: float
    """The seed of the choice of ranks."""
    way: str = "both ways"
    """The direction in which a split keeps messages."""
    times: int = 1
    """How often the network is split, with pauses as long as a split."""
    instant: str = ""
    """The command of the message that is about to be sent; "CHAIN": any message of a chain; "END": the leader's program
    has its last answer. Empty: any."""
    passing: int = 0
    """How many such messages are sent before, so that some of its receivers have it."""


class FaultInjector:
    """Message faults with counts, and events, which are reported by `report`; see the module."""

    def __init__(
        self,
        events: Sequence[Disturbance],
        delays: Delays,
        internals: Internals,
        report: Callable[[str], object],
        witness: Witness,
    ) -> None:
        self._events = sorted(events, key=lambda event: event.after)
        self._delays, self._internals, self._say, self._witness = delays, internals, report, witness
        self.loses = getattr(delays, "loses", False)
        self.done: Counter[str] = Counter()
        self.network: Counter[str] = Counter()
        self.worker_hit = False
        self._program_ended = False
        # By event: how many messages of its instant were about to be sent.
        self._passed: Counter[Disturbance] = Counter()
        # The rank that sends a message now, and the one that will receive it.
        self._between = -1, -1
        # By split: until when, and the sides of which one may be excluded.
        self._splits: list[tuple[float, list[set[int]]]] = []
        # Servers that were ordered to leave.
        self._leaving: set[int] = set()

    def until_end(self, schedule: Callable[[Cluster], Any]) -> Callable[[Cluster], Any]:
        """Return the program; no events happen after its end."""

        def run(cluster: Cluster) -> Any:
            try:
                result = schedule(cluster)
                self._pause_at_end(cluster)
                return result
            finally:
                # A killed leader unwinds too; its successor continues.
                self._program_ended = bool(
                    self._internals.network and self._internals.network.runs(cluster.node.rank)
                )

        return run

    def __call__(self, source: int, dest: int, message: Message) -> Sequence[float]:
        """Draw the faults of a message, and do the events that are due."""
        network = self._internals.network
        assert network is not None
        self._witness.see(source, dest, message)
        if self._events and not self._program_ended:
            self._between = source, dest
            is_checked = network.posted % EVERY == 0
            names = _names(message) if any(event.instant for event in self._events) else ()
            self._check_events(
                network, lambda event: self._is_reached(event, names) if event.instant else is_checked
            )
        copies = self._delays(source, dest, message)
        if message.kind is not Kind.CONTROL:
            self.network["drop"] += not copies
            self.network["duplicate"] += len(copies) > 1
        self.network["delay"] += any(delay > 0 for delay in copies)
        return copies

    def _is_reached(self, event: Disturbance, names: Collection[str]) -> bool:
        """Count a message of these names; return whether an event comes before it."""
        self._passed[event] += event.instant in names
        return event.instant in names and self._passed[event] > event.passing

    def _pause_at_end(self, cluster: Cluster) -> None:
        """Do the events of a leader that has all answers, and has not yet written the result."""
        network = self._internals.network
        assert network is not None
        if network.runs(cluster.node.rank):
            self._between = cluster.node.rank, -1
            self._check_events(network, lambda event: event.instant == "END")
            if not network.runs(cluster.node.rank):
                cluster.node.van.idle()

    def _check_events(self, network: Network, which: Callable[[Disturbance], bool]) -> None:
        for event in [each for each in self._events if each.after <= network.posted]:
            if which(event) and self._try_event(event, network):
                self._events.remove(event)

    def _try_event(self, event: Disturbance, network: Network) -> bool:
        """Do an event; return whether it happened, or is impossible."""
        view = self._view(network)
        if view is None or len(self._internals.memberships) < network.size:
            return False
        if event.act in ("join", "leave"):
            return self._orders(event, view)
        here = [rank for rank in view.alive if network.runs(rank)]
        if event.act == "jump":
            rank = random.Random(event.order_seed).choice(here)
            network.plan(Jump(rank, event.duration or 0.0, at=network.time))
            self._record_event(event.what, network, f"rank {rank}")
            return True
        if event.act == "unreach":
            return self._unreach(event, network)
        victims = self._victims(event, network, view, here)
        if event.act == "split":
            ranks, sides = set(victims), [set(victims)]
            if not self._is_minority(network, view, ranks):
                sides.append(set(here) - ranks)
            possible = bool(ranks) and all(self._is_allowed(network, view, side) for side in sides)
            return possible and self._split(event, network, ranks, sides)
        for rank in victims:
            self.worker_hit |= view.roles[rank] is Role.WORKER
            if event.act == "kill":
                network.kill(rank)
            else:
                (network.suspend if event.act == "suspend" else network.stop)(rank)
                self._witness.pause(rank, inf)
                if event.duration is not None:
                    network.plan(Fault("resume", rank, at=network.time + event.duration))
                    self._witness.pause(rank, network.time + event.duration)
            kind = (
                event.what
                if event.duration is None or event.act == "kill"
                else f"{event.what}, then continue"
            )
            self._record_event(kind, network, f"rank {rank}")
        return bool(victims)

    def _split(self, event: Disturbance, network: Network, ranks: set[int], sides: list[set[int]]) -> bool:
        lasting, now = event.duration or 0.0, network.time
        for number in range(event.times):
            begin, sends, receives = now + 2 * number * lasting, event.way != "to it", event.way != "from it"
            network.plan(Split(frozenset(ranks), begin, lasting=lasting, sends=sends, receives=receives))
        view = self._view(network)
        assert view is not None
        self.worker_hit |= any(view.roles[rank] is Role.WORKER for rank in ranks)
        # What they have sent and received meanwhile takes effect a moment later.
        self._splits.append((now + 2 * event.times * lasting, sides))
        kind = f"{event.what}, {event.way}" + (", flapping" if event.times > 1 else "")
        self._record_event(kind, network, f"ranks {sorted(ranks)}, {event.times} x {lasting:.3f} s")
        return True

    def _unreach(self, event: Disturbance, network: Network) -> bool:
        """Let no rank reach the leases for a while."""
        until = network.time + (event.duration or 0.0)
        for leases in self._internals.leases.values():
            leases.unreachable_until = max(leases.unreachable_until, until)
        self._record_event(event.what, network, f"for {event.duration} s")
        return True

    def _victims(self, event: Disturbance, network: Network, view: View, here: list[int]) -> list[int]:
        """Choose the ranks of an event among those that run; none if it is not possible now."""
        shuffle = random.Random(event.order_seed).shuffle
        if event.role == "host":
            hosts = sorted(set(map(view.ring.host, here)))
            shuffle(hosts)
            groups = ([rank for rank in here if view.ring.host(rank) == host] for host in hosts)
            return next((group for group in groups if self._is_allowed(network, view, set(group))), [])
        candidates = [rank for rank in here if view.roles[rank] is ROLES.get(event.role)]
        if event.role in ("sender", "receiver"):
            candidates = [rank for rank in here if rank == self._between[event.role == "receiver"]]
        if event.role in ("scheduler", "minority"):
            candidates = [view.leader] if view.leader in here else []
        if event.role == "minority":
            others = [rank for rank in here if rank != view.leader]
            shuffle(others)
            candidates += others
        shuffle(candidates if event.role in ROLES else [])
        victims: list[int] = []
        for rank in candidates:
            if (len(victims) < event.ranks or event.role == "minority") and self._is_allowed(
                network, view, {*victims, rank}
            ):
                victims.append(rank)
        return victims

    def _orders(self, event: Disturbance, view: View) -> bool:
        """Send the leader an order, as `mpips ctl` does."""
        cluster = self._internals.cluster
        network = self._internals.network
        if cluster is None or network is None or not network.runs(view.leader):
            return False
        if cluster.node.rank != view.leader:
            return False
        try:
            text = self._order(event, view, cluster)
        except InputError:
            return True
        if text:
            self._record_event(event.what, network, text)
        return True

    def _order(self, event: Disturbance, view: View, cluster: Cluster) -> str:
        membership = cluster.membership
        if (event.act, event.role) == ("join", "server"):
            return f"rank {membership.join_server()}"
        if (event.act, event.role) == ("leave", "server"):
            staying = [rank for rank in view.ring.servers if rank not in self._leaving]
            if len(staying) <= membership.replicas + 1:
                # It would remove one copy, and a fault meanwhile the last one.
                return ""
            rank = random.Random(event.order_seed).choice(staying)
            self._leaving.add(rank)
            membership.leave_server(rank)
            return f"rank {rank}"
        if event.act == "join":
            cluster.orders.joining += bool(view.of(Role.SPARE))
            return "a spare" if cluster.orders.joining else ""
        staying = [rank for rank in view.workers if rank not in cluster.orders.leaving]
        if len(staying) < 2:
            return ""
        rank = random.Random(event.order_seed).choice(staying)
        cluster.orders.leaving.add(rank)
        return f"rank {rank}"

    def _record_event(self, kind: str, network: Network, text: str) -> None:
        self.done[kind] += 1
        self._say(f"{network.time:.4f} s, message {network.posted}: {kind}: {text}")

    # --- choice of ranks --------------------------------------------------------------------------

    def _view(self, network: Network) -> View | None:
        """Return the latest view of all living ranks."""
        views = [node.view for rank, node in self._internals.nodes.items() if network.runs(rank)]
        return max(views, key=lambda view: view.epoch, default=None)

    def _is_allowed(self, network: Network, view: View, victims: set[int]) -> bool:
        """Return whether the run survives the loss of some ranks, and of any side of the splits."""
        left = {rank for rank in view.alive if network.runs(rank)} - victims
        splits = [sides for until, sides in self._splits if network.time < until]
        return all(self._may_be_left(network, view, left.difference(*lost)) for lost in product(*splits))

    def _may_be_left(self, network: Network, view: View, left: set[int]) -> bool:
        # As if all others were silent only: those that have died have no votes.
        if self._is_minority(network, view, left):
            return False
        leaving = self._internals.cluster.orders.leaving if self._internals.cluster is not None else set()
        if not (set(view.workers) - leaving) & left:
            return False
        nodes = [self._internals.nodes[rank] for rank in left if rank in self._internals.nodes]
        if not all(_all_shards_held(node, left) for node in nodes if node.role is not Role.WORKER):
            return False
        if not all(left.intersection(to_be) for to_be in self._future_members(view)):
            return False
        successors = [rank for rank in view.succession() if rank in left]
        return bool(successors) and self._can_continue(view, successors[0])

    def _is_minority(self, network: Network, view: View, ranks: Collection[int]) -> bool:
        """Return whether ranks have less than half of the living votes, so that they cannot exclude the others."""
        electorate = Electorate.of(self._internals.nodes[view.leader].layout, view.ring.hosts)
        living = [rank for rank in view.alive if network.lives(rank)]
        return electorate.outcome(ranks, living) is Outcome.MINORITY

    def _future_members(self, view: View) -> Iterator[tuple[int, ...]]:
        """Return the members of each shard's chain after all changes in progress."""
        replicas = self._internals.memberships[view.leader].replicas
        for shard in range(len(view.chains)):
            yield view.ring.holders(shard, replicas)

    def _can_continue(self, view: View, successor: int) -> bool:
        """Return whether a rank could continue the program: it has the decisions, and the replies that no other has."""
        mine = self._internals.journals[successor]
        leaders = [
            journal for journal in self._internals.journals.values() if journal.returned or journal is mine
        ]
        return all(_covers(mine, journal) for journal in leaders)


def _names(message: Message) -> set[str]:
    """Return the names of the instants at which a message is sent."""
    each = unbundle(message) if message.command is Command.BUNDLE else [message]
    return {one.command.name for one in each} | ({"CHAIN"} if message.kind is Kind.CHAIN else set())


def _all_shards_held(node: Node, left: set[int]) -> bool:
    """Return whether every shard has a member among the remaining ranks, by a rank's view."""
    return all(not left.isdisjoint(chain.members) for chain in node.view.chains)


def _covers(mine: ObservableJournal, journal: ObservableJournal) -> bool:
    if mine.log.decided < journal.returned:
        return False
    return all(mine.log.holds(of) for of in journal.log.replies if of[0] < journal.stable)
