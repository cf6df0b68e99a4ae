"""A witness of all messages of a trial: do they follow from each other as the protocol has it?

A history shows what callers have seen. A broken rule of agreement shows there only if it meets the one fault that it
exists for, such as a second leader that dies. So the messages themselves are compared with the rules
(`mpips.membership.agreement`), whatever has sent them:

    promises       a rank promises no lower ballot than before, and accepts no view of one
    acceptances    it does not go back to an earlier view, unless the later one can never take effect
    agreement      a view that says so was accepted by a majority, or by half of the votes and a lease of its leader;
                   its candidate had their promises, and follows what they had accepted
    cut off        a leader that fewer than half of the votes confirm, or half without the last lease, is frozen, and so
                   is a server that does not hear its leader
    decisions      the program does not go on from a decision before the ranks that may succeed the leader have it
    calls          a worker answers a call once its pushes are on all copies
    fencing        a rank that gets a view without it ends

The votes are counted here, and silence is that of the simulated network.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from mpips.cluster.layout import Cause, Role
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.history.check import Violation
from mpips.membership.agreement import RENEWED, Ballot, Electorate, Identity, Known, Proposed
from mpips.rank.simulation import Internals
from mpips.scheduler.journal import has_decisions
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message, unbundle

CERTAIN = 1.5
"""Times the patience after which a rank knows that it is cut off."""
GRACE = 0.03
"""Seconds for which a rank may go on then: it looks from time to time."""


is_void = Proposed.is_void
"""The rule of the protocol, also while a fault is put into it on purpose."""
EVERY = 16
"""Messages between two looks at all ranks."""


class _Decision(NamedTuple):
    """A decision in the leader's journal: the number of its entry, and the ranks that must have it."""

    entry: int
    followers: frozenset[int]


