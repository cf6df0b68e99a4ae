"""The specification: what the functions of views make is a behaviour, and what they must not make is none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from mpips.bench.failures import _trial
from mpips.cluster.layout import Cause, Layout, LayoutSpec, Role
from mpips.cluster.view import (
    GENERATION,
    NOBODY,
    Chain,
    Loss,
    View,
    first_view,
    next_epoch,
    repaired,
    with_learner_joined,
    with_ring_order,
    with_server,
    with_workers,
    without,
)
from mpips.membership.specification import of_behaviour, of_step, of_view, published, wrong_in

SPEC = LayoutSpec(servers=3, workers=2, spares=1)
FIRST = first_view(Layout.of(SPEC.size(), SPEC), 1, replicas=1)
SPARE = 6


def lost(view: View, rank: int, cause: Cause = Cause.DIED) -> View:
    """Return the next view, without a rank."""
    return without(next_epoch(view), [Loss(rank, str(view.roles[rank]), cause, 0.0)])


def completed(view: View) -> View:
    """Return the next view, in which each copy is complete, and each closed chain has the ring's order."""
    view = next_epoch(view)
    for shard, chain in enumerate(view.chains):
        if chain.learner != NOBODY:
            view = with_learner_joined(view, shard, chain.learner, chain.since)
        view = with_ring_order(view, shard, chain.since, 1)
    return repaired(view, 1)


def until_repaired(view: View) -> list[View]:
    """Return the views from one on until all chains have their holders in order."""
    views = [view]
    while any(chain.learner >= 0 or chain.closing for chain in views[-1].chains):
        views.append(completed(views[-1]))
    return views


def of_successor(view: View, leader: int) -> View:
    """Return the view that a successor makes from one."""
    made = lost(replace(view, epoch=view.epoch + GENERATION), view.leader, Cause.HUNG)
    return replace(made, leader=leader, agreed=made.epoch)


JOINED = repaired(with_server(next_epoch(FIRST), SPARE), 1)
JOINING = [FIRST, *until_repaired(JOINED)]
REPLACED = repaired(with_server(lost(FIRST, 1), SPARE), 1)
REPAIRS = [FIRST, *until_repaired(REPLACED)]


@pytest.mark.parametrize(
    "views",
    [
        JOINING,
        REPAIRS,
        [*JOINING, lost(JOINING[-1], 2)],
        [FIRST, with_workers(next_epoch(FIRST), [5, SPARE])],
        # The successor has not received the last views of its predecessor.
        *([*REPAIRS, of_successor(base, 2)] for base in REPAIRS[-3:]),
        [*REPAIRS[:3], of_successor(REPAIRS[2], 2), next_epoch(of_successor(REPAIRS[2], 2))],
    ],
)
def test_views_that_are_made_as_they_must_be_are_a_behaviour(views: list[View]) -> None:
    assert not list(of_behaviour(views, 1)) and not list(of_behaviour(reversed(views), 1))
    assert not wrong_in(json.loads(json.dumps([published(view, view.leader, 1) for view in views])))


def changed(view: View, shard: int, chain: Chain) -> View:
    """Return the next view, with another chain."""
    chains = list(view.chains)
    chains[shard] = chain._replace(since=view.epoch + 1)
    return replace(next_epoch(view), chains=tuple(chains))


