"""The answer to `mpips ctl RUN status`: roles, shards, progress, waits and losses.

The leader queries the servers for the rounds that they have applied (paper, section 4.1), and answers once all have
replied, or after `PATIENCE` seconds with the replies that it has: a hung server must not delay the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.membership.membership import Membership
from mpips.rank.long_waits import LongWaits
from mpips.rank.retransmission_counts import RetransmissionCounts
from mpips.rundir.order_files import Order
from mpips.rundir.progress import bytes_si, seconds, share, si
from mpips.server.applied_rounds import AppliedRounds
from mpips.storage.vector_clock import NOTHING
from mpips.transport.message import Command, Message

PATIENCE = 0.5
"""Seconds that an answer waits for the servers' replies."""


class Status:
    """The status of a run, at the leader: `ask`, then answer the orders that `ready` returns with `text`."""

    def __init__(
        self, node: Node, membership: Membership, waits: LongWaits, repeats: RetransmissionCounts
    ) -> None:
        self.node, self._membership, self._waits, self._repeats = node, membership, waits, repeats
        self._pending: list[Order] = []
        self._deadline = 0.0
        # By server: its applied rounds by vector.
        self._rounds: dict[int, dict[str, AppliedRounds]] = {}
        # By server: the figures of its rows on disk.
        self._stores: dict[int, dict[str, float]] = {}
        self.note: Callable[..., None] = lambda event, **facts: None
        """Is told these figures as they come."""
        controls = {Command.ROUNDS: self._receive, Command.STORE: self._receive_store}
        node.register(Registration(controls=controls))

    def ask(self, order: Order) -> None:
        """Queue an order, and query the servers unless a query is under way."""
        node = self.node
        if not self._pending:
            self._rounds, self._deadline = {}, node.van.now() + PATIENCE
            for rank in node.view.servers:
                node.control(rank, Command.ASK_ROUNDS, {})
        self._pending.append(order)

    def _receive(self, message: Message) -> None:
        self._rounds[message.sender] = {name: AppliedRounds(*each) for name, each in message.meta.items()}

    def _receive_store(self, message: Message) -> None:
        self._stores[message.sender] = message.meta
        self.note("store", rank=message.sender, **message.meta)

    def ready(self) -> list[Order]:
        """Return the queued orders, once all servers have replied or the time is over."""
        if not self._pending or (
            self.node.van.now() < self._deadline and not self._rounds.keys() >= {*self.node.view.servers}
        ):
            return []
        orders, self._pending = self._pending, []
        return orders

    def text(self, title: str) -> str:
        """Return the status in a few lines, the first of which begins with `title`."""
        view = self.node.view
        held = {rank: len(view.primary_of(rank)) for rank in view.servers}
        lines = [
            f"{title}, epoch {view.epoch}",
            f"  leader: rank {view.leader}",
            "  servers: "
            + ", ".join(f"rank {rank} ({n} of {len(view.chains)} shards)" for rank, n in held.items()),
            "  workers: " + ", ".join(f"rank {rank}" for rank in view.workers),
            "  spares: " + (", ".join(f"rank {rank}" for rank in view.spares) or "none"),
            *self._progress(),
        ]
        lines += [
            f"  rows on disk of rank {rank}: {_stored(self._stores[rank])}"
            for rank in view.servers
            if rank in self._stores
        ]
        moving = sum(chain.learner >= 0 or chain.closing for chain in view.chains)
        lines += [f"  shards that are being copied: {moving}"] if moving else []
        again = ", ".join(f"{n} ({cause})" for cause, n in sorted(self._repeats.total().items()))
        lines += [f"  messages sent again: {again or 'none'}"]
        lines += [f"  waiting: {each}" for each in self._waits.lines()]
        for rank in self._membership.waiting_for:
            place = self.node.layout.places[rank]
            lines.append(f"  silent: rank {rank} ({place}), which the run waits for")
        lines += [f"  lost: rank {loss.rank} ({loss.role}, {loss.cause})" for loss in view.losses]
        return "\n".join(lines)

    def _progress(self) -> Iterator[str]:
        """Yield a line per aggregating vector: the last applied round of each server, and its ranges behind it."""
        servers = self.node.view.servers
        names = dict.fromkeys(name for rank in servers for name in self._rounds.get(rank, ()))
        for name in names:
            by_text: dict[str, list[int]] = {}
            for rank in servers:
                known = self._rounds.get(rank)
                if known is None:
                    by_text.setdefault("unknown", []).append(rank)
                elif name in known:
                    by_text.setdefault(_described(known[name]), []).append(rank)
            parts = [f"{text} at rank {', '.join(map(str, ranks))}" for text, ranks in by_text.items()]
            yield f"  applied to {name}: {'; '.join(parts)}"


def _stored(figures: dict[str, float]) -> str:
    return (
        f"{bytes_si(figures['memory'])} of {bytes_si(figures['limit'])} in memory, {bytes_si(figures['disk'])} on "
        f"disk; in {seconds(figures['seconds'])}: {share(figures['hit_rate'])} found in memory, "
        f"{si(figures['reads_per_s'])} read and {si(figures['writes_per_s'])} written a second"
    )


def _described(rounds: AppliedRounds) -> str:
    behind = ", ".join(f"{_round(round_)} on keys [{begin}, {end})" for begin, end, round_ in rounds.behind)
    more = f", and {rounds.more} more ranges" if rounds.more else ""
    return _round(rounds.latest) + (f" ({behind}{more})" if behind else "")


def _round(number: int) -> str:
    return "no round" if number == NOTHING else f"round {number}"