class Witness:
    """Sees each message before it is sent; `found` are the broken rules.

    `waits`: the worker's function that ends once its pushes do. `lossy`: messages of killed ranks are lost.
    """

    def __init__(self, internals: Internals, patience: float, waits: str, lossy: bool) -> None:
        self._internals, self._patience, self._waits, self._lossy = internals, patience, waits, lossy
        self.found: list[Violation] = []
        # By rank: what it has told last; and all that it has accepted.
        self._told: dict[int, Known] = {}
        self._promised: dict[int, Ballot] = {}
        # By ballot: the ranks that have told its candidate so, and what else they knew; by proposal, itself and the
        # ranks that accept it.
        self._promises: dict[Ballot, dict[int, Known]] = {}
        self._proposals: dict[Identity, Proposed] = {}
        self._acceptors: dict[Identity, set[int]] = {}
        # By rank: what it has accepted.
        self._seen: dict[int, set[Identity]] = {}
        self._published: set[Identity] = set()
        # By rank: until when it is stopped, or was.
        self._paused: dict[int, float] = {}
        # By leader: its last decision; by rank, how many entries it has acknowledged, and the time of its last task.
        self._decisions: dict[int, _Decision] = {}
        self._logged: dict[tuple[int, int], int] = {}
        self._times: dict[tuple[int, int], int] = {}
        # Calls of the program's function that are not answered: the rank, its caller, and the time.
        self._calls: set[tuple[int, int, int]] = set()
        # Ranks to which a view without them was sent.
        self._excluded: set[int] = set()

    def pause(self, rank: int, until: float) -> None:
        """Record that a rank is stopped until a simulated time."""
        self._paused[rank] = until

    def see(self, source: int, dest: int, message: Message) -> None:
        """See a message that is about to be sent."""
        network = self._internals.network
        if network is None or source == dest or not network.runs(source):
            return
        if message.command is Command.BUNDLE:
            for each in unbundle(message):
                self.see(source, dest, each)
            return
        node = self._internals.nodes[source]
        see = _CONTROLS.get(message.command) if message.kind is Kind.CONTROL else None
        if see is not None:
            see(self, node, dest, message)
        if message.kind is Kind.REQUEST:
            self._see_request(node, dest, message)
        elif message.kind is Kind.REPLY and message.command is Command.CALL:
            self._see_end(node, message)
        if network.posted % EVERY == 0:
            for other in self._internals.nodes.values():
                self._see_state(network, other)

    def end(self) -> None:
        """See the end of the trial."""
        network = self._internals.network
        if network is None or self._lossy:
            return
        for rank in sorted(self._excluded - self._internals.left):
            if rank in self._internals.uninformed and self._paused.get(rank, 0.0) <= network.time:
                self._say("fencing", f"rank {rank} has got a view without it, and goes on")

    def _say(self, rule: str, text: str) -> None:
        if len(self.found) < 20:
            network = self._internals.network
            self.found.append(Violation(rule, f"{text}, at {network.time if network else 0.0:.4f} s"))

    # --- agreement -----------------------------------------------------------------------------

    def _see_views(self, node: Node, dest: int, message: Message) -> None:
        """See what a rank answers to a candidate."""
        if "view" not in message.meta:
            return
        rank, known = node.rank, Known.from_meta(message.meta)
        before = self._told.get(rank)
        if known.promised < self._promised.get(rank, known.promised):
            self._say(
                "promises", f"rank {rank} has promised {self._promised[rank]}, and now {known.promised}"
            )
        if before is not None and known.latest.identity < before.latest.identity:
            self._goes_back(rank, before.latest, known.latest.identity, known.view)
        if known.promised.leader == dest:
            if known.promised > self._promised.get(rank, Ballot.of(node.view)):
                self._hears(node, known.promised)
            self._promises.setdefault(known.promised, {})[rank] = known
        self._told[rank], self._promised[rank] = known, known.promised

    def _hears(self, node: Node, ballot: Ballot) -> None:
        """See that a rank promises or accepts something of a candidate."""
        network, leader, rank = self._internals.network, node.view.leader, node.rank
        assert network is not None
        if ballot.leader == leader or leader in self._internals.memberships[rank].dead:
            return
        # It knows what it found when it last looked.
        hears = not node.frozen if leader == rank else network.heard_for(rank, leader) > GRACE
        if hears and network.lives(leader):
            self._say("promises", f"rank {rank} hears its leader {leader}, and follows {ballot}")

    def _goes_back(self, rank: int, latest: Proposed, to: Identity, view: View) -> None:
        if not is_void(latest, view):
            self._say("acceptances", f"rank {rank} knew {latest.identity}, and goes back to {to}")

    def _see_proposal(self, node: Node, dest: int, message: Message) -> None:
        proposed = Proposed.from_meta(message.meta)
        ballot, rank = Ballot.of(proposed.view), node.rank
        if proposed.identity in self._proposals:
            return
        self._proposals[proposed.identity] = proposed
        self._acceptors[proposed.identity] = {rank}
        if ballot.leader != rank or ballot < self._promised.get(rank, ballot):
            self._say("promises", f"rank {rank} proposes {proposed.identity} against its promise")
        self._promised[rank] = ballot
        if ballot == Ballot.of(node.view):
            return
        promised = {rank, *self._followed(node, proposed)}
        twice, whole = self._count(promised, self._electors(proposed, promised))
        if twice < whole or (twice == whole and not proposed.by_lease):
            self._say("agreement", f"rank {rank} proposes {proposed.identity} with promises of {promised}")

    def _followed(self, node: Node, proposed: Proposed) -> set[int]:
        """Return the ranks that have promised a view's ballot, and have accepted nothing later than it follows.

        A candidate that takes another one for lost does without its promise.
        """
        told = self._promises.get(Ballot.of(proposed.view), {})
        settled = max((node.view, *(each.view for each in told.values())), key=Identity.of)
        base = max(each.identity for each in proposed.ancestors)
        return {
            rank
            for rank, each in told.items()
            if each.latest.identity <= base or is_void(each.latest, settled)
        }

    def _see_acceptance(self, node: Node, dest: int, message: Message) -> None:
        rank, identity = node.rank, Identity(*message.meta["of"])
        proposed, known = self._proposals.get(identity), self._told.get(rank)
        ballot = Ballot(*identity[:2])
        if identity in self._seen.setdefault(rank, set()):
            # It repeats what it has accepted before, perhaps before it promised another ballot.
            return
        if ballot < self._promised.get(rank, ballot):
            self._say("promises", f"rank {rank} has promised {self._promised[rank]}, and accepts {identity}")
        if known is not None and identity < known.latest.identity:
            self._goes_back(rank, known.latest, identity, node.view)
        self._hears(node, ballot)
        self._seen[rank].add(identity)
        if proposed is not None:
            self._told[rank] = Known(node.view, proposed, ballot)
            self._acceptors[identity].add(rank)
        self._promised[rank] = max(ballot, self._promised.get(rank, ballot))

    def _see_view(self, node: Node, dest: int, message: Message) -> None:
        """See a view that its leader publishes, or another rank hands on."""
        view = View.from_meta(message.meta)
        identity = Identity.of(view)
        if view.roles[dest] is None:
            self._excluded.add(dest)
        if view.leader != node.rank or identity in self._published:
            return
        self._published.add(identity)
        if view.agreed != view.epoch:
            return
        proposed = self._proposals.get(identity)
        leased = view.lease > 0 and self._has_lease(node.rank, view.lease, identity)
        if proposed is None:
            network = self._internals.network
            assert network is not None
            twice, whole = self._count(
                {node.rank}, [[rank for rank in node.view.alive if network.lives(rank)]]
            )
            if twice <= whole and not leased:
                self._say("agreement", f"nobody was asked for {identity}")
            return
        acceptors = self._acceptors[identity]
        for electors in self._electors(proposed, acceptors):
            twice, whole = self._count(acceptors, [electors])
            if twice < whole or ((twice == whole or proposed.by_lease) and not leased):
                self._say("agreement", f"{identity} is published with {sorted(acceptors)} of {electors}")

    def _electors(self, proposed: Proposed, agreed: Collection[int]) -> list[list[int]]:
        """List the voters of each ancestor that live or have agreed: a candidate may know of no more deaths."""
        network = self._internals.network
        assert network is not None
        return [
            [rank for rank in each.ranks if network.lives(rank) or rank in agreed]
            for each in proposed.ancestors
        ]

    def _count(self, agreed: Collection[int], electors: Iterable[Collection[int]]) -> tuple[int, int]:
        """Return twice the votes of those that have agreed, and all: of the electors with the smallest share."""
        votes = Electorate.of(self._any().layout, self._any().view.ring.hosts).votes
        shares = [
            (2 * sum(votes[rank] for rank in among if rank in agreed), sum(votes[rank] for rank in among))
            for among in electors
        ]
        return min(shares, key=lambda each: each[0] - each[1])

    def _any(self) -> Node:
        return next(iter(self._internals.nodes.values()))

    def _has_lease(self, rank: int, number: int, identity: Identity | None = None) -> bool:
        """Return whether a rank has a lease, to continue, or for a view of this identity."""
        words = (self._internals.leases[rank].look(number) or "").split()
        holder = Identity(*map(int, words)) if len(words) == len(Identity._fields) else None
        return holder is not None and holder.leader == rank and (
            identity is None or holder == identity or holder.number == RENEWED or holder < identity
        )  # fmt: skip

    def _has_last_lease(self, rank: int) -> bool:
        number = 1
        leases = self._internals.leases[rank]
        while leases.look(number):
            number += 1
        return number > 1 and self._has_lease(rank, number - 1)

    # --- ranks that are cut off ----------------------------------------------------------------

    def _see_state(self, network: Network, node: Node) -> None:
        """See whether a rank is frozen, if it must be."""
        if not network.runs(node.rank) or node.rank in self._internals.left:
            return
        looks = network.time >= self._paused.get(node.rank, -GRACE) + GRACE
        is_bound = node.view.leader == node.rank or node.role is Role.SERVER
        if looks and is_bound and not node.frozen and self._is_cut_off(network, node):
            self._say("cut off", f"rank {node.rank} is not frozen")

    def _is_cut_off(self, network: Network, node: Node) -> bool:
        rank, view, seconds = node.rank, node.view, CERTAIN * self._patience + GRACE
        dead = self._internals.memberships[rank].dead
        if view.leader != rank:
            leader = view.leader
            return leader not in dead and network.lives(leader) and _silent(network, rank, leader) >= seconds
        living = [each for each in view.alive if network.lives(each) and dead.get(each) is not Cause.DIED]
        there = {
            each
            for each in living
            if each == rank or max(_silent(network, each, rank), _silent(network, rank, each)) < seconds
        }
        twice, whole = self._count(there, [living])
        return twice < whole or (twice == whole and not self._has_last_lease(rank))

    # --- the program -----------------------------------------------------------------------------

    def _see_entry(self, node: Node, dest: int, message: Message) -> None:
        # A leader does not wait for its own snapshots: its successors have the decisions that they replace.
        is_own = int(message.meta["number"]) >= int(message.meta["base"])
        if not has_decisions(message) or ("snapshot" in message.meta and is_own):
            return
        entry, last = int(message.meta["number"]), self._decisions.get(node.rank)
        if last is None or last.entry < entry:
            followers = frozenset(self._internals.journals[node.rank].followers)
            self._decisions[node.rank] = _Decision(entry, followers)

    def _see_logged(self, node: Node, dest: int, message: Message) -> None:
        if "count" in message.meta:
            of = node.rank, dest
            self._logged[of] = max(int(message.meta["count"]), self._logged.get(of, 0))

    def _see_request(self, node: Node, dest: int, message: Message) -> None:
        if message.command is Command.CALL and message.meta.get("call") == self._waits:
            self._calls.add((dest, message.origin, message.time))
        of = node.rank, message.origin
        if message.time <= self._times.get(of, -1):
            return
        self._times[of] = message.time
        last, network = self._decisions.get(node.rank), self._internals.network
        if last is None or node.view.leader != node.rank or network is None:
            return
        journal = self._internals.journals[node.rank]
        if journal.returned < journal.log.decided:
            # A successor repeats what was done before the last decision.
            return
        for rank in sorted(last.followers & journal.followers):
            if network.lives(rank) and self._logged.get((rank, node.rank), 0) <= last.entry:
                self._say("decisions", f"rank {rank} does not have entry {last.entry} of rank {node.rank}")

    def _see_end(self, node: Node, message: Message) -> None:
        of = node.rank, message.origin, message.time
        # A repeated answer may be sent during a later call.
        if of in self._calls and node.tasks.ahead.count:
            text = f"rank {node.rank} answers with {node.tasks.ahead.count} pushes that are not on all copies"
            self._say("calls", text)
        self._calls.discard(of)


def _silent(network: Network, rank: int, other: int) -> float:
    """Return for how many seconds of its own clock a rank has not heard another one."""
    return network.silence(rank, other) * network.clocks[rank].rate


_CONTROLS: dict[Command, Callable[[Witness, Node, int, Message], None]] = {
    Command.VIEWS: Witness._see_views,
    Command.PROPOSE: Witness._see_proposal,
    Command.ACCEPTED: Witness._see_acceptance,
    Command.VIEW: Witness._see_view,
    Command.LOG: Witness._see_entry,
    Command.LOGGED: Witness._see_logged,
}
