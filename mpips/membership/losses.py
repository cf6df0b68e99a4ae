"""Losses: the view without lost ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import ERROR, WARNING

from mpips.cluster.layout import Cause, Role
from mpips.cluster.view import Loss, View, next_spare, with_server, without
from mpips.errors import ShardLost
from mpips.rundir.log import note


def without_lost(view: View, gone: Iterable[int], causes: Mapping[int, Cause], wall: float) -> View:
    """Return the view without lost ranks, with spares in place of servers; log each, as fatal if a shard is lost.

    Chains are still to be repaired. A lost worker is replaced when the program calls `regroup`.
    """
    losses = [Loss(rank, str(role), causes[rank], wall) for rank in gone if (role := view.roles[rank])]
    try:
        left = without(view, losses)
    except ShardLost:
        for loss in losses:
            note("lost", ERROR, lost=loss.rank, cause=loss.cause, error=loss.cause.text, fatal=True)
        raise
    for loss in losses:
        note("lost", WARNING, lost=loss.rank, cause=loss.cause, error=loss.cause.text)
        spare = next_spare(left, loss.rank)
        if loss.role == Role.SERVER and spare is not None:
            left = with_server(left, spare)
    return left
