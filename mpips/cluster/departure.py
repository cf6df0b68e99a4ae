"""How a rank leaves: together with all others at the end, or at once, when it is stopped or was excluded.

At the end each rank reports to the leader that it has finished, and the leader informs all ranks when all have: two
messages per rank. Ranks repeat their message to a successor of the leader.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpips.cluster.view import NOBODY, View
from mpips.errors import MpipsError
from mpips.transport.message import Command, Message
from mpips.transport.van import Van


class Stopped(BaseException):
    """The scheduler asks this rank to leave with an exit code; unwinds the call stack."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Fenced(BaseException):
    """The other ranks have excluded this rank, and it leaves."""


def stop(message: Message) -> None:
    """Receive a STOP message: raise Stopped."""
    raise Stopped(int(message.meta["code"]), str(message.meta.get("reason", "")))


class Departure:
    """The departure of one rank. `view()` returns its view, `control` sends a control message, `poll` receives one."""

    def __init__(
        self,
        van: Van,
        view: Callable[[], View],
        control: Callable[[int, Command, dict[str, Any]], None],
        poll: Callable[[], bool],
    ) -> None:
        self._van, self._view, self._control, self._poll = van, view, control, poll
        # At the leader: the ranks that have finished, or are lost.
        self._finished: set[int] = set()
        self._all_leave = False

    def record_lost(self, rank: int) -> None:
        """Record that a rank is gone, even if it is in the view: it is not waited for when all leave."""
        self._finished.add(rank)

    def receive_barrier(self, message: Message) -> None:
        """Record, at the leader, that the sender has finished."""
        self._finished.add(message.sender)

    def receive_gone(self, message: Message) -> None:
        """Record that all ranks leave."""
        self._all_leave = True

    def leave(self, patience: float = 3.0) -> bool:
        """Leave together: wait until all ranks have finished; return False after `patience` seconds."""
        van, informed = self._van, NOBODY
        deadline = van.now() + patience
        while not self._all_leave or van.pending():
            view = self._view()
            if view.leader == van.rank:
                others = set(view.alive) - {van.rank}
                if not self._all_leave and others <= self._finished:
                    self._all_leave = True
                    for dest in others:
                        self._control(dest, Command.GONE, {})
            elif informed != view.leader:
                informed = view.leader
                self._control(informed, Command.BARRIER, {})
            if van.now() > deadline:
                return False
            self._finished.update(van.failed())
            try:
                if not self._poll():
                    van.idle()
            except (Stopped, MpipsError):
                # This rank is already leaving.
                continue
            except Fenced:
                return True
        return True
