"""The small worlds by name: two servers, a worker, a spare and the scheduler, and what the worker's program does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from mpips.bench.worlds._rank import RESEND, ROUNDS, SINGLES, Condition, Program, Script, Setting
from mpips.bench.worlds._world import World
from mpips.cluster.hash_ring import Ring
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.view import Chain, first_view
from mpips.membership.membership import Membership

SPARE, KEY = 4, 7
SPEC = LayoutSpec(servers=2, workers=1, spares=1)


def _push(program: Program) -> Iterator[Condition]:
    """Push, and pull with a dependency on the push."""
    pushed = program.push(KEY)
    pulled = program.pull(SINGLES, KEY, after=[pushed])
    yield lambda: pulled.done
    program.read(pulled, 1, 1)


def _pushes(program: Program) -> Iterator[Condition]:
    """Push twice at the same time, pull one of them, and push once more."""
    one, other = program.push(KEY), program.push(KEY)
    pulled = program.pull(SINGLES, KEY, after=[one])
    yield lambda: pulled.done and other.done
    program.read(pulled, 1, 2)
    last = program.push(KEY)
    yield lambda: last.done
    again = program.pull(SINGLES, KEY)
    yield lambda: again.done
    program.read(again, 3, 3)


def _rounds(program: Program) -> Iterator[Condition]:
    """Push two rounds, which are answered ahead of their copies, and wait until both are on all copies."""
    for round_ in range(2):
        pushed = program.push_round(round_, KEY)
        yield lambda task=pushed: task.done  # type: ignore[misc]
        program.read(pushed, round_ + 1, round_ + 1)
    yield program.settled(KEY)
    pulled = program.pull(ROUNDS, KEY)
    yield lambda: pulled.done
    program.read(pulled, 2, 2)


def _join(membership: Membership) -> None:
    """Let the spare become a server, which gets shards of the others."""
    membership.join_server(SPARE)


WORLDS: dict[str, tuple[Script, int]] = {
    "push": (_push, SINGLES),
    "pushes": (_pushes, SINGLES),
    "rounds": (_rounds, ROUNDS),
    "join": (_push, SINGLES),
}
"""By name: the program, and the vector that it pushes into."""


def world(
    name: str, faults: int, kinds: tuple[str, ...], ordered: bool = False, victims: Collection[int] = ()
) -> World:
    """Return a small world; see `World`."""
    script, vector = WORLDS[name]
    layout = Layout.of(SPEC.size(), SPEC)
    joins = name == "join"
    # As few shards as can be: a vacant slot of the ring makes them four.
    ring = Ring.of(layout.servers, 1, len(layout.servers) + joins)
    view = replace(first_view(layout, 1, 1), ring=ring, chains=tuple(map(Chain, ring.chains(1))))
    begin: Callable[[Membership], None] = _join if joins else lambda membership: None
    resend = RESEND if "lose" in kinds else None
    return World(
        Setting(layout, view, 1, script, ((vector, KEY),), resend, begin), faults, kinds, ordered, victims
    )
