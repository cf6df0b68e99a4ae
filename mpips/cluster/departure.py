"""How a rank leaves: together with all others at the end, or at once, when it is told to or was excluded.

At the end each rank tells the leader that it has nothing left to do, and the leader tells all when they have: two
messages a rank. A successor of the leader is told again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpips.cluster.view import NOBODY, View
from mpips.errors import MpipsError
from mpips.transport.message import Command, Message
from mpips.transport.van import Van


class Stopped(BaseException):
    """The scheduler asks this rank to leave with an exit code; unwinds whatever the rank was doing."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Fenced(BaseException):
    """The others have taken this rank for dead and gone on without it: it leaves."""


def stop(message: Message) -> None:
    """Take a STOP message: raise Stopped."""
    raise Stopped(int(message.meta["code"]), str(message.meta.get("reason", "")))


class Departure:
    """The leaving of one rank. `view()` returns its view, `control` sends a control message, `poll` moves messages."""

    def __init__(
        self,
        van: Van,
        view: Callable[[], View],
        control: Callable[[int, Command, dict[str, Any]], None],
        poll: Callable[[], bool],
    ) -> None:
        self._van, self._view, self._control, self._poll = van, view, control, poll
        # at the leader: who has nothing left to do, or is gone
        self._ready: set[int] = set()
        self._gone_together = False

    def absent(self, rank: int) -> None:
        """Note that a rank is gone, view or not: it is not waited for when all leave."""
        self._ready.add(rank)

    def take_barrier(self, message: Message) -> None:
        """Note at the leader that the sender has nothing left to do."""
        self._ready.add(message.sender)

    def take_gone(self, message: Message) -> None:
        """Note that all ranks leave."""
        self._gone_together = True

    def leave(self, patience: float = 3.0) -> bool:
        """Leave together: wait until no rank has anything left to do; return False after `patience` seconds."""
        van, told = self._van, NOBODY
        deadline = van.now() + patience
        while not self._gone_together or van.pending():
            view = self._view()
            if view.leader == van.rank:
                others = set(view.alive) - {van.rank}
                if not self._gone_together and others <= self._ready:
                    self._gone_together = True
                    for dest in others:
                        self._control(dest, Command.GONE, {})
            elif told != view.leader:
                told = view.leader
                self._control(told, Command.BARRIER, {})
            if van.now() > deadline:
                return False
            self._ready.update(van.failed())
            try:
                if not self._poll():
                    van.idle()
            except (Stopped, MpipsError):
                # it leaves already
                continue
            except Fenced:
                return True
        return True
