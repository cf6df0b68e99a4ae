"""The callee's half of tasks: which requests may start, which are done (paper, section 3.2).

An `RequestDedup` belongs to one address. It lets a request start when all it depends on has finished there,
starts each one exactly once, and answers a repeated one from the reply it kept until the caller has acknowledged it.
A shard's inbox goes where the shard goes, so that a push is applied once whoever applies it.

It is a plain state machine, as `mpips.tasks.task`: it is given messages and a function that sends, and never waits.
"""

from __future__ import annotations

from collections.abc import Callable

from mpips.tasks.task import Send
from mpips.transport.message import READS, Kind, Message

Kept = Message | Callable[[Message], Message]
"""What answers a request that comes again: the reply, or a function from that request to it."""


class _Caller:
    """What a callee knows of one caller."""

    __slots__ = ("acked", "finished", "kept", "latest", "parked", "running")

    def __init__(self) -> None:
        self.acked = 0
        self.latest = -1  # the highest time that ever came
        self.finished: set[int] = set()  # times from `acked` on
        self.running: set[int] = set()
        self.parked: dict[int, Message] = {}
        self.kept: dict[int, Kept] = {}


def _forgotten(request: Message) -> Message:
    """Make the reply to a request whose own was acknowledged: whoever had that one does not wait for another."""
    text = (
        "a request that was answered comes from a scheduler that does not know of the answer: its journal is lost, "
        "go on with --resume latest"
    )
    reply = Message(
        Kind.FAILURE,
        request.command,
        origin=request.origin,
        shard=request.shard,
        meta={"text": text, "journal": "lost"},
    )
    reply.time, reply.namespace = request.time, request.namespace
    return reply


class RequestDedup:
    """The callee's half for one address: which requests may start, which are done; see the module.

    Its memory is bounded by the callers' windows: what a caller has acknowledged is forgotten. Requests that change
    nothing have no kept reply: one that comes again starts again.
    """

    def __init__(self, send: Send, keep: bool = True) -> None:
        self._send, self.keep = send, keep
        self._callers: dict[int, _Caller] = {}

    def knows(self, request: Message) -> bool:
        """Tell whether a request has come before, and need not be read: `admit` answers it, or lets it be.

        What answers the pushes of a round needs to know the keys that they name.
        """
        caller, time = self._callers.get(request.origin), request.time
        if caller is None:
            return False
        if time in caller.running or time in caller.parked:
            return True
        if callable(caller.kept.get(time)):
            return False
        return (time < caller.acked or time in caller.finished) and request.command not in READS

    def has_finished(self, origin: int, time: int) -> bool:
        """Tell whether a request of that time has finished."""
        caller = self._callers.get(origin)
        return caller is not None and (time < caller.acked or time in caller.finished)

    def repeat(self, origin: int, time: int) -> bool:
        """Answer a request once more whose caller hears nothing; give whether it needs not come again.

        It need not if it is under way, or if its reply is kept.
        """
        caller = self._callers.get(origin)
        if caller is None:
            return False
        kept = caller.kept.get(time)
        if kept is not None and not callable(kept):
            self._send(origin, kept)
            return True
        return time in caller.running or time in caller.parked

    def admit(self, request: Message) -> list[Message]:
        """Take a request; give those that may start now (none: it is parked, or is a repetition)."""
        caller = self._caller(request.origin, request.acked)
        time = request.time
        caller.latest = max(caller.latest, time)
        if time in caller.running:
            return []
        if time in caller.parked:  # what it waits for may have been given up since
            caller.parked[time].after = request.after
            return self._startable(caller)
        if (time < caller.acked or time in caller.finished) and request.command not in READS:
            kept = caller.kept.get(time)
            if kept is not None:
                self._send(request.origin, kept(request) if callable(kept) else kept)
            elif self.keep and time < caller.acked:
                self._send(request.origin, _forgotten(request))
            return []
        if self._may_start(caller, request):
            caller.running.add(time)
            return [request]
        caller.parked[time] = request
        return []

    def _caller(self, origin: int, acked: int) -> _Caller:
        caller = self._callers.get(origin)
        if caller is None:
            caller = self._callers[origin] = _Caller()
        if acked > caller.acked:
            caller.acked = acked
            caller.latest = max(caller.latest, acked - 1)
            if len(caller.finished) > 32 or caller.kept:
                caller.finished = {time for time in caller.finished if time >= acked}
                for time in [each for each in caller.kept if each < acked]:
                    del caller.kept[time]
        return caller

    @staticmethod
    def _may_start(caller: _Caller, request: Message) -> bool:
        return all(
            time < caller.acked or time in caller.finished for pair in request.after for time in range(*pair)
        )

    def finish(self, origin: int, time: int, kept: Kept | None = None, acked: int = 0) -> list[Message]:
        """Mark a request as finished, and keep its reply; give the parked requests that may start now."""
        caller = self._caller(origin, acked)
        caller.running.discard(time)
        caller.finished.add(time)
        caller.latest = max(caller.latest, time)
        if kept is not None and self.keep and time >= caller.acked:
            caller.kept[time] = kept
        return self._startable(caller) if caller.parked else []

    def _startable(self, caller: _Caller) -> list[Message]:
        ready = [request for request in caller.parked.values() if self._may_start(caller, request)]
        for request in ready:
            del caller.parked[request.time]
            caller.running.add(request.time)
        return ready

    def forget(self, request: Message) -> None:
        """Take a request that was admitted as never come: it is to come again."""
        caller = self._callers.get(request.origin)
        if caller is not None:
            caller.running.discard(request.time)

    def abandon(self) -> None:
        """Take all requests that have not finished as never come."""
        for caller in self._callers.values():
            caller.running.clear()
            caller.parked.clear()

    def latest(self, origin: int) -> int:
        """Return the highest time of a caller's that ever came or was finished; what is above it is new."""
        caller = self._callers.get(origin)
        return -1 if caller is None else caller.latest

    def parks(self, origin: int) -> bool:
        """Tell whether requests of a caller wait for others of its own."""
        caller = self._callers.get(origin)
        return caller is not None and bool(caller.parked)

    def unfinished(self) -> int:
        """Count the requests that were admitted and are not finished."""
        return sum(len(caller.running) + len(caller.parked) for caller in self._callers.values())

    def callers(self) -> dict[int, tuple[int, list[int], dict[int, Kept]]]:
        """Return what is known of each caller: the time it has acknowledged, the finished times since, kept replies."""
        return {
            origin: (caller.acked, sorted(caller.finished), dict(caller.kept))
            for origin, caller in self._callers.items()
        }