ONE, OTHER = FIRST.chains[0].members
(THIRD,) = {1, 2, 3} - {ONE, OTHER}
SUCCESSOR = of_successor(FIRST, 2)
CLOSING, SHARD = next(
    (view, shard) for view in JOINING for shard, chain in enumerate(view.chains) if chain.closing
)
COPYING, COPIED = next(
    (view, shard) for view in JOINING for shard, chain in enumerate(view.chains) if chain.learner >= 0
)
LEARNER = COPYING.chains[COPIED]
roles = tuple(Role.SERVER if rank == 4 else role for rank, role in enumerate(FIRST.roles))


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [
        (FIRST, replace(FIRST, lease=1), "not later"),
        (FIRST, replace(next_epoch(FIRST), leader=2), "lead in one generation"),
        (FIRST, replace(SUCCESSOR, agreed=0), "leads without agreement"),
        (FIRST, replace(SUCCESSOR, leader=4), "was not in the succession"),
        (FIRST, lost(FIRST, 4, Cause.HUNG), "excluded without agreement"),
        (SUCCESSOR, replace(next_epoch(SUCCESSOR), agreed=0), "is forgotten"),
        (lost(FIRST, 4), next_epoch(next_epoch(FIRST)), "is back"),
        (FIRST, replace(next_epoch(FIRST), roles=(Role.WORKER, *FIRST.roles[1:])), "becomes worker"),
        (FIRST, replace(next_epoch(FIRST), workers=(5, 4)), "but since epoch 0"),
        (FIRST, changed(FIRST, 0, Chain((ONE, THIRD))), "without a copy"),
        (FIRST, changed(FIRST, 0, Chain((OTHER, ONE))), "without being closed"),
        (FIRST, changed(FIRST, 0, Chain((ONE,))), "are not all there"),
        (FIRST, changed(FIRST, 0, Chain((ONE, OTHER), THIRD)), "is none of the holders"),
        (FIRST, changed(FIRST, 0, Chain((ONE, OTHER), closing=True)), "need not take the order"),
        (FIRST, replace(lost(FIRST, 1), chains=FIRST.chains), "are still in its chain"),
        (COPYING, changed(COPYING, COPIED, Chain((LEARNER.learner, *LEARNER.members))), "the last member"),
        (
            CLOSING,
            changed(CLOSING, SHARD, Chain(CLOSING.chains[SHARD].members[::-1])),
            "without being closed",
        ),
    ],
)
def test_a_view_that_must_not_follow_another_is_found(before: View, after: View, wrong: str) -> None:
    assert wrong in "; ".join(of_step(before, after, 1))
    assert list(of_behaviour((before, after), 1))


@pytest.mark.parametrize(
    ("view", "wrong"),
    [
        (replace(FIRST, leader=4), "or a worker"),
        (replace(FIRST, workers=(4,)), "its workers are"),
        (replace(FIRST, roles=roles), "the ranks of that role"),
        (replace(FIRST, successors=FIRST.successors[1:]), "are listed"),
        (replace(lost(FIRST, 4), losses=()), "the losses"),
        (replace(FIRST, agreed=1), "later than it"),
        (replace(FIRST, ring=FIRST.ring.join(4)), "are on the ring"),
        (changed(FIRST, 0, Chain(())), "no member"),
        (changed(FIRST, 0, Chain((ONE, SPARE))), "others than servers"),
        (changed(FIRST, 0, Chain((ONE, OTHER), THIRD, closing=True)), "has a learner"),
        (replace(changed(FIRST, 0, Chain((ONE, OTHER))), epoch=0), "later than the view"),
        (changed(changed(FIRST, 0, Chain((1, 2), 3)), 1, Chain((2, 1), 3)), "two copies"),
    ],
)
def test_a_view_that_must_not_be_is_found(view: View, wrong: str) -> None:
    assert wrong in "; ".join(of_view(view))


def record(rank: int, epoch: int, leader: int) -> dict[str, object]:
    """Return the line of a log that says that a rank has adopted a view."""
    return {"event": "view", "rank": rank, "epoch": epoch, "leader": leader}


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        ([record(1, 1, 0), record(2, 1, 0), {"event": "lost"}], ""),
        ([record(1, 1, 0), record(2, 1, 3)], "ranks 0 and 3 lead"),
        ([record(1, 2, 0), record(1, 1, 0)], "adopts it after 2"),
        ([published(FIRST, 1, 1)], "rank 1 publishes it, which rank 0 leads"),
        ([published(view, 0, 1) for view in (REPLACED, lost(FIRST, 2))], "two views"),
    ],
)
def test_logs_are_checked(records: Iterable[dict[str, object]], wrong: str) -> None:
    found = "; ".join(wrong_in(records))
    assert wrong in found and bool(wrong) == bool(found)


def test_a_handover_is_completed_while_the_ring_changes_again() -> None:
    """Another server leaves between the view that closes a chain and the one with its new order."""
    assert not _trial.run(50055).violations
