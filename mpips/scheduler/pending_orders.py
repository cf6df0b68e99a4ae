"""Orders that wait for the program: it carries them out between two steps.

They result from users' commands, signals and the clock, at any time. The program sees them through decisions of the
journal, so that a successor carries out the same ones. The leader also sends them to the ranks that may succeed it
(`keep_for_successors`): an order is answered once, and its file is gone then.

    leader                                                  ranks that may succeed it
    take an order: send all that are pending        ->      keep them
    once all have them: answer it                   <-      acknowledge
    carry it out between two steps

A leader that dies before the answer leaves the order open, and its successor takes it (`mpips.rundir.order_files`).
None is carried out twice: what has been done of an order to join or to leave is known by its name (`servers`) or by
the program's decisions (`joined`); all others change nothing when they are repeated, except that a second checkpoint is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.transport.message import Command, Message


@dataclass(slots=True)
class PendingOrders:
    """The orders that the leader has received and the program has not carried out yet."""

    stop: str | None = None
    """The source of the request to stop, or None; it stays."""
    checkpoint: bool = False
    """Whether to write a checkpoint."""
    joining: int = 0
    """The number of spares to make workers."""
    joined: int = 0
    """The number of spares that orders have made workers, as far as the program has run."""
    leaving: set[int] = field(default_factory=set)
    """The ranks of workers to make spares."""
    tau: int | None = None
    """The last maximal delay that was ordered; it stays."""
    taken: dict[str, int] = field(default_factory=dict)
    """By the names of orders to join and to leave: the rank, or -1 for the next spare."""
    are_kept: Callable[[], bool] = lambda: True
    """Return whether all ranks that may succeed the leader have the orders."""

    def to_meta(self) -> dict[str, Any]:
        """Return the orders as JSON-able data."""
        return {
            "stop": self.stop,
            "checkpoint": self.checkpoint,
            "joins": self.joining + self.joined,
            "leaving": sorted(self.leaving),
            "tau": self.tau,
            "taken": dict(self.taken),
        }

    def take(self, meta: dict[str, Any]) -> None:
        """Replace the orders by those of the leader; a request to stop that this rank has got itself stays."""
        self.stop = self.stop or meta["stop"]
        self.checkpoint, self.tau = bool(meta["checkpoint"]), meta["tau"]
        self.joining, self.leaving = meta["joins"] - self.joined, set(meta["leaving"])
        self.taken = dict(meta["taken"])


def keep_for_successors(node: Node, orders: PendingOrders) -> None:
    """Let orders survive the leader that has received them.

    A signal may have reached one rank only, and an order has one receiver.
    """
    # A leader that succeeds another replaces what the others have from that one.
    sent = PendingOrders().to_meta() if node.view.leader == node.rank else None
    number = 0
    # By rank: the number of the last orders that it was sent, and that it has acknowledged.
    informed: dict[int, int] = {}
    kept: dict[int, int] = {}
    # At a successor: the leader, and the number of its last orders.
    last = (-1, 0)

    def successors() -> set[int]:
        return set(node.view.succession()) - {node.rank}

    def look() -> None:
        nonlocal sent, number
        if node.view.leader != node.rank:
            return
        now = orders.to_meta()
        if now != sent:
            sent, number = now, number + 1
        for rank in successors():
            if informed.get(rank, 0) < number:
                informed[rank] = number
                node.control(rank, Command.ORDERS, {**now, "number": number})

    def receive(message: Message) -> None:
        nonlocal last
        about = message.sender, int(message.meta["number"])
        if node.view.leader == node.rank or (about[0] == last[0] and about[1] < last[1]):
            return
        last = about
        orders.take(message.meta)
        node.control(message.sender, Command.ORDERS_KEPT, {"number": about[1]})

    def acknowledged(message: Message) -> None:
        kept[message.sender] = max(kept.get(message.sender, 0), int(message.meta["number"]))

    def are_kept() -> bool:
        look()
        return all(kept.get(rank, 0) >= number for rank in successors())

    controls = {Command.ORDERS: receive, Command.ORDERS_KEPT: acknowledged}
    node.register(Registration(controls=controls, ticks=(look,)))
    orders.are_kept = are_kept
