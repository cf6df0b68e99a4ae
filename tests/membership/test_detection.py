"""What one rank knows of lost ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mpips.membership.detection import Detection
from mpips.transport.message import Command, Kind, Message


def detection() -> Detection:
    """Return that of rank 0, to which MPI reports nothing."""
    node: Any = SimpleNamespace(
        rank=0,
        van=SimpleNamespace(failed=list),
        departure=SimpleNamespace(record_lost=lambda rank: None),
    )
    return Detection(node, None, 1.0, 0.0, lambda text: None, lambda: 1.0)


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
