"""What one rank knows of lost ranks."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpips.membership.detection import Detection, FailureDetector
from mpips.transport.message import Command, Kind, Message


def detection() -> Detection:
    """Return that of rank 0, to which MPI reports nothing."""
    node: Any = SimpleNamespace(
        rank=0,
        van=SimpleNamespace(failed=list),
        departure=SimpleNamespace(record_lost=lambda rank: None),
    )
    return Detection(node, None, 1.0, 0.0, lambda text: None, lambda: 1.0)


class Silent:
    """A detector for which ranks are silent, or deaf to this one."""

    def __init__(self, *ranks: int) -> None:
        self.ranks = ranks

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        return [rank for rank in ranks if rank in self.ranks]

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        return []


def report(sender: int, *died: int) -> Message:
    """Return the report of a rank that others have died."""
    return Message(Kind.CONTROL, Command.DIED, sender, meta={"ranks": list(died)})


def test_of_two_ranks_that_report_each_other_one_is_lost() -> None:
    leader = detection()
    leader.receive_deaths(report(2, 3))
    leader.receive_deaths(report(3, 2, 4))
    assert leader.look((), ()) == [3]
    leader.receive_deaths(report(3, 2))
    leader.receive_deaths(report(4, 3, 5))
    assert leader.look((), ()) == [5] and set(leader.dead) == {3, 5}


def test_a_leader_that_was_muted_until_it_was_elected_is_not_lost_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, follower = 5.0, detection()
    follower._node.van.now = lambda: now
    monkeypatch.setattr(follower, "_dispensable", lambda rank: True)
    follower.detector = cast("FailureDetector", Silent(1, 2))
    follower.led(1)
    follower.look((1, 2), ())
    # It counts as silent: a server stays frozen.
    assert follower.silent == {1, 2} and follower.hung == {2}
    now += follower.patience
    follower.look((1, 2), ())
    assert follower.hung == {1, 2}
